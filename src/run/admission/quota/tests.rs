use proptest::prelude::*;

use super::*;
use crate::sandbox::CompileLease;

const HOUR: Duration = Duration::from_secs(3600);

/// Rates such as the configuration takes, most of which are no whole number of nanoseconds.
fn rate() -> impl Strategy<Value = f64> {
    prop_oneof![0.001..1.0_f64, 1.0..1000.0_f64, 1000.0..1e6_f64, Just(3.0)]
}

fn bucket(per_second: f64, most: f64) -> (TokenBucket, Instant) {
    let now = Instant::now();
    (TokenBucket::new(per_second, most, now), now)
}

/// Takes tokens until none is left, and returns how many there were.
fn take_all(bucket: &mut TokenBucket) -> u32 {
    let mut taken = 0;
    while bucket.wait_for_one().is_none() {
        bucket.take_one();
        taken += 1;
    }
    taken
}

#[test]
fn a_bucket_is_full_at_first_and_never_holds_more() {
    for most in [1, 2, 3, 7, 10, 49, 97, 1000] {
        let (mut bucket, now) = bucket(f64::from(most), f64::from(most));
        assert_eq!(take_all(&mut bucket), most);
        // However long nothing is taken.
        for hours in [1, 2, 1000] {
            bucket.refill(0.0, now + hours * HOUR);
            assert_eq!(take_all(&mut bucket), most);
        }
    }
}

proptest! {
    #[test]
    fn a_refill_is_the_same_in_one_step_or_in_many(
        per_second in rate(),
        taken in 0_u32..50,
        steps in prop::collection::vec(0_u64..10_000_000_000, 1..50),
    ) {
        let (mut many, start) = bucket(per_second, 10.0);
        let mut one = TokenBucket::new(per_second, 10.0, start);
        for _ in 0..taken {
            many.take_one();
            one.take_one();
        }
        let mut now = start;
        for step in steps {
            now += Duration::from_nanos(step);
            many.refill(0.0, now);
        }
        one.refill(0.0, now);
        prop_assert_eq!(many.wait_for_one(), one.wait_for_one());
        prop_assert_eq!(many.wait_for_any(), one.wait_for_any());
        // What is taken from then on takes both as far.
        prop_assert_eq!(take_all(&mut many), take_all(&mut one));
        prop_assert_eq!(many.full_at, one.full_at);
    }

    #[test]
    fn a_token_is_there_when_it_was_said_to_be_and_not_a_nanosecond_sooner(
        per_second in rate(),
        looks in prop::collection::vec(1_u64..1000, 0..10),
    ) {
        let (mut bucket, mut now) = bucket(per_second, per_second.clamp(1.0, 20.0));
        take_all(&mut bucket);
        // To look in between changes nothing.
        for look in looks {
            bucket.refill(0.0, now);
            let wait = bucket.wait_for_one().unwrap();
            if wait > TICK {
                now += (wait / 1000 * u32::try_from(look).unwrap()).min(wait - TICK);
                bucket.refill(0.0, now);
                prop_assert!(bucket.wait_for_one().is_some());
            }
        }
        let wait = bucket.wait_for_one().unwrap();
        bucket.refill(0.0, now + wait - TICK);
        prop_assert_eq!(bucket.wait_for_one(), Some(TICK));
        bucket.refill(0.0, now + wait);
        prop_assert_eq!(bucket.wait_for_one(), None);
        bucket.take_one();
        prop_assert!(bucket.wait_for_one().is_some());
    }

    /// Counts over any window: what the bucket holds at most, and what comes back meanwhile.
    #[test]
    fn no_window_has_more_than_the_burst_and_what_came_back(
        per_second in 0.5..50.0_f64,
        gaps in prop::collection::vec(0_u64..2_000_000_000, 1..100),
    ) {
        let most = per_second.max(1.0);
        let (mut bucket, start) = bucket(per_second, most);
        let mut now = start;
        let mut taken: Vec<Instant> = Vec::new();
        for gap in gaps {
            now += Duration::from_nanos(gap);
            bucket.refill(0.0, now);
            while bucket.wait_for_one().is_none() {
                bucket.take_one();
                taken.push(now);
            }
        }
        let burst = bucket.capacity.as_nanos();
        let each = bucket.per_token.as_nanos();
        for (i, from) in taken.iter().enumerate() {
            for (j, to) in taken.iter().enumerate().skip(i) {
                let count = (j - i + 1) as u128;
                prop_assert!(count * each <= burst + to.duration_since(*from).as_nanos());
            }
        }
    }
}

fn usage(quota: Quota) -> (Arc<QuotaUsage>, Arc<TenantQueue>, Instant) {
    let (queue, now) = (TenantQueue::new(1), Instant::now());
    let usage = QuotaUsage::new_at(quota, Arc::clone(&queue), now);
    (usage, queue, now)
}

/// Checks that a refusal names `quota`, and returns when to come again.
fn retry<T: std::fmt::Debug>(refused: Result<T, Refusal>, quota: &str) -> Duration {
    let refusal = refused.unwrap_err();
    assert_eq!(refusal.reason(), Reason::TenantQuota);
    let fact = ("quota".into(), quota.to_owned());
    assert!(refusal.metadata().contains(&fact), "{refusal:?}");
    refusal.retry().unwrap()
}

#[test]
fn runs_are_counted_up_to_the_quota_and_given_back() {
    let (usage, _, now) = usage(Quota {
        runs: Some(3),
        ..Quota::default()
    });
    let mut held: Vec<_> = (0..3).map(|_| usage.count_run_at(now).unwrap()).collect();
    for _ in 0..5 {
        assert_eq!(retry(usage.count_run_at(now), "runs"), RETRY);
        drop(held.pop());
        held.push(usage.count_run_at(now).unwrap());
        assert_eq!(usage.lock().runs, 3);
    }
    held.clear();
    assert_eq!(usage.lock().runs, 0);
}

#[test]
fn no_quota_sets_no_limit() {
    let (usage, queue, now) = usage(Quota::default());
    queue.charge_off_thread(u64::MAX);
    let held: Vec<_> = (0..1000)
        .map(|_| usage.count_run_at(now).unwrap())
        .collect();
    usage.may_compile().unwrap();
    assert_eq!(usage.lock().runs, 1000);
    drop(held);
    assert_eq!(usage.lock().runs, 0);
}

#[test]
fn a_run_that_is_refused_costs_nothing_of_any_quota() {
    let (usage, _, now) = usage(Quota {
        runs: Some(2),
        runs_per_second: Some(2.0),
        ..Quota::default()
    });
    let first = usage.count_run_at(now).unwrap();
    let second = usage.count_run_at(now).unwrap();
    for _ in 0..100 {
        retry(usage.count_run_at(now), "runs");
    }
    drop((first, second));
    for _ in 0..100 {
        let wait = retry(usage.count_run_at(now), "runs_per_second");
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(usage.lock().runs, 0);
    }
    let later = now + Duration::from_millis(500);
    let _third = usage.count_run_at(later).unwrap();
    retry(usage.count_run_at(later), "runs_per_second");
}

#[test]
fn whoever_comes_again_when_told_is_let_through_and_a_nanosecond_before_is_not() {
    for rate in [0.001, 0.3, 1.0, 3.0, 7.0, 11.0, 49.0, 97.0, 300.0, 999.0] {
        let (usage, _, mut now) = usage(Quota {
            runs_per_second: Some(rate),
            ..Quota::default()
        });
        while usage.count_run_at(now).is_ok() {}
        for _ in 0..20 {
            let wait = retry(usage.count_run_at(now), "runs_per_second");
            assert!((SOONEST..=LATEST).contains(&wait));
            let early = now + wait - TICK;
            assert_eq!(
                retry(usage.count_run_at(early), "runs_per_second"),
                SOONEST,
                "{rate}"
            );
            now += wait;
            usage.count_run_at(now).unwrap();
        }
    }
}

#[test]
fn processor_time_is_a_debt_until_it_has_come_back() {
    // A second of processor time each minute: one that is used takes a minute to come back.
    let (usage, queue, now) = usage(Quota {
        cpu_seconds_per_minute: Some(1.0),
        ..Quota::default()
    });
    let cpu = "cpu_seconds_per_minute";
    queue.charge_off_thread(999_999_999);
    drop(usage.count_run_at(now).unwrap());
    // Exactly all of it, and then as much again and half of it.
    queue.charge_off_thread(1);
    assert_eq!(retry(usage.count_run_at(now), cpu), SOONEST);
    queue.charge_off_thread(1_500_000_000);
    let wait = Duration::from_secs(90) + TICK;
    assert_eq!(retry(usage.count_run_at(now), cpu), wait);
    // It is charged once.
    assert_eq!(retry(usage.count_run_at(now), cpu), wait);
    assert_eq!(retry(usage.count_run_at(now + wait - TICK), cpu), SOONEST);
    drop(usage.count_run_at(now + wait).unwrap());
    // A debt of days is told as an hour.
    queue.charge_off_thread(10_000 * 1_000_000_000);
    assert_eq!(retry(usage.count_run_at(now + wait), cpu), LATEST);
    retry(usage.may_compile(), cpu);
}

#[test]
fn no_time_is_saved_up_beyond_a_minute() {
    let (usage, queue, now) = usage(Quota {
        cpu_seconds_per_minute: Some(60.0),
        ..Quota::default()
    });
    let later = now + 100 * HOUR;
    drop(usage.count_run_at(later).unwrap());
    queue.charge_off_thread(60_000_000_000);
    retry(usage.count_run_at(later), "cpu_seconds_per_minute");
    drop(usage.count_run_at(later + TICK).unwrap());
}

#[test]
fn what_compiling_took_is_charged_once() {
    let (usage, _, now) = usage(Quota {
        cpu_seconds_per_minute: Some(60.0),
        ..Quota::default()
    });
    usage.lock().compiled += Duration::from_secs(61);
    let wait = retry(usage.count_run_at(now), "cpu_seconds_per_minute");
    assert_eq!(wait, Duration::from_secs(1) + TICK);
    drop(usage.count_run_at(now + wait).unwrap());
    // A compilation that took nothing owes nothing.
    let lease = CompileLease::new(|| ());
    let account = Arc::clone(&usage);
    drop(CompileCharge { account, lease });
    assert_eq!(usage.lock().compiled, Duration::ZERO);
}
