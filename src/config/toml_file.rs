//! A configuration file, read once: it may be a pipe, which has what it has only once.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use figment::providers::{Format, Toml};
use figment::value::{Dict, Map};
use figment::{Metadata, Profile, Provider, Source};

use super::check::Problems;

/// Bytes of a configuration at the most: a thousand tenants take a tenth of it.
const MOST: u64 = 4 << 20;

/// What a file says.
pub(super) struct TomlFile {
    /// As it was given, for errors.
    name: String,
    text: String,
}

impl TomlFile {
    /// Reads a file, a pipe or a device to its end.
    pub(super) fn read(path: &Path) -> Result<Self, Problems> {
        let name = path.display().to_string();
        let wrong = |why: &str| {
            let allowed = format!("a TOML file that can be read, or a pipe of one: {why}");
            let given = if name.is_empty() { "\"\"" } else { &name };
            Problems::one("--config", given, allowed)
        };
        let file = File::open(path).map_err(|error| wrong(&error.to_string()))?;
        let mut bytes = Vec::new();
        file.take(MOST + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(&error.to_string()))?;
        if bytes.len() as u64 > MOST {
            return Err(wrong("this is larger than 4 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            wrong(&format!("its byte {at} is not UTF-8"))
        })?;
        Ok(Self { name, text })
    }
}

impl Provider for TomlFile {
    fn metadata(&self) -> Metadata {
        Metadata::from("TOML file", Source::Custom(self.name.clone()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Toml::string(&self.text).data()
    }
}
