//! The account of what a run's memory file system holds. It shares one limit with the run's linear
//! memory: neither may grow where both together would exceed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::model::outcome::LiveUsage;

/// The account of the bytes that the memory file system of one run holds, beside its linear memory.
///
/// A run has one guest, which makes one call at a time, so no two threads change the account at
/// once; the counters are atomic because streams share it with the run's store.
#[derive(Debug)]
pub(in crate::sandbox) struct FileMemoryAccount {
    limit: AtomicUsize,
    /// What the run holds besides its files: linear memory and directory listings.
    linear: AtomicUsize,
    files: AtomicUsize,
    peak: AtomicUsize,
    denied: AtomicBool,
    usage: Arc<LiveUsage>,
}

impl FileMemoryAccount {
    /// Creates the account of a run that may hold `limit` bytes in total, and reports what it holds
    /// to `usage`.
    pub(in crate::sandbox) fn new(limit: usize, usage: Arc<LiveUsage>) -> Arc<Self> {
        Arc::new(Self {
            limit: AtomicUsize::new(limit),
            linear: AtomicUsize::new(0),
            files: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            denied: AtomicBool::new(false),
            usage,
        })
    }

    /// Creates the account of the next run of a session, which holds what this one does.
    pub(in crate::sandbox) fn renewed(&self, usage: Arc<LiveUsage>) -> Arc<Self> {
        let account = Self {
            limit: AtomicUsize::new(self.limit.load(Ordering::Relaxed)),
            linear: AtomicUsize::new(self.linear()),
            files: AtomicUsize::new(self.held()),
            peak: AtomicUsize::new(0),
            denied: AtomicBool::new(false),
            usage,
        };
        account.note_peak();
        Arc::new(account)
    }

    /// Changes the limit. What is held already stays.
    pub(in crate::sandbox) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Charges for `bytes` and returns true. Where that would exceed the run's limit, it charges
    /// nothing, remembers the denial and returns false.
    pub(in crate::sandbox) fn charge(&self, bytes: usize) -> bool {
        if !self.has_room(bytes) {
            self.denied.store(true, Ordering::Relaxed);
            return false;
        }
        self.files.fetch_add(bytes, Ordering::Relaxed);
        self.note_peak();
        true
    }

    /// Reports whether `bytes` more could be charged now.
    pub(in crate::sandbox) fn has_room(&self, bytes: usize) -> bool {
        let held = self.held().saturating_add(self.linear());
        held.saturating_add(bytes) <= self.limit.load(Ordering::Relaxed)
    }

    /// Releases bytes that were charged.
    pub(in crate::sandbox) fn release(&self, bytes: usize) {
        self.files.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Returns how many bytes the files hold now.
    pub(in crate::sandbox) fn held(&self) -> usize {
        self.files.load(Ordering::Relaxed)
    }

    /// Notes how many bytes the run holds besides its files.
    pub(in crate::sandbox) fn set_linear(&self, bytes: usize) {
        self.linear.store(bytes, Ordering::Relaxed);
        self.note_peak();
    }

    /// Returns the largest number of bytes that files and linear memory held at once.
    pub(in crate::sandbox) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Reports whether a charge was denied.
    pub(in crate::sandbox) fn denied(&self) -> bool {
        self.denied.load(Ordering::Relaxed)
    }

    fn linear(&self) -> usize {
        self.linear.load(Ordering::Relaxed)
    }

    fn note_peak(&self) {
        let held = self.held().saturating_add(self.linear());
        self.peak.fetch_max(held, Ordering::Relaxed);
        self.usage.set_memory(held as u64);
    }
}
