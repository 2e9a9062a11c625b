//! The first bytes of a connection, before the daemon has said anything: whether they are HTTP/2 at all.
//!
//! A server of HTTP/2 may speak first, and does. It is held back for a moment, until the client has said what it speaks,
//! so that one of HTTP/1 gets an answer that it understands.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::closures::ForeignProtocol;

/// What a client of HTTP/2 says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of it that leave no doubt.
const SURE: usize = 4;
/// Bytes that a server of HTTP/2 may have said meanwhile: its settings, and how much it takes.
const MAX_HELD: usize = 1 << 10;
/// How long it is held back where nothing comes: clients speak at once.
const PATIENCE: Duration = Duration::from_millis(50);
/// What requests of HTTP/1 begin with.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PATCH ",
];

/// The answer to HTTP/1, whole.
pub(super) const HTTP1_ANSWER: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\n\
    content-length: 143\r\n\
    connection: close\r\n\
    \r\n\
    ringfence speaks gRPC, which is HTTP/2: ask with `ringfence health`, grpcurl or buf curl;\n\
    a proxy in between has to speak HTTP/2 to this port.\n";

/// A connection of which nobody knows yet what it speaks.
#[derive(Debug)]
pub(super) struct Opening {
    heard: Vec<u8>,
    /// What the server says meanwhile; none once that is said.
    held: Option<Vec<u8>>,
    patience: Pin<Box<Sleep>>,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spoken {
    /// HTTP/2, or nothing that is known here.
    Other,
    /// Something that can be told from it.
    Foreign(ForeignProtocol),
}

impl Opening {
    /// Takes note of bytes that came; says what they are once that is sure.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Option<Spoken> {
        let room = PREFACE.len() - self.heard.len();
        self.heard.extend(bytes.iter().take(room));
        judge(&self.heard)
    }

    /// Holds back what the server says, where it is to be held back and fits.
    pub(super) fn hold(&mut self, bytes: &[u8]) -> bool {
        let Some(held) = &mut self.held else {
            return false;
        };
        let fits = held.len() + bytes.len() <= MAX_HELD;
        if fits {
            held.extend_from_slice(bytes);
        }
        fits
    }

    /// Whether anything is held back.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Ready when nothing is to be held back any longer. Whoever polls is woken when it is.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.held {
            Some(_) => self.patience.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// What was held back; from now on nothing is.
    pub(super) fn release(&mut self) -> Vec<u8> {
        self.held.take().unwrap_or_default()
    }
}

impl Default for Opening {
    fn default() -> Self {
        Self {
            heard: Vec::new(),
            held: Some(Vec::new()),
            patience: Box::pin(tokio::time::sleep(PATIENCE)),
        }
    }
}

fn judge(heard: &[u8]) -> Option<Spoken> {
    let known = heard.len().min(SURE);
    if heard[..known] == PREFACE[..known] {
        return (known == SURE).then_some(Spoken::Other);
    }
    match heard {
        [] | [22] => return None,
        [22, 3, ..] => return Some(Spoken::Foreign(ForeignProtocol::Tls)),
        _ => {}
    }
    if METHODS.iter().any(|method| heard.starts_with(method)) {
        return Some(Spoken::Foreign(ForeignProtocol::Http1));
    }
    match METHODS.iter().any(|method| method.starts_with(heard)) {
        true => None,
        false => Some(Spoken::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_what_is_spoken_however_they_are_cut() {
        const HTTP1: Option<Spoken> = Some(Spoken::Foreign(ForeignProtocol::Http1));
        const TLS: Option<Spoken> = Some(Spoken::Foreign(ForeignProtocol::Tls));
        for (said, spoken) in [
            (PREFACE, Some(Spoken::Other)),
            (b"POST / HTTP/1.1\r\n", HTTP1),
            (b"PUT /", HTTP1),
            (b"PATCH /", HTTP1),
            (b"GET /", HTTP1),
            (b"\x16\x03\x01\x02\x00\x01", TLS),
            (b"\x16\x04", Some(Spoken::Other)),
            (b"SSH-2.0-x", Some(Spoken::Other)),
            (b"GETTING", Some(Spoken::Other)),
            (b"\0", Some(Spoken::Other)),
        ] {
            assert_eq!(Opening::default().hear(said), spoken, "{said:?}");
            let mut opening = Opening::default();
            let mut told = None;
            for byte in said {
                told = told.or_else(|| opening.hear(&[*byte]));
            }
            assert_eq!(told, spoken, "{said:?}, byte by byte");
        }
        assert_eq!(Opening::default().hear(b"PR"), None);
        assert_eq!(Opening::default().hear(b"P"), None);
    }

    #[test]
    fn the_answer_to_http1_is_as_long_as_it_says() {
        let text = std::str::from_utf8(HTTP1_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn only_so_much_is_held_back_and_for_a_moment() {
        let mut opening = Opening::default();
        assert!(opening.hold(&[0; MAX_HELD]));
        assert!(!opening.hold(&[0]));
        std::future::poll_fn(|cx| opening.poll_over(cx)).await;
        assert_eq!(opening.release().len(), MAX_HELD);
        assert!(!opening.holds() && !opening.hold(&[0]));
    }
}
