//! What the daemon and a compile child say to each other: JSON behind a length, and a module's bytes as they are.
//!
//! ```text
//! daemon                 child
//!   Setup            ->
//!                    <-  Hello           ready
//!   length, module   ->
//!                    <-  Inspected
//!   Order            ->                  or the end of the conversation
//!                    <-  Compiled        the artefact stands in the file that is the child's standard output
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::guest_limits::INTERFACE_BYTES;
use crate::refusal::Refusal;
use crate::sandbox::inspection::Inspection;

use super::{ArtifactLimit, Bounds};

/// Bytes of a message at the most. An inspection names every export of a module: one that takes more is refused.
pub(super) const MAX_MESSAGE: usize = INTERFACE_BYTES.size();

/// How a child is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Setup {
    /// Bytes that it may take beyond what it has when it is ready.
    pub(super) memory: u64,
    /// CPU time that it may take from then on.
    pub(super) cpu: Duration,
    /// What an artefact may take.
    pub(super) artifact: ArtifactLimit,
    /// Threads that it compiles with.
    pub(super) threads: usize,
    /// Its nice value.
    pub(super) nice: i32,
    /// What a module may be expected to take.
    pub(super) bounds: Bounds,
}

/// A child is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    /// What its artefacts, unmetered and metered, are compatible with.
    pub(super) compatible: [u64; 2],
    /// What confines it.
    pub(super) confinement: Vec<String>,
}

/// What a module is, or why that is not told.
pub(super) type Inspected = Result<Inspection, NotInspected>;

/// Why a module was not inspected.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum NotInspected {
    /// For what it is.
    Refused(Refusal),
    /// Its text turned out to cost more than is compiled here.
    TooCostly,
}

/// Compile it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// For metered execution.
    pub(super) metered: bool,
}

/// It is compiled, or cannot be.
pub(super) type Compiled = Result<Duration, Failure>;

/// Why a module was not compiled.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    /// For what it is.
    Refused(Refusal),
    /// The compiler panicked, saying so.
    Panicked(String),
}

/// Sends a message.
pub(super) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    send_text(to, &serde_json::to_vec(message)?)
}

/// Sends a message that is JSON already.
pub(super) fn send_text(to: &mut impl Write, text: &[u8]) -> io::Result<()> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes()[..], text].concat())
}

/// Receives a message.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length as usize > MAX_MESSAGE {
        return Err(io::Error::other(format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    from.take(length.into()).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Sends a module.
pub(super) fn send_module(to: &mut impl Write, wasm: &[u8]) -> io::Result<()> {
    to.write_all(&(wasm.len() as u64).to_le_bytes())?;
    to.write_all(wasm)
}

/// Receives a module.
pub(super) fn receive_module(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    let mut wasm = Vec::with_capacity(usize::try_from(length).map_err(io::Error::other)?);
    from.take(length).read_to_end(&mut wasm)?;
    if wasm.len() as u64 != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(wasm)
}
