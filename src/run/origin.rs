//! Who asked for a run and by which method, and the states that a run is in.

use std::sync::Arc;

use crate::model::trace_context::TraceId;
use crate::otlp::{CallTrace, RunMoment};

/// The API method by which a run was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunMethod {
    /// `Run`: one answer with all of the output.
    Run,
    /// `RunStream`: output as it is written.
    RunStream,
    /// `Interact`: output as it is written, and live input.
    Interact,
    /// `Interact` with source code.
    InteractExecute,
    /// `Execute`: source code, with one answer that has all of the output.
    Execute,
    /// `ExecuteStream`: source code, with output as it is written.
    ExecuteStream,
}

impl RunMethod {
    /// Returns the name of the field that holds the spec in the messages of the method.
    pub(super) const fn spec_field(self) -> &'static str {
        match self {
            Self::Run | Self::RunStream | Self::Execute | Self::ExecuteStream => "spec",
            Self::Interact => "start",
            Self::InteractExecute => "execute",
        }
    }

    /// Returns the full name of the method, with its service.
    pub const fn rpc(self) -> &'static str {
        match self {
            Self::Run => "ringfence.v1.SandboxService/Run",
            Self::RunStream => "ringfence.v1.SandboxService/RunStream",
            Self::Interact | Self::InteractExecute => "ringfence.v1.RunService/Interact",
            Self::Execute => "ringfence.v1.ExecutionService/Execute",
            Self::ExecuteStream => "ringfence.v1.ExecutionService/ExecuteStream",
        }
    }

    /// Returns the name of the method in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "Run",
            Self::RunStream => "RunStream",
            Self::Interact | Self::InteractExecute => "Interact",
            Self::Execute => "Execute",
            Self::ExecuteStream => "ExecuteStream",
        }
    }
}

/// Who asked for a run, and how.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The method that was called.
    pub method: RunMethod,
    /// Where the caller connects from; the daemon's own name for its own runs.
    pub caller: Arc<str>,
    /// The name of the tenant whose run it is.
    pub tenant: Arc<str>,
    /// The trace that its call belongs to.
    pub trace: RunTrace,
}

/// The trace that a run belongs to.
#[derive(Clone, Debug, Default)]
pub enum RunTrace {
    /// It belongs to none.
    #[default]
    None,
    /// It has ended, and this is what is left of its trace.
    Ended(TraceId),
    /// The trace of its call, which notes what happens.
    Live(Arc<CallTrace>),
}

impl RunTrace {
    /// Returns the id of the trace; `None` where the run belongs to none.
    pub fn id(&self) -> Option<TraceId> {
        match self {
            Self::None => None,
            Self::Ended(id) => Some(*id),
            Self::Live(trace) => Some(trace.trace_id()),
        }
    }

    /// Returns the trace while it notes what happens.
    pub fn live(&self) -> Option<&Arc<CallTrace>> {
        match self {
            Self::None | Self::Ended(_) => None,
            Self::Live(trace) => Some(trace),
        }
    }

    /// Notes that a moment of the run is now.
    pub(super) fn note(&self, moment: RunMoment) {
        if let Self::Live(trace) = self {
            trace.note(moment);
        }
    }
}

impl From<Option<Arc<CallTrace>>> for RunTrace {
    fn from(trace: Option<Arc<CallTrace>>) -> Self {
        trace.map_or(Self::None, Self::Live)
    }
}

/// The states that a run goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its module is being found, checked and compiled.
    Compiling,
    /// It waits for a slot.
    Queued,
    /// Its guest is executing.
    Running,
    /// It has ended, or was refused.
    Ended,
}
