//! What a module is, as listings tell it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// What a module is. Names are printable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Description {
    /// Whether it is a component.
    pub component: bool,
    /// Its own name.
    pub name: String,
    /// The sum of its memories' minimums, in pages of 64 KiB.
    pub memory_minimum_pages: u64,
    /// Exports, at most 1,000.
    pub exports: Vec<Exported>,
    /// Imports, at most 1,000.
    pub imports: Vec<Imported>,
}

/// One export.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Cow<'static, str>,
    /// A core function's type.
    pub signature: String,
}

/// One import.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Imported {
    /// The module that it is imported from; empty for a component's.
    pub module: String,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Cow<'static, str>,
}

impl Description {
    /// About how many bytes this takes.
    pub fn weight(&self) -> usize {
        /// What an entry takes besides its text.
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
