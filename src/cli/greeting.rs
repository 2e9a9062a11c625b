//! Connections that note what their other end says first.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::dial::Dialer;

/// Bytes of what the other end says first that tell what it is.
const GREETING: usize = 64;
/// Bytes of the header of a frame of HTTP/2.
pub(super) const FRAME_HEADER: usize = 9;

/// A byte stream of any kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the other end said first.
#[derive(Debug)]
pub(super) enum Greeting {
    /// Bytes, at least a frame's header of them unless it ended before.
    Bytes(Vec<u8>),
    /// Nothing, and it closed the connection.
    Closed,
    /// The connection broke: what that means.
    Broken(String),
}

/// A connection that listens to what the other end says first.
pub(super) struct Dialed {
    stream: Box<dyn Stream>,
    unheard: Option<(Vec<u8>, oneshot::Sender<Greeting>)>,
    dialer: Arc<Dialer>,
}

impl Dialed {
    /// Notes what `stream` says first, and tells it to the second value; `dialer` says what a failure means.
    pub(super) fn new(
        stream: Box<dyn Stream>,
        dialer: Arc<Dialer>,
    ) -> (Self, oneshot::Receiver<Greeting>) {
        let (tell, greeting) = oneshot::channel();
        let dialed = Self {
            stream,
            unheard: Some((Vec::new(), tell)),
            dialer,
        };
        (dialed, greeting)
    }

    /// Takes note of what was said first, and tells it once enough of it is there, or nothing more will be.
    fn hear(&mut self, bytes: &[u8], polled: &io::Result<()>) {
        let Some((heard, _)) = &mut self.unheard else {
            return;
        };
        heard.extend(bytes.iter().take(GREETING - heard.len()));
        match polled {
            Ok(()) if heard.len() < FRAME_HEADER && !bytes.is_empty() => {}
            Err(error) if heard.is_empty() => {
                let why = self.dialer.broken(error);
                self.tell(Some(Greeting::Broken(why)));
            }
            Ok(()) | Err(_) => self.tell(None),
        }
    }

    /// Tells what was said first: `greeting`, or what was heard.
    fn tell(&mut self, greeting: Option<Greeting>) {
        let Some((heard, tell)) = self.unheard.take() else {
            return;
        };
        let heard = match heard.is_empty() {
            true => Greeting::Closed,
            false => Greeting::Bytes(heard),
        };
        // Of a connection that replaces a broken one nobody asks.
        let _ = tell.send(greeting.unwrap_or(heard));
    }

    /// What came of a write. A connection that breaks in one may have said why before.
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

impl Drop for Dialed {
    fn drop(&mut self) {
        // Who gives up after less than a frame's header reads no more.
        self.tell(None);
    }
}

impl AsyncRead for Dialed {
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

impl AsyncWrite for Dialed {
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

/// A TCP connection whose first bytes are kept while hands are shaken on it.
pub(super) struct Overheard {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Overheard {
    /// Of `stream`; the second value is what comes to be heard.
    pub(super) fn new(stream: TcpStream) -> (Self, Arc<Mutex<Vec<u8>>>) {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let overheard = Self {
            stream,
            heard: Arc::clone(&heard),
        };
        (overheard, heard)
    }
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() < GREETING {
            let left = GREETING - heard.len();
            heard.extend(buf.filled()[before..].iter().take(left));
        }
        drop(heard);
        polled
    }
}

impl AsyncWrite for Overheard {
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
