//! The id that names a run, and its text form.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::{Duration, SystemTime};

use super::hex;
use crate::model::refusal::{Refusal, quote};

/// Hexadecimal digits of a run's number.
const DIGITS: usize = 32;
/// The most bytes of an instance's name, which the setting `server.instance` keeps to as well.
const MAX_INSTANCE: usize = 64;
/// The bits of a number after its time, which is in milliseconds since 1970 (UUIDv7).
const BITS_AFTER_TIME: u32 = 80;
/// The most bytes of an id as text.
const TEXT: usize = DIGITS + 1 + MAX_INSTANCE;

/// The id of a run: time-ordered and unguessable (UUIDv7), with the instance that holds the run.
///
/// It is copied and never allocated. Its text is made once, because it is printed several times in
/// each run.
#[derive(Clone, Copy)]
pub struct RunId {
    number: u128,
    /// The text as it is on the wire, followed by zeros.
    text: [u8; TEXT],
    length: u8,
}

impl RunId {
    /// Creates a fresh id for a run that `instance` holds.
    pub fn new(instance: &str) -> Self {
        Self::of(uuid::Uuid::now_v7().as_u128(), instance)
    }

    /// Builds the id of the run of that `number` which `instance` holds.
    pub fn of(number: u128, instance: &str) -> Self {
        let instance = instance.as_bytes();
        // No instance has a longer name.
        let instance = &instance[..instance.len().min(MAX_INSTANCE)];
        let mut text = [0; TEXT];
        hex::encode(&number.to_be_bytes(), &mut text[..DIGITS]);
        text[DIGITS] = b'.';
        let end = DIGITS + 1 + instance.len();
        text[DIGITS + 1..end].copy_from_slice(instance);
        Self {
            number,
            text,
            length: u8::try_from(end).unwrap_or_default(),
        }
    }

    /// Parses 32 lower-case hexadecimal digits, a dot, and the name of an instance.
    ///
    /// # Errors
    /// `SPEC_INVALID` for anything else.
    pub fn parse(field: &str, text: &str) -> Result<Self, Refusal> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        let parts = text.split_once('.');
        let well_formed = parts.and_then(|(digits, instance)| {
            let digits = digits.as_bytes();
            let number: [u8; DIGITS / 2] = hex::decode(digits)?;
            let fits = !digits.iter().any(u8::is_ascii_uppercase)
                && (1..=MAX_INSTANCE).contains(&instance.len())
                && instance.bytes().all(plain);
            fits.then(|| Self::of(u128::from_be_bytes(number), instance))
        });
        well_formed.ok_or_else(|| {
            let message = format!(
                "\"{}\" is not 32 hexadecimal digits, a dot and the name of a daemon",
                quote(text)
            );
            Refusal::invalid(field, message)
        })
    }

    /// Returns the number that distinguishes the run from all others of its instance. Later runs
    /// have larger numbers.
    pub fn number(&self) -> u128 {
        self.number
    }

    /// Returns the time of the id, in whole milliseconds since 1970.
    pub fn millis(&self) -> u64 {
        Self::millis_of(self.number)
    }

    /// Returns the time of the id with that number, in whole milliseconds since 1970.
    pub fn millis_of(number: u128) -> u64 {
        // The time has 48 bits.
        u64::try_from(number >> BITS_AFTER_TIME).unwrap_or(u64::MAX)
    }

    /// Returns the smallest number of an id of this time, in milliseconds since 1970. A time that
    /// ids cannot have counts as the last that they can.
    pub fn first_number_at(millis: u64) -> u128 {
        let last = u128::MAX >> BITS_AFTER_TIME;
        u128::from(millis).min(last) << BITS_AFTER_TIME
    }

    /// Returns the time at which the run was asked for, which is `now` or little before. Ids have
    /// the time of another look at the clock, or a later one where the clock was turned back. So
    /// `now` is moved into the millisecond of the id, and whoever selects by time finds the run by
    /// the time that is told of it.
    pub fn time_asked(&self, now: SystemTime) -> SystemTime {
        let first = SystemTime::UNIX_EPOCH + Duration::from_millis(self.millis());
        let last = first + Duration::from_nanos(999_999);
        now.clamp(first, last)
    }

    /// Returns the name of the instance that holds the run.
    pub fn instance(&self) -> &str {
        self.as_str().get(DIGITS + 1..).unwrap_or_default()
    }

    /// Returns the text as it is on the wire.
    pub fn as_str(&self) -> &str {
        // The bytes were made of text, so they are always valid.
        str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }

    /// Returns what ids are compared by, so that they are in the order of their texts.
    fn key(&self) -> (u128, &[u8; TEXT]) {
        (self.number, &self.text)
    }
}

impl PartialEq for RunId {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for RunId {}

impl PartialOrd for RunId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RunId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Hash for RunId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_id_is_told_as_it_was_read(number: u128, instance in "[a-zA-Z0-9._-]{1,64}") {
            let id = RunId::of(number, &instance);
            prop_assert_eq!(id.as_str(), format!("{number:032x}.{instance}"));
            prop_assert_eq!((id.number(), id.instance()), (number, instance.as_str()));
            let read = RunId::parse("run_id", id.as_str()).unwrap();
            prop_assert_eq!((read, read.to_string()), (id, id.to_string()));
        }

        #[test]
        fn ids_are_ordered_as_their_texts_are(
            a in "[0-2]{32}\\.[a-c._-]{1,3}",
            b in "[0-2]{32}\\.[a-c._-]{1,3}",
            same_number: bool,
        ) {
            let b = if same_number { [&a[..DIGITS], &b[DIGITS..]].concat() } else { b };
            let [first, second] = [&a, &b].map(|text| RunId::parse("run_id", text).unwrap());
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
            prop_assert_eq!(first == second, a == b);
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let digits = "0123456789abcdef0123456789abcdef";
        for instance in ["a", "A-b_c.d", &"x".repeat(64)] {
            assert!(RunId::parse("run_id", &format!("{digits}.{instance}")).is_ok());
        }
        for text in [
            String::new(),
            digits.to_owned(),
            format!("{digits}."),
            format!("{}.a", &digits[1..]),
            format!("{digits}0.a"),
            format!("{}.a", digits.to_uppercase()),
            format!("g{}.a", &digits[1..]),
            format!("{digits}.{}", "x".repeat(65)),
            format!("{digits}.a b"),
            format!("{digits}.ä"),
            format!(" {digits}.a"),
        ] {
            let refusal = RunId::parse("run_id", &text).unwrap_err();
            assert_eq!(refusal.field(), Some("run_id"), "{text}");
        }
    }

    #[test]
    fn the_time_of_a_run_is_in_the_millisecond_of_its_id() {
        let at = |nanos: u64| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos);
        let id = RunId::of(RunId::first_number_at(7) | 0xabc, "test");
        assert_eq!(id.millis(), 7);
        for (now, asked) in [
            (7_000_000, 7_000_000),
            (7_123_456, 7_123_456),
            (7_999_999, 7_999_999),
            (8_000_000, 7_999_999),
            (6_999_999, 7_000_000),
            (0, 7_000_000),
        ] {
            assert_eq!(id.time_asked(at(now)), at(asked), "{now}");
        }
        let before = SystemTime::now();
        let id = RunId::new("test");
        let asked = id.time_asked(SystemTime::now());
        assert!(before <= asked && asked <= SystemTime::now());
        assert_eq!(
            RunId::first_number_at(u64::MAX) >> BITS_AFTER_TIME,
            u128::MAX >> BITS_AFTER_TIME
        );
    }

    #[test]
    fn later_ids_of_an_instance_are_larger() {
        let ids: Vec<RunId> = (0..1000).map(|_| RunId::new("test")).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
    }
}
