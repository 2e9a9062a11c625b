//! Connection wrappers that record the first bytes from the other end.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use crate::sync::lock;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// Number of first bytes that are recorded, which is enough to tell what the other end is.
const GREETING: usize = 64;
/// Length of an HTTP/2 frame's header in bytes.
pub(super) const FRAME_HEADER: usize = 9;

/// A bidirectional byte stream, over any transport.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// The first that was received on a connection.
#[derive(Debug)]
pub(super) enum Greeting {
    /// The first bytes: at least a frame header of them, unless the stream ended before.
    Bytes(Vec<u8>),
    /// The other end closed the connection without sending anything.
    Closed,
    /// The connection broke; the text explains why.
    Broken(String),
}

/// Explains to people why a connection broke.
type Explain = Box<dyn Fn(&io::Error) -> String + Send>;

/// A connection that records the first bytes from the other end.
pub(super) struct GreetingRecorder {
    stream: Box<dyn ByteStream>,
    unheard: Option<(Vec<u8>, oneshot::Sender<Greeting>)>,
    explain: Explain,
}

impl GreetingRecorder {
    /// Wraps `stream`, and sends its first bytes to the second value; `explain` tells people why it
    /// broke.
    pub(super) fn new(
        stream: Box<dyn ByteStream>,
        explain: Explain,
    ) -> (Self, oneshot::Receiver<Greeting>) {
        let (tell, greeting) = oneshot::channel();
        let dialed = Self {
            stream,
            unheard: Some((Vec::new(), tell)),
            explain,
        };
        (dialed, greeting)
    }

    /// Records received bytes, and delivers the greeting once there are enough of them, or once no
    /// more will come.
    fn hear(&mut self, bytes: &[u8], polled: &io::Result<()>) {
        let Some((heard, _)) = &mut self.unheard else {
            return;
        };
        heard.extend(bytes.iter().take(GREETING - heard.len()));
        match polled {
            Ok(()) if heard.len() < FRAME_HEADER && !bytes.is_empty() => {}
            Err(error) if heard.is_empty() => {
                let why = (self.explain)(error);
                self.tell(Some(Greeting::Broken(why)));
            }
            Ok(()) | Err(_) => self.tell(None),
        }
    }

    /// Delivers the greeting: `greeting`, or else the bytes that were recorded.
    fn tell(&mut self, greeting: Option<Greeting>) {
        let Some((heard, tell)) = self.unheard.take() else {
            return;
        };
        let heard = match heard.is_empty() {
            true => Greeting::Closed,
            false => Greeting::Bytes(heard),
        };
        // Nobody receives the greeting of a connection that replaces a broken one.
        let _ = tell.send(greeting.unwrap_or(heard));
    }

    /// Handles the result of a write. When it failed, the other end may have sent the reason
    /// before, so that is read first.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && self.unheard.is_some()
        {
            let mut last = [0; GREETING];
            let mut last = ReadBuf::new(&mut last);
            if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(cx, &mut last) {
                self.hear(last.filled(), &read);
            }
            let told = Err(io::Error::new(error.kind(), error.to_string()));
            self.hear(&[], &told);
        }
        polled
    }
}

impl Drop for GreetingRecorder {
    fn drop(&mut self) {
        // A reader that gave up after less than a frame header reads no more.
        self.tell(None);
    }
}

impl AsyncRead for GreetingRecorder {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Poll::Ready(result) = &polled
            && this.unheard.is_some()
        {
            let bytes = buf.filled()[before..].to_vec();
            this.hear(&bytes, result);
        }
        polled
    }
}

impl AsyncWrite for GreetingRecorder {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.wrote(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A TCP connection that records the first bytes from the other end during the TLS handshake.
pub(super) struct HandshakeRecorder {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl HandshakeRecorder {
    /// Wraps `stream`; the second value is the buffer of recorded bytes.
    pub(super) fn new(stream: TcpStream) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let overheard = Self {
            stream,
            heard: Arc::clone(&heard),
        };
        (overheard, heard)
    }
}

impl AsyncRead for HandshakeRecorder {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut heard = lock(&self.heard);
        if heard.len() < GREETING {
            let left = GREETING - heard.len();
            heard.extend(buf.filled()[before..].iter().take(left));
        }
        drop(heard);
        polled
    }
}

impl AsyncWrite for HandshakeRecorder {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
