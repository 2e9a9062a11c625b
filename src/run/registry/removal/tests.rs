//! Tests that what is deleted, and output that is not to be kept, is gone, with all that it took.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use super::super::Selector;
use super::super::tests::{asked, asked_with, check, exited, tenant};
use super::*;
use crate::event_log::{EventPayload, EventReader};
use crate::model::outcome::Stream;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunId;
use crate::run::hold::Hold;
use crate::run::origin::{Origin, RunMethod, RunTrace};
use crate::run::record::{Holder, Run, RunTerms};
use crate::run::tenant::Tenant;

/// Starts a run that writes `output` to both streams, and returns its number.
fn ended_with(tenant: &Arc<Tenant>, run: &Arc<Run>, output: &str) -> u128 {
    tenant.registry.add(run);
    run.log.start(SystemTime::now());
    run.log.write(Stream::Stdout, output.as_bytes());
    run.log.write(Stream::Stderr, output.as_bytes());
    tenant.registry.end(run, exited(0));
    run.id.number()
}

/// Reads what a viewer is told from event `from` on: the bytes of output, the lost events, and
/// whether the end came.
fn viewed(reader: &mut EventReader) -> (Vec<u8>, u64, bool) {
    let mut context = Context::from_waker(Waker::noop());
    let (mut output, mut lost, mut is_over) = (Vec::new(), 0, false);
    while let Poll::Ready(Some(event)) = reader.poll_next(&mut context) {
        match event.payload {
            EventPayload::Output(_, bytes) => output.extend_from_slice(&bytes),
            EventPayload::Lost { count, .. } => lost += count,
            EventPayload::End(_) => is_over = true,
            EventPayload::Started | EventPayload::File { .. } => {}
        }
    }
    (output, lost, is_over)
}

/// Reads a run from its start as somebody who comes later does.
fn viewed_later(tenant: &Arc<Tenant>, id: &RunId) -> (Vec<u8>, u64, bool) {
    let registry = &tenant.registry;
    let viewed_by = registry.view(id, |run| {
        let hold = Hold::new(registry, run, Holder::Viewer);
        Ok::<_, u64>((run.log.view(0)?, hold))
    });
    let (mut reader, hold) = viewed_by.unwrap().unwrap();
    let told = viewed(&mut reader);
    drop((reader, hold));
    told
}

#[test]
fn output_that_is_not_kept_is_dropped_once_the_last_caller_has_left() {
    let (tenant, _turn) = tenant();
    let registry = &tenant.registry;
    for key in [None, Some("k".to_owned())] {
        let run = asked_with(tenant, key, &[], false);
        let callers = [(); 2].map(|()| Hold::new(registry, &run, Holder::Caller));
        let viewer = Hold::new(registry, &run, Holder::Viewer);
        let mut reads = run.log.view(0).unwrap();
        ended_with(tenant, &run, "secret");
        let id = run.id;
        let record = registry.find(&id).unwrap().record();
        assert!(!record.keeps_output);
        let held = tenant.logged();
        assert!(held > 2 * "secret".len());
        let [first, last] = callers;
        drop(first);
        assert_eq!(tenant.logged(), held, "a caller has yet to be told");
        assert!(!run.is_forgotten());
        drop(last);
        assert_eq!(tenant.logged(), 0);
        assert!(run.is_forgotten());
        // Who reads it already, and who comes later, are told what is lost, and then the end.
        assert_eq!(viewed(&mut reads), (Vec::new(), 2, true));
        drop((reads, viewer, run));
        for _ in 0..2 {
            assert_eq!(viewed_later(tenant, &id), (Vec::new(), 2, true));
            let again = registry.find(&id).unwrap().record();
            assert_eq!(
                (again.next_seq, again.keeps_output),
                (record.next_seq, false)
            );
        }
        let inner = registry.lock();
        assert!(
            inner
                .ended
                .after(0)
                .all(|(_, _, past)| past.whole.is_none())
        );
    }
    assert_eq!(tenant.logged(), 0);
}

#[test]
fn output_of_a_run_that_nobody_called_is_dropped_at_its_end() {
    let (tenant, _turn) = tenant();
    let run = asked_with(tenant, None, &[], false);
    let viewer = Hold::new(&tenant.registry, &run, Holder::Viewer);
    let mut reads = run.log.view(0).unwrap();
    ended_with(tenant, &run, "secret");
    assert_eq!(tenant.logged(), 0);
    assert_eq!(viewed(&mut reads), (Vec::new(), 2, true));
    drop((reads, viewer));
}

#[test]
fn a_deletion_gives_back_what_the_runs_took() {
    let (tenant, _turn) = tenant();
    let registry = &tenant.registry;
    let kept = asked(tenant, None);
    ended_with(tenant, &kept, "kept");
    let before = (registry.size(), tenant.logged());
    let mut numbers = Vec::new();
    for key in [None, Some("a".to_owned()), None] {
        let run = asked(tenant, key);
        numbers.push(ended_with(tenant, &run, "deleted"));
    }
    // One that was refused, and one that goes on.
    let refused = asked(tenant, None);
    registry.add(&refused);
    registry.end(&refused, Err(Refusal::new(Reason::QueueFull, "of a test")));
    numbers.push(refused.id.number());
    let going = asked(tenant, None);
    registry.add(&going);
    let unknown = RunId::new("elsewhere").number();
    let asked_for = [&numbers[..], &[going.id.number(), unknown]].concat();
    assert_ne!((registry.size(), tenant.logged()), before);
    let batch = registry.delete_numbers(&asked_for, false);
    assert_eq!((batch.deleted, batch.unfinished), (numbers, 1));
    assert_eq!((registry.size(), tenant.logged()), before);
    let again = registry.delete_numbers(&asked_for, false);
    assert_eq!((again.deleted, again.unfinished), (Vec::new(), 1));
    check(tenant);
    assert!(registry.find(&kept.id).is_some() && registry.find(&going.id).is_some());
}

#[test]
fn a_caller_of_a_run_that_is_deleted_gets_all_of_its_output() {
    let (tenant, _turn) = tenant();
    let registry = &tenant.registry;
    let run = asked(tenant, Some("k".to_owned()));
    let caller = Hold::new(registry, &run, Holder::Caller);
    let mut owner = run.log.follow_reliably();
    let viewer = Hold::new(registry, &run, Holder::Viewer);
    let mut reads = run.log.view(0).unwrap();
    let number = ended_with(tenant, &run, "all");
    assert_eq!(registry.delete_numbers(&[number], false).deleted, [number]);
    assert!(registry.find(&run.id).is_none());
    assert!(registry.view(&run.id, |_| Ok::<_, u64>(())).is_none());
    // Nobody joins it by its key any more.
    assert!(run.is_forgotten());
    assert_eq!(viewed(&mut owner), (b"allall".to_vec(), 0, true));
    drop((owner, caller));
    assert_eq!(tenant.logged(), 0);
    assert_eq!(viewed(&mut reads), (Vec::new(), 2, true));
    drop((reads, viewer, run));
    assert_eq!(registry.size(), (0, 0));
    check(tenant);
}

#[test]
fn runs_are_selected_by_the_millisecond_of_their_ids() {
    let (tenant, _turn) = tenant();
    let registry = &tenant.registry;
    let numbered = |millis: u64, rest: u128| RunId::first_number_at(millis) | rest;
    let last = (1 << 80) - 1;
    let numbers = [
        numbered(999, last),
        numbered(1000, 0),
        numbered(1000, last),
        numbered(1001, 5),
        numbered(1002, 0),
    ];
    for number in numbers {
        let id = RunId::of(number, &registry.instance);
        let origin = Origin {
            method: RunMethod::Run,
            caller: "a test".into(),
            tenant: Arc::clone(&tenant.name),
            trace: RunTrace::None,
        };
        let terms = RunTerms {
            labels: Labels::default(),
            detached: true,
            key: None,
            keeps_output: true,
        };
        let run = Run::new(id, origin, terms, tenant.new_log(), None);
        assert_eq!(id.time_asked(run.asked), run.asked);
        ended_with(tenant, &run, "x");
    }
    let listed = |since, until, before: Option<u128>| {
        let asked = TimeRange::new(since, until);
        let before = before.map(|number| RunId::of(number, &registry.instance));
        let mut all = Vec::new();
        let mut next = before;
        loop {
            let (page, more) = registry.list(&Selector::default(), asked, next, 1);
            all.extend(page.iter().map(|record| record.id.number()));
            next = more;
            if next.is_none() {
                all.reverse();
                return all;
            }
        }
    };
    assert_eq!(listed(None, None, None), numbers);
    assert_eq!(listed(Some(1000), None, None), numbers[1..]);
    assert_eq!(listed(None, Some(1000), None), numbers[..1]);
    assert_eq!(listed(Some(1000), Some(1001), None), numbers[1..3]);
    assert_eq!(listed(Some(1000), Some(1002), None), numbers[1..4]);
    assert_eq!(listed(Some(1002), Some(1003), None), numbers[4..]);
    // A token of another range, before its start and after its end.
    assert_eq!(listed(Some(1000), None, Some(numbers[0])), []);
    assert_eq!(listed(None, Some(1000), Some(numbers[4])), numbers[..1]);
    assert_eq!(listed(Some(1001), Some(1001), None), []);
    let asked = TimeRange::new(Some(1000), Some(1002));
    let end = registry.end_number();
    let batch = registry.delete_matching(&Labels::default(), asked, end, false);
    let deleted: Vec<u128> = numbers[1..4].iter().rev().copied().collect();
    assert_eq!(
        (batch.deleted, batch.unfinished, batch.next),
        (deleted, 0, None)
    );
    assert_eq!(listed(None, None, None), [numbers[0], numbers[4]]);
    check(tenant);
}
