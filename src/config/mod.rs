//! The only reader of files and environment: defaults < file < environment < flags.
//!
//! [`load`] gives a [`Config`] that is whole and consistent, or every semantic error at once. No behaviour lives here.

mod callers;
mod changes;
mod check;
mod granted;
mod listeners;
mod log_format;
mod places;
mod schema;
mod toml_file;
mod trust_store;
mod units;

use std::path::PathBuf;

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};

use self::toml_file::TomlFile;
pub use figment::value::Value as SettingValue;

pub use callers::DEFAULT_TENANT;
pub(crate) use callers::{is_of_many_things, user_and_group};
pub use check::{Known, Problem, Problems};
pub(crate) use listeners::listens_by_name;
pub use listeners::socket_addresses;
pub use log_format::log_format;
pub use schema::*;
pub use trust_store::{lacks_authorities, no_trust_store, trust_store};

/// The defaults, with a line on each: what `config/ringfence.toml` says.
pub const DEFAULTS: &str = include_str!("../../config/ringfence.toml");

/// Variables with our prefix that are no settings, but say which daemon a command asks, and what it shows to it.
const CLIENTS: [&str; 4] = ["server", "token_file", "tls_ca", "tls_server_name"];

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// A file to read over the defaults.
    pub file: Option<PathBuf>,
    /// Keys and values over all else, in order, as `--set` has them.
    pub set: Vec<(String, String)>,
    /// Keys and values over those. They are values and no text that is read again: names with quotes, line breaks or
    /// whatever else keep what they are.
    pub values: Vec<(String, SettingValue)>,
    /// Whether environment variables are read.
    pub environment: bool,
}

/// Reads and checks the configuration. The second value warns of what was left out.
///
/// # Errors
/// What is wrong, with the key, the value and what is allowed. Semantic errors are all told at once.
pub fn load(overrides: &Overrides, known: &Known) -> Result<(Config, Vec<String>), Problems> {
    let mut figment = Figment::from(Toml::string(DEFAULTS));
    if let Some(file) = &overrides.file {
        figment = figment.merge(TomlFile::read(file)?);
    }
    let mut warnings = Vec::new();
    if overrides.environment {
        // Kubernetes injects such variables for a Service whose name starts with "ringfence".
        warnings = std::env::vars_os()
            .filter_map(|(key, _)| key.into_string().ok())
            .filter(|key| is_service_link(key))
            .map(|key| format!("environment variable {key} looks like a Kubernetes service link and was skipped (set enableServiceLinks: false)"))
            .collect();
        figment = figment.merge(
            Env::prefixed("RINGFENCE_")
                .filter(|key| {
                    !CLIENTS.contains(&key.as_str().to_lowercase().as_str())
                        && !is_service_link(&format!("RINGFENCE_{}", key.as_str().to_uppercase()))
                })
                .split("__"),
        );
    }
    for (key, value) in &overrides.set {
        figment = figment.merge(Serialized::default(key, units::parse_flag(value)));
    }
    for (key, value) in &overrides.values {
        figment = figment.merge(Serialized::default(key, value));
    }
    let config: Config = figment.extract().map_err(Problems::from_figment)?;
    check::check(&config, known)?;
    Ok((config, warnings))
}

/// Reads and checks what a file says, over the defaults.
///
/// # Errors
/// As [`load`].
pub fn read(file: &str, known: &Known) -> Result<Config, Problems> {
    let figment = Figment::from(Toml::string(DEFAULTS)).merge(Toml::string(file));
    let config: Config = figment.extract().map_err(Problems::from_figment)?;
    check::check(&config, known)?;
    Ok(config)
}

/// Files that variables of the environment name as credentials for object stores.
pub fn credential_files() -> Vec<PathBuf> {
    const NAMES: [&str; 5] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "AZURE_FEDERATED_TOKEN_FILE",
    ];
    NAMES
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .collect()
}

/// Whether a variable is one that Kubernetes makes of a Service: `X_SERVICE_HOST`, `X_PORT_80_TCP_ADDR` and the like.
fn is_service_link(key: &str) -> bool {
    if !key.starts_with("RINGFENCE_") || key.contains("__") {
        return false;
    }
    let ends_with_port = |rest: &str| {
        rest.is_empty()
            || rest.strip_prefix('_').is_some_and(|rest| {
                let mut parts = rest.split('_');
                parts
                    .next()
                    .is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()))
                    && parts
                        .next()
                        .is_some_and(|p| matches!(p, "TCP" | "UDP" | "SCTP"))
                    && parts
                        .next()
                        .is_none_or(|p| matches!(p, "PROTO" | "PORT" | "ADDR"))
                    && parts.next().is_none()
            })
    };
    key.ends_with("_SERVICE_HOST")
        || key.contains("_SERVICE_PORT")
        || key
            .match_indices("_PORT")
            .any(|(at, found)| ends_with_port(&key[at + found.len()..]))
}
