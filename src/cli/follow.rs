//! A run's events, printed as they come.

use std::io::Write;
use std::process::ExitCode;

use tonic::{Status, Streaming};

use super::ending::conclude;
use super::stdin_pump::StdinPump;
use super::waiting::Waiting;
use super::{Failure, complain};
use crate::api::proto::stream_event::Event;
use crate::api::proto::{RunResult, StreamEvent};

/// Why nothing more is printed.
pub(super) enum Over {
    /// The run has ended, or it cannot be told how.
    Told(Result<ExitCode, Failure>),
    /// The stream broke before.
    Broken(Option<Status>),
}

/// Prints the guest's output to the matching streams until the run ends; `next` is the event that is due, `waiting`
/// says what keeps the first one from coming, and `pump` has what the guest reads.
pub(super) async fn follow(
    events: &mut Streaming<StreamEvent>,
    next: &mut u64,
    mut waiting: Waiting,
    pump: Option<&StdinPump>,
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
            Some(Event::StdinDemand(demand)) => {
                if let Some(pump) = pump {
                    pump.demand(demand);
                }
                continue;
            }
            Some(Event::Exit(result)) => {
                if let Some(pump) = pump {
                    pump.finish(result.stdin_bytes);
                }
                return Over::Told(conclude(&result));
            }
            Some(Event::Error(error)) => return Over::Told(Err(Failure::of_run(&error))),
            Some(Event::Started(_)) | None => Ok(()),
        };
        if let Err(failure) = written {
            return Over::Told(Err(failure));
        }
        *next = seq + 1;
    }
}

/// A run that has ended, with its output.
pub(super) struct Collected {
    pub(super) result: RunResult,
    /// Standard output and error.
    pub(super) output: [Vec<u8>; 2],
}

/// Keeps the guest's output until the run ends; its output limit bounds what that takes.
pub(super) async fn collect(
    events: &mut Streaming<StreamEvent>,
    pump: &StdinPump,
) -> Result<Collected, Failure> {
    let mut output = [Vec::new(), Vec::new()];
    loop {
        let event = events.message().await;
        let event = event.map_err(|status| Failure::of_status(&status))?;
        let StreamEvent { event, .. } = event.ok_or_else(broke_off)?;
        match event {
            Some(Event::Stdout(bytes)) => output[0].extend_from_slice(&bytes),
            Some(Event::Stderr(bytes)) => output[1].extend_from_slice(&bytes),
            Some(Event::StdinDemand(demand)) => pump.demand(demand),
            Some(Event::Error(error)) => return Err(Failure::of_run(&error)),
            Some(Event::Exit(result)) => {
                pump.finish(result.stdin_bytes);
                let result = *result;
                return Ok(Collected { result, output });
            }
            // The caller that a run was started for loses nothing.
            Some(Event::Started(_) | Event::Lost(_)) | None => {}
        }
    }
}

/// The failure of a stream that has no end.
pub(super) fn broke_off() -> Failure {
    Failure::unreachable("the connection broke before the run ended")
}

/// Writes all of `bytes` at once.
pub(super) fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    to.write_all(bytes).and_then(|()| to.flush())?;
    Ok(())
}
