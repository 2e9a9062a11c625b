//! The figures of a tenant as JSON, with the names of the API.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::stats_text::seconds;
use super::time;
use crate::api::proto::{
    DaemonLoad, LatencySummary, OutcomeCount, Stats, StatsSample, StatsWindow,
};

/// Formats everything that the daemon tells of a tenant's runs as JSON.
pub(super) fn stats_json(stats: &Stats) -> Value {
    let refusals: BTreeMap<&str, u64> = stats
        .refusals
        .iter()
        .map(|it| (it.reason.as_str(), it.runs))
        .collect();
    let window = |it: &Option<StatsWindow>| it.as_ref().map(window_json);
    json!({
        "time": time(stats.time),
        "since": time(stats.since),
        "outcomes": outcomes(&stats.outcomes),
        "refusals": refusals,
        "runs_compiling": stats.runs_compiling,
        "runs_queued": stats.runs_queued,
        "runs_running": stats.runs_running,
        "cpu_time_seconds": seconds(stats.cpu_time),
        "fuel_consumed": stats.fuel_consumed,
        "stdin_bytes": stats.stdin_bytes,
        "stdout_bytes": stats.stdout_bytes,
        "stderr_bytes": stats.stderr_bytes,
        "since_start": window(&stats.since_start),
        "last_minute": window(&stats.last_minute),
        "last_five_minutes": window(&stats.last_five_minutes),
        "daemon": stats.daemon.as_ref().map(daemon_json),
        "history": stats.history.iter().map(sample_json).collect::<Vec<_>>(),
    })
}

fn outcomes(counts: &[OutcomeCount]) -> BTreeMap<&'static str, u64> {
    let counts = counts.iter();
    counts
        .map(|it| (it.outcome().as_str_name(), it.runs))
        .collect()
}

fn window_json(window: &StatsWindow) -> Value {
    json!({
        "span_seconds": seconds(window.span),
        "runs": window.runs,
        "refused": window.refused,
        "runs_per_second": window.runs_per_second,
        "wait": window.wait.as_ref().map(latency_json),
        "compile": window.compile.as_ref().map(latency_json),
        "instantiate": window.instantiate.as_ref().map(latency_json),
        "run": window.run.as_ref().map(latency_json),
    })
}

fn latency_json(latency: &LatencySummary) -> Value {
    json!({
        "count": latency.count,
        "sum_seconds": seconds(latency.sum),
        "p50_seconds": seconds(latency.p50),
        "p90_seconds": seconds(latency.p90),
        "p99_seconds": seconds(latency.p99),
    })
}

fn daemon_json(daemon: &DaemonLoad) -> Value {
    json!({
        "status": daemon.status().as_str_name(),
        "instance": daemon.instance,
        "runs_in_flight": daemon.runs_in_flight,
        "runs_queued": daemon.runs_queued,
        "run_capacity": daemon.run_capacity,
        "memory_reserved": daemon.memory_reserved,
        "memory_capacity": daemon.memory_capacity,
        "compiles_in_flight": daemon.compiles_in_flight,
        "compiles_queued": daemon.compiles_queued,
        "cache_bytes": daemon.cache_bytes,
        "cache_capacity": daemon.cache_capacity,
        "guest_threads_busy": daemon.guest_threads_busy,
        "guest_threads": daemon.guest_threads,
    })
}

fn sample_json(sample: &StatsSample) -> Value {
    json!({
        "time": time(sample.time),
        "span_seconds": seconds(sample.span),
        "outcomes": outcomes(&sample.outcomes),
        "refused": sample.refused,
        "runs_in_flight": sample.runs_in_flight,
        "runs_queued": sample.runs_queued,
        "cpu_time_seconds": seconds(sample.cpu_time),
        "wait": sample.wait.as_ref().map(latency_json),
        "run": sample.run.as_ref().map(latency_json),
        "memory_reserved": sample.memory_reserved,
    })
}
