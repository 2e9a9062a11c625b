//! Locks that no panic makes unusable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also where a thread panicked while it held the lock.
///
/// Nothing in this daemon panics while it holds a lock: the code under one is short and has no
/// index, arithmetic or call that could fail. If something did all the same, the state would be
/// whole at every step, and going on is better than a daemon whose every later call panics.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
