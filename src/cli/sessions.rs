//! The command `ringfence sessions`, which lists and closes sessions.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{DaemonArgs, executions_client, status_failure};
use super::{Failure, print, runtime, time};
use crate::api::proto::{CloseSessionRequest, ListSessionsRequest, Session};
use crate::model::refusal::printable;

/// List or close the sessions of a daemon: interpreters that are kept from program to program.
#[derive(Debug, Args)]
pub(super) struct SessionsCommand {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(subcommand)]
    action: SessionsAction,
}

#[derive(Debug, Subcommand)]
enum SessionsAction {
    /// List the sessions of the daemon
    Ls {
        /// Print one JSON object per line, instead of a table
        #[arg(long, value_name = "FORMAT")]
        output: Option<SessionsOutputFormat>,
    },
    /// Close sessions, and cancel what they execute
    Close {
        /// The names of the sessions
        #[arg(required = true)]
        name: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SessionsOutputFormat {
    /// Print one JSON object per line
    Json,
}

impl SessionsCommand {
    pub(super) fn prints_json(&self) -> bool {
        match &self.action {
            SessionsAction::Ls { output } => output.is_some(),
            SessionsAction::Close { .. } => false,
        }
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let Self { daemon, action } = self;
        runtime()?.block_on(async {
            match action {
                SessionsAction::Ls { output } => list(&daemon, output).await,
                SessionsAction::Close { name } => close(&daemon, name).await,
            }
        })
    }
}

async fn list(at: &DaemonArgs, output: Option<SessionsOutputFormat>) -> Result<ExitCode, Failure> {
    let mut client = executions_client(at.channel().await?);
    let answer = client.list_sessions(ListSessionsRequest {}).await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    let mut text = match output {
        Some(SessionsOutputFormat::Json) => String::new(),
        None => row([
            "SESSION", "LANGUAGE", "PROGRAMS", "MEMORY", "ENDS IN", "RUN",
        ]),
    };
    for session in &answer.into_inner().sessions {
        // Writing to a string cannot fail.
        let _ = match output {
            Some(SessionsOutputFormat::Json) => writeln!(text, "{}", session_json(session)),
            None => write!(
                text,
                "{}",
                row([
                    &printable(&session.name),
                    &printable(&session.language),
                    &session.executions.to_string(),
                    &format!("{} MiB", session.memory_bytes >> 20),
                    &ends_in(session),
                    &printable(&session.run_id),
                ])
            ),
        };
    }
    print(text.as_bytes())
}

/// Formats a line of the table of sessions.
fn row([name, language, programs, memory, ends, run]: [&str; 6]) -> String {
    let line = format!("{name:<24} {language:<12} {programs:>8} {memory:>9} {ends:>8}  {run}");
    format!("{}\n", line.trim_end())
}

/// Tells in how long a session ends if it is not used.
fn ends_in(session: &Session) -> String {
    let Some(expires) = session.expires else {
        return "-".to_owned();
    };
    let expires = SystemTime::try_from(expires).unwrap_or(SystemTime::UNIX_EPOCH);
    let left = expires.duration_since(SystemTime::now());
    let left = Duration::from_secs(left.unwrap_or_default().as_secs());
    humantime::format_duration(left)
        .to_string()
        .replace(' ', "")
}

/// Formats a session as JSON, with the names of the API.
fn session_json(session: &Session) -> Value {
    json!({
        "name": session.name,
        "language": session.language,
        "module_digest": session.module_digest,
        "began": time(session.began),
        "used": time(session.used),
        "expires": time(session.expires),
        "executions": session.executions,
        "run_id": session.run_id,
        "memory_bytes": session.memory_bytes,
    })
}

async fn close(at: &DaemonArgs, names: Vec<String>) -> Result<ExitCode, Failure> {
    let mut client = executions_client(at.channel().await?);
    let mut closed = String::new();
    for name in names {
        let answer = client.close_session(CloseSessionRequest { name }).await;
        let answer = answer.map_err(|status| status_failure(&status));
        match answer {
            Ok(answer) => {
                let session = answer.into_inner().session.unwrap_or_default();
                closed.push_str(&format!("{}\n", printable(&session.name)));
            }
            Err(failure) => {
                // Those before it are closed, and it is said which.
                print(closed.as_bytes())?;
                return Err(failure);
            }
        }
    }
    print(closed.as_bytes())
}
