//! The only maker of `tonic::Status`: refusals in the terms of gRPC, with `google.rpc` details.

use std::collections::HashMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto::RunError;
use crate::refusal::{Reason, Refusal};
use crate::request::RunId;

/// The metadata key of a run's id.
pub(super) const RUN_ID: HeaderName = HeaderName::from_static("ringfence-run-id");
/// The domain of `google.rpc.ErrorInfo`.
const DOMAIN: &str = "ringfence";
/// Bytes of a message at the most. On the wire it stands percent-encoded, up to three bytes each, and in base64 among
/// the details: with the facts an error stays under the 4 KiB that clients accept.
const MAX_MESSAGE: usize = 400;
/// Bytes of it that are told again as the violation of a field.
const MAX_VIOLATION: usize = 80;

/// The gRPC code of a reason.
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
        | Reason::RunElsewhere => Code::FailedPrecondition,
        Reason::ImportNotAllowed | Reason::PolicyDenied | Reason::Forbidden => {
            Code::PermissionDenied
        }
        Reason::CredentialsInvalid => Code::Unauthenticated,
        Reason::ModuleNotFound | Reason::RunNotFound | Reason::ServiceNotFound => Code::NotFound,
        Reason::QueueFull
        | Reason::WaitExpired
        | Reason::TenantQuota
        | Reason::MessageTooLarge
        | Reason::StoreFull => Code::ResourceExhausted,
        Reason::NotStarted => Code::DeadlineExceeded,
        Reason::RunCancelled => Code::Cancelled,
        Reason::IdempotencyConflict => Code::AlreadyExists,
        Reason::ShuttingDown | Reason::StoreUnavailable | Reason::RuntimeUnavailable => {
            Code::Unavailable
        }
        Reason::Internal => Code::Internal,
    }
}

/// A refusal as a gRPC status.
pub(super) fn from(refusal: &Refusal) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(refusal.reason().as_str(), DOMAIN, metadata(refusal));
    if let Some(field) = refusal.field() {
        details.add_bad_request_violation(field, shortened(refusal.message(), MAX_VIOLATION));
    }
    if let Some(delay) = refusal.retry() {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code(refusal.reason()), message(refusal), details)
}

/// The same, of one that nobody needs any more.
pub(super) fn refused(refusal: Refusal) -> Status {
    from(&refusal)
}

/// A refusal of a run, with the run's id.
pub(super) fn of_run(refusal: &Refusal, id: &RunId) -> Status {
    let mut status = from(refusal);
    name_run(status.metadata_mut().as_mut(), id);
    status
}

/// A refusal as the terminal event of a stream.
pub(super) fn event(refusal: &Refusal) -> RunError {
    RunError {
        code: code(refusal.reason()).into(),
        reason: refusal.reason().as_str().to_owned(),
        message: message(refusal),
        metadata: metadata(refusal),
    }
}

/// A status that another layer made, in the same form.
pub(super) fn event_of(status: &Status) -> RunError {
    let info = status.get_details_error_info();
    let (reason, metadata) = info.map(|info| (info.reason, info.metadata)).unzip();
    RunError {
        code: status.code().into(),
        reason: reason.unwrap_or_default(),
        message: shortened(status.message(), MAX_MESSAGE),
        metadata: metadata.unwrap_or_default(),
    }
}

/// Names a run in the headers of an answer.
pub(super) fn name_run(headers: &mut HeaderMap, id: &RunId) {
    // An id is hexadecimal digits and a checked instance name.
    if let Ok(mut value) = HeaderValue::from_str(id.as_str()) {
        // Never the same twice: HTTP/2 need not keep it for the next answer, and look through those that it kept.
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
    shortened(refusal.message(), MAX_MESSAGE)
}

fn shortened(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(bytes)])
}
