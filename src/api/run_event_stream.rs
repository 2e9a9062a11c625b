//! Streams a run as events: `started`, its output in order, and exactly one terminal event.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::{Code, Response, Status};

use super::layers::response_budget::ReservationExtension;
use super::proto::stream_event::Event as Wire;
use super::proto::{Lost, RunError, StdinDemand, StreamEvent};
use super::start::attach_run_metadata;
use super::{encode, status};
use crate::event_log::{Event, EventPayload};
use crate::run::{Run, RunHandle};
use crate::sandbox::{self, Input};

/// The stream of one run's events. If a caller's stream is dropped before its end, the run is
/// cancelled unless it is detached.
pub struct RunEventStream {
    /// The hold on the run; `None` after the last event.
    attached: Option<RunHandle>,
    /// The task that takes the caller's messages, if the method has any. It ends with an error if
    /// the caller broke the rules.
    input_task: JoinSet<Option<RunError>>,
    /// The guest's input, if the caller may ask to be told when the guest waits for some.
    input: Option<Arc<Input>>,
}

impl RunEventStream {
    /// Creates the answer that streams the run of `attached`.
    pub(super) fn answer(attached: RunHandle) -> Response<Self> {
        Self::beside(attached, JoinSet::new(), None)
    }

    /// Creates the same answer beside `taking`, the task that takes the caller's messages and ends
    /// with the stream. If there is an `input`, the stream can report the guest's demand for it.
    pub(super) fn beside(
        attached: RunHandle,
        taking: JoinSet<Option<RunError>>,
        input: Option<Arc<Input>>,
    ) -> Response<Self> {
        let (id, pending_response) = (attached.run.id, attached.pending_response.clone());
        // The reservation goes to the run's caller; a viewer's stream is charged by itself.
        let reservation = match &pending_response {
            Some(_) => attached.run.take_answer_reservation(),
            None => None,
        };
        let mut response = Response::new(Self {
            attached: Some(attached),
            input_task: taking,
            input,
        });
        response
            .extensions_mut()
            .insert(ReservationExtension::new(reservation));
        attach_run_metadata(&mut response, &id, pending_response);
        response
    }
}

impl Stream for RunEventStream {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self {
            attached,
            input_task: taking,
            input,
        } = &mut *self;
        let Some(open) = attached else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(Some(Ok(Some(error)))) = taking.poll_join_next(cx)
            && open.run.log.end().is_none()
        {
            // The caller broke the rules: its stream ends here, and its run ends as if the caller
            // had left.
            let (id, seq) = (&open.run.id, open.next_seq());
            let event = encode::event(id, seq, SystemTime::now(), Wire::Error(error));
            open.span.end(status::code_name(Code::Ok));
            *attached = None;
            return Poll::Ready(Some(Ok(event)));
        }
        // Checked first but reported last, so that what the guest wrote before it waited comes
        // before the report that it waits.
        let waits = (input.as_ref()).filter(|input| input.poll_demand(cx));
        let event = open.poll_next(cx);
        if event.is_pending()
            && let Some(demand) = waits.and_then(|input| input.take_demand())
        {
            return Poll::Ready(Some(Ok(demanded(open, demand))));
        }
        let event = ready!(event);
        let over = event
            .as_ref()
            .is_none_or(|event| matches!(event.payload, EventPayload::End(_)));
        let event = event.map(|event| Ok(encoded(&open.run, event)));
        if over {
            open.span.end(status::code_name(Code::Ok));
            *attached = None;
            taking.abort_all();
        }
        Poll::Ready(event)
    }
}

/// Encodes that the guest waits for input. The event has no number of its own, but that of the
/// event before it.
fn demanded(attached: &RunHandle, demand: sandbox::StdinDemand) -> StreamEvent {
    let sandbox::StdinDemand { read, wanted } = demand;
    let demand = StdinDemand {
        read_bytes: read,
        wanted_bytes: wanted,
    };
    let seq = attached.next_seq().saturating_sub(1);
    let (id, now) = (&attached.run.id, SystemTime::now());
    encode::event(id, seq, now, Wire::StdinDemand(demand))
}

/// Encodes an event of the run's log.
fn encoded(
    run: &Run,
    Event {
        seq,
        at,
        payload: what,
    }: Event,
) -> StreamEvent {
    let event = match what {
        EventPayload::Started => Wire::Started(encode::started(run)),
        EventPayload::Output(stream, bytes) => encode::output(stream, bytes),
        EventPayload::File {
            head,
            offset,
            bytes,
        } => encode::file_chunk(&head, offset, bytes),
        EventPayload::Lost { first_seq, count } => Wire::Lost(Lost { first_seq, count }),
        EventPayload::End(end) => match &*end {
            Ok(ended) => Wire::Exit(Box::new(encode::result(run, ended))),
            Err(refusal) => Wire::Error(status::run_error(refusal)),
        },
    };
    encode::event(&run.id, seq, at, event)
}
