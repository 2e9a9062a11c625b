//! What each part of a run costs, in process.
//!
//! ```sh
//! cargo bench --bench inside                          # every part, by criterion, and the ratio
//! cargo bench --bench inside -- run/                  # those whose names contain it
//! cargo bench --bench inside -- ratio --json FILE     # the ratio of a run to one by wasmtime alone
//! ```
//!
//! Absolute figures belong to the machine, ratios do not.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that is looked at while it runs, and fails by panicking"
)]

#[path = "inside/bare.rs"]
mod bare;
#[path = "inside/guests.rs"]
mod guests;
#[path = "inside/subject.rs"]
mod subject;

use std::fmt::Write;
use std::hint::black_box;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput};
use prost::Message;
use ringfence::bench::BenchDaemon;
use ringfence::model::request::Digest;
use tokio::runtime::Runtime;

use self::subject::{Compared, ROUNDS, Subject, median};

const MIB: usize = 1 << 20;
/// Host calls of one run.
const CALLS: u64 = 1000;

/// Calls `clock_time_get` as often as [`CALLS`] says.
fn calls() -> Bytes {
    let text = format!(
        "(module
            (import \"wasi_snapshot_preview1\" \"clock_time_get\"
                (func $now (param i32 i64 i32) (result i32)))
            (memory (export \"memory\") 1)
            (func (export \"_start\") (local i32)
                (loop $again
                    (drop (call $now (i32.const 1) (i64.const 0) (i32.const 8)))
                    (local.set 0 (i32.add (local.get 0) (i32.const 1)))
                    (br_if $again (i32.lt_u (local.get 0) (i32.const {CALLS}))))))"
    );
    wat::parse_str(text).unwrap().into()
}

/// Writes 1 MiB to stdout in pieces.
fn writer(piece: usize) -> Bytes {
    let text = format!(
        "(module
            (import \"wasi_snapshot_preview1\" \"fd_write\"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export \"memory\") 2)
            (data (i32.const 0) \"\\10\\00\\00\\00\")
            (func (export \"_start\") (local i32)
                (i32.store (i32.const 4) (i32.const {piece}))
                (loop $again
                    (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
                        (then unreachable))
                    (local.set 0 (i32.add (local.get 0) (i32.load (i32.const 8))))
                    (br_if $again (i32.lt_u (local.get 0) (i32.const {MIB}))))))"
    );
    wat::parse_str(text).unwrap().into()
}

/// Ordinary code: 100 functions are about 21 KB.
fn code(functions: u32) -> Bytes {
    let mut text = String::from("(module (memory 1) (func (export \"_start\"))");
    for function in 0..functions {
        text.push_str("(func (param i32 i32) (result i32) (local i32)");
        for i in 0..10 {
            write!(
                text,
                "(local.set 2 (i32.add (i32.load (i32.and (local.get {}) (i32.const 65532))) (i32.mul (local.get 2) (i32.const {}))))",
                i % 3,
                1_000_003 + function * 31 + i
            )
            .unwrap();
        }
        text.push_str("(local.get 2))");
    }
    text.push(')');
    wat::parse_str(text).unwrap().into()
}

/// A run: arm, instantiate, execute, drop; and host calls and output in it.
fn runs(criterion: &mut Criterion, runtime: &Runtime, daemon: &BenchDaemon) {
    let subject = |wasm| Subject::new(runtime, daemon, wasm);
    let mut group = criterion.benchmark_group("run");
    for (name, wasm) in [("hello", guests::hello()), ("noop", guests::noop())] {
        let subject = subject(wasm);
        group.bench_function(name, |bench| bench.iter(|| subject.run(daemon)));
        group.bench_function(format!("{name}-bare"), |bench| {
            bench.iter(|| subject.run_bare());
        });
    }
    let hello = subject(guests::hello());
    group.bench_function("hello-prepare", |bench| {
        bench.iter(|| daemon.prepare(&hello.module, &hello.spec));
    });
    // With the hop to the guest threads and back, registry and log.
    group.bench_function("hello-whole", |bench| {
        bench.iter(|| runtime.block_on(daemon.run(hello.spec.clone())));
    });
    group.finish();

    let mut group = criterion.benchmark_group("host-call");
    let subject = Subject::new(runtime, daemon, calls());
    group.throughput(Throughput::Elements(CALLS));
    group.bench_function("clock_time_get", |bench| {
        bench.iter(|| subject.run(daemon));
    });
    group.bench_function("clock_time_get-bare", |bench| {
        bench.iter(|| subject.run_bare());
    });
    group.finish();

    let mut group = criterion.benchmark_group("output-1MiB");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, piece) in [("4KiB", 4 << 10), ("64KiB", 64 << 10)] {
        let subject = Subject::new(runtime, daemon, writer(piece));
        assert_eq!(subject.run(daemon).len(), MIB);
        group.bench_function(name, |bench| bench.iter(|| subject.run(daemon)));
        group.bench_function(format!("{name}-bare"), |bench| {
            bench.iter(|| subject.run_bare());
        });
    }
    group.finish();
}

/// What stands around a run: messages, and a module's name.
fn messages(criterion: &mut Criterion, runtime: &Runtime, daemon: &BenchDaemon) {
    let module = runtime.block_on(daemon.load(guests::hello()));
    let request = guests::request(module.digest);
    let ended = runtime.block_on(daemon.run(daemon.decode(&request)));
    let mut group = criterion.benchmark_group("message");
    group.bench_function("decode", |bench| {
        bench.iter(|| daemon.decode(black_box(&request)));
    });
    group.bench_function("encode", |bench| {
        bench.iter(|| {
            // As large as tonic's own.
            let mut buffer = BytesMut::with_capacity(8 << 10);
            BenchDaemon::answer(&ended).encode(&mut buffer).unwrap();
            buffer
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("digest");
    let bytes = vec![7; MIB];
    group.throughput(Throughput::Bytes(MIB as u64));
    group.bench_function("1MiB", |bench| {
        bench.iter(|| Digest::of(black_box(&bytes)));
    });
    group.finish();
}

/// Compiling in process, on one thread, as a compile child does.
fn compiling(criterion: &mut Criterion, runtime: &Runtime, daemon: &BenchDaemon) {
    let noop = runtime.block_on(daemon.load(guests::noop()));
    let engine = noop.loaded.engine();
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    for functions in [24, 240, 2340] {
        let wasm = code(functions);
        group.throughput(Throughput::Bytes(wasm.len() as u64));
        group.bench_function(format!("{}KB", wasm.len() / 1000), |bench| {
            bench.iter(|| engine.precompile_module(&wasm).unwrap());
        });
    }
    group.finish();
}

/// Tells how a run compares to one by wasmtime alone, in one line of JSON, to a file too where one
/// is named.
fn ratio(runtime: &Runtime, daemon: &BenchDaemon, file: Option<&str>) {
    let subject = |wasm| Subject::new(runtime, daemon, wasm);
    let hello = Compared::measure(&subject(guests::hello()), daemon);
    let noop = Compared::measure(&subject(guests::noop()), daemon);
    let digits = |n: f64| (n * 1000.0).round() / 1000.0;
    let line = serde_json::json!({
        "ratio": digits(hello.ratio()),
        "noop_ratio": digits(noop.ratio()),
        "hello_us": digits(median(hello.ours)),
        "bare_hello_us": digits(median(hello.bare)),
        "noop_us": digits(median(noop.ours)),
        "bare_noop_us": digits(median(noop.bare)),
        "rounds": ROUNDS,
        "pool_mode": daemon.pool_mode(),
    });
    println!("{line}");
    if let Some(file) = file {
        std::fs::write(file, format!("{line}\n")).unwrap();
    }
}

fn main() {
    guests::build();
    let runtime = Runtime::new().unwrap();
    let _context = runtime.enter();
    let daemon = BenchDaemon::new(&[]);
    // `cargo bench` adds a flag of its own.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["ratio"] => return ratio(&runtime, &daemon, None),
        ["ratio", "--json", file] => return ratio(&runtime, &daemon, Some(file)),
        _ => {}
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    runs(&mut criterion, &runtime, &daemon);
    messages(&mut criterion, &runtime, &daemon);
    compiling(&mut criterion, &runtime, &daemon);
    criterion.final_summary();
    if args.is_empty() {
        ratio(&runtime, &daemon, None);
    }
}
