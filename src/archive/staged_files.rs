//! Deletes what daemons that were killed have left in an archive that is a folder of the host.
//!
//! `object_store` stages a segment in a file beside it, whose name has `#` and a number after the
//! segment's, and renames that file when it is whole. No listing shows a staged file, so nothing
//! else would ever delete one that was not renamed.

use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;
use std::time::Duration;

use super::segment_name::SegmentName;

/// How long after its last change a file is nobody's, which is longer than any segment takes to be
/// written.
const ABANDONED: Duration = Duration::from_secs(3600);
/// The folders that a segment is in: those of a tenant, a day and an hour.
const DEPTH: usize = 3;

/// What became of the files that were left.
#[derive(Debug, Default)]
pub(super) struct StagedSweep {
    /// How many were deleted.
    pub(super) deleted: u64,
    /// Why some may have been passed over.
    pub(super) error: Option<io::Error>,
}

impl StagedSweep {
    /// Deletes the files that were left below the folder `runs`. Links are not followed.
    pub(super) fn run(runs: &Path) -> Self {
        let mut sweep = Self::default();
        sweep.folder(runs, DEPTH);
        sweep
    }

    /// Looks through a folder and those in it, down to the segments `depth` levels below.
    fn folder(&mut self, folder: &Path, depth: usize) {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.note(error),
        };
        for entry in entries {
            if let Err(error) = entry.and_then(|entry| self.entry(&entry, depth)) {
                self.note(error);
            }
        }
    }

    fn entry(&mut self, entry: &DirEntry, depth: usize) -> io::Result<()> {
        // What is known of a link is its own here, and not what it leads to.
        let kind = entry.file_type()?;
        if let Some(depth) = depth.checked_sub(1) {
            if kind.is_dir() {
                let before = self.deleted;
                self.folder(&entry.path(), depth);
                if self.deleted > before {
                    // A folder with anything else in it refuses.
                    drop(fs::remove_dir(entry.path()));
                }
            }
            return Ok(());
        }
        let is_staged = entry.file_name().to_str().is_some_and(is_staged);
        if !kind.is_file() || !is_staged {
            return Ok(());
        }
        let modified = entry.metadata()?.modified()?;
        if modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            fs::remove_file(entry.path())?;
            self.deleted += 1;
        }
        Ok(())
    }

    /// Notes an error, unless another daemon has deleted what was looked at.
    fn note(&mut self, error: io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            self.error = Some(error);
        }
    }
}

/// Reports whether a file of that name is the staged one of a segment or of a tombstone.
fn is_staged(name: &str) -> bool {
    let Some((segment, number)) = name.split_once('#') else {
        return false;
    };
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number && SegmentName::parse_either_file(segment).is_some()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;
    use std::time::SystemTime;

    use super::*;

    /// The name of a segment's file.
    const SEGMENT: &str =
        "1796126400000-1796126400999-node-1-0123456789abcdef0123456789abcdef.ndjson.zst";

    /// Writes a file that was changed `minutes` ago.
    fn write(path: &Path, minutes: u64) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
        let file = File::options().write(true).open(path).unwrap();
        let age = Duration::from_secs(minutes * 60);
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn what_was_left_an_hour_ago_goes_and_nothing_else() {
        let runs = tempfile::tempdir().unwrap();
        let hour = runs.path().join("t/2026-12-01/12");
        for number in ["#1", "#2", "#10"] {
            write(&hour.join(format!("{SEGMENT}{number}")), 61);
        }
        write(&hour.join(format!("{SEGMENT}.gone#1")), 61);
        let stays = [
            (format!("{SEGMENT}#3"), 59),
            (SEGMENT.to_owned(), 100_000),
            (format!("{SEGMENT}.gone"), 100_000),
            (format!("{SEGMENT}#"), 61),
            (format!("{SEGMENT}#1x"), 61),
            (format!("{SEGMENT}#1#1"), 61),
            ("notes.ndjson.zst#1".to_owned(), 61),
            (format!("../{SEGMENT}#1"), 61),
            (format!("below/{SEGMENT}#1"), 61),
        ];
        let stays = stays.map(|(name, minutes)| (hour.join(name), minutes));
        for (path, minutes) in &stays {
            write(path, *minutes);
        }
        let sweep = StagedSweep::run(runs.path());
        assert_eq!((sweep.deleted, sweep.error.is_none()), (4, true));
        for (path, _) in &stays {
            assert!(path.exists(), "{}", path.display());
        }
        let left = fs::read_dir(&hour).unwrap().count();
        assert_eq!(left, stays.len() - 1, "one is in the folder above");
        assert_eq!(StagedSweep::run(runs.path()).deleted, 0);
    }

    #[test]
    fn folders_that_become_empty_go_and_links_lead_nowhere() {
        let (runs, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = format!("{SEGMENT}#1");
        let there = outside.path().join("12").join(&name);
        write(&there, 61);
        let day = runs.path().join("t/2026-12-01");
        write(&day.join("12").join(&name), 61);
        write(&day.join("13").join(SEGMENT), 61);
        symlink(outside.path(), runs.path().join("t/2026-12-02")).unwrap();
        symlink(outside.path().join("12"), day.join("14")).unwrap();
        let link = day.join("13").join(&name);
        symlink(&there, &link).unwrap();
        let sweep = StagedSweep::run(runs.path());
        assert_eq!((sweep.deleted, sweep.error.is_none()), (1, true));
        assert!(!day.join("12").exists() && day.join("13").join(SEGMENT).exists());
        assert!(there.exists() && link.is_symlink());
    }
}
