//! The standard streams of an interpreter that is kept. It opens them once, and they lead to the
//! input and the output of whichever run it executes.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use wasmtime_wasi::async_trait;
use wasmtime_wasi::cli::{IsTerminal, StdinStream, StdoutStream};
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamResult};

use super::stdin::{GuestInput, Input};
use super::stdio::GuestOutput;
use crate::sync::lock;

/// The three standard streams of a session.
#[derive(Clone)]
pub(in crate::sandbox) struct SessionStreams {
    /// What the interpreter reads as standard input.
    pub(in crate::sandbox) stdin: SessionInput,
    /// What it writes to as standard output.
    pub(in crate::sandbox) stdout: SessionOutput,
    /// What it writes to as standard error.
    pub(in crate::sandbox) stderr: SessionOutput,
}

/// A standard input that leads to the input of the present run.
#[derive(Clone)]
pub(in crate::sandbox) struct SessionInput(Arc<Mutex<Arc<Input>>>);

/// An output stream that leads to the output of the present run.
#[derive(Clone)]
pub(in crate::sandbox) struct SessionOutput(Arc<Mutex<GuestOutput>>);

impl SessionStreams {
    /// Creates streams that lead to the input and output of a first run.
    pub(in crate::sandbox) fn new(
        stdin: Arc<Input>,
        stdout: GuestOutput,
        stderr: GuestOutput,
    ) -> Self {
        let output = |output| SessionOutput(Arc::new(Mutex::new(output)));
        Self {
            stdin: SessionInput(Arc::new(Mutex::new(stdin))),
            stdout: output(stdout),
            stderr: output(stderr),
        }
    }

    /// Lets the streams lead to the input and output of another run.
    pub(in crate::sandbox) fn switch(
        &self,
        stdin: Arc<Input>,
        stdout: &GuestOutput,
        stderr: &GuestOutput,
    ) {
        *lock(&self.stdin.0) = stdin;
        *lock(&self.stdout.0) = stdout.clone();
        *lock(&self.stderr.0) = stderr.clone();
    }
}

impl SessionInput {
    fn current(&self) -> GuestInput {
        GuestInput(Arc::clone(&lock(&self.0)))
    }
}

impl SessionOutput {
    fn current(&self) -> GuestOutput {
        lock(&self.0).clone()
    }
}

impl IsTerminal for SessionInput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for SessionInput {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        self.current().async_stream()
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for SessionInput {
    async fn ready(&mut self) {
        self.current().ready().await;
    }
}

#[async_trait]
impl InputStream for SessionInput {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.current().read(size)
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.current().blocking_read(size).await
    }
}

impl IsTerminal for SessionOutput {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for SessionOutput {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        self.current().async_stream()
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait]
impl Pollable for SessionOutput {
    async fn ready(&mut self) {
        self.current().ready().await;
    }
}

#[async_trait]
impl OutputStream for SessionOutput {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.current().write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.current().flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.current().check_write()
    }

    async fn write_ready(&mut self) -> StreamResult<usize> {
        self.current().write_ready().await
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.current().blocking_write_and_flush(bytes).await
    }
}
