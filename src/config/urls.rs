//! The text forms of places: module stores, registries and collectors.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::Url;

/// Where modules are kept: "memory:", "file:///folder", or a folder in an object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreUrl {
    /// In the daemon's memory.
    Memory,
    /// In this folder of the host.
    Directory(PathBuf),
    /// In an object store, with a URL of "s3://", "gs://" or "az://".
    Objects(Url),
}

impl StoreUrl {
    fn parse(text: &str) -> Option<Self> {
        if text == "memory:" {
            return Some(Self::Memory);
        }
        let url = Url::parse(text).ok()?;
        let plain = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        match url.scheme() {
            "file" if plain && url.host().is_none() => {
                let path = url.to_file_path().ok()?;
                (path.components().count() > 1).then_some(Self::Directory(path))
            }
            "s3" | "gs" | "az" if plain && url.has_host() && url.port().is_none() => {
                Some(Self::Objects(url))
            }
            _ => None,
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Directory(path) => write!(f, "file://{}", path.display()),
            Self::Objects(url) => f.write_str(url.as_str()),
        }
    }
}

impl<'de> Deserialize<'de> for StoreUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const ALLOWED: &str = "\"memory:\", \"file:///folder\", \"s3://bucket/prefix\", \"gs://bucket/prefix\" or \"az://container/prefix\", without credentials";
        let text = String::deserialize(from)?;
        // The text is not shown, because it may hold credentials.
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("must be {ALLOWED}")))
    }
}

impl Serialize for StoreUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where ended runs are archived: a folder, a folder in an object store, or nowhere ("").
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ArchiveUrl(pub Option<StoreUrl>);

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |url| url.fmt(f))
    }
}

impl<'de> Deserialize<'de> for ArchiveUrl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const ALLOWED: &str = "\"file:///folder\", \"s3://bucket/prefix\", \"gs://bucket/prefix\", \"az://container/prefix\", without credentials, or \"\"";
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        match StoreUrl::parse(&text) {
            Some(url) if url != StoreUrl::Memory => Ok(Self(Some(url))),
            // The text is not shown, because it may hold credentials.
            _ => Err(de::Error::custom(format!("must be {ALLOWED}"))),
        }
    }
}

impl Serialize for ArchiveUrl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A registry, written as "host", "host:port", or "http://host:port" for one that speaks plain
/// HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryHost {
    /// The address, as "host" or "host:port".
    pub host: String,
    /// Whether the registry speaks plain HTTP rather than HTTPS.
    pub plain: bool,
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.plain { "http://" } else { "" };
        write!(f, "{scheme}{}", self.host)
    }
}

impl<'de> Deserialize<'de> for RegistryHost {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const ALLOWED: &str = "\"host\", \"host:port\", or \"http://host:port\" for plain HTTP";
        let text = String::deserialize(from)?;
        let (plain, host) = match text.strip_prefix("http://") {
            Some(host) => (true, host),
            None => (false, text.as_str()),
        };
        let is_host = !host.is_empty()
            && host
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b));
        if !is_host {
            let found = de::Unexpected::Str(&text);
            return Err(de::Error::invalid_value(found, &ALLOWED));
        }
        Ok(Self {
            host: host.to_owned(),
            plain,
        })
    }
}

impl Serialize for RegistryHost {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// The collector that traces and output are exported to, written as "http://host:port" or
/// "https://host:port"; the empty text means none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtlpEndpoint(Option<Url>);

impl OtlpEndpoint {
    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self(None));
        }
        let url = Url::parse(text).ok()?;
        let is_plain = url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && url.path() == "/";
        let is_known = matches!(url.scheme(), "http" | "https") && url.has_host();
        (is_known && is_plain && url.port() != Some(0)).then_some(Self(Some(url)))
    }

    /// Returns the URL of the collector; `None` where there is none.
    pub fn url(&self) -> Option<&Url> {
        self.0.as_ref()
    }
}

impl fmt::Display for OtlpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.as_ref().map_or("", Url::as_str);
        f.write_str(text.strip_suffix('/').unwrap_or(text))
    }
}

impl<'de> Deserialize<'de> for OtlpEndpoint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        const ALLOWED: &str = "\"http://host:port\" or \"https://host:port\" without a path and without credentials, or empty";
        let text = String::deserialize(from)?;
        // The text is not shown, because it may hold credentials.
        Self::parse(&text).ok_or_else(|| de::Error::custom(format!("must be {ALLOWED}")))
    }
}

impl Serialize for OtlpEndpoint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
