//! What modules cost: loading one that is new, loading one that is known, the first run after a restart.
//!
//! ```sh
//! cargo bench --bench modules                                  # loads
//! cargo bench --bench modules -- python.wasm -c 'print(1)'     # and a restart with an interpreter
//! ```
//!
//! Daemons are processes of their own, compiling in children and in process, asked in turn. Medians over all rounds;
//! absolute figures belong to the machine, ratios do not.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that is looked at while it runs, and fails by panicking"
)]

mod served;

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ringfence::api::proto::load_module_request::Source;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::{LoadModuleRequest, LoadModuleResponse, RunRequest, RunSpec};
use tonic::transport::{Channel, Endpoint};

use self::served::Served;

const ROUNDS: usize = 3;
const LOADS: u64 = 15;
const RESTARTS: usize = 5;
const WARM: usize = 5;

type Client = SandboxServiceClient<Channel>;

async fn client(served: &Served) -> Client {
    let channel = Endpoint::from_shared(format!("http://{}", served.1)).unwrap();
    SandboxServiceClient::new(channel.connect().await.unwrap())
        .max_encoding_message_size(usize::MAX)
}

/// About 50 KiB of ordinary code that no other number has.
fn module(number: u64) -> Vec<u8> {
    let mut text = String::from("(module (memory 1) (func (export \"_start\"))");
    for function in 0..300 {
        text.push_str("(func (param i32 i32) (result i32) (local i32)");
        for i in 0..10 {
            let n = number * 1_000_003 + function * 31 + i;
            write!(
                text,
                "(local.set 2 (i32.add (i32.load (i32.and (local.get {}) (i32.const 65532))) (i32.mul (local.get 2) (i32.const {}))))",
                i % 3,
                n & 0x3fff_ffff
            )
            .unwrap();
        }
        text.push_str("(local.get 2))");
    }
    text.push(')');
    wat::parse_str(text).unwrap()
}

async fn load(client: &mut Client, wasm: Vec<u8>) -> (Duration, LoadModuleResponse) {
    let request = LoadModuleRequest {
        source: Some(Source::Wasm(wasm.into())),
        ..LoadModuleRequest::default()
    };
    let start = Instant::now();
    let answer = client.load_module(request).await.unwrap().into_inner();
    (start.elapsed(), answer)
}

async fn run(client: &mut Client, digest: &str, args: &[String]) -> Duration {
    let request = RunRequest {
        spec: Some(RunSpec {
            module: Some(Module::Digest(digest.to_owned())),
            args: args.to_vec(),
            ..RunSpec::default()
        }),
    };
    let start = Instant::now();
    let answer = client.run(request).await.unwrap().into_inner();
    assert_eq!(answer.result.unwrap().exit_code, Some(0));
    start.elapsed()
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

async fn loads() {
    let (child, here) = (
        Served::start(&[]),
        Served::start(&["compile.mode=in-process".to_owned()]),
    );
    let mut clients = [client(&child).await, client(&here).await];
    let (mut cold, mut compiled, mut known) = ([vec![], vec![]], [vec![], vec![]], vec![]);
    let size = module(0).len();
    for number in 0..ROUNDS as u64 * LOADS {
        for (i, client) in clients.iter_mut().enumerate() {
            let (took, answer) = load(client, module(number)).await;
            assert!(!answer.cached);
            cold[i].push(took);
            compiled[i].push(answer.compile_duration.unwrap().try_into().unwrap());
        }
        known.push(load(&mut clients[0], module(number)).await.0);
    }
    let [child, here] = cold.each_mut().map(|times| median(times));
    let [in_child, in_process] = compiled.each_mut().map(|times| median(times));
    println!("LoadModule of {size} new bytes: {child:.1} ms in a child, {here:.1} ms in process");
    println!(
        "  of that compiling: {in_child:.1} ms, {in_process:.1} ms; ratio {:.2}",
        in_child / in_process
    );
    println!("LoadModule of known bytes: {:.2} ms", median(&mut known));
}

async fn restarts(path: &Path, args: &[String]) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let set = [
        format!("store.url=file://{}", at("store")),
        format!("artifacts.dir={}", at("code")),
        format!("artifacts.key_file={}", at("key")),
    ];
    let wasm = std::fs::read(path).unwrap();
    let size = wasm.len();
    let digest = {
        let served = Served::start(&set);
        let (took, answer) = load(&mut client(&served).await, wasm).await;
        println!(
            "LoadModule of {size} new bytes: {:.2} s",
            took.as_secs_f64()
        );
        // Its code is written behind the answer: the daemon's own first module, and this one.
        while std::fs::read_dir(at("code")).unwrap().count() < 3 {
            tokio::task::yield_now().await;
        }
        answer.module.unwrap().digest
    };
    let (mut first, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS * RESTARTS {
        let served = Served::start(&set);
        let mut client = client(&served).await;
        first.push(run(&mut client, &digest, args).await);
        for _ in 0..WARM {
            warm.push(run(&mut client, &digest, args).await);
        }
    }
    let (first, warm) = (median(&mut first), median(&mut warm));
    println!(
        "first run after a restart: {first:.1} ms; warm: {warm:.1} ms; difference {:.1} ms",
        first - warm
    );
}

#[tokio::main]
async fn main() {
    // `cargo bench` adds a flag of its own.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    loads().await;
    if let Some((path, rest)) = args.split_first() {
        let args = [&["guest".to_owned()], rest].concat();
        restarts(Path::new(path), &args).await;
    }
}
