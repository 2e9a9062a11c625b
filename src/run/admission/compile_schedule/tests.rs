//! Tests of the compile schedule with simulated time, and with everything that two or three tenants
//! do to it.

use super::*;

const A: TenantId = TenantId::Named(0);
const B: TenantId = TenantId::Named(1);
const C: TenantId = TenantId::Named(2);
/// How often a waiter checks whether another compilation has to be preempted.
const LOOK: Duration = Duration::from_millis(100);
const QUANTUM: Duration = Duration::from_secs(1);

/// A schedule with a simulated clock, and the outcome of its decisions so far.
struct Desk {
    schedule: CompileSchedule,
    now: Instant,
    running: Vec<JobId>,
    stopped: Vec<JobId>,
    turned_away: Vec<JobId>,
    preemptible: bool,
}

impl Desk {
    fn new(places: u32, max_stopped: u32, weights: &[u32]) -> Self {
        let rules = ScheduleRules {
            slots: places,
            max_waiting: 100,
            max_stopped,
            quantum: QUANTUM,
        };
        Self {
            schedule: CompileSchedule::new(rules, weights),
            now: Instant::now(),
            running: Vec::new(),
            stopped: Vec::new(),
            turned_away: Vec::new(),
            preemptible: true,
        }
    }

    fn tell(&mut self, decisions: Vec<Decision>) {
        for decision in decisions {
            match decision {
                Decision::Start(id) => {
                    self.schedule.set_preemptible(id, self.preemptible);
                    self.running.push(id);
                }
                Decision::Resume(id) => {
                    self.stopped.retain(|it| *it != id);
                    self.running.push(id);
                }
                Decision::Stop(id) => {
                    self.running.retain(|it| *it != id);
                    self.stopped.push(id);
                    let mut more = Vec::new();
                    assert!(self.schedule.note_stopped(id, self.now, &mut more));
                    self.tell(more);
                }
                Decision::TurnAway(id) => self.turned_away.push(id),
            }
        }
        let rules = self.schedule.rules;
        assert!(self.running.len() <= rules.slots as usize);
        let all = self.running.len() + self.stopped.len();
        assert!(all <= (rules.slots + rules.max_stopped) as usize, "{all}");
        assert_eq!(self.running.len(), self.schedule.held as usize);
        assert_eq!(self.stopped.len(), self.schedule.stopped as usize);
    }

    fn arrive(&mut self, tenant: TenantId) -> JobId {
        let mut decisions = Vec::new();
        let id = self.schedule.arrive(tenant, self.now, &mut decisions);
        self.tell(decisions);
        id.unwrap()
    }

    fn end(&mut self, id: JobId, processor_time: Duration) {
        let mut decisions = Vec::new();
        self.running.retain(|it| *it != id);
        self.stopped.retain(|it| *it != id);
        self.schedule
            .end(id, processor_time, self.now, &mut decisions);
        self.tell(decisions);
    }

    /// Advances the clock by `time`, checking for preemption at every [`LOOK`] as waiters do.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now = (self.now + LOOK).min(end);
            let mut decisions = Vec::new();
            self.schedule.preempt(self.now, &mut decisions);
            self.tell(decisions);
        }
    }
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Lets two tenants compile for a while, each of which always has one that waits and whose modules
/// take so long. Returns for how long each held the slot.
fn compete(weights: [u32; 2], takes: [Duration; 2], preemptible: bool) -> [Duration; 2] {
    let mut desk = Desk::new(1, 1, &weights);
    desk.preemptible = preemptible;
    let mut of: HashMap<JobId, (TenantId, Duration)> = HashMap::new();
    let mut had = [Duration::ZERO; 2];
    let place = |tenant| usize::from(tenant == B);
    for tenant in [A, B, A, B] {
        of.insert(desk.arrive(tenant), (tenant, takes[place(tenant)]));
    }
    for _ in 0..20_000 {
        let [id] = desk.running[..] else {
            panic!("it is work-conserving")
        };
        desk.pass(LOOK);
        let (tenant, left) = of.get_mut(&id).unwrap();
        let tenant = *tenant;
        had[place(tenant)] += LOOK;
        *left = left.saturating_sub(LOOK);
        if left.is_zero() {
            desk.end(id, Duration::ZERO);
            of.insert(desk.arrive(tenant), (tenant, takes[place(tenant)]));
        }
    }
    had
}

#[test]
fn shares_are_by_time_and_weight_whatever_one_takes() {
    for (weights, takes) in [
        ([1, 1], [seconds(35), LOOK]),
        ([1, 1], [seconds(35), seconds(3)]),
        ([1, 3], [seconds(7), seconds(2)]),
        ([5, 1], [LOOK * 3, seconds(35)]),
    ] {
        for preemptible in [true, false] {
            let had = compete(weights, takes, preemptible);
            let by_weight = [0, 1].map(|i| had[i].as_secs_f64() / f64::from(weights[i]));
            let longest = takes.into_iter().max().unwrap();
            // Work under way cannot be divided: a whole module, or a quantum of one.
            let slack = if preemptible {
                QUANTUM + LOOK * 2
            } else {
                longest
            };
            let slack = slack + FIRST_ESTIMATE;
            let apart = (by_weight[0] - by_weight[1]).abs();
            assert!(
                apart <= slack.as_secs_f64(),
                "{weights:?} {takes:?} {preemptible}: {had:?}"
            );
        }
    }
}

#[test]
fn whoever_waits_has_the_place_within_a_quantum_of_one_that_holds_it_long() {
    let mut desk = Desk::new(1, 1, &[1, 1]);
    let long = desk.arrive(A);
    let next = desk.arrive(A);
    desk.pass(seconds(35));
    assert_eq!(desk.running, [long], "nobody else wants it");
    let other = desk.arrive(B);
    desk.pass(LOOK);
    assert_eq!(
        (&desk.running[..], &desk.stopped[..]),
        (&[other][..], &[long][..])
    );
    desk.pass(LOOK);
    desk.end(other, Duration::ZERO);
    assert_eq!(
        desk.running,
        [long],
        "it goes on before others of its tenant"
    );
    // It has just gone on, so the next quantum is its own.
    let other = desk.arrive(B);
    desk.pass(QUANTUM - LOOK);
    assert_eq!(desk.running, [long]);
    desk.pass(LOOK * 2);
    assert_eq!(desk.running, [other]);
    desk.end(other, Duration::ZERO);
    desk.end(long, Duration::ZERO);
    assert_eq!(desk.running, [next]);
}

#[test]
fn one_tenant_never_stops_for_itself_or_for_the_daemon() {
    for weights in [&[1][..], &[1, 1]] {
        let mut desk = Desk::new(1, 1, weights);
        let first = desk.arrive(A);
        desk.arrive(A);
        desk.pass(seconds(100));
        assert_eq!(desk.running, [first]);
    }
}

#[test]
fn what_cannot_be_stopped_is_not() {
    let mut desk = Desk::new(1, 1, &[1, 1]);
    desk.preemptible = false;
    let first = desk.arrive(A);
    desk.arrive(B);
    desk.pass(seconds(100));
    assert_eq!(desk.running, [first]);
    let mut desk = Desk::new(1, 0, &[1, 1]);
    let first = desk.arrive(A);
    desk.arrive(B);
    desk.pass(seconds(100));
    assert_eq!(desk.running, [first], "none may be stopped");
}

#[test]
fn no_more_are_stopped_than_there_is_memory_for_and_all_of_them_end() {
    let mut desk = Desk::new(1, 1, &[1, 1, 1]);
    let mut left: HashMap<JobId, Duration> = HashMap::new();
    for tenant in [A, B, C] {
        left.insert(desk.arrive(tenant), seconds(5));
    }
    let mut ended = Vec::new();
    while let [id] = desk.running[..] {
        desk.pass(LOOK);
        let it = left.get_mut(&id).unwrap();
        *it = it.saturating_sub(LOOK);
        if it.is_zero() {
            desk.end(id, Duration::ZERO);
            ended.push(id);
        }
    }
    assert_eq!(ended.len(), 3);
}

#[test]
fn a_tenant_that_was_idle_has_saved_up_nothing() {
    let mut desk = Desk::new(1, 0, &[1, 1]);
    for _ in 0..50 {
        let id = desk.arrive(A);
        desk.pass(seconds(10));
        desk.end(id, Duration::ZERO);
    }
    // From now on each tenant has its half.
    let mut had = [0, 0];
    let mut of: HashMap<JobId, TenantId> = HashMap::new();
    for tenant in [A, A, B, B] {
        of.insert(desk.arrive(tenant), tenant);
    }
    for _ in 0..40 {
        let [id] = desk.running[..] else {
            panic!("it is work-conserving")
        };
        desk.pass(seconds(2));
        had[usize::from(of[&id] == B)] += 1;
        desk.end(id, Duration::ZERO);
        of.insert(desk.arrive(of[&id]), of[&id]);
    }
    assert!((19..=21).contains(&had[0]), "{had:?}");
}

#[test]
fn processor_time_counts_where_it_is_more_than_the_time_held() {
    let mut desk = Desk::new(1, 0, &[1, 1]);
    let (first, second) = (desk.arrive(A), desk.arrive(B));
    desk.pass(seconds(1));
    // It took four threads for a second.
    desk.end(first, seconds(4));
    assert_eq!(desk.running, [second]);
    let again = [desk.arrive(A), desk.arrive(B), desk.arrive(B)];
    desk.pass(seconds(1));
    desk.end(second, seconds(1));
    assert_eq!(desk.running, [again[1]]);
    desk.pass(seconds(1));
    desk.end(again[1], seconds(1));
    assert_eq!(desk.running, [again[2]], "the first tenant has had four");
}

#[test]
fn several_at_once_are_charged_before_they_end() {
    let mut desk = Desk::new(4, 0, &[1, 1]);
    // It gets three of the four slots: one is left to others.
    let first: Vec<JobId> = (0..4).map(|_| desk.arrive(A)).collect();
    assert_eq!(desk.running, first[..3]);
    let at = |desk: &Desk| desk.schedule.tenants[A].virtual_time;
    assert_eq!(at(&desk), 3 * nanos(FIRST_ESTIMATE));
    desk.pass(FIRST_ESTIMATE * 2);
    let mut decisions = Vec::new();
    desk.schedule.preempt(desk.now, &mut decisions);
    assert_eq!(decisions, [], "there is room for others");
    assert_eq!(at(&desk), 6 * nanos(FIRST_ESTIMATE), "what they have taken");
    // The estimate of one that is over in a moment is given back, but only down to the virtual time
    // at which others have been served since.
    let served = desk.schedule.virtual_now;
    desk.end(first[0], Duration::ZERO);
    desk.end(first[3], Duration::ZERO);
    assert_eq!(at(&desk), 6 * nanos(FIRST_ESTIMATE));
    assert!(desk.schedule.virtual_now > served);
}

#[test]
fn a_full_queue_makes_way_for_the_tenant_with_less_in_it() {
    let mut desk = Desk::new(1, 0, &[1, 1]);
    desk.schedule.rules.max_waiting = 3;
    desk.arrive(A);
    let waiting: Vec<JobId> = (0..3).map(|_| desk.arrive(A)).collect();
    let refused = desk.schedule.arrive(A, desk.now, &mut Vec::new());
    assert_eq!(refused, None);
    desk.arrive(B);
    assert_eq!(desk.turned_away, [waiting[2]]);
    assert_eq!(desk.schedule.waiting(), 3);
}

#[test]
fn whoever_leaves_costs_nothing_and_holds_nobody_up() {
    let mut desk = Desk::new(1, 1, &[1, 1]);
    let first = desk.arrive(A);
    let left = desk.arrive(B);
    desk.schedule.leave(left);
    let (second, third) = (desk.arrive(A), desk.arrive(B));
    desk.pass(seconds(2));
    assert_eq!(desk.running, [third]);
    // One that was stopped ends without going on again.
    desk.end(first, seconds(1));
    desk.end(third, seconds(1));
    assert_eq!(desk.running, [second]);
    desk.end(second, seconds(1));
    assert!(desk.schedule.jobs.is_empty() && desk.schedule.waiting() == 0);
}
