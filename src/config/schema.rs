//! The keys. What each means, its default and its unit stand in `config/ringfence.toml`, the one place for them.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use super::places::{RegistryHost, StoreUrl};
pub use super::units::{Mode, Size, Time};

/// Makes a table of settings, and one of what may be said instead of some of them.
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
            /// These settings with those changes.
            pub(super) fn with(&self, changes: &$changes) -> Self {
                Self {
                    $($field: changes.$field.as_ref().unwrap_or(&self.$field).clone(),)*
                }
            }
        }
    };
}

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Config {
    pub listen: Vec<String>,
    pub tenants: Vec<Tenant>,
    pub server: Server,
    pub engine: Engine,
    pub defaults: Defaults,
    pub policy: Policy,
    pub admission: Admission,
    pub compile: Compile,
    pub store: Store,
    pub artifacts: Artifacts,
    pub oci: Oci,
    pub runs: Runs,
    pub tls: Tls,
    pub auth: Auth,
    pub hardening: Hardening,
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Server {
    pub instance: String,
    pub threads: u32,
    pub drain_grace: Time,
    pub drain_delay: Time,
    pub socket_mode: Mode,
    pub reflection: bool,
    pub max_message: Size,
    pub inflight_request_bytes: Size,
    pub inflight_answer_bytes: Size,
    pub min_answer_rate: Size,
    pub max_connections: u32,
    pub max_connections_per_peer: u32,
    pub handshake_timeout: Time,
    pub first_call_timeout: Time,
    pub request_stall: Time,
    pub keepalive_interval: Time,
    pub keepalive_timeout: Time,
    pub allowed_authorities: Vec<String>,
    pub insecure_listen: bool,
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Engine {
    pub guest_threads: u32,
    pub pool_slots: u32,
    pub epoch_interval: Time,
    pub pagemap_scan: PagemapScan,
    pub features: Vec<String>,
    pub cache_budget: Size,
}

/// `engine.pagemap_scan`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum PagemapScan {
    Auto,
    On,
    Off,
}

overridable! {
    /// `[defaults]`
    Defaults,
    /// What a tenant has instead of `[defaults]`, key by key
    DefaultsChanges {
        memory_pages: u32,
        timeout: Time,
        stack_size: Size,
        output_limit: Size,
        fuel_limit: u64,
    }
}

overridable! {
    /// `[policy]`
    Policy,
    /// What a tenant has instead of `[policy]`, key by key
    PolicyChanges {
        wasi: bool,
        clock: bool,
        max_memory_pages: u32,
        max_fuel: u64,
        require_fuel: bool,
        max_stack_size: Size,
        max_timeout: Time,
        max_output: Size,
        max_stream_output: Size,
        max_handles: u32,
        max_stdin: Size,
        max_args: Size,
        max_env: Size,
        features: Vec<String>,
        host_functions: Vec<String>,
        network: Vec<NetworkGrant>,
        mounts: Vec<MountGrant>,
    }
}

/// One of `policy.network`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct NetworkGrant {
    #[serde(deserialize_with = "block", serialize_with = "show_block")]
    pub host: IpNet,
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// One of `policy.mounts`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct MountGrant {
    pub host: PathBuf,
    pub access: Access,
}

/// `access` of a mount
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum Access {
    Read,
    Write,
}

/// `[admission]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Admission {
    pub slots: u32,
    pub queue: u32,
    pub max_wait: Time,
    pub memory_share: f64,
    pub memory: Size,
}

/// `[compile]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Compile {
    pub mode: CompileMode,
    pub timeout: Time,
    pub memory: Size,
    pub concurrency: u32,
    pub quantum: Time,
    pub max_preempted: u32,
    pub queue: u32,
    pub max_wait: Time,
    pub share: bool,
    pub max_module: Size,
    pub max_artifact: Size,
    pub small_module: Size,
    pub small_timeout: Time,
    pub small_memory: Size,
}

/// `compile.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum CompileMode {
    Child,
    InProcess,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Store {
    pub url: StoreUrl,
    pub budget: Size,
    pub spool: PathBuf,
    pub uploads: u32,
    pub upload_timeout: Time,
}

/// `[artifacts]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Artifacts {
    pub dir: PathBuf,
    pub budget: Size,
    pub key_file: PathBuf,
}

/// `[oci]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Oci {
    pub registries: Vec<RegistryHost>,
    pub credentials_file: PathBuf,
}

/// `[runs]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Runs {
    pub stall_timeout: Time,
    pub log_bytes: Size,
    pub log_budget: Size,
    pub history: u32,
    pub history_age: Time,
    pub history_bytes: Size,
    pub idempotency_window: Time,
    pub idempotency_keys: u32,
    pub viewers: u32,
}

/// One of `[[tenants]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Tenant {
    pub name: String,
    #[serde(default = "one")]
    pub weight: u32,
    #[serde(default)]
    pub certificates: Vec<String>,
    #[serde(default)]
    pub uids: Vec<u32>,
    #[serde(default)]
    pub policy: PolicyChanges,
    #[serde(default)]
    pub defaults: DefaultsChanges,
    #[serde(default)]
    pub quota: Quota,
}

fn one() -> u32 {
    1
}

/// `quota` of a tenant
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Quota {
    pub runs: u32,
    pub runs_per_second: f64,
    pub cpu_seconds_per_minute: f64,
    pub stored_bytes: Size,
    pub modules: u64,
}

/// `[tls]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Tls {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub client_ca: PathBuf,
    pub client_auth: ClientAuth,
}

/// `tls.client_auth`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum ClientAuth {
    Require,
    Request,
}

/// `[auth]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Auth {
    pub tokens_file: PathBuf,
    pub open_health: bool,
    pub jwt: Jwt,
}

/// `[auth.jwt]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Jwt {
    pub jwks: String,
    pub refresh: Time,
    pub max_stale: Time,
    pub issuer: String,
    pub audience: String,
    pub algorithms: Vec<String>,
    pub tenant_claim: String,
}

/// `[hardening]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Hardening {
    pub mode: HardeningMode,
    pub user: String,
    pub read: Vec<PathBuf>,
}

/// `hardening.mode`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum HardeningMode {
    Auto,
    Require,
    Off,
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Telemetry {
    pub log_format: LogFormat,
    pub log_level: String,
    pub audit_file: PathBuf,
}

/// `telemetry.log_format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub enum LogFormat {
    Text,
    Json,
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
