//! The sources of the daemon's metrics, and the metrics of the daemon as a whole.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::App;
use crate::admin::{AdminServerGuard, AdminSources};
use crate::api::{CallDispatcher, CallService, DaemonPhase, GrpcWeb};
use crate::hardening;
use crate::metrics::{MetricRegistry, MetricSource, MetricWriter, Unit};
use crate::sandbox::WASMTIME_VERSION;
use crate::telemetry::LogMetrics;

/// The daemon as a whole: what it is built of, since when it runs, and in which phase it is.
struct DaemonMetrics {
    phase: watch::Receiver<DaemonPhase>,
    started: SystemTime,
}

impl MetricSource for DaemonMetrics {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        to.info(
            "build",
            "The versions of the daemon and of its engine, and what confines the daemon.",
            [
                ("version", env!("CARGO_PKG_VERSION")),
                ("wasmtime", WASMTIME_VERSION),
                ("hardening", &hardening::protections_in_force()),
            ],
        )?;
        let started = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        to.gauge(
            "start_timestamp",
            "When the daemon started, in seconds since 1970.",
            Some(&Unit::Seconds),
            started.as_secs(),
        )?;
        let phase = *self.phase.borrow();
        let phases = [
            ("starting", DaemonPhase::Starting),
            ("serving", DaemonPhase::Serving),
            ("draining", DaemonPhase::Draining),
        ];
        to.gauges(
            "phase",
            "The phase that the daemon is in: 1 for one of starting, serving and draining, 0 for the others.",
            None,
            phases.map(|(name, it)| ([("phase", name)], u64::from(it == phase))),
        )
    }
}

impl App {
    /// Starts the admin listener, where there is one, until the guard that is returned is dropped.
    pub(super) fn serve_admin(
        &mut self,
        phase: &watch::Receiver<DaemonPhase>,
        calls: &CallDispatcher<impl CallService>,
    ) -> Option<AdminServerGuard> {
        let admin = self.admin.take()?;
        let grpc_web = GrpcWeb::new(calls.clone(), self.config.admin.read_only);
        let answer = move |request| -> Pin<Box<dyn Future<Output = _> + Send>> {
            Box::pin(grpc_web.clone().answer(request))
        };
        Some(admin.serve(AdminSources {
            metrics: self.metrics(phase.clone()),
            authentication: self.authentication.clone(),
            runner: Arc::clone(&self.runner),
            phase: phase.clone(),
            config: Arc::clone(&self.config),
            connections: Arc::clone(&self.connection_totals.admin),
            grpc_web: Arc::new(answer),
        }))
    }

    /// Gathers all sources of the daemon's metrics. `phase` tells the phase of its life.
    fn metrics(&self, phase: watch::Receiver<DaemonPhase>) -> MetricRegistry {
        let mut registry = MetricRegistry::default();
        registry.add(Arc::new(DaemonMetrics {
            phase,
            started: SystemTime::now(),
        }));
        registry.add(Arc::clone(&self.runner) as Arc<dyn MetricSource>);
        registry.add(Arc::clone(&self.call_counters) as Arc<dyn MetricSource>);
        registry.add(Arc::new(self.request_limits.response_watchdog().clone()));
        registry.add(Arc::new(self.connection_totals.clone()));
        registry.add(Arc::new(self.authentication.clone()));
        if let Some(tls) = self.bound.tls_files() {
            registry.add(Arc::new(tls));
        }
        if let Some(archive) = self.runner.archive() {
            registry.add(Arc::clone(archive) as Arc<dyn MetricSource>);
        }
        registry.add(Arc::new(LogMetrics));
        if let Some(exporter) = self.runner.exporter() {
            registry.add(Arc::clone(exporter) as Arc<dyn MetricSource>);
        }
        registry
    }
}
