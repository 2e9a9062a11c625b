use proptest::prelude::*;

use super::*;
use crate::model::guest_limits::{INPUT_HELD, INPUT_PIECE};

const WAITING: usize = INPUT_WAITING.size();
const KEPT: usize = INPUT_KEPT.size();
const PIECE: usize = INPUT_PIECE.size();

/// Creates the input of a run that has its slot and whose spec has no input.
fn admitted() -> InputBuffer {
    let mut input = InputBuffer::default();
    input.begin_with(Bytes::new());
    input
}

/// Creates a text in which bytes that are near each other differ.
fn text(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(byte).collect()
}

/// The answer to a call of which `accepted` bytes are there.
fn accepted(
    accepted: u64,
    next_offset: u64,
    closed: bool,
) -> Result<AcceptedInput, InputRejection> {
    Ok(AcceptedInput {
        accepted,
        next_offset,
        closed,
    })
}

#[test]
fn what_is_repeated_is_not_appended_twice() {
    let mut input = admitted();
    assert_eq!(input.accept(0, b"abc", false), accepted(3, 3, false));
    assert_eq!(input.accept(0, b"abc", false), accepted(3, 3, false));
    assert_eq!(input.accept(1, b"b", false), accepted(1, 3, false));
    // The beginning is there, the rest is new.
    assert_eq!(input.accept(1, b"bcde", false), accepted(4, 5, false));
    assert_eq!(input.accept(5, b"", true), accepted(0, 5, true));
    assert_eq!(input.take(99), "abcde");
    assert_eq!(input.accept(3, b"de", true), accepted(2, 5, true));
    assert_eq!(input.accept(3, b"de", false), accepted(2, 5, true));
    assert!(input.is_empty() && input.is_closed());
    assert_eq!(input.read_bytes(), 5);
}

#[test]
fn a_question_changes_nothing() {
    let mut input = InputBuffer::default();
    assert_eq!(input.accept(0, b"", false), accepted(0, 0, false));
    input.begin_with(Bytes::from_static(b"of the spec"));
    assert_eq!(input.push(b"abc"), Ok(true));
    assert_eq!(input.accept(0, b"", false), accepted(0, 3, false));
    assert_eq!(input.accept(3, b"", false), accepted(0, 3, false));
    let gap = InputRejection::Gap {
        asked: 4,
        expected: 3,
    };
    assert_eq!(input.accept(4, b"", false), Err(gap));
}

#[test]
fn what_is_refused_changes_nothing() {
    let mut input = admitted();
    assert_eq!(input.accept(0, b"abc", false), accepted(3, 3, false));
    let gap = |asked| Err(InputRejection::Gap { asked, expected: 3 });
    assert_eq!(input.accept(4, b"e", true), gap(4));
    assert_eq!(input.accept(u64::MAX, b"e", true), gap(u64::MAX));
    let conflict = Err(InputRejection::Conflict(3));
    assert_eq!(input.accept(0, b"abx", false), conflict);
    assert_eq!(input.accept(1, b"xyz", true), conflict);
    assert_eq!(
        input.accept(2, b"", true),
        conflict,
        "no end was sent there"
    );
    assert_eq!(input.accept(0, b"ab", true), conflict);
    assert_eq!(input.take(9), "abc");
    assert_eq!(input.accept(3, b"d", true), accepted(1, 4, true));
    let closed = Err(InputRejection::Closed(4));
    assert_eq!(input.accept(4, b"e", false), closed);
    assert_eq!(input.accept(2, b"cde", true), closed);
    assert_eq!(input.accept(9, b"", false), closed);
    assert_eq!(input.push(b"e"), Err(InputRejection::Closed(4)));
    assert_eq!(input.take(9), "d");
    assert_eq!(input.accept(3, b"", true), conflict_at(4));
}

fn conflict_at(expected: u64) -> Result<AcceptedInput, InputRejection> {
    Err(InputRejection::Conflict(expected))
}

#[test]
fn it_takes_what_fits_and_no_more() {
    let mut input = admitted();
    let all = text(WAITING + PIECE);
    let (first, second) = all.split_at(WAITING - 1);
    let at = first.len() as u64;
    assert_eq!(input.accept(0, first, false), accepted(at, at, false));
    // One byte fits. The end of the input takes effect only after all of them.
    assert_eq!(input.accept(at, second, true), accepted(1, at + 1, false));
    let full = Err(InputRejection::Full(at + 1));
    assert_eq!(input.accept(at + 1, &second[1..], true), full);
    // What was there before counts, and so no byte of this is refused for want of room.
    let again = input.accept(at, second, true);
    assert_eq!(again, accepted(1, at + 1, false));
    assert_eq!(input.push(b"x"), Ok(false));
    assert_eq!(input.accept(at + 1, b"", true), accepted(0, at + 1, true));
    let mut read = Vec::new();
    while !input.is_empty() {
        read.extend_from_slice(&input.take(1000));
    }
    assert_eq!(read, &all[..WAITING]);
}

#[test]
fn nothing_that_is_sent_fits_before_the_run_has_its_slot() {
    let mut input = InputBuffer::default();
    let full = Err(InputRejection::Full(0));
    assert_eq!(input.accept(0, b"abc", true), full);
    // A caller that interacts is charged by its request.
    assert_eq!(input.push(b"ab"), Ok(true));
    assert_eq!(input.accept(0, b"abc", true), accepted(2, 2, false));
    input.begin_with(Bytes::from_static(b"spec "));
    assert_eq!(input.accept(2, b"c", true), accepted(1, 3, true));
    assert_eq!(input.take(99), "spec ");
    assert_eq!(input.take(99), "abc");
    assert_eq!(input.read_bytes(), 8);
}

#[test]
fn an_end_that_is_sent_before_the_slot_holds() {
    let mut input = InputBuffer::default();
    assert_eq!(input.accept(0, b"", true), accepted(0, 0, true));
    input.begin_with(Bytes::from_static(b"spec"));
    assert!(input.is_closed());
    assert_eq!(input.take(99), "spec");
}

#[test]
fn what_is_kept_is_compared_and_what_is_older_is_not() {
    let mut input = admitted();
    let all = text(2 * KEPT);
    for (i, piece) in all.chunks(1 << 10).enumerate() {
        let offset = (i << 10) as u64;
        let end = offset + piece.len() as u64;
        assert_eq!(
            input.accept(offset, piece, false),
            accepted(1 << 10, end, false)
        );
        assert_eq!(input.take(1 << 10).len(), 1 << 10);
    }
    let sent = all.len() as u64;
    let kept = (all.len() - KEPT) as u64;
    // The oldest byte that is kept, and the one before it, which was sent but can be compared no
    // more.
    let other = |at: usize| [!all[at]];
    let at = all.len() - KEPT;
    assert_eq!(input.accept(kept, &other(at), false), conflict_at(sent));
    assert_eq!(
        input.accept(kept - 1, &other(at - 1), false),
        accepted(1, sent, false)
    );
    let across = [!all[at - 1], !all[at]];
    assert_eq!(input.accept(kept - 1, &across, false), conflict_at(sent));
    let across = [!all[at - 1], all[at]];
    assert_eq!(
        input.accept(kept - 1, &across, false),
        accepted(2, sent, false)
    );
}

#[test]
fn a_run_holds_no_more_than_it_reserves() {
    let mut input = admitted();
    let piece = text(PIECE);
    let mut most = 0;
    for round in 0..200usize {
        // Sizes that would have the queue grow past the next power of two if it doubled.
        let size = 1 + (round * 7919) % PIECE;
        let offset = input.sent;
        if round % 3 == 0 {
            let _ = input.push(&piece[..size]);
        } else {
            let _ = input.accept(offset, &piece[..size], false);
        }
        most = most.max(input.recent.capacity());
        if round % 5 != 0 {
            input.take(size / 2);
        }
    }
    assert!(most <= INPUT_HELD.size(), "{most}");
    assert!(most > KEPT, "{most}: it was never full");
}

/// A step of a scene in which writers send a text to a guest.
#[derive(Clone, Debug)]
enum Step {
    /// A call of SendInput for some of the text, whether it is that part's turn or not.
    Send { offset: usize, length: usize },
    /// A piece of an interaction, which comes at the end of what was sent.
    Push { length: usize },
    /// A read of the guest.
    Read { length: usize },
}

fn step(length: usize) -> impl Strategy<Value = Step> {
    let size = 0..=length;
    prop_oneof![
        4 => (size.clone(), size.clone()).prop_map(|(offset, length)| Step::Send { offset, length }),
        1 => size.clone().prop_map(|length| Step::Push { length }),
        2 => size.prop_map(|length| Step::Read { length }),
    ]
}

proptest! {
    #[test]
    fn calls_that_overlap_repeat_and_come_late_give_exactly_the_text(
        steps in prop::collection::vec(step(3000), 1..200),
        length in 0..3000usize,
    ) {
        let all = text(length);
        let mut input = admitted();
        let mut read = Vec::new();
        let mut sent = 0;
        for step in steps {
            match step {
                Step::Send { offset, length } => {
                    let offset = offset.min(all.len());
                    let end = (offset + length).min(all.len());
                    let data = &all[offset..end];
                    let eof = end == all.len();
                    match input.accept(offset as u64, data, eof) {
                        Ok(answer) => {
                            prop_assert!(offset <= sent);
                            // Everything fits here, so that all of it was taken.
                            prop_assert_eq!(answer.accepted, data.len() as u64);
                            sent = sent.max(end);
                            prop_assert_eq!(answer.next_offset, sent as u64);
                            prop_assert!(answer.closed || !eof);
                        }
                        Err(InputRejection::Gap { expected, .. }) => {
                            prop_assert!(offset > sent);
                            prop_assert_eq!(expected, sent as u64);
                        }
                        Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
                    }
                }
                Step::Push { length } if !input.is_closed() => {
                    let end = (sent + length).min(all.len());
                    prop_assert_eq!(input.push(&all[sent..end]), Ok(true));
                    sent = end;
                }
                Step::Push { .. } => {}
                Step::Read { length } => read.extend_from_slice(&input.take(length)),
            }
            prop_assert_eq!(input.sent, sent as u64);
        }
        // Whoever lost count asks, and sends the rest.
        let asked = input.accept(0, b"", false).map(|it| it.next_offset);
        prop_assert_eq!(asked, Ok(sent as u64));
        let rest = input.accept(sent as u64, &all[sent..], true);
        prop_assert!(rest.is_ok_and(|it| it.closed));
        read.extend_from_slice(&input.take(usize::MAX));
        prop_assert!(read == all);
    }

    #[test]
    fn a_text_longer_than_fits_arrives_by_pieces_of_any_size(
        sizes in prop::collection::vec((1..=PIECE, 0..=PIECE, 0..1000usize), 1..20),
    ) {
        let all = text(4 * WAITING + 17);
        let mut input = admitted();
        let (mut sent, mut read) = (0, Vec::new());
        for (size, taken, back) in sizes.iter().cycle() {
            // Each call goes back a little, as after an answer that was lost.
            let offset = sent - sent.min(*back);
            let end = (sent + size).min(all.len());
            match input.accept(offset as u64, &all[offset..end], end == all.len()) {
                Ok(answer) => {
                    prop_assert!(answer.accepted <= (end - offset) as u64);
                    sent = usize::try_from(answer.next_offset).unwrap_or(usize::MAX);
                    if answer.closed {
                        break;
                    }
                }
                Err(InputRejection::Full(next)) => {
                    prop_assert_eq!(next, sent as u64);
                    prop_assert!(input.unread >= WAITING);
                }
                Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
            prop_assert!(input.recent.capacity() <= INPUT_HELD.size());
            read.extend_from_slice(&input.take(1 + taken));
        }
        read.extend_from_slice(&input.take(usize::MAX));
        prop_assert!(read == all);
    }
}
