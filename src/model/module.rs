//! The description of a module, as listings tell it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The description of a module: its name, its memory, its exports and imports. All names are
/// printable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleDescription {
    /// Whether it is a component rather than a core module.
    pub component: bool,
    /// The name that the module gives itself.
    pub name: String,
    /// The sum of its memories' minimums, in pages of 64 KiB.
    pub memory_minimum_pages: u64,
    /// The exports, at most 1,000 of them.
    pub exports: Vec<Exported>,
    /// The imports, at most 1,000 of them.
    pub imports: Vec<Imported>,
}

/// One export of a module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    /// The name of the export.
    pub name: String,
    /// The kind of item that is exported.
    pub kind: Cow<'static, str>,
    /// The type of a core function; empty for any other export.
    pub signature: String,
}

/// One import of a module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Imported {
    /// The name of the module that it is imported from; empty for a component's import.
    pub module: String,
    /// The name of the import.
    pub name: String,
    /// The kind of item that is imported.
    pub kind: Cow<'static, str>,
}

impl ModuleDescription {
    /// Estimates how many bytes of memory the description takes.
    pub fn weight(&self) -> usize {
        /// Overhead of an entry in bytes, besides its text.
        const ENTRY: usize = 128;
        let exports = self
            .exports
            .iter()
            .map(|export| export.name.len() + export.signature.len());
        let imports = self
            .imports
            .iter()
            .map(|import| import.module.len() + import.name.len());
        exports.chain(imports).map(|n| n + ENTRY).sum::<usize>() + ENTRY
    }
}
