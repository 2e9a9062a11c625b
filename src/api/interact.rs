//! Implements `Interact`: a task beside the answer forwards what the caller sends to its guest.

use std::sync::Arc;

use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming};

use super::client_stream::{self, ClientStreamError, malformed, piece};
use super::proto::interact_request::Frame;
use super::proto::{Cancel, ExecutionSpec, InteractRequest, RunSpec, StdinEof, TellStdinDemand};
use super::run_event_stream::RunEventStream;
use super::start::{AskedRun, RunCall};
use super::status;
use crate::language::Catalogue;
use crate::model::refusal::Refusal;
use crate::run::{Run, RunMethod, Runner, with_deadline};
use crate::sandbox::{Input, MAX_STDIN_CHUNK};

/// Starts the run that the first message asks for, and takes the later messages in a task beside
/// the answer.
pub(super) async fn interact(
    runner: &Arc<Runner>,
    catalogue: &Catalogue,
    request: Request<Streaming<InteractRequest>>,
) -> Result<Response<RunEventStream>, Status> {
    let call = RunCall::from_request(runner, &request, RunMethod::Interact)?;
    let mut frames = request.into_inner();
    let deadline = call.deadline();
    let spec = match deadline {
        Ok(deadline) => with_deadline(deadline, start(&mut frames)).await,
        Err(refusal) => Err(ClientStreamError::Refused(refusal)),
    };
    let spec = match spec {
        Ok(spec) => spec,
        Err(ClientStreamError::Refused(refusal)) => {
            return Err(call.record_refusal(runner, refusal));
        }
        Err(ClientStreamError::Broken(status)) => return Err(status),
    };
    let (call, asked, detach, stays_open) = match spec {
        InteractionStart::Module(spec) => {
            let (detach, open_stdin) = (spec.detach, spec.open_stdin);
            (call, AskedRun::Module(Some(*spec)), detach, open_stdin)
        }
        InteractionStart::Program(spec) => {
            let (detach, open_stdin) = (spec.detach, spec.open_stdin);
            let asked = AskedRun::Program(Some(*spec), catalogue);
            (call.executes(), asked, detach, open_stdin)
        }
    };
    let input = Arc::new(Input::default());
    // Created before the run can start, because its caller may leave before that.
    let taken = CloseInputGuard {
        input: Arc::clone(&input),
        closes: detach && !stays_open,
    };
    let attached = call.start(runner, asked, Some(Arc::clone(&input))).await?;
    let mut taking = JoinSet::new();
    let run = Arc::clone(&attached.run);
    taking.spawn(async move {
        match forward_input(&mut frames, &taken.input, &run, stays_open).await {
            Ok(()) => None,
            Err(ClientStreamError::Refused(refusal)) => Some(status::run_error(&refusal)),
            Err(ClientStreamError::Broken(status)) => Some(status::run_error_of_status(&status)),
        }
    });
    Ok(RunEventStream::beside(attached, taking, Some(input)))
}

/// A guard that is held while somebody takes the caller's messages. Dropping it closes the input of
/// a detached run, which outlives its caller, unless the run's input is open to other writers. Any
/// other run ends for its actual cause, not for an end of file that nobody sent.
struct CloseInputGuard {
    input: Arc<Input>,
    closes: bool,
}

impl Drop for CloseInputGuard {
    fn drop(&mut self) {
        if self.closes {
            self.input.close();
        }
    }
}

/// What the first message of an interaction asks for.
enum InteractionStart {
    Module(Box<RunSpec>),
    Program(Box<ExecutionSpec>),
}

/// Reads the first message, which has to be the interaction's `start` or `execute`.
async fn start(
    frames: &mut Streaming<InteractRequest>,
) -> Result<InteractionStart, ClientStreamError> {
    match next(frames).await? {
        Some(Frame::Start(spec)) => Ok(InteractionStart::Module(spec)),
        Some(Frame::Execute(spec)) => Ok(InteractionStart::Program(spec)),
        Some(
            Frame::Stdin(_) | Frame::StdinEof(_) | Frame::Cancel(_) | Frame::TellStdinDemand(_),
        )
        | None => Err(malformed(
            "the first message of an interaction is its `start` or `execute`",
        )),
    }
}

/// Forwards the caller's messages to the run until there are no more, which closes the guest's
/// input unless it `stays_open` for other writers.
async fn forward_input(
    frames: &mut Streaming<InteractRequest>,
    input: &Input,
    run: &Run,
    stays_open: bool,
) -> Result<(), ClientStreamError> {
    let mut open = true;
    let mut ahead = None;
    loop {
        let frame = match ahead.take() {
            Some(frame) => frame,
            None => next(frames).await?,
        };
        let Some(frame) = frame else {
            if !stays_open {
                input.close();
            }
            return Ok(());
        };
        match frame {
            Frame::Start(_) | Frame::Execute(_) => {
                return Err(malformed("an interaction has one `start` or `execute`"));
            }
            Frame::Stdin(_) if !open => return Err(malformed("`stdin` came after `stdin_eof`")),
            Frame::Stdin(bytes) => {
                let bytes = piece("stdin", bytes, MAX_STDIN_CHUNK)?;
                let mut push = std::pin::pin!(input.push(&bytes));
                // One message is read ahead while the guest does not read, since it may cancel the
                // run.
                while ahead.is_none() {
                    tokio::select! {
                        biased;
                        pushed = &mut push => {
                            pushed.map_err(Refusal::from)?;
                            break;
                        }
                        frame = next(frames) => match frame? {
                            Some(Frame::Cancel(Cancel {})) => {
                                run.cancel();
                            }
                            frame => ahead = Some(frame),
                        }
                    }
                }
                if ahead.is_some() {
                    push.await.map_err(Refusal::from)?;
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

async fn next(frames: &mut Streaming<InteractRequest>) -> Result<Option<Frame>, ClientStreamError> {
    let frame = |InteractRequest { frame }| frame;
    client_stream::next(
        frames,
        frame,
        "a message of an interaction has a `start`, `execute`, `stdin`, `stdin_eof`, `cancel` or `tell_stdin_demand`",
    )
    .await
}
