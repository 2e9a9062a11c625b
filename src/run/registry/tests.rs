//! Tests that the index, the places and the bounds of the registry hold, whatever happens in
//! whatever order.

use std::sync::OnceLock;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::runtime::Runtime;

use super::*;
use crate::bench::BenchDaemon;
use crate::model::outcome::{Outcome, RunReport, Stream, Written};
use crate::model::refusal::{Reason, Refusal};
use crate::run::hold::Hold;
use crate::run::origin::{Origin, RunMethod};
use crate::run::record::{Holder, RunTerms};
use crate::run::tenant::Tenant;
use crate::sync::lock;

const RUNS: usize = 8;
const BYTES: usize = 23 << 10;

/// Returns a tenant of a daemon that has little room for history. The guard makes sure that one
/// test at a time has it.
pub(super) fn tenant() -> (&'static Arc<Tenant>, MutexGuard<'static, ()>) {
    static DAEMON: OnceLock<(Runtime, BenchDaemon)> = OnceLock::new();
    static TURN: Mutex<()> = Mutex::new(());
    let turn = lock(&TURN);
    let (_, daemon) = DAEMON.get_or_init(|| {
        let runtime = Runtime::new().unwrap();
        let context = runtime.enter();
        let set = [
            ("runs.history", "8"),
            ("runs.history_bytes", "23KiB"),
            ("runs.log_budget", "1MiB"),
            ("runs.log_bytes", "128KiB"),
            ("admission.slots", "1"),
        ];
        let daemon = BenchDaemon::new(&set);
        drop(context);
        (runtime, daemon)
    });
    let tenant = daemon.tenant();
    clear(&tenant.registry);
    (tenant, turn)
}

/// Removes all runs, in flight and ended.
fn clear(registry: &Registry) {
    let nothing = HistoryLimits {
        runs: 0,
        age: Duration::ZERO,
        bytes: 0,
    };
    let mut inner = registry.lock();
    inner.forget(nothing, Instant::now(), &registry.logs);
    let live = std::mem::take(&mut inner.live);
    inner.index.clear();
    drop(inner);
    drop(live);
}

pub(super) fn asked(tenant: &Arc<Tenant>, key: Option<String>) -> Arc<Run> {
    asked_with(tenant, key, &[], true)
}

/// Creates a run of `tenant` with labels, whose output is kept or not.
pub(super) fn asked_with(
    tenant: &Arc<Tenant>,
    key: Option<String>,
    labels: &[(&str, &str)],
    keeps_output: bool,
) -> Arc<Run> {
    let origin = Origin {
        method: RunMethod::Run,
        caller: "a test".into(),
        tenant: Arc::clone(&tenant.name),
        trace: Default::default(),
    };
    let id = RunId::new(&tenant.registry.instance);
    let log = tenant.new_log();
    let terms = RunTerms {
        labels: labelled(labels),
        detached: true,
        key,
        keeps_output,
    };
    Run::new(id, origin, terms, log, None)
}

fn labelled(labels: &[(&str, &str)]) -> Labels {
    let owned = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    Labels::new("labels", owned).unwrap()
}

pub(super) fn exited(code: u32) -> RunEnd {
    Ok(RunReport {
        outcome: Outcome::Exited(code),
        trap: None,
        duration: Duration::from_millis(1),
        instantiation: None,
        cpu_time: Duration::ZERO,
        fuel_consumed: None,
        memory_used: 0,
        memory_denied: false,
        values: Vec::new(),
        stdin_read: 0,
        stdout: Written::default(),
        stderr: Written::default(),
        uncollected: None,
        session: None,
    })
}

/// Checks that the index and the places agree, that everything is within its bounds, and that the
/// list and the changes name each run once.
pub(super) fn check(tenant: &Tenant) {
    let registry = &tenant.registry;
    let inner = registry.lock();
    let Inner {
        index,
        live,
        ended,
        refused,
        ..
    } = &*inner;
    assert_eq!(index.len(), live.len() + ended.len() + refused.len());
    for (number, place) in index {
        let found = match *place {
            RunLocation::Live(key) => live[key].run.id.number(),
            RunLocation::Ended(at) => ended.get(at).unwrap().0.run.number,
            RunLocation::Refused(at) => refused.get(at).unwrap().0.run.number,
        };
        assert_eq!(*number, found);
    }
    assert!(ended.len() + refused.len() <= RUNS && refused.len() <= RUNS.div_ceil(10));
    assert!(ended.bytes() + refused.bytes() <= BYTES && refused.bytes() <= BYTES / 10);
    for ring in [ended, refused] {
        let changes: Vec<u64> = ring.after(0).map(|(_, change, _)| change).collect();
        assert!(changes.is_sorted_by(|a, b| a < b));
    }
    drop(inner);
    let numbers: Vec<u128> = registry.lock().index.keys().rev().copied().collect();
    let mut listed = Vec::new();
    let mut before = None;
    loop {
        let (page, next) = registry.list(&Selector::default(), TimeRange::default(), before, 3);
        listed.extend(page.iter().map(|record| record.id.number()));
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(listed, numbers);
    let last = registry.lock().last;
    let mut followed: Vec<u128> = Vec::new();
    let mut seen = 0;
    loop {
        let changes = registry.changes(seen + 1, last);
        let Some((change, _)) = changes.last() else {
            break;
        };
        seen = *change;
        followed.extend(changes.into_iter().map(|(_, it)| it.record().id.number()));
    }
    followed.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(followed, numbers, "each run once");
}

#[derive(Clone, Debug)]
enum Step {
    Ask {
        key: bool,
        held: bool,
        keeps: bool,
    },
    Start(usize),
    Write(usize, usize),
    Change(usize),
    End(usize),
    Let(usize),
    View(usize),
    /// Deletes a run by its number, which may go on.
    Delete(usize),
    /// Deletes all runs of a label that have ended.
    DeleteLabelled(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0..16_usize;
    prop_oneof![
        3 => any::<(bool, bool, bool)>()
            .prop_map(|(key, held, keeps)| Step::Ask { key, held, keeps }),
        2 => at.clone().prop_map(Step::Start),
        2 => (at.clone(), 1..200_000_usize).prop_map(|(at, size)| Step::Write(at, size)),
        1 => at.clone().prop_map(Step::Change),
        3 => at.clone().prop_map(Step::End),
        2 => at.clone().prop_map(Step::Let),
        2 => at.clone().prop_map(Step::View),
        2 => at.prop_map(Step::Delete),
        1 => any::<bool>().prop_map(Step::DeleteLabelled),
    ]
}

/// What a test holds of a registry: the runs in flight, the holds on runs, and all ids.
struct World {
    tenant: &'static Arc<Tenant>,
    going: Vec<Arc<Run>>,
    holds: Vec<Hold>,
    ids: Vec<RunId>,
}

impl World {
    fn of(tenant: &'static Arc<Tenant>) -> Self {
        Self {
            tenant,
            going: Vec::new(),
            holds: Vec::new(),
            ids: Vec::new(),
        }
    }

    fn ask(&mut self, key: bool, held: bool, keeps: bool) {
        let key = key.then(|| self.ids.len().to_string());
        let labels = [("keeps", if keeps { "yes" } else { "no" })];
        let run = asked_with(self.tenant, key, &labels, keeps);
        if held {
            self.holds
                .push(Hold::new(&self.tenant.registry, &run, Holder::Caller));
        }
        self.ids.push(run.id);
        self.tenant.registry.add(&run);
        self.going.push(run);
    }

    fn end(&self, run: &Arc<Run>) {
        let end = match run.log.started() {
            Some(_) => exited(7),
            None => Err(Refusal::new(Reason::QueueFull, "of a test")),
        };
        self.tenant.registry.end(run, end);
    }

    fn view(&mut self, id: RunId) {
        let registry = &self.tenant.registry;
        let viewed = registry.view(&id, |run| {
            let viewer = run.log.view(0)?;
            Ok::<_, u64>((Hold::new(registry, run, Holder::Viewer), viewer.next_seq()))
        });
        assert_eq!(viewed.is_some(), registry.find(&id).is_some());
        if let Some(Ok((hold, _))) = viewed {
            self.holds.push(hold);
        }
    }

    fn delete(&self, id: RunId) {
        let registry = &self.tenant.registry;
        let found = registry.find(&id);
        let is_ended = matches!(found, Some(FoundRun::Ended(_)));
        let expected = DeletedBatch {
            deleted: if is_ended {
                vec![id.number()]
            } else {
                Vec::new()
            },
            unfinished: u64::from(matches!(found, Some(FoundRun::Live(_)))),
            next: None,
        };
        let numbers = [id.number()];
        // A dry run says the same, and changes nothing.
        let size = registry.size();
        assert_eq!(registry.delete_numbers(&numbers, true), expected);
        assert_eq!(registry.size(), size);
        assert_eq!(registry.delete_numbers(&numbers, false), expected);
        assert_eq!(registry.find(&id).is_some(), expected.unfinished > 0);
    }

    fn delete_labelled(&self, keeps: bool) {
        let registry = &self.tenant.registry;
        let labels = labelled(&[("keeps", if keeps { "yes" } else { "no" })]);
        let all = TimeRange::default();
        let end = registry.end_number();
        let planned = registry.delete_matching(&labels, all, end, true);
        assert_eq!(registry.delete_matching(&labels, all, end, false), planned);
        let left = registry.delete_matching(&labels, all, end, true);
        assert_eq!(
            (left.deleted, left.unfinished),
            (Vec::new(), planned.unfinished)
        );
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Ask { key, held, keeps } => self.ask(key, held, keeps),
            Step::Start(at) => {
                if let Some(run) = self.going.get(at) {
                    run.log.start(SystemTime::now());
                }
            }
            Step::Write(at, size) => {
                let run = self.going.get(at);
                if let Some(run) = run.filter(|it| it.log.started().is_some()) {
                    run.log.write(Stream::Stdout, &vec![b'x'; size]);
                }
            }
            Step::Change(at) => {
                if let Some(run) = self.going.get(at) {
                    self.tenant.registry.changed(run);
                }
            }
            Step::End(at) if at < self.going.len() => {
                let run = self.going.remove(at);
                self.end(&run);
            }
            Step::Let(at) if at < self.holds.len() => drop(self.holds.remove(at)),
            Step::End(_) | Step::Let(_) => {}
            Step::View(at) => {
                if let Some(id) = self.ids.iter().rev().nth(at).copied() {
                    self.view(id);
                }
            }
            Step::Delete(at) => {
                if let Some(id) = self.ids.iter().rev().nth(at).copied() {
                    self.delete(id);
                }
            }
            Step::DeleteLabelled(keeps) => self.delete_labelled(keeps),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn index_and_places_agree_whatever_happens(steps in prop::collection::vec(step(), 0..120)) {
        let (tenant, _turn) = tenant();
        let registry = &tenant.registry;
        let mut world = World::of(tenant);
        // A subscription, as if somebody watched: only then does a run in flight change.
        let _news = registry.news.subscribe();
        for step in steps {
            world.take(&step);
            check(tenant);
            prop_assert!(tenant.logged() <= (1 << 20) + 200_000);
        }
        // When nobody holds anything, all runs that ended are packed, except those with an
        // idempotency key.
        world.holds.clear();
        for run in std::mem::take(&mut world.going) {
            world.end(&run);
        }
        check(tenant);
        let inner = registry.lock();
        let past = inner.ended.after(0).chain(inner.refused.after(0));
        for (_, _, past) in past {
            prop_assert!(past.whole.as_ref().is_none_or(|run| !run.may_be_packed()));
            let keeps = past.run.labels().get("keeps") == Some("yes");
            prop_assert!(keeps || !past.kept.is_held() && past.whole.is_none());
        }
        drop(inner);
        clear(registry);
        prop_assert_eq!(tenant.logged(), 0);
    }
}

#[test]
fn a_run_that_has_ended_takes_little() {
    let size = size_of::<HistoryEntry>();
    assert!(size <= 512, "{size}");
}

#[test]
fn what_is_packed_is_read_as_it_was_written() {
    let (tenant, _turn) = tenant();
    let registry = &tenant.registry;
    let run = asked(tenant, None);
    registry.add(&run);
    run.log.start(SystemTime::now());
    for piece in ["one ", "two"] {
        run.log.write(Stream::Stdout, piece.as_bytes());
        run.log.write(Stream::Stderr, piece.as_bytes());
    }
    let id = run.id;
    registry.end(&run, exited(7));
    let before = registry.find(&id).unwrap().record();
    assert!(run.may_be_packed());
    drop(run);
    for _ in 0..3 {
        let viewed = registry.view(&id, |run| {
            let hold = Hold::new(registry, run, Holder::Viewer);
            Ok::<_, u64>((hold, run.log.view(0)?, run.record()))
        });
        let (hold, mut viewer, whole) = viewed.unwrap().unwrap();
        assert_eq!((whole.next_seq, whole.id), (before.next_seq, id));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut output: Vec<Bytes> = Vec::new();
        let mut last = 0;
        while let std::task::Poll::Ready(Some(event)) = viewer.poll_next(&mut context) {
            last = event.seq;
            if let crate::event_log::EventPayload::Output(_, bytes) = event.payload {
                output.push(bytes);
            }
        }
        assert_eq!(output, ["one ", "one ", "two", "two"]);
        assert_eq!(last + 1, before.next_seq);
        drop((viewer, hold));
    }
    // There is no event to begin with beyond the end.
    let refused = registry.view(&id, |run| run.log.view(99).map(drop));
    assert_eq!(refused.unwrap().unwrap_err(), before.next_seq - 1);
    let inner = registry.lock();
    let mut past = inner.ended.after(0);
    assert!(past.next().unwrap().2.whole.is_none(), "nobody holds it");
}
