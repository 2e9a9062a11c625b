//! What a run uses of linear memory and tables.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use super::engine::POOLED_TABLE_ELEMENTS;
use crate::guest_limits::{INSTANCES, MEMORIES, TABLE_ELEMENTS, TABLES};
use crate::outcome::Usage;

/// Limits the linear memories of a run, all together and with the directory listings that the host holds for it, and
/// counts what it held at the most.
///
/// A growth over the limit is denied as the WebAssembly specification says, by -1; whether one was is remembered, so
/// that a run which did not cope is told apart from one that did.
#[derive(Debug)]
pub struct Meter {
    limit: usize,
    held: usize,
    peak: usize,
    table_elements: usize,
    denied: bool,
    usage: Arc<Usage>,
}

impl Meter {
    /// Of `limit` bytes, telling `usage` of them.
    pub fn new(limit: usize, usage: Arc<Usage>) -> Self {
        Self {
            limit,
            held: 0,
            peak: 0,
            table_elements: 0,
            denied: false,
            usage,
        }
    }

    /// The most bytes held at once.
    pub fn peak(&self) -> u64 {
        self.peak.max(self.held) as u64
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> u64 {
        self.held as u64
    }

    /// Whether a growth was denied.
    pub fn denied(&self) -> bool {
        self.denied
    }

    /// Counts bytes that the host holds for the guest as if they were linear memory; where that is too much it counts
    /// nothing, remembers the denial and says no.
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        match self.held.checked_add(bytes) {
            Some(held) if held <= self.limit => {
                self.held = held;
                self.usage.set_memory(held as u64);
                true
            }
            _ => {
                self.denied = true;
                false
            }
        }
    }

    /// Takes back what was charged.
    pub(super) fn release(&mut self, bytes: usize) {
        self.peak = self.peak.max(self.held);
        self.held = self.held.saturating_sub(bytes);
    }
}

impl ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.peak = self.peak.max(self.held);
        if maximum.is_some_and(|maximum| desired > maximum) {
            // Over the module's own maximum: fails by itself, and is no denial of ours.
            return Ok(true);
        }
        Ok(self.charge(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // Nothing is given back: this is also called for growths that were never counted, and counting too much is
        // safe where counting too little is not.
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if let Some(maximum) = maximum
            && desired > maximum
        {
            // The pool's own bound is told as the table's: past that it is the host that says no.
            self.denied |= maximum == POOLED_TABLE_ELEMENTS;
            return Ok(true);
        }
        let added = desired.saturating_sub(current);
        let total = self.table_elements.saturating_add(added);
        if total > TABLE_ELEMENTS.size() {
            self.denied = true;
            return Ok(false);
        }
        self.table_elements = total;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        Ok(())
    }

    fn instances(&self) -> usize {
        // Inspection allows INSTANCES of a module's own. The adapters that the compiler makes between components
        // are instances too, and are seen here only.
        2 * INSTANCES.size()
    }

    fn tables(&self) -> usize {
        TABLES.size()
    }

    fn memories(&self) -> usize {
        MEMORIES.size()
    }
}
