//! Who asked for a run, how, and where it is.

use std::sync::Arc;

use super::tenant::Tenant;

/// The method that a run was asked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// One answer with all output.
    Run,
    /// Output as it is written.
    RunStream,
    /// The same, with live input.
    Interact,
}

impl Method {
    /// What its messages call the spec.
    pub(super) const fn spec_field(self) -> &'static str {
        match self {
            Self::Run | Self::RunStream => "spec",
            Self::Interact => "start",
        }
    }

    /// Its name in the API.
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
    /// The method.
    pub method: Method,
    /// The caller's address.
    pub caller: Arc<str>,
    /// Whose run it is.
    pub tenant: Arc<Tenant>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its module is found, checked, compiled.
    Compiling,
    /// It waits for a slot.
    Queued,
    /// The guest executes.
    Running,
    /// It has ended, or was refused.
    Ended,
}
