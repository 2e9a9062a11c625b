//! The protocol between the daemon and a compile child: JSON messages behind a length, and a
//! module's bytes as they are.
//!
//! ```text
//! daemon                 child
//!   ChildSetup       ->
//!                    <-  ChildHello      ready
//!   length, module   ->
//!                    <-  InspectReply
//!   CompileCommand   ->                  or the end of the conversation
//!                    <-  CompileReply    the artefact is in the file behind its standard output
//! ```

use std::io::{self, Read, Write};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::model::guest_limits::INTERFACE_BYTES;
use crate::model::refusal::Refusal;
use crate::sandbox::modules::inspection::Inspection;

use super::{ArtifactLimit, CompileBounds};

/// The most bytes of a message. An inspection names every export of a module: one that takes more
/// is refused.
pub(super) const MAX_MESSAGE: usize = INTERFACE_BYTES.size();

/// The first message to a child: how it is to set itself up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ChildSetup {
    /// Bytes of memory that it may take beyond what it has when it is ready.
    pub(super) memory: u64,
    /// Processor time that it may take from then on.
    pub(super) cpu: Duration,
    /// The limit on the size of its artefact.
    pub(super) artifact: ArtifactLimit,
    /// How many threads it compiles with.
    pub(super) threads: usize,
    /// The child's nice value while it works.
    pub(super) nice: i32,
    /// What a module may be expected to take.
    pub(super) bounds: CompileBounds,
}

/// The message by which a child says that it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ChildHello {
    /// Compatibility hashes of the code that it compiles, unmetered and metered.
    pub(super) compatible: [u64; 2],
    /// Names of what confines the child.
    pub(super) confinement: Vec<String>,
}

/// A child's reply to a module: what the module is, or why it was not inspected.
pub(super) type InspectReply = Result<Inspection, InspectError>;

/// Why a module was not inspected.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum InspectError {
    /// It was refused for what it is.
    Refused(Refusal),
    /// Its text turned out to cost more than is compiled in this lane.
    TooCostly,
}

/// The command to compile the module that was inspected.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CompileCommand {
    /// Whether the code is to count fuel.
    pub(super) metered: bool,
}

/// A child's reply to [`CompileCommand`]: how long the compilation took, or why there is no code.
pub(super) type CompileReply = Result<Duration, ChildCompileError>;

/// Why a module was not compiled.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ChildCompileError {
    /// It was refused for what it is.
    Refused(Refusal),
    /// The compiler panicked with these words.
    Panicked(String),
}

/// Sends a message as JSON behind its length.
pub(super) fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    send_text(to, &serde_json::to_vec(message)?)
}

/// Sends a message that is JSON already.
pub(super) fn send_text(to: &mut impl Write, text: &[u8]) -> io::Result<()> {
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_le_bytes()[..], text].concat())
}

/// Receives a message, of at most [`MAX_MESSAGE`] bytes.
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

/// Sends a module's bytes behind their length.
pub(super) fn send_module(to: &mut impl Write, wasm: &[u8]) -> io::Result<()> {
    to.write_all(&(wasm.len() as u64).to_le_bytes())?;
    to.write_all(wasm)
}

/// Receives the bytes of a module.
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
