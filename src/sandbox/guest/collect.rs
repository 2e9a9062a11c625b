//! Collects the files that a run returns, once its guest has ended, and then takes its memory file
//! system apart. Both are done in pieces, since a run may have a million files.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::host_call_pacer::HostCallPacer;
use super::memory_files::MemoryFiles;
use super::memory_fs::{FollowLast, MAX_PATH, NodeId, NodeKind, SharedFs};
use super::stop_signal::StopSignal;
use crate::model::collected::{CollectedFile, FileHead, UncollectedFiles, UncollectedReason};
use crate::model::request::{CollectCaps, CollectPattern, PathMatcher};
use crate::sync::lock;

/// How many entries of a directory are looked at in one piece.
const LISTED_AT_ONCE: usize = 32;
/// How many pieces of the file system are taken apart before others may run.
const DISMANTLED_AT_ONCE: usize = 64;
/// The longest time for which files are searched for, so that no guest holds its slot for long by
/// how many files it leaves behind.
const SEARCH_TIME: Duration = Duration::from_secs(2);

/// Collects what is asked for of a run's files. Returns the files, and what was not collected.
pub(in crate::sandbox) async fn collect(
    files: &MemoryFiles,
    stop: &StopSignal,
) -> (Vec<CollectedFile>, Option<Box<UncollectedFiles>>) {
    let mut pace = HostCallPacer::new(stop);
    let mut collector = FileCollector::new(&files.collect, files.caps, &mut pace).await;
    if !collector.patterns.is_empty() {
        collector.search(&files.fs, &mut pace).await;
        collector.name_missing(&files.fs);
    }
    let FileCollector {
        collected,
        uncollected,
        ..
    } = collector;
    (
        collected,
        (uncollected.count > 0).then(|| Box::new(uncollected)),
    )
}

/// Removes all files of a run that has ended.
pub(in crate::sandbox) async fn remove(files: MemoryFiles, stop: &StopSignal) {
    let mut pace = HostCallPacer::new(stop);
    while lock(&files.fs).dismantle(DISMANTLED_AT_ONCE) {
        pace.yield_when_due().await;
    }
}

/// A pattern, and whether anything matched it.
struct SearchedPattern<'a> {
    pattern: &'a CollectPattern,
    matcher: PathMatcher,
    has_matched: bool,
}

/// A search for files in the order of their paths.
struct FileCollector<'a> {
    patterns: Vec<SearchedPattern<'a>>,
    caps: CollectCaps,
    collected: Vec<CollectedFile>,
    /// The bytes of the contents and the paths of what was collected.
    bytes: u64,
    uncollected: UncollectedFiles,
}

/// A directory that is being searched.
struct SearchedDirectory {
    node: NodeId,
    /// The length of its path, without a slash at its end.
    path_length: usize,
    /// Entries that were listed and are not looked at yet.
    entries: VecDeque<(String, NodeId, NodeKind)>,
    /// The last name that was listed, or `None` before the first.
    last: Option<String>,
    has_more: bool,
}

impl SearchedDirectory {
    fn new(node: NodeId, path_length: usize) -> Self {
        Self {
            node,
            path_length,
            entries: VecDeque::new(),
            last: None,
            has_more: true,
        }
    }

    /// Returns the next entry, or `None` where there are no more.
    fn next(&mut self, fs: &SharedFs) -> Option<(String, NodeId, NodeKind)> {
        if self.entries.is_empty() && self.has_more {
            let entries = &mut self.entries;
            let listed = lock(fs).list(self.node, self.last.as_deref(), |name, node, kind| {
                entries.push_back((name.to_owned(), node, kind));
                entries.len() < LISTED_AT_ONCE
            });
            self.has_more = listed.unwrap_or(false);
            self.last = self.entries.back().map(|(name, ..)| name.clone());
        }
        self.entries.pop_front()
    }
}

impl<'a> FileCollector<'a> {
    /// Compiles the patterns, each of which takes up to 2 ms.
    async fn new(
        patterns: &'a Arc<[CollectPattern]>,
        caps: CollectCaps,
        pace: &mut HostCallPacer<'_>,
    ) -> Self {
        let mut searched = Vec::with_capacity(patterns.len());
        for pattern in patterns.iter() {
            searched.push(SearchedPattern {
                pattern,
                matcher: pattern.compile(),
                has_matched: false,
            });
            pace.yield_when_due().await;
        }
        Self {
            patterns: searched,
            caps,
            collected: Vec::new(),
            bytes: 0,
            uncollected: UncollectedFiles::default(),
        }
    }

    /// Searches the file system for files that match, and collects them.
    async fn search(&mut self, fs: &SharedFs, pace: &mut HostCallPacer<'_>) {
        let end = Instant::now() + SEARCH_TIME;
        let root = lock(fs).root();
        let mut path = String::new();
        let mut above = vec![SearchedDirectory::new(root, 0)];
        while let Some(directory) = above.last_mut() {
            path.truncate(directory.path_length);
            let Some((name, node, kind)) = directory.next(fs) else {
                above.pop();
                continue;
            };
            if path.len() + 1 + name.len() > MAX_PATH {
                if self.leads_on(&path) {
                    self.uncollected
                        .add(&path, 0, UncollectedReason::PathTooLong);
                }
                continue;
            }
            path.push('/');
            path.push_str(&name);
            match kind {
                NodeKind::Directory if self.leads_on(&path) => {
                    above.push(SearchedDirectory::new(node, path.len()));
                }
                NodeKind::Directory => {}
                NodeKind::File | NodeKind::Symlink => {
                    self.consider(fs, &path, node, kind, pace).await;
                }
            }
            if Instant::now() >= end {
                self.uncollected
                    .add(&path, 0, UncollectedReason::SearchTimedOut);
                return;
            }
            pace.yield_when_due().await;
        }
    }

    /// Reports whether anything in a directory, or in one below it, may match.
    fn leads_on(&self, directory: &str) -> bool {
        let is_in = |path: &str, other: &str| {
            other == "/"
                || path
                    .strip_prefix(other)
                    .is_some_and(|it| it.is_empty() || it.starts_with('/'))
        };
        self.patterns.iter().any(|searched| {
            let wanted = searched.pattern.directory().as_str();
            is_in(wanted, directory) || is_in(directory, wanted)
        })
    }

    /// Collects a file if it matches and there is room for it.
    async fn consider(
        &mut self,
        fs: &SharedFs,
        path: &str,
        node: NodeId,
        kind: NodeKind,
        pace: &mut HostCallPacer<'_>,
    ) {
        let mut matches = false;
        for searched in &mut self.patterns {
            if searched.matcher.matches(path) {
                searched.has_matched = true;
                matches = true;
            }
            pace.yield_when_due().await;
        }
        if !matches {
            return;
        }
        let mut fs = lock(fs);
        let Ok(stat) = fs.stat(node) else {
            return;
        };
        let bytes = stat.size.saturating_add(path.len() as u64);
        let reason = if kind != NodeKind::File {
            Some(UncollectedReason::NotRegular)
        } else if self.collected.len() >= self.caps.max_files {
            Some(UncollectedReason::TooManyFiles)
        } else if bytes > self.caps.max_bytes - self.bytes {
            Some(UncollectedReason::TooManyBytes)
        } else {
            None
        };
        if let Some(reason) = reason {
            let size = if kind == NodeKind::File { stat.size } else { 0 };
            self.uncollected.add(path, size, reason);
            return;
        }
        let Ok(pieces) = fs.share(node) else {
            return;
        };
        self.bytes += bytes;
        self.collected.push(CollectedFile {
            head: Arc::new(FileHead {
                path: path.to_owned(),
                content_type: content_type(path),
                size: stat.size,
            }),
            pieces,
        });
    }

    /// Reports the paths without wildcards at which there is no file.
    fn name_missing(&mut self, fs: &SharedFs) {
        let fs = lock(fs);
        for searched in &self.patterns {
            if searched.has_matched || !searched.pattern.is_path() {
                continue;
            }
            let path = searched.pattern.as_str();
            let reason = match fs.stat_at(fs.root(), &path[1..], FollowLast::Never) {
                Ok(_) => UncollectedReason::NotRegular,
                Err(_) => UncollectedReason::NotFound,
            };
            self.uncollected.add(path, 0, reason);
        }
    }
}

/// Returns the media type that a file's extension stands for.
fn content_type(path: &str) -> &'static str {
    const UNKNOWN: &str = "application/octet-stream";
    mime_guess::from_path(path).first_raw().unwrap_or(UNKNOWN)
}
