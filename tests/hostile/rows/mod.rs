//! The table, by what the guests are after.

mod ends;
mod files;
mod memory;
mod modules;
mod output;
mod time;

use crate::folder::Folder;
use crate::row::Row;

/// All rows.
pub(crate) fn all(folder: &Folder) -> Vec<Row> {
    let mut rows = time::rows();
    rows.extend(memory::rows());
    rows.extend(output::rows());
    rows.extend(files::rows(folder));
    rows.extend(modules::rows());
    rows.extend(ends::rows());
    rows
}
