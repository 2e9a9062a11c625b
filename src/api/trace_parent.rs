//! Reads the trace that a call belongs to from its headers `traceparent` and `tracestate`.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::model::trace_context::TraceContext;

/// The header that names the trace, and the caller's span in it.
const PARENT: HeaderName = HeaderName::from_static("traceparent");
/// The header with what tracing systems pass on to each other.
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// Returns the context that the caller gave; `None` where it gave none, or not exactly one that is
/// valid.
pub(super) fn of(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(PARENT).iter();
    let parent = parents.next()?;
    if parents.next().is_some() {
        return None;
    }
    let state = headers.get_all(STATE).iter().map(HeaderValue::as_bytes);
    TraceContext::parse(parent.as_bytes(), state)
}
