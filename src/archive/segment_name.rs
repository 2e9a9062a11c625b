//! The names of segments, which say whose runs are in them and of which time.
//!
//! `runs/TENANT/2026-11-30/14/FIRST-LAST-INSTANCE-SERIAL.ndjson.zst` has runs of one tenant, of one
//! daemon, that were asked for in one hour of UTC. FIRST and LAST are the times of its oldest and
//! its newest run, in milliseconds since 1970 and 13 digits. So a run's id, which begins with its
//! time, leads to the few segments that may have it, and a range of time to those of its hours.
//!
//! The name of a segment with `.gone` after it is that of its tombstone, which says that another
//! segment has replaced it.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use object_store::path::Path;

use crate::model::request::millis_since_epoch;

/// The folder of all segments.
const FOLDER: &str = "runs";
/// What the name of a segment ends with.
const EXTENSION: &str = ".ndjson.zst";
/// What the name of a tombstone has after the segment's.
const GONE: &str = ".gone";
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
/// The last hour that has a text: the last one of the year 9999.
const LAST_HOUR: u64 = 253_402_300_799 / 3600;
/// Hours of a day.
const DAY_HOURS: u64 = 24;

/// An hour of UTC, counted from the beginning of 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Hour(pub(super) u64);

impl Hour {
    /// Returns the hour of a time in milliseconds. All times after the year 9999, which no run has,
    /// are in the last hour of it.
    pub(super) fn of(ms: u64) -> Self {
        Self((ms / HOUR_MS).min(LAST_HOUR))
    }

    /// Returns the first millisecond of the hour.
    pub(super) fn begin(self) -> u64 {
        self.0.saturating_mul(HOUR_MS)
    }

    /// Returns the first millisecond after the hour.
    pub(super) fn end(self) -> u64 {
        self.0.saturating_add(1).saturating_mul(HOUR_MS)
    }

    /// Returns the names of the folders for the day and for the hour.
    fn folders(self) -> [String; 2] {
        let begin = Duration::from_secs(self.0.saturating_mul(HOUR_MS / 1000));
        let begin = UNIX_EPOCH.checked_add(begin).unwrap_or(UNIX_EPOCH);
        let text = humantime::format_rfc3339_seconds(begin).to_string();
        let day = text.get(..10).unwrap_or_default();
        [day.to_owned(), format!("{:02}", self.0 % DAY_HOURS)]
    }

    /// Parses the names of the two folders; `None` for any others.
    fn parse(day: &str, hour: &str) -> Option<Self> {
        let begin = humantime::parse_rfc3339(&format!("{day}T{hour}:00:00Z")).ok()?;
        let hour = Self::of(millis_since_epoch(begin));
        (hour.folders()[0] == day).then_some(hour)
    }
}

/// Returns the folder of all tenants.
pub(super) fn root() -> Path {
    Path::from(FOLDER)
}

/// Returns the folder of a tenant.
pub(super) fn tenant_folder(tenant: &str) -> Path {
    Path::from_iter([FOLDER, tenant])
}

/// Returns the folder of an hour of a tenant.
pub(super) fn hour_folder(tenant: &str, hour: Hour) -> Path {
    let [day, hour] = hour.folders();
    Path::from_iter([FOLDER, tenant, &day, &hour])
}

/// Parses the day of a tenant's folder to the first of its hours; `None` for any other folder.
pub(super) fn day_of(folder: &Path) -> Option<Hour> {
    let day = folder.parts().nth(2)?;
    Hour::parse(day.as_ref(), "00")
}

/// Parses the hour of an hour's folder; `None` for any other folder.
pub(super) fn hour_of(folder: &Path) -> Option<Hour> {
    let mut parts = folder.parts().skip(2);
    let (day, hour) = (parts.next()?, parts.next()?);
    Hour::parse(day.as_ref(), hour.as_ref())
}

/// Returns every hour of the day that begins with `first`, the latest first.
pub(super) fn hours_of_day(first: Hour) -> impl Iterator<Item = Hour> {
    (0..DAY_HOURS).rev().map(move |hour| Hour(first.0 + hour))
}

fn serial_of(hash: blake3::Hash) -> u128 {
    let mut serial = [0; 16];
    serial.copy_from_slice(&hash.as_bytes()[..16]);
    u128::from_be_bytes(serial)
}

/// What the name of a segment says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentName {
    /// The time of the oldest run, in milliseconds.
    pub(super) first: u64,
    /// The time of the newest run, in milliseconds.
    pub(super) last: u64,
    /// The daemon that the runs are of.
    pub(super) instance: Arc<str>,
    /// What no other segment has.
    serial: u128,
}

impl SegmentName {
    /// Creates a name that no other segment has.
    pub(super) fn new(first: u64, last: u64, instance: &Arc<str>) -> Self {
        Self {
            first,
            last,
            instance: Arc::clone(instance),
            serial: uuid::Uuid::now_v7().as_u128(),
        }
    }

    /// Creates the name of a segment whose runs `origin` is a hash of, or of where they come from,
    /// which is always the same.
    pub(super) fn derived(
        first: u64,
        last: u64,
        instance: &Arc<str>,
        origin: blake3::Hash,
    ) -> Self {
        Self {
            first,
            last,
            instance: Arc::clone(instance),
            serial: serial_of(origin),
        }
    }

    /// Returns the name of the segment that replaces this one when some of its runs are deleted. It
    /// is always the same, so that of two daemons that replace it at once, one learns of the other.
    pub(super) fn replacement(&self) -> Self {
        Self {
            serial: serial_of(blake3::hash(&self.serial.to_be_bytes())),
            ..self.clone()
        }
    }

    /// Returns the place of the segment among the objects of the archive.
    pub(super) fn path(&self, tenant: &str) -> Path {
        self.path_with(tenant, "")
    }

    /// Returns the place of the segment's tombstone.
    pub(super) fn tombstone(&self, tenant: &str) -> Path {
        self.path_with(tenant, GONE)
    }

    fn path_with(&self, tenant: &str, suffix: &str) -> Path {
        let [day, hour] = Hour::of(self.last).folders();
        let Self {
            first,
            last,
            instance,
            serial,
        } = self;
        let name = format!("{first:013}-{last:013}-{instance}-{serial:032x}{EXTENSION}{suffix}");
        Path::from_iter([FOLDER, tenant, &day, &hour, &name])
    }

    /// Parses the place of a tombstone to the name of its segment; `None` for any other object.
    pub(super) fn parse_tombstone(path: &Path) -> Option<Self> {
        Self::parse_file(path.filename()?.strip_suffix(GONE)?)
    }

    /// Parses the name of a segment's file or of its tombstone; `None` for any other.
    pub(super) fn parse_either_file(name: &str) -> Option<Self> {
        Self::parse_file(name.strip_suffix(GONE).unwrap_or(name))
    }

    /// Parses the place of an object; `None` for one that is no segment.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        Self::parse_file(path.filename()?)
    }

    /// Parses the name of a file, without its folders; `None` for one that is no segment.
    fn parse_file(name: &str) -> Option<Self> {
        let name = name.strip_suffix(EXTENSION)?;
        let (first, rest) = name.split_once('-')?;
        let (last, rest) = rest.split_once('-')?;
        let (instance, serial) = rest.rsplit_once('-')?;
        let ms = |digits: &str| {
            let is_number = digits.len() == 13 && digits.bytes().all(|b| b.is_ascii_digit());
            is_number.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let parsed = Self {
            first: ms(first)?,
            last: ms(last)?,
            instance: instance.into(),
            serial: u128::from_str_radix(serial, 16).ok()?,
        };
        (parsed.first <= parsed.last).then_some(parsed)
    }

    /// Reports whether a run of that time may be in the segment.
    pub(super) fn spans(&self, ms: u64) -> bool {
        (self.first..=self.last).contains(&ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_796_126_400_000;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        for (tenant, instance) in [("default", "node-1.a_b"), ("team/ä %", "x")] {
            let name = SegmentName::new(NOON, NOON + 999, &instance.into());
            let path = name.path(tenant);
            assert!(
                path.as_ref()
                    .starts_with(hour_folder(tenant, Hour::of(NOON)).as_ref())
            );
            assert!(path.as_ref().starts_with(tenant_folder(tenant).as_ref()));
            assert_eq!(SegmentName::parse(&path), Some(name.clone()));
            let gone = name.tombstone(tenant);
            assert_eq!(gone.as_ref(), format!("{path}.gone"));
            assert_eq!(SegmentName::parse(&gone), None);
            assert_eq!(SegmentName::parse_tombstone(&path), None);
            assert_eq!(SegmentName::parse_tombstone(&gone), Some(name));
        }
    }

    #[test]
    fn a_replacement_has_the_same_times_and_one_name_of_its_own() {
        let name = SegmentName::new(NOON, NOON + 999, &"a".into());
        let next = name.replacement();
        assert_eq!(next, name.replacement());
        assert_ne!(next, name);
        assert_ne!(next.replacement(), name);
        assert_eq!((next.first, next.last), (name.first, name.last));
    }

    #[test]
    fn what_is_no_segment_has_no_name() {
        for other in [
            "runs/a/2026-11-30/14/x.ndjson.zst",
            "runs/a/2026-11-30/14/1-2-i-0.ndjson.zst",
            "runs/a/2026-11-30/14/0000000000002-0000000000001-i-0.ndjson.zst",
            "runs/a/2026-11-30/14/0000000000001-0000000000002-i-g.ndjson.zst",
            "runs/a/2026-11-30/14/0000000000001-0000000000002-i-0.ndjson",
        ] {
            assert_eq!(SegmentName::parse(&Path::from(other)), None, "{other}");
        }
    }

    #[test]
    fn folders_are_hours_of_utc() {
        let hour = Hour::of(NOON + 3 * HOUR_MS + 1);
        let folder = hour_folder("a", hour);
        assert_eq!(folder.as_ref(), "runs/a/2026-12-01/15");
        assert_eq!(hour_of(&folder), Some(hour));
        let day = day_of(&Path::from("runs/a/2026-12-01")).unwrap();
        assert_eq!(day, Hour(hour.0 - 15));
        assert_eq!(hours_of_day(day).next(), Some(Hour(day.0 + 23)));
        assert_eq!(day_of(&Path::from("runs/a/lost+found")), None);
        assert_eq!(hour_of(&Path::from("runs/a/2026-12-01/24")), None);
        assert_eq!(hour.end(), NOON + 4 * HOUR_MS);
        let last = hour_folder("a", Hour::of(u64::MAX));
        assert_eq!(last.as_ref(), "runs/a/9999-12-31/23");
    }
}
