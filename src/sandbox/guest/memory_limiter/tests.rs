use proptest::prelude::*;

use super::*;
use crate::model::limits::WASM_PAGE_BYTES;

const LIMIT: usize = 1 << 20;

fn limiter(limit: usize) -> MemoryLimiter {
    MemoryLimiter::new(limit, Arc::default())
}

fn grows(limiter: &mut MemoryLimiter, from: usize, to: usize) -> bool {
    limiter.memory_growing(from, to, None).unwrap()
}

fn table_grows(limiter: &mut MemoryLimiter, from: usize, to: usize, most: Option<usize>) -> bool {
    limiter.table_growing(from, to, most).unwrap()
}

#[test]
fn a_memory_grows_to_the_limit_and_not_a_byte_beyond() {
    for (to, fits) in [(LIMIT - 1, true), (LIMIT, true), (LIMIT + 1, false)] {
        let mut limiter = limiter(LIMIT);
        assert_eq!(grows(&mut limiter, 0, to), fits);
        assert_eq!(limiter.denied(), !fits);
        let held = if fits { to as u64 } else { 0 };
        assert_eq!((limiter.held(), limiter.peak()), (held, held));
    }
}

#[test]
fn several_memories_have_one_limit_together() {
    let mut limiter = limiter(LIMIT);
    assert!(grows(&mut limiter, 0, LIMIT / 2));
    assert!(grows(&mut limiter, 0, LIMIT / 4));
    // A quarter is left: one of them may have it, and only what it grows by counts.
    assert!(!grows(&mut limiter, LIMIT / 4, LIMIT / 2 + 1));
    assert_eq!(limiter.held(), (LIMIT / 4 * 3) as u64);
    assert!(grows(&mut limiter, LIMIT / 2, LIMIT / 4 * 3 - 1));
    assert!(!grows(&mut limiter, LIMIT / 4, LIMIT / 4 + 2));
    assert!(grows(&mut limiter, LIMIT / 4, LIMIT / 4 + 1));
    assert!(!grows(&mut limiter, 0, 1));
    assert_eq!(
        (limiter.held(), limiter.peak()),
        (LIMIT as u64, LIMIT as u64)
    );
    // To grow by nothing always works.
    assert!(grows(&mut limiter, LIMIT, LIMIT));
}

#[test]
fn a_growth_beyond_the_modules_own_maximum_is_not_ours_to_deny() {
    let mut limiter = limiter(LIMIT);
    assert!(limiter.memory_growing(0, LIMIT + 1, Some(LIMIT)).unwrap());
    assert!(!limiter.denied());
    assert_eq!(limiter.held(), 0);
    assert!(
        !limiter
            .memory_growing(0, LIMIT + 1, Some(LIMIT + 1))
            .unwrap()
    );
    assert!(limiter.denied());
}

#[test]
fn no_size_is_too_large_to_be_counted() {
    let mut limiter = limiter(usize::MAX);
    assert!(grows(&mut limiter, 0, usize::MAX - 1));
    assert!(!grows(&mut limiter, 0, 2));
    assert!(limiter.charge(1));
    assert!(!limiter.charge(1));
    assert_eq!(limiter.held(), usize::MAX as u64);
}

#[test]
fn what_the_host_holds_counts_and_is_given_back_but_stays_in_the_peak() {
    let usage: Arc<LiveUsage> = Arc::default();
    let mut limiter = MemoryLimiter::new(LIMIT, Arc::clone(&usage));
    assert!(grows(&mut limiter, 0, LIMIT - 100));
    assert!(limiter.charge(100));
    assert!(!limiter.charge(1));
    limiter.release(100);
    assert_eq!(limiter.held(), (LIMIT - 100) as u64);
    assert_eq!(limiter.peak(), LIMIT as u64);
    assert_eq!(usage.memory(), LIMIT as u64);
    assert!(grows(&mut limiter, LIMIT - 100, LIMIT));
    // A denial is remembered, whatever comes after it.
    assert!(limiter.denied());
}

#[test]
fn tables_have_one_limit_together() {
    let most = TABLE_ELEMENTS.size();
    let mut limiter = limiter(0);
    assert!(table_grows(&mut limiter, 0, most - 1, None));
    assert!(!table_grows(&mut limiter, 0, 2, None));
    assert!(limiter.denied());
    assert!(table_grows(&mut limiter, 0, 1, None));
    assert!(!table_grows(&mut limiter, 1, 2, None));
}

#[test]
fn beyond_a_tables_maximum_only_the_pools_own_bound_is_a_denial() {
    let mut limiter = limiter(0);
    assert!(table_grows(&mut limiter, 0, 11, Some(10)));
    assert!(!limiter.denied());
    let pooled = POOLED_TABLE_ELEMENTS;
    assert!(table_grows(&mut limiter, 0, pooled, Some(pooled)));
    assert!(!limiter.denied());
    assert!(table_grows(&mut limiter, 0, pooled + 1, Some(pooled)));
    assert!(limiter.denied());
}

proptest! {
    #[test]
    fn what_is_held_is_what_was_granted_and_never_beyond_the_limit(
        limit in 0..64_usize,
        steps in prop::collection::vec((0..4_usize, 0..20_usize, any::<bool>()), 1..100),
    ) {
        let page = usize::try_from(WASM_PAGE_BYTES).unwrap();
        let limit = limit * page;
        let mut limiter = limiter(limit);
        let mut memories = [0_usize; 3];
        let (mut charged, mut peak, mut denied) = (0, 0, false);
        for (which, pages, is_release) in steps {
            let bytes = pages * page;
            let held: usize = memories.iter().sum::<usize>() + charged;
            let fits = held + bytes <= limit;
            match memories.get_mut(which) {
                Some(memory) => {
                    prop_assert_eq!(grows(&mut limiter, *memory, *memory + bytes), fits);
                    *memory += if fits { bytes } else { 0 };
                    denied |= !fits;
                }
                None if is_release => {
                    let bytes = bytes.min(charged);
                    limiter.release(bytes);
                    charged -= bytes;
                }
                None => {
                    prop_assert_eq!(limiter.charge(bytes), fits);
                    charged += if fits { bytes } else { 0 };
                    denied |= !fits;
                }
            }
            let held = memories.iter().sum::<usize>() + charged;
            peak = peak.max(held);
            prop_assert!(held <= limit);
            prop_assert_eq!(limiter.held(), held as u64);
            prop_assert_eq!(limiter.peak(), peak as u64);
            prop_assert_eq!(limiter.denied(), denied);
        }
    }
}
