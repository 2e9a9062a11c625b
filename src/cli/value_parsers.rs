//! Parsers for the values of command line arguments.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, SystemTime};

use clap::builder::{OsStringValueParser, TypedValueParser};

use super::Failure;
use crate::api::proto::Mount;
use crate::model::refusal::printable;

/// Creates a parser for UTF-8 text. The wire carries nothing else, and clap's own error does not
/// say which argument is not UTF-8.
pub(super) fn text() -> impl TypedValueParser<Value = String> {
    OsStringValueParser::new().try_map(utf8)
}

/// Creates a parser for KEY=VALUE.
pub(super) fn key_value() -> impl TypedValueParser<Value = (String, String)> {
    text().try_map(|text| split_key_value(&text))
}

/// Splits KEY=VALUE at the first equals sign.
///
/// # Errors
/// Returns what is allowed.
pub(super) fn split_key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("it must be KEY=VALUE, and KEY must not be empty".to_owned()),
    }
}

/// Collects the values of `--label`, which a run or a module has one of for each key.
///
/// # Errors
/// Returns which key is given twice: only one of its values could be set or asked for, so both
/// together are a mistake.
pub(super) fn labels(given: &[(String, String)]) -> Result<HashMap<String, String>, Failure> {
    let mut labels = HashMap::with_capacity(given.len());
    for (key, value) in given {
        if labels.insert(key.clone(), value.clone()).is_some() {
            let key = printable(key);
            return Err(Failure::new(format!(
                "--label is given twice with the key \"{key}\", and one key has only one value"
            )));
        }
    }
    Ok(labels)
}

/// Creates a parser for a mount, written as `HOST:GUEST[:ro]`.
pub(super) fn mount() -> impl TypedValueParser<Value = Mount> {
    text().try_map(|text| read_mount(&text))
}

fn utf8(given: OsString) -> Result<String, String> {
    given
        .into_string()
        .map_err(|given| format!("{given:?} is not UTF-8, and only UTF-8 can be passed on"))
}

/// Parses a mount. The guest's path is absolute, so that a host path may have colons. The host path
/// is made absolute here, where the caller's working directory is known.
fn read_mount(text: &str) -> Result<Mount, String> {
    const ALLOWED: &str = "it must be HOST:GUEST or HOST:GUEST:ro, where GUEST is an absolute path, as in \"data:/data:ro\"";
    let (paths, read_only) = match text.strip_suffix(":ro") {
        Some(paths) => (paths, true),
        None => (text, false),
    };
    let (host, guest) = match paths.find(":/") {
        Some(at) => (&paths[..at], &paths[at + 1..]),
        // The daemon reports what is wrong with the guest's path.
        None => paths.split_once(':').ok_or(ALLOWED)?,
    };
    if host.is_empty() || guest.is_empty() {
        return Err(ALLOWED.to_owned());
    }
    let host = if Path::new(host).is_absolute() {
        host.to_owned()
    } else {
        let path =
            std::fs::canonicalize(host).map_err(|error| format!("cannot find {host}: {error}"))?;
        utf8(path.into_os_string())?
    };
    Ok(Mount {
        host_path: host,
        guest_path: guest.to_owned(),
        read_only,
    })
}

/// Parses a number of bytes, from 1 to less than 4 GiB.
pub(super) fn size(text: &str) -> Result<u32, String> {
    const ALLOWED: &str = "it must be a number of bytes, or a size such as \"64KiB\" or \"1MiB\"";
    // The library's own message names its type.
    let size: bytesize::ByteSize = text.parse().map_err(|_: String| ALLOWED)?;
    // On the wire, zero stands for the default, which nobody means who writes it.
    match u32::try_from(size.as_u64()) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err("it must be at least 1 byte and less than 4 GiB".to_owned()),
    }
}

/// Parses a duration, which must be longer than zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be longer than zero, as in \"500ms\"".to_owned()),
        duration => Ok(duration),
    }
}

/// Parses a duration that may be zero.
pub(super) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| {
        format!("{error}; write numbers with their units, as in \"500ms\", \"10s\" or \"2m\"")
    })
}

/// Parses a number of things, which is at least 1.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        Ok(_) | Err(_) => Err("it must be a number, and at least 1".to_owned()),
    }
}

/// Parses a time: how long ago it was, or the time itself as RFC 3339 writes it.
pub(super) fn point_in_time(text: &str) -> Result<SystemTime, String> {
    time_before(text, SystemTime::now())
}

/// Parses a time as [`point_in_time`] does, where it is `now`.
fn time_before(text: &str, now: SystemTime) -> Result<SystemTime, String> {
    const ALLOWED: &str = "it must be how long ago it was, as in \"90s\", \"2h\" or \"3days\", or a time from 1970 on, as in \"2026-01-31T12:00:00Z\" or \"2026-01-31T13:00:00+01:00\"";
    let at = match humantime::parse_duration(text) {
        Ok(ago) => now.checked_sub(ago),
        Err(_) => rfc3339(text),
    };
    let at = at.filter(|at| *at >= SystemTime::UNIX_EPOCH);
    at.ok_or_else(|| ALLOWED.to_owned())
}

/// Parses a time as RFC 3339 writes it, with any offset; `None` where it is none.
fn rfc3339(text: &str) -> Option<SystemTime> {
    let utc = |clock: &str| humantime::parse_rfc3339(&format!("{clock}Z")).ok();
    if let Some(clock) = text.strip_suffix('Z') {
        return utc(clock);
    }
    let (clock, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let digits = |text: &str, most: u64| {
        let number = text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_digit());
        let number = number.then(|| text.parse::<u64>().ok()).flatten();
        number.filter(|number| *number <= most)
    };
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let offset_minutes = 60 * digits(hours, 23)? + digits(minutes, 59)?;
    let apart = Duration::from_secs(60 * offset_minutes);
    match offset.as_bytes().first()? {
        // East of Greenwich, clocks are ahead.
        b'+' => utc(clock)?.checked_sub(apart),
        b'-' => utc(clock)?.checked_add(apart),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_how_long_ago_it_was_or_itself() {
        let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let now = at(1_800_000_000);
        for (text, seconds) in [
            ("1h", 1_800_000_000 - 3600),
            ("2days 3s", 1_800_000_000 - 2 * 86_400 - 3),
            ("0s", 1_800_000_000),
            ("1970-01-01T00:00:00Z", 0),
            ("2027-01-15T08:00:00Z", 1_800_000_000),
            ("2027-01-15T10:30:00+02:30", 1_800_000_000),
            ("2027-01-15T00:00:00-08:00", 1_800_000_000),
        ] {
            assert_eq!(time_before(text, now), Ok(at(seconds)), "{text}");
        }
        let with_fraction = time_before("2027-01-15T08:00:00.25Z", now);
        assert_eq!(with_fraction, Ok(now + Duration::from_millis(250)));
        for text in [
            "",
            "1",
            "h",
            "-1h",
            "yesterday",
            "2027-01-15",
            "2027-01-15T08:00:00",
            "2027-13-15T08:00:00Z",
            "2027-01-15T08:00:00+24:00",
            "2027-01-15T08:00:00+1:000",
            "2027-01-15T08:00:00 02:00",
            "1970-01-01T00:00:00+00:01",
            "1000years",
            "\u{e9}\u{e9}\u{e9}\u{e9}",
        ] {
            let refused = time_before(text, now).unwrap_err();
            assert!(refused.contains("how long ago"), "{text}: {refused}");
        }
    }

    fn mounted(text: &str) -> Option<(String, String, bool)> {
        let mount = read_mount(text).ok()?;
        Some((mount.host_path, mount.guest_path, mount.read_only))
    }

    #[test]
    fn a_mount_is_split_where_the_guests_path_begins() {
        for (text, host, guest, read_only) in [
            ("/a:/b", "/a", "/b", false),
            ("/a:/b:ro", "/a", "/b", true),
            ("/pci/0000:00:1f.2:/b:ro", "/pci/0000:00:1f.2", "/b", true),
            ("/a=b,c:/d", "/a=b,c", "/d", false),
            ("/a\\b\"c'''\n:/d", "/a\\b\"c'''\n", "/d", false),
            (
                "/e\u{301}\u{a0}:/e\u{301}",
                "/e\u{301}\u{a0}",
                "/e\u{301}",
                false,
            ),
            // The daemon refuses this path, and names its field.
            ("/a:b", "/a", "b", false),
            ("/a::/b", "/a:", "/b", false),
        ] {
            let expected = (host.to_owned(), guest.to_owned(), read_only);
            assert_eq!(mounted(text), Some(expected), "{text:?}");
        }
        for text in ["", ":", "/a", "/a:", ":/b", "/a:ro"] {
            assert_eq!(mounted(text), None, "{text:?}");
        }
    }
}
