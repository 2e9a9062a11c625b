//! The translation of the configuration into the settings of each part of the daemon. It holds no
//! rules of its own.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{AppError, failed};
use crate::admin::AdminSettings;
use crate::api;
use crate::api::{
    KeepAlive, ListenSettings, OfferedCalls, OriginGuardSettings, Protocols, ServerSettings,
    TlsSettings, WebServerSettings,
};
use crate::archive::{Archive, ArchiveSettings, Retention};
use crate::auth::{self, CertificateName, JwksLocation, JwtSettings};
use crate::config::{
    self, ClientAuth, CompileMode, Config, DEFAULT_TENANT, PagemapScan, Problems, StoreUrl,
};
use crate::hardening;
use crate::model::limits::{OTHERS_DIVISOR, WASM_PAGE_BYTES};
use crate::model::policy::Policy;
use crate::otlp;
use crate::run::{self, ArchiveChoice, ArchiveFeed, Capacity, Quota, TenantSettings};
use crate::sandbox::{self, ArtifactLimit, CompileBudget, CompileSettings, SmallLane};
use crate::store::{
    self, ArtifactCache, ArtifactCacheSettings, OciPuller, OciRegistry, SharedBudget, Spool, Store,
    StoreLocation,
};
use tokio::runtime::Handle;

/// Bytes of memory for the records of modules, shared evenly by all tenants.
const RECORDS: u64 = 32 << 20;
/// Bytes of memory for the records of one tenant's modules, at least.
const RECORDS_EACH: u64 = 1 << 20;

/// Returns the settings of the threads that serve connections.
pub(super) fn server_settings(config: &Config) -> ServerSettings {
    let server = &config.server;
    ServerSettings {
        threads: config.serving_threads(),
        keep_alive: KeepAlive {
            interval: server.keepalive_interval.0,
            timeout: server.keepalive_timeout.0,
        },
        thread_init: hardening::confine_serving_thread,
    }
}

/// Opens the module store of each tenant, and returns the settings of all tenants.
///
/// # Errors
/// A module store does not open.
pub(super) fn tenants(config: &Config) -> Result<Vec<TenantSettings>, AppError> {
    let all = config.all_tenants();
    let total = SharedBudget::new(config.store.budget.0, all.len());
    let records = (RECORDS / all.len() as u64).max(RECORDS_EACH);
    let place = store_location(&config.store.url)?;
    all.into_iter()
        .map(|tenant| {
            let own = config.for_tenant(&tenant);
            let quota = quota(&tenant.quota);
            let settings = store::Settings {
                location: place.clone(),
                tenant: (tenant.name != DEFAULT_TENANT).then(|| tenant.name.clone()),
                shared_budget: Arc::clone(&total),
                bytes: quota.stored_bytes,
                modules: quota.modules,
                records,
                max_module: config.compile.max_module.0,
                spool: config.store.spool.clone(),
            };
            let store = Store::open(&settings).map_err(failed("the module store does not open"))?;
            Ok(TenantSettings {
                name: tenant.name,
                weight: tenant.weight,
                policy: Policy::from(&own),
                quota,
                store,
            })
        })
        .collect()
}

/// Translates a tenant's quota, in which zero means no limit.
fn quota(quota: &config::QuotaConfig) -> Quota {
    let rate = |rate: f64| (rate > 0.0).then_some(rate);
    let count = |n: u64| (n > 0).then_some(n);
    Quota {
        runs: (quota.runs > 0).then_some(quota.runs),
        runs_per_second: rate(quota.runs_per_second),
        cpu_seconds_per_minute: rate(quota.cpu_seconds_per_minute),
        stored_bytes: count(quota.stored_bytes.0),
        modules: count(quota.modules),
    }
}

/// Returns where modules are stored, with the provider's environment variables for an object store.
fn store_location(url: &StoreUrl) -> Result<StoreLocation, Problems> {
    Ok(match url {
        StoreUrl::Memory => StoreLocation::Memory,
        StoreUrl::Directory(path) => StoreLocation::Directory(path.clone()),
        StoreUrl::Objects(url) => StoreLocation::Objects {
            url: url.clone(),
            variables: config::provider_variables(url.scheme())?,
        },
    })
}

/// Returns the settings by which callers are identified.
pub(super) fn auth_settings(config: &Config) -> auth::Settings {
    let jwt = &config.auth.jwt;
    let keys = match url::Url::parse(&jwt.jwks) {
        Ok(_) => JwksLocation::Url {
            url: jwt.jwks.clone(),
            refresh: jwt.refresh.0,
            max_stale: jwt.max_stale.0,
        },
        Err(_) => JwksLocation::File(PathBuf::from(&jwt.jwks)),
    };
    let tenants = config.all_tenants();
    let mut certificates = HashMap::new();
    let mut uids = HashMap::new();
    for tenant in &tenants {
        for text in &tenant.certificates {
            // Invalid names were refused when the configuration was checked.
            let names = CertificateName::configured(text).unwrap_or_default();
            let owned = names
                .iter()
                .map(|name| (name.to_string(), tenant.name.clone()));
            certificates.extend(owned);
        }
        uids.extend(tenant.uids.iter().map(|uid| (*uid, tenant.name.clone())));
    }
    auth::Settings {
        tokens_file: named(&config.auth.tokens_file),
        jwt: (!jwt.jwks.is_empty()).then(|| JwtSettings {
            keys,
            issuer: jwt.issuer.clone(),
            audience: jwt.audience.clone(),
            algorithms: jwt.algorithms.clone(),
            tenant_claim: jwt.tenant_claim.clone(),
        }),
        tenants: tenants
            .into_iter()
            .map(|it| it.name)
            .collect::<HashSet<_>>(),
        certificates,
        uids,
        default_tenant: (!config.identifies_callers()).then(|| DEFAULT_TENANT.to_owned()),
    }
}

/// Returns the path, or `None` if it is empty.
fn named(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

/// Returns the TLS settings, or `None` if no certificate is configured.
fn tls_settings(tls: &config::TlsConfig) -> Option<TlsSettings> {
    Some(TlsSettings {
        cert: named(&tls.cert)?,
        key: named(&tls.key)?,
        client_ca: named(&tls.client_ca),
        require: tls.client_auth == ClientAuth::Require,
    })
}

/// Returns the capacity for runs, the largest of which reserves `largest` bytes.
fn capacity(config: &Config, largest: u64) -> Capacity {
    let (admission, compile) = (&config.admission, &config.compile);
    let memory = run_memory(config);
    let all_runs = most_reserved(admission.slots, largest);
    Capacity {
        slots: admission.slots,
        // What sessions hold is not the runs' to use.
        memory: memory.min(all_runs.saturating_add(session_memory(config, largest))),
        queue: admission.queue,
        max_wait: admission.max_wait.0,
        compiles: compile.concurrency,
        compile_queue: compile.queue,
        compile_wait: compile.max_wait.0,
        compile_quantum: compile.quantum.0,
        compiles_stopped: compile.max_preempted,
        uploads: config.store.uploads,
    }
}

/// Returns the bytes of memory that there are for runs and sessions.
fn run_memory(config: &Config) -> u64 {
    match config.admission.memory.0 {
        0 => run::share_of_memory(config.admission.memory_share),
        bytes => bytes,
    }
}

/// Returns the bytes of memory that sessions may hold: their share, as far as one of the largest
/// runs still fits beside them, if it fits at all.
fn session_memory(config: &Config, largest: u64) -> u64 {
    let memory = run_memory(config);
    let share = run::share_of(memory, config.sessions.memory_share);
    match memory.checked_sub(most_reserved(1, largest)) {
        Some(beside) => share.min(beside),
        None => share,
    }
}

/// Returns the bytes that the largest runs reserve in all `slots`. Any more would be for responses
/// alone: those of runs whose slots are meanwhile used by other runs.
fn most_reserved(slots: u32, largest: u64) -> u64 {
    // If there are several tenants, each may hold seven eighths, and one of the largest runs must
    // fit into that.
    let one = largest.saturating_add(largest.div_ceil(OTHERS_DIVISOR - 1) + 1);
    largest.saturating_mul(slots.into()).max(one)
}

/// Returns the settings of the runner.
pub(super) fn run_settings(
    config: &Config,
    largest: u64,
    archive: Option<Arc<ArchiveFeed>>,
) -> run::Settings {
    let runs = &config.runs;
    // The host is a 64-bit one, so the address space exceeds any budget.
    let bytes = |size: config::Size| usize::try_from(size.0).unwrap_or(usize::MAX);
    let sessions = &config.sessions;
    run::Settings {
        capacity: capacity(config, largest),
        share_code: config.compile.share,
        stall_timeout: runs.stall_timeout.0,
        log_bytes: bytes(runs.log_bytes),
        log_budget: bytes(runs.log_budget),
        history: run::HistoryLimits {
            runs: runs.history as usize,
            age: runs.history_age.0,
            bytes: bytes(runs.history_bytes),
        },
        idempotency_window: runs.idempotency_window.0,
        idempotency_keys: runs.idempotency_keys as usize,
        viewers: runs.viewers,
        sessions: run::SessionLimits {
            max: sessions.max,
            memory: session_memory(config, largest),
            idle_timeout: sessions.idle_timeout.0,
        },
        archive,
    }
}

/// Opens the archive of ended runs, and returns what hands runs to it; `None` where there is none.
///
/// # Errors
/// The archive does not open.
pub(super) fn archive(config: &Config) -> Result<Option<Arc<ArchiveFeed>>, AppError> {
    let runs = &config.runs;
    let Some(url) = &runs.archive.0 else {
        return Ok(None);
    };
    let some = |path: &PathBuf| (!path.as_os_str().is_empty()).then(|| path.clone());
    let settings = ArchiveSettings {
        location: store_location(url)?,
        spool: some(&runs.archive_spool),
        queue: usize::try_from(runs.archive_queue.0).unwrap_or(usize::MAX),
        interval: runs.archive_interval.0,
        has_several_tenants: config.all_tenants().len() > 1,
        retention: Retention {
            age: (!runs.archive_age.0.is_zero()).then_some(runs.archive_age.0),
            bytes: (runs.archive_bytes.0 > 0).then_some(runs.archive_bytes.0),
        },
    };
    let archive = Archive::open(&instance(config), settings);
    let archive = archive.map_err(failed("the archive of runs does not open"))?;
    let choice = match runs.archive_what {
        config::ArchiveWhat::All => ArchiveChoice::All,
        config::ArchiveWhat::Labelled => ArchiveChoice::Labelled,
        config::ArchiveWhat::Failed => ArchiveChoice::Failed,
    };
    Ok(Some(Arc::new(ArchiveFeed::new(
        Arc::new(archive),
        choice,
        runs.archive_ratio,
        api::encode_ended,
    ))))
}

/// Returns the settings of the export of traces and output, or `None` if nothing is exported.
pub(super) fn export_settings(config: &Config) -> Option<otlp::Settings> {
    let telemetry = &config.telemetry;
    telemetry.otlp_endpoint.url()?;
    Some(otlp::Settings {
        endpoint: telemetry.otlp_endpoint.to_string(),
        ratio: telemetry.otlp_ratio,
        headers_file: named(&telemetry.otlp_headers_file),
        queue_bytes: telemetry.otlp_queue.0,
        has_several_tenants: config.all_tenants().len() > 1,
        exports_output: telemetry.export_output,
        labels: telemetry.export_labels.clone(),
        instance: instance(config),
    })
}

/// Returns the settings of the listeners.
pub(super) fn listen_settings(config: &Config) -> ListenSettings {
    ListenSettings {
        socket_mode: config.server.socket_mode.0,
        max_connections: config.server.max_connections,
        max_per_peer: config.server.max_connections_per_peer,
        first_call_timeout: config.server.first_call_timeout.0,
        tls: tls_settings(&config.tls),
        handshake_timeout: config.server.handshake_timeout.0,
        // A client that answers no keepalive ping is given the same time.
        write_timeout: config.server.keepalive_interval.0 + config.server.keepalive_timeout.0,
        protocols: match config.server.grpc_web {
            true => Protocols::Http1AndHttp2,
            false => Protocols::Http2,
        },
    }
}

/// Returns the calls that the gRPC listeners offer.
pub(super) fn offered_calls(config: &Config) -> OfferedCalls {
    match config.server.grpc_web {
        true => OfferedCalls::Both,
        false => OfferedCalls::Grpc,
    }
}

/// Returns what requests of gRPC-Web may name on the gRPC listeners, or `None` if it is not served
/// there.
pub(super) fn web_origins(config: &Config) -> Option<OriginGuardSettings> {
    let server = &config.server;
    server.grpc_web.then(|| OriginGuardSettings {
        allowed_hosts: server.allowed_hosts.clone(),
        cors_origins: server.cors_origins.clone(),
        linked_path: None,
        table: "server",
    })
}

/// Returns the settings of the admin listener. It has to be called in the context of the daemon's
/// runtime.
pub(super) fn admin_settings(config: &Config) -> AdminSettings {
    let admin = &config.admin;
    // A probe has no certificate. Who calls is asked of each request.
    let tls = tls_settings(&config.tls).map(|tls| TlsSettings {
        require: false,
        ..tls
    });
    AdminSettings {
        listen: admin.listen.clone(),
        server: WebServerSettings {
            listen: ListenSettings {
                protocols: Protocols::Http1AndHttp2,
                max_connections: admin.max_connections,
                max_per_peer: admin.max_connections,
                tls,
                ..listen_settings(config)
            },
            keep_alive: server_settings(config).keep_alive,
            beside: Handle::current(),
        },
        open: admin.open.clone(),
        has_page: admin.page,
        is_authenticated: config.may_listen_publicly(),
        origins: OriginGuardSettings {
            allowed_hosts: admin.allowed_hosts.clone(),
            cors_origins: admin.cors_origins.clone(),
            linked_path: Some("/"),
            table: "admin",
        },
        thread_init: hardening::confine_serving_thread,
    }
}

/// Returns the settings of the cache of compiled modules on disk, or `None` if there is none.
pub(super) fn artifacts_settings(config: &Config) -> Option<ArtifactCacheSettings> {
    let artifacts = &config.artifacts;
    (!artifacts.dir.as_os_str().is_empty()).then(|| ArtifactCacheSettings {
        dir: artifacts.dir.clone(),
        budget: artifacts.budget.0,
        key_file: artifacts.key_file.clone(),
    })
}

/// Returns the puller of modules from the configured OCI registries.
pub(super) fn registries(config: &Config) -> OciPuller {
    let registry = |it: &config::RegistryHost| OciRegistry {
        host: it.host.clone(),
        plain: it.plain,
    };
    let credentials = &config.oci.credentials_file;
    OciPuller::new(
        config.oci.registries.iter().map(registry).collect(),
        (!credentials.as_os_str().is_empty()).then(|| credentials.clone()),
    )
}

/// Returns where modules are assembled that are pulled when the daemon starts.
pub(super) fn start_spool(config: &Config) -> Spool {
    Spool {
        dir: config.store.spool.clone(),
        key: "store.spool",
    }
}

/// Returns the settings of the compiler.
fn compile_settings(config: &Config, program: &Path) -> CompileSettings {
    let compile = &config.compile;
    CompileSettings {
        child: match compile.mode {
            CompileMode::Child => Some(program.to_owned()),
            CompileMode::InProcess => None,
        },
        concurrency: compile.concurrency,
        max_stopped: compile.max_preempted,
        queue: compile.queue,
        budget: CompileBudget {
            timeout: compile.timeout.0,
            memory: compile.memory.0,
        },
        small: (compile.small_module.0 > 0).then_some(SmallLane {
            max_module: compile.small_module.0,
            budget: CompileBudget {
                timeout: compile.small_timeout.0,
                memory: compile.small_memory.0,
            },
        }),
        artifact: {
            // Code that does not fit into the cache would be compiled again for every run.
            let limits = [
                (compile.max_artifact.0, "compile.max_artifact"),
                (config.engine.cache_budget.0, "engine.cache_budget"),
            ];
            let [first, second] = limits;
            let (bytes, key) = if second.0 < first.0 { second } else { first };
            ArtifactLimit {
                bytes,
                key: key.to_owned(),
            }
        },
    }
}

/// Returns the settings of the sandbox: its engine, guest threads and compiler.
pub(super) fn sandbox_settings(
    config: &Config,
    max_memory_pages: u32,
    program: &Path,
    artifacts: Option<Arc<ArtifactCache>>,
) -> sandbox::Settings {
    let engine = &config.engine;
    let memory = u64::from(max_memory_pages) * WASM_PAGE_BYTES;
    sandbox::Settings {
        guest_threads: config.guest_threads(),
        pool_slots: config.pool_slots(),
        epoch_interval: engine.epoch_interval.0,
        pagemap_scan: match engine.pagemap_scan {
            PagemapScan::Auto => None,
            PagemapScan::On => Some(true),
            PagemapScan::Off => Some(false),
        },
        cache_budget: engine.cache_budget.0,
        tenant_weights: config.all_tenants().iter().map(|it| it.weight).collect(),
        // This is at most 4 GiB, and the host is a 64-bit one.
        max_memory: usize::try_from(memory).unwrap_or(usize::MAX),
        compile: compile_settings(config, program),
        artifacts,
        thread_init: hardening::confine_guest_thread,
    }
}

/// Returns the configured name of this instance, or else the host name without unusual characters.
pub(super) fn instance(config: &Config) -> String {
    if !config.server.instance.is_empty() {
        return config.server.instance.clone();
    }
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let plain: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c))
        .take(64)
        .collect();
    if plain.is_empty() {
        "ringfence".to_owned()
    } else {
        plain
    }
}
