//! The configuration, and the only reader of its file and environment. The order of precedence is:
//! defaults < file < environment < flags.
//!
//! [`load`] returns a [`Config`] that is complete and consistent, or every error at once, each with
//! the variable, the flag or the place in a file that it comes from. No behaviour lives here.

mod archive_check;
mod auth_check;
mod changes;
mod check;
mod deserialize;
mod environment;
mod explain;
mod language_check;
mod layers;
mod listeners;
mod log_format;
mod mount_check;
mod policy;
mod policy_check;
mod problems;
mod schema;
mod shown;
mod telemetry_check;
mod threads;
mod tree;
mod units;
mod urls;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use self::auth_check::DEFAULT_TENANT;
pub(crate) use self::auth_check::{is_shared_folder, user_and_group};
pub use self::environment::{credential_files, provider_variables, variable};
pub(crate) use self::listeners::listens_by_name;
pub use self::listeners::socket_addresses;
pub use self::log_format::log_format_before_load;
pub use self::problems::{KnownNames, Problem, Problems};
pub use self::schema::*;
pub use self::threads::cores;
pub(crate) use self::tree::trimmed;
pub use toml::Value as SettingValue;

use self::environment::{EnvironmentSettings, LISTEN_FLAGS, SettingOverride};
use self::layers::ConfigLayers;
use self::tree::{Content, Setting, SettingOrigin};

/// The default configuration, with a comment on each key: the contents of `config/ringfence.toml`.
pub const DEFAULTS: &str = include_str!("../../config/ringfence.toml");

/// Most bytes that a configuration file may have.
const MAX_FILE: u64 = 4 << 20;

/// What the command line says about the configuration.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// A file to read over the defaults; `None` for no file.
    pub file: Option<PathBuf>,
    /// Keys and values from `--set`, in order, which override the file and the environment.
    pub set: Vec<(String, String)>,
    /// Keys and typed values that override those of `set`. They are not parsed again, so that names
    /// with quotes, line breaks or anything else stay as they are.
    pub values: Vec<(String, SettingValue)>,
    /// Addresses to listen on, which override all other sources; empty for no override.
    pub listen: Vec<String>,
    /// Addresses of the admin listener, which override all other sources; empty for no override.
    pub admin_listen: Vec<String>,
    /// Whether settings are read from environment variables.
    pub environment: bool,
}

impl Overrides {
    /// Collects the overrides from flags and from the command itself.
    fn flags(&self) -> Vec<SettingOverride> {
        let untyped = |text: &str| Content::Untyped(trimmed(text).to_owned());
        let mut flags: Vec<SettingOverride> = self
            .set
            .iter()
            .map(|(key, value)| SettingOverride {
                key: key.trim().to_owned(),
                content: untyped(value),
                origin: SettingOrigin::Flag(format!("--set {}", key.trim()).into()),
            })
            .collect();
        flags.extend(self.values.iter().map(|(key, value)| SettingOverride {
            key: key.clone(),
            content: Setting::from(value.clone()).content,
            origin: SettingOrigin::Command,
        }));
        for ((key, flag), addresses) in LISTEN_FLAGS
            .into_iter()
            .zip([&self.listen, &self.admin_listen])
        {
            if addresses.is_empty() {
                continue;
            }
            let written = |told: &str| SettingOrigin::Flag(format!("{flag} {told}").into());
            let parts = addresses.iter().map(|address| Setting {
                content: untyped(address),
                origin: written(address),
            });
            flags.push(SettingOverride {
                key: key.to_owned(),
                content: Content::List(parts.collect()),
                origin: written(&addresses.join(&format!(" {flag} "))),
            });
        }
        flags
    }
}

/// Reads and checks the configuration. The second value holds warnings about what was left out.
///
/// # Errors
/// Returns each problem with the place where it was written, the key, the value and what is
/// allowed. All errors of one stage (syntax, types or consistency) are reported at once.
pub fn load(overrides: &Overrides, known: &KnownNames) -> Result<(Config, Vec<String>), Problems> {
    let file = match &overrides.file {
        Some(path) => Some((path.display().to_string(), read_file(path)?)),
        None => None,
    };
    let EnvironmentSettings {
        settings,
        problems,
        warnings,
    } = match overrides.environment {
        true => environment::settings(),
        false => EnvironmentSettings::default(),
    };
    let given = settings.into_iter().chain(overrides.flags()).collect();
    let layers = ConfigLayers::new(file, given, problems)?;
    let config = layers.read(known)?;
    let places = [
        ("store.url", Some(&config.store.url)),
        ("runs.archive", config.runs.archive.0.as_ref()),
    ];
    for (key, place) in places {
        if let (true, Some(StoreUrl::Objects(url))) = (overrides.environment, place) {
            environment::check_provider_variables(key, url)?;
        }
    }
    Ok((config, warnings))
}

/// Reads and checks the text of a file, over the defaults.
///
/// # Errors
/// Returns the same problems as [`load`].
pub fn read(file: &str, known: &KnownNames) -> Result<Config, Problems> {
    let file = ("the file".to_owned(), file.to_owned());
    ConfigLayers::new(Some(file), Vec::new(), Vec::new())?.read(known)
}

/// Reads the text of the file that `--config` names.
fn read_file(path: &Path) -> Result<String, Problems> {
    let refused = |allowed: String| Problems::one("--config", path.display(), allowed);
    let mut bytes = Vec::new();
    let read =
        std::fs::File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| refused(format!("a readable TOML file ({error})")))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refused(format!("a TOML file of at most {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..valid).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        refused(format!(
            "a TOML file in UTF-8, but line {line} is not UTF-8"
        ))
    })
}
