//! Decodes requests that select runs: listings, watches, and calls that end or delete many runs.

use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;

use prost_types::Timestamp;

use super::{decode, proto};
use crate::model::refusal::Refusal;
use crate::model::request::{Labels, RunId, TimeRange};
use crate::run::{MAX_DELETED_IDS, RunDeletion, RunState, Selector};

/// A request for one page of the listing of runs.
pub(super) struct RunPage {
    /// The most runs on the page.
    pub(super) size: usize,
    /// Only runs that are older than this one are listed; `None` for the first page.
    pub(super) before: Option<RunId>,
    /// Which runs are listed, by their state and labels.
    pub(super) selector: Selector,
    /// When the runs that are listed were asked for.
    pub(super) asked: TimeRange,
    /// Whether a time is asked for, so that the archive is read too.
    pub(super) is_timed: bool,
}

/// Decodes which page of the listing of runs is asked for.
///
/// # Errors
/// `SPEC_INVALID`, also for a time that is malformed or a range that ends before it begins;
/// `LIMIT_ABOVE_MAXIMUM` for the page size or the number of states.
pub(super) fn run_page(message: proto::ListRunsRequest) -> Result<RunPage, Refusal> {
    let proto::ListRunsRequest {
        page_size,
        page_token,
        states,
        labels,
        since,
        until,
    } = message;
    Ok(RunPage {
        size: decode::page_size(page_size)?,
        before: match page_token.as_str() {
            "" => None,
            token => Some(RunId::parse("page_token", token)?),
        },
        selector: selector(states, labels)?,
        is_timed: since.is_some() || until.is_some(),
        asked: time_range(since, until)?,
    })
}

/// Decodes which runs are to be ended, and whether that is a dry run.
///
/// # Errors
/// Those of [`selector`]; `SPEC_INVALID` also for no labels at all, and for a state of runs that
/// have ended.
pub(super) fn cancel_runs(message: proto::CancelRunsRequest) -> Result<(Selector, bool), Refusal> {
    let proto::CancelRunsRequest {
        labels,
        states,
        dry_run,
    } = message;
    if labels.is_empty() {
        return Err(Refusal::invalid(
            "labels",
            "is empty; at least one label is needed, so that an empty selector does not end every run",
        ));
    }
    let selector = selector_within(StateScope::InFlight, states, labels)?;
    Ok((selector, dry_run))
}

/// Decodes which runs are to be deleted, and whether that is a dry run.
///
/// # Errors
/// `SPEC_INVALID` for an id, a label or a time that is malformed, for a selector that would match
/// every run, and for a selector beside ids; `LIMIT_ABOVE_MAXIMUM` for too many ids.
pub(super) fn delete_runs(
    message: proto::DeleteRunsRequest,
) -> Result<(RunDeletion, bool), Refusal> {
    let proto::DeleteRunsRequest {
        run_ids,
        labels,
        since,
        until,
        dry_run,
    } = message;
    if run_ids.is_empty() {
        if labels.is_empty() && until.is_none() {
            return Err(Refusal::invalid(
                "labels",
                "is empty, and so are run_ids and until; one of them is needed, so that an empty selector does not delete every run",
            ));
        }
        let deletion = RunDeletion::Matching {
            labels: Labels::new("labels", labels)?,
            asked: time_range(since, until)?,
        };
        return Ok((deletion, dry_run));
    }
    let given = [
        ("labels", !labels.is_empty()),
        ("since", since.is_some()),
        ("until", until.is_some()),
    ];
    if let Some((field, _)) = given.into_iter().find(|(_, is_given)| *is_given) {
        let message =
            "cannot go with run_ids: runs are selected by their ids, or by labels and times";
        return Err(Refusal::invalid(field, message));
    }
    if run_ids.len() > MAX_DELETED_IDS {
        return Err(Refusal::above("run_ids", run_ids.len(), MAX_DELETED_IDS));
    }
    let ids = run_ids.iter().enumerate();
    let ids = ids.map(|(index, id)| RunId::parse(&format!("run_ids[{index}]"), id));
    Ok((RunDeletion::Ids(ids.collect::<Result<_, _>>()?), dry_run))
}

/// Decodes the times between which runs were asked for. What is less than a millisecond is left
/// out of both.
fn time_range(since: Option<Timestamp>, until: Option<Timestamp>) -> Result<TimeRange, Refusal> {
    let since = since.map(|at| time("since", at)).transpose()?;
    let until = until.map(|at| time("until", at)).transpose()?;
    if let (Some(since), Some(until)) = (since, until)
        && until <= since
    {
        let allowed = format!("after since, which is {since}");
        let message = format!("{until} is not {allowed}");
        let refusal = Refusal::invalid("until", message);
        return Err(refusal.with("asked", until).with("allowed", allowed));
    }
    let millis = |time: Option<WireTime>| time.map(WireTime::millis);
    Ok(TimeRange::new(millis(since), millis(until)))
}

/// A time that is well-formed, as it came over the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct WireTime {
    seconds: i64,
    nanos: u32,
}

impl WireTime {
    /// Returns the whole milliseconds since 1970; 0 for a time before that.
    fn millis(self) -> u64 {
        let seconds = u64::try_from(self.seconds).ok();
        seconds.map_or(0, |seconds| {
            seconds * 1000 + u64::from(self.nanos / 1_000_000)
        })
    }
}

impl fmt::Display for WireTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seconds, nanos } = self;
        write!(f, "{seconds} s and {nanos} ns since 1970")
    }
}

/// Decodes a time, which is the value of `field`.
fn time(field: &str, at: Timestamp) -> Result<WireTime, Refusal> {
    /// The seconds of 0001-01-01T00:00:00Z and of 9999-12-31T23:59:59Z.
    const SECONDS: RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    const ALLOWED: &str = "seconds from -62135596800 to 253402300799 (the years 1 to 9999) and nanos from 0 to 999999999";
    let Timestamp { seconds, nanos } = at;
    match u32::try_from(nanos) {
        Ok(nanos) if nanos < 1_000_000_000 && SECONDS.contains(&seconds) => {
            Ok(WireTime { seconds, nanos })
        }
        Ok(_) | Err(_) => {
            let asked = format!("{seconds} s and {nanos} ns since 1970");
            let message = format!("{asked} is no time; allowed are {ALLOWED}");
            let refusal = Refusal::invalid(field, message);
            Err(refusal.with("asked", asked).with("allowed", ALLOWED))
        }
    }
}

/// Decodes which runs are asked for, by their state and labels.
///
/// # Errors
/// `SPEC_INVALID` for an unknown state or a bad label; `LIMIT_ABOVE_MAXIMUM` for too many states.
pub(super) fn selector(
    states: Vec<i32>,
    labels: HashMap<String, String>,
) -> Result<Selector, Refusal> {
    selector_within(StateScope::All, states, labels)
}

/// The states that a selector may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateScope {
    /// Every state of a run.
    All,
    /// The states of runs that have not ended.
    InFlight,
}

impl StateScope {
    /// Decodes the state at `index` of the selector's states.
    fn state(self, index: usize, state: i32) -> Result<RunState, Refusal> {
        let why = match proto::RunState::try_from(state) {
            Ok(proto::RunState::Compiling) => return Ok(RunState::Compiling),
            Ok(proto::RunState::Queued) => return Ok(RunState::Queued),
            Ok(proto::RunState::Running) => return Ok(RunState::Running),
            Ok(proto::RunState::Ended) if self == Self::All => return Ok(RunState::Ended),
            Ok(proto::RunState::Ended) => "is the state of runs that have ended",
            Ok(proto::RunState::Unspecified) | Err(_) => "is unknown",
        };
        let ended = match self {
            Self::All => ", ENDED (4)",
            Self::InFlight => "",
        };
        Err(Refusal::invalid(
            format!("states[{index}]"),
            format!("{state} {why}; allowed are: COMPILING (1), QUEUED (2), RUNNING (3){ended}"),
        ))
    }
}

fn selector_within(
    scope: StateScope,
    states: Vec<i32>,
    labels: HashMap<String, String>,
) -> Result<Selector, Refusal> {
    const STATES: usize = 4;
    if states.len() > STATES {
        return Err(Refusal::above("states", states.len(), STATES));
    }
    Ok(Selector {
        states: states
            .into_iter()
            .enumerate()
            .map(|(index, state)| scope.state(index, state))
            .collect::<Result<_, _>>()?,
        labels: Labels::new("labels", labels)?,
    })
}
