//! Who asked for a run and by which method, and the states that a run is in.

use std::sync::Arc;

/// The API method by which a run was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunMethod {
    /// `Run`: one answer with all of the output.
    Run,
    /// `RunStream`: output as it is written.
    RunStream,
    /// `Interact`: output as it is written, and live input.
    Interact,
}

impl RunMethod {
    /// Returns the name of the field that holds the spec in the messages of the method.
    pub(super) const fn spec_field(self) -> &'static str {
        match self {
            Self::Run | Self::RunStream => "spec",
            Self::Interact => "start",
        }
    }

    /// Returns the name of the method in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "Run",
            Self::RunStream => "RunStream",
            Self::Interact => "Interact",
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
