//! How values are written: sizes, durations, octal modes, and flags' bare words.

use std::time::Duration;

use figment::value::Value;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written "64KiB" or as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// As a `usize`; a size that does not fit is held in full by no machine that runs this.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let allowed = "a size such as \"64KiB\", \"4MiB\" or a number of bytes";
        match Written::deserialize(from) {
            Ok(Written::Number(bytes)) => Ok(Self(bytes)),
            Ok(Written::Text(text)) => text
                .parse::<bytesize::ByteSize>()
                .map(|size| Self(size.as_u64()))
                .map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &allowed)),
            Err(_) => Err(de::Error::custom(format!("expected {allowed}"))),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A length of time, written "250ms", "30s", "5m".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let allowed = "a duration with its unit, such as \"250ms\", \"30s\" or \"5m\"";
        match Written::deserialize(from) {
            Ok(Written::Text(text)) => humantime::parse_duration(&text)
                .map(Self)
                .map_err(|_| de::Error::invalid_value(de::Unexpected::Str(&text), &allowed)),
            Ok(Written::Number(n)) => Err(de::Error::invalid_value(
                de::Unexpected::Unsigned(n),
                &allowed,
            )),
            Err(_) => Err(de::Error::custom(format!("expected {allowed}"))),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Permission bits, written in octal, "0660".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode(pub u32);

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // The environment hands "0660" over as the number 660: its digits are what was written.
        let text = text(from)?;
        u32::from_str_radix(&text, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .map(Self)
            .ok_or_else(|| {
                de::Error::invalid_value(
                    de::Unexpected::Str(&text),
                    &"octal permissions from \"0000\" to \"0777\"",
                )
            })
    }
}

impl Serialize for Mode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Reads a string that the environment may hand over as a number.
pub(super) fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Written::deserialize(from)? {
        Written::Number(n) => n.to_string(),
        Written::Text(text) => text,
    })
}

/// The value of a `--set key=value`: TOML where it is, else the text itself, so that `30s` needs no quotes.
pub(super) fn parse_flag(value: &str) -> Value {
    // One value and nothing behind it: of "1\nlisten = []" the whole is the text.
    toml::de::ValueDeserializer::parse(value)
        .and_then(<Value as Deserialize>::deserialize)
        .unwrap_or_else(|_| Value::from(value))
}
