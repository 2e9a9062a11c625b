//! Runs on their way into an archive that cannot be written for a while, or of a daemon that was
//! killed.

use std::fs;
use std::path::Path;

use super::super::segment_name::root;
use super::super::spool::{SpoolFile, SpoolRecord, adopt};
use super::super::tests::{
    HOUR, NOON, PATIENCE, delete_run, line, number, numbers, offer, open, settings,
};
use super::super::{Archive, ArchiveSettings, SPOOL};
use super::*;
use crate::model::request::{RunId, TimeRange};

/// The files for runs on their way, and the bytes that they have.
fn spooled(folder: &Path) -> (usize, u64) {
    let files = fs::read_dir(folder.join(SPOOL)).unwrap();
    // One may go between the two.
    let sizes = files.filter_map(|file| Some(file.unwrap().metadata().ok()?.len()));
    let sizes: Vec<u64> = sizes.collect();
    (sizes.len(), sizes.iter().sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_long_a_place_is_away_runs_on_their_way_are_in_few_files() {
    /// Batches on their way, and the one that gathers runs.
    const MOST: usize = 16 + 1;
    let folder = tempfile::tempdir().unwrap();
    let settings = ArchiveSettings {
        interval: Duration::from_millis(1),
        ..settings(folder.path())
    };
    let archive = Archive::open("a", settings).unwrap();
    // What is to be a folder is a file.
    let tenant = folder.path().join("runs/t");
    fs::write(&tenant, "x").unwrap();
    let (mut all, mut most) = (Vec::new(), 0);
    let mut before = 0;
    for run in 0..60 {
        let number = number(NOON + run, run);
        offer(&archive, "t", number);
        all.push(number);
        if run % 2 == 0 {
            // As whoever looks for the run does.
            archive.queue.hurry();
        }
        let start = Instant::now();
        loop {
            let (files, bytes) = spooled(folder.path());
            most = most.max(files);
            if bytes > before {
                before = bytes;
                break;
            }
            assert!(start.elapsed() < PATIENCE, "run {run} is in no file");
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(most, MOST);
    fs::remove_file(&tenant).unwrap();
    archive.flush().await;
    all.reverse();
    assert_eq!(numbers(&archive, "t", TimeRange::ALL, 1000).await, all);
    archive.close(PATIENCE).await;
    assert_eq!(spooled(folder.path()).0, 0);
}

/// Writes a file of the runs that a daemon called "killed" had on their way, one an hour.
fn leave(folder: &Path, hours: u64) {
    fs::create_dir_all(folder).unwrap();
    let mut file = SpoolFile::create(folder).unwrap();
    for hour in 0..hours {
        let number = number(NOON + hour * HOUR, hour);
        let record = SpoolRecord {
            tenant: "t".to_owned(),
            instance: "killed".to_owned(),
            number: number.to_be_bytes().to_vec(),
            summary: number.to_string().into_bytes(),
            line: line(number),
            segment: Some(0),
        };
        file.append(&record).unwrap();
    }
}

/// Deletes a run of the daemon that was killed, and returns how many were deleted.
async fn delete(archive: &Archive, hour: u64) -> u64 {
    let number = number(NOON + hour * HOUR, hour);
    delete_run(archive, RunId::of(number, "killed")).await
}

#[tokio::test]
async fn a_deletion_waits_for_what_a_killed_daemon_left() {
    let folder = tempfile::tempdir().unwrap();
    let archive = open(folder.path(), "a");
    // It has looked for some, and does not soon look again of itself.
    assert_eq!(delete(&archive, 0).await, 0);
    for _ in 0..2 {
        leave(&folder.path().join(SPOOL), 3);
    }
    // Each file has it, and it is one run.
    assert_eq!(delete(&archive, 1).await, 1);
    assert_eq!(spooled(folder.path()).0, 0);
    let stay = [2, 0].map(|hour| number(NOON + hour * HOUR, hour));
    assert_eq!(numbers(&archive, "t", TimeRange::ALL, 10).await, stay);
    archive.close(PATIENCE).await;
}

#[tokio::test]
async fn recovering_what_was_written_in_part_brings_back_no_run_that_was_deleted_since() {
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left");
    leave(&left, 4);
    // The daemon was killed after it had written the segments of the first two hours.
    let archive = open(folder.path(), "a");
    let (file, records) = adopt(&left).unwrap().unwrap();
    let sealed = Batch::recovered(file, records, Duration::from_secs(1));
    let mut segments = sealed.unwrap().seal().segments;
    segments.sort_by_key(|segment| segment.path.to_string());
    assert_eq!(segments.len(), 4);
    for segment in &segments[..2] {
        let put = archive.place.put(&segment.path, segment.bytes.clone());
        put.await.unwrap();
    }
    assert_eq!(delete(&archive, 0).await, 1);
    for entry in fs::read_dir(&left).unwrap() {
        let entry = entry.unwrap();
        let there = folder.path().join(SPOOL).join(entry.file_name());
        fs::rename(entry.path(), there).unwrap();
    }
    // A deletion waits for all of it.
    assert_eq!(delete(&archive, 3).await, 1);
    assert_eq!(spooled(folder.path()).0, 0);
    let stay = [2, 1].map(|hour| number(NOON + hour * HOUR, hour));
    assert_eq!(numbers(&archive, "t", TimeRange::ALL, 10).await, stay);
    let objects = archive.place.objects(&root()).await.unwrap();
    let again = objects.iter().filter(|it| it.path == segments[0].path);
    assert_eq!(again.count(), 0, "it is not written once more");
    archive.close(PATIENCE).await;
}
