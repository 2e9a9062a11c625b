//! The only reader of files and environment: defaults < file < environment < flags.
//!
//! [`load`] gives a [`Config`] that is whole and consistent, or every error at once, each with the variable, the flag or
//! the place in a file that it comes from. No behaviour lives here.

mod callers;
mod changes;
mod check;
mod environment;
mod explain;
mod granted;
mod layers;
mod listeners;
mod log_format;
mod places;
mod reading;
mod schema;
mod threads;
mod tree;
mod trust_store;
mod units;

use std::io::Read;
use std::path::{Path, PathBuf};

pub use callers::DEFAULT_TENANT;
pub(crate) use callers::{is_of_many_things, user_and_group};
pub use check::{Known, Problem, Problems};
pub use environment::{credential_files, provider, variable};
pub(crate) use listeners::listens_by_name;
pub use listeners::socket_addresses;
pub use log_format::log_format;
pub use schema::*;
pub use threads::cores;
pub use toml::Value as SettingValue;
pub(crate) use tree::trimmed;
pub use trust_store::{lacks_authorities, no_trust_store, trust_store};

use self::environment::{Environment, Given};
use self::layers::Layers;
use self::tree::{Content, Setting, SettingOrigin};

/// The defaults, with a line on each: what `config/ringfence.toml` says.
pub const DEFAULTS: &str = include_str!("../../config/ringfence.toml");

/// Bytes of a file at the most; one that has more is no configuration.
const MAX_FILE: u64 = 4 << 20;

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
    /// Addresses to listen on, over all else.
    pub listen: Vec<String>,
    /// Whether environment variables are read.
    pub environment: bool,
}

impl Overrides {
    /// What flags say.
    fn flags(&self) -> Vec<Given> {
        let untyped = |text: &str| Content::Untyped(trimmed(text).to_owned());
        let mut flags: Vec<Given> = self
            .set
            .iter()
            .map(|(key, value)| Given {
                key: key.trim().to_owned(),
                content: untyped(value),
                written: SettingOrigin::Flag(format!("--set {}", key.trim()).into()),
            })
            .collect();
        flags.extend(self.values.iter().map(|(key, value)| Given {
            key: key.clone(),
            content: Setting::from(value.clone()).content,
            written: SettingOrigin::Command,
        }));
        if !self.listen.is_empty() {
            let written = |address: &str| SettingOrigin::Flag(format!("--listen {address}").into());
            let addresses = self.listen.iter().map(|address| Setting {
                content: untyped(address),
                written: written(address),
            });
            flags.push(Given {
                key: "listen".to_owned(),
                content: Content::List(addresses.collect()),
                written: written(&self.listen.join(" --listen ")),
            });
        }
        flags
    }
}

/// Reads and checks the configuration. The second value warns of what was left out.
///
/// # Errors
/// What is wrong, with where it was written, the key, the value and what is allowed. All errors of one kind, of text, of
/// types or of sense, are told at once.
pub fn load(overrides: &Overrides, known: &Known) -> Result<(Config, Vec<String>), Problems> {
    let file = match &overrides.file {
        Some(path) => Some((path.display().to_string(), read_file(path)?)),
        None => None,
    };
    let Environment {
        settings,
        problems,
        warnings,
    } = match overrides.environment {
        true => environment::settings(),
        false => Environment::default(),
    };
    let given = settings.into_iter().chain(overrides.flags()).collect();
    let layers = Layers::new(file, given, problems)?;
    let config = layers.read(known)?;
    if let (true, StoreUrl::Objects(url)) = (overrides.environment, &config.store.url) {
        environment::check_provider(url)?;
    }
    Ok((config, warnings))
}

/// Reads and checks what a file says, over the defaults.
///
/// # Errors
/// As [`load`].
pub fn read(file: &str, known: &Known) -> Result<Config, Problems> {
    let file = ("the file".to_owned(), file.to_owned());
    Layers::new(Some(file), Vec::new(), Vec::new())?.read(known)
}

/// The text of the file that `--config` names.
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
        refused(format!("a TOML file in UTF-8, which line {line} is not"))
    })
}
