//! Decodes the files in memory of a run: those that it begins with and those that it returns.

use bytes::Bytes;

use super::proto;
use crate::model::policy::Policy;
use crate::model::refusal::Refusal;
use crate::model::request::{self, CollectCaps, FileSpec};

/// Decodes the files that a run begins with and those that it returns, with `directories` that it
/// begins with too; `None` if there are none of these.
///
/// # Errors
/// `SPEC_INVALID` or `LIMIT_ABOVE_MAXIMUM`, with the field's name.
pub(super) fn file_spec(
    files: Vec<proto::File>,
    collect: &[String],
    directories: &'static [&'static str],
    policy: &Policy,
) -> Result<Option<Box<FileSpec>>, Refusal> {
    if files.is_empty() && collect.is_empty() && directories.is_empty() {
        return Ok(None);
    }
    let files = files.into_iter().map(|file| {
        let proto::File { path, data } = file;
        (path, data)
    });
    let max_files = policy.max_files as usize;
    Ok(Some(Box::new(FileSpec {
        given: request::given_files("spec.files", files, max_files, policy.max_file_bytes)?,
        directories,
        collect: request::collect_patterns("spec.collect", collect)?,
        caps: CollectCaps {
            max_files: policy.max_collect_files as usize,
            max_bytes: policy.max_collect_bytes,
        },
    })))
}

/// Takes the contents of the files that a run begins with out of their request: `hold` ties them to
/// the request's charge. Small files are copied, so that a run does not hold its whole request for
/// the sake of a few of its bytes.
pub(super) fn share_files(files: &mut FileSpec, hold: impl Fn(Bytes) -> Bytes) {
    /// The most bytes of a file that is copied.
    const COPIED: usize = 4 << 10;
    for file in &mut files.given {
        let bytes = std::mem::take(&mut file.bytes);
        file.bytes = match bytes.len() <= COPIED {
            true => Bytes::copy_from_slice(&bytes),
            false => hold(bytes),
        };
    }
}
