//! The metrics of the sandbox: pools, guest threads, the module cache and the compiler.

use std::fmt;

use super::Sandbox;
use crate::metrics::{MetricSource, MetricWriter, Unit};

impl MetricSource for Sandbox {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        to.gauge(
            "pool_instances",
            "Guest instances that the pools hold now.",
            None,
            self.pooled_instances(),
        )?;
        to.gauge(
            "pool_slots",
            "Guest instances that each pool has room for (engine.pool_slots and sessions.max).",
            None,
            self.pool_slots.into(),
        )?;
        let [busy, threads, waiting] = self.scheduler.load();
        to.gauge(
            "guest_threads_busy",
            "Guest threads that execute a slice of a guest now.",
            None,
            busy as u64,
        )?;
        to.gauge(
            "guest_threads",
            "Guest threads that there are (engine.guest_threads).",
            None,
            threads as u64,
        )?;
        to.gauge(
            "guest_slices_waiting",
            "Slices of guests that wait for a guest thread now.",
            None,
            waiting as u64,
        )?;
        self.write_cache(to)?;
        to.counter(
            "compilations",
            "Compilations of modules that were run to their end, failed ones included.",
            self.modules.compilations(),
        )?;
        to.gauge(
            "compile_children",
            "Processes that compile modules, or are kept ready to, now.",
            None,
            self.modules.compile_children(),
        )
    }
}

impl Sandbox {
    /// Writes the metrics of the module cache, by kind of cache.
    fn write_cache(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let modules = &self.modules;
        let [memory, disk, nowhere] = modules.lookups();
        to.counters(
            "module_cache_lookups",
            "Lookups of compiled code, by where it was found; \"miss\" has to be compiled.",
            None,
            [
                ([("found", "memory")], memory),
                ([("found", "disk")], disk),
                ([("found", "miss")], nowhere),
            ],
        )?;
        let on_disk = modules.artifacts();
        to.counters(
            "module_cache_evictions",
            "Compiled modules that were evicted to make room for others, by kind of cache.",
            None,
            [
                ([("cache", "memory")], modules.evicted()),
                ([("cache", "disk")], on_disk.map_or(0, |it| it.evicted())),
            ],
        )?;
        to.gauges(
            "module_cache",
            "Bytes of compiled modules, by kind of cache; those in memory are estimated.",
            Some(&Unit::Bytes),
            [
                ([("cache", "memory")], modules.cached_bytes()),
                ([("cache", "disk")], on_disk.map_or(0, |it| it.bytes())),
            ],
        )?;
        to.gauge(
            "module_cache_capacity",
            "Bytes of compiled modules that may be in memory (engine.cache_budget).",
            Some(&Unit::Bytes),
            modules.cache_budget(),
        )?;
        to.counter(
            "artifacts_rejected",
            "Files of compiled code on disk that were rejected because they are not this daemon's.",
            modules.rejected_artifacts(),
        )
    }
}
