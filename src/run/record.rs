//! One record per run, on every path: refused, ended, or left by its caller before it started.

use std::time::{Duration, Instant};

use crate::outcome::{Ended, Outcome};
use crate::refusal::Refusal;
use crate::request::{Digest, RunId};

/// A run's record, written once, at the latest when it is dropped. It never has content: no arguments, environment,
/// input or output.
#[derive(Debug)]
pub(super) struct Record {
    id: RunId,
    digest: Option<Digest>,
    received: Instant,
    written: bool,
}

impl Record {
    /// Of a run that was just asked for.
    pub(super) fn new(id: RunId) -> Self {
        Self {
            id,
            digest: None,
            received: Instant::now(),
            written: false,
        }
    }

    /// Notes which module it runs.
    pub(super) fn module(&mut self, digest: Digest) {
        self.digest = Some(digest);
    }

    /// Writes that it was refused.
    pub(super) fn refused(mut self, refusal: &Refusal) {
        self.written = true;
        tracing::info!(
            target: "ringfence::run",
            run_id = %self.id,
            digest = self.digest.map(tracing::field::display),
            reason = refusal.reason().as_str(),
            field = refusal.field(),
            "run refused"
        );
    }

    /// Writes how it ended.
    pub(super) fn ended(mut self, result: &Result<Ended, Refusal>) {
        self.written = true;
        let digest = self.digest.map(tracing::field::display);
        let run_id = &self.id;
        match result {
            Ok(ended) => tracing::info!(
                target: "ringfence::run",
                %run_id,
                digest,
                outcome = outcome_name(ended.outcome),
                exit_code = ended.outcome.exit_code(),
                trap = ended.trap.as_ref().map(|trap| trap.code),
                duration_us = micros(ended.duration),
                cpu_us = micros(ended.cpu_time),
                waited_us = micros(self.received.elapsed().saturating_sub(ended.duration)),
                fuel = ended.fuel_consumed,
                memory = ended.memory_used,
                memory_denied = ended.memory_denied,
                stdout = ended.stdout.bytes,
                stderr = ended.stderr.bytes,
                "run ended"
            ),
            Err(refusal) => tracing::error!(
                target: "ringfence::run",
                %run_id,
                digest,
                reason = refusal.reason().as_str(),
                "run failed"
            ),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if !self.written {
            tracing::info!(
                target: "ringfence::run",
                run_id = %self.id,
                digest = self.digest.map(tracing::field::display),
                "run left by its caller before it started"
            );
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(_) => "exited",
        Outcome::Trapped => "trapped",
        Outcome::MemoryExceeded(_) => "memory_exceeded",
        Outcome::FuelExhausted => "fuel_exhausted",
        Outcome::StackOverflow => "stack_overflow",
        Outcome::TimedOut => "timed_out",
        Outcome::OutputExceeded => "output_exceeded",
        Outcome::Cancelled(_) => "cancelled",
    }
}
