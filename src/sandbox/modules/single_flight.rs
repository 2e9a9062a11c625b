//! Single flight: requests for the same thing share one piece of work, which goes on when the
//! caller that asked first leaves.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use crate::model::refusal::Refusal;
use crate::sync::lock;

type Work<V> = Shared<BoxFuture<'static, Result<V, Refusal>>>;

/// The work in flight, by key.
pub(in crate::sandbox) struct SingleFlight<K, V> {
    under_way: Arc<Mutex<HashMap<K, Work<V>>>>,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
        }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Returns what `work` gives, or joins the same work if it is in flight already. If `ready` has
    /// the value, no work is started, and the second value returned is true. `ready` is asked under
    /// the lock that the end of the work takes too, so that a value is found either there or in
    /// flight.
    ///
    /// # Errors
    /// Those of the work.
    pub(in crate::sandbox) async fn run<F>(
        &self,
        key: K,
        ready: impl FnOnce() -> Option<V>,
        work: impl FnOnce() -> F,
    ) -> Result<(V, bool), Refusal>
    where
        F: Future<Output = Result<V, Refusal>> + Send + 'static,
    {
        let shared = {
            let mut under_way = lock(&self.under_way);
            if let Some(value) = ready() {
                return Ok((value, true));
            }
            under_way
                .entry(key)
                .or_insert_with(|| self.start(key, work()))
                .clone()
        };
        shared.await.map(|value| (value, false))
    }

    /// Starts the work in a task of its own, which ends by itself whether anybody waits for it or
    /// not.
    fn start<F>(&self, key: K, work: F) -> Work<V>
    where
        F: Future<Output = Result<V, Refusal>> + Send + 'static,
    {
        let under_way = Arc::clone(&self.under_way);
        #[expect(
            clippy::disallowed_methods,
            reason = "awaited by every caller through the shared future; ends by itself"
        )]
        let task = tokio::spawn(async move {
            // The guard removes the entry at the end of the work, also when that panics. It is made
            // here because a runtime that is shutting down drops a task while it is spawned, which
            // is under the lock.
            let _entry = SingleFlightGuard { under_way, key };
            work.await
        });
        async move {
            task.await
                .unwrap_or_else(|error| Err(Refusal::internal(error)))
        }
        .boxed()
        .shared()
    }
}

/// Work in flight. Dropping the guard removes the work from the map.
struct SingleFlightGuard<K: Eq + Hash, V> {
    under_way: Arc<Mutex<HashMap<K, Work<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for SingleFlightGuard<K, V> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}
