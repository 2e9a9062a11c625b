//! Checks of what a configuration must satisfy beyond its types. Every violation is reported, not
//! just the first.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use super::problems::{Checker, KnownNames, Problems, millis, minutes};
use super::schema::{
    ArtifactsConfig, Config, HumanDuration, RunsConfig, SessionsConfig, Size, StoreUrl,
};
use super::{
    archive_check, auth_check, language_check, policy_check, socket_addresses, telemetry_check,
};
use crate::model::limits::share_of;
use crate::store;

/// Checks everything that the types cannot express.
pub(super) fn check(config: &Config, known: &KnownNames) -> Result<(), Problems> {
    let mut c = Checker::default();
    listeners(&mut c, config);
    server(&mut c, config);
    admin(&mut c, config);
    engine(&mut c, config, known);
    modules(&mut c, config);
    language_check::check(&mut c, config);
    policy_check::check(&mut c, config, known);
    auth_check::check(&mut c, config, known);
    telemetry_check::check(&mut c, &config.telemetry);
    if c.0.is_empty() {
        Ok(())
    } else {
        Err(Problems(c.0))
    }
}

fn listeners(c: &mut Checker, config: &Config) {
    c.require(
        !config.listen.is_empty(),
        "listen",
        "[]",
        "a list of at least one address",
    );
    for address in &config.listen {
        listener(c, "listen", address, config.may_listen_publicly());
    }
    // Where nobody is authenticated, others can read there what is open, and nothing else.
    for address in &config.admin.listen {
        listener(c, "admin.listen", address, true);
    }
}

fn listener(c: &mut Checker, key: &str, address: &str, may_be_public: bool) {
    const ALLOWED: &str = "\"host:port\" or \"unix:/absolute/path\"";
    if let Some(path) = address.strip_prefix("unix:") {
        // The field `sun_path` holds 108 bytes, including its terminator.
        let holds = path.starts_with('/') && path.len() > 1 && path.len() < 100;
        c.require(
            holds,
            key,
            address,
            format!("{ALLOWED}, with a path of at most 99 bytes"),
        );
        return;
    }
    match socket_addresses(address) {
        Err(error) => c.require(false, key, address, format!("{ALLOWED} ({error})")),
        Ok(addrs) => {
            let open = addrs.iter().any(|addr| !is_loopback(addr.ip()));
            c.require(
                !open || may_be_public,
                key,
                address,
                "a loopback address or a unix socket, because nothing authenticates the callers of any other: configure [auth] or tls.client_ca (server.insecure_listen = true allows it without either)",
            );
        }
    }
}

fn admin(c: &mut Checker, config: &Config) {
    let admin = &config.admin;
    // Each address has a share of the connections, which must not be empty.
    let addresses = u32::try_from(admin.listen.len()).unwrap_or(u32::MAX);
    c.between(
        "admin.max_connections",
        admin.max_connections,
        addresses.clamp(1, 10_000),
        10_000,
    );
    hosts(c, "admin.allowed_hosts", &admin.allowed_hosts);
    origins(c, "admin.cors_origins", &admin.cors_origins);
    c.require(
        admin.trace_url.is_empty() || is_trace_url(&admin.trace_url),
        "admin.trace_url",
        &admin.trace_url,
        "a URL of http:// or https:// with {trace_id} where the id of a trace belongs, such as \"https://traces.example.com/trace/{trace_id}\", or \"\"",
    );
}

fn grpc_web(c: &mut Checker, config: &Config) {
    let server = &config.server;
    hosts(c, "server.allowed_hosts", &server.allowed_hosts);
    origins(c, "server.cors_origins", &server.cors_origins);
    let lists = [
        ("server.allowed_hosts", &server.allowed_hosts),
        ("server.cors_origins", &server.cors_origins),
    ];
    for (key, list) in lists {
        c.require(
            server.grpc_web || list.is_empty(),
            key,
            format!("{list:?}"),
            "empty, because server.grpc_web is false and it is for gRPC-Web alone",
        );
    }
}

fn hosts(c: &mut Checker, key: &str, names: &[String]) {
    for name in names {
        c.require(is_host(name), key, name, "a host without a port");
    }
}

fn origins(c: &mut Checker, key: &str, origins: &[String]) {
    for origin in origins {
        c.require(
            is_origin(origin),
            key,
            origin,
            "a scheme and a host, and a port if it is not the scheme's own, such as \"https://ops.example.com\"",
        );
    }
}

fn is_host(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '@'])
}

/// Reports whether a text becomes the URL of a web page once the id of a trace is in its place.
fn is_trace_url(text: &str) -> bool {
    let filled = text.replace("{trace_id}", "0123456789abcdef0123456789abcdef");
    // Browsers take a URL that is spelt in other ways for one of theirs too, and the page does not.
    let is_web = ["http://", "https://"]
        .iter()
        .any(|it| text.starts_with(it));
    is_web && filled != text && url::Url::parse(&filled).is_ok()
}

/// Reports whether a text is an origin, spelt as browsers spell it.
fn is_origin(text: &str) -> bool {
    url::Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text)
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn server(c: &mut Checker, config: &Config) {
    let server = &config.server;
    let ok = server.instance.len() <= 64
        && server
            .instance
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    c.require(
        ok,
        "server.instance",
        &server.instance,
        "at most 64 letters, digits, '-', '.' and '_'",
    );
    c.between("server.threads", server.threads, 0, 1024);
    c.between(
        "server.drain_grace",
        server.drain_grace,
        HumanDuration(Duration::ZERO),
        minutes(60),
    );
    c.between(
        "server.drain_delay",
        server.drain_delay,
        HumanDuration(Duration::ZERO),
        minutes(10),
    );
    c.between(
        "server.request_stall",
        server.request_stall,
        millis(100),
        minutes(10),
    );
    c.between(
        "server.handshake_timeout",
        server.handshake_timeout,
        millis(100),
        minutes(5),
    );
    c.between(
        "server.first_call_timeout",
        server.first_call_timeout,
        millis(100),
        minutes(10),
    );
    connections(c, config);
    grpc_web(c, config);
    messages(c, config);
}

fn connections(c: &mut Checker, config: &Config) {
    let server = &config.server;
    // Each listener has a share of the connections, which must not be empty.
    let listeners = u32::try_from(config.listen.len()).unwrap_or(u32::MAX);
    c.between(
        "server.max_connections",
        server.max_connections,
        listeners.clamp(1, 100_000),
        100_000,
    );
    c.between(
        "server.max_connections_per_peer",
        server.max_connections_per_peer,
        1,
        100_000,
    );
    let keepalive = [
        ("server.keepalive_interval", server.keepalive_interval),
        ("server.keepalive_timeout", server.keepalive_timeout),
    ];
    for (key, time) in keepalive {
        c.between(key, time, millis(100), minutes(10));
    }
    hosts(c, "server.allowed_authorities", &server.allowed_authorities);
}

fn messages(c: &mut Checker, config: &Config) {
    let server = &config.server;
    c.between(
        "server.max_message",
        server.max_message,
        Size(64 << 10),
        Size(1 << 30),
    );
    let largest = server.max_message.max(config.compile.max_module);
    // Where there are several tenants, none of them may hold the last eighth.
    let several = config.tenants.len() > 1;
    let share = share_of(server.inflight_request_bytes.0, several);
    c.require(
        share > largest.0,
        "server.inflight_request_bytes",
        server.inflight_request_bytes,
        format!("more than {largest}, the larger of server.max_message and compile.max_module; with several tenants, seven eighths of it must be"),
    );
    // There has to be room for a page of runs, and for a few callers who watch runs.
    let answers = (Size(4 << 20), Size(1 << 40));
    c.between(
        "server.inflight_answer_bytes",
        server.inflight_answer_bytes,
        answers.0,
        answers.1,
    );
    let rate = (Size(1), Size(1 << 30));
    c.between(
        "server.min_answer_rate",
        server.min_answer_rate,
        rate.0,
        rate.1,
    );
    let stdin_fits = config.policy.max_stdin.0 + config.policy.max_args.0 + config.policy.max_env.0
        < server.max_message.0;
    c.require(
        stdin_fits,
        "server.max_message",
        server.max_message,
        "more than policy.max_stdin, policy.max_args and policy.max_env together",
    );
}

fn engine(c: &mut Checker, config: &Config, known: &KnownNames) {
    let engine = &config.engine;
    c.between("engine.guest_threads", engine.guest_threads, 0, 1024);
    c.between("engine.pool_slots", engine.pool_slots, 0, 10_000);
    c.between(
        "engine.epoch_interval",
        engine.epoch_interval,
        millis(1),
        millis(100),
    );
    c.between(
        "engine.cache_budget",
        engine.cache_budget,
        Size(1 << 20),
        Size(1 << 40),
    );
    c.all_known("engine.features", &engine.features, known.features);
    c.between("admission.slots", config.admission.slots, 1, 10_000);
    let slots = config.admission.slots;
    c.require(
        engine.pool_slots == 0 || engine.pool_slots >= slots,
        "engine.pool_slots",
        engine.pool_slots,
        format!("0, or at least admission.slots ({slots})"),
    );
    c.between("admission.queue", config.admission.queue, 0, 1_000_000);
    c.between(
        "admission.max_wait",
        config.admission.max_wait,
        HumanDuration(Duration::ZERO),
        minutes(10),
    );
    let share = config.admission.memory_share;
    c.require(
        (0.01..=1.0).contains(&share),
        "admission.memory_share",
        share,
        "from 0.01 to 1.0",
    );
    let memory = (Size(0), Size(1 << 50));
    c.between(
        "admission.memory",
        config.admission.memory,
        memory.0,
        memory.1,
    );
    runs(c, &config.runs, config.tenants.len());
    archive_check::check(c, config);
    sessions(c, &config.sessions);
}

fn runs(c: &mut Checker, runs: &RunsConfig, tenants: usize) {
    let stall = (millis(100), minutes(60));
    c.between("runs.stall_timeout", runs.stall_timeout, stall.0, stall.1);
    let log = (Size(128 << 10), Size(1 << 30));
    c.between("runs.log_bytes", runs.log_bytes, log.0, log.1);
    // The budget is divided among the tenants.
    let least = runs.log_bytes.0.saturating_mul(tenants.max(1) as u64);
    let holds = (least..=1 << 40).contains(&runs.log_budget.0);
    let allowed = format!(
        "from {}, which is runs.log_bytes for each tenant, to {}",
        Size(least),
        Size(1 << 40)
    );
    c.require(holds, "runs.log_budget", runs.log_budget, allowed);
    c.between("runs.history", runs.history, 0, 10_000_000);
    let age = (HumanDuration(Duration::ZERO), minutes(30 * 24 * 60));
    c.between("runs.history_age", runs.history_age, age.0, age.1);
    let bytes = (Size(0), Size(1 << 40));
    c.between("runs.history_bytes", runs.history_bytes, bytes.0, bytes.1);
    let window = (HumanDuration(Duration::ZERO), minutes(24 * 60));
    c.between(
        "runs.idempotency_window",
        runs.idempotency_window,
        window.0,
        window.1,
    );
    c.between(
        "runs.idempotency_keys",
        runs.idempotency_keys,
        1,
        10_000_000,
    );
    c.between("runs.viewers", runs.viewers, 1, 100_000);
}

fn sessions(c: &mut Checker, sessions: &SessionsConfig) {
    let SessionsConfig {
        max,
        memory_share,
        idle_timeout,
    } = sessions;
    c.between("sessions.max", *max, 0, 1_000);
    c.between("sessions.memory_share", *memory_share, 0.0, 0.9);
    let idle = (HumanDuration(Duration::from_secs(1)), minutes(7 * 24 * 60));
    c.between("sessions.idle_timeout", *idle_timeout, idle.0, idle.1);
}

fn modules(c: &mut Checker, config: &Config) {
    let (compile, store) = (&config.compile, &config.store);
    c.between("compile.concurrency", compile.concurrency, 1, 64);
    let quantum = (millis(100), minutes(10));
    c.between("compile.quantum", compile.quantum, quantum.0, quantum.1);
    c.between("compile.max_preempted", compile.max_preempted, 0, 64);
    c.between("compile.queue", compile.queue, 1, 10_000);
    let wait = (HumanDuration(Duration::ZERO), minutes(60));
    c.between("compile.max_wait", compile.max_wait, wait.0, wait.1);
    c.between(
        "compile.timeout",
        compile.timeout,
        millis(1000),
        minutes(60),
    );
    // With less memory, not even a small module can be compiled.
    let memory = (Size(64 << 20), Size(1 << 40));
    c.between("compile.memory", compile.memory, memory.0, memory.1);
    let module = (Size(1 << 10), Size(1 << 30));
    c.between("compile.max_module", compile.max_module, module.0, module.1);
    // The bound is low, because a module that outgrows the small lane loses the time that it spent
    // there.
    let small = (Size(0), Size(16 << 20));
    c.between(
        "compile.small_module",
        compile.small_module,
        small.0,
        small.1,
    );
    c.between(
        "compile.small_timeout",
        compile.small_timeout,
        millis(100),
        millis(10_000),
    );
    c.between(
        "compile.small_memory",
        compile.small_memory,
        memory.0,
        memory.1,
    );
    let artifact = (Size(1 << 20), Size(1 << 36));
    c.between(
        "compile.max_artifact",
        compile.max_artifact,
        artifact.0,
        artifact.1,
    );
    let budget = (Size(1 << 20), Size(1 << 50));
    c.between("store.budget", store.budget, budget.0, budget.1);
    c.between("store.uploads", store.uploads, 1, 10_000);
    let timeout = (millis(1000), minutes(24 * 60));
    c.between(
        "store.upload_timeout",
        store.upload_timeout,
        timeout.0,
        timeout.1,
    );
    if !matches!(store.url, StoreUrl::Directory(_)) {
        c.require(
            store.spool.is_absolute(),
            "store.spool",
            store.spool.display(),
            "an absolute path to a folder",
        );
    }
    artifacts(c, &config.artifacts);
    oci_credentials(c, &config.oci.credentials_file);
}

fn oci_credentials(c: &mut Checker, path: &Path) {
    const KEY: &str = "oci.credentials_file";
    if path.as_os_str().is_empty() {
        return;
    }
    let holds = path.is_absolute() && path.is_file();
    const ALLOWED: &str = "an absolute path to a file that exists, or empty";
    c.require(holds, KEY, path.display(), ALLOWED);
    // A file that cannot be read here, such as one that only the daemon's own user may read, is
    // checked when it is needed.
    if let Ok(text) = std::fs::read(path)
        && let Err(why) = store::check_credentials(&text)
    {
        let allowed = format!("a file in the format of Docker's config.json: {why}");
        c.require(false, KEY, path.display(), allowed);
    }
}

fn artifacts(c: &mut Checker, artifacts: &ArtifactsConfig) {
    let budget = (Size(1 << 20), Size(1 << 44));
    c.between("artifacts.budget", artifacts.budget, budget.0, budget.1);
    let (dir, key) = (&artifacts.dir, &artifacts.key_file);
    if dir.as_os_str().is_empty() {
        return;
    }
    c.require(
        dir.is_absolute(),
        "artifacts.dir",
        dir.display(),
        "an absolute path, or empty",
    );
    c.require(
        key.is_absolute() && !key.starts_with(dir),
        "artifacts.key_file",
        key.display(),
        "an absolute path outside artifacts.dir, because artifacts.dir is set",
    );
}
