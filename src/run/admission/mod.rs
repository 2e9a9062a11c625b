//! Admission control: decides who may run, compile, upload a module or start a detached run now.
//! Each has a weighted fair queue of its own ([`fair_queue`]), except that compiling is scheduled
//! by the time that it takes ([`compile_fair_queue`]). Health reports the queues for runs,
//! compilations and uploads.

mod compile_fair_queue;
mod compile_schedule;
mod fair_queue;
mod load;
mod memory;
mod permits_and_bytes;
mod quota;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};

use self::compile_fair_queue::{CompileFairQueue, CompileThreadPermit};
use self::compile_schedule::ScheduleRules;
use self::fair_queue::{FairQueue, Rejected};
use self::permits_and_bytes::PermitsAndBytes;
use crate::model::refusal::{Reason, Refusal};
use crate::model::tenant_id::TenantId;
use crate::sandbox::CompileLane;

pub use self::fair_queue::Permit;
pub use self::load::QueueLoad;
pub use self::memory::{share_of, share_of_memory};
pub use self::quota::Quota;
pub(super) use self::quota::{ChargedCompile, QuotaUsage, RunQuotaGuard};

/// The capacity that all tenants share.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    /// The most runs that may execute at once.
    pub slots: u32,
    /// The most bytes of memory that these runs may reserve together.
    pub memory: u64,
    /// The most runs that may wait for a slot.
    pub queue: u32,
    /// The longest that a run may wait for a slot.
    pub max_wait: Duration,
    /// The most modules that may be compiled at once, besides the one in the lane for small
    /// modules.
    pub compiles: u32,
    /// The most modules that may wait to be compiled, in each lane.
    pub compile_queue: u32,
    /// The longest that a module may wait to be compiled.
    pub compile_wait: Duration,
    /// The shortest slice that a compilation gets before it is preempted for another tenant's.
    pub compile_quantum: Duration,
    /// The most compilations that may be preempted at once.
    pub compiles_stopped: u32,
    /// The most modules that may be arriving at once, in pieces or from a registry.
    pub uploads: u32,
}

/// Which queue a refusal comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum QueueKind {
    Run,
    Compile,
    Upload,
    DetachedStart,
}

/// Admission control for all tenants: one weighted fair queue for each bounded resource.
#[derive(Debug)]
pub(super) struct Admission {
    runs: Arc<FairQueue>,
    compiles: Arc<CompileFairQueue>,
    /// The queue for the one compile thread that takes only small modules.
    small_compiles: Arc<CompileFairQueue>,
    uploads: Arc<FairQueue>,
    /// Runs that are taken to their start without their callers. There is room for as many as may
    /// run or wait for a slot.
    detached_starts: Arc<FairQueue>,
    max_wait: Duration,
    compile_wait: Duration,
}

/// How much of each resource is held, and how many requests wait for it.
#[derive(Clone, Copy, Debug)]
pub struct QueueLoads {
    /// The slots and the memory of runs.
    pub runs: QueueLoad,
    /// Compile threads, of both lanes together.
    pub compiles: QueueLoad,
    /// Modules that are arriving.
    pub uploads: QueueLoad,
}

impl Admission {
    /// Creates the queues for tenants of `weights`, and for the daemon itself.
    pub(super) fn new(capacity: &Capacity, weights: &[u32]) -> Self {
        let places =
            |places: u32, queue| FairQueue::new(PermitsAndBytes::places(places), queue, weights);
        let slots = PermitsAndBytes {
            permits: capacity.slots,
            bytes: capacity.memory,
        };
        let compiles = |slots, max_stopped| {
            let rules = ScheduleRules {
                slots,
                max_waiting: capacity.compile_queue,
                max_stopped,
                quantum: capacity.compile_quantum,
            };
            CompileFairQueue::new(rules, weights)
        };
        Self {
            runs: FairQueue::new(slots, capacity.queue, weights),
            compiles: compiles(capacity.compiles, capacity.compiles_stopped),
            // A small module takes a second at the most: preempting it would not be worth it.
            small_compiles: compiles(1, 0),
            uploads: places(capacity.uploads, 0),
            detached_starts: places(capacity.slots.saturating_add(capacity.queue), 0),
            max_wait: capacity.max_wait,
            compile_wait: capacity.compile_wait,
        }
    }

    /// Acquires a slot with `bytes` of memory for a run of `tenant`. Where it has to
    /// wait, `waits` is called first; it waits until the caller's `deadline` or for
    /// `admission.max_wait`, whichever is shorter.
    ///
    /// # Errors
    /// `CAPACITY_EXCEEDED` where the run can never fit, `QUEUE_FULL`, `WAIT_EXPIRED`, `NOT_STARTED`
    /// where the caller's deadline came first, and `SHUTTING_DOWN`.
    pub(super) async fn acquire_run(
        &self,
        tenant: TenantId,
        bytes: u64,
        deadline: Option<Instant>,
        waits: impl FnOnce(),
    ) -> Result<Permit, Refusal> {
        let patience = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let wait = patience.map_or(self.max_wait, |patience| patience.min(self.max_wait));
        let entered = self
            .runs
            .acquire(tenant, PermitsAndBytes::one_permit(bytes), wait, waits)
            .await;
        entered.map_err(|turned| {
            let gives_up = patience.is_some_and(|it| it <= self.max_wait);
            if turned == Rejected::Expired && gives_up {
                return not_started();
            }
            self.refusal(QueueKind::Run, bytes, turned)
        })
    }

    /// Acquires a compile thread for `tenant`, and returns the lane of that thread too:
    /// a small module waits in both lanes and takes whichever is free first.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `WAIT_EXPIRED`, `SHUTTING_DOWN`.
    pub(super) async fn acquire_compile(
        &self,
        tenant: TenantId,
        lane: CompileLane,
    ) -> Result<(CompileLane, CompileThreadPermit), Refusal> {
        let enter = |gate| CompileFairQueue::acquire(gate, tenant, self.compile_wait);
        let large = pin!(enter(&self.compiles));
        let entered = match lane {
            CompileLane::Large => (CompileLane::Large, large.await),
            CompileLane::Small => match select(pin!(enter(&self.small_compiles)), large).await {
                // Where the queue of one lane is full, that of the other may not be.
                Either::Left((Err(_), large)) => (CompileLane::Large, large.await),
                Either::Right((Err(_), small)) => (CompileLane::Small, small.await),
                Either::Left((pass, _)) => (CompileLane::Small, pass),
                Either::Right((pass, _)) => (CompileLane::Large, pass),
            },
        };
        let (lane, entered) = entered;
        match entered {
            Ok(pass) => Ok((lane, pass)),
            Err(turned) => Err(self.refusal(QueueKind::Compile, 0, turned)),
        }
    }

    /// Acquires one of the `store.uploads` permits for a module that arrives, without waiting.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `SHUTTING_DOWN`.
    pub(super) fn acquire_upload(&self, tenant: TenantId) -> Result<Permit, Refusal> {
        let entered = self
            .uploads
            .try_acquire(tenant, PermitsAndBytes::one_permit(0));
        entered.map_err(|turned| self.refusal(QueueKind::Upload, 0, turned))
    }

    /// Acquires a permit for a run that goes on to its start without its caller. It does not wait
    /// for one.
    ///
    /// # Errors
    /// `QUEUE_FULL`, `SHUTTING_DOWN`.
    pub(super) fn acquire_detached_start(&self, tenant: TenantId) -> Result<Permit, Refusal> {
        let entered = self
            .detached_starts
            .try_acquire(tenant, PermitsAndBytes::one_permit(0));
        entered.map_err(|turned| self.refusal(QueueKind::DetachedStart, 0, turned))
    }

    /// Closes admission for a drain: no run or upload is admitted any more, and those that wait are
    /// refused at once. Compilations go on to their end.
    pub(super) fn close(&self) {
        for gate in [&self.runs, &self.uploads, &self.detached_starts] {
            gate.close();
        }
    }

    /// Reports whether admission is closed to runs.
    pub(super) fn is_closed(&self) -> bool {
        self.runs.is_closed()
    }

    /// Returns what waits and what is held, as Health reports it.
    pub(super) fn loads(&self) -> QueueLoads {
        QueueLoads {
            runs: self.runs.load(),
            compiles: self.compiles.load().and(self.small_compiles.load()),
            uploads: self.uploads.load(),
        }
    }

    fn refusal(&self, kind: QueueKind, asked: u64, turned: Rejected) -> Refusal {
        let (retry, full, limit, most, wait, wait_limit) = match kind {
            QueueKind::Run => (
                self.runs.retry_after(),
                "all slots, or all memory for runs, are taken and too many runs wait already",
                "admission.queue",
                self.runs.max_waiting(),
                self.max_wait,
                "admission.max_wait",
            ),
            QueueKind::Compile => (
                self.compiles.retry_after(),
                "too many modules wait to be compiled",
                "compile.queue",
                self.compiles.max_waiting(),
                self.compile_wait,
                "compile.max_wait",
            ),
            QueueKind::Upload => (
                self.uploads.retry_after(),
                "too many modules are arriving",
                "store.uploads",
                self.uploads.load().permits,
                Duration::ZERO,
                "store.uploads",
            ),
            QueueKind::DetachedStart => (
                self.detached_starts.retry_after(),
                "too many runs that go on without their callers wait",
                "admission.queue",
                self.runs.max_waiting(),
                Duration::ZERO,
                "admission.queue",
            ),
        };
        match turned {
            Rejected::TooMuch(most) => too_much(asked, most.bytes),
            Rejected::Full => {
                let message = format!("{full}; {most} may ({limit})");
                Refusal::new(Reason::QueueFull, message)
                    .with("allowed", most)
                    .with("limit", limit)
                    .retry_after(retry)
            }
            Rejected::Expired => {
                let wait = humantime::format_duration(wait);
                let message = format!("no place came free within {wait} ({wait_limit})");
                Refusal::new(Reason::WaitExpired, message)
                    .with("allowed", wait)
                    .with("limit", wait_limit)
                    .retry_after(retry)
            }
            Rejected::Closed => shutting_down(),
        }
    }
}

/// Creates the refusal of a run that asks for more than could ever be reserved.
fn too_much(asked: u64, allowed: u64) -> Refusal {
    let message = format!(
        "the run would reserve {asked} bytes of memory, stack and output buffers (spec.resources.memory_pages, stack_size, output_limit); at most {allowed} can ever be had here (admission.memory, or memory_share of what this host has)"
    );
    Refusal::new(Reason::CapacityExceeded, message)
        .at_field("spec.resources")
        .with("asked", asked)
        .with("allowed", allowed)
}

/// Creates the refusal of a run whose caller's deadline passed before it could start.
pub fn not_started() -> Refusal {
    Refusal::new(
        Reason::NotStarted,
        "the caller's deadline passed before what it asked for could be done",
    )
}

/// Creates the refusal that is given while the daemon shuts down. It tells the caller to retry
/// after a second.
pub fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the daemon is shutting down")
        .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const A: TenantId = TenantId::Named(0);
    const B: TenantId = TenantId::Named(1);

    /// Creates admission with one large and one small compile thread, for two tenants and the
    /// daemon itself.
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
            uploads: 1,
        };
        Admission::new(&capacity, &[1, 1])
    }

    /// Takes both lanes for the first tenant.
    async fn taken(admission: &Admission) -> [CompileThreadPermit; 2] {
        let mut passes = Vec::new();
        for asked in [CompileLane::Small, CompileLane::Large] {
            let (lane, pass) = admission.acquire_compile(A, asked).await.unwrap();
            assert_eq!(lane, asked);
            passes.push(pass);
        }
        passes.try_into().unwrap()
    }

    /// Returns how many permits and bytes are held.
    fn held(gate: &FairQueue) -> (u32, u64) {
        let QueueLoad { held, bytes, .. } = gate.load();
        (held, bytes)
    }

    #[tokio::test]
    async fn what_an_answer_keeps_of_a_run_holds_bytes_and_no_slot() {
        let capacity = PermitsAndBytes {
            permits: 1,
            bytes: 100,
        };
        let gate = FairQueue::new(capacity, 8, &[1]);
        let mut run = gate
            .try_acquire(A, PermitsAndBytes::one_permit(80))
            .unwrap();
        let mut answer = run.split(30);
        assert_eq!(
            (held(&gate), run.bytes(), answer.bytes()),
            ((1, 80), 50, 30)
        );
        drop(run);
        assert_eq!(held(&gate), (0, 30));
        // The next run finds the slot free, and as many bytes as the answer leaves.
        let enter = |bytes| gate.try_acquire(A, PermitsAndBytes::one_permit(bytes));
        assert_eq!(enter(71).unwrap_err(), Rejected::Full);
        drop(enter(70).unwrap());
        // A waiter is granted as soon as enough of the answer has been taken.
        let patience = Duration::from_secs(600);
        let mut waits = pin!(gate.acquire(A, PermitsAndBytes::one_permit(90), patience, || ()));
        assert!(waits.as_mut().now_or_never().is_none());
        answer.release(19);
        assert!(waits.as_mut().now_or_never().is_none());
        answer.release(1);
        let run = waits.now_or_never().unwrap().unwrap();
        assert_eq!(held(&gate), (1, 100));
        // No more is released than is held.
        answer.release(11);
        assert_eq!((held(&gate), answer.bytes()), ((1, 90), 0));
        drop(answer);
        drop(run);
        assert_eq!(held(&gate), (0, 0));
    }

    #[test]
    fn no_more_is_split_off_than_there_is() {
        let gate = FairQueue::new(
            PermitsAndBytes {
                permits: 2,
                bytes: 10,
            },
            0,
            &[1],
        );
        let mut run = gate.try_acquire(A, PermitsAndBytes::one_permit(4)).unwrap();
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
            let mut waits = pin!(admission.acquire_compile(A, CompileLane::Small));
            assert!(waits.as_mut().now_or_never().is_none());
            let compiles = admission.loads().compiles;
            assert_eq!((compiles.held, compiles.waiting), (2, 1));
            passes[free] = None;
            let (given, _pass) = waits.await.unwrap();
            assert_eq!(given, lane);
            // It waits in neither lane any more.
            let compiles = admission.loads().compiles;
            assert_eq!((compiles.held, compiles.waiting), (2, 0));
        }
    }

    #[tokio::test]
    async fn a_large_module_waits_for_the_large_lane() {
        let admission = admission(8);
        let [small, large] = taken(&admission).await;
        let mut waits = pin!(admission.acquire_compile(B, CompileLane::Large));
        drop(small);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(large);
        assert_eq!(waits.await.unwrap().0, CompileLane::Large);
    }

    #[tokio::test]
    async fn a_full_line_of_large_modules_keeps_no_small_one_out() {
        let admission = admission(1);
        let [small, _large] = taken(&admission).await;
        let mut first = pin!(admission.acquire_compile(A, CompileLane::Large));
        assert!(first.as_mut().now_or_never().is_none());
        let refused = admission
            .acquire_compile(A, CompileLane::Large)
            .await
            .unwrap_err();
        assert_eq!(refused.reason(), Reason::QueueFull);
        let mut waits = pin!(admission.acquire_compile(A, CompileLane::Small));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(small);
        assert_eq!(waits.await.unwrap().0, CompileLane::Small);
    }

    #[tokio::test]
    async fn tenants_take_turns_in_the_small_lane() {
        let admission = admission(8);
        let [small, _large] = taken(&admission).await;
        let mut own: Vec<_> = (0..3)
            .map(|_| Box::pin(admission.acquire_compile(A, CompileLane::Small)))
            .collect();
        for waits in &mut own {
            assert!(waits.as_mut().now_or_never().is_none());
        }
        let mut other = pin!(admission.acquire_compile(B, CompileLane::Small));
        assert!(other.as_mut().now_or_never().is_none());
        drop(small);
        // The first tenant had the last turn.
        assert!(own[0].as_mut().now_or_never().is_none());
        let (lane, _pass) = other.await.unwrap();
        assert_eq!(lane, CompileLane::Small);
    }
}
