//! The command `ringfence serve`, which starts the daemon.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, Failure, PROGRAM, exit, preflight, runtime_of};
use crate::app::{AppError, DrainReport};
use crate::config::{Config, LogFormat, Overrides};
use crate::heap::HeapTrimmer;
use crate::signals::{CaughtSignals, SignalRequests};
use crate::telemetry::{AuditTarget, LogGuard};
use crate::{app, config, hardening, process_limits, telemetry, trust_store};

/// Start the daemon in the foreground.
#[derive(Debug, Args)]
pub(super) struct ServeCommand {
    #[command(flatten)]
    config: ConfigArgs,
    /// Listen at this address, "host:port" or "unix:/path". May be repeated
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
    /// Open the admin listener at this address: metrics, probes, and what browsers use. May be
    /// repeated
    #[arg(long, value_name = "ADDR")]
    admin_listen: Vec<String>,
}

impl ServeCommand {
    /// Serves until the daemon is asked to end. An error that keeps it from serving is printed in
    /// the format of its log.
    pub(super) fn execute(self, signals: std::io::Result<CaughtSignals>) -> ExitCode {
        let mut overrides = self.config.overrides();
        overrides.listen = self.listen;
        overrides.admin_listen = self.admin_listen;
        let format = config::log_format_before_load(&overrides);
        if format == LogFormat::Json {
            telemetry::print_panics_as_json();
        }
        start(&overrides, signals).unwrap_or_else(|(format_of_config, failure)| {
            telemetry::print_error(format_of_config.unwrap_or(format), &failure.message);
            ExitCode::from(failure.code)
        })
    }
}

/// Why the daemon does not serve, and the format of its log where the configuration could be read.
type ServeError = (Option<LogFormat>, Failure);

fn start(
    overrides: &Overrides,
    signals: std::io::Result<CaughtSignals>,
) -> Result<ExitCode, ServeError> {
    let no_form = |failure: String| (None, Failure::new(failure));
    let signals = signals.map_err(|error| no_form(format!("cannot catch signals: {error}")))?;
    preflight::check().map_err(no_form)?;
    let (config, mut warnings) =
        app::load_config(overrides).map_err(|problems| no_form(problems.to_string()))?;
    let format = config.telemetry.log_format;
    let failed = |error: &dyn Display| (Some(format), Failure::new(error.to_string()));
    if format == LogFormat::Json {
        telemetry::print_panics_as_json();
    }
    let limits = process_limits::check(&config).map_err(|it| failed(&it))?;
    let audit = AuditTarget::open(&config.telemetry).map_err(|it| failed(&it))?;
    let mut besides = hardening::ExtraPaths {
        read: config::credential_files(),
        trust: trust_store::trust_store(),
        write: audit.folders(),
    };
    // The file is read again when a reload is requested.
    let file = overrides.file.as_deref();
    let file = file.and_then(|file| std::path::absolute(file).ok());
    besides.read.extend(file);
    // Confinement has to be applied before any other thread exists.
    let missing = hardening::apply(&config, &besides).map_err(|it| failed(&it))?;
    preflight::check_threads(process_limits::threads(&config)).map_err(|it| failed(&it))?;
    let log = telemetry::start(&config.telemetry, audit).map_err(|it| failed(&it))?;
    warnings.extend(limits.warnings);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for wall in missing.walls {
        tracing::warn!(wall, "this daemon is not confined as it could be");
    }
    for path in missing.paths {
        tracing::warn!(path, "a path that is configured cannot be reached");
    }
    tracing::info!(limits = limits.told, "limits of this process");
    tracing::info!(walls = hardening::protections_in_force(), "confined");
    let served = serve(&config, overrides, signals, &log);
    // The whole log is written before the last line, which is not part of it.
    drop(log);
    match served {
        Ok(drained) if drained.is_clean() => Ok(ExitCode::SUCCESS),
        // The log says what was left.
        Ok(_) => Ok(ExitCode::from(exit::RUNS_LEFT)),
        Err(failure) => Err((Some(format), failure)),
    }
}

fn serve(
    config: &Config,
    overrides: &Overrides,
    signals: CaughtSignals,
    log: &LogGuard,
) -> Result<DrainReport, Failure> {
    let asked = signals
        .watch(log.flush_handle(), hardening::confine_serving_thread)
        .map_err(|error| Failure::new(format!("cannot watch for signals: {error}")))?;
    let trimmer = HeapTrimmer::start(hardening::confine_serving_thread);
    if let Err(error) = &trimmer {
        tracing::warn!(%error, "memory that is free is not given back to the system");
    }
    let runtime = runtime_of(hardening::confine_serving_thread)?;
    let result = runtime.block_on(async {
        tokio::select! {
            drained = build_and_serve(config, overrides, &asked) => drained,
            () = asked.stopped_while_starting() => Ok(DrainReport::default()),
            () = log.report_drops() => Ok(DrainReport::default()),
            () = super::keep_blocking_thread() => Ok(DrainReport::default()),
        }
    });
    // Idle connections and the guests' file system calls may still hold threads.
    runtime.shutdown_background();
    drop(trimmer);
    result.map_err(|error| {
        let mut message = error.to_string();
        if message.contains("(os error ")
            && let Some(limits) = process_limits::in_force()
        {
            message.push_str(&format!("; the limits of this process are {limits}"));
        }
        Failure::new(message)
    })
}

async fn build_and_serve(
    config: &Config,
    overrides: &Overrides,
    asked: &SignalRequests,
) -> Result<DrainReport, AppError> {
    // This has to happen on the one thread that seccomp does not confine, since it starts threads
    // that start processes.
    let app = app::build(config, Path::new(PROGRAM)).await?;
    let reloader = app.reloader();
    let reloads = async {
        loop {
            asked.reload().await;
            reloader.reload(config, overrides).await;
        }
    };
    tokio::select! {
        drained = app.serve_and_drain(asked.drain()) => drained,
        () = reloads => Ok(DrainReport::default()),
    }
}

/// Finds the log format in which an invalid command line is answered.
pub(super) fn log_format_of_argv(argv: &[OsString]) -> LogFormat {
    let mut overrides = Overrides {
        environment: true,
        ..Overrides::default()
    };
    let mut args = argv.iter().filter_map(|arg| arg.to_str());
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) if arg.starts_with("--") => (name, Some(value)),
            Some(_) | None => (arg, None),
        };
        let mut value = || value.or_else(|| args.next());
        match name {
            "--set" => overrides
                .set
                .extend(value().and_then(|it| super::value_parsers::split_key_value(it).ok())),
            "--config" => overrides.file = value().map(Into::into),
            _ => {}
        }
    }
    config::log_format_before_load(&overrides)
}
