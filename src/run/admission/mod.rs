//! Who may do what now: run, compile, send a module, be taken to its start without its caller. Each is a [`gate`], with
//! its own numbers, but for compiling, where it is time that counts ([`compile_gate`]); all of them are in Health.

mod amount;
mod compile_gate;
mod compile_schedule;
mod gate;
mod load;
mod memory;
mod quota;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use self::amount::Amount;
use self::compile_gate::{CompileGate, CompilePass};
use self::compile_schedule::ScheduleRules;
use self::gate::{Gate, Turned};
use crate::refusal::{Reason, Refusal};
use crate::sandbox::CompileLane;

pub use self::gate::Pass;
pub use self::load::Load;
pub use self::memory::share_of_memory;
pub use self::quota::Quota;
pub(super) use self::quota::{Account, CompileCharge, Counted};

/// What there is for all tenants.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// Runs at once.
    pub slots: u32,
    /// Bytes that they may reserve.
    pub memory: u64,
    /// Runs that may wait.
    pub queue: u32,
    /// How long one may wait.
    pub max_wait: Duration,
    /// Modules that are compiled at once.
    pub compiles: u32,
    /// Modules that may wait to be compiled.
    pub compile_queue: u32,
    /// How long one may wait.
    pub compile_wait: Duration,
    /// How long one goes on at the least before it is stopped for another tenant's.
    pub compile_quantum: Duration,
    /// Compilations that may be stopped at once.
    pub compiles_stopped: u32,
    /// Modules that may arrive at once, in pieces or from a registry.
    pub arrivals: u32,
}

/// Which gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Run,
    Compile,
    Arrival,
    Unattended,
}

/// The gates.
#[derive(Debug)]
pub(super) struct Admission {
    runs: Arc<Gate>,
    compiles: Arc<CompileGate>,
    /// The one thread that compiles small modules only.
    small_compiles: Arc<CompileGate>,
    arrivals: Arc<Gate>,
    /// Runs that are taken to their start without their callers: as many as may run or wait for a slot.
    unattended: Arc<Gate>,
    max_wait: Duration,
    compile_wait: Duration,
}

/// What waits, and what is held.
#[derive(Clone, Copy, Debug)]
pub struct Loads {
    /// Runs.
    pub runs: Load,
    /// Compilations.
    pub compiles: Load,
    /// Modules that arrive.
    pub arrivals: Load,
}

impl Admission {
    /// For tenants of `weights`, the last of which is the daemon itself.
    pub(super) fn new(capacity: &Capacity, weights: &[u32]) -> Self {
        let places = |places: u32, queue| Gate::new(Amount::places(places), queue, weights);
        let slots = Amount {
            places: capacity.slots,
            bytes: capacity.memory,
        };
        let compiles = |places, max_stopped| {
            let rules = ScheduleRules {
                places,
                queue: capacity.compile_queue,
                max_stopped,
                quantum: capacity.compile_quantum,
            };
            CompileGate::new(rules, weights)
        };
        Self {
            runs: Gate::new(slots, capacity.queue, weights),
            compiles: compiles(capacity.compiles, capacity.compiles_stopped),
            // A second at the most: stopping one would not be worth it.
            small_compiles: compiles(1, 0),
            arrivals: places(capacity.arrivals, 0),
            unattended: places(capacity.slots.saturating_add(capacity.queue), 0),
            max_wait: capacity.max_wait,
            compile_wait: capacity.compile_wait,
        }
    }

    /// A slot with `bytes` for a run of the tenant `line`, at once or after waiting, of which `waits` is told; the caller
    /// has until `until`.
    ///
    /// # Errors
    /// `CAPACITY_EXCEEDED`, `QUEUE_FULL`, `WAIT_EXPIRED`, `NOT_STARTED`, `SHUTTING_DOWN`.
    pub(super) async fn run(
        &self,
        line: usize,
        bytes: u64,
        until: Option<Instant>,
        waits: impl FnOnce(),
    ) -> Result<Pass, Refusal> {
        let patience = until.map(|until| until.saturating_duration_since(Instant::now()));
        let wait = patience.map_or(self.max_wait, |patience| patience.min(self.max_wait));
        let entered = self.runs.enter(line, Amount::one(bytes), wait, waits).await;
        entered.map_err(|turned| {
            let gives_up = patience.is_some_and(|it| it <= self.max_wait);
            if turned == Turned::Expired && gives_up {
                return not_started();
            }
            self.refusal(Kind::Run, bytes, turned)
        })
    }

    /// A compile thread for the tenant `line`, and the lane that it is of: a small module waits for either lane.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `WAIT_EXPIRED`, `SHUTTING_DOWN`.
    pub(super) async fn compile(
        &self,
        line: usize,
        lane: CompileLane,
    ) -> Result<(CompileLane, CompilePass), Refusal> {
        let enter = |gate| CompileGate::enter(gate, line, self.compile_wait);
        let large = pin!(enter(&self.compiles));
        let entered = match lane {
            CompileLane::Large => (CompileLane::Large, large.await),
            CompileLane::Small => match select(pin!(enter(&self.small_compiles)), large).await {
                // Where one line is full, the other may not be.
                Either::Left((Err(_), large)) => (CompileLane::Large, large.await),
                Either::Right((Err(_), small)) => (CompileLane::Small, small.await),
                Either::Left((pass, _)) => (CompileLane::Small, pass),
                Either::Right((pass, _)) => (CompileLane::Large, pass),
            },
        };
        let (lane, entered) = entered;
        match entered {
            Ok(pass) => Ok((lane, pass)),
            Err(turned) => Err(self.refusal(Kind::Compile, 0, turned)),
        }
    }

    /// A place for a module that arrives.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `SHUTTING_DOWN`.
    pub(super) fn arrive(&self, line: usize) -> Result<Pass, Refusal> {
        let entered = self.arrivals.try_enter(line, Amount::one(0));
        entered.map_err(|turned| self.refusal(Kind::Arrival, 0, turned))
    }

    /// A place for a run that goes on to its start without its caller.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `SHUTTING_DOWN`.
    pub(super) fn unattended(&self, line: usize) -> Result<Pass, Refusal> {
        let entered = self.unattended.try_enter(line, Amount::one(0));
        entered.map_err(|turned| self.refusal(Kind::Unattended, 0, turned))
    }

    /// Admits no run any more; those that wait are refused at once. What compiles goes on to its end.
    pub(super) fn close(&self) {
        for gate in [&self.runs, &self.arrivals, &self.unattended] {
            gate.close();
        }
    }

    /// Whether no run is admitted any more.
    pub(super) fn is_closed(&self) -> bool {
        self.runs.is_closed()
    }

    /// What waits, and what is held.
    pub(super) fn loads(&self) -> Loads {
        Loads {
            runs: self.runs.load(),
            compiles: self.compiles.load().and(self.small_compiles.load()),
            arrivals: self.arrivals.load(),
        }
    }

    fn refusal(&self, kind: Kind, asked: u64, turned: Turned) -> Refusal {
        let (retry, full, limit, most, wait, wait_limit) = match kind {
            Kind::Run => (
                self.runs.retry_after(),
                "all slots, or all memory for runs, are taken and too many runs wait already",
                "admission.queue",
                self.runs.queue(),
                self.max_wait,
                "admission.max_wait",
            ),
            Kind::Compile => (
                self.compiles.retry_after(),
                "too many modules wait to be compiled",
                "compile.queue",
                self.compiles.queue(),
                self.compile_wait,
                "compile.max_wait",
            ),
            Kind::Arrival => (
                self.arrivals.retry_after(),
                "too many modules are arriving",
                "store.uploads",
                self.arrivals.load().places,
                Duration::ZERO,
                "store.uploads",
            ),
            Kind::Unattended => (
                self.unattended.retry_after(),
                "too many runs that go on without their callers wait",
                "admission.queue",
                self.runs.queue(),
                Duration::ZERO,
                "admission.queue",
            ),
        };
        match turned {
            Turned::TooMuch(most) => too_much(asked, most.bytes),
            Turned::Full => {
                let message = format!("{full}; {most} may ({limit})");
                Refusal::new(Reason::QueueFull, message)
                    .with("allowed", most)
                    .with("limit", limit)
                    .retry_after(retry)
            }
            Turned::Expired => {
                let wait = humantime::format_duration(wait);
                let message = format!("no place came free within {wait} ({wait_limit})");
                Refusal::new(Reason::WaitExpired, message)
                    .with("allowed", wait)
                    .with("limit", wait_limit)
                    .retry_after(retry)
            }
            Turned::Closed => shutting_down(),
        }
    }
}

/// A run that could never be admitted.
fn too_much(asked: u64, allowed: u64) -> Refusal {
    let message = format!(
        "the run would reserve {asked} bytes of memory, stack and output buffers (spec.resources.memory_pages, stack_size, output_limit); at most {allowed} can ever be had here (admission.memory, or memory_share of what this host has)"
    );
    Refusal::new(Reason::CapacityExceeded, message)
        .at("spec.resources")
        .with("asked", asked)
        .with("allowed", allowed)
}

/// The caller's deadline passed before its run could start.
pub fn not_started() -> Refusal {
    Refusal::new(
        Reason::NotStarted,
        "the caller's deadline passed before what it asked for could be done",
    )
}

/// The daemon is ending.
pub fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the daemon is shutting down")
        .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Of one compile thread, for two tenants and the daemon itself.
    fn admission(compile_queue: u32) -> Admission {
        let capacity = Capacity {
            slots: 1,
            memory: 1,
            queue: 1,
            max_wait: Duration::ZERO,
            compiles: 1,
            compile_queue,
            compile_wait: Duration::from_secs(600),
            compile_quantum: Duration::from_secs(1),
            compiles_stopped: 1,
            arrivals: 1,
        };
        Admission::new(&capacity, &[1, 1, 1])
    }

    /// Both lanes are taken by the first tenant.
    async fn taken(admission: &Admission) -> [CompilePass; 2] {
        let mut passes = Vec::new();
        for asked in [CompileLane::Small, CompileLane::Large] {
            let (lane, pass) = admission.compile(0, asked).await.unwrap();
            assert_eq!(lane, asked);
            passes.push(pass);
        }
        passes.try_into().unwrap()
    }

    /// Bytes and places that are held.
    fn held(gate: &Gate) -> (u32, u64) {
        let Load { held, bytes, .. } = gate.load();
        (held, bytes)
    }

    #[tokio::test]
    async fn what_an_answer_keeps_of_a_run_holds_bytes_and_no_slot() {
        let capacity = Amount {
            places: 1,
            bytes: 100,
        };
        let gate = Gate::new(capacity, 8, &[1, 1]);
        let mut run = gate.try_enter(0, Amount::one(80)).unwrap();
        let mut answer = run.split(30);
        assert_eq!(
            (held(&gate), run.bytes(), answer.bytes()),
            ((1, 80), 50, 30)
        );
        drop(run);
        assert_eq!(held(&gate), (0, 30));
        // The next run finds the slot, and as many bytes as the answer leaves.
        let enter = |bytes| gate.try_enter(0, Amount::one(bytes));
        assert_eq!(enter(71).unwrap_err(), Turned::Full);
        drop(enter(70).unwrap());
        // One that waits goes as soon as enough of the answer was taken.
        let patience = Duration::from_secs(600);
        let mut waits = pin!(gate.enter(0, Amount::one(90), patience, || ()));
        assert!(waits.as_mut().now_or_never().is_none());
        answer.release(19);
        assert!(waits.as_mut().now_or_never().is_none());
        answer.release(1);
        let run = waits.now_or_never().unwrap().unwrap();
        assert_eq!(held(&gate), (1, 100));
        // No more comes back than is there.
        answer.release(11);
        assert_eq!((held(&gate), answer.bytes()), ((1, 90), 0));
        drop(answer);
        drop(run);
        assert_eq!(held(&gate), (0, 0));
    }

    #[test]
    fn no_more_is_split_off_than_there_is() {
        let gate = Gate::new(
            Amount {
                places: 2,
                bytes: 10,
            },
            0,
            &[1, 1],
        );
        let mut run = gate.try_enter(0, Amount::one(4)).unwrap();
        let answer = run.split(5);
        assert_eq!((run.bytes(), answer.bytes()), (0, 4));
        drop(answer);
        assert_eq!(held(&gate), (1, 0));
        drop(run);
        assert_eq!(held(&gate), (0, 0));
    }

    #[tokio::test]
    async fn a_small_module_is_compiled_in_the_lane_that_is_free_first() {
        for (free, lane) in [(0, CompileLane::Small), (1, CompileLane::Large)] {
            let admission = admission(8);
            let mut passes: Vec<_> = taken(&admission).await.map(Some).into();
            let mut waits = pin!(admission.compile(0, CompileLane::Small));
            assert!(waits.as_mut().now_or_never().is_none());
            let compiles = admission.loads().compiles;
            assert_eq!((compiles.held, compiles.waiting), (2, 1));
            passes[free] = None;
            let (given, _pass) = waits.await.unwrap();
            assert_eq!(given, lane);
            // It stands in no line any more.
            let compiles = admission.loads().compiles;
            assert_eq!((compiles.held, compiles.waiting), (2, 0));
        }
    }

    #[tokio::test]
    async fn a_large_module_waits_for_the_large_lane() {
        let admission = admission(8);
        let [small, large] = taken(&admission).await;
        let mut waits = pin!(admission.compile(1, CompileLane::Large));
        drop(small);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(large);
        assert_eq!(waits.await.unwrap().0, CompileLane::Large);
    }

    #[tokio::test]
    async fn a_full_line_of_large_modules_keeps_no_small_one_out() {
        let admission = admission(1);
        let [small, _large] = taken(&admission).await;
        let mut first = pin!(admission.compile(0, CompileLane::Large));
        assert!(first.as_mut().now_or_never().is_none());
        let refused = admission.compile(0, CompileLane::Large).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::QueueFull);
        let mut waits = pin!(admission.compile(0, CompileLane::Small));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(small);
        assert_eq!(waits.await.unwrap().0, CompileLane::Small);
    }

    #[tokio::test]
    async fn tenants_take_turns_in_the_small_lane() {
        let admission = admission(8);
        let [small, _large] = taken(&admission).await;
        let mut own: Vec<_> = (0..3)
            .map(|_| Box::pin(admission.compile(0, CompileLane::Small)))
            .collect();
        for waits in &mut own {
            assert!(waits.as_mut().now_or_never().is_none());
        }
        let mut other = pin!(admission.compile(1, CompileLane::Small));
        assert!(other.as_mut().now_or_never().is_none());
        drop(small);
        // The first tenant had the last turn.
        assert!(own[0].as_mut().now_or_never().is_none());
        let (lane, _pass) = other.await.unwrap();
        assert_eq!(lane, CompileLane::Small);
    }
}
