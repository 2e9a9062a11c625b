//! The files that a caller gives to a run, and the patterns of those that it wants back.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use globset::{Glob, GlobBuilder, GlobMatcher, GlobSetBuilder};

use super::{Digest, GuestPath, check_text};
use crate::model::refusal::{Refusal, quote};

/// The most patterns of files to collect.
pub const MAX_PATTERNS: usize = 16;
/// The most bytes of one pattern.
const MAX_PATTERN_BYTES: usize = 1024;
/// The most bytes of one name in a path, as on Linux.
const MAX_NAME_BYTES: usize = 255;
/// The most names in a path: each is a directory, which costs far more than its bytes.
const MAX_DEPTH: usize = 64;
/// The most wildcards of a pattern, which bound the memory that matching takes.
const MAX_WILDCARDS: usize = 32;

/// What a run has of files in memory, where it has any.
#[derive(Clone, Debug)]
pub struct FileSpec {
    /// The files that the run begins with.
    pub given: Vec<GivenFile>,
    /// The directories that the run begins with, besides those of its files and patterns.
    pub directories: &'static [&'static str],
    /// The patterns of the files that it returns.
    pub collect: Arc<[CollectPattern]>,
    /// The caps on what it returns.
    pub caps: CollectCaps,
}

impl FileSpec {
    /// Returns what distinguishes these files, and what is returned of them, from others.
    pub(super) fn fingerprint(&self) -> impl fmt::Debug {
        let Self {
            given,
            directories,
            collect,
            caps: _,
        } = self;
        let given = given.iter();
        let given: Vec<_> = given
            .map(|file| (&file.path, Digest::of(&file.bytes)))
            .collect();
        (given, directories, collect)
    }
}

/// The caps on the files that a run returns.
#[derive(Clone, Copy, Debug)]
pub struct CollectCaps {
    /// The most files that are returned.
    pub max_files: usize,
    /// The most bytes that all returned files have together.
    pub max_bytes: u64,
}

/// A file that a run begins with.
#[derive(Clone, Debug)]
pub struct GivenFile {
    /// The path at which the guest finds it.
    pub path: GuestPath,
    /// The contents of the file.
    pub bytes: Bytes,
}

/// A pattern of files that a run returns: the path of one file, or a glob.
#[derive(Clone)]
pub struct CollectPattern {
    text: String,
    /// The directory that all matching files are in, as far as that has no wildcards.
    directory: GuestPath,
    /// The glob; `None` for the path of one file.
    glob: Option<Glob>,
}

impl fmt::Debug for CollectPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

impl CollectPattern {
    /// Parses a pattern, and drops its "." parts and repeated slashes.
    ///
    /// # Errors
    /// `SPEC_INVALID` where it is not absolute, has a NUL byte or a ".." part, names no file, or is
    /// no glob; `LIMIT_ABOVE_MAXIMUM` where it is too long.
    fn parse(field: &str, text: &str) -> Result<Self, Refusal> {
        check_text(field, text, MAX_PATTERN_BYTES)?;
        let path = GuestPath::parse(field, text)?;
        if path.is_root() {
            let message = format!("\"{}\" names no file", quote(text));
            return Err(Refusal::invalid(field, message));
        }
        let text = path.0;
        let literal = text.find(['*', '?', '[', '{', '\\']);
        let slash = text[..literal.unwrap_or(text.len())].rfind('/');
        let directory = match slash {
            None | Some(0) => "/",
            Some(slash) => &text[..slash],
        };
        let depth = text.matches('/').count();
        let wildcards = text.matches(['*', '?', '[', '{']).count();
        if depth > MAX_DEPTH || wildcards > MAX_WILDCARDS {
            let message = format!(
                "has {depth} names and {wildcards} wildcards; allowed are {MAX_DEPTH} and {MAX_WILDCARDS}"
            );
            return Err(Refusal::invalid(field, message));
        }
        let glob = match literal {
            None => None,
            Some(_) => {
                let glob = GlobBuilder::new(&text)
                    .literal_separator(true)
                    .backslash_escape(true)
                    .build();
                // Compiling it is tried here, since what is refused then would panic later.
                let glob = glob.and_then(|glob| {
                    let mut tried = GlobSetBuilder::new();
                    tried.add(glob.clone());
                    tried.build().map(|_| glob)
                });
                Some(glob.map_err(|error| {
                    let why = quote(&error.kind().to_string());
                    let message = format!("\"{}\" is no pattern: {why}", quote(&text));
                    Refusal::invalid(field, message)
                })?)
            }
        };
        Ok(Self {
            directory: GuestPath(directory.to_owned()),
            text,
            glob,
        })
    }

    /// Returns the pattern as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the directory that all matching files are in. The guest finds it made.
    pub fn directory(&self) -> &GuestPath {
        &self.directory
    }

    /// Reports whether the pattern is the path of one file.
    pub fn is_path(&self) -> bool {
        self.glob.is_none()
    }

    /// Compiles the pattern. Matching takes time linear in the length of a path.
    pub fn compile(&self) -> PathMatcher {
        PathMatcher {
            text: self.text.clone(),
            glob: self.glob.as_ref().map(Glob::compile_matcher),
        }
    }
}

/// A pattern that was compiled.
#[derive(Debug)]
pub struct PathMatcher {
    text: String,
    glob: Option<GlobMatcher>,
}

impl PathMatcher {
    /// Reports whether an absolute path matches.
    pub fn matches(&self, path: &str) -> bool {
        match &self.glob {
            Some(glob) => glob.is_match(path),
            None => path == self.text,
        }
    }
}

/// Checks the files that a run begins with, of which there may be `max_files`, with `max_bytes` in
/// all.
///
/// # Errors
/// `SPEC_INVALID` for a path that is not absolute, has a NUL byte or a ".." part, is "/", is there
/// twice, or is a directory of another one; `LIMIT_ABOVE_MAXIMUM` for too many files, too many
/// bytes, or a path or name that is too long.
pub fn given_files(
    field: &str,
    files: impl ExactSizeIterator<Item = (String, Bytes)>,
    max_files: usize,
    max_bytes: u64,
) -> Result<Vec<GivenFile>, Refusal> {
    if files.len() > max_files {
        const SETTING: &str = "policy.max_files";
        return Err(Refusal::above_ceiling(
            field,
            SETTING,
            files.len(),
            max_files,
        ));
    }
    let mut given = Vec::with_capacity(files.len());
    let (mut seen, mut total) = (HashSet::with_capacity(files.len()), 0_u64);
    for (index, (path, bytes)) in files.enumerate() {
        let at = || format!("{field}[{index}].path");
        let path = GuestPath::parse(&at(), &path)?;
        if path.is_root() {
            return Err(Refusal::invalid(at(), "is \"/\", which is a directory"));
        }
        if let Some(name) = path.0.split('/').find(|name| name.len() > MAX_NAME_BYTES) {
            return Err(Refusal::above(at(), name.len(), MAX_NAME_BYTES));
        }
        let depth = path.0.matches('/').count();
        if depth > MAX_DEPTH {
            let message = format!("has {depth} names; allowed are {MAX_DEPTH}");
            return Err(Refusal::invalid(at(), message));
        }
        if !seen.insert(path.clone()) {
            let message = format!("\"{}\" is given twice", quote(&path.0));
            return Err(Refusal::invalid(at(), message));
        }
        total += bytes.len() as u64;
        given.push(GivenFile { path, bytes });
    }
    if total > max_bytes {
        const SETTING: &str = "policy.max_file_bytes";
        return Err(Refusal::above_ceiling(field, SETTING, total, max_bytes));
    }
    for (index, file) in given.iter().enumerate() {
        let slashes = file.path.0.match_indices('/').skip(1);
        let mut above = slashes.map(|(slash, _)| GuestPath(file.path.0[..slash].to_owned()));
        if let Some(other) = above.find(|above| seen.contains(above)) {
            let message = format!(
                "\"{}\" lies in \"{}\", which is a file",
                quote(&file.path.0),
                quote(&other.0)
            );
            return Err(Refusal::invalid(format!("{field}[{index}].path"), message));
        }
    }
    Ok(given)
}

/// Checks the patterns of the files that a run returns.
///
/// # Errors
/// `SPEC_INVALID` for what is no pattern of absolute paths; `LIMIT_ABOVE_MAXIMUM` for too many, or
/// for one that is too long.
pub fn collect_patterns(
    field: &str,
    patterns: &[String],
) -> Result<Arc<[CollectPattern]>, Refusal> {
    if patterns.len() > MAX_PATTERNS {
        return Err(Refusal::above(field, patterns.len(), MAX_PATTERNS));
    }
    let parsed = patterns.iter().enumerate().map(|(index, text)| {
        let field = format!("{field}[{index}]");
        CollectPattern::parse(&field, text)
    });
    parsed.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> CollectPattern {
        CollectPattern::parse("collect", text).expect("it is a pattern")
    }

    #[test]
    fn a_pattern_matches_as_shells_do() {
        for (text, directory, yes, no) in [
            (
                "/out/a.txt",
                "/out",
                &["/out/a.txt"][..],
                &["/out/b.txt", "/out/a.txt/x"][..],
            ),
            (
                "//out/./*.txt",
                "/out",
                &["/out/a.txt", "/out/.txt"],
                &["/out/b/a.txt", "/out/a"],
            ),
            (
                "/out/**",
                "/out",
                &["/out/a", "/out/b/c"],
                &["/outer", "/o/a"],
            ),
            (
                "/out/**/x",
                "/out",
                &["/out/x", "/out/b/c/x"],
                &["/out/b/xx"],
            ),
            (
                "/a?[b-d]",
                "/",
                &["/axb", "/a.d"],
                &["/axe", "/a/b", "/xaxb"],
            ),
            ("/o*/x", "/", &["/out/x", "/o/x"], &["/out/b/x"]),
            ("/a/{b,c/d}", "/a", &["/a/b", "/a/c/d"], &["/a/d"]),
            ("/a/\\*", "/a", &["/a/*"], &["/a/b"]),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.directory().as_str(), directory, "{text}");
            let matcher = pattern.compile();
            assert!(yes.iter().all(|path| matcher.matches(path)), "{text}");
            assert!(!no.iter().any(|path| matcher.matches(path)), "{text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_linear_time() {
        let stars = "/".to_owned() + &"*a".repeat(MAX_WILDCARDS);
        let deep = "/**".repeat(MAX_WILDCARDS / 2) + "/b";
        let path = "/a".to_owned() + &"a".repeat(4000);
        let nested = "/a".repeat(2000);
        let start = std::time::Instant::now();
        assert!(!pattern(&(stars + "b")).compile().matches(&path));
        assert!(!pattern(&deep).compile().matches(&nested));
        assert!(
            start.elapsed() < std::time::Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
}
