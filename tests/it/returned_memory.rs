//! Memory that a burst took goes back to the system when it is over, however it was scattered among what stays.

use std::time::{Duration, Instant};

use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{RunSpec, RunStreamRequest};
use tokio::task::JoinSet;

use crate::harness::{SpecExt, by_digest, connect, load};
use crate::process::Served;

const AT_ONCE: usize = 32;
const MIB: u64 = 1 << 10;
/// What a burst takes at the least, without which there is nothing to see.
const BURST: u64 = 24 * MIB;
/// What may be left of it: pools and caches that grew with the number of runs at once.
const LEFT: u64 = 12 * MIB;
/// It is back within a second where the machine has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes for ever.
const FLOOD: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\00\10\00\00")
    (func (export "_start")
        (loop $again (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))) (br $again))))"#;

/// A client that is gone in the middle of a stream.
async fn vanish(addr: &str, spec: RunSpec) {
    let mut client = connect(addr).await;
    let request = RunStreamRequest { spec: Some(spec) };
    let mut stream = client.run_stream(request).await.unwrap().into_inner();
    while let Some(told) = stream.message().await.unwrap() {
        if let Some(Event::Stdout(_)) = told.event {
            return;
        }
    }
    panic!("it ended before it wrote");
}

/// So many of them, some at once.
async fn burst(addr: &str, spec: &RunSpec, clients: usize) {
    let mut all = JoinSet::new();
    for first in 0..AT_ONCE {
        let (addr, spec) = (addr.to_owned(), spec.clone());
        all.spawn(async move {
            for _ in (first..clients).step_by(AT_ONCE) {
                vanish(&addr, spec.clone()).await;
            }
        });
    }
    all.join_all().await;
}

fn resident(daemon: &Served) -> u64 {
    daemon.memory("RssAnon")
}

/// Waits until no more than `most` is resident.
async fn comes_down_to(daemon: &Served, most: u64) {
    let start = Instant::now();
    let mut look = tokio::time::interval(Duration::from_millis(20));
    while resident(daemon) > most {
        look.tick().await;
        assert!(
            start.elapsed() < PATIENCE,
            "{} KiB stay, more than {most}",
            resident(daemon)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_of_streams_is_given_back_when_their_clients_are_gone() {
    // What is remembered of runs that have ended is not what this is about.
    let mut daemon = Served::start(&["--set", "runs.history=1"]);
    let log = daemon.drain_log();
    let loaded = connect(&daemon.addr).await.load_module(load(FLOOD)).await;
    let digest = loaded.unwrap().into_inner().module.unwrap().digest;
    let spec = by_digest(&digest).timeout(Duration::from_secs(60));
    let before = resident(&daemon);
    burst(&daemon.addr, &spec, 6 * AT_ONCE).await;
    let most = resident(&daemon);
    assert!(most > before + BURST, "{most} after {before}");
    comes_down_to(&daemon, before + LEFT).await;
    daemon.end();
    log.join().unwrap();
}
