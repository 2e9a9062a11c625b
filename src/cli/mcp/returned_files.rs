//! The files that a run returns, as an agent is shown them: whole, or named where they do not fit.

use std::fmt::Write;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::api::proto::{CollectedFile, RunResult};
use crate::cli::out_folder::why_uncollected;
use crate::model::refusal::{printable, quote};

/// The most files that are named of those that are left out.
const NAMED: usize = 16;

/// A file that the run was asked for, and that is not shown.
struct LeftOutFile<'a> {
    path: &'a str,
    size: u64,
    why: String,
}

/// The files that a run returned, in the forms that a report has.
pub(super) struct FilesReport {
    /// What is said of those that are not shown, which begins with the end of a line.
    pub(super) told: String,
    /// A block of text for each file that is shown.
    pub(super) blocks: Vec<String>,
    /// The files that are shown, as JSON.
    pub(super) shown: Vec<Value>,
    /// The first files that are not shown, as JSON.
    pub(super) left_out: Vec<Value>,
    /// How many files are not shown.
    pub(super) left_out_total: u64,
}

impl FilesReport {
    /// Creates the report of the files that a run returned, as long as their paths and contents
    /// have at most `most` bytes together. Those that are left out are named, up to as many bytes.
    pub(super) fn new(result: &RunResult, files: &[CollectedFile], most: usize) -> Self {
        let mut room = most;
        let (mut shown, mut left_out) = (Vec::new(), Vec::new());
        for file in files {
            let size = file.path.len() + file.data.len();
            if size <= room {
                room -= size;
                shown.push(show_file(file));
            } else {
                left_out.push(LeftOutFile {
                    path: &file.path,
                    size: file.data.len() as u64,
                    why: format!("the files of an answer have at most {most} bytes together"),
                });
            }
        }
        left_out.extend(result.uncollected.iter().map(|file| LeftOutFile {
            path: &file.path,
            size: file.size,
            why: why_uncollected(file.reason()).to_owned(),
        }));
        // The daemon itself names but the first.
        let unnamed = result.uncollected_total;
        let unnamed = unnamed.saturating_sub(result.uncollected.len() as u64);
        let left_out_total = left_out.len() as u64 + unnamed;
        let mut room = most;
        let named = left_out.iter().take(NAMED).take_while(|file| {
            let fits = file.path.len() <= room;
            room = room.saturating_sub(file.path.len());
            fits
        });
        let named: Vec<_> = named.collect();
        let mut told = describe_left_out(&named, left_out_total);
        if files.is_empty() && left_out_total == 0 {
            told.push_str("\nIt left no file that was to be returned.");
        }
        let (blocks, shown) = shown.into_iter().unzip();
        Self {
            told,
            blocks,
            shown,
            left_out: named.into_iter().map(LeftOutFile::json).collect(),
            left_out_total,
        }
    }
}

impl LeftOutFile<'_> {
    fn json(&self) -> Value {
        json!({ "path": self.path, "size": self.size, "why": self.why })
    }
}

/// Describes the files that are not shown, of which some are named.
fn describe_left_out(named: &[&LeftOutFile<'_>], total: u64) -> String {
    let mut told = String::new();
    // Writing to a string cannot fail.
    for LeftOutFile { path, size, why } in named {
        let path = quote(path);
        let _ = write!(
            told,
            "\nThe file \"{path}\" ({size} bytes) is not here: {why}."
        );
    }
    match total.saturating_sub(named.len() as u64) {
        0 => {}
        rest => {
            let _ = write!(told, "\n{rest} more files are not here.");
        }
    }
    told
}

/// Formats a file as a block of text, and as JSON.
fn show_file(file: &CollectedFile) -> (String, Value) {
    let CollectedFile {
        path,
        content_type,
        data,
    } = file;
    let size = data.len();
    let (name, how, contents) = match std::str::from_utf8(data) {
        Ok(text) => ("text", "", text.to_owned()),
        Err(_) => {
            let encoded = base64::engine::general_purpose::STANDARD.encode(data);
            ("base64", ", in base64", encoded)
        }
    };
    let title = format!(
        "file {} ({size} bytes, {}{how})",
        printable(path),
        printable(content_type)
    );
    let block = format!("{title}:\n{contents}");
    let facts = json!({ "path": path, "content_type": content_type, "size": size, name: contents });
    (block, facts)
}
