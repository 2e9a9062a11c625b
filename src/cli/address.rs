//! The address of a daemon, as `--server` and `RINGFENCE_SERVER` give it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;

use super::Failure;
use crate::model::refusal::quote;

/// The address that is used when none is given.
pub(super) const DEFAULT_SERVER: &str = "127.0.0.1:50051";
/// The port of an address without one, unless its scheme has a port of its own.
const DEFAULT_PORT: u16 = 50051;
/// Most bytes in a unix socket's path: `sockaddr_un` holds this many and a terminator.
const MAX_SOCKET_PATH: usize = 107;

const ALLOWED: &str =
    "\"host:port\", \"https://host:port\", \"http://host:port\" or \"unix:/path\"";

/// The parsed address of a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerAddress {
    /// A TCP address. `tls` is what its scheme says about encryption, and `None` without a scheme
    /// that says so.
    Tcp {
        host: String,
        port: u16,
        tls: Option<bool>,
    },
    /// The path of a unix socket, which is never encrypted.
    Unix(PathBuf),
}

impl ServerAddress {
    /// Parses an address in any of its forms.
    ///
    /// # Errors
    /// Returns what is wrong with it, and what is allowed.
    pub(super) fn parse(given: &str) -> Result<Self, Failure> {
        let text = given.trim();
        parse(text).map_err(|why| {
            // The part before an "@" may be a password.
            let shown = match text.contains('@') {
                true => String::new(),
                false => format!(" \"{}\"", quote(text)),
            };
            Failure::new(format!(
                "--server (RINGFENCE_SERVER){shown} {why}; the allowed forms are {ALLOWED}"
            ))
        })
    }

    /// Returns the `:authority` of requests; `name` replaces the host where it is given.
    pub(super) fn authority(&self, name: Option<&str>) -> String {
        match self {
            Self::Tcp { host, port, .. } => {
                // The zone of an IPv6 address has a meaning on this host only.
                let host = host.split('%').next().unwrap_or(host);
                authority(name.unwrap_or(host), *port)
            }
            // Other gRPC clients use this host on a unix socket.
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, .. } => f.write_str(&authority(host, *port)),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

fn parse(text: &str) -> Result<ServerAddress, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some(rest) = after(text, "unix:") {
        return unix(rest);
    }
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("has a blank or a control character in it".to_owned());
    }
    if text.starts_with(['/', '.', '~']) {
        return Err("is a path; a unix socket is written \"unix:PATH\"".to_owned());
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme.to_ascii_lowercase().as_str() {
            "http" => tcp(rest, 80, Some(false)),
            "https" => tcp(rest, 443, Some(true)),
            // This is gRPC's form of a host name: an empty authority, then the name.
            "dns" => match rest.split_once('/') {
                Some(("", name)) => tcp(name, DEFAULT_PORT, None),
                Some(_) => Err(
                    "names a DNS server, which this client cannot choose; write \"dns:///host:port\""
                        .to_owned(),
                ),
                None => Err("names no host; write \"dns:///host:port\"".to_owned()),
            },
            scheme => Err(format!("has the unknown scheme \"{}\"", quote(scheme))),
        };
    }
    for scheme in ["dns:", "ipv4:", "ipv6:"] {
        // The text "dns:50051" is a host and its port.
        if let Some(name) = after(text, scheme)
            && !name.bytes().all(|b| b.is_ascii_digit())
        {
            return tcp(name, DEFAULT_PORT, None);
        }
    }
    if after(text, "unix-abstract:").is_some() {
        return Err("is an abstract socket, which the daemon does not listen on".to_owned());
    }
    tcp(text, DEFAULT_PORT, None)
}

/// Returns what follows `start`, which may be written in upper or lower case.
fn after<'a>(text: &'a str, start: &str) -> Option<&'a str> {
    let head = text.get(..start.len())?;
    head.eq_ignore_ascii_case(start)
        .then(|| &text[start.len()..])
}

/// Parses the path of a unix socket: "/path", "path", or "///path", which is how gRPC writes an
/// absolute one.
fn unix(rest: &str) -> Result<ServerAddress, String> {
    let path = match rest.strip_prefix("//") {
        Some(path) if path.starts_with('/') => path,
        Some(_) => {
            return Err("names a host; write \"unix:/path\" or \"unix:///path\"".to_owned());
        }
        None => rest,
    };
    if path.is_empty() {
        return Err("names no socket".to_owned());
    }
    if path.contains('\0') {
        return Err("has a control character in it".to_owned());
    }
    if path.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "has a path of {} bytes, but the path of a socket has at most {MAX_SOCKET_PATH}",
            path.len()
        ));
    }
    Ok(ServerAddress::Unix(PathBuf::from(path)))
}

/// Parses a TCP address: `host`, `host:port` or `[address]:port`, with or without a "/" at the end.
fn tcp(rest: &str, default: u16, tls: Option<bool>) -> Result<ServerAddress, String> {
    if rest.contains('@') {
        return Err("has a user before \"@\"; credentials go into --token-file".to_owned());
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (place, path) = rest.split_at(end);
    if !path.chars().all(|c| c == '/') {
        return Err(format!(
            "has \"{}\" after its port, which means nothing to gRPC",
            quote(path)
        ));
    }
    let (host, port) = host_and_port(place)?;
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    if !host.is_ascii() {
        return Err(
            "has a host that is not ASCII; write it in Punycode, as \"xn--...\"".to_owned(),
        );
    }
    if host.bytes().all(|b| b.is_ascii_digit()) {
        return Err("has a number where a host belongs".to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    let is_v6 = host.contains(':');
    if !is_v6 && !host.bytes().all(plain) {
        return Err(format!(
            "has \"{}\" as its host, but a host has only letters, digits, \"-\", \".\" and \"_\"",
            quote(host)
        ));
    }
    let port = match port {
        None => default,
        // Parsing alone would accept a sign before the number.
        Some(digits) => Some(digits)
            .filter(|it| it.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|it| it.parse().ok())
            .filter(|port| *port > 0)
            .ok_or_else(|| {
                let port = quote(digits);
                format!("has \"{port}\" as its port, but a port is a number from 1 to 65535")
            })?,
    };
    Ok(ServerAddress::Tcp {
        host: host.to_owned(),
        port,
        tls,
    })
}

/// Splits a place into its host, without the brackets around an IPv6 address, and its port where
/// there is one.
fn host_and_port(place: &str) -> Result<(&str, Option<&str>), String> {
    let is_v6 = |text: &str| {
        let (address, _zone) = text.split_once('%').unwrap_or((text, ""));
        address.parse::<Ipv6Addr>().is_ok()
    };
    if let Some(rest) = place.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or_else(|| "has a \"[\" without its \"]\"".to_owned())?;
        if !is_v6(address) {
            return Err(format!(
                "has \"{}\" in brackets, which is not an IPv6 address",
                quote(address)
            ));
        }
        return match after {
            "" => Ok((address, None)),
            after => match after.strip_prefix(':') {
                Some(port) => Ok((address, Some(port))),
                None => Err(format!(
                    "has \"{}\" after \"]\", where only a port can follow",
                    quote(after)
                )),
            },
        };
    }
    match place.split_once(':') {
        None => Ok((place, None)),
        Some((_, rest)) if rest.contains(':') => match is_v6(place) {
            true => Ok((place, None)),
            false => Err(
                "has several colons; an IPv6 address with a port is written \"[::1]:50051\""
                    .to_owned(),
            ),
        },
        Some((host, port)) => Ok((host, Some(port))),
    }
}

#[cfg(test)]
mod tests {
    use super::ServerAddress;

    fn read(text: &str) -> String {
        match ServerAddress::parse(text) {
            Ok(address) => {
                let tls = match &address {
                    ServerAddress::Tcp { tls, .. } => *tls,
                    ServerAddress::Unix(_) => None,
                };
                let scheme = match tls {
                    Some(true) => "https://",
                    Some(false) => "http://",
                    None => "",
                };
                format!("{scheme}{address}")
            }
            Err(failure) => panic!("{text}: {}", failure.message),
        }
    }

    #[test]
    fn spellings_of_addresses_mean_what_they_say() {
        for (text, meant) in [
            ("127.0.0.1:50051", "127.0.0.1:50051"),
            ("  host:1\n", "host:1"),
            ("host", "host:50051"),
            ("my_host.example.", "my_host.example.:50051"),
            ("http://host:1", "http://host:1"),
            ("HTTP://host:1/", "http://host:1"),
            ("http://host", "http://host:80"),
            ("https://host/", "https://host:443"),
            ("https://[::1]:9", "https://[::1]:9"),
            ("dns:///host:1", "host:1"),
            ("dns:///host", "host:50051"),
            ("dns:host:1", "host:1"),
            ("dns:1", "dns:1"),
            ("ipv4:10.0.0.1:2", "10.0.0.1:2"),
            ("ipv6:[::1]:2", "[::1]:2"),
            ("::1", "[::1]:50051"),
            ("[::1]", "[::1]:50051"),
            ("[fe80::1%eth0]:7", "[fe80::1%eth0]:7"),
            ("unix:/run/s", "unix:/run/s"),
            ("unix:///run/s", "unix:/run/s"),
            ("unix:s", "unix:s"),
            ("Unix:/a b/s", "unix:/a b/s"),
        ] {
            assert_eq!(read(text), meant, "{text:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_told_precisely() {
        for (text, told) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("a b:1", "has a blank"),
            ("/run/s", "written \"unix:PATH\""),
            ("grpc://host:1", "the unknown scheme \"grpc\""),
            ("dns://8.8.8.8/host", "names a DNS server"),
            ("dns:host:1:2", "several colons"),
            ("host:0", "\"0\" as its port"),
            ("host:65536", "\"65536\" as its port"),
            ("host:+1", "\"+1\" as its port"),
            ("host:", "\"\" as its port"),
            ("http:host", "\"host\" as its port"),
            (":50051", "names no host"),
            ("https:///", "names no host"),
            ("50051", "a number where a host belongs"),
            ("::1:50051", "\"[::1]:50051\""),
            ("[::1", "without its \"]\""),
            ("[host]:1", "not an IPv6 address"),
            ("[::1]1", "after \"]\""),
            ("host:1/path", "\"/path\" after its port"),
            ("https://host?x", "\"?x\" after its port"),
            ("h\u{f6}st:1", "xn--"),
            ("a,b", "\"a,b\" as its host"),
            ("unix:", "names no socket"),
            ("unix://host/s", "names a host"),
            ("unix-abstract:s", "abstract socket"),
        ] {
            let failure = ServerAddress::parse(text).expect_err(text);
            assert!(
                failure.message.contains(told),
                "{text:?}: {}",
                failure.message
            );
            assert!(failure.message.contains("RINGFENCE_SERVER"), "{text:?}");
        }
        let failure = ServerAddress::parse("https://me:secret@host").expect_err("a user");
        assert!(!failure.message.contains("secret"), "{}", failure.message);
        let long = format!("unix:/{}", "x".repeat(107));
        let failure = ServerAddress::parse(&long).expect_err("a long path");
        assert!(failure.message.contains("a path of 108 bytes"));
    }
}
