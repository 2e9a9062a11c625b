//! Classification of object store errors: what each means, and what the operator can do about it.

use std::error::Error as _;

use object_store::Error;

use super::backend::BackendError;

/// Most characters of a provider's own text that an error quotes.
const MOST_TOLD: usize = 300;

const NO_OBJECT_STORE: &str = "what answers is no object store: AWS_ENDPOINT_URL says where it is";

/// The operation that was requested of an object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asking {
    List,
    Get,
    Put,
    Delete,
}

/// What a server's answer says, as far as it can be read from the library's error.
struct StoreAnswer {
    status: Option<u16>,
    /// The error code in the body, as S3 and Azure give one.
    code: Option<String>,
    text: String,
}

impl StoreAnswer {
    fn of(error: &Error) -> Self {
        // The library keeps the status and the body private, but its message has both.
        let text = error.to_string();
        let told = text.split_once("status code: ").map(|(_, rest)| rest);
        let status = told.and_then(|rest| rest.get(..3)?.parse().ok());
        let code = between(&text, "<Code>", "</Code>").map(str::to_owned);
        Self { status, code, text }
    }

    fn is(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|it| codes.contains(&it))
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// Reports whether the object is not there although its bucket is.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && !is_no_bucket(&StoreAnswer::of(error))
}

fn is_no_bucket(answer: &StoreAnswer) -> bool {
    answer.is(&["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"])
        || answer.text.contains("The specified bucket does not exist")
}

/// Reports whether an answer may mean that the server does not support `If-None-Match`. Some
/// servers call it not implemented, others a bad request or a method that is not allowed.
pub(crate) fn cannot_create_only(error: &Error) -> bool {
    let status = StoreAnswer::of(error).status;
    matches!(error, Error::NotImplemented { .. }) || matches!(status, Some(400 | 405 | 501))
}

/// Classifies an error of an object store, by the request that was made.
pub(super) fn backend_error(error: &Error, asking: Asking) -> BackendError {
    let answer = StoreAnswer::of(error);
    if answer.is(&["XMinioStorageFull", "QuotaExceeded", "InsufficientStorage"])
        || answer.status == Some(507)
    {
        return BackendError::Full(answer.text);
    }
    let is_unknown = answer.status == Some(404) && asking != Asking::Get;
    let why = if is_no_bucket(&answer) || is_unknown {
        Some("there is no such bucket: store.url names it, and AWS_ENDPOINT_URL or AWS_REGION where it is".to_owned())
    } else {
        refusal(&answer, asking)
    };
    match why {
        Some(why) => BackendError::Refused {
            why,
            lasting: !is_permission(&answer),
            text: answer.text,
        },
        None => BackendError::Down(cause(error)),
    }
}

fn is_permission(answer: &StoreAnswer) -> bool {
    let unnamed =
        answer.code.is_none() || answer.is(&["AccessDenied", "AuthorizationPermissionMismatch"]);
    answer.status == Some(403) && unnamed
}

/// Returns the error for a server that is something other than an object store.
pub(super) fn no_object_store() -> BackendError {
    BackendError::Refused {
        why: NO_OBJECT_STORE.to_owned(),
        lasting: true,
        text: "it has what nobody has put there".to_owned(),
    }
}

/// Explains why the server refuses, where the operator can do something about it; `None` for other
/// failures.
fn refusal(answer: &StoreAnswer, asking: Asking) -> Option<String> {
    let told = || {
        let region = between(&answer.text, "<Region>", "</Region>");
        region.map_or_else(String::new, |it| {
            format!("; the bucket is in {}", short(it))
        })
    };
    let why = match answer.code.as_deref() {
        Some("InvalidAccessKeyId") => "the store does not know AWS_ACCESS_KEY_ID".to_owned(),
        Some("SignatureDoesNotMatch" | "AuthenticationFailed") => {
            "the signature is wrong: AWS_SECRET_ACCESS_KEY is not that of AWS_ACCESS_KEY_ID"
                .to_owned()
        }
        Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            "AWS_SESSION_TOKEN is not valid, or not any more".to_owned()
        }
        Some("RequestTimeTooSkewed" | "RequestExpired") => {
            "the clock of this machine is too far from that of the store".to_owned()
        }
        Some(
            "AuthorizationHeaderMalformed"
            | "PermanentRedirect"
            | "TemporaryRedirect"
            | "IllegalLocationConstraintException",
        ) => format!(
            "the bucket is in another region than AWS_REGION says{}",
            told()
        ),
        _ if is_permission(answer) => permission(asking).to_owned(),
        _ if answer.text.contains("redirect without LOCATION") || is_redirect(answer.status) => {
            format!(
                "the bucket is elsewhere than AWS_REGION and AWS_ENDPOINT_URL say{}",
                told()
            )
        }
        _ if is_no_object_store(&answer.text) => NO_OBJECT_STORE.to_owned(),
        // Any other complaint of the server about the request is for the operator.
        Some(code)
            if answer
                .status
                .is_some_and(|it| (400..500).contains(&it) && it != 429 && it != 408) =>
        {
            let message = between(&answer.text, "<Message>", "</Message>");
            format!(
                "it says {}: {}",
                short(code),
                short(message.unwrap_or_default())
            )
        }
        _ if matches!(answer.status, Some(401 | 403)) => {
            "the store does not take the credentials".to_owned()
        }
        _ => return None,
    };
    Some(why)
}

fn is_redirect(status: Option<u16>) -> bool {
    status.is_some_and(|status| (300..400).contains(&status) && status != 304)
}

/// Tells which permission is missing. A caller without permission to list is not told whether an
/// object is there, so a read may lack either of two.
fn permission(asking: Asking) -> &'static str {
    match asking {
        Asking::List => "a permission is missing: s3:ListBucket on the bucket",
        Asking::Get => {
            "a permission is missing: s3:GetObject on the object, or, where it is not there, s3:ListBucket on the bucket"
        }
        Asking::Put => "a permission is missing: s3:PutObject on the object",
        Asking::Delete => "a permission is missing: s3:DeleteObject on the object",
    }
}

fn is_no_object_store(text: &str) -> bool {
    const SIGNS: [&str; 5] = [
        "Got invalid list response",
        "Unable to extract metadata from headers",
        "Header missing from response",
        "<!DOCTYPE html",
        "<html",
    ];
    SIGNS.iter().any(|sign| text.contains(sign))
}

/// Returns the text of the innermost cause, which says what happened rather than which request
/// failed.
fn cause(error: &Error) -> String {
    let mut inner = error.source();
    let mut told = error.to_string();
    while let Some(error) = inner {
        told = error.to_string();
        inner = error.source();
    }
    short(&told)
}

/// Cuts foreign text to [`MOST_TOLD`] characters on one line.
fn short(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(MOST_TOLD).collect()
}
