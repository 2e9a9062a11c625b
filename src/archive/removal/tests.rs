//! Deletions that stop between two of their steps, as those of a daemon that is killed do.

use std::path::Path;

use bytes::Bytes;

use super::super::Archive;
use super::super::tests::{HOUR, NOON, PATIENCE, delete_run, number, numbers, offer, open};
use super::*;

const RUNS: u64 = 5;

/// Writes a segment of five runs, and returns an archive over it and the name of the segment.
async fn one_segment(folder: &Path) -> (Archive, SegmentName) {
    let first = open(folder, "a");
    for run in 0..RUNS {
        offer(&first, "t", number(NOON, run));
    }
    first.close(PATIENCE).await;
    let archive = open(folder, "b");
    let segments = HourListing::read(&archive.place, "t", Hour::of(NOON)).await;
    let [(name, _)] = &segments.unwrap().segments[..] else {
        unreachable!("all are in one segment");
    };
    let name = name.clone();
    (archive, name)
}

/// The segment of that name without the runs that go.
async fn without(place: &Place, name: &SegmentName, goes: &[u64]) -> Bytes {
    let bytes = place
        .part(&name.path("t"), 0..1 << 20)
        .await
        .unwrap()
        .unwrap();
    let mut builder = SegmentBuilder::new().unwrap();
    for run in read_all(&bytes).unwrap() {
        if !goes.iter().any(|low| number(NOON, *low) == run.number) {
            builder.push(run).unwrap();
        }
    }
    builder.finish().unwrap()
}

/// Takes the first so many of the steps that delete run `low` of a segment.
async fn steps(place: &Place, name: &SegmentName, low: u64, steps: usize) {
    let bytes = without(place, name, &[low]).await;
    let (path, next) = (name.path("t"), name.replacement().path("t"));
    if steps > 0 {
        assert!(place.create(&next, bytes).await.unwrap());
    }
    if steps > 1 {
        place.put(&name.tombstone("t"), Bytes::new()).await.unwrap();
    }
    if steps > 2 {
        place.delete(&path).await.unwrap();
    }
}

/// Deletes a run, and returns how many were deleted.
async fn delete(archive: &Archive, low: u64) -> u64 {
    delete_run(archive, RunId::of(number(NOON, low), "a")).await
}

/// The runs that are listed, and those that are anywhere in the place, each once and the newest
/// first.
async fn left(archive: &Archive) -> [Vec<u128>; 2] {
    let listed = numbers(archive, "t", TimeRange::ALL, 100).await;
    let mut all = BTreeSet::new();
    for object in archive.place.objects(&root()).await.unwrap() {
        if SegmentName::parse(&object.path).is_some() {
            let bytes = archive.place.whole(&object).await.unwrap().unwrap();
            all.extend(read_all(&bytes).unwrap().into_iter().map(|run| run.number));
        }
    }
    [listed, all.into_iter().rev().collect()]
}

fn but(goes: &[u64]) -> Vec<u128> {
    let stay = (0..RUNS).rev().filter(|low| !goes.contains(low));
    stay.map(|low| number(NOON, low)).collect()
}

#[tokio::test]
async fn a_deletion_that_was_stopped_anywhere_hides_no_run_and_is_finished_by_the_next() {
    for stopped in 0..=3 {
        let folder = tempfile::tempdir().unwrap();
        let (archive, name) = one_segment(folder.path()).await;
        steps(&archive.place, &name, 0, stopped).await;
        let goes: &[u64] = if stopped < 2 { &[] } else { &[0] };
        assert_eq!(left(&archive).await[0], but(goes), "{stopped} steps");
        // Another run goes, and what the stopped one left is nowhere once its run is deleted too.
        assert_eq!(delete(&archive, 1).await, 1, "{stopped} steps");
        delete(&archive, 0).await;
        let gone = but(&[0, 1]);
        assert_eq!(
            left(&archive).await,
            [gone.clone(), gone],
            "{stopped} steps"
        );
        assert_eq!(delete(&archive, 0).await, 0, "{stopped} steps");
    }
}

#[tokio::test]
async fn what_a_slow_deletion_leaves_holds_nothing_wherever_the_others_were_stopped() {
    for stopped in 0..=3 {
        let folder = tempfile::tempdir().unwrap();
        let (archive, name) = one_segment(folder.path()).await;
        let late = without(&archive.place, &name, &[0]).await;
        assert_eq!(delete(&archive, 1).await, 1);
        let next = name.replacement();
        steps(&archive.place, &next, 2, stopped).await;
        let is_late = archive.place.create(&next.path("t"), late).await.unwrap();
        assert_eq!(is_late, stopped == 3, "it is there unless it was deleted");
        let goes: &[u64] = if stopped < 2 { &[1] } else { &[1, 2] };
        assert_eq!(left(&archive).await[0], but(goes), "{stopped} steps");
        assert_eq!(delete(&archive, 3).await, 1, "{stopped} steps");
        delete(&archive, 2).await;
        let gone = but(&[1, 2, 3]);
        assert_eq!(
            left(&archive).await,
            [gone.clone(), gone],
            "{stopped} steps"
        );
        // The slow one looks again, and finds its run where it is now.
        assert_eq!(delete(&archive, 0).await, 1, "{stopped} steps");
        assert_eq!(left(&archive).await[0], but(&[0, 1, 2, 3]));
    }
}

#[tokio::test]
async fn tombstones_go_with_their_hour_and_are_no_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (archive, name) = one_segment(folder.path()).await;
    assert_eq!(delete(&archive, 1).await, 1);
    let tombstone = archive
        .place
        .part(&name.tombstone("t"), 0..64)
        .await
        .unwrap();
    assert_eq!(tombstone.map(|it| it.len()), Some(32));
    let retention = Retention {
        age: Some(Duration::from_millis(HOUR)),
        bytes: None,
    };
    let late = NOON + 2 * HOUR;
    let deleted = retain(&archive.place, retention, late).await;
    assert_eq!(deleted.unwrap(), 1, "segments are counted");
    let left = archive.place.objects(&root()).await.unwrap();
    let left: Vec<&Object> = left
        .iter()
        .filter(|it| !it.path.as_ref().ends_with("keep"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
