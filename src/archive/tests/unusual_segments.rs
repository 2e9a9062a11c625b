//! Segments that are large in one way or another, or that have the same run.

use super::*;

#[tokio::test]
async fn a_run_whose_line_is_too_long_hides_no_other_of_its_segment() {
    let folder = tempfile::tempdir().unwrap();
    let archive = open(folder.path(), "a");
    let [short, long] = [1, 2].map(|low| number(NOON, low));
    // The first is long enough to be in a frame of its own.
    for (number, bytes) in [(short, 1 << 20), (long, MAX_LINE + (1 << 20))] {
        archive.offer(ArchivableRun {
            tenant: "t".into(),
            number,
            share: Arc::default(),
            cost: 1000,
            mark: ArchiveMark::queued(),
            encode: Box::new(move || EncodedRun {
                number,
                summary: Vec::new(),
                line: vec![b'x'; bytes],
            }),
        });
    }
    archive.flush().await;
    let objects = archive.place.objects(&root()).await.unwrap();
    let names = objects.iter();
    let names = names.filter_map(|object| SegmentName::parse(&object.path));
    assert_eq!(names.count(), 1, "both are in one segment");
    let page = archive.list("t", first_page(9), |_| true).await.unwrap();
    let [long, short] = [long, short].map(|number| RunId::of(number, "a"));
    assert!(page.runs.iter().map(|run| run.id).eq([short]), "{page:?}");
    assert_eq!(page.damaged.len(), 1);
    assert!(page.damaged[0].contains(long.as_str()), "{page:?}");
    let found = archive
        .find("t", &short)
        .await
        .unwrap()
        .expect("it is there");
    assert!(read_line(&archive, &found).await == vec![b'x'; 1 << 20]);
    let refused = archive.find("t", &long).await.unwrap_err();
    assert!(matches!(refused, ArchiveError::Damaged { .. }), "{refused}");
    archive.close(PATIENCE).await;
}

#[tokio::test]
async fn segments_whose_indexes_do_not_fit_together_are_all_looked_at() {
    const SEGMENTS: u64 = 7;
    let folder = tempfile::tempdir().unwrap();
    let archive = open(folder.path(), "a");
    for run in 0..SEGMENTS {
        archive.offer(ArchivableRun {
            tenant: "t".into(),
            number: number(NOON, run),
            share: Arc::default(),
            cost: 1000,
            mark: ArchiveMark::queued(),
            encode: Box::new(move || EncodedRun {
                number: number(NOON, run),
                summary: vec![b'x'; 5 << 20],
                line: line(number(NOON, run)),
            }),
        });
        archive.flush().await;
    }
    let takes = |_: &RunId, _: &[u8]| true;
    for (dry_run, left) in [(true, SEGMENTS), (false, 0)] {
        let mut removed = Removed::default();
        let removal = Removal { dry_run, takes };
        let all = archive.remove("t", TimeRange::ALL, &removal, &mut removed);
        all.await.unwrap();
        assert_eq!(removed.runs, SEGMENTS);
        let listed = numbers(&archive, "t", TimeRange::ALL, 9).await;
        assert_eq!(listed.len() as u64, left);
    }
    archive.close(PATIENCE).await;
}

#[tokio::test]
async fn a_run_that_is_in_two_segments_or_was_counted_elsewhere_is_not_counted_again() {
    let folder = tempfile::tempdir().unwrap();
    let takes = |_: &RunId, _: &[u8]| true;
    let both: BTreeSet<RunId> = ["a", "b"]
        .map(|instance| RunId::of(number(NOON, 1), instance))
        .into();
    for (elsewhere, dry_run, counted) in [
        (None, true, both.clone()),
        (None, false, both.clone()),
        (
            Some("a"),
            true,
            BTreeSet::from([RunId::of(number(NOON, 1), "b")]),
        ),
        (
            Some("a"),
            false,
            BTreeSet::from([RunId::of(number(NOON, 1), "b")]),
        ),
        (Some("c"), false, both.clone()),
    ] {
        // Both daemons have a run of that number, and are killed after they have written it.
        for instance in ["a", "b", "a"] {
            let archive = open(folder.path(), instance);
            offer(&archive, "t", number(NOON, 1));
            archive.close(PATIENCE).await;
        }
        let archive = open(folder.path(), "c");
        let mut removed = elsewhere.map_or_else(Removed::default, |instance| {
            Removed::beside(instance, Arc::new([number(NOON, 1)].into()))
        });
        let removal = Removal { dry_run, takes };
        let all = archive.remove("t", TimeRange::ALL, &removal, &mut removed);
        all.await.unwrap();
        assert_eq!(removed.runs, counted.len() as u64);
        assert_eq!(removed.named, counted);
    }
}
