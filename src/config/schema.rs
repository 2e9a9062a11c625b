//! The types of the configuration's tables and keys. The meaning, default and unit of each key are
//! documented in `config/ringfence.toml`, and only there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use super::units::{FileMode, HumanDuration, Size};
pub use super::urls::{ArchiveUrl, OtlpEndpoint, RegistryHost, StoreUrl};

/// Defines a table of settings, and a second one whose keys are optional and override the first.
macro_rules! overridable {
    (
        $(#[$doc:meta])* $name:ident,
        $(#[$changes_doc:meta])* $changes:ident { $($field:ident: $type:ty,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Deserialize, Serialize)]
        #[serde(deny_unknown_fields)]
        #[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
        pub struct $name {
            $(pub $field: $type,)*
        }

        $(#[$changes_doc])*
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(deny_unknown_fields, default)]
        #[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
        pub struct $changes {
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$type>,
            )*
        }

        impl $name {
            /// Returns these settings with the given changes applied.
            pub(super) fn with(&self, changes: &$changes) -> Self {
                Self {
                    $($field: changes.$field.as_ref().unwrap_or(&self.$field).clone(),)*
                }
            }
        }
    };
}

/// The whole configuration, with every key set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Config {
    pub listen: Vec<String>,
    pub tenants: Vec<TenantConfig>,
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub engine: EngineConfig,
    pub defaults: DefaultsConfig,
    pub policy: PolicyConfig,
    pub admission: AdmissionConfig,
    pub compile: CompileConfig,
    pub store: StoreConfig,
    pub artifacts: ArtifactsConfig,
    pub oci: OciConfig,
    pub runs: RunsConfig,
    pub sessions: SessionsConfig,
    pub tls: TlsConfig,
    pub auth: AuthConfig,
    pub hardening: HardeningConfig,
    pub telemetry: TelemetryConfig,
    pub languages: BTreeMap<String, LanguageConfig>,
    pub profiles: BTreeMap<String, ProfileConfig>,
}

/// The `[server]` table: connections, messages and shutdown.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct ServerConfig {
    pub instance: String,
    pub threads: u32,
    pub drain_grace: HumanDuration,
    pub drain_delay: HumanDuration,
    pub socket_mode: FileMode,
    pub reflection: bool,
    pub grpc_web: bool,
    pub allowed_hosts: Vec<String>,
    pub cors_origins: Vec<String>,
    pub max_message: Size,
    pub inflight_request_bytes: Size,
    pub inflight_answer_bytes: Size,
    pub min_answer_rate: Size,
    pub max_connections: u32,
    pub max_connections_per_peer: u32,
    pub handshake_timeout: HumanDuration,
    pub first_call_timeout: HumanDuration,
    pub request_stall: HumanDuration,
    pub keepalive_interval: HumanDuration,
    pub keepalive_timeout: HumanDuration,
    pub allowed_authorities: Vec<String>,
    pub insecure_listen: bool,
}

/// The `[admin]` table: metrics and probes over HTTP, and the page for browsers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct AdminConfig {
    pub listen: Vec<String>,
    pub open: Vec<OpenPath>,
    pub page: bool,
    pub allowed_hosts: Vec<String>,
    pub cors_origins: Vec<String>,
    pub read_only: bool,
    pub trace_url: String,
    pub max_connections: u32,
}

/// The choices of `admin.open`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum OpenPath {
    Livez,
    Readyz,
    Metrics,
}

/// The `[engine]` table: guest threads, instance pool and code cache.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct EngineConfig {
    pub guest_threads: u32,
    pub pool_slots: u32,
    pub epoch_interval: HumanDuration,
    pub pagemap_scan: PagemapScan,
    pub features: Vec<String>,
    pub cache_budget: Size,
}

/// The choices of `engine.pagemap_scan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum PagemapScan {
    Auto,
    On,
    Off,
}

overridable! {
    /// The `[defaults]` table: the limits of runs that ask for none.
    DefaultsConfig,
    /// The `defaults` table of a tenant, and the `limits` table of a language or a profile, which
    /// override `[defaults]` key by key.
    TenantDefaultsConfig {
        memory_pages: u32,
        timeout: HumanDuration,
        stack_size: Size,
        output_limit: Size,
        fuel_limit: u64,
    }
}

overridable! {
    /// The `[policy]` table: what runs may ask for and reach.
    PolicyConfig,
    /// A tenant's `policy` table, which overrides `[policy]` key by key.
    TenantPolicyConfig {
        wasi: bool,
        clock: bool,
        max_memory_pages: u32,
        max_fuel: u64,
        require_fuel: bool,
        max_stack_size: Size,
        max_timeout: HumanDuration,
        max_output: Size,
        max_stream_output: Size,
        max_handles: u32,
        max_files: u32,
        max_file_bytes: Size,
        max_collect_files: u32,
        max_collect_bytes: Size,
        max_stdin: Size,
        max_code: Size,
        max_sessions: u32,
        max_args: Size,
        max_env: Size,
        features: Vec<String>,
        host_functions: Vec<String>,
        languages: Vec<String>,
        network: Vec<NetworkGrantConfig>,
        mounts: Vec<MountGrantConfig>,
    }
}

/// An entry of `policy.network`: a block of addresses, with ports.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct NetworkGrantConfig {
    #[serde(deserialize_with = "block", serialize_with = "show_block")]
    pub host: IpNet,
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// An entry of `policy.mounts`: a host directory that guests may be given.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct MountGrantConfig {
    pub host: PathBuf,
    pub access: MountAccess,
}

/// The choices of `access` in a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum MountAccess {
    Read,
    Write,
}

/// The `[admission]` table: slots, queue and memory for runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct AdmissionConfig {
    pub slots: u32,
    pub queue: u32,
    pub max_wait: HumanDuration,
    pub memory_share: f64,
    pub memory: Size,
}

/// The `[compile]` table: the compile children and their limits.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct CompileConfig {
    pub mode: CompileMode,
    pub timeout: HumanDuration,
    pub memory: Size,
    pub concurrency: u32,
    pub quantum: HumanDuration,
    pub max_preempted: u32,
    pub queue: u32,
    pub max_wait: HumanDuration,
    pub share: bool,
    pub max_module: Size,
    pub max_artifact: Size,
    pub small_module: Size,
    pub small_timeout: HumanDuration,
    pub small_memory: Size,
}

/// The choices of `compile.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum CompileMode {
    Child,
    InProcess,
}

/// The `[store]` table: where modules are kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct StoreConfig {
    pub url: StoreUrl,
    pub budget: Size,
    pub spool: PathBuf,
    pub uploads: u32,
    pub upload_timeout: HumanDuration,
}

/// The `[artifacts]` table: the cache of compiled code on disk.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct ArtifactsConfig {
    pub dir: PathBuf,
    pub budget: Size,
    pub key_file: PathBuf,
}

/// The `[oci]` table: registries from which modules may be pulled.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct OciConfig {
    pub registries: Vec<RegistryHost>,
    pub credentials_file: PathBuf,
}

/// The `[runs]` table: logs, history and idempotency of runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct RunsConfig {
    pub stall_timeout: HumanDuration,
    pub log_bytes: Size,
    pub log_budget: Size,
    pub history: u32,
    pub history_age: HumanDuration,
    pub history_bytes: Size,
    pub idempotency_window: HumanDuration,
    pub idempotency_keys: u32,
    pub viewers: u32,
    pub archive: ArchiveUrl,
    pub archive_what: ArchiveWhat,
    pub archive_ratio: f64,
    pub archive_queue: Size,
    pub archive_interval: HumanDuration,
    pub archive_spool: PathBuf,
    pub archive_age: HumanDuration,
    pub archive_bytes: Size,
}

/// Which ended runs are archived.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each value")]
pub enum ArchiveWhat {
    All,
    Labelled,
    Failed,
}

/// The `[sessions]` table: how many interpreters are kept, and how long.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct SessionsConfig {
    pub max: u32,
    pub memory_share: f64,
    pub idle_timeout: HumanDuration,
}

/// An entry of `[[tenants]]`, with the tenant's own policy, defaults and quota.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct TenantConfig {
    pub name: String,
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default)]
    pub certificates: Vec<String>,
    #[serde(default)]
    pub uids: Vec<u32>,
    #[serde(default)]
    pub policy: TenantPolicyConfig,
    #[serde(default)]
    pub defaults: TenantDefaultsConfig,
    #[serde(default)]
    pub quota: QuotaConfig,
}

fn one() -> u32 {
    1
}

/// The `quota` table of a tenant; 0 means no quota.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct QuotaConfig {
    pub runs: u32,
    pub runs_per_second: f64,
    pub cpu_seconds_per_minute: f64,
    pub stored_bytes: Size,
    pub modules: u64,
}

/// The `[tls]` table: the daemon's certificate, and whose client certificates it trusts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct TlsConfig {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
    pub client_auth: ClientAuth,
}

/// The choices of `tls.client_auth`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum ClientAuth {
    Require,
    Request,
}

/// The `[auth]` table: how callers are identified.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct AuthConfig {
    pub tokens_file: PathBuf,
    pub open_health: bool,
    pub jwt: JwtConfig,
}

/// The `[auth.jwt]` table: which JSON Web Tokens are accepted.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct JwtConfig {
    pub jwks: String,
    pub refresh: HumanDuration,
    pub max_stale: HumanDuration,
    pub issuer: String,
    pub audience: String,
    pub algorithms: Vec<String>,
    pub tenant_claim: String,
}

/// The `[hardening]` table: how the daemon confines itself.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct HardeningConfig {
    pub mode: HardeningMode,
    pub user: String,
    pub read: Vec<PathBuf>,
}

/// The choices of `hardening.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum HardeningMode {
    Auto,
    Require,
    Off,
}

/// The `[telemetry]` table: the log, the audit file, and what is exported to a collector.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct TelemetryConfig {
    pub log_format: LogFormat,
    pub log_level: String,
    pub audit_file: PathBuf,
    pub otlp_endpoint: OtlpEndpoint,
    pub otlp_headers_file: PathBuf,
    pub otlp_ratio: f64,
    pub otlp_queue: Size,
    pub export_output: bool,
    pub export_labels: Vec<String>,
}

/// The choices of `telemetry.log_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum LogFormat {
    Text,
    Json,
}

/// The `[languages.NAME]` table: the interpreter of a language, and how it is given a program.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct LanguageConfig {
    pub module: PathBuf,
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    pub protocol: LanguageProtocol,
    #[serde(default)]
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    #[serde(default)]
    pub file: String,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub aliases: Vec<String>,
    #[serde(default)]
    pub limits: TenantDefaultsConfig,
}

/// The choices of `protocol` in a language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum LanguageProtocol {
    #[default]
    Runner,
    File,
    Argument,
    Stdin,
}

/// The `[profiles.NAME]` table: what programs of a profile may reach, and their limits.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct ProfileConfig {
    pub clock: bool,
    pub network: bool,
    pub host_functions: bool,
    pub limits: TenantDefaultsConfig,
}

fn block<'de, D: serde::Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
    let text = String::deserialize(from)?;
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| {
            serde::de::Error::invalid_value(
                serde::de::Unexpected::Str(&text),
                &"an address or a CIDR block, such as \"10.0.0.5\" or \"10.0.0.0/8\" (names are not resolved for guests)",
            )
        })
}

fn show_block<S: serde::Serializer>(net: &IpNet, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(net)
}
