//! Why the daemon closes connections, as its log and its metrics count them.

use super::connection_table::ConnectionLimit;

/// Why the daemon closed a connection, or refused it.
#[derive(Clone, Copy, Debug)]
pub(super) enum CloseReason {
    /// No slot was free, and no other connection could be evicted for it.
    Refused(ConnectionLimit),
    /// No call had authenticated on it yet, and it was evicted for a newer connection.
    Evicted,
    /// No call authenticated on it within `server.first_call_timeout`.
    Overdue,
    /// Its client spoke another protocol than the listener does.
    Foreign(ForeignProtocol),
}

impl CloseReason {
    /// The names of all kinds of reasons in metrics.
    pub(super) const NAMES: [&'static str; 6] =
        ["refused", "evicted", "overdue", "plaintext", "tls", "http1"];

    /// Returns the position of the reason's name in [`Self::NAMES`].
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Refused(_) => 0,
            Self::Evicted => 1,
            Self::Overdue => 2,
            Self::Foreign(ForeignProtocol::Plaintext) => 3,
            Self::Foreign(ForeignProtocol::Tls) => 4,
            Self::Foreign(ForeignProtocol::Http1) => 5,
        }
    }
}

/// A protocol that a client speaks although its listener does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForeignProtocol {
    /// Something other than TLS, on a listener that requires TLS.
    Plaintext,
    /// TLS, on a listener that does not use it.
    Tls,
    /// HTTP/1, where gRPC needs HTTP/2.
    Http1,
}
