//! Which versions of HTTP the connections of a listener speak.

/// The protocols that the connections of a listener may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// HTTP/2, which gRPC is spoken in. Clients of other protocols are told what they met.
    Http2,
    /// HTTP/1.1 and HTTP/2, which browsers and tools speak.
    Http1AndHttp2,
}
