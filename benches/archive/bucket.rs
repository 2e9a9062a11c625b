//! A bucket of S3 over the folder of an archive, each of whose answers takes its time.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::scripted::{Asked, Reply, Scripted};

/// How long the bucket takes for an answer: what S3 takes for a small object, about.
pub(crate) const TAKES: Duration = Duration::from_millis(20);
/// Keys and folders of one answer to a listing.
const LISTED: usize = 1000;

/// A bucket, which nothing is written to.
pub(crate) struct Bucket {
    /// "127.0.0.1:port".
    pub(crate) host: String,
    requests: Arc<AtomicUsize>,
}

struct Objects {
    folder: PathBuf,
    sizes: BTreeMap<String, u64>,
}

impl Bucket {
    /// Serves the files of a folder.
    pub(crate) fn serve(folder: &Path) -> Self {
        let mut sizes = BTreeMap::new();
        gather(folder, folder, &mut sizes);
        let objects = Objects {
            folder: folder.to_owned(),
            sizes,
        };
        let requests = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&requests);
        let server = Scripted::start(move |asked| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(TAKES);
            objects.answer(asked)
        });
        Self {
            host: server.host,
            requests,
        }
    }

    /// How many requests it was sent so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

fn gather(root: &Path, folder: &Path, sizes: &mut BTreeMap<String, u64>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::metadata(&path).unwrap();
        if meta.is_dir() {
            gather(root, &path, sizes);
        } else {
            let key = path.strip_prefix(root).unwrap().to_str().unwrap();
            sizes.insert(key.to_owned(), meta.len());
        }
    }
}

impl Objects {
    fn answer(&self, asked: &Asked) -> Reply {
        let key = asked.path().strip_prefix("/bucket").unwrap_or_default();
        let key = key.trim_start_matches('/');
        if key.is_empty() {
            return self.listing(asked);
        }
        let Ok(bytes) = fs::read(self.folder.join(key)) else {
            let body = "<Error><Code>NoSuchKey</Code></Error>";
            return Reply::new(404, body).with("content-type", "application/xml");
        };
        Reply::object(asked, &bytes)
    }

    /// A page of a listing, of folders too where a delimiter is given.
    fn listing(&self, asked: &Asked) -> Reply {
        let prefix = asked.query("prefix").unwrap_or_default();
        let divides = asked.query("delimiter").is_some();
        let mut next = asked
            .query("continuation-token")
            .unwrap_or_else(|| prefix.clone());
        let (mut listed, mut entries, mut is_whole) = (0, String::new(), true);
        loop {
            let from = (Bound::Included(next.clone()), Bound::Unbounded);
            let Some((key, size)) = self.sizes.range(from).next() else {
                break;
            };
            let Some(rest) = key.strip_prefix(&prefix) else {
                break;
            };
            if listed == LISTED {
                is_whole = false;
                break;
            }
            listed += 1;
            match rest.split_once('/') {
                Some((folder, _)) if divides => {
                    let folder = format!("{prefix}{folder}");
                    entries.push_str(&format!(
                        "<CommonPrefixes><Prefix>{folder}/</Prefix></CommonPrefixes>"
                    ));
                    // What follows a slash.
                    next = format!("{folder}0");
                }
                _ => {
                    entries.push_str(&format!(
                        "<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2026-11-28T20:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
                    ));
                    next = format!("{key}!");
                }
            }
        }
        let more = match is_whole {
            true => String::new(),
            false => format!("<NextContinuationToken>{next}</NextContinuationToken>"),
        };
        let body = format!(
            "<ListBucketResult><IsTruncated>{}</IsTruncated>{more}{entries}</ListBucketResult>",
            !is_whole
        );
        Reply::new(200, body).with("content-type", "application/xml")
    }
}
