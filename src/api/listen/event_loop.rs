//! The assignment of connections to event loops: each goes to the loop that has the fewest (least
//! connections).
//!
//! A connection stays on its loop for its whole life. Its socket is registered there from the
//! start, so that what arrives wakes the loop itself, and no other thread on its behalf.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::connection_slots::ConnectionSlot;
use super::transport::{ConnectionRules, Transport};

/// A connection that was accepted, on its way to the event loop that will serve it.
pub(in crate::api) struct NewConnection {
    pub(super) transport: Transport,
    pub(super) rules: ConnectionRules,
    /// `None` for the daemon's own connection, which exists before anything is accepted.
    pub(super) slot: Option<ConnectionSlot>,
    pub(super) assignment: EventLoopAssignment,
}

/// The event loops that serve connections, as the accept loops see them.
#[derive(Clone)]
pub struct EventLoops(Arc<[EventLoop]>);

/// An event loop: the handle of its runtime, the channel by which it receives connections, and how
/// many of them are open.
pub(in crate::api) struct EventLoop {
    runtime: Handle,
    /// Unbounded, but it never holds more connections than the connection tables have slots.
    new: mpsc::UnboundedSender<NewConnection>,
    /// Connections that are assigned to the loop now.
    open: AtomicUsize,
}

impl EventLoop {
    /// Describes the event loop that runs on `runtime` and receives its connections from the other
    /// end of `new`.
    pub(in crate::api) fn new(runtime: Handle, new: mpsc::UnboundedSender<NewConnection>) -> Self {
        Self {
            runtime,
            new,
            open: AtomicUsize::new(0),
        }
    }
}

impl EventLoops {
    /// Gathers all event loops of a daemon, of which there is at least one.
    pub(in crate::api) fn new(loops: Vec<EventLoop>) -> Self {
        Self(loops.into())
    }

    /// Assigns a connection to the loop with the fewest.
    pub(super) fn assign(&self) -> EventLoopAssignment {
        let loads = self.0.iter().map(|it| it.open.load(Ordering::Relaxed));
        let least = loads.enumerate().min_by_key(|(_, open)| *open);
        let index = least.map_or(0, |(index, _)| index);
        self.0[index].open.fetch_add(1, Ordering::Relaxed);
        EventLoopAssignment {
            loops: self.clone(),
            index,
        }
    }
}

/// A connection's assignment to an event loop. Dropping it takes the connection off the loop's
/// count.
pub(super) struct EventLoopAssignment {
    loops: EventLoops,
    index: usize,
}

impl EventLoopAssignment {
    /// Returns the event loop that the connection is assigned to.
    fn event_loop(&self) -> &EventLoop {
        &self.loops.0[self.index]
    }

    /// Registers a TCP connection with the event loop's reactor.
    pub(super) fn adopt_tcp(&self, stream: TcpStream) -> io::Result<TcpStream> {
        let stream = stream.into_std()?;
        let _context = self.event_loop().runtime.enter();
        TcpStream::from_std(stream)
    }

    /// Registers a unix socket connection with the event loop's reactor.
    pub(super) fn adopt_unix(&self, stream: UnixStream) -> io::Result<UnixStream> {
        let stream = stream.into_std()?;
        let _context = self.event_loop().runtime.enter();
        UnixStream::from_std(stream)
    }

    /// Sends the connection to its event loop, which serves it from then on.
    pub(super) fn hand_over(
        self,
        transport: Transport,
        rules: ConnectionRules,
        slot: Option<ConnectionSlot>,
    ) {
        let new = self.event_loop().new.clone();
        // The connection is closed if nobody serves any more.
        let _ = new.send(NewConnection {
            transport,
            rules,
            slot,
            assignment: self,
        });
    }
}

impl Drop for EventLoopAssignment {
    fn drop(&mut self) {
        self.event_loop().open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns how many connections each loop has.
    fn open(loops: &EventLoops) -> Vec<usize> {
        let each = |it: &EventLoop| it.open.load(Ordering::Relaxed);
        loops.0.iter().map(each).collect()
    }

    #[tokio::test]
    async fn a_connection_goes_to_the_loop_with_the_fewest() {
        let new_loop = || EventLoop::new(Handle::current(), mpsc::unbounded_channel().0);
        let loops = EventLoops::new((0..3).map(|_| new_loop()).collect());
        let mut assigned: Vec<_> = (0..7).map(|_| loops.assign()).collect();
        assert_eq!(open(&loops), [3, 2, 2]);
        // All connections of one loop end.
        assigned.retain(|it| it.index != 1);
        assert_eq!(open(&loops), [3, 0, 2]);
        assigned.extend((0..3).map(|_| loops.assign()));
        assert_eq!(open(&loops), [3, 3, 2]);
        drop(assigned);
        assert_eq!(open(&loops), [0, 0, 0]);
    }
}
