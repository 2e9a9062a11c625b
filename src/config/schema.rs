//! The keys. What each means, its default and its unit stand in `config/ringfence.toml`, the one place for them.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use super::places::{RegistryHost, StoreUrl};
pub use super::units::{Mode, Size, Time};

/// The whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Config {
    pub listen: Vec<String>,
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
    pub telemetry: Telemetry,
}

/// `[server]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Server {
    #[serde(deserialize_with = "super::units::text")]
    pub instance: String,
    pub drain_grace: Time,
    pub drain_delay: Time,
    pub socket_mode: Mode,
    pub reflection: bool,
    pub max_message: Size,
    pub inflight_request_bytes: Size,
    pub max_connections: u32,
    pub handshake_timeout: Time,
    pub request_stall: Time,
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

/// `[defaults]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Defaults {
    pub memory_pages: u32,
    pub timeout: Time,
    pub stack_size: Size,
    pub output_limit: Size,
    pub fuel_limit: u64,
}

/// `[policy]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Policy {
    pub wasi: bool,
    pub clock: bool,
    pub max_memory_pages: u32,
    pub max_fuel: u64,
    pub require_fuel: bool,
    pub max_stack_size: Size,
    pub max_timeout: Time,
    pub max_output: Size,
    pub max_stream_output: Size,
    pub max_stdin: Size,
    pub max_args: Size,
    pub max_env: Size,
    pub host_functions: Vec<String>,
    pub network: Vec<NetworkGrant>,
    pub mounts: Vec<MountGrant>,
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
    pub queue: u32,
    pub max_module: Size,
    pub max_artifact: Size,
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

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "config/ringfence.toml documents each key")]
pub struct Telemetry {
    pub log_format: LogFormat,
    pub log_level: String,
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
