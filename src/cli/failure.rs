//! A command that failed: for people one line, for programs one JSON object in the names of the API.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{complain, exit, print_json};
use crate::api::proto::RunError;

/// Why a command failed, and the exit code that says so.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    /// For people: a line on standard error.
    pub(super) message: String,
    /// What a daemon, or the way to it, told; none where the command failed by itself.
    told: Option<Box<Told>>,
}

/// An error in the terms of the API.
#[derive(Debug)]
struct Told {
    code: Code,
    /// Empty where nobody of this API told one.
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
}

impl Failure {
    /// With [`exit::FAILED`].
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::with(exit::FAILED, message)
    }

    /// With the exit code `code`.
    pub(super) fn with(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            told: None,
        }
    }

    /// Nobody reads what the command prints. It ends as a program does that SIGPIPE ends, and says no more: neither is
    /// there anybody to tell, nor is it an error.
    pub(super) fn broken_pipe() -> Self {
        Self::with(exit::BROKEN_PIPE, "")
    }

    /// A signal came, and `did` that to the command.
    pub(super) fn cancelled(did: &str) -> Self {
        Self::with(exit::KILLED, format!("cancelled: {did}"))
    }

    /// A signal came while a run was about to be left going.
    pub(super) fn left(did: &str) -> Self {
        let message = format!("{did}; the run may go on: see `ringfence ps`");
        Self::with(exit::KILLED, message)
    }

    /// Whether there is anything to say about it.
    fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// Names a cause that the daemon told its log only, where `known` has it for what the message says.
    pub(super) fn explained(mut self, known: impl Fn(&str) -> Option<String>) -> Self {
        if let Some(message) = known(&self.message) {
            self.message = message;
        }
        if let Some(told) = &mut self.told
            && let Some(message) = known(&told.message)
        {
            told.message = message;
        }
        self
    }

    /// A daemon that cannot be reached, or a connection to it that broke.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            told: Some(Box::new(Told {
                code: Code::Unavailable,
                reason: String::new(),
                message: message.clone(),
                metadata: BTreeMap::new(),
                retry_after: None,
            })),
            ..Self::new(message)
        }
    }

    /// A call that was refused with a reason, or that the daemon failed.
    pub(super) fn of_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let told = Told {
            code: status.code(),
            reason: info.map(|it| it.reason.clone()).unwrap_or_default(),
            message: status.message().to_owned(),
            metadata: info
                .map(|it| it.metadata.clone().into_iter().collect())
                .unwrap_or_default(),
            retry_after: details.retry_info().and_then(|it| it.retry_delay),
        };
        Self::of(told)
    }

    /// A run that was refused, or that the daemon failed.
    pub(super) fn of_run(error: &RunError) -> Self {
        Self::of(Told::of_run(error))
    }

    fn of(told: Told) -> Self {
        let Told {
            code,
            reason,
            message,
            ..
        } = &told;
        let (exit, message) = match reason.as_str() {
            "" => (
                exit::FAILED,
                format!("the daemon failed: {code:?}: {message}"),
            ),
            "INTERNAL" => (
                exit::FAILED,
                format!("the daemon failed: {reason}: {message}"),
            ),
            _ => (exit::REFUSED, format!("refused: {reason}: {message}")),
        };
        Self {
            code: exit,
            message,
            told: Some(Box::new(told)),
        }
    }

    /// Tells it, as JSON too where the command prints that, and has the exit code that says so.
    pub(super) fn tell(&self, json: bool) -> ExitCode {
        if !self.is_silent() {
            if json {
                // Whoever does not read it still has the exit code.
                let _ = print_json(&self.json());
            }
            complain(&self.message);
        }
        ExitCode::from(self.code)
    }

    /// As `--output json` prints it.
    pub(super) fn json(&self) -> Value {
        let error = match &self.told {
            Some(told) => told.json(),
            None => json!({ "code": null, "reason": null, "message": self.message }),
        };
        json!({ "error": error })
    }
}

/// What cannot be written to standard output or error.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::broken_pipe()
        } else {
            Self::new(format!("cannot write the output: {error}"))
        }
    }
}

impl Told {
    fn of_run(error: &RunError) -> Self {
        Self {
            code: Code::from(error.code),
            reason: error.reason.clone(),
            message: error.message.clone(),
            metadata: error.metadata.clone().into_iter().collect(),
            retry_after: None,
        }
    }

    fn json(&self) -> Value {
        let mut error = json!({
            "code": name(self.code),
            "reason": (!self.reason.is_empty()).then_some(&self.reason),
            "message": self.message,
            "metadata": self.metadata,
        });
        if let Some(field) = self.metadata.get("field") {
            error["field"] = json!(field);
        }
        if let Some(delay) = self.retry_after {
            error["retry_after_seconds"] = json!(delay.as_secs_f64());
        }
        error
    }
}

/// The end of a run that was refused, or that the daemon failed, as JSON.
pub(super) fn run_error(error: &RunError) -> Value {
    Told::of_run(error).json()
}

/// The name that google.rpc.Code has for a code.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
