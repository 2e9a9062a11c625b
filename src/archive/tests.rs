//! The archive over a folder: what is written is listed, found, read, and removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::place::Place;
use super::segment_name::{SegmentName, root};
use super::spool::{SpoolFile, SpoolRecord};
use super::*;

mod unusual_segments;

pub(super) const HOUR: u64 = 3_600_000;
/// 2026-12-01T12:00:00Z.
pub(super) const NOON: u64 = 1_796_126_400_000;
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn settings(folder: &Path) -> ArchiveSettings {
    ArchiveSettings {
        location: StoreLocation::Directory(folder.to_owned()),
        spool: None,
        queue: 64 << 20,
        interval: Duration::from_secs(1),
        has_several_tenants: false,
        retention: Retention::default(),
    }
}

pub(super) fn open(folder: &Path, instance: &str) -> Archive {
    Archive::open(instance, settings(folder)).unwrap()
}

pub(super) fn number(ms: u64, low: u64) -> u128 {
    RunId::first_number_at(ms) | u128::from(low)
}

pub(super) fn line(number: u128) -> Vec<u8> {
    format!("{{\"number\":\"{number}\"}}").into_bytes()
}

/// Offers a run that was asked for at a time, and returns its mark.
pub(super) fn offer(archive: &Archive, tenant: &str, number: u128) -> Arc<ArchiveMark> {
    let mark = ArchiveMark::queued();
    archive.offer(ArchivableRun {
        tenant: tenant.into(),
        number,
        share: Arc::default(),
        cost: 1000,
        mark: Arc::clone(&mark),
        encode: Box::new(move || EncodedRun {
            number,
            summary: number.to_string().into_bytes(),
            line: line(number),
        }),
    });
    mark
}

/// Asks for the newest runs of all times.
fn first_page(size: usize) -> PageRequest {
    PageRequest {
        range: TimeRange::ALL,
        before: None,
        size,
    }
}

pub(super) async fn numbers(
    archive: &Archive,
    tenant: &str,
    range: TimeRange,
    size: usize,
) -> Vec<u128> {
    let mut numbers = Vec::new();
    let mut before = None;
    loop {
        let asked = PageRequest {
            range,
            before,
            size,
        };
        let page = archive.list(tenant, asked, |_| true).await.unwrap();
        assert!(page.damaged.is_empty(), "{:?}", page.damaged);
        assert!(page.runs.len() <= size);
        numbers.extend(page.runs.iter().map(|run| run.id.number()));
        if page.next.is_none() {
            return numbers;
        }
        before = page.next;
    }
}

/// Deletes a run of the tenant "t" by its id, and returns how many were deleted.
pub(super) async fn delete_run(archive: &Archive, id: RunId) -> u64 {
    let removal = Removal {
        dry_run: false,
        takes: |it: &RunId, _: &[u8]| *it == id,
    };
    let mut removed = Removed::default();
    let ids = BTreeSet::from([id]);
    let named = archive.remove_named("t", &ids, &removal, &mut removed);
    named.await.unwrap();
    removed.runs
}

/// Writes runs of two daemons over some hours, out of order, and returns their numbers in order.
async fn filled(folder: &Path) -> Vec<u128> {
    let mut all = Vec::new();
    for (instance, low) in [("a", 0), ("b", 1)] {
        let archive = open(folder, instance);
        for hour in [5, 0, 100, 3] {
            for run in 0..40_u64 {
                let number = number(NOON + hour * HOUR + run * 7919 % 1000, 2 * run + low);
                offer(&archive, "t", number);
                all.push(number);
            }
            archive.flush().await;
        }
        archive.close(PATIENCE).await;
    }
    all.sort_unstable();
    all.reverse();
    all
}

#[tokio::test]
async fn runs_are_listed_newest_first_by_pages_of_any_size_and_within_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let all = filled(folder.path()).await;
    let archive = open(folder.path(), "c");
    for size in [1, 7, 1000] {
        assert_eq!(numbers(&archive, "t", TimeRange::ALL, size).await, all);
    }
    assert_eq!(numbers(&archive, "other", TimeRange::ALL, 10).await, []);
    for (since, until) in [
        (NOON, NOON),
        (NOON + 3 * HOUR, NOON + 5 * HOUR + 500),
        (NOON + 5 * HOUR + 500, NOON + 200 * HOUR),
        (0, NOON + 1),
    ] {
        let range = TimeRange { since, until };
        let within = all.iter().copied();
        let within = within.filter(|run| (since..until).contains(&((run >> 80) as u64)));
        let within: Vec<u128> = within.collect();
        assert_eq!(numbers(&archive, "t", range, 9).await, within, "{range:?}");
    }
}

async fn read_line(archive: &Archive, entry: &ArchivedEntry) -> Vec<u8> {
    let line = archive.line(entry).await.unwrap().expect("it is there");
    let read = line.decode(|line| {
        let mut read = Vec::new();
        line.read_to_end(&mut read).map(|_| read)
    });
    read.unwrap().unwrap()
}

#[tokio::test]
async fn a_run_is_found_by_its_id_and_its_line_read() {
    let folder = tempfile::tempdir().unwrap();
    let all = filled(folder.path()).await;
    let archive = open(folder.path(), "c");
    for number in &all {
        let instance = if number % 2 == 0 { "a" } else { "b" };
        let id = RunId::of(*number, instance);
        let found = archive.find("t", &id).await.unwrap().expect("it is there");
        assert_eq!(found.summary, number.to_string().into_bytes());
        assert_eq!(read_line(&archive, &found).await, line(*number));
        assert!(archive.find("other", &id).await.unwrap().is_none());
        let elsewhere = RunId::of(*number, "c");
        assert!(archive.find("t", &elsewhere).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn runs_are_removed_by_id_and_by_time_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = filled(folder.path()).await;
    let archive = open(folder.path(), "c");
    let goes: BTreeSet<RunId> = [0, 1, 50, 51, 52, 200]
        .map(|at: usize| RunId::of(all[at], if all[at] % 2 == 0 { "a" } else { "b" }))
        .into();
    for dry_run in [true, false] {
        let takes = |id: &RunId, _: &[u8]| goes.contains(id);
        let removal = Removal { dry_run, takes };
        let mut removed = Removed::default();
        let named = archive.remove_named("t", &goes, &removal, &mut removed);
        named.await.unwrap();
        assert_eq!((removed.runs, removed.named), (6, goes.clone()));
    }
    let removal = Removal {
        dry_run: false,
        takes: |id: &RunId, _: &[u8]| goes.contains(id),
    };
    let mut again = Removed::default();
    let named = archive.remove_named("t", &goes, &removal, &mut again);
    named.await.unwrap();
    assert_eq!(again.runs, 0);
    all.retain(|number| !goes.iter().any(|id| id.number() == *number));
    assert_eq!(numbers(&archive, "t", TimeRange::ALL, 100).await, all);
    let range = TimeRange {
        since: NOON + 2 * HOUR,
        until: NOON + 50 * HOUR,
    };
    let removal = Removal {
        dry_run: false,
        takes: |_: &RunId, summary: &[u8]| summary.last().is_some_and(|digit| digit % 2 == 1),
    };
    let mut removed = Removed::default();
    let matching = archive.remove("t", range, &removal, &mut removed);
    matching.await.unwrap();
    let before = all.len();
    all.retain(|number| {
        let ms = (number >> 80) as u64;
        number % 2 == 0 || !(range.since..range.until).contains(&ms)
    });
    assert_eq!(removed.runs, (before - all.len()) as u64);
    assert_eq!(numbers(&archive, "t", TimeRange::ALL, 100).await, all);
    for number in &all {
        let id = RunId::of(*number, if number % 2 == 0 { "a" } else { "b" });
        let found = archive.find("t", &id).await.unwrap().expect("it stays");
        assert_eq!(read_line(&archive, &found).await, line(*number));
    }
}

#[tokio::test]
async fn whole_hours_go_by_age_and_by_bytes_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let all = filled(folder.path()).await;
    let archive = open(folder.path(), "c");
    let place = Place::open(&StoreLocation::Directory(folder.path().to_owned())).unwrap();
    let retain = async |age: Option<u64>, bytes, now| {
        let age = age.map(Duration::from_millis);
        removal::retain(&place, Retention { age, bytes }, now)
            .await
            .unwrap()
    };
    let left = async || numbers(&archive, "t", TimeRange::ALL, 1000).await.len();
    assert_eq!(retain(Some(HOUR), None, NOON + 2 * HOUR - 1).await, 0);
    assert_eq!(left().await, all.len());
    // The first hour is over for as long as runs are kept.
    assert!(retain(Some(HOUR), None, NOON + 2 * HOUR).await > 0);
    assert_eq!(left().await, all.len() * 3 / 4);
    let objects = place.objects(&root()).await.unwrap();
    let total: u64 = objects.iter().map(|object| object.size).sum();
    assert_eq!(retain(None, Some(total), NOON).await, 0);
    assert!(retain(None, Some(total - 1), NOON).await > 0);
    assert_eq!(left().await, all.len() / 2);
    assert!(retain(None, Some(0), NOON).await > 0);
    assert_eq!(left().await, 0);
}

#[tokio::test]
async fn a_damaged_segment_is_named_and_the_others_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let all = filled(folder.path()).await;
    let place = Place::open(&StoreLocation::Directory(folder.path().to_owned())).unwrap();
    let objects = place.objects(&root()).await.unwrap();
    let newest = objects
        .iter()
        .max_by_key(|object| object.path.clone())
        .unwrap();
    let file = folder.path().join(newest.path.as_ref());
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() - 30;
    bytes[at] ^= 1;
    fs::write(&file, bytes).unwrap();
    let archive = open(folder.path(), "c");
    let asked = first_page(1000);
    let page = archive.list("t", asked, |_| true).await.unwrap();
    assert_eq!(page.damaged.len(), 1);
    assert!(
        page.damaged[0].starts_with(newest.path.as_ref()),
        "{page:?}"
    );
    assert!(page.runs.len() < all.len() && page.runs.len() > all.len() / 2);
    let listed: Vec<RunId> = page.runs.iter().map(|run| run.id).collect();
    let mut lost = 0;
    for number in &all {
        let id = RunId::of(*number, if number % 2 == 0 { "a" } else { "b" });
        match archive.find("t", &id).await {
            Ok(found) => assert_eq!(found.map(|it| it.id), listed.contains(&id).then_some(id)),
            Err(ArchiveError::Damaged { .. }) => lost += 1,
            Err(error) => unreachable!("{error}"),
        }
    }
    assert!(lost > 0);
}

#[tokio::test]
async fn runs_of_a_daemon_that_was_killed_are_written_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join(SPOOL);
    fs::create_dir_all(&spool).unwrap();
    let records: Vec<SpoolRecord> = (0..100_u64)
        .map(|low| SpoolRecord {
            tenant: "t".to_owned(),
            instance: "killed".to_owned(),
            number: number(NOON, low).to_be_bytes().to_vec(),
            summary: Vec::new(),
            line: line(number(NOON, low)),
            segment: None,
        })
        .collect();
    let mut file = SpoolFile::create(&spool).unwrap();
    for record in &records {
        file.append(record).unwrap();
    }
    drop(file);
    let archive = open(folder.path(), "next");
    let start = Instant::now();
    while numbers(&archive, "t", TimeRange::ALL, 1000).await.len() < records.len() {
        assert!(start.elapsed() < PATIENCE, "they do not come");
        tokio::task::yield_now().await;
    }
    let id = RunId::of(number(NOON, 99), "killed");
    let found = archive.find("t", &id).await.unwrap().expect("it is there");
    assert_eq!(read_line(&archive, &found).await, line(id.number()));
    archive.close(PATIENCE).await;
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_holds_runs_until_they_are_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut archive = open(folder.path(), "a");
    // What is to be a folder is a file.
    let tenant = folder.path().join("runs/t");
    fs::write(&tenant, "x").unwrap();
    let mark = offer(&archive, "t", number(NOON, 1));
    let late = tokio::time::timeout(Duration::from_millis(1500), archive.flush()).await;
    assert!(late.is_err(), "nothing was written");
    assert_eq!(mark.state(), ArchiveState::Queued);
    assert!(archive.waiting_bytes() > 0);
    // The file of runs on their way has it, so it is not lost.
    archive.close(Duration::from_millis(10)).await;
    assert_eq!(mark.state(), ArchiveState::Queued);
    fs::remove_file(&tenant).unwrap();
    archive = open(folder.path(), "b");
    let start = Instant::now();
    while numbers(&archive, "t", TimeRange::ALL, 10).await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "it does not come");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_at_once_by_several_daemons_lose_and_bring_back_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = filled(folder.path()).await;
    let archives = [open(folder.path(), "c"), open(folder.path(), "d")].map(Arc::new);
    let goes: Vec<u128> = all.iter().copied().step_by(5).collect();
    let mut deletions = tokio::task::JoinSet::new();
    for (at, number) in goes.iter().copied().enumerate() {
        let archive = Arc::clone(&archives[at % 2]);
        deletions.spawn(async move {
            let id = RunId::of(number, if number % 2 == 0 { "a" } else { "b" });
            let ids = BTreeSet::from([id]);
            let takes = |it: &RunId, _: &[u8]| *it == id;
            let removal = Removal {
                dry_run: false,
                takes,
            };
            let mut removed = Removed::default();
            let _lock = archive.lock_deletions("t").await;
            // What another daemon changes all the time may be refused, and is asked for again.
            while let Err(error) = archive
                .remove_named("t", &ids, &removal, &mut removed)
                .await
            {
                assert!(matches!(error, ArchiveError::Unavailable(_)), "{error}");
            }
            assert_eq!(removed.runs, 1);
        });
    }
    // Whoever lists in the meantime misses none of the others.
    let stays = |number: &u128| !goes.contains(number);
    let kept: Vec<u128> = all.iter().copied().filter(stays).collect();
    while !deletions.is_empty() {
        let listed = numbers(&archives[0], "t", TimeRange::ALL, 50).await;
        let listed: Vec<u128> = listed.into_iter().filter(stays).collect();
        assert_eq!(listed, kept);
        if let Some(done) = deletions.try_join_next() {
            done.unwrap();
        }
    }
    all.retain(stays);
    assert_eq!(numbers(&archives[1], "t", TimeRange::ALL, 1000).await, all);
}

#[tokio::test]
async fn objects_of_no_size_that_a_segment_has_are_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let all = filled(folder.path()).await;
    let name = SegmentName::new(NOON, NOON + 999, &"a".into());
    let file = folder.path().join(name.path("t").as_ref());
    for bytes in [0, 1, 23, 24, 70_000] {
        fs::write(&file, vec![0; bytes]).unwrap();
        let archive = open(folder.path(), "c");
        let asked = first_page(1000);
        let page = archive.list("t", asked, |_| true).await.unwrap();
        assert_eq!((page.damaged.len(), page.runs.len()), (1, all.len()));
        let removal = Removal {
            dry_run: true,
            takes: |_: &RunId, _: &[u8]| true,
        };
        let mut removed = Removed::default();
        let refused = archive.remove("t", TimeRange::ALL, &removal, &mut removed);
        let refused = refused.await.unwrap_err();
        assert!(matches!(refused, ArchiveError::Damaged { .. }), "{refused}");
        assert_eq!(removed.runs, all.len() as u64, "the others go all the same");
    }
}

#[tokio::test]
async fn a_folder_that_is_away_and_an_id_of_no_time_are_told_so() {
    let folder = tempfile::tempdir().unwrap();
    filled(folder.path()).await;
    let archive = open(folder.path(), "c");
    let id = RunId::of(u128::MAX, "a");
    assert!(archive.find("t", &id).await.unwrap().is_none());
    fs::rename(folder.path().join("runs"), folder.path().join("away")).unwrap();
    let asked = first_page(10);
    let id = RunId::of(number(NOON, 0), "a");
    let refusals = [
        archive.find("t", &id).await.err(),
        archive.list("t", asked, |_| true).await.err(),
    ];
    for refused in refusals {
        assert!(
            matches!(refused, Some(ArchiveError::Unavailable(_))),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn no_segment_unpacks_to_much_however_well_it_is_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let archive = open(folder.path(), "a");
    for run in 0..60 {
        archive.offer(ArchivableRun {
            tenant: "t".into(),
            number: number(NOON, run),
            share: Arc::default(),
            cost: 1 << 20,
            mark: ArchiveMark::queued(),
            encode: Box::new(move || EncodedRun {
                number: number(NOON, run),
                summary: Vec::new(),
                line: vec![b'x'; 1 << 20],
            }),
        });
    }
    archive.flush().await;
    // The queue's mebibytes are the runs'; a turn has four of them, and a batch ends at eight.
    let mut lines = 0;
    let objects = archive.place.objects(&root()).await.unwrap();
    for object in objects {
        if SegmentName::parse(&object.path).is_none() {
            continue;
        }
        let segment = archive.place.whole(&object).await.unwrap().unwrap();
        let unpacked = zstd::stream::decode_all(&*segment).unwrap();
        assert!(unpacked.len() <= 12 << 20, "{} bytes", unpacked.len());
        lines += unpacked.iter().filter(|&&byte| byte == b'\n').count();
    }
    assert_eq!(lines, 60);
    archive.close(PATIENCE).await;
}

#[tokio::test]
async fn runs_that_took_long_and_end_together_are_each_in_one_narrow_segment() {
    let folder = tempfile::tempdir().unwrap();
    let archive = open(folder.path(), "a");
    // Of 200 runs, asked for over an hour, four end at a time, a quarter of an hour apart, with one
    // that has just been asked for.
    let mut all = Vec::new();
    for batch in 0..50_u64 {
        for quarter in 0..4 {
            all.push(number(NOON + quarter * HOUR / 4 + batch * 18_000, batch));
        }
        all.push(number(NOON + HOUR + batch * 1000, batch));
        for run in &all[all.len() - 5..] {
            offer(&archive, "t", *run);
        }
        archive.flush().await;
    }
    let objects = archive.place.objects(&root()).await.unwrap();
    let names: Vec<SegmentName> = objects
        .iter()
        .filter_map(|object| SegmentName::parse(&object.path))
        .collect();
    for run in &all {
        let id = RunId::of(*run, "a");
        // Those are the segments that are opened to find it.
        let opened = names.iter().filter(|name| name.spans(id.millis()));
        assert_eq!(opened.count(), 1, "{id}");
        let found = archive.find("t", &id).await.unwrap().expect("it is there");
        assert_eq!(read_line(&archive, &found).await, line(*run));
    }
    assert_eq!(
        numbers(&archive, "t", TimeRange::ALL, 1000).await.len(),
        250
    );
    archive.close(PATIENCE).await;
}

#[tokio::test]
async fn a_page_opens_so_many_segments_and_the_next_one_goes_on() {
    // Segments one after another, and segments that all have the same five seconds.
    for (segments, apart, runs, pages) in [(600, 1000, &[0][..], 3), (300, 1, &[0, 5000], 2)] {
        let folder = tempfile::tempdir().unwrap();
        let archive = open(folder.path(), "a");
        for segment in 0..segments {
            for after in runs {
                offer(&archive, "t", number(NOON + segment * apart + after, 0));
            }
            archive.flush().await;
        }
        let (mut looked_at, mut before) = (Vec::new(), None);
        let mut last = u128::MAX;
        loop {
            let asked = PageRequest {
                before,
                ..first_page(1000)
            };
            let looked = std::cell::Cell::new(0);
            let takes = |_: &[u8]| {
                looked.set(looked.get() + 1);
                true
            };
            let page = archive.list("t", asked, takes).await.unwrap();
            looked_at.push(looked.get());
            for run in page.runs {
                assert!(run.id.number() < last, "each run once, and in order");
                last = run.id.number();
            }
            before = page.next;
            if before.is_none() {
                break;
            }
            assert_eq!(before.map(|it| it.number()), Some(last));
        }
        // A page has a run of each segment that it may open, and of those that it opens together
        // for its first run.
        assert!((257..257 + 16).contains(&looked_at[0]), "{looked_at:?}");
        assert_eq!(looked_at.len(), pages, "{looked_at:?}");
        let all = segments * runs.len() as u64;
        assert_eq!(looked_at.iter().sum::<usize>() as u64, all, "{looked_at:?}");
        archive.close(PATIENCE).await;
    }
}
