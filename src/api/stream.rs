//! A run as a stream of events: `started`, output in order, exactly one terminal event.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use tokio_stream::Stream;
use tonic::Status;

use super::proto::StreamEvent;
use super::proto::stream_event::Event;
use super::{encode, status};
use crate::run::Running;
use crate::sandbox::Item;

/// The events of one run. Dropping it before the end cancels the run.
pub struct Events {
    run: Running,
    seq: u64,
}

impl Events {
    /// Of a run that has just started.
    pub fn new(run: Running) -> Self {
        Self { run, seq: 0 }
    }

    fn next(&mut self, at: SystemTime, event: Event) -> StreamEvent {
        let event = encode::event(&self.run.id, self.seq, at, event);
        self.seq += 1;
        event
    }
}

impl Stream for Events {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.seq == 0 {
            let started = encode::started(self.run.digest, &self.run.granted);
            let at = self.run.started;
            let event = self.next(at, Event::Started(started));
            return Poll::Ready(Some(Ok(event)));
        }
        let Some(item) = ready!(self.run.poll_next(cx)) else {
            return Poll::Ready(None);
        };
        let (at, event) = match item {
            Item::Chunk(chunk) => {
                let event = encode::output(chunk.stream, chunk.bytes.freeze());
                (chunk.at, event)
            }
            Item::End(end) => {
                let event = match *end {
                    Ok(ended) => Event::Exit(Box::new(encode::result(&self.run, ended))),
                    Err(refusal) => Event::Error(status::event(&refusal)),
                };
                (SystemTime::now(), event)
            }
        };
        Poll::Ready(Some(Ok(self.next(at, event))))
    }
}
