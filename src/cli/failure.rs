//! The failure of a command: one line for people, and for programs one JSON object with the names
//! of the API.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{exit, print_json, print_to_stderr};
use crate::api::proto::RunError;

/// The error of a command, with the exit code that reports it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: u8,
    /// The line for people on standard error; empty where there is nothing to say.
    pub(super) message: String,
    /// The error of a daemon or of the connection to it; `None` where the command failed by itself.
    api_error: Option<Box<ApiError>>,
}

/// An error with the fields that the API gives it.
#[derive(Debug)]
struct ApiError {
    code: Code,
    /// The machine-readable reason; empty where no daemon gave one.
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_after: Option<Duration>,
}

impl Failure {
    /// Creates a failure with the exit code [`exit::FAILED`].
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self::with(exit::FAILED, message)
    }

    /// Creates a failure with the exit code `code`.
    pub(super) fn with(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            api_error: None,
        }
    }

    /// Creates the failure of a command whose output nobody reads. The command ends like a program
    /// that SIGPIPE ends, and says no more, because there is nobody to tell and nothing has gone
    /// wrong.
    pub(super) fn broken_pipe() -> Self {
        Self::with(exit::BROKEN_PIPE, "")
    }

    /// Creates the failure for a signal that cancelled the command; `did` says what the signal did,
    /// such as "interrupted".
    pub(super) fn cancelled(did: &str) -> Self {
        Self::with(exit::KILLED, format!("cancelled: {did}"))
    }

    /// Creates the failure for a signal that came while the command was about to leave a run going.
    pub(super) fn left_running(did: &str) -> Self {
        let message = format!("{did}; the run may go on: see `ringfence ps`");
        Self::with(exit::KILLED, message)
    }

    /// Reports whether there is nothing to print about the failure.
    fn is_silent(&self) -> bool {
        self.message.is_empty()
    }

    /// Replaces a message by the cause that the daemon wrote to its log only, where `known` has one
    /// for the message.
    pub(super) fn with_cause(mut self, known: impl Fn(&str) -> Option<String>) -> Self {
        if let Some(message) = known(&self.message) {
            self.message = message;
        }
        if let Some(told) = &mut self.api_error
            && let Some(message) = known(&told.message)
        {
            told.message = message;
        }
        self
    }

    /// Creates the failure for a daemon that cannot be reached, or a connection that broke.
    pub(super) fn unreachable(message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            api_error: Some(Box::new(ApiError {
                code: Code::Unavailable,
                reason: String::new(),
                message: message.clone(),
                metadata: BTreeMap::new(),
                retry_after: None,
            })),
            ..Self::new(message)
        }
    }

    /// Creates the refusal of an argument of a tool. `asked` is what was given, and `allowed`
    /// completes the sentence "it must be".
    pub(super) fn bad_argument(field: &str, asked: &str, allowed: &str) -> Self {
        let facts = [("field", field), ("asked", asked), ("allowed", allowed)];
        Self::of(ApiError {
            code: Code::InvalidArgument,
            reason: "ARGUMENT_INVALID".to_owned(),
            message: format!("the argument {field} is {asked}; it must be {allowed}"),
            metadata: facts
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            retry_after: None,
        })
    }

    /// Reports whether a new connection may help, where this one broke or has credentials that
    /// count no more.
    pub(super) fn needs_new_connection(&self) -> bool {
        self.api_error.as_ref().is_some_and(|told| {
            told.code == Code::Unavailable && told.reason.is_empty()
                || told.reason == "CREDENTIALS_INVALID"
        })
    }

    /// Converts the status of a call that was refused with a reason, or in which the daemon failed.
    pub(super) fn of_status(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details.error_info();
        let told = ApiError {
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

    /// Converts the error of a run that was refused, or in which the daemon failed.
    pub(super) fn of_run(error: &RunError) -> Self {
        Self::of(ApiError::of_run(error))
    }

    fn of(told: ApiError) -> Self {
        let ApiError {
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
            api_error: Some(Box::new(told)),
        }
    }

    /// Prints the failure, as JSON too where the command prints JSON, and returns the exit code.
    pub(super) fn report(&self, json: bool) -> ExitCode {
        if !self.is_silent() {
            if json {
                // A caller who does not read the JSON still has the exit code.
                let _ = print_json(&self.json());
            }
            print_to_stderr(&self.message);
        }
        ExitCode::from(self.code)
    }

    /// Formats the failure as `--output json` prints it.
    pub(super) fn json(&self) -> Value {
        let error = match &self.api_error {
            Some(told) => told.json(),
            None => json!({ "code": null, "reason": null, "message": self.message }),
        };
        json!({ "error": error })
    }
}

/// The error came from writing to standard output or standard error.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::broken_pipe()
        } else {
            Self::new(format!("cannot write the output: {error}"))
        }
    }
}

impl ApiError {
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

/// Formats the error of a run that was refused, or in which the daemon failed, as JSON.
pub(super) fn run_error_json(error: &RunError) -> Value {
    ApiError::of_run(error).json()
}

/// Returns the name of a code in google.rpc.Code.
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
