//! The metrics of runs and of admission: those of the daemon, and those of each tenant.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::tenant::Tenant;
use super::{QueueLoad, QueueLoads, Runner};
use crate::metrics::{LatencySnapshot, MetricSource, MetricWriter, RunSample, Unit};
use crate::model::outcome::Outcome;
use crate::model::refusal::Reason;

/// A function that reads one figure of a sample.
type SampleField = fn(&RunSample) -> u64;

impl MetricSource for Runner {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let mut samples: Vec<(&Arc<Tenant>, RunSample)> = self
            .tenants
            .named()
            .map(|tenant| (tenant, tenant.counters.sample()))
            .collect();
        samples.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
        write_latencies(to, &samples)?;
        samples.retain(|(tenant, _)| to.shows(&tenant.name));
        write_ends(to, &samples)?;
        write_usage(to, &samples)?;
        let in_flight = samples
            .iter()
            .map(|(tenant, _)| ([("tenant", &*tenant.name)], tenant.registry.live_count()));
        to.gauges(
            "runs_in_flight",
            "Runs that have been asked for and have not ended, those that compile or wait included.",
            None,
            in_flight,
        )?;
        write_kept(to, &samples)?;
        self.write_queues(to)?;
        self.write_event_logs(to)?;
        self.write_memory(to)?;
        self.sandbox.write_metrics(to)
    }
}

/// Writes how long the runs of all tenants together took, by phase.
fn write_latencies(
    to: &mut MetricWriter<'_>,
    samples: &[(&Arc<Tenant>, RunSample)],
) -> fmt::Result {
    let sum = |of: fn(&RunSample) -> &LatencySnapshot| {
        let mut all = LatencySnapshot::default();
        samples.iter().for_each(|(_, sample)| all.merge(of(sample)));
        all
    };
    to.histograms(
        "run_wait",
        "The time that runs waited for a slot, zero for those that had one at once.",
        [([], sum(|it| &it.wait))],
    )?;
    to.histograms(
        "compile",
        "The time from the request for a module that was not compiled to its code, with the wait for a compile thread.",
        [([], sum(|it| &it.compile))],
    )?;
    to.histograms(
        "instantiate",
        "The time that it took to create the store and to instantiate the module.",
        [([], sum(|it| &it.instantiate))],
    )?;
    to.histograms(
        "run",
        "The wall time of guests, from instantiation to their end.",
        [([], sum(|it| &it.run))],
    )
}

/// Writes how the runs of each tenant ended. A series appears with its first run.
fn write_ends(to: &mut MetricWriter<'_>, samples: &[(&Arc<Tenant>, RunSample)]) -> fmt::Result {
    let ended = samples.iter().flat_map(|(tenant, sample)| {
        let named = Outcome::NAMES.into_iter().zip(sample.ended);
        named.filter_map(|(outcome, count)| {
            let labels = [("tenant", &*tenant.name), ("outcome", outcome)];
            (count > 0).then_some((labels, count))
        })
    });
    to.counters("runs", "Runs that ended, by outcome.", None, ended)?;
    let refused = samples.iter().flat_map(|(tenant, sample)| {
        let named = Reason::ALL.into_iter().zip(&sample.refused);
        named.filter_map(|(reason, count)| {
            let labels = [("tenant", &*tenant.name), ("reason", reason.as_str())];
            (*count > 0).then_some((labels, *count))
        })
    });
    to.counters(
        "runs_refused",
        "Runs that were refused before their first instruction, or that the host could not run, by reason.",
        None,
        refused,
    )
}

/// Writes what the runs of each tenant used.
fn write_usage(to: &mut MetricWriter<'_>, samples: &[(&Arc<Tenant>, RunSample)]) -> fmt::Result {
    let each = |of: fn(&RunSample) -> u64| {
        samples
            .iter()
            .map(move |(tenant, sample)| ([("tenant", &*tenant.name)], of(sample)))
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "exact to a hundred days of processor time, and near enough after that"
    )]
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    to.seconds(
        "run_cpu",
        "Processor time that guests used.",
        each(|it| it.cpu_ns).map(|(labels, nanos)| (labels, seconds(nanos))),
    )?;
    to.counters(
        "run_fuel",
        "Fuel that metered guests used.",
        None,
        each(|it| it.fuel),
    )?;
    let streams: [(&str, SampleField); 3] = [
        ("stdin", |it| it.stdin_bytes),
        ("stdout", |it| it.stdout_bytes),
        ("stderr", |it| it.stderr_bytes),
    ];
    let bytes = samples.iter().flat_map(|(tenant, sample)| {
        streams.map(|(stream, of)| {
            let labels = [("tenant", &*tenant.name), ("stream", stream)];
            (labels, of(sample))
        })
    });
    to.counters(
        "guest_stream",
        "Bytes that guests read from standard input, and wrote to standard output and standard error.",
        Some(&Unit::Bytes),
        bytes,
    )
}

/// Returns the label of a tenant's series.
fn label_of(tenant: &Arc<Tenant>) -> [(&'static str, &str); 1] {
    [("tenant", &*tenant.name)]
}

/// Writes what is kept for each tenant: its idempotency keys, and its modules in the store.
fn write_kept(to: &mut MetricWriter<'_>, samples: &[(&Arc<Tenant>, RunSample)]) -> fmt::Result {
    let tenants = || samples.iter().map(|(tenant, _)| *tenant);
    let keys = |tenant: &Arc<Tenant>| tenant.registry.keys.usage();
    to.gauges(
        "idempotency_keys",
        "Idempotency keys that are held.",
        None,
        tenants().map(|tenant| (label_of(tenant), keys(tenant).0)),
    )?;
    // It is the same for all tenants.
    let capacity = tenants().next().map_or(0, |tenant| keys(tenant).1);
    to.gauge(
        "idempotency_keys_capacity",
        "Idempotency keys that each tenant may hold (runs.idempotency_keys, divided among tenants).",
        None,
        capacity,
    )?;
    to.gauges(
        "sessions",
        "Sessions that are kept (policy.max_sessions, sessions.max).",
        None,
        tenants().map(|tenant| (label_of(tenant), tenant.sessions.usage().0)),
    )?;
    to.gauges(
        "sessions_held_bytes",
        "Bytes of memory that sessions hold (sessions.memory_share).",
        None,
        tenants().map(|tenant| (label_of(tenant), tenant.sessions.usage().1)),
    )?;
    // A store that has not been counted has no series.
    let stored = || tenants().filter_map(|tenant| Some((tenant, tenant.store.stored()?)));
    to.gauges(
        "store",
        "Bytes of the modules in the store, with their records.",
        Some(&Unit::Bytes),
        stored().map(|(tenant, stored)| (label_of(tenant), stored.bytes)),
    )?;
    to.gauges(
        "store_modules",
        "Modules in the store.",
        None,
        stored().map(|(tenant, stored)| (label_of(tenant), stored.modules)),
    )?;
    to.gauge(
        "store_capacity",
        "Bytes that all modules may have in the store together (store.budget).",
        Some(&Unit::Bytes),
        tenants().next().map_or(0, |tenant| tenant.store.capacity()),
    )
}

impl Runner {
    /// Writes the load of each admission queue.
    fn write_queues(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let (executing, loads) = self.load();
        let QueueLoads {
            runs,
            compiles,
            uploads,
        } = loads;
        let queues: [(&str, QueueLoad); 3] =
            [("run", runs), ("compile", compiles), ("upload", uploads)];
        let each = |of: fn(&QueueLoad) -> u32| {
            queues
                .each_ref()
                .map(|(queue, load)| ([("queue", *queue)], u64::from(of(load))))
        };
        to.gauges(
            "admission_held",
            "Permits of an admission queue that are held now: slots, compile threads, uploads.",
            None,
            each(|load| load.held),
        )?;
        to.gauges(
            "admission_capacity",
            "Permits of an admission queue that there are in all.",
            None,
            each(|load| load.permits),
        )?;
        to.gauges(
            "admission_waiting",
            "Requests that wait for a permit of an admission queue now.",
            None,
            each(|load| load.waiting),
        )?;
        to.gauge(
            "runs_executing",
            "Runs that have a slot now.",
            None,
            executing.into(),
        )?;
        to.gauge(
            "memory_reserved",
            "Bytes that runs and their answers reserve now.",
            Some(&Unit::Bytes),
            runs.bytes,
        )?;
        to.gauge(
            "memory_capacity",
            "Bytes that runs and their answers may reserve together (admission.memory).",
            Some(&Unit::Bytes),
            runs.capacity,
        )
    }

    /// Writes what the event logs of runs hold, and what was dropped from them.
    fn write_event_logs(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let (log_bytes, _, _) = self.remembered();
        to.gauge(
            "event_log",
            "Bytes of output that the event logs of runs hold (runs.log_budget).",
            Some(&Unit::Bytes),
            log_bytes as u64,
        )?;
        to.gauge(
            "event_log_owed",
            "Bytes of output that the event logs of runs hold for callers of streams who have yet to read them.",
            Some(&Unit::Bytes),
            self.tenants.all().map(|tenant| tenant.owed()).sum(),
        )?;
        let evicted = self.tenants.all().map(|tenant| tenant.logs_evicted()).sum();
        to.counter(
            "event_log_evicted_logs",
            "Times that output was evicted from the log of a run, to stay within runs.log_budget.",
            evicted,
        )?;
        let lost = self.tenants.all().map(|tenant| tenant.events_lost()).sum();
        to.counter(
            "event_log_lost_events",
            "Events that readers of event logs were told are lost, because they had been dropped by then.",
            lost,
        )
    }

    /// Writes what is held in memory for callers, besides output.
    fn write_memory(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let (_, remembered, record_bytes) = self.remembered();
        to.gauge(
            "history_runs",
            "Ended runs that are remembered.",
            None,
            remembered as u64,
        )?;
        to.gauge(
            "history",
            "Bytes that the records of ended runs take.",
            Some(&Unit::Bytes),
            record_bytes as u64,
        )?;
        to.gauge(
            "answers_held",
            "Bytes of answers on their way to their callers that no run's reservation covers.",
            Some(&Unit::Bytes),
            self.answer_bytes(),
        )?;
        let requests = |tenant: &Arc<Tenant>| tenant.request_bytes.load(Ordering::Relaxed);
        to.gauge(
            "requests_held",
            "Bytes of requests that are in memory (server.inflight_request_bytes).",
            Some(&Unit::Bytes),
            self.tenants.all().map(requests).sum(),
        )?;
        let (_, unanswered) = self.unfinished();
        to.gauge(
            "answers_pending",
            "Answers and ends of runs that their callers have not been given.",
            None,
            unanswered as u64,
        )?;
        let viewers = self
            .tenants
            .named()
            .map(|tenant| tenant.viewer_count())
            .sum();
        to.gauge(
            "viewers",
            "Calls that are attached to runs or watch them now (runs.viewers).",
            None,
            viewers,
        )
    }
}
