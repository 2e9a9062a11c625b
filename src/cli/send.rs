//! The command `ringfence send`, which sends standard input to a run by calls of their own, each
//! with the place where its bytes go, so that a call may be repeated.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use clap::Args;
use tonic::Status;
use tonic_types::StatusExt;

use super::connect::{DaemonArgs, DaemonChannel, connect_runs, status_failure};
use super::stdin_source::StdinSource;
use super::{Failure, print, runtime};
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::{SendInputRequest, SendInputResponse};
use crate::sandbox::MAX_STDIN_CHUNK;

/// Send standard input to a run whose input is open.
#[derive(Debug, Args)]
pub(super) struct SendCommand {
    /// The id of the run
    run: String,
    /// End the guest's input where this command's input ends
    #[arg(long)]
    eof: bool,
    /// The place of the first byte: how many bytes were sent to the run before it. What was sent
    /// for its place already is not sent twice. By default, the place after all that was sent
    #[arg(long, value_name = "N")]
    offset: Option<u64>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl SendCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(self.send())
    }

    /// Sends standard input until it ends, and prints the place where the next byte goes.
    async fn send(self) -> Result<ExitCode, Failure> {
        let source = StdinSource::standard()?.map(Arc::new);
        let mut writer = InputWriter {
            client: connect_runs(&self.daemon).await?,
            run: self.run,
            offset: self.offset.unwrap_or_default(),
        };
        if self.offset.is_none() {
            let asked = writer.call(Bytes::new(), false).await;
            writer.offset = asked.map_err(|status| status_failure(&status))?.next_offset;
        }
        if let Some(source) = source {
            loop {
                let piece = next_piece(&source).await?;
                if piece.is_empty() {
                    break;
                }
                writer.send(piece, false).await?;
            }
        }
        if self.eof {
            writer.send(Bytes::new(), true).await?;
        }
        print(format!("{}\n", writer.offset).as_bytes())
    }
}

/// A writer of a run's input, and the place of its next byte.
struct InputWriter {
    client: RunServiceClient<DaemonChannel>,
    run: String,
    offset: u64,
}

impl InputWriter {
    /// Sends `data`, and then the end of the input where `eof` says so. What does not fit is sent
    /// again after the time that the daemon asks for.
    async fn send(&mut self, mut data: Bytes, eof: bool) -> Result<(), Failure> {
        loop {
            match self.call(data.clone(), eof).await {
                Ok(answer) => {
                    let accepted = usize::try_from(answer.accepted).unwrap_or(usize::MAX);
                    let accepted = accepted.min(data.len());
                    data.advance(accepted);
                    self.offset += accepted as u64;
                    if data.is_empty() {
                        return Ok(());
                    }
                }
                Err(status) => match retry_delay(&status) {
                    Some(delay) => tokio::time::sleep(delay).await,
                    None => return Err(status_failure(&status)),
                },
            }
        }
    }

    /// Calls the daemon once, for the place that this writer has come to.
    async fn call(&mut self, data: Bytes, eof: bool) -> Result<SendInputResponse, Status> {
        let request = SendInputRequest {
            run_id: self.run.clone(),
            offset: self.offset,
            data,
            eof,
        };
        Ok(self.client.send_input(request).await?.into_inner())
    }
}

/// Returns how long a refused call has to wait; `None` where another one would not help.
fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Reads what comes next, at most as much as one call may have. It is empty at the end.
async fn next_piece(source: &Arc<StdinSource>) -> Result<Bytes, Failure> {
    let reads = Arc::clone(source);
    // A terminal or a pipe may have nothing for long.
    let piece = tokio::task::spawn_blocking(move || {
        let mut piece = vec![0; MAX_STDIN_CHUNK];
        loop {
            reads.wait(true)?;
            if let Some(read) = reads.read(&mut piece)? {
                piece.truncate(read);
                return Ok(Bytes::from(piece));
            }
        }
    });
    let piece = piece.await.unwrap_or_else(|error| Err(error.into()));
    piece.map_err(|error| source.unreadable(&error))
}
