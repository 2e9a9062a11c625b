//! The figures of a tenant's runs, as they are now and in the last hour.
//!
//! Every [`SAMPLE_INTERVAL`] the daemon notes what each tenant's counters say. The counters
//! themselves know nothing of it, so that a run costs no more.

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::Runner;
use super::origin::RunState;
use super::tenant::Tenant;
use crate::metrics::{
    LatencySnapshot, RunHistory, RunInterval, RunSample, RunTally, Tick, TickLog,
};
use crate::model::outcome::Outcome;
use crate::sync::lock;

/// How often a sample is taken for the history.
pub(super) const SAMPLE_INTERVAL: Duration = Duration::from_secs(10);
/// How far back the history goes.
pub const STATS_HISTORY: Duration = Duration::from_secs(3600);
/// The two windows before now that are told besides all since the start.
const WINDOWS: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(300)];

/// What the figures of all tenants have in common: since when they count, and the ticks at which
/// samples were taken.
#[derive(Debug)]
pub(super) struct StatsClock {
    since: SystemTime,
    started: Instant,
    ticks: Mutex<TickLog>,
    /// Whether the daemon ends, and with it every watch.
    pub(super) ended: watch::Sender<bool>,
}

/// The figures of a tenant at one moment.
#[derive(Debug)]
#[expect(missing_docs, reason = "plain data, named as `Stats` names it")]
pub struct StatsReport {
    pub time: SystemTime,
    pub since: SystemTime,
    /// All that was counted since the start.
    pub total: RunSample,
    pub live: LiveRuns,
    pub since_start: SpanFigures,
    pub last_minute: SpanFigures,
    pub last_five_minutes: SpanFigures,
    /// The samples that were asked for, the oldest first.
    pub history: Vec<SampleFigures>,
    /// The number of the last tick. What comes after it is not in `history` yet.
    pub last_tick: u64,
}

/// The runs of a tenant that have not ended, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "plain data, named as the states are")]
pub struct LiveRuns {
    pub compiling: u32,
    pub queued: u32,
    pub running: u32,
}

/// What happened in a span of time.
#[derive(Debug)]
pub struct SpanFigures {
    /// The length of the span.
    pub span: Duration,
    /// What was counted in it.
    pub tally: RunTally,
}

/// What happened in the interval of one sample, and what there was at its end.
#[derive(Debug)]
#[expect(missing_docs, reason = "plain data, named as `StatsSample` names it")]
pub struct SampleFigures {
    pub time: SystemTime,
    pub span: Duration,
    pub memory_reserved: u64,
    pub in_flight: u32,
    pub queued: u32,
    pub ended: [u64; Outcome::NAMES.len()],
    pub refused: u64,
    pub cpu_time: Duration,
    pub wait: LatencyFigures,
    pub run: LatencyFigures,
}

/// A summary of durations.
#[derive(Clone, Copy, Debug, Default)]
pub struct LatencyFigures {
    /// How many durations there are.
    pub count: u64,
    /// The sum of the durations.
    pub sum: Duration,
    /// The durations below which half, nine tenths and 99 hundredths of them are; `None` where
    /// there are none.
    pub quantiles: Option<[Duration; 3]>,
}

/// Which samples of the past are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatsHistory {
    /// None of them is.
    None,
    /// Those that cover so much of the time before now.
    Within(Duration),
    /// Those that were taken after the tick of that number.
    After(u64),
}

impl StatsClock {
    /// Starts to count from now on.
    pub(super) fn start() -> Self {
        let started = Instant::now();
        Self {
            since: SystemTime::now(),
            started,
            ticks: Mutex::new(TickLog::new(started)),
            ended: watch::Sender::new(false),
        }
    }
}

impl LiveRuns {
    /// Returns how many runs have not ended.
    pub fn in_flight(&self) -> u32 {
        self.compiling + self.queued + self.running
    }

    fn of(tenant: &Tenant) -> Self {
        let mut live = Self::default();
        for run in tenant.registry.live() {
            match run.state() {
                RunState::Compiling => live.compiling += 1,
                RunState::Queued => live.queued += 1,
                RunState::Running => live.running += 1,
                RunState::Ended => {}
            }
        }
        live
    }
}

impl From<&LatencySnapshot> for LatencyFigures {
    fn from(snapshot: &LatencySnapshot) -> Self {
        let quantile = |quantile| snapshot.quantile(quantile);
        let quantiles = || Some([quantile(0.5)?, quantile(0.9)?, quantile(0.99)?]);
        Self {
            count: snapshot.count(),
            sum: snapshot.sum(),
            quantiles: quantiles(),
        }
    }
}

impl Runner {
    /// Returns the figures of a tenant, with the samples that `history` says.
    pub fn stats(&self, tenant: &Tenant, history: StatsHistory) -> StatsReport {
        let live = LiveRuns::of(tenant);
        // Copied before the tenant's samples are looked at: see `take_samples`.
        let ticks = lock(&self.stats.ticks).clone();
        let samples = lock(&tenant.history);
        let total = tenant.counters.sample();
        let now = Instant::now();
        let tally = RunTally::from(&total);
        let last_tick = ticks.last();
        let known = samples.known_from(last_tick);
        let since_tick = samples.since_last_tick(&tally);
        let [last_minute, last_five_minutes] = WINDOWS.map(|window| {
            let first = ticks.first_within(window, now).max(known);
            let mut tally = since_tick;
            samples
                .intervals(first)
                .for_each(|it| tally.merge(&it.tally));
            SpanFigures {
                span: ticks.span(first, now),
                tally,
            }
        });
        let first = match history {
            StatsHistory::None => last_tick + 1,
            StatsHistory::Within(span) => ticks.first_within(span, now),
            StatsHistory::After(tick) => tick + 1,
        };
        StatsReport {
            time: SystemTime::now(),
            since: self.stats.since,
            total,
            live,
            since_start: SpanFigures {
                span: now.saturating_duration_since(self.stats.started),
                tally,
            },
            last_minute,
            last_five_minutes,
            history: told(&ticks, &samples, first.max(known)),
            last_tick,
        }
    }

    /// Takes samples of every tenant from now on, for as long as it is polled.
    pub(super) async fn sample_periodically(&self) {
        loop {
            tokio::time::sleep(SAMPLE_INTERVAL).await;
            self.take_samples();
        }
    }

    /// Ends an interval of every tenant. The tick is added last, so that whoever finds it there
    /// finds the samples of all tenants too.
    fn take_samples(&self) {
        let tick = lock(&self.stats.ticks).last() + 1;
        for tenant in self.tenants.named() {
            let live = LiveRuns::of(tenant);
            let mut samples = lock(&tenant.history);
            let total = RunTally::from(&tenant.counters.sample());
            samples.record(tick, &total, live.in_flight(), live.queued);
        }
        let (_, loads) = self.load();
        lock(&self.stats.ticks).add(Instant::now(), SystemTime::now(), loads.runs.bytes);
    }
}

/// Returns the samples of the ticks from `first` on. Those that a tenant has none of were idle.
fn told(ticks: &TickLog, samples: &RunHistory, first: u64) -> Vec<SampleFigures> {
    let mut intervals = samples.intervals(first).peekable();
    let each = |tick: &Tick| {
        let interval = intervals
            .next_if(|it| it.tick == tick.number)
            .unwrap_or_default();
        let RunInterval {
            tick: _,
            in_flight,
            queued,
            tally,
        } = interval;
        SampleFigures {
            time: tick.time,
            span: tick.span,
            memory_reserved: tick.memory_reserved,
            in_flight,
            queued,
            ended: tally.ended(),
            refused: tally.refused(),
            cpu_time: tally.cpu_time(),
            wait: LatencyFigures::from(&tally.wait()),
            run: LatencyFigures::from(&tally.run()),
        }
    };
    ticks.ticks_from(first).map(each).collect()
}
