//! The headers that every request to the collector has, such as a token. They stand in a file, so
//! that no secret is in the configuration, and are never logged.

use std::io::Read;
use std::path::{Path, PathBuf};

use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// Beginnings of names that belong to the protocol.
const RESERVED: [&str; 4] = ["grpc-", "content-type", "te", "user-agent"];

/// Why the file of headers cannot be used. It holds nothing of what is in the file.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.otlp_headers_file: {}: {fault}", path.display())]
pub struct HeadersError {
    path: PathBuf,
    fault: HeaderFault,
}

/// What is wrong with the file of headers.
#[derive(Debug, thiserror::Error)]
enum HeaderFault {
    #[error(transparent)]
    Unreadable(#[from] std::io::Error),
    #[error("it is larger than {MAX_FILE} bytes")]
    TooLarge,
    #[error("it is not text in UTF-8")]
    NotText,
    #[error(
        "line {0} is not a header: it must be a name, a colon and a value, such as \"authorization: Bearer ...\", of printable ASCII"
    )]
    NotAHeader(usize),
    #[error(
        "line {0} names a header of the protocol: names may not be content-type, te or user-agent, nor begin with grpc-, nor end with -bin"
    )]
    Reserved(usize),
}

impl HeadersError {
    /// Creates the error of a file whose reading did not come to its end.
    pub(super) fn interrupted(path: &Path, cause: std::io::Error) -> Self {
        Self {
            path: path.to_owned(),
            fault: HeaderFault::Unreadable(cause),
        }
    }
}

/// Reads the headers of a file: one a line, as "name: value". Empty lines, and those that begin
/// with "#", are left out.
///
/// # Errors
/// The file cannot be read, or a line is no header; the error names the line and shows nothing of
/// it.
pub(super) fn read_headers(path: &Path) -> Result<MetadataMap, HeadersError> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(HeaderFault::TooLarge);
        }
        let text = str::from_utf8(&bytes).map_err(|_| HeaderFault::NotText)?;
        parse(text)
    };
    read().map_err(|fault| HeadersError {
        path: path.to_owned(),
        fault,
    })
}

fn parse(text: &str) -> Result<MetadataMap, HeaderFault> {
    let mut headers = MetadataMap::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.trim();
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let (name, value) = text.split_once(':').ok_or(HeaderFault::NotAHeader(line))?;
        let name = name.trim().to_ascii_lowercase();
        let is_reserved = RESERVED
            .iter()
            .any(|reserved| match reserved.ends_with('-') {
                true => name.starts_with(reserved),
                false => name == *reserved,
            });
        if is_reserved || name.ends_with("-bin") {
            return Err(HeaderFault::Reserved(line));
        }
        let name = name.parse::<MetadataKey<Ascii>>();
        let value = value.trim().parse::<MetadataValue<Ascii>>();
        let (Ok(name), Ok(mut value)) = (name, value) else {
            return Err(HeaderFault::NotAHeader(line));
        };
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_one_a_line() {
        let text = "# for the collector\n\nAuthorization: Bearer a:b \nx-scope:one\r\n";
        let headers = parse(text).unwrap();
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.get("authorization").unwrap(), "Bearer a:b");
        assert_eq!(headers.get("x-scope").unwrap(), "one");
        // Nothing of a value is shown.
        assert!(!format!("{headers:?}").contains("Bearer"));
    }

    #[test]
    fn what_is_no_header_is_told_by_its_line_and_not_shown() {
        let told = |text: &str| parse(text).unwrap_err().to_string();
        for text in [
            "secret",
            "a: b\n: secret",
            "na me: secret",
            "a: sec\u{7}ret",
        ] {
            let line = format!("line {} is not a header", text.lines().count());
            let told = told(text);
            assert!(
                told.starts_with(&line) && !told.contains("secret"),
                "{told}"
            );
        }
        for name in ["grpc-timeout", "TE", "Content-Type", "x-bin", "user-agent"] {
            let told = told(&format!("{name}: secret"));
            assert!(
                told.contains("line 1 names a header of the protocol"),
                "{told}"
            );
        }
        // Only names that are the protocol's.
        assert_eq!(parse("team: a\nterm: b").unwrap().len(), 2);
    }
}
