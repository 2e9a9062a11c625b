//! What it costs that runs outlive their connection: viewers, cancelling, live input, replay.
//!
//! ```sh
//! cargo bench --bench runs
//! ```
//!
//! The daemon is a process of its own; what is compared is asked in turn. Medians over all rounds; absolute figures
//! belong to the machine, ratios do not.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    dead_code,
    reason = "a program that is looked at while it runs, and fails by panicking"
)]

mod served;

use std::time::{Duration, Instant};

use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::run_info::End;
use ringfence::api::proto::run_service_client::RunServiceClient;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    AttachRunRequest, CancelRunRequest, GetRunRequest, InteractRequest, RunSpec, RunStreamRequest,
    StreamEvent,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use self::served::Served;

const ROUNDS: usize = 9;
const VIEWERS: usize = 50;

/// Writes `lines` lines of 64 bytes, one call each.
fn writer(lines: u32) -> Vec<u8> {
    let line = "x".repeat(63);
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "\10\00\00\00\40\00\00\00")
        (data (i32.const 16) "{line}\n")
        (func (export "_start") (local $i i32)
          (loop $again
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const {lines}))))))"#
    );
    wat::parse_str(text).unwrap()
}

/// Reads and writes back, a piece at a time.
const ECHO: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start")
      (loop $again
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 4096))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.eqz (i32.load (i32.const 8))) (then (return)))
        (i32.store (i32.const 4) (i32.load (i32.const 8)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
        (br $again))))"#;

const SPIN: &str = r#"(module (func (export "_start") (loop $l (br $l))))"#;

struct Clients {
    sandbox: SandboxServiceClient<Channel>,
    runs: RunServiceClient<Channel>,
}

impl Clients {
    async fn of(served: &Served) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", served.1)).unwrap();
        let channel = endpoint.connect().await.unwrap();
        Self {
            sandbox: SandboxServiceClient::new(channel.clone()),
            runs: RunServiceClient::new(channel),
        }
    }

    /// Starts a detached run, and leaves it.
    async fn leave(&mut self, wasm: &[u8]) -> String {
        let spec = RunSpec {
            detach: true,
            ..spec(wasm)
        };
        let request = RunStreamRequest { spec: Some(spec) };
        let answer = self.sandbox.run_stream(request).await.unwrap();
        answer.into_inner().message().await.unwrap().unwrap().run_id
    }

    async fn attach(&mut self, run_id: &str) -> Streaming<StreamEvent> {
        let request = AttachRunRequest {
            run_id: run_id.to_owned(),
            from_seq: 0,
        };
        self.runs.attach_run(request).await.unwrap().into_inner()
    }
}

fn spec(wasm: &[u8]) -> RunSpec {
    RunSpec {
        module: Some(Module::Wasm(wasm.to_vec().into())),
        ..RunSpec::default()
    }
}

async fn to_the_end(mut stream: Streaming<StreamEvent>) -> u64 {
    let mut lost = 0;
    while let Some(event) = stream.message().await.unwrap() {
        if let Some(Event::Lost(it)) = event.event {
            lost += it.count;
        }
    }
    lost
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

fn told(all: Vec<Duration>) -> String {
    format!("{:.2} ms", median(all).as_secs_f64() * 1e3)
}

/// How long a guest takes to write 400,000 lines, with so many viewers, one of whom never reads.
async fn written_with(
    clients: &mut Clients,
    viewers: usize,
    module: &[u8],
) -> (Duration, Duration) {
    let run_id = clients.leave(module).await;
    let mut reading = JoinSet::new();
    let mut frozen = None;
    for i in 0..viewers {
        let stream = clients.attach(&run_id).await;
        if i == 0 {
            frozen = Some(stream);
        } else {
            reading.spawn(to_the_end(stream));
        }
    }
    to_the_end(clients.attach(&run_id).await).await;
    while reading.join_next().await.is_some() {}
    drop(frozen);
    let request = GetRunRequest { run_id };
    let answer = clients.runs.get_run(request).await.unwrap().into_inner();
    let Some(End::Result(result)) = answer.run.unwrap().end else {
        panic!("it ran");
    };
    let time = |told: Option<prost_types::Duration>| Duration::try_from(told.unwrap()).unwrap();
    (time(result.duration), time(result.cpu_time))
}

async fn viewers(clients: &mut Clients) {
    let module = writer(400_000);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    let (mut alone_cpu, mut watched_cpu) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (wall, cpu) = written_with(clients, 0, &module).await;
        alone.push(wall);
        alone_cpu.push(cpu);
        let (wall, cpu) = written_with(clients, VIEWERS, &module).await;
        watched.push(wall);
        watched_cpu.push(cpu);
    }
    let ratio = median(watched_cpu.clone()).as_secs_f64() / median(alone_cpu.clone()).as_secs_f64();
    println!(
        "a guest that writes 400,000 lines: its processor time {} with one viewer, {} with {VIEWERS} more, one of them frozen (ratio {ratio:.2}); wall {}, {}",
        told(alone_cpu),
        told(watched_cpu),
        told(alone),
        told(watched),
    );
}

async fn cancelling(clients: &mut Clients) {
    let module = wat::parse_str(SPIN).unwrap();
    let mut took = Vec::new();
    for _ in 0..ROUNDS * 5 {
        let run_id = clients.leave(&module).await;
        let start = Instant::now();
        let request = CancelRunRequest { run_id };
        let answer = clients.runs.cancel_run(request).await.unwrap();
        took.push(start.elapsed());
        assert!(answer.into_inner().cancelled);
    }
    println!(
        "CancelRun of a spinner, answered when it is gone: {}",
        told(took)
    );
}

async fn talking(clients: &mut Clients) {
    let module = wat::parse_str(ECHO).unwrap();
    let (say, said) = mpsc::channel(1);
    let message = |frame| InteractRequest { frame: Some(frame) };
    let start = Frame::Start(Box::new(spec(&module)));
    say.send(message(start)).await.unwrap();
    let answer = clients.runs.interact(ReceiverStream::new(said)).await;
    let mut hear = answer.unwrap().into_inner();
    hear.message().await.unwrap().unwrap();
    let mut took = Vec::new();
    for _ in 0..ROUNDS * 200 {
        let start = Instant::now();
        let line = Frame::Stdin(bytes::Bytes::from_static(b"a line\n"));
        say.send(message(line)).await.unwrap();
        hear.message().await.unwrap().unwrap();
        took.push(start.elapsed());
    }
    println!("Interact, a line there and back: {}", told(took));
}

async fn replaying(clients: &mut Clients) {
    // A little less than a log holds.
    let run_id = clients.leave(&writer(14_000)).await;
    to_the_end(clients.attach(&run_id).await).await;
    let mut took = Vec::new();
    for _ in 0..ROUNDS * 5 {
        let start = Instant::now();
        let lost = to_the_end(clients.attach(&run_id).await).await;
        took.push(start.elapsed());
        assert_eq!(lost, 0);
    }
    println!("AttachRun, 0.9 MB replayed: {}", told(took));
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let served = Served::start(&[]);
    runtime.block_on(async {
        let mut clients = Clients::of(&served).await;
        viewers(&mut clients).await;
        cancelling(&mut clients).await;
        talking(&mut clients).await;
        replaying(&mut clients).await;
    });
}
