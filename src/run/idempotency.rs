//! Idempotency keys: within a window of time, a second request with the same key is answered with
//! the run of the first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::origin::RunMethod;
use super::record::Run;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, RunId};
use crate::sync::lock;

/// How long a caller is told to wait where too many keys are in use.
const RETRY: Duration = Duration::from_secs(5);

type IdempotencyKey = (RunMethod, String);

/// The idempotency keys of one tenant, each with the run that it belongs to.
#[derive(Debug)]
pub(super) struct IdempotencyKeys {
    window: Duration,
    /// The most keys at once. No key is dropped early, since that would execute its run a second
    /// time.
    most: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    taken: HashMap<IdempotencyKey, Claim>,
    /// The keys in the order in which their windows end.
    ending: BTreeMap<(Instant, RunId), IdempotencyKey>,
}

#[derive(Debug)]
struct Claim {
    fingerprint: Digest,
    id: RunId,
    run: Weak<Run>,
    /// When the window ends. It is extended for as long as the run goes on.
    end: Instant,
}

impl IdempotencyKeys {
    /// Creates a table of at most `most` keys, each of which holds for `window`, and for as long as
    /// its run goes on.
    pub(super) fn new(window: Duration, most: usize) -> Self {
        Self {
            window,
            most,
            inner: Mutex::default(),
        }
    }

    /// Returns the number of keys that are held, and the most that may be.
    pub(super) fn usage(&self) -> (u64, u64) {
        (self.lock().taken.len() as u64, self.most as u64)
    }

    /// Claims the key for `run` at `now`, or returns the run that has it already.
    ///
    /// # Errors
    /// `IDEMPOTENCY_CONFLICT` where that is a run of another spec; `RUN_NOT_FOUND` where it is not
    /// remembered any more; `QUEUE_FULL` where too many keys are in use.
    pub(super) fn take(
        &self,
        run: &Arc<Run>,
        key: &str,
        fingerprint: Digest,
        now: Instant,
    ) -> Result<Option<Arc<Run>>, Refusal> {
        let key = (run.origin.method, key.to_owned());
        let mut inner = self.lock();
        inner.drop_ended(self.window, now);
        if let Some(taken) = inner.taken.get(&key) {
            return taken.answer(fingerprint).map(Some);
        }
        if inner.taken.len() >= self.most {
            let message = format!(
                "{} idempotency keys are in use already (runs.idempotency_keys)",
                self.most
            );
            return Err(Refusal::new(Reason::QueueFull, message)
                .with("allowed", self.most)
                .with("limit", "runs.idempotency_keys")
                .retry_after(RETRY));
        }
        let end = now + self.window;
        let taken = Claim {
            fingerprint,
            id: run.id,
            run: Arc::downgrade(run),
            end,
        };
        inner.taken.insert(key.clone(), taken);
        inner.ending.insert((end, run.id), key);
        Ok(None)
    }

    /// Releases the key of a run that never started.
    pub(super) fn free(&self, run: &Run) {
        let Some(key) = &run.key else {
            return;
        };
        let key = (run.origin.method, key.clone());
        let mut inner = self.lock();
        if inner.taken.get(&key).is_some_and(|it| it.id == run.id)
            && let Some(Claim { end, id, .. }) = inner.taken.remove(&key)
        {
            inner.ending.remove(&(end, id));
        }
    }

    /// Drops the keys whose window is over at `now` and whose run has ended.
    pub(super) fn age(&self, now: Instant) {
        self.lock().drop_ended(self.window, now);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Claim {
    fn answer(&self, fingerprint: Digest) -> Result<Arc<Run>, Refusal> {
        let id = &self.id;
        if self.fingerprint != fingerprint {
            const FIELD: &str = "spec.idempotency_key";
            let message = format!("belongs to run {id}, whose spec is another");
            return Err(
                Refusal::of_field(Reason::IdempotencyConflict, FIELD, message).with("run_id", id),
            );
        }
        self.run.upgrade().ok_or_else(|| forgotten_run(id))
    }
}

/// Builds the refusal of a key whose run is not remembered, or not with its output.
pub(super) fn forgotten_run(id: &RunId) -> Refusal {
    let message = format!(
        "run {id} had this key, and it or its output is not remembered any more (runs.history, runs.history_age, runs.history_bytes, spec.keep_output, RunService.DeleteRuns)"
    );
    Refusal::new(Reason::RunNotFound, message)
        .at_field("spec.idempotency_key")
        .with("run_id", id)
}

impl Inner {
    fn drop_ended(&mut self, window: Duration, now: Instant) {
        let mut going = Vec::new();
        while let Some(((end, _), _)) = self.ending.first_key_value()
            && *end <= now
            && let Some(((_, id), key)) = self.ending.pop_first()
        {
            let Some(taken) = self.taken.get_mut(&key) else {
                continue;
            };
            if taken
                .run
                .upgrade()
                .is_some_and(|run| run.log.end().is_none())
            {
                taken.end = now + window;
                going.push(((taken.end, id), key));
            } else {
                self.taken.remove(&key);
            }
        }
        self.ending.extend(going);
    }
}

#[cfg(test)]
mod tests;
