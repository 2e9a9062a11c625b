//! Reads how long a caller waits for its answer from the header `grpc-timeout`.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::refusal::{Reason, Refusal, quote};

/// The name of the header. HTTP/2 clients always send header names in lower case.
const HEADER: HeaderName = HeaderName::from_static("grpc-timeout");
/// The time that an answer needs to reach its caller before the caller gives up, on a busy machine.
/// A fifth of the caller's timeout is used instead if that is less.
const WAY_HOME: Duration = Duration::from_millis(250);

/// When a request's headers arrived, and how long its caller waits from then on.
#[derive(Clone, Debug)]
pub(in crate::api) struct CallTiming {
    /// When the headers arrived. A deadline counts from here, not from the last byte of the
    /// message.
    pub(in crate::api) at: Instant,
    pub(in crate::api) timeout: CallTimeout,
}

/// The timeout that a request's headers give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::api) enum CallTimeout {
    /// There is no such header: the caller waits as long as it takes.
    Unset,
    /// The caller waits this long after its headers arrived.
    After(Duration),
    /// The header is no valid timeout, or is given more than once; the text describes it for the
    /// refusal.
    Malformed(Box<str>),
}

impl CallTiming {
    /// Records that a request with these headers arrives now.
    pub(in crate::api) fn now(headers: &HeaderMap) -> Self {
        Self {
            at: Instant::now(),
            timeout: CallTimeout::of(headers),
        }
    }

    /// Returns when the caller gives up; `None` if it never does, or if that is too far away to be
    /// represented.
    ///
    /// # Errors
    /// `MALFORMED_REQUEST` if the header is no valid timeout.
    pub(in crate::api) fn deadline(&self) -> Result<Option<Instant>, Refusal> {
        let timeout = self.timeout.duration()?;
        Ok(timeout.and_then(|timeout| self.at.checked_add(timeout)))
    }

    /// Returns when an answer has to be on its way, so that it reaches the caller before the caller
    /// gives up. It is `None` where [`Self::deadline`] is.
    ///
    /// # Errors
    /// The errors of [`Self::deadline`].
    pub(in crate::api) fn response_deadline(&self) -> Result<Option<Instant>, Refusal> {
        let timeout = self.timeout.duration()?;
        let less = |timeout: Duration| timeout - (timeout / 5).min(WAY_HOME);
        Ok(timeout.and_then(|timeout| self.at.checked_add(less(timeout))))
    }
}

impl CallTimeout {
    /// Reads the timeout from the headers of a request.
    pub(in crate::api) fn of(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next() else {
            return Self::Unset;
        };
        if values.next().is_some() {
            return Self::Malformed("given more than once".into());
        }
        match parse(value.as_bytes()) {
            Some(timeout) => Self::After(timeout),
            None => Self::Malformed(shown(value)),
        }
    }

    fn duration(&self) -> Result<Option<Duration>, Refusal> {
        match self {
            Self::Unset => Ok(None),
            Self::After(timeout) => Ok(Some(*timeout)),
            Self::Malformed(shown) => Err(Refusal::new(
                Reason::MalformedRequest,
                format!(
                    "the header {HEADER}, {shown}, is not up to 8 digits and one of H M S m u n"
                ),
            )
            .with("header", HEADER)),
        }
    }
}

/// Quotes the value of an invalid header, for the refusal.
fn shown(value: &HeaderValue) -> Box<str> {
    let text = String::from_utf8_lossy(value.as_bytes());
    format!("\"{}\"", quote(&text)).into()
}

/// Parses a timeout in gRPC's format: up to eight digits and a unit.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let mut n: u64 = 0;
    for digit in digits {
        n = n * 10 + u64::from(char::from(*digit).to_digit(10)?);
    }
    match unit {
        b'H' => Some(Duration::from_secs(n * 3600)),
        b'M' => Some(Duration::from_secs(n * 60)),
        b'S' => Some(Duration::from_secs(n)),
        b'm' => Some(Duration::from_millis(n)),
        b'u' => Some(Duration::from_micros(n)),
        b'n' => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(values: &[&'static str]) -> CallTimeout {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(HEADER, HeaderValue::from_static(value));
        }
        CallTimeout::of(&headers)
    }

    #[test]
    fn every_unit_is_taken_and_what_is_no_time_is_told() {
        for (text, expected) in [
            ("1n", Duration::from_nanos(1)),
            ("20u", Duration::from_micros(20)),
            ("0m", Duration::ZERO),
            ("050m", Duration::from_millis(50)),
            ("1S", Duration::from_secs(1)),
            ("2M", Duration::from_secs(120)),
            ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ] {
            assert_eq!(timeout(&[text]), CallTimeout::After(expected), "{text}");
        }
        assert_eq!(timeout(&[]), CallTimeout::Unset);
        for text in [
            "",
            "5",
            "S",
            "123456789S",
            "1x",
            "-1S",
            "+1S",
            "1 S",
            "1s",
            "1.5S",
        ] {
            let told = timeout(&[text]).duration().unwrap_err();
            assert!(told.message().contains(&format!("\"{text}\"")), "{told}");
        }
        assert!(timeout(&["1S", "1S"]).duration().is_err());
    }

    #[test]
    fn an_answer_has_to_be_on_its_way_before_its_caller_gives_up() {
        let after = |timeout| CallTiming {
            at: Instant::now(),
            timeout: CallTimeout::After(timeout),
        };
        for (timeout, way_home) in [(100, 20), (1000, 200), (60_000, 250)] {
            let arrived = after(Duration::from_millis(timeout));
            let (deadline, answer) = (arrived.deadline(), arrived.response_deadline());
            let before = deadline.unwrap().unwrap() - answer.unwrap().unwrap();
            assert_eq!(before, Duration::from_millis(way_home));
        }
        let never = after(Duration::from_secs(u64::MAX));
        assert_eq!(never.response_deadline().unwrap(), None);
    }
}
