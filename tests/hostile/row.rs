//! A row of the table: a guest, what its run is given, and how it has to end.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use ringfence::api::proto::{Outcome, RunResponse, RunSpec};
use tonic::{Code, Status};

use crate::folder::Folder;
use crate::harness::{Ran, Refused, SpecExt, spec};

/// How long a guest that does not end by itself may go on.
pub(crate) const SOON: Duration = Duration::from_millis(150);
/// More fuel than any row uses.
pub(crate) const PLENTY: u64 = 1 << 50;

/// How a run may end.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Exits(u32),
    Ends(Outcome),
    Traps(&'static str),
    Refused(Code, &'static str),
}

/// How a run did end.
pub(crate) enum Seen {
    Ran(Box<Ran>),
    Refused(Refused),
}

type Change = Box<dyn Fn(RunSpec, &Folder) -> RunSpec + Send + Sync>;
type Check = Box<dyn Fn(&Seen) -> bool + Send + Sync>;

/// One hostile guest.
pub(crate) struct Row {
    pub name: String,
    /// In one sentence.
    pub does: &'static str,
    module: Bytes,
    changes: Vec<Change>,
    ends: Vec<End>,
    /// Fuel of the metered runs, and how they end where it is not as the others do.
    fuel: u64,
    metered: Option<Vec<End>>,
    checks: Vec<(&'static str, Check)>,
    /// How many run at once.
    pub crowd: usize,
    /// It runs where the proposals of exceptions and threads are on.
    pub proposals: bool,
}

/// A row, by what ends it.
pub(crate) fn row(name: impl Into<String>, does: &'static str, module: impl Into<Bytes>) -> Row {
    Row {
        name: name.into(),
        does,
        module: module.into(),
        changes: Vec::new(),
        ends: Vec::new(),
        fuel: PLENTY,
        metered: None,
        checks: Vec::new(),
        crowd: 16,
        proposals: false,
    }
}

impl Row {
    /// It ends in one of these ways.
    pub(crate) fn ends(mut self, ends: &[End]) -> Self {
        self.ends = ends.to_vec();
        self
    }

    /// It is stopped at its deadline, and where it is metered, unless it has ends of its own for that.
    pub(crate) fn times_out(self) -> Self {
        self.given(|spec, _| spec.timeout(SOON))
            .ends(&[End::Ends(Outcome::TimedOut)])
    }

    /// Its metered runs get `fuel`, and all the time there is, and end in one of these ways.
    pub(crate) fn metered(mut self, fuel: u64, ends: &[End]) -> Self {
        self.fuel = fuel;
        self.metered = Some(ends.to_vec());
        self
    }

    /// With a changed spec.
    pub(crate) fn given(
        mut self,
        change: impl Fn(RunSpec, &Folder) -> RunSpec + Send + Sync + 'static,
    ) -> Self {
        self.changes.push(Box::new(change));
        self
    }

    /// By another entry point, with its parameters.
    pub(crate) fn entry(self, name: &'static str, args: &'static [&'static str]) -> Self {
        self.given(move |spec, _| spec.entry(name).args(args))
    }

    /// With that much memory.
    pub(crate) fn pages(self, pages: u32) -> Self {
        self.given(move |spec, _| spec.resources(|r| r.memory_pages = Some(pages)))
    }

    /// And `holds`, which `what` says.
    pub(crate) fn and(
        mut self,
        what: &'static str,
        holds: impl Fn(&Ran) -> bool + Send + Sync + 'static,
    ) -> Self {
        let check = move |seen: &Seen| matches!(seen, Seen::Ran(ran) if holds(ran));
        self.checks.push((what, Box::new(check)));
        self
    }

    /// And the refusal tells the fact.
    pub(crate) fn tells(mut self, what: &'static str, part: &'static str) -> Self {
        let check = move |seen: &Seen| {
            matches!(seen, Seen::Refused(refused)
                if refused.metadata.get(what).is_some_and(|told| told.contains(part)))
        };
        self.checks.push((what, Box::new(check)));
        self
    }

    /// That many at once.
    pub(crate) fn crowd(mut self, crowd: usize) -> Self {
        self.crowd = crowd;
        self
    }

    /// Where the proposals of exceptions and threads are on.
    pub(crate) fn with_proposals(mut self) -> Self {
        self.proposals = true;
        self
    }

    /// What to run; each gets folders of its own.
    pub(crate) fn spec(&self, folder: &Folder, metered: bool) -> RunSpec {
        let fuel = metered.then_some(self.fuel);
        let plain = spec(self.module.clone()).resources(|r| r.fuel_limit = fuel);
        let change = |spec, change: &Change| change(spec, folder);
        let changed = self.changes.iter().fold(plain, change);
        if metered && self.metered.is_some() {
            return changed.change(|spec| spec.timeout = None);
        }
        changed
    }

    /// What is wrong with how a run ended.
    pub(crate) fn judge(&self, seen: &Seen, metered: bool) -> Option<String> {
        let ends = match &self.metered {
            Some(ends) if metered => ends,
            _ => &self.ends,
        };
        if !ends.iter().any(|end| end.is(seen)) {
            return Some(format!("not one of {ends:?}"));
        }
        let broken = match seen {
            Seen::Ran(ran) => broken_promise(ran, metered),
            Seen::Refused(refused) => forged_refusal(refused),
        };
        let failed = || self.checks.iter().find(|(_, holds)| !holds(seen));
        broken.or_else(|| failed().map(|(what, _)| format!("it is not so that {what}")))
    }
}

impl End {
    fn is(self, seen: &Seen) -> bool {
        match (self, seen) {
            (Self::Exits(code), Seen::Ran(ran)) => {
                ran.result.outcome() == Outcome::Exited && ran.result.exit_code == Some(code)
            }
            (Self::Ends(outcome), Seen::Ran(ran)) => ran.result.outcome() == outcome,
            (Self::Traps(code), Seen::Ran(ran)) => {
                ran.result.outcome() == Outcome::Trapped && ran.trap_code() == code
            }
            (Self::Refused(code, reason), Seen::Refused(refused)) => {
                refused.code == code && refused.reason == reason
            }
            (_, Seen::Ran(_) | Seen::Refused(_)) => false,
        }
    }
}

impl Seen {
    /// Reads an answer.
    pub(crate) fn of(answer: Result<RunResponse, Status>) -> Self {
        match answer {
            Ok(answer) => Self::Ran(Box::new(Ran {
                result: answer.result.expect("a result"),
                stdout: answer.stdout,
                stderr: answer.stderr,
            })),
            Err(status) => Self::Refused(Refused::new(&status)),
        }
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => write!(f, "{:?} {}", refused.code, refused.reason),
            Self::Ran(ran) => {
                write!(f, "{}", ran.result.outcome().as_str_name())?;
                if let Some(code) = ran.result.exit_code {
                    write!(f, " {code}")?;
                }
                match ran.trap_code() {
                    "" => Ok(()),
                    code => write!(f, " {code}"),
                }
            }
        }
    }
}

impl Seen {
    /// How long it took, where it ran.
    pub(crate) fn took(&self) -> Duration {
        let Self::Ran(ran) = self else {
            return Duration::ZERO;
        };
        let told = ran.result.duration.expect("a duration");
        told.try_into().expect("no less than none")
    }

    /// All that helps to understand a failure.
    pub(crate) fn details(&self) -> String {
        match self {
            Self::Refused(refused) => format!("{refused:?}"),
            Self::Ran(ran) => format!(
                "{:?} stdout {:?} stderr {:?}",
                ran.result,
                String::from_utf8_lossy(&ran.stdout[..ran.stdout.len().min(300)]),
                String::from_utf8_lossy(&ran.stderr[..ran.stderr.len().min(3000)]),
            ),
        }
    }
}

/// What a result that holds for every run does not keep.
fn broken_promise(ran: &Ran, metered: bool) -> Option<String> {
    let result = &ran.result;
    let outcome = result.outcome();
    let ended_itself = matches!(outcome, Outcome::Exited | Outcome::MemoryExceeded);
    let exited = outcome == Outcome::Exited;
    let granted = result.granted.as_ref().and_then(|g| g.memory_pages);
    let counted = |told: u64, truncated: bool, came: usize| {
        let came = came as u64;
        told == came || (truncated && told > came)
    };
    let trap = result.trap.iter();
    let texts = trap.flat_map(|trap| {
        let frames = trap.backtrace.iter();
        let names = frames.flat_map(|frame| [&frame.func_name, &frame.module_name]);
        names.chain([&trap.code, &trap.message])
    });
    let rules = [
        (
            "an exit code is there only if it exited",
            ended_itself || result.exit_code.is_none(),
        ),
        (
            "an exit has its code",
            !exited || result.exit_code.is_some(),
        ),
        (
            "fuel is told if metered",
            result.fuel_consumed.is_some() == metered,
        ),
        (
            "memory is within its limit",
            granted.is_some_and(|pages| result.memory_used <= u64::from(pages) << 16),
        ),
        (
            "output is counted",
            counted(
                result.stdout_bytes,
                result.stdout_truncated,
                ran.stdout.len(),
            ) && counted(
                result.stderr_bytes,
                result.stderr_truncated,
                ran.stderr.len(),
            ),
        ),
        (
            "texts are printable",
            texts.into_iter().all(|text| printable(text)),
        ),
    ];
    let broken = rules.into_iter().find(|(_, kept)| !kept);
    broken.map(|(rule, _)| format!("broken: {rule}"))
}

/// A refusal that a terminal or a log would not show as it is.
fn forged_refusal(refused: &Refused) -> Option<String> {
    let texts = refused.metadata.values().chain([&refused.message]);
    let forged = texts.into_iter().find(|text| !printable(text));
    forged.map(|text| format!("not printable: {text:?}"))
}

fn printable(text: &str) -> bool {
    let direction = |c| matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !text.chars().any(|c| c.is_control() || direction(c))
}
