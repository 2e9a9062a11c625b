//! Loops of calls, and what they took.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use super::caller::{Caller, Question};

/// Nanoseconds, to three digits, up to a minute.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap()
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

/// `clients` that each ask again once they were answered, for a while. Each takes the questions in turn.
pub(crate) async fn closed(
    addr: &str,
    clients: usize,
    time: Duration,
    questions: &[Question],
) -> Stats {
    let questions: Arc<[Question]> = questions.into();
    let callers = Caller::several(addr, clients, &questions[0]).await;
    let start = Instant::now();
    let mut all = JoinSet::new();
    for (i, mut caller) in callers.into_iter().enumerate() {
        let questions = Arc::clone(&questions);
        all.spawn(async move {
            let mut stats = Stats::new();
            // Spread over the questions, so that clients do not ask the same at once.
            let mut next = i * questions.len() / clients;
            while start.elapsed() < time {
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

/// `rate` calls a second, evenly, whether or not the last ones have been answered. Each is timed from when it was due,
/// so that a server that stands still is not asked less.
pub(crate) async fn open(addr: &str, rate: f64, time: Duration, question: &Question) -> Stats {
    let callers = Caller::several(addr, 16, question).await;
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
