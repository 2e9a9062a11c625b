//! Nothing that a guest writes is lost: whatever the size, the stream, the interface, the way in
//! which the guest writes and the way in which its caller reads, what was written is what arrives,
//! or the outcome says what is missing.

use std::time::Duration;

use ringfence::api::proto::{Outcome, OutputPolicy, RunResult, RunSpec};

use crate::guests::{calls, calls_component};
use crate::harness::{Daemon, SpecExt, Story, by_digest, read, until_idle};

const MIB: usize = 1 << 20;

/// Writes as many zeroes as its argument says to standard output, or error, by one call, and looks
/// at nothing.
const UNSTABLE: &str = r#"(module
  (import "wasi_unstable" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1100)
  (func (export "stdout") (param i32) (call $go (i32.const 1) (local.get 0)))
  (func (export "stderr") (param i32) (call $go (i32.const 2) (local.get 0)))
  (func $go (param $fd i32) (param $len i32)
    (i32.store (i32.const 0) (i32.const 65536))
    (i32.store (i32.const 4) (local.get $len))
    (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Abi {
    Preview1,
    Unstable,
    Component,
}

#[derive(Clone, Copy, Debug)]
struct Case {
    abi: Abi,
    stderr: bool,
    how: &'static str,
    size: usize,
    /// Read as it goes, and how slowly, or taken whole.
    streamed: Option<Reader>,
}

#[derive(Clone, Copy, Debug)]
enum Reader {
    Quick,
    /// Asks the daemon something else before it takes the next event.
    Slow,
}

struct Guests {
    preview1: String,
    unstable: String,
    component: String,
}

impl Guests {
    async fn load(daemon: &Daemon) -> Self {
        Self {
            preview1: daemon.loaded(calls()).await,
            unstable: daemon.loaded(UNSTABLE).await,
            component: daemon.loaded(calls_component()).await,
        }
    }

    fn run(&self, case: &Case) -> RunSpec {
        let stream = if case.stderr { "stderr" } else { "stdout" };
        let size = case.size.to_string();
        let spec = match case.abi {
            Abi::Preview1 => by_digest(&self.preview1),
            Abi::Component => by_digest(&self.component),
            Abi::Unstable => return by_digest(&self.unstable).entry(stream).args(&[&size]),
        };
        spec.args(&["calls", "print", stream, case.how, &size])
    }
}

/// What arrived of both streams, and how the run ended.
struct Arrived {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    result: RunResult,
}

async fn arrived(daemon: &Daemon, run: RunSpec, streamed: Option<Reader>) -> Arrived {
    let Some(reader) = streamed else {
        let ran = daemon.ran(run).await;
        return Arrived {
            stdout: ran.stdout.into(),
            stderr: ran.stderr.into(),
            result: ran.result,
        };
    };
    let mut stream = daemon.stream(run).await.expect("it is not refused");
    let story = match reader {
        Reader::Quick => read(stream).await,
        Reader::Slow => {
            let mut story = Story::default();
            while let Some(event) = stream.message().await.expect("the stream does not break") {
                story.add(event);
                daemon.labelled("none", "none").await;
            }
            story
        }
    };
    Arrived {
        stdout: story.stdout,
        stderr: story.stderr,
        result: story.exit.expect("an end"),
    }
}

/// The first byte that is not what the case's guest wrote there.
fn wrong(case: &Case, bytes: &[u8]) -> Option<usize> {
    let expected = |i: usize| match case.abi {
        Abi::Unstable => 0,
        Abi::Preview1 | Abi::Component => u8::try_from(i % 251).expect("less than 251"),
    };
    bytes
        .iter()
        .enumerate()
        .position(|(i, byte)| *byte != expected(i))
}

/// Checks one case without a limit that it meets.
async fn arrives(daemon: &Daemon, guests: &Guests, case: &Case) {
    let run = guests.run(case).resources(|r| {
        r.output_limit = Some(96 << 20);
    });
    let arrived = arrived(daemon, run, case.streamed).await;
    let [own, other] = match case.stderr {
        true => [&arrived.stderr, &arrived.stdout],
        false => [&arrived.stdout, &arrived.stderr],
    };
    assert_eq!(
        arrived.result.outcome(),
        Outcome::Exited,
        "{case:?} {:?}",
        arrived.result
    );
    assert_eq!(own.len(), case.size, "{case:?}");
    assert_eq!(wrong(case, own), None, "{case:?}");
    assert!(other.is_empty(), "{case:?}");
    assert!(
        !arrived.result.stdout_truncated && !arrived.result.stderr_truncated,
        "{case:?}"
    );
}

async fn daemon() -> Daemon {
    Daemon::with(&[
        ("policy.max_output", "96MiB"),
        ("defaults.memory_pages", "4096"),
    ])
    .await
}

/// A linear congruential generator: the same cases each time.
struct Seed(u64);

impl Seed {
    fn next(&mut self, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).expect("31 bits") % most
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.next(all.len())]
    }
}

fn hows(abi: Abi) -> &'static [&'static str] {
    match abi {
        Abi::Preview1 => &["once", "vector", "loop"],
        Abi::Unstable => &["once"],
        Abi::Component => &["once", "flush", "pieces", "loop"],
    }
}

const ABIS: [Abi; 3] = [Abi::Preview1, Abi::Unstable, Abi::Component];
const READERS: [Option<Reader>; 3] = [None, Some(Reader::Quick), Some(Reader::Slow)];

#[tokio::test]
async fn what_is_written_arrives_at_every_edge() {
    let daemon = daemon().await;
    let guests = Guests::load(&daemon).await;
    let edges = [
        1,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        65_537,
        131_072,
        300_000,
        MIB,
        MIB + 1,
    ];
    let mut seed = Seed(1);
    for size in edges {
        for abi in ABIS {
            for how in hows(abi) {
                let case = Case {
                    abi,
                    stderr: seed.next(2) == 1,
                    how,
                    size,
                    streamed: seed.of(&READERS),
                };
                arrives(&daemon, &guests, &case).await;
            }
        }
    }
}

#[tokio::test]
async fn what_is_written_arrives_whatever_the_size() {
    let daemon = daemon().await;
    let guests = Guests::load(&daemon).await;
    let mut seed = Seed(2);
    for _ in 0..60 {
        // As many small sizes as large ones.
        let bits = seed.next(22);
        let abi = seed.of(&ABIS);
        let case = Case {
            abi,
            stderr: seed.next(2) == 1,
            how: seed.of(hows(abi)),
            size: 1 + seed.next(1 << bits),
            streamed: seed.of(&READERS),
        };
        arrives(&daemon, &guests, &case).await;
    }
}

#[tokio::test]
async fn the_largest_writes_arrive() {
    let daemon = daemon().await;
    let guests = Guests::load(&daemon).await;
    for (abi, how) in [
        (Abi::Preview1, "once"),
        (Abi::Unstable, "once"),
        (Abi::Component, "once"),
        (Abi::Component, "flush"),
    ] {
        for (stderr, size, streamed) in [
            (false, 20 * MIB, None),
            (true, 20 * MIB, Some(Reader::Quick)),
            (false, 64 * MIB, Some(Reader::Quick)),
        ] {
            let case = Case {
                abi,
                stderr,
                how,
                size,
                streamed,
            };
            arrives(&daemon, &guests, &case).await;
        }
    }
    let whole = Case {
        abi: Abi::Preview1,
        stderr: true,
        how: "vector",
        size: 64 * MIB,
        streamed: None,
    };
    arrives(&daemon, &guests, &whole).await;
}

#[tokio::test]
async fn at_the_output_limit_the_outcome_says_what_is_missing() {
    let daemon = daemon().await;
    let guests = Guests::load(&daemon).await;
    let mut seed = Seed(3);
    for limit in [1_usize, 65_536, 300_000] {
        for size in [limit - 1, limit, limit + 1, 20 * MIB] {
            for policy in [OutputPolicy::Stop, OutputPolicy::Truncate] {
                for abi in ABIS {
                    let case = Case {
                        abi,
                        stderr: seed.next(2) == 1,
                        how: seed.of(hows(abi)),
                        size,
                        streamed: seed.of(&READERS),
                    };
                    at_limit(&daemon, &guests, &case, limit, policy).await;
                }
            }
        }
    }
}

async fn at_limit(
    daemon: &Daemon,
    guests: &Guests,
    case: &Case,
    limit: usize,
    policy: OutputPolicy,
) {
    let told = format!("{case:?} {limit} {policy:?}");
    let run = guests.run(case).resources(|r| {
        r.output_limit = Some(limit as u64);
        r.output_policy = policy.into();
    });
    let Arrived {
        stdout,
        stderr,
        result,
    } = arrived(daemon, run, case.streamed).await;
    let (own, truncated, counted) = match case.stderr {
        true => (stderr, result.stderr_truncated, result.stderr_bytes),
        false => (stdout, result.stdout_truncated, result.stdout_bytes),
    };
    let over = case.size > limit;
    assert_eq!(own.len(), case.size.min(limit), "{told}");
    assert_eq!(wrong(case, &own), None, "{told}");
    assert_eq!(truncated, over, "{told}");
    if over && policy == OutputPolicy::Stop {
        assert_eq!(result.outcome(), Outcome::OutputExceeded, "{told}");
    } else {
        assert_eq!(result.outcome(), Outcome::Exited, "{told}");
        assert_eq!(counted, case.size as u64, "{told}");
    }
}

#[tokio::test]
async fn a_large_write_ends_with_its_run() {
    let daemon = Daemon::start().await;
    let guests = Guests::load(&daemon).await;
    for abi in ABIS {
        let case = Case {
            abi,
            stderr: false,
            how: "once",
            size: 60 * MIB,
            streamed: None,
        };
        // Nobody reads: it is in the middle of its one write when its time is over.
        let run = guests
            .run(&case)
            .timeout(Duration::from_millis(300))
            .resources(|r| r.memory_pages = Some(2048));
        let stream = daemon.stream(run).await.expect("it is not refused");
        until_idle(&daemon).await;
        let story = read(stream).await;
        let exit = story.exit.expect("an end");
        assert_eq!(exit.outcome(), Outcome::TimedOut, "{case:?}");
        assert_eq!(exit.stdout_bytes, story.stdout.len() as u64, "{case:?}");
        assert!(story.stdout.len() < case.size, "{case:?}");
    }
}
