//! `ringfence load`

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

use super::connect::{DaemonArgs, connect, connect_modules, failure};
use super::modules::report;
use super::waiting::{Waiting, sized};
use super::{Failure, print, print_json, runtime, values};
use crate::api::proto::load_module_request::Source;
use crate::api::proto::upload_module_request::Frame;
use crate::api::proto::{LoadModuleRequest, LoadModuleResponse, UploadModuleRequest, UploadStart};

/// What a reference to a registry starts with.
const OCI: &str = "oci://";
/// Files up to so many bytes are sent in one message.
const SMALL: usize = 1 << 20;
/// Bytes of one piece of an upload.
const PIECE: usize = 256 << 10;

/// Load a module into a daemon.
#[derive(Debug, Args)]
pub(super) struct Load {
    /// A file (binary or text), "-" for standard input, or "oci://registry/repository:tag"
    #[arg(value_parser = values::text())]
    module: String,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// A name for listings; the file's by default
    #[arg(long)]
    name: Option<String>,
    /// Compile for runs with a fuel limit too
    #[arg(long)]
    metered: bool,
    /// Label the module; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_value())]
    label: Vec<(String, String)>,
    /// Print all that the daemon tells, rather than the digest
    #[arg(long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

impl Load {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    /// The line about `what` while the daemon is at it, of so many bytes where that is known.
    fn waiting(&self, what: &str, size: Option<u64>) -> Waiting {
        if self.prints_json() {
            return Waiting::silent();
        }
        let name = match self.name() {
            name if name.is_empty() => self.module.clone(),
            name => name,
        };
        Waiting::new(format!("{what} {}", sized(&name, size)))
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let answer = runtime()?.block_on(async {
            if self.module.starts_with(OCI) {
                return self.load(Source::Oci(self.module.clone())).await;
            }
            let unreadable = |error| Failure::new(format!("cannot read {}: {error}", self.module));
            let (mut from, size) = open(&self.module).map_err(unreadable)?;
            // What fits one message goes in one; what is larger, or has no end yet, in pieces.
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
            Some(Format::Json) => {
                let mut told = report(&answer.module.clone().unwrap_or_default());
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
            labels: self.label.iter().cloned().collect(),
        };
        let mut client = connect(&self.daemon).await?;
        let answer = waiting.during(client.load_module(request)).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failure(&status))
    }

    /// Sends `first`, and then what `from` still has.
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
            labels: self.label.iter().cloned().collect(),
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
        // Ends with the process where it waits for input that nobody needs any more.
        std::thread::spawn(move || {
            match send(start, first, from, &bar, &frames) {
                // Told before the daemon notices, so that it is known when its answer comes.
                Err(error) => {
                    let _ = failed.send(error);
                }
                Ok(()) => {
                    let _ = whole.send(());
                }
            }
        });
        let all_sent = async {
            // One that broke off has its answer at once.
            let _ = all_sent.await;
        };
        let waiting = self.waiting("compiling", size);
        let answer = client.upload_module(pieces(sent));
        let answer = waiting.during_after(all_sent, answer).await;
        if let Ok(error) = unread.try_recv() {
            let message = format!("cannot read {}: {error}", self.module);
            return Err(Failure::new(message));
        }
        let answer = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(LoadModuleResponse {
            module: answer.module,
            cached: answer.cached,
            compile_duration: answer.compile_duration,
            resolved: String::new(),
        })
    }
}

/// The file with its size, or standard input.
fn open(path: &str) -> std::io::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if path == "-" {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let size = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), size))
}

/// A piece of a module on its way.
enum Piece {
    Frame(Frame),
    /// That was all of it.
    End,
}

/// The messages of an upload. Where they end without [`Piece::End`] the last one is refused by the daemon, so that half
/// a module is never taken for a whole one.
fn pieces(sent: mpsc::Receiver<Piece>) -> impl Stream<Item = UploadModuleRequest> {
    stream::unfold(Some(sent), |sent| async {
        let mut sent = sent?;
        match sent.recv().await {
            Some(Piece::Frame(frame)) => {
                Some((UploadModuleRequest { frame: Some(frame) }, Some(sent)))
            }
            Some(Piece::End) => None,
            None => Some((UploadModuleRequest { frame: None }, None)),
        }
    })
}

/// Sends a module in pieces.
fn send(
    start: Frame,
    first: Bytes,
    mut from: impl Read,
    bar: &ProgressBar,
    frames: &mpsc::Sender<Piece>,
) -> std::io::Result<()> {
    // The daemon may refuse early: nobody takes the rest then, and its answer says why.
    let send = |piece| frames.blocking_send(piece).is_ok();
    let mut goes_on = send(Piece::Frame(start));
    let mut pieces = first;
    while goes_on {
        while goes_on && !pieces.is_empty() {
            let piece = pieces.split_to(pieces.len().min(PIECE));
            bar.inc(piece.len() as u64);
            goes_on = send(Piece::Frame(Frame::Chunk(piece)));
        }
        let mut piece = vec![0; PIECE];
        let n = read_some(&mut from, &mut piece)?;
        piece.truncate(n);
        pieces = piece.into();
        if n == 0 {
            bar.finish_and_clear();
            send(Piece::End);
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

/// Shown on standard error while it is a terminal.
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
