//! What is known of a call or of its run when it ends, and the spans that follow from that.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::export_queue::Queued;
use crate::model::request::{Digest, RunId};
use crate::model::trace_context::{SpanId, TraceId};

/// What a record in the queue is charged with in bytes, besides its `tracestate`: about what it
/// takes in memory, with the spans that are made of it.
const RECORD_COST: u64 = 2 << 10;

/// The call that a trace is of.
#[derive(Debug)]
pub struct TracedCall {
    /// The full name of the method, such as "ringfence.v1.SandboxService/Run".
    pub rpc: &'static str,
    /// The tenant whose call it is.
    pub tenant: Arc<str>,
    /// When the headers of the call arrived.
    pub arrived: Instant,
}

/// What all spans of a call have in common.
#[derive(Debug)]
pub(super) struct TraceHead {
    pub(super) trace_id: TraceId,
    /// The span of the call.
    pub(super) call_span: SpanId,
    /// The span of the guest, which log records of its output belong to.
    pub(super) guest_span: SpanId,
    /// The span of the caller that the call is a part of; `None` where the trace begins here.
    pub(super) parent: Option<SpanId>,
    /// The `tracestate` of the caller, which is passed on.
    pub(super) state: Option<Box<str>>,
    pub(super) call: TracedCall,
    /// One moment by both clocks, by which instants become times.
    pub(super) begun: (Instant, SystemTime),
}

/// A moment in the life of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMoment {
    /// Its module is looked for.
    Asked,
    /// Its module is compiled, and the run may have what it needs.
    ModuleReady,
    /// It begins to wait for a slot.
    Queued,
    /// Its guest may be executed.
    Started,
}

/// What was noted so far of a call and its run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NotedMoments {
    moments: [Option<Instant>; 4],
    /// How the run of the call ended; `None` while it goes on, and for a call that was attached to
    /// another's.
    pub(super) end: Option<TracedEnd>,
    /// The run that the call was attached to, which may be that of another call with the same key;
    /// `None` until it was.
    pub(super) attached: Option<RunId>,
}

/// How a run ended, as its spans tell it.
#[derive(Clone, Copy, Debug)]
pub(super) struct TracedEnd {
    pub(super) at: Instant,
    pub(super) run_id: RunId,
    pub(super) digest: Option<Digest>,
    pub(super) outcome: TracedOutcome,
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub(super) enum TracedOutcome {
    /// The guest ended, by itself or by a limit.
    Ended {
        outcome: &'static str,
        exit_code: Option<u32>,
        /// From the beginning of its execution to the end of it.
        duration: Duration,
        /// How much of that was instantiation; `None` where it came to no instance, or had one.
        instantiation: Option<Duration>,
    },
    /// The run was refused, or the daemon failed, for this reason.
    Refused(&'static str),
}

/// What is known of a call, or of its run, when it ends.
#[derive(Debug)]
pub(super) struct SpanRecord {
    pub(super) head: Arc<TraceHead>,
    pub(super) noted: NotedMoments,
    /// The end of the call, with the name of its status code; `None` for the record of a run.
    pub(super) answered: Option<(Instant, &'static str)>,
}

/// A part of a call's time, of which a span is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) kind: PhaseKind,
    pub(super) start: Instant,
    pub(super) end: Instant,
    /// Why the run was refused in this phase, or failed; `None` where it was not.
    pub(super) reason: Option<&'static str>,
}

/// Which part of a call's time a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PhaseKind {
    /// The whole call, from its headers until its answer is made or, of a stream, is taken.
    Call,
    /// The module is found, and compiled where that is needed.
    Module,
    /// The run waits for a slot, and has its mounts prepared.
    Admission,
    /// The module is instantiated.
    Instantiate,
    /// The guest executes, until its run has ended.
    Guest,
    /// The answer is made, from the end of the run to the end of the call.
    Encode,
}

impl PhaseKind {
    /// Returns the name of the span; `None` for that of the call, which is named by its method.
    pub(super) const fn name(self) -> Option<&'static str> {
        match self {
            Self::Call => None,
            Self::Module => Some("module"),
            Self::Admission => Some("admission"),
            Self::Instantiate => Some("instantiate"),
            Self::Guest => Some("guest"),
            Self::Encode => Some("encode"),
        }
    }
}

impl NotedMoments {
    /// Notes that a moment is now.
    pub(super) fn note(&mut self, moment: RunMoment) {
        self.moments[moment as usize] = Some(Instant::now());
    }

    /// Returns when a moment was; `None` where it has not been.
    pub(super) fn at(&self, moment: RunMoment) -> Option<Instant> {
        self.moments[moment as usize]
    }
}

impl SpanRecord {
    /// Returns the phases that this record tells of: those of the call, or those of the run.
    pub(super) fn phases(&self) -> Vec<Phase> {
        match (self.answered, self.noted.end) {
            (Some((end, _)), run) => self.phases_of_call(end, run),
            (None, Some(run)) => self.phases_of_run(&run),
            (None, None) => Vec::new(),
        }
    }

    fn phases_of_call(&self, end: Instant, run: Option<TracedEnd>) -> Vec<Phase> {
        let reason = run.and_then(|run| run.outcome.reason());
        let mut phases = vec![Phase {
            kind: PhaseKind::Call,
            start: self.head.call.arrived,
            end,
            reason,
        }];
        if let Some(run) = run
            && reason.is_none()
        {
            phases.push(Phase {
                kind: PhaseKind::Encode,
                start: run.at,
                end,
                reason: None,
            });
        }
        phases
    }

    fn phases_of_run(&self, run: &TracedEnd) -> Vec<Phase> {
        let reason = run.outcome.reason();
        let at = |moment| self.noted.at(moment);
        let mut phases = Vec::new();
        // A phase that did not come to its end is the one in which the run was refused.
        let mut phase = |kind, start: Option<Instant>, end: Option<Instant>| {
            if let Some(start) = start {
                phases.push(Phase {
                    kind,
                    start,
                    end: end.unwrap_or(run.at),
                    reason: reason.filter(|_| end.is_none()),
                });
            }
        };
        let (ready, started) = (at(RunMoment::ModuleReady), at(RunMoment::Started));
        phase(PhaseKind::Module, at(RunMoment::Asked), ready);
        phase(PhaseKind::Admission, ready, started);
        match run.outcome {
            TracedOutcome::Ended {
                duration,
                instantiation,
                ..
            } => {
                // The execution ends a moment before the run does, which has its store dropped.
                let begun = run.at.checked_sub(duration).max(started);
                let instantiated = begun.zip(instantiation).map(|(begun, it)| begun + it);
                if instantiated.is_some() {
                    phase(PhaseKind::Instantiate, begun, instantiated);
                }
                phase(PhaseKind::Guest, instantiated.or(begun), Some(run.at));
            }
            TracedOutcome::Refused(_) => phase(PhaseKind::Instantiate, started, None),
        }
        phases
    }
}

impl Queued for SpanRecord {
    fn tenant(&self) -> &Arc<str> {
        &self.head.call.tenant
    }

    fn cost(&self) -> u64 {
        RECORD_COST
            + self
                .head
                .state
                .as_ref()
                .map_or(0, |state| state.len() as u64)
    }
}

impl TracedOutcome {
    /// Returns why the run was refused or failed; `None` where its guest ended.
    pub(super) const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Ended { .. } => None,
            Self::Refused(reason) => Some(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn head(arrived: Instant) -> Arc<TraceHead> {
        let span = SpanId::new(1).unwrap();
        Arc::new(TraceHead {
            trace_id: TraceId::new(1).unwrap(),
            call_span: span,
            guest_span: span,
            parent: None,
            state: None,
            call: TracedCall {
                rpc: "service/Method",
                tenant: "tenant".into(),
                arrived,
            },
            begun: (arrived, SystemTime::UNIX_EPOCH),
        })
    }

    /// The phases of a run whose moments are so many milliseconds after its arrival, with the
    /// milliseconds of each phase.
    fn phases(
        moments: &[(RunMoment, u32)],
        outcome: TracedOutcome,
        ended: u32,
    ) -> Vec<(PhaseKind, u128, u128, Option<&'static str>)> {
        let arrived = Instant::now();
        let mut noted = NotedMoments::default();
        for (moment, at) in moments {
            noted.moments[*moment as usize] = Some(arrived + *at * MS);
        }
        noted.end = Some(TracedEnd {
            at: arrived + ended * MS,
            run_id: RunId::new("here"),
            digest: None,
            outcome,
        });
        let record = SpanRecord {
            head: head(arrived),
            noted,
            answered: None,
        };
        let since = |at: Instant| (at - arrived).as_millis();
        let phases = record.phases().into_iter();
        phases
            .map(|it| (it.kind, since(it.start), since(it.end), it.reason))
            .collect()
    }

    #[test]
    fn a_run_that_ended_has_all_phases_one_after_the_other() {
        use RunMoment::{Asked, ModuleReady, Queued, Started};
        let moments = [(Asked, 1), (ModuleReady, 3), (Queued, 4), (Started, 9)];
        let ended = |instantiation: Option<Duration>| TracedOutcome::Ended {
            outcome: "exited",
            exit_code: Some(0),
            duration: 10 * MS,
            instantiation,
        };
        let [module, admission] = [
            (PhaseKind::Module, 1, 3, None),
            (PhaseKind::Admission, 3, 9, None),
        ];
        let told = phases(&moments, ended(Some(2 * MS)), 20);
        let rest = [
            (PhaseKind::Instantiate, 10, 12, None),
            (PhaseKind::Guest, 12, 20, None),
        ];
        assert_eq!(told, [[module, admission], rest].concat());
        // A guest that was kept in a session is not instantiated again.
        let told = phases(&moments, ended(None), 20);
        assert_eq!(told, [module, admission, (PhaseKind::Guest, 10, 20, None)]);
    }

    #[test]
    fn a_refusal_stands_at_the_phase_in_which_it_happened() {
        use RunMoment::{Asked, ModuleReady, Started};
        let refused =
            |moments: &[(RunMoment, u32)]| phases(moments, TracedOutcome::Refused("QUEUE_FULL"), 7);
        let reason = Some("QUEUE_FULL");
        assert_eq!(refused(&[]), []);
        let asked = (Asked, 1);
        assert_eq!(refused(&[asked]), [(PhaseKind::Module, 1, 7, reason)]);
        let ready = (ModuleReady, 2);
        let module = (PhaseKind::Module, 1, 2, None);
        assert_eq!(
            refused(&[asked, ready]),
            [module, (PhaseKind::Admission, 2, 7, reason)]
        );
        assert_eq!(
            refused(&[asked, ready, (Started, 4)]),
            [
                module,
                (PhaseKind::Admission, 2, 4, None),
                (PhaseKind::Instantiate, 4, 7, reason)
            ]
        );
    }
}
