//! Standard input for a guest as it comes: `ringfence run -i`.

use std::io::Read;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::proto::interact_request::Frame;
use crate::api::proto::{InteractRequest, RunSpec, StdinEof};
use crate::sandbox::MAX_STDIN_CHUNK;

/// The messages of an interaction with a run of `spec`, whose input is this command's. A terminal hands over line by
/// line, and its end of file (Ctrl-D) is the guest's.
pub(super) fn messages(spec: RunSpec) -> ReceiverStream<InteractRequest> {
    let (say, said) = mpsc::channel(1);
    // A thread of its own, since nothing else can wait for a terminal and be left behind when the run has ended.
    std::thread::spawn(move || {
        let tell = |frame| say.blocking_send(InteractRequest { frame: Some(frame) });
        if tell(Frame::Start(Box::new(spec))).is_err() {
            return;
        }
        let mut piece = vec![0; MAX_STDIN_CHUNK];
        loop {
            let frame = match std::io::stdin().lock().read(&mut piece) {
                Ok(0) | Err(_) => break,
                Ok(n) => Frame::Stdin(Bytes::copy_from_slice(&piece[..n])),
            };
            if tell(frame).is_err() {
                return;
            }
        }
        // Nobody listens when the run has ended before its input.
        let _ = tell(Frame::StdinEof(StdinEof {}));
    });
    ReceiverStream::new(said)
}
