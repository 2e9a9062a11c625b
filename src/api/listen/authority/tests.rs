//! Tests of which authorities are repaired, and of what is left as it is.

use proptest::prelude::*;

use super::*;

/// The Huffman codes of the characters that the tests write, with their lengths in bits.
const CODES: [(char, u32, u32); 26] = [
    (' ', 0x14, 6),
    ('%', 0x15, 6),
    ('-', 0x16, 6),
    ('.', 0x17, 6),
    ('/', 0x18, 6),
    ('2', 0x02, 5),
    ('3', 0x19, 6),
    (':', 0x5c, 7),
    ('F', 0x61, 7),
    ('X', 0xfc, 8),
    ('_', 0x22, 6),
    ('a', 0x03, 5),
    ('c', 0x04, 5),
    ('h', 0x27, 6),
    ('i', 0x06, 5),
    ('k', 0x75, 7),
    ('l', 0x28, 6),
    ('m', 0x29, 6),
    ('o', 0x07, 5),
    ('p', 0x2b, 6),
    ('r', 0x2c, 6),
    ('s', 0x08, 5),
    ('t', 0x09, 5),
    ('u', 0x2d, 6),
    ('y', 0x7a, 7),
    ('~', 0x1ffd, 13),
];

fn huffman(text: &str) -> Vec<u8> {
    let mut bits = Vec::new();
    for c in text.chars() {
        let (_, code, count) = CODES.into_iter().find(|it| it.0 == c).unwrap();
        bits.extend((0..count).rev().map(|at| code >> at & 1));
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    let byte = |bits: &[u32]| bits.iter().fold(0, |byte, bit| byte << 1 | *bit);
    bits.chunks(8)
        .map(|bits| u8::try_from(byte(bits)).unwrap())
        .collect()
}

fn string(text: &str, compressed: bool) -> Vec<u8> {
    let (mark, bytes) = match compressed {
        true => (0x80, huffman(text)),
        false => (0, text.as_bytes().to_vec()),
    };
    let length = u8::try_from(bytes.len()).unwrap();
    match length {
        // The length takes two bytes, although one would do.
        0x7f.. => [&[mark | 0x7f, length - 0x7f][..], &bytes].concat(),
        _ => [&[mark | length][..], &bytes].concat(),
    }
}

/// Writes a header list with a field of each kind: `authority` is in the middle, and the same text
/// appears where it is not an authority.
fn fields(authority: &str, same: &str, compressed: bool) -> Vec<u8> {
    let mut block = vec![0x20, 0x3f, 0xe1, 0x1f, 0x83];
    // A name by a long index, from a table and written out; a name and a value of the same text.
    block.extend([0x0f, 0x8f, 0x01]);
    block.extend(string(same, compressed));
    block.extend([0xff, 0x8f, 0x01, 0x10]);
    block.extend(string(same, compressed));
    block.extend(string(same, compressed));
    for first in [0x41, 0x01, 0x11] {
        block.push(first);
        block.extend(string(authority, compressed));
    }
    // `:authority` by its name, and a name that is almost the same.
    for (name, text) in [
        (":authority", authority),
        (":authorits", same),
        (":author", same),
    ] {
        block.push(0x40);
        block.extend(string(name, compressed));
        block.extend(string(text, compressed));
    }
    block.push(0x44);
    block.extend(string(same, compressed));
    block
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [_, head @ ..] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&head[..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// Writes what a client sends with such a header list: whole, padded, with a priority, in pieces,
/// and between other frames.
fn said(block: &[u8]) -> Vec<u8> {
    let (first, second) = block.split_at(block.len() / 2);
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    said.extend(frame(4, 0, &[]));
    said.extend(frame(HEADERS, 0x4, block));
    said.extend(frame(0, 0, b"\x41\x03%2F"));
    said.extend(frame(
        HEADERS,
        0x4 | PADDED,
        &[&[3], block, b"%%%"].concat(),
    ));
    said.extend(frame(HEADERS, 0x4 | PRIORITY, &[b"%%%%%", block].concat()));
    said.extend(frame(
        HEADERS,
        PADDED | PRIORITY,
        &[b"\x01%%%%%", first, b"%"].concat(),
    ));
    said.extend(frame(CONTINUATION, 0, &[]));
    said.extend(frame(CONTINUATION, 0x4, second));
    said.extend(frame(HEADERS, 0x4, block));
    said
}

fn mended(said: &[u8], piece: usize) -> Vec<u8> {
    let mut said = said.to_vec();
    let mut mender = AuthorityRewriter::new();
    for piece in said.chunks_mut(piece) {
        mender.rewrite(piece);
    }
    said
}

#[test]
fn an_authority_becomes_one_and_nothing_else_changes() {
    for (text, plain) in [
        ("%2Ftmp%2Fa.sock", ".2Ftmp.2Fa.sock"),
        ("/tmp/a.sock", "3tmp3a.sock"),
        ("/ %", "3-."),
        ("localhost:32", "localhost:32"),
        ("%X/_%", ".X3_."),
        ("", ""),
    ] {
        for compressed in [false, true] {
            let before = said(&fields(text, "%2F/ ", compressed));
            let after = said(&fields(plain, "%2F/ ", compressed));
            for piece in 1..=before.len() {
                assert_eq!(mended(&before, piece), after, "{text} {compressed} {piece}");
            }
        }
    }
}

#[test]
fn a_long_authority_is_mended_to_its_end() {
    let (before, after) = ("%2F".repeat(60), ".2F".repeat(60));
    for compressed in [false, true] {
        let [before, after] = [&before, &after].map(|it| said(&fields(it, "/", compressed)));
        assert_eq!(mended(&before, 11), after);
    }
}

#[test]
fn what_is_not_followed_is_left_as_it_is() {
    let text = said(&fields("a~%2F", "a", true));
    let plain = said(&fields("a~%2F", "a", true));
    assert_eq!(mended(&text, 5), plain);
}

proptest! {
    #[test]
    fn whatever_is_read_and_however_it_comes_the_same_comes_of_it(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x41)], 0..400),
        cut in 0usize..400,
    ) {
        let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &bytes[..]].concat();
        let (mut whole, mut cut_up) = (bytes.clone(), bytes.clone());
        AuthorityRewriter::new().rewrite(&mut whole);
        let mut mender = AuthorityRewriter::new();
        let at = cut.min(cut_up.len());
        let (first, second) = cut_up.split_at_mut(at);
        mender.rewrite(first);
        mender.rewrite(second);
        prop_assert_eq!(whole, cut_up);
    }
}
