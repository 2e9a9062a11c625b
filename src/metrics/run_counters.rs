//! What a tenant's runs came to since the daemon's start.

use std::time::Duration;

use super::{Count, LatencyHistogram, LatencySnapshot};
use crate::model::outcome::{Outcome, RunReport};
use crate::model::refusal::Reason;

/// Counters of the runs of one tenant. They are written by the threads that end runs, and read by
/// whoever asks for metrics or statistics.
#[derive(Debug)]
pub struct RunCounters {
    ended: [Count; Outcome::NAMES.len()],
    refused: [Count; Reason::ALL.len()],
    wait: LatencyHistogram,
    compile: LatencyHistogram,
    instantiate: LatencyHistogram,
    run: LatencyHistogram,
    cpu_ns: Count,
    fuel: Count,
    stdin_bytes: Count,
    stdout_bytes: Count,
    stderr_bytes: Count,
}

/// What the counters of a tenant said at one moment.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "plain data, named as the metrics are")]
pub struct RunSample {
    /// Runs by outcome, in the order of [`Outcome::NAMES`].
    pub ended: [u64; Outcome::NAMES.len()],
    /// Runs that never started, by reason, in the order of [`Reason::ALL`].
    pub refused: Vec<u64>,
    pub wait: LatencySnapshot,
    pub compile: LatencySnapshot,
    pub instantiate: LatencySnapshot,
    pub run: LatencySnapshot,
    pub cpu_ns: u64,
    pub fuel: u64,
    pub stdin_bytes: u64,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
}

impl Default for RunCounters {
    fn default() -> Self {
        Self {
            ended: Default::default(),
            refused: std::array::from_fn(|_| Count::default()),
            wait: LatencyHistogram::default(),
            compile: LatencyHistogram::default(),
            instantiate: LatencyHistogram::default(),
            run: LatencyHistogram::default(),
            cpu_ns: Count::default(),
            fuel: Count::default(),
            stdin_bytes: Count::default(),
            stdout_bytes: Count::default(),
            stderr_bytes: Count::default(),
        }
    }
}

impl RunCounters {
    /// Counts a run that ended, and adds what it used.
    pub fn count_ended(&self, report: &RunReport) {
        self.ended[report.outcome.index()].increment();
        if let Some(took) = report.instantiation {
            self.instantiate.observe(took);
        }
        self.run.observe(report.duration);
        let nanos = u64::try_from(report.cpu_time.as_nanos()).unwrap_or(u64::MAX);
        self.cpu_ns.add(nanos);
        self.fuel.add(report.fuel_consumed.unwrap_or_default());
        self.stdin_bytes.add(report.stdin_read);
        self.stdout_bytes.add(report.stdout.bytes);
        self.stderr_bytes.add(report.stderr.bytes);
    }

    /// Counts a run that was refused before its first instruction, or that the host could not run.
    pub fn count_refused(&self, reason: Reason) {
        self.refused[reason as usize].increment();
    }

    /// Adds the time that a run waited for a slot.
    pub fn observe_wait(&self, waited: Duration) {
        self.wait.observe(waited);
    }

    /// Adds the time that it took to compile a module, with its wait for a compile thread.
    pub fn observe_compile(&self, took: Duration) {
        self.compile.observe(took);
    }

    /// Reads all counters as they are now.
    pub fn sample(&self) -> RunSample {
        RunSample {
            ended: self.ended.each_ref().map(Count::get),
            refused: self.refused.iter().map(Count::get).collect(),
            wait: self.wait.snapshot(),
            compile: self.compile.snapshot(),
            instantiate: self.instantiate.snapshot(),
            run: self.run.snapshot(),
            cpu_ns: self.cpu_ns.get(),
            fuel: self.fuel.get(),
            stdin_bytes: self.stdin_bytes.get(),
            stdout_bytes: self.stdout_bytes.get(),
            stderr_bytes: self.stderr_bytes.get(),
        }
    }
}
