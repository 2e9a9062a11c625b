//! Writing to what the command prints to.

use std::io::Write;

use super::failure::Failure;

/// Writes all of `bytes`, and flushes them.
pub(super) fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush())?;
    Ok(())
}
