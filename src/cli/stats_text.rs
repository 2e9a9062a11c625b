//! The figures of a tenant as a block of text for people.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytesize::ByteSize;
use prost_types::Duration as ProtoDuration;

use super::connect::DaemonArgs;
use crate::api::proto::{
    DaemonLoad, LatencySummary, ServingStatus, Stats, StatsSample, StatsWindow,
};
use crate::model::refusal::printable;

/// The cells of a bar.
const BAR: u64 = 20;
/// The most samples that the curve has, which are ten minutes.
const CURVE: usize = 60;
/// The heights of the curve, from nothing to the most.
const HEIGHTS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// The columns that outcomes and refusals may take.
const COLUMNS: usize = 70;

/// Selects one of the latencies of a window.
type LatencyOf = fn(&StatsWindow) -> &Option<LatencySummary>;

/// Makes a block of text of each report, with what it remembers of those before.
pub(super) struct StatsText {
    /// The address of the daemon, as it was given.
    server: String,
    /// The runs a second of the last samples, the oldest first.
    rates: VecDeque<f64>,
    /// When the last report was made, and how many runs there had been.
    before: Option<(SystemTime, u64)>,
}

impl StatsText {
    /// Creates the text for the reports of `daemon`.
    pub(super) fn new(daemon: &DaemonArgs) -> Self {
        Self {
            server: printable(&daemon.to_string()),
            rates: VecDeque::new(),
            before: None,
        }
    }

    /// Reports whether no block was made yet.
    pub(super) fn is_first(&self) -> bool {
        self.before.is_none()
    }

    /// Returns the lines of the block for a report.
    pub(super) fn lines(&mut self, stats: &Stats) -> Vec<String> {
        let now = self.rate_since_last(stats);
        self.rates.extend(stats.history.iter().map(sample_rate));
        while self.rates.len() > CURVE {
            self.rates.pop_front();
        }
        let daemon = stats.daemon.clone().unwrap_or_default();
        let mut lines = vec![self.head(stats, &daemon)];
        lines.extend(capacity(&daemon));
        lines.push(format!(
            "in flight  {}: {} compiling, {} queued, {} running",
            u64::from(stats.runs_compiling)
                + u64::from(stats.runs_queued)
                + u64::from(stats.runs_running),
            stats.runs_compiling,
            stats.runs_queued,
            stats.runs_running
        ));
        lines.push(rates(stats, now));
        lines.push(self.curve());
        lines.push(format!("ended      {}", outcomes(stats)));
        lines.push(format!("refused    {}", refusals(stats)));
        lines.extend(latencies(stats));
        lines
    }

    /// Returns the runs a second since the report before; `None` for the first.
    fn rate_since_last(&mut self, stats: &Stats) -> Option<f64> {
        let time = SystemTime::try_from(stats.time?).ok()?;
        let runs = stats.since_start.as_ref().map_or(0, |it| it.runs);
        let (before, earlier) = self.before.replace((time, runs))?;
        let span = time.duration_since(before).ok()?;
        per_second(runs.saturating_sub(earlier), span)
    }

    fn head(&self, stats: &Stats, daemon: &DaemonLoad) -> String {
        let status = match daemon.status() {
            ServingStatus::Serving => "serving",
            ServingStatus::Draining => "draining",
            ServingStatus::NotServing | ServingStatus::Unspecified => "not serving",
        };
        let up = span_of(&stats.since_start).unwrap_or_default();
        format!(
            "{status}: {} at {}, up {}",
            printable(&daemon.instance),
            self.server,
            humantime::format_duration(Duration::from_secs(up.as_secs()))
        )
    }

    /// Draws the runs a second of the samples, relative to the highest.
    fn curve(&self) -> String {
        let highest = self.rates.iter().copied().fold(0.0, f64::max);
        if self.rates.is_empty() {
            return "curve      a sample is taken every 10 seconds; there is none yet".to_owned();
        }
        let curve: String = self.rates.iter().map(|it| height(*it, highest)).collect();
        format!("curve      {curve} of {highest:.1} runs/s")
    }
}

/// Returns the height of one sample of the curve.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a part of one, times the number of heights"
)]
fn height(rate: f64, highest: f64) -> char {
    let part = if highest > 0.0 { rate / highest } else { 0.0 };
    let above = (part.clamp(0.0, 1.0) * 7.0).ceil() as usize;
    HEIGHTS.get(above).copied().unwrap_or('█')
}

fn capacity(daemon: &DaemonLoad) -> [String; 4] {
    let size = |bytes: u64| ByteSize(bytes).display().iec_short().to_string();
    let row = |name: &str, used: u64, all: u64, told: String| {
        format!("{name:<10} [{}]  {told}", bar(used, all))
    };
    let (slots, busy) = (daemon.runs_in_flight, daemon.guest_threads_busy);
    [
        row(
            "slots",
            slots.into(),
            daemon.run_capacity.into(),
            format!(
                "{slots} of {} taken, {} waiting",
                daemon.run_capacity, daemon.runs_queued
            ),
        ),
        row(
            "threads",
            busy.into(),
            daemon.guest_threads.into(),
            format!("{busy} of {} busy", daemon.guest_threads),
        ),
        row(
            "memory",
            daemon.memory_reserved,
            daemon.memory_capacity,
            format!(
                "{} of {} reserved",
                size(daemon.memory_reserved),
                size(daemon.memory_capacity)
            ),
        ),
        row(
            "code",
            daemon.cache_bytes,
            daemon.cache_capacity,
            format!(
                "{} of {} cached, {} compiling, {} waiting",
                size(daemon.cache_bytes),
                size(daemon.cache_capacity),
                daemon.compiles_in_flight,
                daemon.compiles_queued
            ),
        ),
    ]
}

/// Draws how much of `all` is used. Whatever is used is seen, and a bar is full only where all is.
fn bar(used: u64, all: u64) -> String {
    let (used, all) = (u128::from(used), u128::from(all.max(1)));
    let cells = match used {
        0 => 0,
        used if used >= all => u128::from(BAR),
        used => (used * u128::from(BAR) / all).max(1),
    };
    let cells = usize::try_from(cells).unwrap_or_default();
    let all = usize::try_from(BAR).unwrap_or_default();
    format!("{}{}", "#".repeat(cells), ".".repeat(all - cells))
}

fn rates(stats: &Stats, now: Option<f64>) -> String {
    let now = now.map(|rate| format!("{rate:.1} now, "));
    let rate = |it: &Option<StatsWindow>| it.as_ref().map_or(0.0, |it| it.runs_per_second);
    format!(
        "runs/s     {}{:.1} in the last minute, {:.1} in the last five, {:.1} in all",
        now.unwrap_or_default(),
        rate(&stats.last_minute),
        rate(&stats.last_five_minutes),
        rate(&stats.since_start)
    )
}

fn outcomes(stats: &Stats) -> String {
    let counts = stats.outcomes.iter().map(|it| {
        let name = it.outcome().as_str_name().to_lowercase();
        (name.trim_start_matches("outcome_").to_owned(), it.runs)
    });
    listed(counts.collect())
}

fn refusals(stats: &Stats) -> String {
    let counts = stats.refusals.iter();
    listed(counts.map(|it| (printable(&it.reason), it.runs)).collect())
}

/// Lists names with their counts, the most frequent first, as far as a line has room.
fn listed(mut counts: Vec<(String, u64)>) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    counts.sort_by_key(|(_, runs)| std::cmp::Reverse(*runs));
    let mut text = String::new();
    for (i, (name, runs)) in counts.iter().enumerate() {
        let piece = format!("{name} {runs}");
        if i > 0 && text.len() + piece.len() > COLUMNS {
            text.push_str(&format!(", and {} more", counts.len() - i));
            break;
        }
        text.push_str(if i > 0 { ", " } else { "" });
        text.push_str(&piece);
    }
    text
}

/// Returns a table of the quantiles of the last minute, and of all since the start.
fn latencies(stats: &Stats) -> Vec<String> {
    let head = format!(
        "{:<11}{:<30}{}",
        "", "last minute: p50, p90, p99", "since the start: p50, p90, p99"
    );
    let phases: [(&str, LatencyOf); 4] = [
        ("wait", |it| &it.wait),
        ("compile", |it| &it.compile),
        ("instantiate", |it| &it.instantiate),
        ("run", |it| &it.run),
    ];
    let of = |window: &Option<StatsWindow>, phase: LatencyOf| {
        quantiles(window.as_ref().and_then(|it| phase(it).as_ref()))
    };
    let rows = phases.into_iter().map(|(name, phase)| {
        let row = format!(
            "{name:<12}{:<30}{}",
            of(&stats.last_minute, phase),
            of(&stats.since_start, phase)
        );
        row.trim_end().to_owned()
    });
    std::iter::once(head).chain(rows).collect()
}

fn quantiles(latency: Option<&LatencySummary>) -> String {
    let Some(latency) = latency.filter(|it| it.count > 0) else {
        return "-".to_owned();
    };
    let quantiles = [latency.p50, latency.p90, latency.p99];
    let text = quantiles.map(|it| format!("{:<9}", short(it.and_then(length).unwrap_or_default())));
    text.concat().trim_end().to_owned()
}

/// Formats a duration to three digits or so.
fn short(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match duration {
        it if it < Duration::from_millis(1) => format!("{} us", it.as_micros()),
        it if it < Duration::from_millis(10) => format!("{:.1} ms", seconds * 1e3),
        it if it < Duration::from_secs(1) => format!("{} ms", it.as_millis()),
        it if it < Duration::from_secs(10) => format!("{seconds:.1} s"),
        it => format!("{} s", it.as_secs()),
    }
}

/// Returns the runs a second of a sample.
fn sample_rate(sample: &StatsSample) -> f64 {
    let runs = sample.outcomes.iter().map(|it| it.runs).sum();
    let span = sample.span.and_then(length).unwrap_or_default();
    per_second(runs, span).unwrap_or_default()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is exact enough to fifteen digits"
)]
fn per_second(runs: u64, span: Duration) -> Option<f64> {
    (!span.is_zero()).then(|| runs as f64 / span.as_secs_f64())
}

fn span_of(window: &Option<StatsWindow>) -> Option<Duration> {
    window.as_ref()?.span.and_then(length)
}

fn length(duration: ProtoDuration) -> Option<Duration> {
    Duration::try_from(duration).ok()
}

/// Returns a duration in seconds; `None` where there is none, or it is negative.
pub(super) fn seconds(duration: Option<ProtoDuration>) -> Option<f64> {
    Some(length(duration?)?.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_what_is_used_and_is_full_only_where_all_is() {
        let bars = [
            (0, 10, 0),
            (1, 1_000, 1),
            (5, 10, 10),
            (999, 1_000, 19),
            (10, 10, 20),
            (11, 10, 20),
            (0, 0, 0),
            (u64::MAX, u64::MAX, 20),
        ];
        for (used, all, cells) in bars {
            let bar = bar(used, all);
            assert_eq!(bar.len(), 20, "{bar}");
            assert_eq!(bar.matches('#').count(), cells, "{used} of {all}");
        }
    }

    #[test]
    fn the_curve_tells_nothing_from_little_and_the_most() {
        let heights = [0.0, 0.001, 5.0, 10.0].map(|rate| height(rate, 10.0));
        assert_eq!(heights, ['▁', '▂', '▅', '█']);
        assert_eq!(height(0.0, 0.0), '▁');
    }

    #[test]
    fn a_list_that_is_too_long_says_how_many_are_left_out() {
        assert_eq!(listed(Vec::new()), "none");
        let few = [("a", 1), ("b", 20)].map(|(name, runs)| (name.to_owned(), runs));
        assert_eq!(listed(few.to_vec()), "b 20, a 1");
        let many: Vec<_> = (0..30).map(|i| (format!("reason{i:02}"), 1)).collect();
        let text = listed(many);
        assert!(text.len() <= COLUMNS + ", and 30 more".len(), "{text}");
        let listed = text.matches("reason").count();
        assert!(
            text.ends_with(&format!(", and {} more", 30 - listed)),
            "{text}"
        );
    }

    #[test]
    fn durations_are_told_in_their_unit() {
        for (nanos, text) in [
            (0, "0 us"),
            (999_999, "999 us"),
            (1_000_000, "1.0 ms"),
            (12_345_678, "12 ms"),
            (1_500_000_000, "1.5 s"),
            (300_000_000_000, "300 s"),
        ] {
            assert_eq!(short(Duration::from_nanos(nanos)), text);
        }
    }
}
