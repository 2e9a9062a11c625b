use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_secs(600);

type Entering = Pin<Box<dyn Future<Output = Result<Permit, Rejected>>>>;

/// A queue under test, the requests that wait for it, and the permits that it granted, each with
/// the line of its tenant.
struct Scene {
    gate: Arc<FairQueue>,
    /// How many tenants there are. That number stands for the daemon itself.
    named: usize,
    waiting: Vec<(usize, Entering)>,
    passes: Vec<(usize, Permit)>,
}

impl Scene {
    /// Creates a queue with one tenant for each of `weights`, and the daemon itself.
    fn new(places: u32, bytes: u64, queue: u32, weights: &[u32]) -> Self {
        Self {
            gate: FairQueue::new(
                PermitsAndBytes {
                    permits: places,
                    bytes,
                },
                queue,
                weights,
            ),
            named: weights.len(),
            waiting: Vec::new(),
            passes: Vec::new(),
        }
    }

    /// Returns the tenant of a number.
    fn tenant(&self, number: usize) -> TenantId {
        match number == self.named {
            true => TenantId::Own,
            false => TenantId::Named(u32::try_from(number).unwrap()),
        }
    }

    /// Sends a request in the given line, and returns its rejection where it is rejected at once.
    fn comes(&mut self, tenant: usize, bytes: u64) -> Option<Rejected> {
        let (gate, id) = (Arc::clone(&self.gate), self.tenant(tenant));
        let enter = async move {
            gate.acquire(id, PermitsAndBytes::one_permit(bytes), PATIENCE, || ())
                .await
        };
        // It is polled many times within one turn of the test's own task.
        let mut entering: Entering = Box::pin(tokio::task::unconstrained(enter));
        match poll(&mut entering) {
            Poll::Ready(Ok(pass)) => self.passes.push((tenant, pass)),
            Poll::Ready(Err(turned)) => return Some(turned),
            Poll::Pending => self.waiting.push((tenant, entering)),
        }
        None
    }

    /// Collects the answers of all that wait. Returns the lines of those that were granted and of
    /// those that were rejected.
    fn settle(&mut self) -> (Vec<usize>, Vec<usize>) {
        let (mut through, mut away) = (Vec::new(), Vec::new());
        let passes = &mut self.passes;
        self.waiting
            .retain_mut(|(tenant, entering)| match poll(entering) {
                Poll::Ready(Ok(pass)) => {
                    passes.push((*tenant, pass));
                    through.push(*tenant);
                    false
                }
                Poll::Ready(Err(_)) => {
                    away.push(*tenant);
                    false
                }
                Poll::Pending => true,
            });
        (through, away)
    }

    /// Checks that the ordered sets agree with a look at every line, and that what is held is what
    /// permits hold.
    fn check(&self) {
        let state = self.gate.lock();
        let all = || {
            state
                .tenants
                .ids()
                .map(|tenant| (tenant, &state.tenants[tenant]))
        };
        let next = all().filter(|(_, it)| {
            let head = it.waiting.front();
            head.is_some_and(|head| it.held.has_room(head.ask, it.limit))
        });
        let next: BTreeSet<_> = next.map(|(tenant, it)| (it.virtual_time, tenant)).collect();
        assert_eq!(state.eligible, next);
        let longest = all().filter(|(_, it)| !it.waiting.is_empty());
        let longest: BTreeSet<_> = longest.map(|(tenant, it)| (it.length(), tenant)).collect();
        assert_eq!(state.by_length, longest);
        let waiting: usize = all().map(|(_, it)| it.waiting.len()).sum();
        assert_eq!(waiting, state.waiting as usize);
        assert_eq!(waiting, self.waiting.len());
        let mut held = PermitsAndBytes::default();
        for (_, pass) in &self.passes {
            held.add(pass.held);
        }
        assert_eq!(state.held, held);
        assert!(PermitsAndBytes::default().has_room(held, self.gate.capacity));
        for (_, it) in all() {
            assert!(PermitsAndBytes::default().has_room(it.held, it.limit));
            let tickets: Vec<u64> = it.waiting.iter().map(|it| it.ticket).collect();
            assert!(tickets.is_sorted(), "{tickets:?}");
        }
        drop(state);
        self.check_that_nobody_waits_for_nothing();
    }

    /// Checks that no head waits that would fit, unless some line has been overtaken too often.
    fn check_that_nobody_waits_for_nothing(&self) {
        let state = self.gate.lock();
        if state
            .tenants
            .values()
            .any(|it| it.overtaken >= STARVATION_LIMIT)
        {
            return;
        }
        for tenant in state.tenants.ids() {
            let head = state.tenants[tenant].waiting.front();
            assert!(head.is_none_or(|head| !self.gate.fits(&state, tenant, head.ask)));
        }
    }
}

fn poll(entering: &mut Entering) -> Poll<Result<Permit, Rejected>> {
    entering
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_thousand_tenants_are_each_let_through_once_before_any_is_twice() {
    const TENANTS: usize = 1000;
    let mut scene = Scene::new(1, 100, 10_000, &[1; TENANTS]);
    for _ in 0..3 {
        for tenant in 0..TENANTS {
            assert_eq!(scene.comes(tenant, 1), None);
        }
    }
    // The first to come was granted at once: it has had its turn of the first round.
    let mut turns = vec![scene.passes[0].0];
    while let Some((_, pass)) = scene.passes.pop() {
        drop(pass);
        turns.extend(scene.settle().0);
    }
    assert_eq!(turns.len(), 3 * TENANTS);
    for round in turns.chunks(TENANTS) {
        let mut round = round.to_vec();
        round.sort_unstable();
        assert!(round.into_iter().eq(0..TENANTS));
    }
    scene.check();
}

#[tokio::test]
async fn turns_are_by_weight() {
    let mut scene = Scene::new(1, 100, 1000, &[1, 3]);
    for _ in 0..100 {
        for tenant in 0..2 {
            assert_eq!(scene.comes(tenant, 1), None);
        }
    }
    let mut turns = [0_u32; 2];
    for _ in 0..40 {
        drop(scene.passes.pop());
        for tenant in scene.settle().0 {
            turns[tenant] += 1;
        }
    }
    assert!(turns[0].abs_diff(10) <= 1, "{turns:?}");
}

#[tokio::test]
async fn whoever_comes_back_catches_up_on_nothing() {
    let mut scene = Scene::new(2, 100, 1000, &[1, 1, 1]);
    // The first holds its whole share of the bytes, and more of it waits.
    for bytes in [87, 80, 80] {
        assert_eq!(scene.comes(0, bytes), None);
    }
    for _ in 0..50 {
        for tenant in 1..3 {
            assert_eq!(scene.comes(tenant, 1), None);
        }
    }
    for _ in 0..40 {
        let at = scene
            .passes
            .iter()
            .position(|(tenant, _)| *tenant != 0)
            .unwrap();
        drop(scene.passes.remove(at));
        scene.settle();
        scene.check();
    }
    let at = scene
        .passes
        .iter()
        .position(|(tenant, _)| *tenant == 0)
        .unwrap();
    drop(scene.passes.remove(at));
    // Both slots come free, one by one: the first tenant has one turn among the others', not forty.
    let mut turns = scene.settle().0;
    for _ in 0..6 {
        drop(scene.passes.remove(0));
        turns.extend(scene.settle().0);
        scene.check();
    }
    let own = turns.iter().filter(|tenant| **tenant == 0).count();
    assert!((1..=2).contains(&own), "{turns:?}");
}

#[tokio::test]
async fn the_newest_of_the_longest_line_makes_way() {
    let mut scene = Scene::new(1, 100, 4, &[1, 1, 2]);
    for tenant in [0, 0, 0, 0, 1] {
        assert_eq!(scene.comes(tenant, 1), None);
    }
    // Four wait: three of the first tenant, and one of the second.
    assert_eq!(scene.comes(0, 1), Some(Rejected::Full));
    assert_eq!(scene.comes(1, 1), None);
    assert_eq!(scene.settle(), (vec![], vec![0]));
    scene.check();
    // Now there are two of each, and by weight the third's line is shorter.
    assert_eq!(scene.comes(1, 1), Some(Rejected::Full));
    assert_eq!(scene.comes(2, 1), None);
    assert_eq!(scene.settle(), (vec![], vec![1]));
    scene.check();
}

#[tokio::test]
async fn a_line_gives_back_the_memory_of_those_that_waited() {
    let mut scene = Scene::new(1, 100, 5000, &[1, 1]);
    for _ in 0..5000 {
        assert_eq!(scene.comes(0, 1), None);
    }
    assert!(
        scene.gate.lock().tenants[TenantId::Named(0)]
            .waiting
            .capacity()
            >= 4000
    );
    // They leave in any order, some of them from the middle.
    while !scene.waiting.is_empty() {
        let at = scene.waiting.len() / 2;
        drop(scene.waiting.swap_remove(at));
    }
    scene.check();
    assert!(
        scene.gate.lock().tenants[TenantId::Named(0)]
            .waiting
            .capacity()
            <= KEPT_WAITERS
    );
}

#[tokio::test]
async fn a_gate_that_closes_turns_away_all_that_wait() {
    let mut scene = Scene::new(1, 100, 100, &[1, 1]);
    for tenant in [0, 0, 1, 1] {
        assert_eq!(scene.comes(tenant, 1), None);
    }
    scene.gate.close();
    assert_eq!(scene.settle(), (vec![], vec![0, 1, 1]));
    scene.check();
    assert_eq!(scene.comes(0, 1), Some(Rejected::Closed));
}

#[tokio::test]
async fn a_waiter_that_leaves_takes_no_slot_with_it() {
    let mut scene = Scene::new(1, 100, 100, &[1, 1, 1]);
    for tenant in [0, 1, 1, 2] {
        assert_eq!(scene.comes(tenant, 1), None);
    }
    // The first to wait is granted the slot, and leaves before it learns of that.
    drop(scene.passes.pop());
    let (tenant, leaves) = scene.waiting.remove(0);
    assert_eq!(tenant, 1);
    drop(leaves);
    let (through, _) = scene.settle();
    assert_eq!(through.len(), 1);
    scene.check();
    // One that leaves with nothing granted to it is passed over, and is charged nothing.
    let at = 0;
    let (tenant, leaves) = scene.waiting.remove(at);
    let before = scene.gate.lock().tenants[scene.tenant(tenant)].virtual_time;
    drop(leaves);
    let after = scene.gate.lock().tenants[scene.tenant(tenant)].virtual_time;
    assert_eq!(before, after);
    scene.passes.clear();
    scene.check();
    assert_eq!(scene.gate.load().held, 0);
    assert_eq!(scene.comes(0, 1), None);
    assert_eq!(scene.passes.len(), 1);
}

/// A queue in which one tenant's head does not fit, because another holds half of the bytes.
fn with_a_head_that_does_not_fit() -> Scene {
    let mut scene = Scene::new(80, 80, 100, &[1, 1, 1]);
    assert_eq!(scene.comes(1, 40), None);
    assert_eq!(scene.comes(0, 50), None);
    assert_eq!((scene.passes.len(), scene.waiting.len()), (1, 1));
    scene
}

/// Sends requests of a tenant, each of which gives back what it has at once, until one has to wait;
/// returns how many were granted.
fn overtakes(scene: &mut Scene, tenant: usize, bytes: u64) -> u32 {
    let (held, waiting) = (scene.passes.len(), scene.waiting.len());
    let mut granted = 0;
    loop {
        assert_eq!(scene.comes(tenant, bytes), None);
        if scene.waiting.len() > waiting {
            return granted;
        }
        assert_eq!(scene.passes.len(), held + 1);
        drop(scene.passes.pop());
        granted += 1;
        assert!(granted <= STARVATION_LIMIT * STARVATION_HARD_FACTOR);
    }
}

#[tokio::test]
async fn a_head_that_does_not_fit_is_overtaken_as_often_as_allowed_and_no_more() {
    let mut scene = with_a_head_that_does_not_fit();
    // The tenant that holds much overtakes it up to the limit.
    assert_eq!(overtakes(&mut scene, 1, 20), STARVATION_LIMIT);
    drop(scene.waiting.pop());
    // One that holds little may go on for longer, but not for ever.
    let more = STARVATION_LIMIT * (STARVATION_HARD_FACTOR - 1);
    assert_eq!(overtakes(&mut scene, 2, 1), more);
    // As soon as it fits, the head is next.
    drop(scene.passes.pop());
    assert_eq!(scene.settle().0, [0, 2]);
    scene.check();
}

#[tokio::test]
async fn a_head_that_others_waited_for_pays_one_turn_when_it_leaves() {
    let mut scene = with_a_head_that_does_not_fit();
    assert_eq!(overtakes(&mut scene, 1, 20), STARVATION_LIMIT);
    let (tenant, leaves) = scene.waiting.remove(0);
    assert_eq!(tenant, 0);
    let before = scene.gate.lock().tenants[TenantId::Named(0)].virtual_time;
    drop(leaves);
    let state = scene.gate.lock();
    let it = &state.tenants[TenantId::Named(0)];
    assert_eq!((it.virtual_time, it.overtaken), (before + GRANT_COST, 0));
    drop(state);
    // Whoever waited for it goes on.
    assert_eq!(scene.settle().0, [1]);
    scene.check();
}

proptest! {
    #[test]
    fn lines_stand_where_they_belong_and_nobody_waits_for_nothing(
        weights in proptest::collection::vec(1_u32..4, 1..6),
        places in 1_u32..5,
        queue in 0_u32..8,
        steps in proptest::collection::vec((0_u8..8, 0_usize..8, 0_u64..40), 1..300),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.unwrap();
        let _within = runtime.enter();
        let mut scene = Scene::new(places, 64, queue, &weights);
        for (what, which, bytes) in steps {
            match what {
                0..4 => drop(scene.comes(which % (weights.len() + 1), bytes)),
                4 if !scene.waiting.is_empty() => {
                    let at = which % scene.waiting.len();
                    drop(scene.waiting.swap_remove(at));
                }
                5 if !scene.passes.is_empty() => {
                    let at = which % scene.passes.len();
                    scene.passes[at].1.release(bytes / 2);
                }
                _ if !scene.passes.is_empty() => {
                    let at = which % scene.passes.len();
                    drop(scene.passes.swap_remove(at));
                }
                _ => {}
            }
            scene.settle();
            scene.check();
        }
        scene.waiting.clear();
        scene.passes.clear();
        scene.check();
        prop_assert_eq!(scene.gate.load().held, 0);
    }

    /// In each line somebody waits all the time.
    #[test]
    fn turns_are_by_weight_within_one_turn(
        weights in proptest::collection::vec(1_u32..9, 2..6),
        rounds in 1_usize..300,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.unwrap();
        let _within = runtime.enter();
        let mut scene = Scene::new(1, 100, 1000, &weights);
        let mut turns = vec![0_u32; weights.len()];
        turns[0] = 1;
        for tenant in (0..weights.len()).chain(0..weights.len()) {
            prop_assert_eq!(scene.comes(tenant, 1), None);
        }
        for _ in 0..rounds {
            drop(scene.passes.pop());
            let (granted, _) = scene.settle();
            prop_assert_eq!(granted.len(), 1);
            let tenant = granted[0];
            turns[tenant] += 1;
            prop_assert_eq!(scene.comes(tenant, 1), None);
            for (a, weight_a) in weights.iter().enumerate() {
                for (b, weight_b) in weights.iter().enumerate() {
                    let ahead = turns[a].saturating_sub(1) * weight_b;
                    prop_assert!(ahead <= turns[b] * weight_a, "{turns:?} of {weights:?}");
                }
            }
        }
    }
}
