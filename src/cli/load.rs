//! The command `ringfence load`, which sends a module to a daemon, or has the daemon pull one.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::{Stream, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use super::connect::{DaemonArgs, connect, connect_modules, status_failure};
use super::modules::module_json;
use super::wait_indicator::{WaitIndicator, sized};
use super::{Failure, print, print_json, runtime, value_parsers};
use crate::api::proto::load_module_request::Source;
use crate::api::proto::upload_module_request::Frame;
use crate::api::proto::{LoadModuleRequest, LoadModuleResponse, UploadModuleRequest, UploadStart};

/// The scheme of a reference to a registry.
const OCI: &str = "oci://";
/// Largest module in bytes that is sent in one message; a larger one is uploaded in pieces.
const SMALL: usize = 1 << 20;
/// Length of one piece of an upload in bytes.
const PIECE: usize = 256 << 10;

/// Load a module into a daemon.
#[derive(Debug, Args)]
pub(super) struct LoadCommand {
    /// A file (binary or text), "-" for standard input, or "oci://registry/repository:tag"
    #[arg(value_parser = value_parsers::text())]
    module: String,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// The name for listings, by default the name of the file
    #[arg(long)]
    name: Option<String>,
    /// Also compile for runs with a fuel limit
    #[arg(long)]
    metered: bool,
    /// Label the module. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// Print everything that the daemon reports, instead of the digest
    #[arg(long, value_name = "FORMAT")]
    output: Option<LoadOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LoadOutputFormat {
    /// Print one JSON object
    Json,
}

impl LoadCommand {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    /// Creates the line that says what the daemon is doing, with the module's size where it is
    /// known.
    fn waiting(&self, what: &str, size: Option<u64>) -> WaitIndicator {
        if self.prints_json() {
            return WaitIndicator::silent();
        }
        let name = match self.name() {
            name if name.is_empty() => self.module.clone(),
            name => name,
        };
        WaitIndicator::new(format!("{what} {}", sized(&name, size)))
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let answer = runtime()?.block_on(async {
            if self.module.starts_with(OCI) {
                return self.load(Source::Oci(self.module.clone())).await;
            }
            let unreadable = |error| Failure::new(format!("cannot read {}: {error}", self.module));
            let (mut from, size) = open(&self.module).map_err(unreadable)?;
            // What fits into one message is sent in one. Anything larger, or without an end yet, is
            // sent in pieces.
            let mut first = Vec::new();
            let limit = SMALL as u64 + 1;
            (&mut from)
                .take(limit)
                .read_to_end(&mut first)
                .map_err(unreadable)?;
            if first.len() <= SMALL {
                return self.load(Source::Wasm(first.into())).await;
            }
            self.upload(first.into(), from, size).await
        })?;
        match self.output {
            Some(LoadOutputFormat::Json) => {
                let mut told = module_json(&answer.module.clone().unwrap_or_default());
                let took = answer.compile_duration.unwrap_or_default();
                let took = std::time::Duration::try_from(took).unwrap_or_default();
                told["cached"] = json!(answer.cached);
                told["compile_seconds"] = json!(took.as_secs_f64());
                if !answer.resolved.is_empty() {
                    told["resolved"] = json!(answer.resolved);
                }
                print_json(&told)
            }
            None => {
                let digest = answer
                    .module
                    .map(|module| module.digest)
                    .unwrap_or_default();
                print(format!("{digest}\n").as_bytes())
            }
        }
    }

    fn name(&self) -> String {
        let file_name = || {
            let name = Path::new(&self.module).file_name()?.to_str()?;
            (name != "-" && !self.module.starts_with(OCI)).then(|| name.to_owned())
        };
        self.name.clone().or_else(file_name).unwrap_or_default()
    }

    async fn load(&self, source: Source) -> Result<LoadModuleResponse, Failure> {
        let waiting = match &source {
            Source::Wasm(wasm) => self.waiting("compiling", Some(wasm.len() as u64)),
            Source::Oci(_) => self.waiting("pulling and compiling", None),
        };
        let request = LoadModuleRequest {
            name: self.name(),
            source: Some(source),
            metered: self.metered,
            labels: value_parsers::labels(&self.label)?,
        };
        let mut client = connect(&self.daemon).await?;
        let answer = waiting.during(client.load_module(request)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| status_failure(&status))
    }

    /// Sends `first`, and then everything that can still be read from `from`.
    async fn upload(
        &self,
        first: Bytes,
        from: Box<dyn Read + Send>,
        size: Option<u64>,
    ) -> Result<LoadModuleResponse, Failure> {
        let mut client = connect_modules(&self.daemon).await?;
        let start = Frame::Start(UploadStart {
            name: self.name(),
            metered: self.metered,
            labels: value_parsers::labels(&self.label)?,
            digest: String::new(),
        });
        let (frames, sent) = mpsc::channel(2);
        let (failed, mut unread) = oneshot::channel();
        let (whole, all_sent) = oneshot::channel();
        let bar = if self.prints_json() {
            ProgressBar::hidden()
        } else {
            bar(size)
        };
        // The thread ends with the process if it waits for input that nobody needs any more.
        std::thread::spawn(move || {
            match send(start, first, from, &bar, &frames) {
                // The error is reported before the daemon notices, so that it is known when the
                // daemon's answer comes.
                Err(error) => {
                    let _ = failed.send(error);
                }
                Ok(()) => {
                    let _ = whole.send(());
                }
            }
        });
        let all_sent = async {
            // An upload that broke off has its answer at once.
            let _ = all_sent.await;
        };
        let waiting = self.waiting("compiling", size);
        let answer = client.upload_module(pieces(sent));
        let answer = waiting.during_after(all_sent, answer).await;
        if let Ok(error) = unread.try_recv() {
            let message = format!("cannot read {}: {error}", self.module);
            return Err(Failure::new(message));
        }
        let answer = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        Ok(LoadModuleResponse {
            module: answer.module,
            cached: answer.cached,
            compile_duration: answer.compile_duration,
            resolved: String::new(),
        })
    }
}

/// Opens the file and determines its size; for "-" it is standard input, without a size.
fn open(path: &str) -> std::io::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

/// An element of the channel from the reading thread to the upload.
enum UploadPiece {
    Frame(Frame),
    /// The module has been sent as a whole.
    End,
}

/// Converts the pieces to the messages of an upload. If they end without [`UploadPiece::End`], the
/// daemon refuses the last message, so that half a module is never taken for a whole one.
fn pieces(sent: mpsc::Receiver<UploadPiece>) -> impl Stream<Item = UploadModuleRequest> {
    stream::unfold(Some(sent), |sent| async {
        let mut sent = sent?;
        match sent.recv().await {
            Some(UploadPiece::Frame(frame)) => {
                Some((UploadModuleRequest { frame: Some(frame) }, Some(sent)))
            }
            Some(UploadPiece::End) => None,
            None => Some((UploadModuleRequest { frame: None }, None)),
        }
    })
}

/// Reads the module and sends it in pieces, until it ends or the upload does.
fn send(
    start: Frame,
    first: Bytes,
    mut from: impl Read,
    bar: &ProgressBar,
    frames: &mpsc::Sender<UploadPiece>,
) -> std::io::Result<()> {
    // The daemon may refuse early. Nobody receives the rest then, and its answer says why.
    let send = |piece| frames.blocking_send(piece).is_ok();
    let mut goes_on = send(UploadPiece::Frame(start));
    let mut pieces = first;
    while goes_on {
        while goes_on && !pieces.is_empty() {
            let piece = pieces.split_to(pieces.len().min(PIECE));
            bar.inc(piece.len() as u64);
            goes_on = send(UploadPiece::Frame(Frame::Chunk(piece)));
        }
        let mut piece = vec![0; PIECE];
        let n = read_some(&mut from, &mut piece)?;
        piece.truncate(n);
        pieces = piece.into();
        if n == 0 {
            bar.finish_and_clear();
            send(UploadPiece::End);
            break;
        }
    }
    Ok(())
}

fn read_some(from: &mut impl Read, piece: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match from.read(piece) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Creates the progress bar, which is shown on standard error if that is a terminal.
fn bar(size: Option<u64>) -> ProgressBar {
    let (bar, style) = match size {
        Some(size) => (
            ProgressBar::new(size),
            "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes} {bytes_per_sec}",
        ),
    };
    match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
