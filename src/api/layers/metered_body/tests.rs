use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use proptest::prelude::*;

use super::*;

const CAP: u64 = 40;
const KINDS: [RequestKind; 5] = [
    RequestKind::Unary,
    RequestKind::Upload,
    RequestKind::Interact,
    RequestKind::Health,
    RequestKind::Foreign,
];

/// A body that arrives in pieces, and is broken off after them or not.
struct Pieces {
    left: VecDeque<Frame<Bytes>>,
    is_broken_off: bool,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(self.left.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty() && !self.is_broken_off
    }
}

/// Cuts `bytes` at some places.
fn cut(bytes: &[u8], cuts: &[prop::sample::Index]) -> Vec<Bytes> {
    let mut ends: Vec<usize> = cuts.iter().map(|it| it.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut pieces = Vec::new();
    let mut start = 0;
    for end in ends {
        pieces.push(Bytes::copy_from_slice(&bytes[start..end]));
        start = end;
    }
    pieces
}

fn metered(
    pieces: Vec<Bytes>,
    kind: RequestKind,
    budget: u64,
) -> (MeteredBody<Pieces>, Arc<AtomicU64>) {
    let body = Pieces {
        left: pieces.into_iter().map(Frame::data).collect(),
        is_broken_off: false,
    };
    let rules = BodyRules {
        kind,
        cap: MessageCap::fixed(CAP, "of a test"),
        stall: Duration::from_secs(600),
    };
    let total = Arc::new(AtomicU64::new(0));
    let charge = RequestCharge::new(Arc::clone(&total), budget, None);
    (MeteredBody::new(body, rules, charge, None), total)
}

/// Reads a body to its end or its failure. Returns what came of it, and the failure's message.
fn read(body: &mut MeteredBody<Pieces>) -> (Vec<u8>, Option<String>) {
    let mut context = Context::from_waker(Waker::noop());
    let mut got = Vec::new();
    loop {
        let Poll::Ready(polled) = Pin::new(&mut *body).poll_frame(&mut context) else {
            panic!("all of it is there");
        };
        match polled {
            None => return (got, None),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    got.extend_from_slice(&data);
                }
            }
            Some(Err(status)) => {
                let ended = Pin::new(&mut *body).poll_frame(&mut context);
                assert!(matches!(ended, Poll::Ready(None)), "once");
                return (got, Some(status.message().to_owned()));
            }
        }
    }
}

/// What a body of `bytes` has to be refused for, found by a look at the whole of it.
fn verdict(kind: RequestKind, bytes: &[u8]) -> Option<Refusal> {
    let mut rest = bytes;
    let mut cap = MessageCap::fixed(CAP, "of a test");
    for number in 0.. {
        if rest.is_empty() {
            let is_nothing = number == 0 && kind != RequestKind::Foreign;
            return is_nothing.then(|| malformed("there is no message"));
        }
        let Some((prefix, after)) = rest.split_first_chunk::<PREFIX>() else {
            break;
        };
        let [flag, length @ ..] = *prefix;
        let length = u64::from(u32::from_be_bytes(length));
        let is_single = matches!(kind, RequestKind::Unary | RequestKind::Health);
        match (flag, number) {
            (1.., _) => {
                let message = "the message is compressed, which is not offered";
                return Some(malformed(message));
            }
            (0, 1..) if is_single => return Some(malformed("there is more than one message")),
            (0, _) if length > cap.bytes() => return Some(cap.refuse(length)),
            (0, _) => {}
        }
        let Some(after) = after.get(usize::try_from(length).unwrap()..) else {
            break;
        };
        rest = after;
        if kind == RequestKind::Interact {
            let hint = "a piece of standard input has 64 KiB";
            cap = MessageCap::fixed(INPUT_MESSAGE, hint);
        }
    }
    Some(malformed("the request ends in the middle of a message"))
}

fn message(flag: u8, announced: u32, bytes: usize) -> Vec<u8> {
    let mut message = vec![flag];
    message.extend_from_slice(&announced.to_be_bytes());
    message.extend((0..bytes).map(|at| u8::try_from(at % 251).unwrap()));
    message
}

fn whole(bytes: usize) -> Vec<u8> {
    message(0, u32::try_from(bytes).unwrap(), bytes)
}

/// Messages, most of which are as they should be.
fn messages() -> impl Strategy<Value = Vec<u8>> {
    let fine = (0..=40_usize).prop_map(whole);
    let large = (41..100_usize).prop_map(whole);
    let other = (0..3_u8, 0..u32::MAX, 0..50_usize)
        .prop_map(|(flag, announced, bytes)| message(flag, announced, bytes));
    let message = prop_oneof![12 => fine, 1 => large, 1 => other];
    (
        prop::collection::vec(message, 0..5),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
    )
        .prop_map(|(messages, end)| {
            let mut bytes = messages.concat();
            if let Some(end) = end {
                bytes.truncate(end.index(bytes.len() + 1));
            }
            bytes
        })
}

proptest! {
    #[test]
    fn a_body_is_judged_alike_however_it_is_cut_into_pieces(
        bytes in messages(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        kind in prop::sample::select(&KINDS[..]),
    ) {
        let refused = verdict(kind, &bytes).map(|it| it.message().into_owned());
        let each = bytes.iter().map(|byte| Bytes::copy_from_slice(&[*byte])).collect();
        for pieces in [vec![Bytes::copy_from_slice(&bytes)], cut(&bytes, &cuts), each] {
            let (mut body, _) = metered(pieces, kind, u64::MAX);
            let (got, failed) = read(&mut body);
            prop_assert_eq!(&failed, &refused);
            // What came before the failure is untouched, and without one all of it is there.
            prop_assert!(bytes.starts_with(&got));
            prop_assert!(failed.is_some() || got == bytes);
        }
    }

    #[test]
    fn a_body_is_charged_alike_however_it_is_cut_into_pieces(
        size in 0..=40_usize,
        more in prop::collection::vec(0..=40_usize, 0..4),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        kind in prop::sample::select(&KINDS[..]),
    ) {
        let first = whole(size);
        let mut bytes = first.clone();
        if kind.is_client_streaming() {
            bytes.extend(more.into_iter().flat_map(whole));
        }
        let pieces = cut(&bytes, &cuts);
        // The piece in which the first message ends is in memory as a whole.
        let mut arrived = 0;
        let ends = pieces.iter().map(|piece| {
            arrived += piece.len();
            arrived
        });
        let until = ends.into_iter().find(|end| *end >= first.len()).unwrap();
        let charged = match kind {
            RequestKind::Unary => bytes.len(),
            RequestKind::Upload => UPLOAD_HOLDS,
            RequestKind::Interact => until + INTERACT_HOLDS,
            RequestKind::Health | RequestKind::Foreign => 0,
        } as u64;
        let (mut body, total) = metered(pieces.clone(), kind, charged);
        prop_assert_eq!(read(&mut body), (bytes, None));
        prop_assert_eq!(total.load(Ordering::Relaxed), charged);
        drop(body);
        prop_assert_eq!(total.load(Ordering::Relaxed), 0);
        // One byte less of a budget is too little.
        if let Some(less) = charged.checked_sub(1) {
            let (mut body, total) = metered(pieces, kind, less);
            let (_, failed) = read(&mut body);
            prop_assert!(failed.is_some_and(|it| it.contains("server.inflight_request_bytes")));
            drop(body);
            prop_assert_eq!(total.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn the_only_message_is_what_was_sent_however_it_is_cut_into_pieces(
        size in 0..=40_usize,
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let bytes = whole(size);
        let (body, _) = metered(cut(&bytes, &cuts), RequestKind::Unary, u64::MAX);
        let mut reads = Box::pin(only_message(body));
        let polled = reads.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(Ok(message)) = polled else {
            panic!("{polled:?}");
        };
        prop_assert_eq!(&message[..], &bytes[PREFIX..]);
    }
}

#[test]
fn a_message_may_have_as_many_bytes_as_the_cap_and_not_one_more() {
    for kind in KINDS {
        for (size, fits) in [(39, true), (40, true), (41, false)] {
            let (mut body, _) = metered(vec![whole(size).into()], kind, u64::MAX);
            assert_eq!(read(&mut body).1.is_none(), fits, "{kind:?}, {size}");
        }
        // It is refused for what its prefix says, before any of it is there.
        let (mut body, _) = metered(vec![message(0, 41, 0).into()], kind, u64::MAX);
        let failed = read(&mut body).1.unwrap();
        assert!(failed.contains("above the maximum of 40"), "{failed}");
    }
}

#[test]
fn after_its_first_message_an_interaction_has_another_cap() {
    let most = usize::try_from(INPUT_MESSAGE).unwrap();
    for (size, fits) in [(most - 1, true), (most, true), (most + 1, false)] {
        let pieces = vec![whole(1).into(), whole(size).into(), whole(size).into()];
        let (mut body, _) = metered(pieces, RequestKind::Interact, u64::MAX);
        assert_eq!(read(&mut body).1.is_none(), fits, "{size}");
    }
}

#[test]
fn a_body_without_an_end_is_broken_off_even_between_messages() {
    for kind in KINDS {
        let (mut body, _) = metered(vec![whole(5).into()], kind, u64::MAX);
        body.body.is_broken_off = true;
        let (got, failed) = read(&mut body);
        assert_eq!(got, whole(5));
        assert_eq!(failed.as_deref(), Some("the request was broken off"));
    }
}

#[test]
fn trailers_end_a_body_and_it_has_to_be_there_as_a_whole() {
    for (pieces, fails) in [(whole(5), false), (message(0, 6, 5), true), (vec![], true)] {
        let (mut body, _) = metered(vec![pieces.into()], RequestKind::Upload, u64::MAX);
        let trailers = Frame::trailers(http::HeaderMap::new());
        body.body.left.push_back(trailers);
        assert_eq!(read(&mut body).1.is_some(), fails);
    }
}

#[test]
fn a_caller_may_be_silent_between_the_messages_of_an_interaction_alone() {
    for kind in KINDS {
        let (mut body, _) = metered(Vec::new(), kind, u64::MAX);
        let may_rest = matches!(kind, RequestKind::Interact | RequestKind::Foreign);
        assert!(!body.rests());
        let count = if kind.is_client_streaming() { 3 } else { 1 };
        for _ in 0..count {
            let bytes = whole(3);
            for (at, byte) in bytes.iter().enumerate() {
                body.follow(&[*byte]).unwrap();
                let is_between = at + 1 == bytes.len();
                assert_eq!(body.rests(), may_rest && is_between, "{kind:?} at {at}");
            }
        }
    }
}
