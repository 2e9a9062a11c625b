//! Encodes the figures of a tenant for the wire.

use std::time::Duration;

use super::encode::duration;
use super::proto;
use crate::metrics::LatencySnapshot;
use crate::model::outcome::Outcome;
use crate::model::refusal::Reason;
use crate::run::{
    LatencyFigures, LiveRuns, QueueLoads, Runner, SampleFigures, SpanFigures, StatsReport,
};

/// The outcomes on the wire, in the order of [`Outcome::NAMES`].
const OUTCOMES: [proto::Outcome; Outcome::NAMES.len()] = [
    proto::Outcome::Exited,
    proto::Outcome::Trapped,
    proto::Outcome::MemoryExceeded,
    proto::Outcome::FuelExhausted,
    proto::Outcome::StackOverflow,
    proto::Outcome::TimedOut,
    proto::Outcome::OutputExceeded,
    proto::Outcome::Cancelled,
];

/// Encodes the figures of a tenant, with those of the daemon.
pub(super) fn stats(report: &StatsReport, daemon: proto::DaemonLoad) -> proto::Stats {
    let StatsReport {
        time,
        since,
        total,
        live,
        since_start,
        last_minute,
        last_five_minutes,
        history,
        last_tick: _,
    } = report;
    let LiveRuns {
        compiling,
        queued,
        running,
    } = *live;
    let refusals = Reason::ALL.into_iter().zip(&total.refused);
    proto::Stats {
        time: Some((*time).into()),
        since: Some((*since).into()),
        outcomes: outcomes(&total.ended),
        refusals: refusals
            .filter(|(_, runs)| **runs > 0)
            .map(|(reason, runs)| proto::RefusalCount {
                reason: reason.as_str().to_owned(),
                runs: *runs,
            })
            .collect(),
        runs_compiling: compiling,
        runs_queued: queued,
        runs_running: running,
        cpu_time: Some(duration(Duration::from_nanos(total.cpu_ns))),
        fuel_consumed: total.fuel,
        stdin_bytes: total.stdin_bytes,
        stdout_bytes: total.stdout_bytes,
        stderr_bytes: total.stderr_bytes,
        since_start: Some(window(since_start)),
        last_minute: Some(window(last_minute)),
        last_five_minutes: Some(window(last_five_minutes)),
        daemon: Some(daemon),
        history: history.iter().map(sample).collect(),
    }
}

/// Encodes how busy the daemon is. `status` says whether it takes runs.
pub(super) fn daemon_load(runner: &Runner, status: proto::ServingStatus) -> proto::DaemonLoad {
    let (runs_in_flight, loads) = runner.load();
    let QueueLoads { runs, compiles, .. } = loads;
    let sandbox = runner.sandbox();
    let [guest_threads_busy, guest_threads] = sandbox.guest_threads();
    let modules = sandbox.modules();
    proto::DaemonLoad {
        status: status.into(),
        instance: runner.instance().to_owned(),
        runs_in_flight,
        runs_queued: runs.waiting,
        run_capacity: runs.permits,
        memory_reserved: runs.bytes,
        memory_capacity: runs.capacity,
        compiles_in_flight: compiles.held,
        compiles_queued: compiles.waiting,
        cache_bytes: modules.cached_bytes(),
        cache_capacity: modules.cache_budget(),
        guest_threads_busy,
        guest_threads,
    }
}

fn outcomes(ended: &[u64; Outcome::NAMES.len()]) -> Vec<proto::OutcomeCount> {
    let named = OUTCOMES.into_iter().zip(ended);
    named
        .filter(|(_, runs)| **runs > 0)
        .map(|(outcome, runs)| proto::OutcomeCount {
            outcome: outcome.into(),
            runs: *runs,
        })
        .collect()
}

fn window(figures: &SpanFigures) -> proto::StatsWindow {
    let SpanFigures { span, tally } = figures;
    let runs = tally.ended().iter().sum();
    let latency = |snapshot: LatencySnapshot| summary(&LatencyFigures::from(&snapshot));
    proto::StatsWindow {
        span: Some(duration(*span)),
        runs,
        refused: tally.refused(),
        runs_per_second: rate(runs, *span),
        wait: latency(tally.wait()),
        compile: latency(tally.compile()),
        instantiate: latency(tally.instantiate()),
        run: latency(tally.run()),
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate is exact enough to fifteen digits"
)]
fn rate(runs: u64, span: Duration) -> f64 {
    match span.is_zero() {
        true => 0.0,
        false => runs as f64 / span.as_secs_f64(),
    }
}

fn summary(figures: &LatencyFigures) -> Option<proto::LatencySummary> {
    let LatencyFigures {
        count,
        sum,
        quantiles,
    } = figures;
    let [p50, p90, p99] = match quantiles {
        Some(quantiles) => quantiles.map(|it| Some(duration(it))),
        None => [None; 3],
    };
    Some(proto::LatencySummary {
        count: *count,
        sum: Some(duration(*sum)),
        p50,
        p90,
        p99,
    })
}

fn sample(figures: &SampleFigures) -> proto::StatsSample {
    let SampleFigures {
        time,
        span,
        memory_reserved,
        in_flight,
        queued,
        ended,
        refused,
        cpu_time,
        wait,
        run,
    } = figures;
    // Most samples of most tenants have none.
    let latency = |it: &LatencyFigures| summary(it).filter(|it| it.count > 0);
    proto::StatsSample {
        time: Some((*time).into()),
        span: Some(duration(*span)),
        outcomes: outcomes(ended),
        refused: *refused,
        runs_in_flight: *in_flight,
        runs_queued: *queued,
        cpu_time: Some(duration(*cpu_time)),
        wait: latency(wait),
        run: latency(run),
        memory_reserved: *memory_reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcomes_of_the_wire_are_in_the_order_of_their_names() {
        for (outcome, name) in OUTCOMES.into_iter().zip(Outcome::NAMES) {
            let wire = format!("OUTCOME_{}", name.to_uppercase());
            assert_eq!(outcome.as_str_name(), wire);
        }
    }

    #[test]
    fn a_span_of_nothing_has_no_rate() {
        assert_eq!(rate(5, Duration::ZERO), 0.0);
        assert_eq!(rate(5, Duration::from_secs(2)), 2.5);
    }
}
