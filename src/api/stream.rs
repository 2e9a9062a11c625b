//! A run as a stream of events: `started`, output in order, exactly one terminal event.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use tokio::task::JoinSet;
use tokio_stream::Stream;
use tonic::{Response, Status};

use super::answer::Enclosed;
use super::proto::stream_event::Event as Wire;
use super::proto::{Lost, RunError, StdinDemand, StreamEvent};
use super::start::told_by;
use super::{encode, status};
use crate::log::{Event, What};
use crate::run::{Attached, Run};
use crate::sandbox::{self, Input};

/// The events of one run. Dropping a caller's before the end cancels a run that is not detached.
pub struct Events {
    attached: Option<Attached>,
    /// What takes the caller's side of it, where it has one: ends with what the caller did wrong.
    taking: JoinSet<Option<RunError>>,
    /// The guest's input, where the caller may ask to be told when the guest waits for some.
    input: Option<Arc<Input>>,
}

impl Events {
    /// Of a run that was attached to, as an answer.
    pub(super) fn answer(attached: Attached) -> Response<Self> {
        Self::beside(attached, JoinSet::new(), None)
    }

    /// The same, for as long as the caller's side is taken; with the guest's demand for `input`, where there is one.
    pub(super) fn beside(
        attached: Attached,
        taking: JoinSet<Option<RunError>>,
        input: Option<Arc<Input>>,
    ) -> Response<Self> {
        let (id, untold) = (attached.run.id, attached.untold.clone());
        // That of its caller: a viewer is charged for itself.
        let reservation = match &untold {
            Some(_) => attached.run.take_answer_reservation(),
            None => None,
        };
        let mut response = Response::new(Self {
            attached: Some(attached),
            taking,
            input,
        });
        response.extensions_mut().insert(Enclosed::new(reservation));
        told_by(&mut response, &id, untold);
        response
    }
}

impl Stream for Events {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self {
            attached,
            taking,
            input,
        } = &mut *self;
        let Some(open) = attached else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(Some(Ok(Some(error)))) = taking.poll_join_next(cx)
            && open.run.log.end().is_none()
        {
            // The caller broke the rules: its stream ends here, and its run as if it had left.
            let (id, seq) = (&open.run.id, open.next_seq());
            let event = encode::event(id, seq, SystemTime::now(), Wire::Error(error));
            *attached = None;
            return Poll::Ready(Some(Ok(event)));
        }
        // Looked at first and told last: what the guest wrote before it waited comes before that it waits.
        let waits = (input.as_ref()).filter(|input| input.demands(cx));
        let event = open.poll_next(cx);
        if event.is_pending()
            && let Some(demand) = waits.and_then(|input| input.take_demand())
        {
            return Poll::Ready(Some(Ok(demanded(open, demand))));
        }
        let event = ready!(event);
        let over = event
            .as_ref()
            .is_none_or(|event| matches!(event.what, What::End(_)));
        let event = event.map(|event| Ok(encoded(&open.run, event)));
        if over {
            *attached = None;
            taking.abort_all();
        }
        Poll::Ready(event)
    }
}

/// That the guest waits for input: an event without a number of its own.
fn demanded(attached: &Attached, demand: sandbox::StdinDemand) -> StreamEvent {
    let sandbox::StdinDemand { read, wanted } = demand;
    let demand = StdinDemand {
        read_bytes: read,
        wanted_bytes: wanted,
    };
    let seq = attached.next_seq().saturating_sub(1);
    let (id, now) = (&attached.run.id, SystemTime::now());
    encode::event(id, seq, now, Wire::StdinDemand(demand))
}

fn encoded(run: &Run, Event { seq, at, what }: Event) -> StreamEvent {
    let event = match what {
        What::Started => Wire::Started(encode::started(run)),
        What::Output(stream, bytes) => encode::output(stream, bytes),
        What::Lost { first_seq, count } => Wire::Lost(Lost { first_seq, count }),
        What::End(end) => match &*end {
            Ok(ended) => Wire::Exit(Box::new(encode::result(run, ended))),
            Err(refusal) => Wire::Error(status::event(refusal)),
        },
    };
    encode::event(&run.id, seq, at, event)
}
