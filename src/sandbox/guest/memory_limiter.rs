//! Limits and counts a run's linear memory and tables, as wasmtime's resource limiter.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use super::memory_fs::account::FileMemoryAccount;
use crate::model::guest_limits::{INSTANCES, MEMORIES, TABLE_ELEMENTS, TABLES};
use crate::model::outcome::LiveUsage;

/// Elements of a pooled table; the largest interpreters have about 12,000.
pub(in crate::sandbox) const POOLED_TABLE_ELEMENTS: usize = 1 << 16;

/// The resource limiter of one run. It limits the run's linear memories in total, together with the
/// directory listings and the memory file system that the host holds for the run, and records their
/// peak.
///
/// A growth over the limit is denied as the WebAssembly specification says, by -1. The denial is
/// remembered, so that a run which failed because of it is told apart from one that coped.
#[derive(Debug)]
pub struct MemoryLimiter {
    limit: usize,
    held: usize,
    peak: usize,
    table_elements: usize,
    denied: bool,
    usage: Arc<LiveUsage>,
    /// What the run's memory file system holds, which counts against the same limit; `None` where
    /// the run has none.
    files: Option<Arc<FileMemoryAccount>>,
}

impl MemoryLimiter {
    /// Creates a limiter of `limit` bytes, which reports the bytes held to `usage`.
    pub fn new(limit: usize, usage: Arc<LiveUsage>) -> Self {
        Self {
            limit,
            held: 0,
            peak: 0,
            table_elements: 0,
            denied: false,
            usage,
            files: None,
        }
    }

    /// Begins to count for the next run of a session, which holds what is held now, and reports to
    /// `usage`. `files` is the account of its memory file system.
    pub(in crate::sandbox) fn renew(
        &mut self,
        usage: Arc<LiveUsage>,
        files: Option<Arc<FileMemoryAccount>>,
    ) {
        self.peak = 0;
        self.denied = false;
        usage.set_memory(self.held as u64);
        self.usage = usage;
        self.files = files;
    }

    /// Makes the limit one of linear memory and of a memory file system together.
    pub(in crate::sandbox) fn share_with(&mut self, files: Arc<FileMemoryAccount>) {
        self.files = Some(files);
    }

    /// Returns how many bytes the memory file system holds.
    fn files_held(&self) -> usize {
        self.files.as_ref().map_or(0, |files| files.held())
    }

    /// Returns the largest number of bytes that were held at once.
    pub fn peak(&self) -> u64 {
        let own = self.peak.max(self.held);
        self.files
            .as_ref()
            .map_or(own, |files| files.peak().max(own)) as u64
    }

    /// Returns the number of bytes held now.
    pub(in crate::sandbox) fn held(&self) -> u64 {
        self.held as u64
    }

    /// Reports whether a growth was denied.
    pub fn denied(&self) -> bool {
        self.denied || self.files.as_ref().is_some_and(|files| files.denied())
    }

    /// Charges for bytes that the host holds for the guest as if they were linear memory, and
    /// returns true. Where that would exceed the limit, it charges nothing, remembers the denial
    /// and returns false.
    pub(in crate::sandbox) fn charge(&mut self, bytes: usize) -> bool {
        match self.held.checked_add(bytes) {
            Some(held) if held.saturating_add(self.files_held()) <= self.limit => {
                self.held = held;
                match &self.files {
                    None => self.usage.set_memory(held as u64),
                    Some(files) => files.set_linear(held),
                }
                true
            }
            _ => {
                self.denied = true;
                false
            }
        }
    }

    /// Releases bytes that were charged.
    pub(in crate::sandbox) fn release(&mut self, bytes: usize) {
        self.peak = self.peak.max(self.held);
        self.held = self.held.saturating_sub(bytes);
        if let Some(files) = &self.files {
            files.set_linear(self.held);
        }
    }
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.peak = self.peak.max(self.held);
        if maximum.is_some_and(|maximum| desired > maximum) {
            // A growth over the module's own maximum fails by itself, and is not denied by this
            // limiter.
            return Ok(true);
        }
        Ok(self.charge(desired.saturating_sub(current)))
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        // Nothing is released here: this is also called for growths that were never counted, and
        // counting too much is safe where counting too little is not.
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
            // The pool's bound is reported as the table's maximum. Past it, it is the host that
            // denies the growth.
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
        // Inspection allows a module INSTANCES of its own. The adapters that the compiler makes
        // between components are instances too, and are seen only here.
        2 * INSTANCES.size()
    }

    fn tables(&self) -> usize {
        TABLES.size()
    }

    fn memories(&self) -> usize {
        MEMORIES.size()
    }
}

#[cfg(test)]
mod tests;
