//! What may be asked of a deletion of runs, and what one comes to.

use crate::model::request::{Labels, RunId, TimeRange};

/// The most runs that one call names by their ids.
pub const MAX_DELETED_IDS: usize = 1_000;
/// The most ids of deleted runs that an answer has.
pub const MAX_TOLD_DELETED: usize = 1_000;

/// Which runs are to be deleted, of those that have ended.
#[derive(Clone, Debug)]
pub enum RunDeletion {
    /// The runs with these ids. Those of other instances are not known here.
    Ids(Vec<RunId>),
    /// The runs that match a selector.
    Matching {
        /// The labels, all of which a run must have to match.
        labels: Labels,
        /// When the run must have been asked for.
        asked: TimeRange,
    },
}

/// The result of deleting runs, or of asking which that would be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeletionReport {
    /// How many runs were deleted, or would be.
    pub deleted: u64,
    /// The first of them, the newest first; at most [`MAX_TOLD_DELETED`].
    pub first: Vec<RunId>,
    /// The numbers of all that this daemon remembered.
    pub numbers: Vec<u128>,
    /// How many runs matched and have not ended.
    pub unfinished: u64,
    /// The number that the ids of all runs which were looked at by a selector are smaller than.
    pub end_number: u128,
}
