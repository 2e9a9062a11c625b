//! Spans on the wire: one for each phase of a call, all of them children of the call's.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, SpanFlags, Status as SpanStatus,
};
use std::time::{Instant, SystemTime};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::attributes::{self, nanoseconds, number, text};
use super::call_trace::fresh_span_id;
use super::export_queue::{Charge, ExportQueue};
use super::signal::{BATCH_BYTES, ExportAnswer, ExportBatch, Signal};
use super::span_record::{Phase, PhaseKind, RunMoment, SpanRecord, TraceHead, TracedOutcome};

/// About how many bytes a span has on the wire, besides its `tracestate`.
const SPAN_BYTES: usize = 768;
/// The flag of a trace that is recorded, as in `traceparent`.
const SAMPLED: u32 = 1;

/// The signal of traces.
pub(super) struct SpanSignal;

impl Signal for SpanSignal {
    type Thing = SpanRecord;
    type Request = ExportTraceServiceRequest;
    const NAME: &'static str = "spans";

    fn collect(queue: &ExportQueue<SpanRecord>, resource: &Resource) -> ExportBatch<Self::Request> {
        let (mut spans, mut charges, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(record) = queue.pop()
        {
            let made = spans_of(&record);
            let state = record.head.state.as_ref().map_or(0, |state| state.len());
            bytes += made.len() * (SPAN_BYTES + state);
            spans.extend(made);
            charges.push(Charge::of(&record));
        }
        ExportBatch {
            records: spans.len() as u64,
            request: ExportTraceServiceRequest {
                resource_spans: vec![ResourceSpans {
                    resource: Some(resource.clone()),
                    scope_spans: vec![ScopeSpans {
                        scope: Some(attributes::scope()),
                        spans,
                        ..ScopeSpans::default()
                    }],
                    ..ResourceSpans::default()
                }],
            },
            is_full: bytes >= BATCH_BYTES,
            charges,
        }
    }

    async fn send(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<ExportAnswer, Status> {
        let answer = TraceServiceClient::new(channel).export(request).await?;
        let partial = answer.into_inner().partial_success.unwrap_or_default();
        Ok(ExportAnswer::new(
            partial.rejected_spans,
            partial.error_message,
        ))
    }
}

/// Makes the spans of a record.
fn spans_of(record: &SpanRecord) -> Vec<Span> {
    let phases = record.phases();
    phases.iter().map(|phase| span(record, phase)).collect()
}

fn span(record: &SpanRecord, phase: &Phase) -> Span {
    let head = &*record.head;
    let is_call = phase.kind == PhaseKind::Call;
    let (id, parent) = match phase.kind {
        PhaseKind::Call => (head.call_span, head.parent),
        PhaseKind::Guest => (head.guest_span, Some(head.call_span)),
        PhaseKind::Module | PhaseKind::Admission | PhaseKind::Instantiate | PhaseKind::Encode => {
            (fresh_span_id(), Some(head.call_span))
        }
    };
    let name = phase.kind.name().unwrap_or(head.call.rpc);
    let kind = match is_call {
        true => SpanKind::Server,
        false => SpanKind::Internal,
    };
    // Whether the parent is elsewhere is known of every span, and true of those of calls only.
    let mut flags = SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32;
    if is_call && parent.is_some() {
        flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    Span {
        trace_id: head.trace_id.to_bytes().to_vec(),
        span_id: id.to_bytes().to_vec(),
        trace_state: head.state.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: parent.map_or_else(Vec::new, |parent| parent.to_bytes().to_vec()),
        flags,
        name: name.to_owned(),
        kind: kind.into(),
        start_time_unix_nano: nanoseconds(time(head, phase.start)),
        end_time_unix_nano: nanoseconds(time(head, phase.end)),
        attributes: attributes_of(record, phase),
        events: events_of(record, phase),
        status: phase.reason.map(|reason| SpanStatus {
            message: reason.to_owned(),
            code: StatusCode::Error.into(),
        }),
        ..Span::default()
    }
}

/// Returns the attributes of a span: all that is known of the run for that of the call, and what
/// makes it found for the others.
fn attributes_of(record: &SpanRecord, phase: &Phase) -> Vec<KeyValue> {
    let SpanRecord {
        head,
        noted,
        answered,
    } = record;
    let mut told = vec![text(attributes::TENANT, &*head.call.tenant)];
    let run_id = noted.end.map(|end| end.run_id).or(noted.attached);
    told.extend(run_id.map(|id| text(attributes::RUN_ID, id.as_str())));
    if let Some(reason) = phase.reason {
        told.push(text("error.type", reason));
    }
    if let Some(digest) = noted.end.and_then(|end| end.digest) {
        told.push(text(attributes::DIGEST, digest.to_string()));
    }
    if phase.kind == PhaseKind::Call {
        told.push(text("rpc.system.name", "grpc"));
        told.push(text("rpc.method", head.call.rpc));
        told.extend(answered.map(|(_, code)| text("rpc.response.status_code", code)));
    }
    if matches!(phase.kind, PhaseKind::Call | PhaseKind::Guest)
        && let Some(end) = noted.end
    {
        match end.outcome {
            TracedOutcome::Ended {
                outcome, exit_code, ..
            } => {
                told.push(text("ringfence.outcome", outcome));
                let exit_code = exit_code.map(u64::from);
                told.extend(exit_code.map(|code| number("ringfence.exit_code", code)));
            }
            TracedOutcome::Refused(reason) => told.push(text("ringfence.reason", reason)),
        }
    }
    told
}

/// Returns the events of a span: admission tells when the run began to wait for a slot.
fn events_of(record: &SpanRecord, phase: &Phase) -> Vec<Event> {
    let queued = record.noted.at(RunMoment::Queued);
    let queued = queued.filter(|_| phase.kind == PhaseKind::Admission);
    let event = queued.map(|at| Event {
        time_unix_nano: nanoseconds(time(&record.head, at)),
        name: "queued".to_owned(),
        ..Event::default()
    });
    event.into_iter().collect()
}

/// Returns the time of an instant by the clock that the trace began with, so that the spans of one
/// trace fit each other however the host's clock is set meanwhile.
fn time(head: &TraceHead, at: Instant) -> SystemTime {
    let (instant, time) = head.begun;
    match at.checked_duration_since(instant) {
        Some(after) => time + after,
        None => time - instant.duration_since(at),
    }
}
