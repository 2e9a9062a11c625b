//! What it costs that runs are recorded: a hello that is archived, one that is traced, and 128 MiB of output that are
//! exported as log records.
//!
//! ```sh
//! cargo bench --bench records
//! ```
//!
//! Each daemon is a process of its own, and they take turns. The collector is in this program, so that its processor time
//! is not counted; it shares the cores. Figures are medians of the rounds.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program that is looked at while it runs, and fails by panicking; its figures are for people"
)]

#[path = "records/sink.rs"]
mod sink;

mod served;

use std::time::{Duration, Instant};

use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    LoadModuleRequest, RunRequest, RunSpec, RunStreamRequest, load_module_request,
};
use tonic::transport::{Channel, Endpoint};

use self::served::Served;
use self::sink::Sink;

/// Calls of each daemon in each round, and the rounds.
const CALLS: [usize; 2] = [3000, 5];
/// Bytes of a line of the long output, its end included; the lines of one call; and the calls.
const LINES: [usize; 3] = [128, 64, 16 * 1024];
/// How long a daemon is left alone, so that what it writes and sends behind its calls counts too.
const REST: Duration = Duration::from_millis(1500);
/// How long a collector that is sent nothing any more has got all.
const QUIET: Duration = Duration::from_secs(1);

const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\06\00\00\00")
    (data (i32.const 16) "hello\n")
    (func (export "_start")
      (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// Writes 128 MiB of lines, many of them in each call.
fn talker() -> String {
    let [line, lines, calls] = LINES;
    let text = format!("{}\\n", "x".repeat(line - 1)).repeat(lines);
    let bytes = (line * lines).to_le_bytes();
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\{:02x}\{:02x}\00\00")
        (data (i32.const 16) "{text}")
        (func (export "_start") (local $i i32)
          (loop $again
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const {calls}))))))"#,
        bytes[0], bytes[1]
    )
}

/// A daemon with a client, and the collector that it exports to.
struct Subject {
    name: &'static str,
    served: Served,
    client: SandboxServiceClient<Channel>,
    sink: Option<Sink>,
    digest: String,
}

impl Subject {
    /// Starts a daemon that has the module, with the settings that its collector's URL leads to.
    async fn start(
        name: &'static str,
        wat: &str,
        settings: impl Fn(&str) -> Vec<String>,
        exports: bool,
    ) -> Self {
        let sink = if exports {
            Some(Sink::start().await)
        } else {
            None
        };
        let url = sink.as_ref().map(|it| it.url.as_str()).unwrap_or_default();
        let served = Served::start(&settings(url));
        let endpoint = Endpoint::from_shared(format!("http://{}", served.1)).unwrap();
        let mut client = SandboxServiceClient::new(endpoint.connect().await.unwrap());
        let module = LoadModuleRequest {
            source: Some(load_module_request::Source::Wasm(
                wat::parse_str(wat).unwrap().into(),
            )),
            ..LoadModuleRequest::default()
        };
        let loaded = client.load_module(module).await.unwrap().into_inner();
        Self {
            name,
            served,
            client,
            sink,
            digest: loaded.module.unwrap().digest,
        }
    }

    fn spec(&self) -> Option<RunSpec> {
        Some(RunSpec {
            module: Some(Module::Digest(self.digest.clone())),
            ..RunSpec::default()
        })
    }

    /// Runs many hellos, and returns what each of them cost, in microseconds of processor time.
    async fn hellos(&mut self) -> f64 {
        let before = self.served.processor_time();
        for _ in 0..CALLS[0] {
            let spec = self.spec();
            self.client.run(RunRequest { spec }).await.unwrap();
        }
        tokio::time::sleep(REST).await;
        let used = self.served.processor_time() - before;
        used.as_secs_f64() * 1e6 / CALLS[0] as f64
    }

    /// Has the long output written to a reader, and returns what that came to.
    async fn output(&mut self) -> Written {
        let before = self.served.processor_time();
        let spec = self.spec();
        let answer = self.client.run_stream(RunStreamRequest { spec }).await;
        let mut events = answer.unwrap().into_inner();
        let (mut bytes, mut took) = (0, Duration::ZERO);
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                Event::Stdout(piece) => bytes += piece.len(),
                Event::Exit(result) => took = result.duration.unwrap().try_into().unwrap(),
                Event::Started(_)
                | Event::Stderr(_)
                | Event::Lost(_)
                | Event::Error(_)
                | Event::StdinDemand(_)
                | Event::File(_) => {}
            }
        }
        assert_eq!(bytes, LINES.into_iter().product::<usize>());
        let exported = self.drained().await;
        let used = self.served.processor_time() - before;
        Written {
            took,
            used,
            exported,
        }
    }

    /// Waits until the collector is sent nothing any more, and returns how many bytes of lines it has been sent.
    async fn drained(&self) -> u64 {
        let Some(sink) = &self.sink else { return 0 };
        let (mut last, mut since) = (sink.log_bytes(), Instant::now());
        while since.elapsed() < QUIET {
            tokio::time::sleep(QUIET / 20).await;
            let now = sink.log_bytes();
            if now != last {
                (last, since) = (now, Instant::now());
            }
        }
        last
    }
}

/// What it came to that a guest wrote its output.
#[derive(Clone, Copy)]
struct Written {
    took: Duration,
    used: Duration,
    /// Bytes of lines that the collector has, of all rounds so far.
    exported: u64,
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

async fn hellos() {
    let nothing = |_: &str| Vec::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display().to_string();
    let archive = move |_: &str| vec![format!("runs.archive=file://{path}")];
    let traced = |url: &str| vec![format!("telemetry.otlp_endpoint={url}")];
    let sampled = |url: &str| {
        vec![
            format!("telemetry.otlp_endpoint={url}"),
            "telemetry.otlp_ratio=0.01".to_owned(),
        ]
    };
    let mut subjects = [
        Subject::start("nothing", HELLO, nothing, false).await,
        Subject::start("an archive", HELLO, archive, false).await,
        Subject::start("traces, ratio 1", HELLO, traced, true).await,
        Subject::start("traces, ratio 0.01", HELLO, sampled, true).await,
    ];
    let mut spent = [const { Vec::new() }; 4];
    for _ in 0..CALLS[1] {
        for (subject, spent) in subjects.iter_mut().zip(&mut spent) {
            spent.push(subject.hellos().await);
        }
    }
    for (subject, spent) in subjects.iter().zip(spent) {
        let spans = subject.sink.as_ref().map_or(0, Sink::spans);
        println!(
            "{:<20} {:6.1} us of processor time a hello; {spans} spans of {} calls",
            subject.name,
            median(spent),
            CALLS[0] * CALLS[1],
        );
    }
}

async fn outputs() {
    let nothing = |_: &str| Vec::new();
    let exported = |url: &str| {
        vec![
            format!("telemetry.otlp_endpoint={url}"),
            "telemetry.export_output=true".to_owned(),
        ]
    };
    let all = move |url: &str| {
        let mut set = exported(url);
        set.push("telemetry.otlp_queue=1GiB".to_owned());
        set
    };
    let talker = talker();
    let mut subjects = [
        Subject::start("nothing", &talker, nothing, false).await,
        Subject::start("exported", &talker, exported, true).await,
        Subject::start("exported, 1 GiB", &talker, all, true).await,
    ];
    let mut written = [const { Vec::<Written>::new() }; 3];
    for _ in 0..CALLS[1] {
        for (subject, written) in subjects.iter_mut().zip(&mut written) {
            written.push(subject.output().await);
        }
    }
    // The ends of lines are not exported.
    let [line, lines, calls] = LINES;
    let total = (line - 1) * lines * calls * CALLS[1];
    for (subject, written) in subjects.iter().zip(written) {
        let exported = written.last().unwrap().exported;
        println!(
            "{:<20} {:7.1} ms of the guest, {:7.1} ms of processor time, {:5.1} % exported",
            subject.name,
            median(
                written
                    .iter()
                    .map(|it| it.took.as_secs_f64() * 1e3)
                    .collect()
            ),
            median(
                written
                    .iter()
                    .map(|it| it.used.as_secs_f64() * 1e3)
                    .collect()
            ),
            exported as f64 * 100.0 / total as f64,
        );
    }
}

#[tokio::main]
async fn main() {
    hellos().await;
    outputs().await;
}
