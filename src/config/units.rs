//! The text forms of values in the configuration: sizes, durations and octal file modes.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written as "64KiB" or as a plain number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Converts the size to a `usize`. One that does not fit becomes the largest, because no
    /// machine that runs this could hold so much.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        for (unit, name) in UNITS {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A visitor that parses a text, with its own description of what is allowed.
struct TextVisitor<T> {
    allowed: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> de::Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.allowed)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        let found = de::Unexpected::Str(text);
        (self.parse)(text).ok_or_else(|| E::invalid_value(found, &self))
    }
}

/// A visitor that parses a size, which may be a number too.
struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as \"64KiB\", \"4MiB\" or a number of bytes")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
        Ok(Size(bytes))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        let found = de::Unexpected::Str(text);
        Size::parse(text).ok_or_else(|| E::invalid_value(found, &self))
    }
}

impl Size {
    /// Parses "64KiB", "1.5 GiB" or "65536"; `None` also for a size with a unit that is more than
    /// any machine has.
    fn parse(text: &str) -> Option<Self> {
        const TOO_MUCH: u64 = 1 << 63;
        if let Ok(bytes) = text.parse() {
            return Some(Self(bytes));
        }
        let size = text.parse::<bytesize::ByteSize>().ok()?.as_u64();
        // A size that does not fit was saturated by the library.
        (size < TOO_MUCH).then_some(Self(size))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SizeVisitor)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A length of time, written as "250ms", "30s" or "5m".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextVisitor {
            allowed: "a duration with its unit, such as \"250ms\", \"30s\" or \"5m\"",
            parse: |text| humantime::parse_duration(text).ok().map(Self),
        })
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// File permission bits, written in octal, such as "0660".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl<'de> Deserialize<'de> for FileMode {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(TextVisitor {
            allowed: "octal permissions in quotes, from \"0000\" to \"0777\"",
            parse: |text| {
                let digits = text.bytes().all(|byte| byte.is_ascii_digit());
                let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits);
                mode.filter(|mode| *mode <= 0o777).map(Self)
            },
        })
    }
}

impl Serialize for FileMode {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
