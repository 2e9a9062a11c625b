use proptest::prelude::*;

use super::*;

/// Creates a slice that writes its number down when it is executed.
fn slice(number: usize, executed: &Arc<Mutex<Vec<usize>>>) -> Slice {
    let executed = Arc::clone(executed);
    let run = async move { executed.lock().unwrap().push(number) };
    let (slice, task) = async_task::spawn(run, |_| ());
    task.detach();
    slice
}

/// A queue under test, with the numbers of what waits in it and of what was executed.
#[derive(Default)]
struct Scene {
    ready: ReadySlices,
    new: VecDeque<usize>,
    resumed: VecDeque<usize>,
    count: usize,
    executed: Arc<Mutex<Vec<usize>>>,
}

impl Scene {
    fn push(&mut self, is_new: bool) {
        let slice = slice(self.count, &self.executed);
        let (queue, numbers) = match is_new {
            true => (&mut self.ready.new, &mut self.new),
            false => (&mut self.ready.resumed, &mut self.resumed),
        };
        queue.push_back(slice);
        numbers.push_back(self.count);
        self.count += 1;
    }

    /// Executes the next slice, and returns whether it was a new one. Those that wait have to be
    /// the oldest of their kind.
    fn pop(&mut self) -> Option<bool> {
        self.ready.pop()?.run();
        let number = *self.executed.lock().unwrap().last().unwrap();
        let is_new = self.new.front() == Some(&number);
        let numbers = match is_new {
            true => &mut self.new,
            false => &mut self.resumed,
        };
        assert_eq!(numbers.pop_front(), Some(number));
        Some(is_new)
    }
}

#[test]
fn four_new_runs_go_ahead_and_then_one_that_was_preempted() {
    let mut scene = Scene::default();
    for _ in 0..12 {
        scene.push(true);
    }
    for _ in 0..3 {
        scene.push(false);
    }
    let order: Vec<bool> = std::iter::from_fn(|| scene.pop()).collect();
    let round = [true, true, true, true, false];
    assert_eq!(order, round.repeat(3));
}

#[test]
fn new_runs_that_pass_nobody_are_not_counted() {
    let mut scene = Scene::default();
    for _ in 0..10 {
        scene.push(true);
    }
    for _ in 0..6 {
        assert_eq!(scene.pop(), Some(true));
    }
    scene.push(false);
    let order: Vec<bool> = std::iter::from_fn(|| scene.pop()).collect();
    assert_eq!(order, [true, true, true, true, false]);
}

#[test]
fn a_weight_of_nothing_counts_as_one() {
    assert_eq!(TenantQueue::new(0).weight(), 1);
    assert_eq!(TenantQueue::new(7).weight(), 7);
}

proptest! {
    #[test]
    fn nothing_that_was_preempted_is_passed_more_often_than_allowed_and_nothing_is_lost(
        steps in prop::collection::vec((0_u8..3, 1_usize..5), 1..200),
    ) {
        let mut scene = Scene::default();
        // How many new runs went ahead since something preempted was served.
        let mut streak = 0;
        for (what, times) in steps {
            for _ in 0..times {
                match what {
                    0 => scene.push(true),
                    1 => scene.push(false),
                    _ => {
                        let waits = (!scene.new.is_empty(), !scene.resumed.is_empty());
                        let before = streak;
                        let popped = scene.pop();
                        prop_assert_eq!(popped.is_some(), waits.0 || waits.1);
                        streak = match (popped, waits.1) {
                            (Some(true), true) => streak + 1,
                            _ => 0,
                        };
                        prop_assert!(streak <= MAX_NEW_STREAK);
                        // Nothing that was preempted goes before a new one without need.
                        let is_due = !waits.0 || before == MAX_NEW_STREAK;
                        prop_assert!(popped != Some(false) || is_due);
                    }
                }
            }
        }
        let left = scene.new.len() + scene.resumed.len();
        prop_assert_eq!(std::iter::from_fn(|| scene.pop()).count(), left);
        let mut executed = scene.executed.lock().unwrap().clone();
        executed.sort_unstable();
        prop_assert!(executed.into_iter().eq(0..scene.count));
    }
}
