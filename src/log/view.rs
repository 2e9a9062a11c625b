//! Reading a run's log.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Sleep;

use super::{Body, End, Inner, Log, Owed};
use crate::outcome::Stream;

/// A viewer leaves an event that is still written to for so long: neither does each write wake all viewers, nor does the
/// eagerest of them make each write an event of its own.
const GATHER: Duration = Duration::from_millis(5);

/// One thing that happened.
#[derive(Debug)]
pub struct Event {
    /// Its number. [`What::Lost`] has none: it repeats that of the event before.
    pub seq: u64,
    /// When; for output, when its first byte was written.
    pub at: SystemTime,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug)]
pub enum What {
    /// The run started.
    Started,
    /// The guest wrote at most 64 KiB.
    Output(Stream, Bytes),
    /// Events that are not kept any more.
    Lost {
        /// The first.
        first_seq: u64,
        /// How many.
        count: u64,
    },
    /// The end, once, after all else.
    End(Arc<End>),
}

/// One reader of a log.
#[derive(Debug)]
pub struct Viewer {
    log: Arc<Log>,
    next: u64,
    /// Where it waits, once it had to.
    place: Option<usize>,
    /// Whether the log owes it its output, as far as this side knows.
    owed: bool,
    finished: bool,
    /// Set while an event gathers.
    gathers: Option<Pin<Box<Sleep>>>,
}

impl Log {
    /// Reads from event `from` on.
    ///
    /// # Errors
    /// Where the log has not come as far: the highest number that it can be read from.
    pub fn view(self: &Arc<Self>, from: u64) -> Result<Viewer, u64> {
        let highest = self.lock().next_output();
        if from > highest {
            return Err(highest);
        }
        Ok(Viewer::new(self, from))
    }

    /// Reads from the start.
    pub fn follow(self: &Arc<Self>) -> Viewer {
        Viewer::new(self, 0)
    }

    /// Reads from the start, as the caller that the guest waits for.
    pub fn owe(self: &Arc<Self>) -> Viewer {
        self.lock().owed = Some(Owed { next: 0, bytes: 0 });
        let mut viewer = Viewer::new(self, 0);
        viewer.owed = true;
        viewer
    }
}

impl Viewer {
    fn new(log: &Arc<Log>, next: u64) -> Self {
        Self {
            log: Arc::clone(log),
            next,
            place: None,
            owed: false,
            finished: false,
            gathers: None,
        }
    }

    /// The number of the event that is wanted next.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// The next event; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        if self.finished {
            return Poll::Ready(None);
        }
        let log = &self.log;
        if !self.owed && self.gathers.is_none() && log.lock().is_gathering(self.next) {
            self.gathers = Some(Box::pin(tokio::time::sleep(GATHER)));
        }
        if let Some(gathers) = &mut self.gathers {
            // Also where it is new: on a busy host it may be over already, and then wakes nobody.
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
        match event.what {
            What::Started | What::Output(..) => self.next = event.seq + 1,
            What::Lost { first_seq, count } => self.next = first_seq + count,
            What::End(_) => self.finished = true,
        }
        if self.owed {
            inner.paid(self.next);
            log.enter(&mut inner);
            drop(inner);
            log.space.notify_one();
        }
        Poll::Ready(Some(event))
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let mut inner = self.log.lock();
            inner.waiting[place] = None;
            inner.free.push(place);
        }
        if self.owed {
            self.log.owe_nothing();
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

    /// Whether event `next` is the last and nobody has read it.
    fn is_gathering(&self, next: u64) -> bool {
        let last = self.entries.back();
        self.end.is_none()
            && next + 1 == self.next_output()
            && last.is_some_and(|last| match &last.bytes {
                Body::Open(bytes) => bytes.len() < super::CHUNK_BYTES,
                Body::Sealed(_) => false,
            })
    }

    /// Event `next`, or that it is not there any more; `None` where it has not happened.
    fn read(&mut self, next: u64) -> Option<Event> {
        let output_end = self.next_output();
        if next == 0
            && let Some(at) = self.started
        {
            let what = What::Started;
            return Some(Event { seq: 0, at, what });
        }
        if self.started.is_some() && next < self.first {
            let (first_seq, count) = (next, self.first - next);
            return Some(Event {
                seq: next - 1,
                at: SystemTime::now(),
                what: What::Lost { first_seq, count },
            });
        }
        if next < output_end {
            let index = usize::try_from(next - self.first).unwrap_or(usize::MAX);
            let entry = self.entries.get_mut(index)?;
            let what = What::Output(entry.stream, entry.seal());
            return Some(Event {
                seq: next,
                at: entry.at,
                what,
            });
        }
        let (at, end) = self.end.as_ref()?;
        Some(Event {
            seq: output_end,
            at: *at,
            what: What::End(Arc::clone(end)),
        })
    }

    /// Takes what the caller has read, up to before `next`, off what it is owed.
    fn paid(&mut self, next: u64) {
        let Some(owed) = &mut self.owed else {
            return;
        };
        while owed.next < next {
            let entry = owed.next.checked_sub(self.first).and_then(|index| {
                let index = usize::try_from(index).ok()?;
                self.entries.get(index)
            });
            owed.bytes -= entry.map_or(0, |entry| entry.cost);
            owed.next += 1;
        }
        self.full_since = None;
    }
}
