//! The context of a distributed trace, as the W3C recommendation "Trace Context" has it: which
//! trace a call belongs to, which span of its caller it is a part of, and whether that is recorded.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

/// Bytes of a `traceparent` of version 00, which one of a later version begins with.
const PARENT_BYTES: usize = 55;
/// The version of `traceparent` that is known here.
const KNOWN_VERSION: &[u8] = b"00";
/// A version that no `traceparent` may have.
const INVALID_VERSION: &[u8] = b"ff";
/// The flag of a `traceparent` which says that its caller records the trace.
const SAMPLED: u8 = 1;
/// The most members of a `tracestate`.
const STATE_MEMBERS: usize = 32;
/// The most bytes of a `tracestate` that are passed on.
const STATE_BYTES: usize = 512;
/// Members with more bytes than this are the first to be left out of a `tracestate` that is too
/// long.
const LONG_MEMBER_BYTES: usize = 128;

/// The id of a trace, which is never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(NonZeroU128);

/// The id of a span within its trace, which is never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(NonZeroU64);

/// The context that a caller gives with its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace that the call belongs to.
    pub trace_id: TraceId,
    /// The caller's span, which the call is a part of.
    pub parent: SpanId,
    /// Whether the caller records the trace, and expects that of others.
    pub is_sampled: bool,
    /// What the vendors of tracing systems pass on to each other (`tracestate`), within the bounds
    /// of the recommendation; `None` where there is nothing valid.
    pub state: Option<Box<str>>,
}

impl TraceId {
    /// How many values the random bits of an id have.
    pub const RANDOM_RANGE: u128 = 1 << 56;

    /// Creates the id of that number; `None` for zero.
    pub const fn new(number: u128) -> Option<Self> {
        match NonZeroU128::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the bytes of the id, as they are on the wire.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    /// Returns the 56 bits of the id that have to be random, by which it is decided whether a trace
    /// is recorded.
    pub const fn random_bits(self) -> u128 {
        self.0.get() % Self::RANDOM_RANGE
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SpanId {
    /// Creates the id of that number; `None` for zero.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the bytes of the id, as they are on the wire.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl TraceContext {
    /// Parses the headers `traceparent` and `tracestate`, of which the second may be split over
    /// several values. Returns `None` for a `traceparent` that is not valid, which the
    /// recommendation treats as if it was not there. A `tracestate` that is not valid is left out.
    pub fn parse<'a>(parent: &[u8], state: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let fields = parent.get(..PARENT_BYTES)?;
        let [version, trace_id, span_id, flags] = [
            fields.get(..2)?,
            fields.get(3..35)?,
            fields.get(36..52)?,
            fields.get(53..)?,
        ];
        let is_separated = [2, 35, 52].into_iter().all(|at| fields[at] == b'-');
        // A later version may add fields, which are not read.
        let rest = &parent[PARENT_BYTES..];
        let is_known = version == KNOWN_VERSION;
        let ends_well = rest.is_empty() || (!is_known && rest[0] == b'-');
        if !is_separated || !ends_well || version == INVALID_VERSION {
            return None;
        }
        hexadecimal(version)?;
        Some(Self {
            trace_id: TraceId::new(hexadecimal(trace_id)?)?,
            parent: SpanId::new(u64::try_from(hexadecimal(span_id)?).ok()?)?,
            is_sampled: u8::try_from(hexadecimal(flags)?).ok()? & SAMPLED != 0,
            state: trace_state(state),
        })
    }
}

/// Parses digits as a number. The recommendation allows no upper-case ones.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !digits.iter().all(is_digit) {
        return None;
    }
    u128::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
}

/// Joins the values of `tracestate`, and leaves members out until it is short enough: long ones
/// first, then those at the end, which were added the longest ago.
fn trace_state<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<Box<str>> {
    let mut members = Vec::new();
    for value in values {
        for member in str::from_utf8(value).ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            let is_plain = member.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if key.is_empty() || value.is_empty() || !is_plain || members.len() == STATE_MEMBERS {
                return None;
            }
            members.push(member);
        }
    }
    let joined = |members: &[&str]| -> usize { members.iter().map(|it| it.len() + 1).sum() };
    while joined(&members) > STATE_BYTES + 1 {
        let long = members.iter().rposition(|it| it.len() > LONG_MEMBER_BYTES);
        members.remove(long.unwrap_or(members.len() - 1));
    }
    (!members.is_empty()).then(|| members.join(",").into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(parent: &str, state: &[&str]) -> Option<TraceContext> {
        TraceContext::parse(parent.as_bytes(), state.iter().map(|it| it.as_bytes()))
    }

    #[test]
    fn a_parent_has_its_ids_and_flags() {
        let parsed = parse(PARENT, &[]).unwrap();
        assert_eq!(
            parsed.trace_id.to_string(),
            "0af7651916cd43dd8448eb211c80319c"
        );
        assert_eq!(parsed.parent, SpanId::new(0xb7ad_6b71_6920_3331).unwrap());
        assert!(parsed.is_sampled && parsed.state.is_none());
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = format!("{}{flags}", &PARENT[..53]);
            assert_eq!(parse(&text, &[]).unwrap().is_sampled, is_sampled, "{flags}");
        }
    }

    #[test]
    fn what_is_not_valid_is_ignored() {
        let zero_trace = format!("00-{:032}-b7ad6b7169203331-01", 0);
        let zero_span = format!("00-0af7651916cd43dd8448eb211c80319c-{:016}-01", 0);
        for text in [
            "",
            &PARENT[..54],
            &PARENT.to_uppercase(),
            &PARENT.replace('-', "_"),
            &PARENT.replace("01", "0g"),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.replacen("00", "0x", 1),
            &format!("{PARENT}-00"),
            &format!("{PARENT} "),
            &format!(" {PARENT}"),
            &PARENT.replace("0af7", "+af7"),
            &zero_trace,
            &zero_span,
        ] {
            assert_eq!(parse(text, &["a=b"]), None, "{text}");
        }
    }

    #[test]
    fn of_a_later_version_the_known_fields_are_read() {
        let later = PARENT.replacen("00", "cc", 1);
        let known = parse(PARENT, &[]);
        assert_eq!(parse(&later, &[]), known);
        assert_eq!(parse(&format!("{later}-what-comes"), &[]), known);
        assert_eq!(parse(&format!("{later}."), &[]), None);
    }

    #[test]
    fn a_state_is_joined_and_bounded() {
        let state = |values: &[&str]| parse(PARENT, values).unwrap().state;
        assert_eq!(
            state(&["a=1, b=2", "", "c@d=3"]).as_deref(),
            Some("a=1,b=2,c@d=3")
        );
        for bad in ["a", "a=", "=1", "a=\u{e9}", "a=1,\u{7}=2"] {
            assert_eq!(state(&[bad]), None, "{bad}");
        }
        let members = |count: usize| vec!["k=v"; count].join(",");
        assert_eq!(state(&[&members(32)]).unwrap().len(), 32 * 4 - 1);
        assert_eq!(state(&[&members(33)]), None);
        let long = format!("long={}", "x".repeat(200));
        let short = "short=".to_owned() + &"y".repeat(100);
        let all = [&*short, &long, &short, &short, &short].join(",");
        let kept = state(&[&all]).unwrap();
        assert_eq!(kept, [&*short; 4].join(",").into());
        let kept = state(&[&[&*short; 6].join(",")]).unwrap();
        assert_eq!(kept, [&*short; 4].join(",").into());
    }

    proptest! {
        #[test]
        fn what_is_written_as_it_should_be_is_read_and_nothing_panics(
            trace_id in 1_u128..,
            span_id in 1_u64..,
            flags: u8,
            noise in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let text = format!("00-{trace_id:032x}-{span_id:016x}-{flags:02x}");
            let parsed = TraceContext::parse(text.as_bytes(), [&*noise]).unwrap();
            prop_assert_eq!(parsed.trace_id.to_bytes(), trace_id.to_be_bytes());
            prop_assert_eq!(parsed.parent.to_bytes(), span_id.to_be_bytes());
            prop_assert_eq!(parsed.is_sampled, flags % 2 == 1);
            prop_assert!(parsed.state.is_none_or(|state| state.len() <= STATE_BYTES));
            prop_assert_eq!(TraceContext::parse(&noise, []), None);
        }
    }
}
