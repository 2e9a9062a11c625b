use std::time::SystemTime;

use proptest::prelude::*;

use super::*;
use crate::event_log::{EventLog, EventLogBudget};
use crate::model::request::Labels;
use crate::run::origin::Origin;
use crate::run::record::RunTerms;

const WINDOW: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_nanos(1);
const MOST: usize = 3;

fn run_by(method: RunMethod, key: &str) -> Arc<Run> {
    let origin = Origin {
        method,
        caller: "a test".into(),
        tenant: "a tenant".into(),
        trace: Default::default(),
    };
    let log = EventLog::new(0, EventLogBudget::new(0));
    let id = RunId::new("here");
    let terms = RunTerms {
        labels: Labels::default(),
        detached: true,
        key: Some(key.into()),
        keeps_output: true,
    };
    Run::new(id, origin, terms, log, None)
}

fn run(key: &str) -> Arc<Run> {
    run_by(RunMethod::Run, key)
}

fn end(run: &Run) {
    let refusal = Refusal::new(Reason::QueueFull, "of a test");
    run.log.finish(SystemTime::now(), Arc::new(Err(refusal)));
}

fn spec(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn keys() -> (IdempotencyKeys, Instant) {
    (IdempotencyKeys::new(WINDOW, MOST), Instant::now())
}

/// Checks that both tables name the same keys.
fn check(keys: &IdempotencyKeys) {
    let inner = keys.lock();
    assert_eq!(inner.taken.len(), inner.ending.len());
    assert!(inner.taken.len() <= keys.most);
    for ((end, id), key) in &inner.ending {
        let claim = &inner.taken[key];
        assert_eq!((claim.end, claim.id), (*end, *id));
    }
}

/// What became of a claim.
#[derive(Debug, PartialEq, Eq)]
enum Claimed {
    First,
    Same(RunId),
    Refused(Reason),
}

fn claim(keys: &IdempotencyKeys, run: &Arc<Run>, text: &str, now: Instant) -> Claimed {
    let key = run.key.as_deref().unwrap();
    let claimed = match keys.take(run, key, spec(text), now) {
        Ok(None) => Claimed::First,
        Ok(Some(first)) => Claimed::Same(first.id),
        Err(refusal) => Claimed::Refused(refusal.reason()),
    };
    check(keys);
    claimed
}

#[test]
fn a_key_is_claimed_once_and_then_names_its_run() {
    let (keys, now) = keys();
    let first = run("a");
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    for _ in 0..3 {
        let again = claim(&keys, &run("a"), "spec", now + WINDOW - TICK);
        assert_eq!(again, Claimed::Same(first.id));
    }
    assert_eq!(claim(&keys, &run("b"), "spec", now), Claimed::First);
}

#[test]
fn a_key_belongs_to_its_method() {
    let (keys, now) = keys();
    for method in [RunMethod::Run, RunMethod::RunStream, RunMethod::Interact] {
        let run = run_by(method, "a");
        assert_eq!(claim(&keys, &run, "spec", now), Claimed::First);
        assert_eq!(claim(&keys, &run, "spec", now), Claimed::Same(run.id));
    }
}

#[test]
fn another_spec_is_a_conflict_that_names_the_run() {
    let (keys, now) = keys();
    let first = run("a");
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    let refusal = keys.take(&run("a"), "a", spec("another"), now).unwrap_err();
    assert_eq!(refusal.reason(), Reason::IdempotencyConflict);
    assert_eq!(refusal.field(), Some("spec.idempotency_key"));
    let fact = ("run_id".into(), first.id.to_string());
    assert!(refusal.metadata().contains(&fact), "{refusal:?}");
    // The conflict has changed nothing.
    assert_eq!(
        claim(&keys, &run("a"), "spec", now),
        Claimed::Same(first.id)
    );
}

#[test]
fn a_run_that_is_not_remembered_keeps_its_key_to_the_end_of_the_window() {
    let (keys, now) = keys();
    let first = run("a");
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    drop(first);
    let gone = Claimed::Refused(Reason::RunNotFound);
    assert_eq!(claim(&keys, &run("a"), "spec", now + WINDOW - TICK), gone);
    let conflict = Claimed::Refused(Reason::IdempotencyConflict);
    assert_eq!(claim(&keys, &run("a"), "other", now), conflict);
    let next = run("a");
    assert_eq!(claim(&keys, &next, "other", now + WINDOW), Claimed::First);
}

#[test]
fn a_key_is_freed_by_its_own_run_alone() {
    let (keys, now) = keys();
    let (first, second) = (run("a"), run("a"));
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    keys.free(&second);
    assert_eq!(claim(&keys, &second, "spec", now), Claimed::Same(first.id));
    keys.free(&first);
    check(&keys);
    assert_eq!(claim(&keys, &second, "other", now), Claimed::First);
    // The first run has it no more, so that it frees nothing a second time.
    keys.free(&first);
    assert_eq!(claim(&keys, &first, "other", now), Claimed::Same(second.id));
}

#[test]
fn the_window_of_an_ended_run_ends_to_the_nanosecond() {
    let (keys, now) = keys();
    let first = run("a");
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    end(&first);
    keys.age(now + WINDOW - TICK);
    assert_eq!(
        claim(&keys, &run("a"), "spec", now + WINDOW - TICK),
        Claimed::Same(first.id)
    );
    keys.age(now + WINDOW);
    assert!(keys.lock().taken.is_empty());
    check(&keys);
}

#[test]
fn the_window_of_a_run_that_goes_on_is_extended() {
    let (keys, now) = keys();
    let first = run("a");
    assert_eq!(claim(&keys, &first, "spec", now), Claimed::First);
    let late = now + 10 * WINDOW;
    assert_eq!(
        claim(&keys, &run("a"), "spec", late),
        Claimed::Same(first.id)
    );
    end(&first);
    let last = late + WINDOW;
    assert_eq!(
        claim(&keys, &run("a"), "spec", last - TICK),
        Claimed::Same(first.id)
    );
    assert_eq!(claim(&keys, &run("a"), "spec", last), Claimed::First);
}

#[test]
fn no_key_is_dropped_early_to_make_room() {
    let (keys, now) = keys();
    let runs = ["a", "b", "c"].map(run);
    for (after, run) in (0..).zip(&runs) {
        let at = now + after * TICK;
        assert_eq!(claim(&keys, run, "spec", at), Claimed::First);
        end(run);
    }
    let full = keys.take(&run("d"), "d", spec("spec"), now).unwrap_err();
    assert_eq!(
        (full.reason(), full.retry()),
        (Reason::QueueFull, Some(RETRY))
    );
    let full = Claimed::Refused(Reason::QueueFull);
    // Who has a key already needs no room.
    assert_eq!(
        claim(&keys, &run("a"), "spec", now),
        Claimed::Same(runs[0].id)
    );
    assert_eq!(claim(&keys, &run("d"), "spec", now + WINDOW - TICK), full);
    // One window ends, and there is room for one.
    assert_eq!(
        claim(&keys, &run("d"), "spec", now + WINDOW),
        Claimed::First
    );
    assert_eq!(claim(&keys, &run("e"), "spec", now + WINDOW), full);
    keys.free(&runs[2]);
    assert_eq!(
        claim(&keys, &run("e"), "spec", now + WINDOW),
        Claimed::First
    );
}

/// A key as a test expects it: its run, the spec, and when its window ends.
struct Expected {
    run: Arc<Run>,
    spec: usize,
    end: Instant,
}

proptest! {
    #[test]
    fn keys_do_what_a_plain_list_of_them_would(
        steps in prop::collection::vec((0_u8..6, 0_usize..5, 0_usize..2, 0_u64..40), 1..100),
    ) {
        let (keys, mut now) = keys();
        let mut expected: Vec<Expected> = Vec::new();
        for (what, key, text, seconds) in steps {
            let (name, text_of) = (key.to_string(), text.to_string());
            let at = expected.iter().position(|it| it.run.key.as_ref() == Some(&name));
            match what {
                0..3 => {
                    for it in &mut expected {
                        if it.end <= now && it.run.log.end().is_none() {
                            it.end = now + WINDOW;
                        }
                    }
                    expected.retain(|it| it.end > now);
                    let at = expected.iter().find(|it| it.run.key.as_ref() == Some(&name));
                    let wanted = match at {
                        Some(it) if it.spec == text => Claimed::Same(it.run.id),
                        Some(_) => Claimed::Refused(Reason::IdempotencyConflict),
                        None if expected.len() == MOST => Claimed::Refused(Reason::QueueFull),
                        None => Claimed::First,
                    };
                    let run = run(&name);
                    let claimed = claim(&keys, &run, &text_of, now);
                    if claimed == Claimed::First {
                        expected.push(Expected { run, spec: text, end: now + WINDOW });
                    }
                    prop_assert_eq!(claimed, wanted);
                }
                3 => if let Some(at) = at {
                    end(&expected[at].run);
                },
                4 => if let Some(at) = at {
                    keys.free(&expected.swap_remove(at).run);
                    check(&keys);
                },
                _ => now += Duration::from_secs(seconds),
            }
        }
    }
}
