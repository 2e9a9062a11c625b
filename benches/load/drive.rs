//! Loops of calls, and what they took.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::caller::{Caller, Question};

/// Nanoseconds, to three digits, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
}

/// Streams of one connection that several share, of which a daemon takes a hundred.
const CALLERS_A_CONNECTION: usize = 64;
const CONNECTIONS: usize = 16;

/// Clients side by side: each has one call in flight at a time, and shares its connection with as
/// many as there are for each connection.
#[derive(Clone, Copy)]
pub(crate) struct Clients {
    pub connections: usize,
    pub callers: usize,
}

impl Clients {
    /// `each` calls in flight on each of `connections`.
    pub(crate) const fn on(connections: usize, each: usize) -> Self {
        Self {
            connections,
            callers: connections * each,
        }
    }

    /// So many, on sixteen connections, or more where those would have too many streams.
    pub(crate) fn spread(callers: usize) -> Self {
        let connections = callers.min(CONNECTIONS.max(callers.div_ceil(CALLERS_A_CONNECTION)));
        Self {
            connections,
            callers,
        }
    }
}

impl Display for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.callers.div_ceil(self.connections);
        write!(f, "{} x {each}", self.connections)
    }
}

impl FromStr for Clients {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is no number of at least 1")),
            Ok(number) => Ok(number),
        };
        match text.split_once('x') {
            Some((connections, each)) => Ok(Self::on(number(connections)?, number(each)?)),
            None => Ok(Self::spread(number(text)?)),
        }
    }
}

/// What a loop did.
pub(crate) struct Stats {
    /// Nanoseconds of the calls that were answered.
    times: Histogram<u64>,
    failed: u64,
    took: Duration,
    first_failure: Option<String>,
}

impl Stats {
    fn new() -> Self {
        Self {
            times: histogram(),
            failed: 0,
            took: Duration::ZERO,
            first_failure: None,
        }
    }

    fn note(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap();
        self.times.saturating_record(nanos);
    }

    fn add(&mut self, other: &Self) {
        self.times.add(&other.times).unwrap();
        self.failed += other.failed;
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.times.len()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    pub(crate) fn first_failure(&self) -> Option<&str> {
        self.first_failure.as_deref()
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }

    /// Microseconds.
    pub(crate) fn mean(&self) -> f64 {
        self.times.mean() / 1e3
    }

    /// Microseconds that `percent` of all stay within.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        self.times.value_at_percentile(percent) as f64 / 1e3
    }
}

/// Clients that each ask again once they were answered, for a while. Each takes the questions in
/// turn.
pub(crate) async fn closed(
    addr: &str,
    clients: Clients,
    time: Duration,
    questions: &[Question],
) -> Stats {
    let callers = Caller::several(addr, clients, &questions[0]).await;
    repeat(&callers, questions, move |start| start.elapsed() < time).await
}

/// `calls` calls of all callers together, each of whom asks again once it was answered.
pub(crate) async fn counted(callers: &[Caller], calls: u64, question: &Question) -> Stats {
    let asked = Arc::new(AtomicU64::new(0));
    let goes_on = move |_| asked.fetch_add(1, Relaxed) < calls;
    repeat(callers, std::slice::from_ref(question), goes_on).await
}

/// Asks as long as `goes_on`, which is told since when.
async fn repeat(
    callers: &[Caller],
    questions: &[Question],
    goes_on: impl Fn(Instant) -> bool + Clone + Send + 'static,
) -> Stats {
    let questions: Arc<[Question]> = questions.into();
    let start = Instant::now();
    let mut all = JoinSet::new();
    for (i, mut caller) in callers.iter().cloned().enumerate() {
        let (questions, goes_on) = (Arc::clone(&questions), goes_on.clone());
        // Spread over the questions, so that clients do not ask the same at once.
        let mut next = i * questions.len() / callers.len();
        all.spawn(async move {
            let mut stats = Stats::new();
            while goes_on(start) {
                let asked = Instant::now();
                let answer = caller.ask(&questions[next % questions.len()]).await;
                next += 1;
                match answer {
                    Ok(_) => stats.note(asked.elapsed()),
                    Err(status) => {
                        stats.failed += 1;
                        stats.first_failure.get_or_insert(status.to_string());
                    }
                }
            }
            stats
        });
    }
    together(all, start).await
}

/// What all clients of a loop did since it started.
async fn together(mut all: JoinSet<Stats>, start: Instant) -> Stats {
    let mut stats = Stats::new();
    while let Some(each) = all.join_next().await {
        stats.add(&each.unwrap());
    }
    stats.took = start.elapsed();
    stats
}

/// `rate` calls a second, evenly, whether or not the last ones have been answered. Each is timed
/// from when it was due, so that a server that stands still is not asked less.
pub(crate) async fn open(addr: &str, rate: f64, time: Duration, question: &Question) -> Stats {
    let callers = Caller::several(addr, Clients::on(16, 1), question).await;
    let question = Arc::new(question.clone());
    let start = Instant::now();
    let mut all = JoinSet::new();
    let mut stats = Stats::new();
    let mut take = |done: Result<(Duration, Result<(), String>), _>| {
        let (took, answer): (Duration, Result<(), String>) = match done {
            Ok(done) => done,
            Err(error) => {
                let _: tokio::task::JoinError = error;
                panic!("a call ends by itself");
            }
        };
        match answer {
            Ok(()) => stats.note(took),
            Err(failure) => {
                stats.failed += 1;
                stats.first_failure.get_or_insert(failure);
            }
        }
    };
    for i in 0_u32.. {
        let due = start + Duration::from_secs_f64(f64::from(i) / rate);
        if due.duration_since(start) >= time {
            break;
        }
        tokio::time::sleep_until(due.into()).await;
        let mut caller = callers[i as usize % callers.len()].clone();
        let question = Arc::clone(&question);
        all.spawn(async move {
            let answer = caller.ask(&question).await;
            (
                due.elapsed(),
                answer.map(|_| ()).map_err(|it| it.to_string()),
            )
        });
        while let Some(done) = all.try_join_next() {
            take(done);
        }
    }
    while let Some(done) = all.join_next().await {
        take(done);
    }
    stats.took = start.elapsed();
    stats
}

/// `clients` that each start a process again once theirs has ended, for a while.
pub(crate) async fn commands(
    clients: usize,
    time: Duration,
    command: impl Fn() -> std::process::Command,
    prints: &str,
) -> Stats {
    let start = Instant::now();
    let mut all = JoinSet::new();
    for _ in 0..clients {
        let (mut command, prints) = (command(), prints.to_owned());
        all.spawn_blocking(move || {
            let mut stats = Stats::new();
            while start.elapsed() < time {
                let asked = Instant::now();
                let output = command.output().unwrap();
                if output.status.success() && output.stdout == prints.as_bytes() {
                    stats.note(asked.elapsed());
                } else {
                    stats.failed += 1;
                    let told = String::from_utf8_lossy(&output.stderr).into_owned();
                    stats.first_failure.get_or_insert(told);
                }
            }
            stats
        });
    }
    together(all, start).await
}
