//! Readers of a run's event log: the caller that the guest may wait for, and viewers.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Sleep;

use super::{EventLog, EventSource, Inner, OutputBytes, RunEnd, Unacked};
use crate::model::collected::FileHead;
use crate::model::outcome::Stream;

/// How long a viewer leaves an event alone that is still written to. So not every write wakes all
/// viewers, and the most eager of them does not turn each write into an event of its own.
const GATHER: Duration = Duration::from_millis(5);

/// One event of a run, as a reader gets it.
#[derive(Debug)]
pub struct Event {
    /// The number of the event. [`EventPayload::Lost`] has none: it repeats that of the event
    /// before.
    pub seq: u64,
    /// When it happened; for output, when its first byte was written.
    pub at: SystemTime,
    /// What happened in the run.
    pub payload: EventPayload,
}

/// The kinds of event, with what each carries.
#[derive(Debug)]
pub enum EventPayload {
    /// The run has started.
    Started,
    /// The guest wrote at most 64 KiB to a stream.
    Output(Stream, Bytes),
    /// A piece of a file that the run returns.
    File {
        /// The file that it is a piece of.
        head: Arc<FileHead>,
        /// Where in the file the piece begins.
        offset: u64,
        /// The bytes of the piece, at most 64 KiB.
        bytes: Bytes,
    },
    /// Events that were dropped before this reader got to them.
    Lost {
        /// The number of the first lost event.
        first_seq: u64,
        /// How many events were lost.
        count: u64,
    },
    /// The run has ended; comes once, after all else.
    End(Arc<RunEnd>),
}

/// One reader of an event log, at its own position.
#[derive(Debug)]
pub struct EventReader {
    log: Arc<EventLog>,
    next: u64,
    /// The reader's place among those that wait; `None` until it first has to.
    place: Option<usize>,
    /// Whether the log owes the reader its output, as far as this side knows.
    owed: bool,
    finished: bool,
    /// The timer of [`GATHER`], set while an event gathers.
    gathers: Option<Pin<Box<Sleep>>>,
}

impl EventLog {
    /// Creates a viewer that reads from event `from` on.
    ///
    /// # Errors
    /// Where the log has not come as far as `from`: returns the highest number that it can be read
    /// from.
    pub fn view(self: &Arc<Self>, from: u64) -> Result<EventReader, u64> {
        let highest = self.lock().next_output();
        if from > highest {
            return Err(highest);
        }
        Ok(EventReader::new(self, from))
    }

    /// Returns the output that the log has, without what was lost. Nobody is told of it as read.
    pub fn output(&self) -> Vec<Event> {
        let mut inner = self.lock();
        let mut events = Vec::with_capacity(inner.entries.len());
        let mut next = inner.first_seq;
        while next < inner.next_output()
            && let Some(event) = inner.read(next)
        {
            next = event.seq + 1;
            events.push(event);
        }
        events
    }

    /// Creates a viewer that reads from the start.
    pub fn follow(self: &Arc<Self>) -> EventReader {
        EventReader::new(self, 0)
    }

    /// Creates the reader of the caller that the guest waits for, from the start.
    pub fn follow_reliably(self: &Arc<Self>) -> EventReader {
        let mut inner = self.lock();
        self.pool.pay(inner.forgive());
        inner.unacked = Some(Unacked { next: 0, bytes: 0 });
        drop(inner);
        let mut viewer = EventReader::new(self, 0);
        viewer.owed = true;
        viewer
    }
}

impl EventReader {
    fn new(log: &Arc<EventLog>, next: u64) -> Self {
        Self {
            log: Arc::clone(log),
            next,
            place: None,
            owed: false,
            finished: false,
            gathers: None,
        }
    }

    /// Reports whether the next event is not there any more.
    pub fn has_lost(&self) -> bool {
        let inner = self.log.lock();
        inner.started.is_some() && self.next.max(1) < inner.first_seq
    }

    /// Returns the number of the event that is wanted next.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Polls for the next event; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let log = &self.log;
        if !self.owed && self.gathers.is_none() && log.lock().is_gathering(self.next) {
            self.gathers = Some(Box::pin(tokio::time::sleep(GATHER)));
        }
        if let Some(gathers) = &mut self.gathers {
            // A new timer is polled too: on a busy host it may be over already, and then wakes
            // nobody.
            ready!(gathers.as_mut().poll(cx));
            self.gathers = None;
        }
        let mut inner = log.lock();
        let Some(event) = inner.read(self.next) else {
            let place = *self.place.get_or_insert_with(|| inner.take_place());
            let place = &mut inner.waiting[place];
            if !place.as_ref().is_some_and(|it| it.will_wake(cx.waker())) {
                *place = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        match event.payload {
            EventPayload::Started | EventPayload::Output(..) | EventPayload::File { .. } => {
                self.next = event.seq + 1;
            }
            EventPayload::Lost { first_seq, count } => {
                self.next = first_seq + count;
                log.pool.tell_lost(count);
            }
            EventPayload::End(_) => self.finished = true,
        }
        if self.owed {
            log.pool.pay(inner.paid(self.next));
            log.offer_for_eviction(&mut inner);
            drop(inner);
            log.space.notify_one();
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut inner = self.log.lock();
            inner.waiting[place] = None;
            inner.free.push(place);
        }
        if self.owed {
            self.log.release_backpressure();
        }
    }
}

impl Inner {
    fn take_place(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.waiting.push(None);
            self.waiting.len() - 1
        })
    }

    /// Reports whether event `next` is the last one and may still grow: nobody has read it, and it
    /// has room.
    fn is_gathering(&self, next: u64) -> bool {
        let last = self.entries.back();
        self.end.is_none()
            && next + 1 == self.next_output()
            && last.is_some_and(|last| match &last.bytes {
                OutputBytes::Open(bytes) => bytes.len() < super::CHUNK_BYTES,
                OutputBytes::Sealed(_) => false,
            })
    }

    /// Returns event `next`, or that it was lost; `None` where it has not happened.
    fn read(&mut self, next: u64) -> Option<Event> {
        let output_end = self.next_output();
        if next == 0
            && let Some(at) = self.started
        {
            let what = EventPayload::Started;
            return Some(Event {
                seq: 0,
                at,
                payload: what,
            });
        }
        if self.started.is_some() && next < self.first_seq {
            let (first_seq, count) = (next, self.first_seq - next);
            return Some(Event {
                seq: next - 1,
                at: SystemTime::now(),
                payload: EventPayload::Lost { first_seq, count },
            });
        }
        if next < output_end {
            let index = usize::try_from(next - self.first_seq).unwrap_or(usize::MAX);
            let entry = self.entries.get_mut(index)?;
            let bytes = entry.seal();
            let what = match &entry.source {
                EventSource::Output(stream) => EventPayload::Output(*stream, bytes),
                EventSource::File(place) => EventPayload::File {
                    head: Arc::clone(&place.0),
                    offset: place.1,
                    bytes,
                },
            };
            return Some(Event {
                seq: next,
                at: entry.at,
                payload: what,
            });
        }
        let (at, end) = self.end.as_ref()?;
        Some(Event {
            seq: output_end,
            at: *at,
            payload: EventPayload::End(Arc::clone(end)),
        })
    }

    /// Takes the events that the caller has read, those before `next`, off what it is owed, and
    /// returns their bytes.
    fn paid(&mut self, next: u64) -> usize {
        let Some(owed) = &mut self.unacked else {
            return 0;
        };
        let before = owed.bytes;
        while owed.next < next {
            let entry = owed.next.checked_sub(self.first_seq).and_then(|index| {
                let index = usize::try_from(index).ok()?;
                self.entries.get(index)
            });
            owed.bytes -= entry.map_or(0, |entry| entry.cost);
            owed.next += 1;
        }
        self.full_since = None;
        before - owed.bytes
    }
}

#[cfg(test)]
mod tests;
