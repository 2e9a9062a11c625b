//! Converts refusals into gRPC statuses with `google.rpc` details. Nothing else in the API creates
//! a `tonic::Status`.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto::RunError;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunId;

/// The metadata key of a run's id.
pub(super) const RUN_ID: HeaderName = HeaderName::from_static("ringfence-run-id");
/// The domain in `google.rpc.ErrorInfo`.
const DOMAIN: &str = "ringfence";
/// The most bytes of an error's message. On the wire the message is percent-encoded, with up to
/// three bytes for each, and is in the details again, in base64. With this limit, an error and its
/// metadata stay under the 4 KiB that clients accept.
const MAX_MESSAGE: usize = 400;
/// The most bytes of the message that are repeated as the violation of a field.
const MAX_VIOLATION: usize = 80;

/// The names of gRPC's codes, by number.
pub(super) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Returns the name of a gRPC code.
pub(super) fn code_name(code: Code) -> &'static str {
    let number = usize::try_from(i32::from(code)).unwrap_or_default();
    CODES.get(number).copied().unwrap_or("UNKNOWN")
}

/// Returns the gRPC code of a reason.
pub(super) fn code(reason: Reason) -> Code {
    match reason {
        Reason::SpecInvalid
        | Reason::LimitAboveMaximum
        | Reason::EntryPointNotFound
        | Reason::EntryPointSignature
        | Reason::MalformedRequest
        | Reason::ModuleTooLarge
        | Reason::DigestMismatch
        | Reason::ModuleInvalid
        | Reason::CompilationFailed => Code::InvalidArgument,
        Reason::CompileLimitExceeded
        | Reason::MemoryBelowModuleMinimum
        | Reason::FeatureNotEnabled
        | Reason::CapacityExceeded
        | Reason::RunElsewhere
        | Reason::RunEnded
        | Reason::InputClosed => Code::FailedPrecondition,
        Reason::ImportNotAllowed | Reason::PolicyDenied | Reason::Forbidden => {
            Code::PermissionDenied
        }
        Reason::CredentialsInvalid => Code::Unauthenticated,
        Reason::ModuleNotFound | Reason::RunNotFound | Reason::ServiceNotFound => Code::NotFound,
        Reason::QueueFull
        | Reason::WaitExpired
        | Reason::TenantQuota
        | Reason::MessageTooLarge
        | Reason::InputFull
        | Reason::StoreFull => Code::ResourceExhausted,
        Reason::NotStarted => Code::DeadlineExceeded,
        Reason::RunCancelled => Code::Cancelled,
        Reason::IdempotencyConflict => Code::AlreadyExists,
        Reason::SessionBusy => Code::Aborted,
        Reason::SessionNotFound => Code::NotFound,
        Reason::SessionLimit => Code::ResourceExhausted,
        Reason::InputGap => Code::OutOfRange,
        Reason::InputConflict => Code::Aborted,
        Reason::ShuttingDown
        | Reason::StoreUnavailable
        | Reason::ArchiveUnavailable
        | Reason::RuntimeUnavailable => Code::Unavailable,
        Reason::ArchiveDamaged => Code::DataLoss,
        Reason::UnsupportedLanguage => Code::Unimplemented,
        Reason::Internal => Code::Internal,
    }
}

impl From<&Refusal> for Status {
    /// Converts a refusal into a status with `google.rpc` details.
    fn from(refusal: &Refusal) -> Self {
        let mut details = ErrorDetails::new();
        details.set_error_info(refusal.reason().as_str(), DOMAIN, metadata(refusal));
        if let Some(field) = refusal.field() {
            details.add_bad_request_violation(field, shortened(&refusal.message(), MAX_VIOLATION));
        }
        if let Some(delay) = refusal.retry() {
            details.set_retry_info(Some(delay));
        }
        Self::with_error_details(code(refusal.reason()), message(refusal), details)
    }
}

impl From<Refusal> for Status {
    /// Converts a refusal that nobody needs any more.
    fn from(refusal: Refusal) -> Self {
        Self::from(&refusal)
    }
}

/// Converts the refusal of a run into a status that has the run's id.
pub(super) fn for_run(refusal: &Refusal, id: &RunId) -> Status {
    let mut status = Status::from(refusal);
    name_run(status.metadata_mut().as_mut(), id);
    status
}

/// Converts a refusal into the terminal event of a stream.
pub(super) fn run_error(refusal: &Refusal) -> RunError {
    RunError {
        code: code(refusal.reason()).into(),
        reason: refusal.reason().as_str().to_owned(),
        message: message(refusal),
        metadata: metadata(refusal),
    }
}

/// Converts a status that another layer made into the terminal event of a stream.
pub(super) fn run_error_of_status(status: &Status) -> RunError {
    let info = status.get_details_error_info();
    let (reason, metadata) = info.map(|info| (info.reason, info.metadata)).unzip();
    RunError {
        code: status.code().into(),
        reason: reason.unwrap_or_default(),
        message: shortened(status.message(), MAX_MESSAGE),
        metadata: metadata.unwrap_or_default(),
    }
}

/// Adds the id of a run to the headers of an answer.
pub(super) fn name_run(headers: &mut HeaderMap, id: &RunId) {
    // An id is always a valid value: it has hexadecimal digits and a checked instance name.
    if let Ok(mut value) = HeaderValue::from_str(id.as_str()) {
        // An id never occurs twice. Because it is marked as sensitive, HTTP/2 does not keep it for
        // later answers, and does not have to search through ids that it kept.
        value.set_sensitive(true);
        headers.insert(RUN_ID, value);
    }
}

fn metadata(refusal: &Refusal) -> HashMap<String, String> {
    let field = refusal
        .field()
        .map(|field| ("field".to_owned(), field.to_owned()));
    refusal
        .metadata()
        .iter()
        .map(|(key, value)| (key.clone().into_owned(), value.clone()))
        .chain(field)
        .collect()
}

fn message(refusal: &Refusal) -> String {
    shortened(&refusal.message(), MAX_MESSAGE)
}

/// Cuts a text to at most `bytes` bytes, and marks the cut with an ellipsis.
fn shortened(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes)])
}
