//! Launches the run of a module or of a program on a daemon, and prints what comes of it.

use std::process::ExitCode;

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tonic::{Status, Streaming};

use super::connect::{
    DaemonChannel, executions_client, runs_client, sandbox_client, status_failure,
};
use super::ending::{exit_code_of, print_ending, run_json};
use super::follow::{CollectedRun, FollowEnd, FollowSinks, broke_off, collect, follow};
use super::out_folder::{OutFolder, tell_uncollected};
use super::stdin_pump::StdinPump;
use super::stdin_source::{GuestStdin, StdinSource};
use super::wait_indicator::WaitIndicator;
use super::write_all::write;
use super::{Failure, print, print_json};
use crate::api::proto::interact_request::Frame;
use crate::api::proto::{
    ExecuteRequest, ExecuteStreamRequest, ExecutionSpec, RunRequest, RunSpec, RunStreamRequest,
    StreamEvent,
};
use crate::language::reported_value;

/// Most bytes of the first message of an interaction. The module, or the program with its files, is
/// part of that message if it fits.
pub(super) const INTERACTION_START: usize = 1 << 20;
/// Most bytes that the protobuf keys and lengths of a start message and its module take.
pub(super) const ENVELOPE: usize = 64;

/// What is to be run: a module, or a program in a language of the daemon.
pub(super) enum Launch {
    Module(Box<RunSpec>),
    Program(Box<ExecutionSpec>),
}

/// The report of a program's run, with the value that the program reported as it wrote it: numbers
/// keep all digits, and values may be nested to any depth.
#[derive(Serialize)]
struct ProgramReport<'a> {
    #[serde(flatten)]
    run: Value,
    value: Option<&'a RawValue>,
}

/// How what is written is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Printing {
    /// As it is written.
    Streamed,
    /// When the run has ended.
    Collected,
    /// When the run has ended, as JSON.
    Json,
    /// Not at all: only the id of the run is printed, which goes on without this command.
    Detached,
}

impl<'a> ProgramReport<'a> {
    /// Creates the report of `run` with `value`, which is null where it is no JSON.
    fn new(run: Value, value: &'a str) -> Self {
        Self {
            run,
            value: serde_json::from_str(value).ok(),
        }
    }
}

impl Launch {
    /// Executes it with `stdin`, and prints what comes of it. The user is shown `starting` until
    /// the run has started, or `ending` until it has ended. Files that it returns go to `files`.
    pub(super) async fn run(
        mut self,
        channel: DaemonChannel,
        stdin: GuestStdin,
        printing: Printing,
        [starting, ending]: [WaitIndicator; 2],
        files: Option<&OutFolder>,
    ) -> Result<ExitCode, Failure> {
        let whole = match stdin {
            GuestStdin::Live(source) if printing == Printing::Streamed => {
                return self.interactive(channel, source, starting, files).await;
            }
            GuestStdin::Live(source) => {
                let answer = ending
                    .during(self.collected(channel, source, files))
                    .await?;
                return print_collected(&answer, printing);
            }
            GuestStdin::Whole(bytes) => bytes,
            GuestStdin::Empty => Bytes::new(),
        };
        match &mut self {
            Self::Module(spec) => spec.stdin = whole,
            Self::Program(spec) => spec.stdin = whole,
        }
        match printing {
            Printing::Detached => self.detached(channel, starting).await,
            Printing::Streamed => {
                let events = starting.during(self.stream(channel)).await?;
                let sinks = FollowSinks { pump: None, files };
                to_the_end(events, sinks).await
            }
            Printing::Collected | Printing::Json => {
                let answer = ending.during(self.captured(channel, files)).await?;
                print_collected(&answer, printing)
            }
        }
    }

    /// Starts the run, whose events come as they happen.
    async fn stream(self, channel: DaemonChannel) -> Result<Streaming<StreamEvent>, Failure> {
        let answer = match self {
            Self::Module(spec) => {
                let spec = Some(*spec);
                let mut client = sandbox_client(channel);
                client.run_stream(RunStreamRequest { spec }).await
            }
            Self::Program(spec) => {
                let spec = Some(*spec);
                let mut client = executions_client(channel);
                client.execute_stream(ExecuteStreamRequest { spec }).await
            }
        };
        let answer = answer.map_err(|status| status_failure(&status))?;
        Ok(answer.into_inner())
    }

    /// Executes it to its end, and returns what it wrote.
    pub(super) async fn captured(
        self,
        channel: DaemonChannel,
        files: Option<&OutFolder>,
    ) -> Result<CollectedRun, Failure> {
        let failed = |status: Status| status_failure(&status);
        match self {
            Self::Module(spec) => {
                let spec = Some(*spec);
                let answer = sandbox_client(channel).run(RunRequest { spec }).await;
                let answer = answer.map_err(failed)?.into_inner();
                Ok(CollectedRun {
                    result: answer.result.unwrap_or_default(),
                    output: [answer.stdout.into(), answer.stderr.into()],
                    value: None,
                    files: answer.files,
                })
            }
            Self::Program(spec) => {
                let spec = Some(*spec);
                let mut client = executions_client(channel);
                let answer = client.execute(ExecuteRequest { spec }).await;
                let answer = answer.map_err(failed)?.into_inner();
                for file in &answer.files {
                    if let Some(files) = files {
                        files.write_file(&file.path, &file.data);
                    }
                }
                Ok(CollectedRun {
                    result: answer.result.unwrap_or_default(),
                    output: [answer.stdout.into(), answer.stderr.into()],
                    value: Some(answer.value),
                    files: answer.files,
                })
            }
        }
    }

    /// Starts the run with live input from `source`.
    async fn interact(
        self,
        channel: DaemonChannel,
        source: StdinSource,
    ) -> Result<(StdinPump, Streaming<StreamEvent>), Failure> {
        let frame = match self {
            Self::Module(spec) => Frame::Start(spec),
            Self::Program(spec) => Frame::Execute(spec),
        };
        let mut client = runs_client(channel);
        let (pump, messages) = StdinPump::start(frame, source)?;
        let answer = client.interact(messages).await;
        let answer = answer.map_err(|status| status_failure(&status))?;
        Ok((pump, answer.into_inner()))
    }

    /// Executes it with live input, and prints its output as it comes.
    async fn interactive(
        self,
        channel: DaemonChannel,
        source: StdinSource,
        waiting: WaitIndicator,
        files: Option<&OutFolder>,
    ) -> Result<ExitCode, Failure> {
        let (mut pump, events) = waiting.during(self.interact(channel, source)).await?;
        let broken = pump.take_broken();
        tokio::select! {
            told = to_the_end(events, FollowSinks { pump: Some(&pump), files }) => told,
            failure = broken => Err(failure),
        }
    }

    /// Executes it with live input, and collects its output until it has ended.
    async fn collected(
        self,
        channel: DaemonChannel,
        source: StdinSource,
        files: Option<&OutFolder>,
    ) -> Result<CollectedRun, Failure> {
        let is_program = matches!(self, Self::Program(_));
        let (mut pump, mut events) = self.interact(channel, source).await?;
        let broken = pump.take_broken();
        let mut answer = tokio::select! {
            told = collect(&mut events, &pump, files) => told?,
            failure = broken => return Err(failure),
        };
        if is_program {
            let stdout = Bytes::copy_from_slice(&answer.output[0]);
            answer.value = Some(reported_value(&[stdout], answer.result.stdout_truncated));
        }
        Ok(answer)
    }

    /// Starts the run, prints its id, and leaves it running.
    async fn detached(
        self,
        channel: DaemonChannel,
        waiting: WaitIndicator,
    ) -> Result<ExitCode, Failure> {
        let mut events = waiting.during(self.stream(channel)).await?;
        let event = events
            .message()
            .await
            .map_err(|status| status_failure(&status))?;
        let Some(StreamEvent { run_id, .. }) = event else {
            let message = "the connection broke before the run started";
            return Err(Failure::unreachable(message));
        };
        print(format!("{run_id}\n").as_bytes())
    }
}

/// Performs `work` unless a signal ends it first. Dropping the call cancels the run, except for one
/// that is to be detached.
pub(super) async fn or_signalled(
    signalled: impl Future<Output = &'static str>,
    detach: bool,
    work: impl Future<Output = Result<ExitCode, Failure>>,
) -> Result<ExitCode, Failure> {
    tokio::select! {
        result = work => result,
        did = signalled => Err(match detach {
            true => Failure::left_running(did),
            false => Failure::cancelled(did),
        }),
    }
}

/// Prints the events of a run until it has ended.
async fn to_the_end(
    mut events: Streaming<StreamEvent>,
    sinks: FollowSinks<'_>,
) -> Result<ExitCode, Failure> {
    // The stream is only answered once the run has started, so there is no wait to report any more.
    match follow(&mut events, &mut 0, WaitIndicator::silent(), sinks).await {
        FollowEnd::Concluded(told) => told,
        FollowEnd::Broken(Some(status)) => Err(status_failure(&status)),
        FollowEnd::Broken(None) => Err(broke_off()),
    }
}

/// Prints a run that has ended.
fn print_collected(answer: &CollectedRun, printing: Printing) -> Result<ExitCode, Failure> {
    let CollectedRun {
        result,
        output: [stdout, stderr],
        value,
        files: _,
    } = answer;
    if printing == Printing::Json {
        let report = run_json(result, stdout, stderr);
        match value {
            Some(value) => print_json(&ProgramReport::new(report, value))?,
            None => print_json(&report)?,
        };
        tell_uncollected(result);
        return Ok(ExitCode::from(exit_code_of(result)));
    }
    write(std::io::stdout(), stdout)?;
    write(std::io::stderr(), stderr)?;
    tell_uncollected(result);
    print_ending(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_reported_as_it_was_written() {
        let report = |value: &str| {
            let run = serde_json::json!({ "exit_code": 0 });
            serde_json::to_string(&ProgramReport::new(run, value)).unwrap()
        };
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for value in ["18446744073709551616123", "1.50", "1e400", "\"a\"", &deep] {
            let expected = format!(r#"{{"exit_code":0,"value":{value}}}"#);
            assert_eq!(report(value), expected);
        }
        for value in ["", "{oops", "1 2"] {
            assert_eq!(report(value), r#"{"exit_code":0,"value":null}"#, "{value}");
        }
    }
}
