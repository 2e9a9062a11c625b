//! Protocol detection from the first bytes of a connection: HTTP/2, HTTP/1 where the listener
//! speaks it, or one of the other protocols that clients send by mistake.
//!
//! An HTTP/2 server may speak first, and ours does where it speaks nothing else. Its bytes are held
//! back for a moment, until the client's first bytes are known, so that an HTTP/1 client gets an
//! answer that it understands.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::close_reason::ForeignProtocol;
use super::protocols::Protocols;

/// The connection preface that an HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the preface that suffice to recognise HTTP/2.
const SURE: usize = 4;
/// The most bytes that are held back: an HTTP/2 server's settings and its window update fit.
const MAX_HELD: usize = 1 << 10;
/// How long the server's bytes are held back when the client sends nothing: clients send at once.
const PATIENCE: Duration = Duration::from_millis(50);
/// The methods that HTTP/1 requests begin with.
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

/// The complete response to an HTTP/1 request.
pub(super) const HTTP1_ANSWER: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain\r\n\
    content-length: 143\r\n\
    connection: close\r\n\
    \r\n\
    ringfence speaks gRPC, which is HTTP/2: ask with `ringfence health`, grpcurl or buf curl;\n\
    a proxy in between has to speak HTTP/2 to this port.\n";

/// The detector for one connection whose protocol is not known yet. It also holds back what the
/// server writes meanwhile.
#[derive(Debug)]
pub(super) struct ProtocolSniffer {
    /// What the listener speaks.
    protocols: Protocols,
    heard: Vec<u8>,
    /// What the server has written meanwhile; `None` once that has been released.
    held: Option<Vec<u8>>,
    patience: Pin<Box<Sleep>>,
}

/// The protocol that a client was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SniffedProtocol {
    /// HTTP/2, which every listener speaks.
    Http2,
    /// HTTP/1, on a listener that speaks it.
    Http1,
    /// A protocol that is recognised and that the listener does not speak.
    Foreign(ForeignProtocol),
    /// Something that is not recognised here.
    Other,
}

impl ProtocolSniffer {
    /// Creates the detector for a connection of a listener that speaks `protocols`.
    pub(super) fn new(protocols: Protocols) -> Self {
        Self {
            protocols,
            heard: Vec::new(),
            held: Some(Vec::new()),
            patience: Box::pin(tokio::time::sleep(PATIENCE)),
        }
    }

    /// Takes bytes that the client sent, and returns the protocol once it is certain.
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Option<SniffedProtocol> {
        let room = PREFACE.len() - self.heard.len();
        self.heard.extend(bytes.iter().take(room));
        judge(&self.heard, self.protocols)
    }

    /// Holds back bytes that the server writes. Returns false if nothing is held back any longer,
    /// or if they do not fit.
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

    /// Reports whether the server's bytes are still held back.
    pub(super) fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Completes when the time for holding back is over. It stays pending if nothing is held back
    /// any more.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.held {
            Some(_) => self.patience.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    /// Returns what was held back; from now on nothing is.
    pub(super) fn release(&mut self) -> Vec<u8> {
        self.held.take().unwrap_or_default()
    }
}

/// Decides what the first bytes are; `None` if they may still become several things.
fn judge(heard: &[u8], protocols: Protocols) -> Option<SniffedProtocol> {
    let known = heard.len().min(SURE);
    if heard[..known] == PREFACE[..known] {
        return (known == SURE).then_some(SniffedProtocol::Http2);
    }
    match heard {
        [] | [22] => return None,
        [22, 3, ..] => return Some(SniffedProtocol::Foreign(ForeignProtocol::Tls)),
        _ => {}
    }
    if METHODS.iter().any(|method| heard.starts_with(method)) {
        return Some(match protocols {
            Protocols::Http2 => SniffedProtocol::Foreign(ForeignProtocol::Http1),
            Protocols::Http1AndHttp2 => SniffedProtocol::Http1,
        });
    }
    match METHODS.iter().any(|method| method.starts_with(heard)) {
        true => None,
        false => Some(SniffedProtocol::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_bytes_tell_what_is_spoken_however_they_are_cut() {
        const HTTP1: Option<SniffedProtocol> =
            Some(SniffedProtocol::Foreign(ForeignProtocol::Http1));
        const TLS: Option<SniffedProtocol> = Some(SniffedProtocol::Foreign(ForeignProtocol::Tls));
        for (said, spoken) in [
            (PREFACE, Some(SniffedProtocol::Http2)),
            (b"POST / HTTP/1.1\r\n", HTTP1),
            (b"PUT /", HTTP1),
            (b"PATCH /", HTTP1),
            (b"GET /", HTTP1),
            (b"\x16\x03\x01\x02\x00\x01", TLS),
            (b"\x16\x04", Some(SniffedProtocol::Other)),
            (b"SSH-2.0-x", Some(SniffedProtocol::Other)),
            (b"GETTING", Some(SniffedProtocol::Other)),
            (b"\0", Some(SniffedProtocol::Other)),
        ] {
            let new = || ProtocolSniffer::new(Protocols::Http2);
            assert_eq!(new().hear(said), spoken, "{said:?}");
            let mut opening = new();
            let mut told = None;
            for byte in said {
                told = told.or_else(|| opening.hear(&[*byte]));
            }
            assert_eq!(told, spoken, "{said:?}, byte by byte");
            let of_both = match spoken {
                HTTP1 => Some(SniffedProtocol::Http1),
                other => other,
            };
            let told = ProtocolSniffer::new(Protocols::Http1AndHttp2).hear(said);
            assert_eq!(told, of_both, "{said:?}, where HTTP/1 is spoken");
        }
        for begun in [&b"PR"[..], b"P"] {
            assert_eq!(ProtocolSniffer::new(Protocols::Http2).hear(begun), None);
        }
    }

    #[test]
    fn the_answer_to_http1_is_as_long_as_it_says() {
        let text = std::str::from_utf8(HTTP1_ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }

    #[tokio::test]
    async fn only_so_much_is_held_back_and_for_a_moment() {
        let mut opening = ProtocolSniffer::new(Protocols::Http2);
        assert!(opening.hold(&[0; MAX_HELD]));
        assert!(!opening.hold(&[0]));
        std::future::poll_fn(|cx| opening.poll_over(cx)).await;
        assert_eq!(opening.release().len(), MAX_HELD);
        assert!(!opening.holds() && !opening.hold(&[0]));
    }
}
