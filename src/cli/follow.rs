//! The event stream of a run, printed as it arrives or collected until the run ends.

use std::process::ExitCode;

use tonic::{Status, Streaming};

use super::ending::print_ending;
use super::stdin_pump::StdinPump;
use super::wait_indicator::WaitIndicator;
use super::write_all::write;
use super::{Failure, print_to_stderr};
use crate::api::proto::stream_event::Event;
use crate::api::proto::{RunResult, StreamEvent};

/// Why no more events are printed.
pub(super) enum FollowEnd {
    /// The run has ended, or there is no way to learn how it ends.
    Concluded(Result<ExitCode, Failure>),
    /// The stream broke before the run ended.
    Broken(Option<Status>),
}

/// Prints the guest's output to the matching streams until the run ends. `next` is the event that
/// is due, `waiting` tells the user why the first event does not come yet, and `pump` has the
/// guest's standard input.
pub(super) async fn follow(
    events: &mut Streaming<StreamEvent>,
    next: &mut u64,
    mut waiting: WaitIndicator,
    pump: Option<&StdinPump>,
) -> FollowEnd {
    loop {
        let event = waiting.during(events.message()).await;
        waiting = WaitIndicator::silent();
        let StreamEvent { seq, event, .. } = match event {
            Ok(Some(event)) => event,
            Ok(None) => return FollowEnd::Broken(None),
            Err(status) => return FollowEnd::Broken(Some(status)),
        };
        let written = match event {
            Some(Event::Stdout(bytes)) => write(std::io::stdout(), &bytes),
            Some(Event::Stderr(bytes)) => write(std::io::stderr(), &bytes),
            Some(Event::Lost(lost)) => {
                *next = lost.first_seq + lost.count;
                print_to_stderr(&format!(
                    "the daemon no longer keeps {} events, from event {} on",
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
                return FollowEnd::Concluded(print_ending(&result));
            }
            Some(Event::Error(error)) => return FollowEnd::Concluded(Err(Failure::of_run(&error))),
            Some(Event::Started(_)) | None => Ok(()),
        };
        if let Err(failure) = written {
            return FollowEnd::Concluded(Err(failure));
        }
        *next = seq + 1;
    }
}

/// A run that has ended, with all its output.
pub(super) struct CollectedRun {
    pub(super) result: RunResult,
    /// Standard output and standard error, in this order.
    pub(super) output: [Vec<u8>; 2],
}

/// Collects the guest's output until the run ends. The run's output limit bounds how much memory
/// that takes.
pub(super) async fn collect(
    events: &mut Streaming<StreamEvent>,
    pump: &StdinPump,
) -> Result<CollectedRun, Failure> {
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
                return Ok(CollectedRun { result, output });
            }
            // The caller for whom a run was started loses no events.
            Some(Event::Started(_) | Event::Lost(_)) | None => {}
        }
    }
}

/// Creates the failure for a stream that ended before the run did.
pub(super) fn broke_off() -> Failure {
    Failure::unreachable("the connection broke before the run ended")
}
