//! The transport of the protocol: JSON-RPC messages on standard input and output, one a line.
//!
//! Each stream has a thread of its own, since nothing else can wait for a pipe, a socket or a
//! terminal and be left behind when the command ends.

use std::io;

use rmcp::model::{ClientJsonRpcMessage, ErrorData, RequestId, ServerJsonRpcMessage};
use rmcp::service::{RoleServer, RxJsonRpcMessage, TxJsonRpcMessage};
use rmcp::transport::Transport;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cli::stdin_source::StdinSource;
use crate::cli::write_all::write;
use crate::cli::{Failure, print_to_stderr};

/// The longest message in bytes that an agent may send; the daemon takes as much by default.
const LONGEST_MESSAGE: usize = 16 << 20;
/// Most bytes that one read takes.
const PIECE: usize = 64 << 10;
/// Messages that are read ahead, and answers that wait to be written.
const QUEUED: usize = 8;

/// A line of standard input.
enum InputLine {
    Whole(Vec<u8>),
    /// The line was longer than [`LONGEST_MESSAGE`], and is dropped.
    TooLong,
}

/// A line for standard output.
struct OutputLine {
    bytes: Vec<u8>,
    /// Where to report that it was written; `None` where nobody waits for it.
    written: Option<oneshot::Sender<io::Result<()>>>,
}

/// Messages as lines of standard input and output. What is no message is answered here, so that an
/// agent does not wait for an answer that never comes.
pub(super) struct LineTransport {
    lines: mpsc::Receiver<InputLine>,
    output: mpsc::Sender<OutputLine>,
    /// The answer to a line that is no message, until there is room for it.
    reply: Option<OutputLine>,
    ended: watch::Sender<bool>,
}

impl LineTransport {
    /// Starts to read and to write. The receiver changes to true at the end of standard input.
    ///
    /// # Errors
    /// Fails where standard input cannot be read, or the host grants no thread.
    pub(super) fn start() -> Result<(Self, watch::Receiver<bool>), Failure> {
        let (lines_out, lines) = mpsc::channel(QUEUED);
        let (output, output_in) = mpsc::channel(QUEUED);
        if let Some(source) = StdinSource::standard()? {
            spawn("mcp-input", move || {
                if let Err(error) = read_lines(&source, &lines_out) {
                    print_to_stderr(&source.unreadable(&error).message);
                }
            })?;
        }
        spawn("mcp-output", move || write_lines(output_in))?;
        let (ended, has_ended) = watch::channel(false);
        let transport = Self {
            lines,
            output,
            reply: None,
            ended,
        };
        Ok((transport, has_ended))
    }
}

impl Transport<RoleServer> for LineTransport {
    type Error = io::Error;

    fn send(
        &mut self,
        item: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = io::Result<()>> + Send + 'static {
        let output = self.output.clone();
        async move {
            let (tell, told) = oneshot::channel();
            let line = OutputLine {
                bytes: line_of(&item)?,
                written: Some(tell),
            };
            let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
            output.send(line).await.map_err(|_| gone())?;
            told.await.unwrap_or_else(|_| Err(gone()))
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        loop {
            // This future may be dropped while it waits, and nothing may be lost then.
            if self.reply.is_some() {
                let permit = self.output.reserve().await.ok()?;
                if let Some(reply) = self.reply.take() {
                    permit.send(reply);
                }
            }
            let Some(line) = self.lines.recv().await else {
                self.ended.send_replace(true);
                return None;
            };
            let error = match line {
                InputLine::Whole(line) if line.trim_ascii().is_empty() => continue,
                InputLine::Whole(line) => match parse(&line) {
                    Ok(message) => return Some(message),
                    Err(error) => *error,
                },
                InputLine::TooLong => too_long(),
            };
            self.reply = line_of(&error).ok().map(|bytes| OutputLine {
                bytes,
                written: None,
            });
        }
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts a thread that is left behind when the command ends.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    match builder.spawn(work) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(format!("cannot start threads: {error}"))),
    }
}

/// Reads lines until the end of the input, or until nobody takes them.
fn read_lines(source: &StdinSource, lines: &mpsc::Sender<InputLine>) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut line = Vec::new();
    let mut is_too_long = false;
    loop {
        source.wait(true)?;
        let Some(read) = source.read(&mut piece)? else {
            continue;
        };
        for part in piece[..read].split_inclusive(|byte| *byte == b'\n') {
            is_too_long |= line.len() + part.len() > LONGEST_MESSAGE;
            match is_too_long {
                true => line.clear(),
                false => line.extend_from_slice(part),
            }
            if part.ends_with(b"\n") {
                let whole = input_line(&mut line, &mut is_too_long);
                if lines.blocking_send(whole).is_err() {
                    return Ok(());
                }
            }
        }
        if read == 0 {
            // The last line needs no end. If nobody takes it, the command is over.
            let _ = lines.blocking_send(input_line(&mut line, &mut is_too_long));
            return Ok(());
        }
    }
}

/// Takes the line that was read, and begins the next.
fn input_line(line: &mut Vec<u8>, is_too_long: &mut bool) -> InputLine {
    let whole = std::mem::take(line);
    match std::mem::take(is_too_long) {
        true => InputLine::TooLong,
        false => InputLine::Whole(whole),
    }
}

/// Writes lines as they come, until there are no more.
fn write_lines(mut lines: mpsc::Receiver<OutputLine>) {
    while let Some(OutputLine { bytes, written }) = lines.blocking_recv() {
        let result = write(io::stdout(), &bytes);
        let result = result.map_err(|failure| io::Error::other(failure.message));
        if let Some(written) = written {
            // Nobody listens when the command is over.
            let _ = written.send(result);
        }
    }
}

fn line_of(message: &ServerJsonRpcMessage) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Parses a message, or explains in an answer why it is none.
fn parse(line: &[u8]) -> Result<ClientJsonRpcMessage, Box<ServerJsonRpcMessage>> {
    let error = match serde_json::from_slice(line) {
        Ok(message) => return Ok(message),
        Err(error) => error,
    };
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => {
            let why = format!("the line is not JSON: {error}");
            let error = ErrorData::parse_error(why, None);
            return Err(Box::new(ServerJsonRpcMessage::error(error, None)));
        }
    };
    let why = match &value {
        Value::Object(message) => {
            if message.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
                "the field \"jsonrpc\" must be \"2.0\"".to_owned()
            } else if message.get("method").is_some_and(|it| !it.is_string()) {
                "the field \"method\" must be a string".to_owned()
            } else if message.get("id").is_some_and(|it| request_id(it).is_none()) {
                "the field \"id\" must be a string or a whole number".to_owned()
            } else if message.get("params").is_some_and(|it| !it.is_object()) {
                "the field \"params\" must be an object".to_owned()
            } else {
                format!("the message is no request, notification or response: {error}")
            }
        }
        Value::Array(_) => "a line must be one message: batches are not supported".to_owned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            "a message must be a JSON object".to_owned()
        }
    };
    let id = value.get("id").and_then(request_id);
    let error = ErrorData::invalid_request(why, None);
    Err(Box::new(ServerJsonRpcMessage::error(error, id)))
}

fn request_id(id: &Value) -> Option<RequestId> {
    let number = id.as_i64().map(RequestId::Number);
    number.or_else(|| id.as_str().map(|id| RequestId::String(id.into())))
}

/// Builds the answer to a line that is too long to be a message.
fn too_long() -> ServerJsonRpcMessage {
    let why = format!("the message is too long: a line may have at most {LONGEST_MESSAGE} bytes");
    ServerJsonRpcMessage::error(ErrorData::invalid_request(why, None), None)
}
