//! How many instructions the hot path of a run takes, by callgrind: about the same on a machine
//! that is busy.
//!
//! `.ci/counts` runs this, and compares it with `benches/counts.toml`.

#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]
#![expect(missing_docs, unused_qualifications, reason = "made by macros")]

#[path = "valgrind/auxv.rs"]
mod auxv;
#[path = "inside/bare.rs"]
mod bare;
#[path = "inside/guests.rs"]
mod guests;

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use gungraun::{library_benchmark, library_benchmark_group};
use prost::Message;
use ringfence::bench::{BenchDaemon, BenchModule};
use ringfence::model::outcome::{Outcome, RunReport};
use ringfence::model::request::{Digest, RunSpec};
use ringfence::run::RunHandle;
use tokio::runtime::Runtime;

use self::bare::Bare;

/// Runs before the one that counts: the first ones make what is made once.
const WARM: usize = 3;
/// Instances of the pool. Valgrind has room for a few only.
const SLOTS: &str = "4";

/// All that is made beforehand, for as long as the process lives: taking it down is not to count.
struct Ready {
    runtime: Runtime,
    daemon: BenchDaemon,
}

fn ready() -> &'static Ready {
    let runtime = Runtime::new().unwrap();
    let daemon = {
        let _context = runtime.enter();
        BenchDaemon::new(&[("admission.slots", SLOTS)])
    };
    Box::leak(Box::new(Ready { runtime, daemon }))
}

/// A run's future ends at the first poll: it waits for nobody.
fn finish<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("it waits"),
    }
}

/// A module that was run.
struct Subject {
    daemon: &'static BenchDaemon,
    module: BenchModule,
    spec: RunSpec,
}

impl Subject {
    fn new(wasm: Bytes) -> &'static Self {
        let Ready { runtime, daemon } = ready();
        let module = runtime.block_on(daemon.load(wasm));
        Box::leak(Box::new(Self {
            spec: daemon.decode(&guests::request(module.digest)),
            daemon,
            module,
        }))
    }

    fn run(&self) -> (RunReport, [Bytes; 2]) {
        finish(self.daemon.execute(&self.module, &self.spec))
    }
}

fn warm(wasm: Bytes) -> &'static Subject {
    let subject = Subject::new(wasm);
    for _ in 0..WARM {
        assert_eq!(subject.run().0.outcome, Outcome::Exited(0));
    }
    subject
}

fn warm_bare(wasm: Bytes) -> &'static (Bare, RunSpec) {
    let subject = Subject::new(wasm.clone());
    let bare = Bare::new(subject.module.loaded.engine(), &wasm);
    for _ in 0..WARM {
        finish(bare.execute(&subject.spec.args, &subject.spec.env));
    }
    Box::leak(Box::new((bare, subject.spec.clone())))
}

fn asked() -> (&'static BenchDaemon, Vec<u8>) {
    let subject = Subject::new(guests::noop());
    let request = guests::request(subject.module.digest);
    subject.daemon.decode(&request);
    (subject.daemon, request)
}

fn answered() -> &'static RunHandle {
    let Ready { runtime, daemon } = ready();
    let module = runtime.block_on(daemon.load(guests::hello()));
    let spec = daemon.decode(&guests::request(module.digest));
    Box::leak(Box::new(runtime.block_on(daemon.run(spec))))
}

#[library_benchmark]
#[bench::hello(args = (guests::hello()), setup = warm)]
#[bench::noop(args = (guests::noop()), setup = warm)]
fn run(subject: &'static Subject) -> (RunReport, [Bytes; 2]) {
    black_box(subject.run())
}

#[library_benchmark]
#[bench::hello(args = (guests::hello()), setup = warm_bare)]
#[bench::noop(args = (guests::noop()), setup = warm_bare)]
fn bare_run((bare, spec): &'static (Bare, RunSpec)) -> Bytes {
    black_box(finish(bare.execute(&spec.args, &spec.env)))
}

#[library_benchmark]
#[bench::request(args = (), setup = asked)]
fn decode((daemon, request): (&'static BenchDaemon, Vec<u8>)) -> RunSpec {
    black_box(daemon.decode(black_box(&request)))
}

#[library_benchmark]
#[bench::response(args = (), setup = answered)]
fn encode(ended: &'static RunHandle) -> BytesMut {
    // As large as tonic's own.
    let mut buffer = BytesMut::with_capacity(8 << 10);
    BenchDaemon::answer(black_box(ended))
        .encode(&mut buffer)
        .unwrap();
    black_box(buffer)
}

#[library_benchmark]
#[bench::hello(args = (), setup = guests::hello)]
fn digest(wasm: Bytes) -> Digest {
    black_box(Digest::of(black_box(&wasm)))
}

library_benchmark_group!(
    name = hot,
    benchmarks = [decode, run, bare_run, encode, digest]
);

/// What gungraun makes.
mod made {
    use gungraun::main;

    use super::{guests, hot};

    main!(setup = guests::build(), library_benchmark_groups = hot);

    pub(super) fn run() {
        main();
    }
}

fn main() {
    // Under valgrind it is hidden already, and valgrind has no such system call.
    if std::env::args().all(|it| it != "--gungraun-run") {
        auxv::hide();
    }
    made::run();
}
