use std::task::Waker;

use super::*;
use crate::model::outcome::CancelCause;

const NANO: Duration = Duration::from_nanos(1);
const DEADLINE: Duration = Duration::from_secs(5);

/// A run with a deadline, and how its guest is checked.
struct Scene {
    state: Arc<PreemptionState>,
    stop: StopSignal,
    epochs: EpochCounter,
    usage: Arc<LiveUsage>,
    start: Instant,
}

impl Scene {
    fn new(deadline: Option<Duration>, fuel: Option<u64>) -> Self {
        let (epochs, start) = (EpochCounter::default(), Instant::now());
        let usage: Arc<LiveUsage> = Arc::default();
        let policy = PreemptionPolicy {
            epochs: epochs.clone(),
            start,
            deadline: deadline.map(|it| start + it),
            fuel,
            usage: Arc::clone(&usage),
        };
        Self {
            state: Arc::new(PreemptionState::new(policy)),
            stop: StopSignal::default(),
            epochs,
            usage,
            start,
        }
    }

    /// Checks the guest at a time after its start: whether it yields, and `None` where it stops.
    fn check(&self, after: Duration) -> Option<bool> {
        let now = self.start + after;
        let checked = self
            .state
            .check(&self.stop, now, || panic!("it is not metered"));
        checked.ok()
    }
}

#[test]
fn a_guest_stops_at_its_deadline_and_not_a_nanosecond_before() {
    let scene = Scene::new(Some(DEADLINE), None);
    assert_eq!(scene.check(DEADLINE - NANO), Some(true));
    assert_eq!(scene.stop.reason(), None);
    assert_eq!(scene.check(DEADLINE), None);
    assert_eq!(scene.stop.reason(), Some(StopReason::TimedOut));
    // It is not asked again.
    assert_eq!(scene.check(Duration::ZERO), None);
}

#[test]
fn a_guest_without_a_deadline_never_stops_by_itself() {
    let scene = Scene::new(None, None);
    assert_eq!(scene.check(Duration::from_secs(1 << 30)), Some(true));
    assert_eq!(scene.stop.reason(), None);
}

#[test]
fn a_guest_that_is_asked_to_stop_stops_at_once_and_the_first_reason_stays() {
    let scene = Scene::new(Some(DEADLINE), None);
    let cancelled = StopReason::Cancelled(CancelCause::CallerGone);
    assert!(scene.stop.request(cancelled));
    assert_eq!(scene.check(Duration::ZERO), None);
    assert_eq!(scene.check(DEADLINE), None);
    assert_eq!(scene.stop.reason(), Some(cancelled));
}

#[test]
fn a_guest_yields_from_its_first_slice_on() {
    let scene = Scene::new(Some(DEADLINE), None);
    assert_eq!(scene.check(Duration::ZERO), Some(false));
    assert_eq!(scene.check(FIRST_SLICE - NANO), Some(false));
    assert_eq!(scene.check(FIRST_SLICE), Some(true));
    assert_eq!(scene.check(FIRST_SLICE + NANO), Some(true));
    // A clock that seems to go back makes it yield later, and nothing else.
    let before = scene.start.checked_sub(NANO).unwrap();
    let checked = scene.state.check(&scene.stop, before, || 0);
    assert!(matches!(checked, Ok(false)));
}

#[test]
fn a_guest_is_checked_once_in_each_epoch() {
    let scene = Scene::new(Some(DEADLINE), None);
    // The epoch in which it began counts as checked.
    assert!(scene.state.is_checked_in_this_epoch());
    for epochs in [1, 1, 3, 1000] {
        (0..epochs).for_each(|_| scene.epochs.advance());
        assert!(!scene.state.is_checked_in_this_epoch());
        // Whether it yields or not.
        assert!(scene.check(Duration::ZERO).is_some());
        assert!(scene.state.is_checked_in_this_epoch());
    }
    scene.epochs.advance();
    assert!(scene.check(DEADLINE).is_none());
    assert!(scene.state.is_checked_in_this_epoch());
}

#[test]
fn epochs_in_which_others_had_their_turn_do_not_count() {
    let scene = Scene::new(Some(DEADLINE), None);
    let mut context = Context::from_waker(Waker::noop());
    scene.epochs.advance();
    assert_eq!(scene.check(FIRST_SLICE), Some(true));
    let mut turn = Box::pin(Arc::clone(&scene.state).yield_to_others());
    assert!(turn.as_mut().poll(&mut context).is_pending());
    (0..3).for_each(|_| scene.epochs.advance());
    assert!(!scene.state.is_checked_in_this_epoch());
    // It is pending once, and then the guest has an epoch for itself.
    assert!(turn.as_mut().poll(&mut context).is_ready());
    assert!(scene.state.is_checked_in_this_epoch());
    scene.epochs.advance();
    assert!(!scene.state.is_checked_in_this_epoch());
}

#[test]
fn fuel_is_told_at_each_check_and_never_less_than_none() {
    let scene = Scene::new(None, Some(1000));
    for (left, used) in [(1000, 0), (999, 1), (1, 999), (0, 1000), (2000, 0)] {
        let checked = scene.state.check(&scene.stop, scene.start, || left);
        assert!(matches!(checked, Ok(false)));
        assert_eq!(scene.usage.fuel(), used);
    }
}

/// A call that is pending `left` times, and makes a host call each time if `calls`.
struct Call {
    left: u32,
    calls: bool,
    guest: Arc<PreemptionState>,
    polls: u32,
}

impl Future for Call {
    type Output = u32;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<u32> {
        self.polls += 1;
        if self.left == 0 {
            return Poll::Ready(self.polls);
        }
        self.left -= 1;
        self.guest.set_host_call_pending(self.calls);
        Poll::Pending
    }
}

#[test]
fn yields_of_the_engine_are_skipped_and_others_are_not() {
    let scene = Scene::new(None, Some(1000));
    let call = |calls| Call {
        left: 5,
        calls,
        guest: Arc::clone(&scene.state),
        polls: 0,
    };
    let mut context = Context::from_waker(Waker::noop());
    // A host call that is pending is polled again at once.
    let metered = || FuelYields::new(Some(Arc::clone(&scene.state)));
    let mut skipped = metered().skipped(call(true));
    assert_eq!(Pin::new(&mut skipped).poll(&mut context), Poll::Ready(6));
    // What is pending without one waits to be woken.
    let mut waits = metered().skipped(call(false));
    for _ in 0..5 {
        assert!(Pin::new(&mut waits).poll(&mut context).is_pending());
    }
    assert_eq!(Pin::new(&mut waits).poll(&mut context), Poll::Ready(6));
    // So does all of a guest that is not metered.
    let mut waits = FuelYields::new(None).skipped(call(true));
    for _ in 0..5 {
        assert!(Pin::new(&mut waits).poll(&mut context).is_pending());
    }
}
