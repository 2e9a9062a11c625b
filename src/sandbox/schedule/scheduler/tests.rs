//! Tests of the guest scheduler: what it decides with simulated threads and simulated time, and
//! what its own threads make of that.

use std::collections::BinaryHeap;
use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;

const MILLISECOND: u64 = 1_000_000;

/// A slice that does nothing: what it would take is up to the test.
fn slice() -> Slice {
    let (slice, task) = async_task::spawn(async {}, |_| ());
    task.detach();
    slice
}

/// The scheduler's state, its tenants, and the tenant of each slice that executes.
struct Scene {
    state: State,
    tenants: Vec<Arc<TenantQueue>>,
    executing: Vec<usize>,
}

impl Scene {
    fn new(weights: &[u32]) -> Self {
        Self {
            state: State::default(),
            tenants: weights
                .iter()
                .map(|weight| TenantQueue::new(*weight))
                .collect(),
            executing: Vec::new(),
        }
    }

    fn push(&mut self, tenant: usize) {
        self.state.push(&self.tenants[tenant], slice(), false);
    }

    /// Begins the next slice, and returns its tenant.
    fn pop(&mut self) -> Option<usize> {
        let (queue, _) = self.state.pop_least_served()?;
        let tenant = self.tenants.iter().position(|it| Arc::ptr_eq(it, &queue));
        self.executing.push(tenant.unwrap());
        tenant
    }

    /// Ends a slice of a tenant after `nanos`.
    fn end(&mut self, tenant: usize, nanos: u64) {
        let at = self.executing.iter().position(|it| *it == tenant).unwrap();
        self.executing.swap_remove(at);
        self.state.charge(&self.tenants[tenant], nanos);
    }

    /// Executes the next slice for `nanos` while its guest goes on, and returns its tenant.
    fn turn(&mut self, nanos: u64) -> usize {
        let tenant = self.pop().unwrap();
        self.push(tenant);
        self.end(tenant, nanos);
        tenant
    }

    /// Returns how many slices of a tenant wait.
    fn queued(&self, tenant: usize) -> usize {
        let queue = lock(&self.tenants[tenant].queue);
        queue.new.len() + queue.resumed.len()
    }

    fn virtual_time(&self, tenant: usize) -> u64 {
        let active = self.state.active.iter();
        let mut own = active.filter(|it| Arc::ptr_eq(&it.tenant_queue, &self.tenants[tenant]));
        own.next().unwrap().virtual_time
    }

    /// Checks that all counts agree with the queues and with what executes.
    fn check(&self) {
        let State {
            active, waiting, ..
        } = &self.state;
        assert_eq!(active.iter().map(|it| it.waiting).sum::<usize>(), *waiting);
        for (number, tenant) in self.tenants.iter().enumerate() {
            let queued = self.queued(number);
            let executing = self.executing.iter().filter(|it| **it == number).count();
            let mut own = active
                .iter()
                .filter(|it| Arc::ptr_eq(&it.tenant_queue, tenant));
            match own.next() {
                Some(it) => assert_eq!((it.waiting, it.executing), (queued, executing)),
                None => assert_eq!((0, 0), (queued, executing)),
            }
            assert!(own.next().is_none(), "once at most");
            // Who has nothing here any more is not looked at.
            let is_active = queued + executing > 0;
            let is_listed = active
                .iter()
                .any(|it| Arc::ptr_eq(&it.tenant_queue, tenant));
            assert_eq!(is_active, is_listed);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize, bool),
    Pop,
    End(usize, u64),
    Inline(usize, u64),
    OffThread(usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let nanos = 0..50 * MILLISECOND;
    prop_oneof![
        4 => (0..4_usize, any::<bool>()).prop_map(|(tenant, is_new)| Step::Push(tenant, is_new)),
        4 => Just(Step::Pop),
        4 => (0..8_usize, nanos.clone()).prop_map(|(at, nanos)| Step::End(at, nanos)),
        1 => (0..4_usize, nanos.clone()).prop_map(|(tenant, nanos)| Step::Inline(tenant, nanos)),
        1 => (0..4_usize, nanos).prop_map(|(tenant, nanos)| Step::OffThread(tenant, nanos)),
    ]
}

proptest! {
    #[test]
    fn a_slice_that_waits_is_found_whatever_happened_and_no_more_execute_than_threads(
        weights in prop::collection::vec(0_u32..6, 4),
        threads in 1_usize..5,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut scene = Scene::new(&weights);
        let mut virtual_now = 0;
        for step in steps {
            match step {
                Step::Push(tenant, is_new) => {
                    scene.state.push(&scene.tenants[tenant], slice(), is_new);
                    let time = scene.virtual_time(tenant);
                    let lag = scene.state.virtual_now.saturating_sub(time);
                    let is_first = scene.queued(tenant) == 1;
                    prop_assert!(!is_first || lag <= MAX_VIRTUAL_LAG);
                }
                // A thread asks for a slice only when it has none.
                Step::Pop if scene.executing.len() < threads => {
                    let waits = scene.state.waiting > 0;
                    prop_assert_eq!(scene.pop().is_some(), waits);
                }
                Step::End(at, nanos) if at < scene.executing.len() => {
                    scene.end(scene.executing[at], nanos);
                }
                Step::Pop | Step::End(..) => {}
                Step::Inline(tenant, nanos) => {
                    scene.state.charge_inline(&scene.tenants[tenant], nanos);
                }
                Step::OffThread(tenant, nanos) => scene.tenants[tenant].charge_off_thread(nanos),
            }
            scene.check();
            prop_assert!(scene.executing.len() <= threads);
            // The clock of the scheduler never goes back.
            prop_assert!(virtual_now <= scene.state.virtual_now);
            virtual_now = scene.state.virtual_now;
        }
    }

    /// Simulates `threads` guest threads. Each tenant has more slices than there are threads.
    #[test]
    fn processor_time_is_by_weight_within_one_slice_of_each_thread(
        tenants in prop::collection::vec((1_u32..20, 1_u64..10 * MILLISECOND), 2..6),
        threads in 1_usize..4,
        parts in prop::collection::vec(1_u64..=100, 1..50),
    ) {
        let weights: Vec<u32> = tenants.iter().map(|(weight, _)| *weight).collect();
        let mut scene = Scene::new(&weights);
        for tenant in 0..tenants.len() {
            for _ in 0..=threads {
                scene.push(tenant);
            }
        }
        let mut spent = vec![(0_u64, 0_u64); tenants.len()];
        let mut parts = parts.iter().cycle();
        // Ends of slices, the soonest at the top: when, the tenant, and how long it took.
        let mut ends = BinaryHeap::new();
        let mut now = 0;
        for _ in 0..2000 {
            while ends.len() < threads {
                let tenant = scene.pop().unwrap();
                let longest = tenants[tenant].1;
                let took = (longest * parts.next().unwrap() / 100).max(1);
                ends.push((std::cmp::Reverse(now + took), tenant, took));
            }
            let (std::cmp::Reverse(at), tenant, took) = ends.pop().unwrap();
            now = at;
            scene.push(tenant);
            scene.end(tenant, took);
            spent[tenant].0 += took;
            spent[tenant].1 += 1;
            for (a, (weight_a, longest)) in tenants.iter().enumerate() {
                for (b, (weight_b, _)) in tenants.iter().enumerate() {
                    let ((time_a, slices_a), (time_b, _)) = (spent[a], spent[b]);
                    // One that is served first was behind the other, so it is ahead by no more than
                    // it was given at once. What executes is not counted for the other yet, but
                    // that only makes it seem further behind. Each slice is rounded down to a whole
                    // number of virtual nanoseconds.
                    let (weight_a, weight_b) = (u64::from(*weight_a), u64::from(*weight_b));
                    let at_once = threads as u64 * longest + slices_a * weight_a;
                    prop_assert!(time_a * weight_b <= time_b * weight_a + at_once * weight_b);
                }
            }
        }
    }

    #[test]
    fn a_tenant_that_waited_for_nothing_has_saved_up_no_more_than_the_lag(
        away in 0..10 * MAX_VIRTUAL_LAG,
        took in MILLISECOND..MAX_VIRTUAL_LAG,
    ) {
        let mut scene = Scene::new(&[1, 1]);
        // The first tenant's only slice executes, and is charged nothing before it ends.
        scene.push(0);
        prop_assert_eq!(scene.pop(), Some(0));
        scene.push(1);
        scene.push(1);
        while scene.state.virtual_now < away {
            prop_assert_eq!(scene.turn(took), 1);
        }
        let now = scene.state.virtual_now;
        scene.push(0);
        scene.push(0);
        prop_assert_eq!(scene.virtual_time(0), now.saturating_sub(MAX_VIRTUAL_LAG));
        // It goes ahead until it has caught up with the other, which is at `next`.
        let next = scene.virtual_time(1);
        let lag = next - now.saturating_sub(MAX_VIRTUAL_LAG);
        let mut ahead = 0;
        while scene.turn(took) == 0 {
            ahead += 1;
            prop_assert!(ahead <= lag / took + 1);
        }
        prop_assert!(ahead >= lag / took);
    }
}

#[test]
fn whoever_was_idle_has_no_credit_for_it_and_no_debt_is_forgiven() {
    let mut scene = Scene::new(&[1, 1]);
    // The first tenant has a slice of 7 ms and leaves.
    scene.push(0);
    assert_eq!(scene.pop(), Some(0));
    scene.end(0, 7 * MILLISECOND);
    assert!(scene.state.active.is_empty());
    // The second owes nothing when it comes.
    scene.push(1);
    assert_eq!(scene.virtual_time(1), 0);
    // The first comes back, and is served when the other has had as much.
    scene.push(0);
    let turns: Vec<usize> = (0..9).map(|_| scene.turn(MILLISECOND)).collect();
    let (owed, then) = turns.split_at(7);
    assert_eq!(owed, [1; 7]);
    assert!(then.contains(&0) && then.contains(&1), "{then:?}");
    scene.check();
    // Now the first leaves for long, and returns.
    while scene.pop() != Some(0) {
        scene.push(1);
        scene.end(1, MILLISECOND);
    }
    scene.end(0, MILLISECOND);
    for _ in 0..1000 {
        assert_eq!(scene.turn(MILLISECOND), 1);
    }
    scene.push(0);
    assert_eq!(scene.virtual_time(0), scene.state.virtual_now);
    let turns: Vec<usize> = (0..10).map(|_| scene.turn(MILLISECOND)).collect();
    assert_eq!(turns.iter().filter(|tenant| **tenant == 0).count(), 5);
}

#[test]
fn work_on_other_threads_is_charged_by_weight() {
    let mut scene = Scene::new(&[4, 1]);
    // Inline, while the tenant is idle: it is charged for when it comes.
    scene
        .state
        .charge_inline(&scene.tenants[0], 8 * MILLISECOND);
    scene.push(0);
    assert_eq!(scene.virtual_time(0), 2 * MILLISECOND);
    // Inline, while it has something that waits: at once.
    scene
        .state
        .charge_inline(&scene.tenants[0], 4 * MILLISECOND);
    assert_eq!(scene.virtual_time(0), 3 * MILLISECOND);
    // File system calls: once, with the next slice.
    scene.tenants[0].charge_off_thread(40 * MILLISECOND);
    assert_eq!(scene.virtual_time(0), 3 * MILLISECOND);
    scene.push(0);
    assert_eq!(scene.virtual_time(0), 13 * MILLISECOND);
    scene.push(0);
    assert_eq!(scene.virtual_time(0), 13 * MILLISECOND);
    assert_eq!(scene.tenants[0].cpu_time(), Duration::from_millis(40));
    scene.push(1);
    assert_eq!(scene.turn(MILLISECOND), 1);
    // Nobody pays for another.
    assert_eq!(scene.virtual_time(1), MILLISECOND);
    scene.check();
}

#[test]
fn a_slice_goes_inline_only_ahead_of_nobody() {
    let mut scene = Scene::new(&[1]);
    assert!(!scene.state.has_idle_thread());
    scene.state.idle = 1;
    assert!(scene.state.has_idle_thread());
    scene.push(0);
    assert!(!scene.state.has_idle_thread());
    scene.pop();
    assert!(scene.state.has_idle_thread());
    scene.state.close();
    assert!(!scene.state.has_idle_thread());
}

#[test]
fn closing_leaves_nothing_and_what_executes_may_still_end() {
    let mut scene = Scene::new(&[1, 1, 1]);
    for tenant in [0, 0, 1, 2] {
        scene.push(tenant);
    }
    let executing = scene.pop().unwrap();
    let left = scene.state.close();
    assert_eq!(left.iter().map(|it| it.waiting).sum::<usize>(), 3);
    assert_eq!(scene.state.waiting, 0);
    assert!(scene.state.active.is_empty());
    assert!(scene.state.pop_least_served().is_none());
    scene.end(executing, MILLISECOND);
    assert!(scene.state.active.is_empty());
}

#[test]
fn as_many_slices_execute_at_once_as_there_are_threads_and_never_more() {
    const THREADS: usize = 3;
    let scheduler = GuestScheduler::start(THREADS, Duration::from_millis(1), || ()).unwrap();
    let tenants = [1, 2, 5].map(TenantQueue::new);
    let all_at_once = Arc::new(Barrier::new(THREADS));
    let executing = Arc::new(AtomicUsize::new(0));
    let (tell, told) = mpsc::channel();
    for run in 0..20 * THREADS {
        let all_at_once = Arc::clone(&all_at_once);
        let (executing, tell) = (Arc::clone(&executing), tell.clone());
        scheduler.spawn(&tenants[run % tenants.len()], async move {
            let others = executing.fetch_add(1, Ordering::SeqCst);
            // Nobody gets past this unless all threads execute a slice at once.
            all_at_once.wait();
            executing.fetch_sub(1, Ordering::SeqCst);
            tell.send(others + 1).unwrap();
        });
    }
    drop(tell);
    let seen: Vec<usize> = told.into_iter().collect();
    assert_eq!(seen.len(), 20 * THREADS);
    assert_eq!(seen.into_iter().max(), Some(THREADS));
}

#[test]
fn a_scheduler_that_is_dropped_drops_all_that_waits() {
    let scheduler = GuestScheduler::start(1, Duration::from_millis(1), || ()).unwrap();
    let tenant = TenantQueue::new(1);
    let (begun, has_begun) = mpsc::channel();
    let (let_go, go) = mpsc::channel::<()>();
    scheduler.spawn(&tenant, async move {
        begun.send(()).unwrap();
        go.recv().unwrap_err();
    });
    has_begun.recv().unwrap();
    // The only thread is taken. What a run holds is dropped with it, and it never executes.
    let (held, dropped) = mpsc::channel::<()>();
    for _ in 0..3 {
        let held = held.clone();
        scheduler.spawn(&tenant, async move { held.send(()).unwrap() });
    }
    drop(held);
    drop(scheduler);
    dropped.recv().unwrap_err();
    drop(let_go);
}
