//! Runs on their way into an archive that cannot be written for a while, or whose daemon was killed.

use super::*;

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
