//! `Interact`: what the caller sends goes to its guest, in a task beside the answer.

use std::sync::Arc;

use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming};

use super::frames::{self, Failed, malformed, piece};
use super::proto::interact_request::Frame;
use super::proto::{Cancel, InteractRequest, RunSpec, StdinEof, TellStdinDemand};
use super::start::Call;
use super::status;
use super::stream::Events;
use crate::run::{Method, Run, Runner, before};
use crate::sandbox::{Input, MAX_STDIN_CHUNK};

/// Starts the run that the first message asks for, and takes the others beside it.
pub(super) async fn interact(
    runner: &Arc<Runner>,
    request: Request<Streaming<InteractRequest>>,
) -> Result<Response<Events>, Status> {
    let call = Call::of(runner, &request, Method::Interact)?;
    let mut frames = request.into_inner();
    let until = call.until();
    let spec = match until {
        Ok(until) => before(until, start(&mut frames)).await,
        Err(refusal) => Err(Failed::Refused(refusal)),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(Failed::Refused(refusal)) => return Err(call.refused(runner, refusal)),
        Err(Failed::Broken(status)) => return Err(status),
    };
    let input = Arc::new(Input::default());
    // Before the run can start: its caller may leave before that.
    let taken = Taken {
        input: Arc::clone(&input),
        detached: spec.detach,
    };
    let attached = call
        .start(runner, Some(spec), Some(Arc::clone(&input)))
        .await?;
    let mut taking = JoinSet::new();
    let run = Arc::clone(&attached.run);
    taking.spawn(async move {
        match take(&mut frames, &taken.input, &run).await {
            Ok(()) => None,
            Err(Failed::Refused(refusal)) => Some(status::event(&refusal)),
            Err(Failed::Broken(status)) => Some(status::event_of(&status)),
        }
    });
    Ok(Events::beside(attached, taking, Some(input)))
}

/// Input that ends at the latest when nobody takes it any more, where the run outlives that. Another is ended for what
/// it is, not for an end of file that nobody sent.
struct Taken {
    input: Arc<Input>,
    detached: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.detached {
            self.input.close();
        }
    }
}

async fn start(frames: &mut Streaming<InteractRequest>) -> Result<RunSpec, Failed> {
    match next(frames).await? {
        Some(Frame::Start(spec)) => Ok(*spec),
        Some(
            Frame::Stdin(_) | Frame::StdinEof(_) | Frame::Cancel(_) | Frame::TellStdinDemand(_),
        )
        | None => Err(malformed(
            "the first message of an interaction is its `start`",
        )),
    }
}

/// Takes what the caller sends until it sends no more.
async fn take(
    frames: &mut Streaming<InteractRequest>,
    input: &Input,
    run: &Run,
) -> Result<(), Failed> {
    let mut open = true;
    let mut ahead = None;
    loop {
        let frame = match ahead.take() {
            Some(frame) => frame,
            None => next(frames).await?,
        };
        let Some(frame) = frame else {
            input.close();
            return Ok(());
        };
        match frame {
            Frame::Start(_) => return Err(malformed("an interaction has one `start`")),
            Frame::Stdin(_) if !open => return Err(malformed("`stdin` came after `stdin_eof`")),
            Frame::Stdin(bytes) => {
                let bytes = piece("stdin", bytes, MAX_STDIN_CHUNK)?;
                let mut push = std::pin::pin!(input.push(&bytes));
                // A guest that does not read can still be cancelled by the message behind.
                while ahead.is_none() {
                    tokio::select! {
                        biased;
                        () = &mut push => break,
                        frame = next(frames) => match frame? {
                            Some(Frame::Cancel(Cancel {})) => {
                                run.cancel();
                            }
                            frame => ahead = Some(frame),
                        }
                    }
                }
                if ahead.is_some() {
                    push.await;
                }
            }
            Frame::StdinEof(StdinEof {}) => {
                open = false;
                input.close();
            }
            Frame::Cancel(Cancel {}) => {
                run.cancel();
            }
            Frame::TellStdinDemand(TellStdinDemand {}) => input.tell_demand(),
        }
    }
}

async fn next(frames: &mut Streaming<InteractRequest>) -> Result<Option<Frame>, Failed> {
    let frame = |InteractRequest { frame }| frame;
    frames::next(
        frames,
        frame,
        "a message of an interaction has a `start`, `stdin`, `stdin_eof`, `cancel` or `tell_stdin_demand`",
    )
    .await
}
