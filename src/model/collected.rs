//! The files that a run returns when it has ended, and those that it could not.

use std::sync::Arc;

use bytes::Bytes;

/// The most bytes of the names of all uncollected files that are named in a result.
const NAMED_BYTES: usize = 4096;
/// The most uncollected files that are named in a result.
const MAX_NAMED: usize = 16;

/// What is told of a collected file beside its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileHead {
    /// The absolute path in the guest.
    pub path: String,
    /// The media type that the name's extension stands for.
    pub content_type: &'static str,
    /// The size in bytes.
    pub size: u64,
}

/// A file that a run returns.
#[derive(Clone, Debug)]
pub struct CollectedFile {
    /// What the file is called, and how large it is.
    pub head: Arc<FileHead>,
    /// Its contents, in pieces of at most 64 KiB.
    pub pieces: Vec<Bytes>,
}

impl CollectedFile {
    /// Returns how many bytes an answer has for the file: its contents, its names and what is
    /// around them.
    pub fn bytes(&self) -> usize {
        /// More than the tags and lengths of the fields take.
        const AROUND: usize = 32;
        let contents: usize = self.pieces.iter().map(Bytes::len).sum();
        contents + self.head.path.len() + self.head.content_type.len() + AROUND
    }
}

/// Why a file was not collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UncollectedReason {
    /// Nothing has the path.
    NotFound,
    /// It is no regular file, but a directory or a symbolic link.
    NotRegular,
    /// The run returns as many files as it may already.
    TooManyFiles,
    /// With it, the run would return more bytes than it may.
    TooManyBytes,
    /// Files in this directory have paths that are longer than a path may be.
    PathTooLong,
    /// The search took too long, and ended in this directory.
    SearchTimedOut,
}

/// A file that was asked for and is not returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UncollectedFile {
    /// The absolute path in the guest.
    pub path: String,
    /// The size in bytes; 0 where it is no regular file.
    pub size: u64,
    /// Why it is not returned.
    pub reason: UncollectedReason,
}

/// The files that were asked for and are not returned: the first few, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UncollectedFiles {
    /// The first of them, in the order in which they were found.
    pub named: Vec<UncollectedFile>,
    /// How many there are, those that are not named included.
    pub count: u64,
    named_bytes: usize,
}

impl UncollectedFiles {
    /// Adds a file, which is named while there is room for names.
    pub fn add(&mut self, path: &str, size: u64, reason: UncollectedReason) {
        self.count += 1;
        let has_room = self.named_bytes + path.len() <= NAMED_BYTES && self.named.len() < MAX_NAMED;
        // Once one is left out, all after it are, so that those named are the first.
        if has_room && self.named.len() as u64 + 1 == self.count {
            self.named_bytes += path.len();
            self.named.push(UncollectedFile {
                path: path.to_owned(),
                size,
                reason,
            });
        }
    }

    /// Returns how many bytes the names take.
    pub fn named_bytes(&self) -> usize {
        self.named_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_few_are_named_and_all_are_counted() {
        let mut files = UncollectedFiles::default();
        for i in 0..20_u64 {
            files.add(&i.to_string(), i, UncollectedReason::TooManyFiles);
        }
        assert_eq!((files.named.len(), files.count), (16, 20));
        assert_eq!(files.named[15].path, "15");
        let mut files = UncollectedFiles::default();
        files.add(&"n".repeat(4000), 1, UncollectedReason::NotFound);
        files.add(&"n".repeat(97), 1, UncollectedReason::NotFound);
        files.add("short", 1, UncollectedReason::NotFound);
        assert_eq!((files.named.len(), files.count), (1, 3));
    }
}
