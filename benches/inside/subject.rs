//! A module that is run both by the daemon's own code and by wasmtime alone, and how the two
//! compare.

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::Bytes;
use ringfence::bench::{BenchDaemon, BenchModule};
use ringfence::model::outcome::Outcome;
use ringfence::model::request::RunSpec;
use tokio::runtime::Runtime;

use super::bare::Bare;
use super::guests;

/// Rounds of the ratio, blocks of runs in each, runs in each of those. Ours and the bare ones take
/// turns block by block.
pub(crate) const ROUNDS: usize = 9;
const BLOCKS: usize = 40;
const RUNS: u32 = 50;

/// Polls a future to its end on this thread. Those of a run that waits for nobody end at the first
/// poll.
fn finish<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}

/// A module with what runs it, in the daemon and without.
pub(crate) struct Subject {
    pub module: BenchModule,
    pub spec: RunSpec,
    bare: Bare,
}

impl Subject {
    pub(crate) fn new(runtime: &Runtime, daemon: &BenchDaemon, wasm: Bytes) -> Self {
        let bytes = wasm.clone();
        let module = runtime.block_on(daemon.load(wasm));
        Self {
            spec: daemon.decode(&guests::request(module.digest)),
            bare: Bare::new(module.loaded.engine(), &bytes),
            module,
        }
    }

    pub(crate) fn run(&self, daemon: &BenchDaemon) -> Bytes {
        let (ended, [stdout, _]) = finish(daemon.execute(&self.module, &self.spec));
        assert_eq!(ended.outcome, Outcome::Exited(0));
        stdout
    }

    pub(crate) fn run_bare(&self) -> Bytes {
        finish(self.bare.execute(&self.spec.args, &self.spec.env))
    }
}

/// What a run takes in each round, in microseconds: ours, and one by wasmtime alone.
pub(crate) struct Compared {
    pub ours: Vec<f64>,
    pub bare: Vec<f64>,
}

impl Compared {
    /// Measures both in turn.
    pub(crate) fn measure(subject: &Subject, daemon: &BenchDaemon) -> Self {
        let mut all = Self {
            ours: Vec::new(),
            bare: Vec::new(),
        };
        for round in 0..=ROUNDS {
            let (mut ours, mut bare) = (vec![], vec![]);
            for _ in 0..BLOCKS {
                ours.push(micros_each(|| subject.run(daemon)));
                bare.push(micros_each(|| subject.run_bare()));
            }
            // The first one only warms up.
            if round > 0 {
                all.ours.push(median(ours));
                all.bare.push(median(bare));
            }
        }
        all
    }

    /// How many times as long ours takes: the median over the rounds.
    pub(crate) fn ratio(&self) -> f64 {
        let rounds = self.ours.iter().zip(&self.bare);
        median(rounds.map(|(ours, bare)| ours / bare).collect())
    }
}

fn micros_each(run: impl Fn() -> Bytes) -> f64 {
    let start = Instant::now();
    for _ in 0..RUNS {
        black_box(run());
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(RUNS)
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
