//! Hands runs that have ended to the archive: which of them, and what of each.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::record::Run;
use super::snapshot::RunRecord;
use crate::archive::{ArchivableRun, Archive, ArchiveMark, EncodedRun, MAX_OUTPUT};
use crate::event_log::{Event, EventPayload, RunEnd};
use crate::model::outcome::Outcome;
use crate::model::request::Labels;

/// Rough bytes that a run holds until it is archived, besides its record and its output.
const REST: usize = 1024;
/// Rough bytes that an event holds until then besides its output, which is held twice: as it was
/// written, and in the line that is made of it.
const EVENT: usize = 320;
/// The random bits at the end of a run's number.
const RANDOM_BITS: u32 = 62;

/// Which ended runs are archived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveChoice {
    /// Every run that ends.
    All,
    /// Runs with a label.
    Labelled,
    /// Runs that ended in any other way than with exit code 0.
    Failed,
}

/// A run that has ended, as it is archived.
#[derive(Debug)]
pub struct EndedRun {
    /// The tenant whose run it is.
    pub tenant: Arc<str>,
    /// What is known of the run.
    pub record: RunRecord,
    /// The output that was kept.
    pub output: Vec<Event>,
}

/// What hands the runs of all tenants to the archive.
pub struct ArchiveFeed {
    archive: Arc<Archive>,
    choice: ArchiveChoice,
    /// Of the random numbers that runs have, those below this are archived.
    below: u64,
    encode: fn(&EndedRun) -> EncodedRun,
}

impl fmt::Debug for ArchiveFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveFeed")
            .field("choice", &self.choice)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}

impl ArchiveFeed {
    /// Creates what hands `choice` of the ended runs to `archive`, and of those the share `ratio`,
    /// from 0 to 1. `encode` encodes a run, on a thread of the archive.
    pub fn new(
        archive: Arc<Archive>,
        choice: ArchiveChoice,
        ratio: f64,
        encode: fn(&EndedRun) -> EncodedRun,
    ) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a power of two, which is at least zero and fits"
        )]
        let below = (ratio.clamp(0.0, 1.0) * (1_u64 << RANDOM_BITS) as f64) as u64;
        Self {
            archive,
            choice,
            below,
            encode,
        }
    }

    /// Returns the archive that it feeds.
    pub fn archive(&self) -> &Arc<Archive> {
        &self.archive
    }

    /// Reports whether a run of that number and with these labels is archived, given how it ended.
    fn takes(&self, number: u128, labels: &Labels, end: &RunEnd) -> bool {
        let random = number & ((1 << RANDOM_BITS) - 1);
        let is_chosen = match self.choice {
            ArchiveChoice::All => true,
            ArchiveChoice::Labelled => labels.iter().next().is_some(),
            ArchiveChoice::Failed => {
                !matches!(end, Ok(report) if report.outcome == Outcome::Exited(0))
            }
        };
        is_chosen && random < u128::from(self.below)
    }

    /// Takes the output of a run that ends with `end`, and creates the mark of its record; `None`
    /// where the run is not archived.
    pub(super) fn take(&self, run: &Run, end: &RunEnd) -> Option<(Arc<ArchiveMark>, Vec<Event>)> {
        if !self.takes(run.id.number(), &run.labels, end) {
            return None;
        }
        let output = match run.keeps_output {
            true => last_of(run.log.output()),
            false => Vec::new(),
        };
        Some((ArchiveMark::queued(), output))
    }

    /// Hands a run to the archive. `share` has the bytes that wait of its tenant.
    pub(super) fn offer(&self, ended: EndedRun, mark: Arc<ArchiveMark>, share: &Arc<AtomicUsize>) {
        let output = ended.output.iter();
        let output: usize = output.map(|event| EVENT + 2 * output_bytes(event)).sum();
        let cost = REST + 2 * ended.record.weight + output;
        let encode = self.encode;
        self.archive.offer(ArchivableRun {
            tenant: Arc::clone(&ended.tenant),
            number: ended.record.id.number(),
            share: Arc::clone(share),
            cost,
            mark,
            encode: Box::new(move || encode(&ended)),
        });
    }
}

fn output_bytes(event: &Event) -> usize {
    match &event.payload {
        EventPayload::Output(_, bytes) | EventPayload::File { bytes, .. } => bytes.len(),
        EventPayload::Started | EventPayload::Lost { .. } | EventPayload::End(_) => 0,
    }
}

/// Leaves out the oldest events where all have more bytes than are archived of one run.
fn last_of(mut output: Vec<Event>) -> Vec<Event> {
    let mut bytes: usize = output.iter().map(output_bytes).sum();
    let beyond = output.iter().take_while(|event| {
        let is_beyond = bytes > MAX_OUTPUT;
        bytes -= output_bytes(event);
        is_beyond
    });
    let beyond = beyond.count();
    output.drain(..beyond);
    output
}
