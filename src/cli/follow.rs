//! A run's events, printed as they come.

use std::io::Write;
use std::process::ExitCode;

use tonic::{Status, Streaming};

use super::ending::conclude;
use super::waiting::Waiting;
use super::{Failure, complain, exit};
use crate::api::proto::StreamEvent;
use crate::api::proto::stream_event::Event;

/// Why nothing more is printed.
pub(super) enum Over {
    /// The run has ended, or it cannot be told how.
    Told(Result<ExitCode, Failure>),
    /// The stream broke before.
    Broken(Option<Status>),
}

/// Prints the guest's output to the matching streams until the run ends; `next` is the event that is due, and `waiting`
/// says what keeps the first one from coming.
pub(super) async fn follow(
    events: &mut Streaming<StreamEvent>,
    next: &mut u64,
    mut waiting: Waiting,
) -> Over {
    loop {
        let event = waiting.during(events.message()).await;
        waiting = Waiting::silent();
        let StreamEvent { seq, event, .. } = match event {
            Ok(Some(event)) => event,
            Ok(None) => return Over::Broken(None),
            Err(status) => return Over::Broken(Some(status)),
        };
        let written = match event {
            Some(Event::Stdout(bytes)) => write(std::io::stdout(), &bytes),
            Some(Event::Stderr(bytes)) => write(std::io::stderr(), &bytes),
            Some(Event::Lost(lost)) => {
                *next = lost.first_seq + lost.count;
                complain(&format!(
                    "{} events from {} on are not kept any more",
                    lost.count, lost.first_seq
                ));
                continue;
            }
            Some(Event::Exit(result)) => return Over::Told(Ok(conclude(&result))),
            Some(Event::Error(error)) => return Over::Told(Err(Failure::of_run(&error))),
            Some(Event::Started(_)) | None => Ok(()),
        };
        if let Err(failure) = written {
            return Over::Told(Err(failure));
        }
        *next = seq + 1;
    }
}

/// Writes all of `bytes` at once.
pub(super) fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Err(Failure::with(exit::KILLED, "nobody reads the output"))
        }
        Err(error) => Err(error.into()),
    }
}
