//! The event stream of a run, printed as it arrives or collected until the run ends.

use std::ops::ControlFlow;
use std::process::ExitCode;

use tonic::{Status, Streaming};

use super::ending::print_ending;
use super::out_folder::{OutFolder, tell_uncollected};
use super::stdin_pump::StdinPump;
use super::wait_indicator::WaitIndicator;
use super::write_all::write;
use super::{Failure, print_to_stderr};
use crate::api::proto::stream_event::Event;
use crate::api::proto::{CollectedFile, RunResult, StreamEvent};

/// The most bytes of output, both streams together, that are kept until the run has ended. A run
/// with live input may have no output limit.
const MOST_COLLECTED: usize = 64 << 20;

/// What takes part in a run besides the terminal.
#[derive(Clone, Copy, Default)]
pub(super) struct FollowSinks<'a> {
    /// Feeds the guest's standard input; `None` where nobody does.
    pub(super) pump: Option<&'a StdinPump>,
    /// Receives the files that the run returns; `None` where nobody wants them.
    pub(super) files: Option<&'a OutFolder>,
}

/// Why no more events are printed.
pub(super) enum FollowEnd {
    /// The run has ended, or there is no way to learn how it ends.
    Concluded(Result<ExitCode, Failure>),
    /// The stream broke before the run ended.
    Broken(Option<Status>),
}

/// Prints the guest's output to the matching streams until the run ends. `next` is the event that
/// is due, `waiting` tells the user why the first event does not come yet, and `sinks` have the
/// guest's standard input and its files.
pub(super) async fn follow(
    events: &mut Streaming<StreamEvent>,
    next: &mut u64,
    mut waiting: WaitIndicator,
    sinks: FollowSinks<'_>,
) -> FollowEnd {
    loop {
        let event = waiting.during(events.message()).await;
        waiting = WaitIndicator::silent();
        let event = match event {
            Ok(Some(event)) => event,
            Ok(None) => return FollowEnd::Broken(None),
            Err(status) => return FollowEnd::Broken(Some(status)),
        };
        if let ControlFlow::Break(told) = print_event(event, next, sinks) {
            return FollowEnd::Concluded(told);
        }
    }
}

/// Prints the guest's output to the matching stream where `event` has some, and sets `next` to the
/// event that is due then. Breaks at the end of the run, or where nothing can be printed any more.
pub(super) fn print_event(
    event: StreamEvent,
    next: &mut u64,
    sinks: FollowSinks<'_>,
) -> ControlFlow<Result<ExitCode, Failure>> {
    let FollowSinks { pump, files } = sinks;
    let StreamEvent { seq, event, .. } = event;
    let written = match event {
        Some(Event::Stdout(bytes)) => write(std::io::stdout(), &bytes),
        Some(Event::Stderr(bytes)) => write(std::io::stderr(), &bytes),
        Some(Event::Lost(lost)) => {
            *next = lost.first_seq + lost.count;
            print_to_stderr(&format!(
                "the daemon no longer keeps {} events, from event {} on",
                lost.count, lost.first_seq
            ));
            return ControlFlow::Continue(());
        }
        Some(Event::StdinDemand(demand)) => {
            if let Some(pump) = pump {
                pump.demand(demand);
            }
            return ControlFlow::Continue(());
        }
        Some(Event::Exit(result)) => {
            if let Some(pump) = pump {
                pump.finish(result.stdin_bytes);
            }
            tell_uncollected(&result);
            return ControlFlow::Break(print_ending(&result));
        }
        Some(Event::Error(error)) => return ControlFlow::Break(Err(Failure::of_run(&error))),
        Some(Event::File(chunk)) => {
            if let Some(files) = files {
                files.write_chunk(&chunk);
            }
            Ok(())
        }
        Some(Event::Started(_)) | None => Ok(()),
    };
    *next = seq + 1;
    match written {
        Ok(()) => ControlFlow::Continue(()),
        Err(failure) => ControlFlow::Break(Err(failure)),
    }
}

/// A run that has ended, with all its output.
pub(super) struct CollectedRun {
    pub(super) result: RunResult,
    /// Standard output and standard error, in this order.
    pub(super) output: [Vec<u8>; 2],
    /// The value that a program reported, as JSON; `None` for the run of a module.
    pub(super) value: Option<String>,
    /// The files that the run returns, unless they went to a folder as they came.
    pub(super) files: Vec<CollectedFile>,
}

/// Collects the guest's output until the run ends, and at most [`MOST_COLLECTED`] bytes of it.
///
/// # Errors
/// Fails where the run cannot be followed to its end, or writes more than that.
pub(super) async fn collect(
    events: &mut Streaming<StreamEvent>,
    pump: &StdinPump,
    files: Option<&OutFolder>,
) -> Result<CollectedRun, Failure> {
    let mut output = [Vec::new(), Vec::new()];
    loop {
        let event = events.message().await;
        let event = event.map_err(|status| Failure::of_status(&status))?;
        let StreamEvent { event, .. } = event.ok_or_else(broke_off)?;
        match event {
            Some(Event::Stdout(bytes)) => keep(&mut output, 0, &bytes)?,
            Some(Event::Stderr(bytes)) => keep(&mut output, 1, &bytes)?,
            Some(Event::StdinDemand(demand)) => pump.demand(demand),
            Some(Event::Error(error)) => return Err(Failure::of_run(&error)),
            Some(Event::Exit(result)) => {
                pump.finish(result.stdin_bytes);
                let result = *result;
                return Ok(CollectedRun {
                    result,
                    output,
                    value: None,
                    files: Vec::new(),
                });
            }
            // The caller for whom a run was started loses no events.
            Some(Event::File(chunk)) => {
                if let Some(files) = files {
                    files.write_chunk(&chunk);
                }
            }
            Some(Event::Started(_) | Event::Lost(_)) | None => {}
        }
    }
}

/// Adds bytes to one of two streams of collected output, for which there has to be room.
fn keep(output: &mut [Vec<u8>; 2], stream: usize, bytes: &[u8]) -> Result<(), Failure> {
    let kept: usize = output.iter().map(Vec::len).sum();
    if kept + bytes.len() > MOST_COLLECTED {
        let most = MOST_COLLECTED >> 20;
        return Err(Failure::new(format!(
            "the run wrote more than {most} MiB, which is the most that is kept until a run has ended, and is cancelled; \
             print its output as it comes, or limit it by --output-limit (and --truncate)"
        )));
    }
    output[stream].extend_from_slice(bytes);
    Ok(())
}

/// Creates the failure for a stream that ended before the run did.
pub(super) fn broke_off() -> Failure {
    Failure::unreachable("the connection broke before the run ended")
}
