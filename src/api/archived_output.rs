//! The output of an archived run on its way to a viewer, in little more memory than its bytes take.

use std::collections::VecDeque;

use bytes::Bytes;
use prost::Message;

use super::proto::StreamEvent;

/// Bytes of a piece after which the next one begins: what is held of a piece whose events are taken
/// one by one is less than what a stream is charged for anyway.
const PIECE: usize = 64 << 10;

/// Events of a run, encoded and put together in pieces. A piece is dropped with its last event.
#[derive(Debug, Default)]
pub(super) struct ArchivedOutput {
    /// The piece whose events come next.
    current: Bytes,
    /// The bytes that `current` had before its first event was taken.
    current_bytes: usize,
    pieces: VecDeque<Bytes>,
    /// The piece that events are added to.
    open: Vec<u8>,
    /// The bytes of all pieces.
    bytes: usize,
}

impl ArchivedOutput {
    /// Adds an event after all others. The id of its run is left out.
    pub(super) fn push(&mut self, event: &StreamEvent) {
        let before = self.open.len();
        // Its room grows as it is needed, so that this cannot fail.
        let _ = event.encode_length_delimited(&mut self.open);
        self.bytes += self.open.len() - before;
        if self.open.len() >= PIECE {
            self.seal();
        }
    }

    /// Ends the piece that events are added to.
    pub(super) fn seal(&mut self) {
        let open = std::mem::take(&mut self.open);
        if !open.is_empty() {
            // Without the room that it has to spare.
            self.pieces.push_back(Bytes::from(open.into_boxed_slice()));
        }
    }

    /// Returns the bytes that are held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Takes the next event of a piece that has ended.
    pub(super) fn pop(&mut self) -> Option<StreamEvent> {
        if self.current.is_empty() {
            self.current = self.pieces.pop_front()?;
            self.current_bytes = self.current.len();
        }
        let event = StreamEvent::decode_length_delimited(&mut self.current).ok();
        if self.current.is_empty() {
            self.current = Bytes::new();
            self.bytes -= std::mem::take(&mut self.current_bytes);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::stream_event::Event;

    fn event(seq: u64, bytes: usize) -> StreamEvent {
        StreamEvent {
            seq,
            event: Some(Event::Stdout(vec![b'x'; bytes].into())),
            ..StreamEvent::default()
        }
    }

    #[test]
    fn events_come_out_as_they_went_in_and_give_their_bytes_back() {
        let sizes = [
            0,
            1,
            PIECE - 20,
            PIECE,
            3 * PIECE,
            1,
            PIECE / 2,
            PIECE / 2,
            5,
        ];
        let events: Vec<_> = (1..)
            .zip(sizes)
            .map(|(seq, size)| event(seq, size))
            .collect();
        let mut output = ArchivedOutput::default();
        events.iter().for_each(|event| output.push(event));
        output.seal();
        let all: usize = sizes.iter().sum();
        assert!((all..all + 100).contains(&output.bytes));
        let mut left = all;
        for event in &events {
            assert_eq!(output.pop().as_ref(), Some(event));
            left -= sizes[usize::try_from(event.seq).unwrap() - 1];
            // Of a piece that is taken in part, all is held.
            assert!((left..left + 2 * PIECE).contains(&output.bytes));
        }
        assert_eq!((output.pop(), output.bytes), (None, 0));
    }
}
