//! Accounting of the descriptors that guests hold: each run has a limit of its own, and all runs
//! share a budget that leaves the daemon the descriptors that it needs itself.
//!
//! Half of the budget is divided evenly over the slots, so that each run may open a few whatever
//! others do. The rest is taken by the runs that open more, and returned as files are closed. Where
//! there are several tenants, none of them may hold the last eighth of it. A run that reaches its
//! limit, or finds the budget used up, gets an error from its own `open`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::guest_limits::ENTRIES_PER_HANDLE;

/// The number of descriptors that a process is assumed to have if its limit is unknown or
/// unlimited.
const UNLIMITED: u64 = 1 << 20;
/// The maximum number of descriptors of a run before it takes from the common part.
const MOST_EACH: usize = 16;

/// The budget of descriptors that the guests of all runs may hold.
#[derive(Debug)]
pub struct DescriptorBudget {
    /// The number of descriptors that each run may hold without taking from `common`.
    each: usize,
    /// The number of descriptors beyond that, common to all runs.
    common: usize,
    taken: AtomicUsize,
}

impl DescriptorBudget {
    /// Creates the budget of this process, for `slots` runs at once: three eighths of the
    /// descriptors that the process may have. Loaded modules may take a quarter; connections, the
    /// store and compilations have the rest.
    pub fn of_process(slots: u32) -> Arc<Self> {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.unwrap_or(UNLIMITED).min(UNLIMITED);
        Self::new(usize::try_from(limit / 8 * 3).unwrap_or(usize::MAX), slots)
    }

    fn new(descriptors: usize, slots: u32) -> Arc<Self> {
        let slots = usize::try_from(slots).unwrap_or(usize::MAX).max(1);
        let each = (descriptors / 2 / slots).min(MOST_EACH);
        Arc::new(Self {
            each,
            common: descriptors - each * slots,
            taken: AtomicUsize::new(0),
        })
    }

    /// Creates the account of a tenant, which either `shares` the budget with others or has it
    /// alone.
    pub fn account(self: &Arc<Self>, shares: bool) -> Arc<DescriptorAccount> {
        let most = if shares {
            self.common - self.common.div_ceil(8)
        } else {
            self.common
        };
        Arc::new(DescriptorAccount {
            budget: Arc::clone(self),
            most,
            taken: AtomicUsize::new(0),
        })
    }
}

/// A tenant's account of the descriptors that its runs have taken from the common part.
#[derive(Debug)]
pub struct DescriptorAccount {
    budget: Arc<DescriptorBudget>,
    most: usize,
    taken: AtomicUsize,
}

impl DescriptorAccount {
    fn take(&self) -> bool {
        if !add_up_to(&self.taken, self.most) {
            return false;
        }
        let taken = add_up_to(&self.budget.taken, self.budget.common);
        if !taken {
            self.taken.fetch_sub(1, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, count: usize) {
        self.budget.taken.fetch_sub(count, Ordering::Relaxed);
        self.taken.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Increments `counter` and returns true, unless that would make it exceed `most`.
fn add_up_to(counter: &AtomicUsize, most: usize) -> bool {
    let more = |held: usize| (held < most).then_some(held + 1);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .is_ok()
}

/// The reason why a run may not open another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum HandlesFull {
    /// The run has as many as one run may have.
    Run,
    /// Guests have as many as this process can leave them.
    Process,
}

/// The handles that one run holds. Dropping this, which happens with the run's store, returns its
/// descriptors to the budget.
#[derive(Debug)]
pub(in crate::sandbox) struct Handles {
    most: usize,
    /// The number of descriptors that it may hold without taking from the account.
    each: usize,
    held: usize,
    /// The number of handles of files in memory, which take no descriptor of the process.
    in_memory: usize,
    /// The number of `held` that were taken from the account.
    borrowed: usize,
    account: Arc<DescriptorAccount>,
    /// A bitmap of the numbers, the guest's own or a resource's, under which something is held.
    numbers: Vec<u64>,
    /// The same of what is in memory.
    numbers_in_memory: Vec<u64>,
}

impl Handles {
    /// Creates the handles of a run that may hold `most`, and holds none yet.
    pub(in crate::sandbox) fn new(most: usize, account: Arc<DescriptorAccount>) -> Self {
        Self {
            most,
            each: account.budget.each,
            held: 0,
            in_memory: 0,
            borrowed: 0,
            account,
            numbers: Vec::new(),
            numbers_in_memory: Vec::new(),
        }
    }

    /// Creates the handles of a run, which `is_kept` by a session or not. All descriptors of a
    /// session are taken from the account, since it holds them while no run is counted for it.
    pub(in crate::sandbox) fn of(
        most: usize,
        account: Arc<DescriptorAccount>,
        is_kept: bool,
    ) -> Self {
        let mut handles = Self::new(most, account);
        if is_kept {
            handles.each = 0;
        }
        handles
    }

    /// Returns the maximum number of handles that the run may hold.
    pub(in crate::sandbox) fn most(&self) -> usize {
        self.most
    }

    /// Returns the maximum number of entries in the run's resource table.
    pub(in crate::sandbox) fn table_entries(&self) -> usize {
        self.most
            .saturating_mul(usize::try_from(ENTRIES_PER_HANDLE).unwrap_or(usize::MAX))
    }

    /// Reserves a handle for a descriptor that is about to be opened. If that fails, the caller
    /// releases it again.
    pub(in crate::sandbox) fn reserve(&mut self) -> Result<(), HandlesFull> {
        if self.held + self.in_memory >= self.most {
            return Err(HandlesFull::Run);
        }
        if self.held >= self.each + self.borrowed {
            if !self.account.take() {
                return Err(HandlesFull::Process);
            }
            self.borrowed += 1;
        }
        self.held += 1;
        Ok(())
    }

    /// Takes a handle for a file or directory in memory, and returns false where the run has as
    /// many as it may have. Such a handle takes no descriptor of the process.
    pub(in crate::sandbox) fn take_in_memory(&mut self) -> bool {
        let has_room = self.held + self.in_memory < self.most;
        self.in_memory += usize::from(has_room);
        has_room
    }

    /// Records the number under which a component knows a file, directory or stream in memory.
    pub(in crate::sandbox) fn bind_in_memory(&mut self, number: u32) {
        set_bit(&mut self.numbers_in_memory, number);
    }

    /// Releases a handle of a file or directory in memory.
    pub(in crate::sandbox) fn release_in_memory(&mut self) {
        self.in_memory = self.in_memory.saturating_sub(1);
    }

    /// Releases a handle that was reserved and is not needed.
    pub(in crate::sandbox) fn release_reserved(&mut self) {
        self.held = self.held.saturating_sub(1);
        if self.borrowed > 0 {
            self.borrowed -= 1;
            self.account.give_back(1);
        }
    }

    /// Records the number under which the guest knows what was opened with the reserved handle.
    pub(in crate::sandbox) fn bind(&mut self, number: u32) {
        set_bit(&mut self.numbers, number);
    }

    /// Releases the handle that is held under `number`, if any. Closing a number that the guest
    /// never opened has no effect.
    pub(in crate::sandbox) fn close(&mut self, number: u32) {
        if self.forget(number) {
            self.release_reserved();
        } else if clear_bit(&mut self.numbers_in_memory, number) {
            self.release_in_memory();
        }
    }

    /// Records that the handle known as `from` is now known as `to`. Whatever was known as `to` is
    /// closed.
    pub(in crate::sandbox) fn renumber(&mut self, from: u32, to: u32) {
        self.close(to);
        if self.forget(from) {
            self.bind(to);
        }
    }

    fn forget(&mut self, number: u32) -> bool {
        clear_bit(&mut self.numbers, number)
    }
}

fn set_bit(bitmap: &mut Vec<u64>, number: u32) {
    let (word, bit) = place_of(number);
    if bitmap.len() <= word {
        bitmap.resize(word + 1, 0);
    }
    if let Some(word) = bitmap.get_mut(word) {
        *word |= bit;
    }
}

/// Clears a bit of a bitmap, and returns whether it was set.
fn clear_bit(bitmap: &mut [u64], number: u32) -> bool {
    let (word, bit) = place_of(number);
    let Some(word) = bitmap.get_mut(word) else {
        return false;
    };
    let held = *word & bit != 0;
    *word &= !bit;
    held
}

impl Drop for Handles {
    fn drop(&mut self) {
        if self.borrowed > 0 {
            self.account.give_back(self.borrowed);
        }
    }
}

/// Returns the word of the bitmap that holds a number, and the bit in it. Numbers are reused, so
/// the bitmap is never much larger than the number of handles.
fn place_of(number: u32) -> (usize, u64) {
    ((number / u64::BITS) as usize, 1 << (number % u64::BITS))
}

/// The set of a core module's standard descriptors 0 to 2 that are no longer what they were when it
/// began.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::sandbox) struct ReplacedStdio(u8);

impl ReplacedStdio {
    /// Records that `fd` was closed, or is another descriptor now.
    pub(in crate::sandbox) fn add(&mut self, fd: i32) {
        if (0..=2).contains(&fd) {
            self.0 |= 1 << fd;
        }
    }

    /// Reports whether that was recorded of `fd`.
    pub(in crate::sandbox) fn contains(self, fd: i32) -> bool {
        (0..=2).contains(&fd) && self.0 & (1 << fd) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{DescriptorBudget, Handles, HandlesFull};

    #[test]
    fn a_run_has_its_share_whatever_others_hold() {
        let budget = DescriptorBudget::new(100, 10);
        assert_eq!((budget.each, budget.common), (5, 50));
        let account = budget.account(false);
        let mut greedy = Handles::new(1000, account.clone());
        for number in 0..55 {
            greedy.reserve().expect("there is room");
            greedy.bind(number);
        }
        assert_eq!(greedy.reserve(), Err(HandlesFull::Process));
        let mut modest = Handles::new(1000, account);
        for _ in 0..5 {
            modest.reserve().expect("its own share");
        }
        assert_eq!(modest.reserve(), Err(HandlesFull::Process));
        greedy.close(54);
        modest.reserve().expect("one was given back");
        assert_eq!(modest.reserve(), Err(HandlesFull::Process));
        drop(greedy);
        for _ in 0..49 {
            modest.reserve().expect("all were given back");
        }
        assert_eq!(modest.reserve(), Err(HandlesFull::Process));
    }

    #[test]
    fn a_run_is_held_at_its_limit_and_only_there() {
        let mut run = Handles::new(3, DescriptorBudget::new(1000, 1).account(false));
        for number in [7, 200, 3] {
            run.reserve().expect("there is room");
            run.bind(number);
        }
        assert_eq!(run.reserve(), Err(HandlesFull::Run));
        // A number that the run never opened, or has closed already, returns nothing.
        for number in [0, 8, 4_000_000_000] {
            run.close(number);
        }
        assert_eq!(run.reserve(), Err(HandlesFull::Run));
        run.close(200);
        run.close(200);
        run.reserve().expect("one was closed");
        assert_eq!(run.reserve(), Err(HandlesFull::Run));
        // The handle that was open under the new number is closed, and the moved one is known only
        // by its new number.
        run.renumber(7, 3);
        run.reserve().expect("one was closed");
        run.close(7);
        assert_eq!(run.reserve(), Err(HandlesFull::Run));
        run.close(3);
        run.reserve().expect("one was closed");
    }

    #[test]
    fn no_tenant_of_several_holds_the_last_eighth() {
        let budget = DescriptorBudget::new(80, 80);
        assert_eq!((budget.each, budget.common), (0, 80));
        let mut first = Handles::new(1000, budget.account(true));
        let mut count = 0;
        while first.reserve().is_ok() {
            count += 1;
        }
        assert_eq!(count, 70);
        let mut second = Handles::new(1000, budget.account(true));
        for _ in 0..10 {
            second.reserve().expect("the last eighth");
        }
        assert_eq!(second.reserve(), Err(HandlesFull::Process));
    }
}
