//! Changes to a store, which are keeping a module and deleting one. Each runs to its end even when
//! its caller leaves.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::backend::{ObjectKey, ObjectKind, PutOutcome, WriteMode};
use super::blob::{Blob, Spool};
use super::budget::{BudgetExceeded, EACH, Reservation, Room, StoredAmount};
use super::module_entry::{ModuleEntry, ModuleRecord, is_fresh, now};
use super::{MAX_RECORD, Store};
use crate::model::module::ModuleDescription;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, Labels};

/// How long a load of the same module trusts stored bytes without reading them, after this daemon
/// wrote or verified them.
const WHOLE: Duration = Duration::from_secs(30);
/// How many times an insert is tried in all when another daemon deletes the module's bytes
/// meanwhile.
const ATTEMPTS: usize = 4;

/// A module to insert into the store, with its metadata.
#[derive(Clone, Debug)]
pub struct NewModule {
    /// The digest of the bytes in `wasm`.
    pub digest: Digest,
    /// The bytes of the module.
    pub wasm: Blob,
    /// The display name that the caller gave.
    pub name: String,
    /// The labels that the caller gave.
    pub labels: Labels,
    /// The module's exports, imports and other properties.
    pub description: ModuleDescription,
}

/// What was found or done about a module's bytes in the backend.
enum BytesOutcome {
    /// The bytes were written, under a reservation that is still to be committed.
    Written(Reservation),
    /// The bytes were there and verified as whole, or were replaced.
    Checked,
    /// The bytes are there, and this daemon wrote or verified them not long ago.
    Trusted,
}

impl Store {
    /// Keeps a module, even when its caller leaves meanwhile. A module that is there already gets
    /// the new name and labels.
    ///
    /// # Errors
    /// Returns `STORE_FULL` where the module does not fit the budget or the backend, and
    /// `STORE_UNAVAILABLE`.
    pub async fn insert(self: &Arc<Self>, module: NewModule) -> Result<Arc<ModuleEntry>, Refusal> {
        let store = Arc::clone(self);
        run_to_completion(async move {
            let _mine = store.lock_writer(module.digest).await;
            store.insert_locked(module).await
        })
        .await
    }

    async fn insert_locked(&self, module: NewModule) -> Result<Arc<ModuleEntry>, Refusal> {
        let NewModule {
            digest,
            wasm,
            name,
            labels,
            description,
        } = module;
        let record = ModuleRecord {
            name,
            labels,
            size: wasm.len(),
            loaded: now(),
            description,
        };
        let text = record_text(&record)?;
        let cost = wasm.len() + text.len() as u64 + EACH;
        let key = |kind| ObjectKey { kind, digest };
        let refused = |fault| self.backend_refusal(fault);
        for _ in 0..ATTEMPTS {
            let bytes = self.write_bytes(digest, &wasm, cost).await?;
            let there = match self.fetch_record(digest).await {
                Ok(there) => there,
                // A damaged record is written again.
                Err(refusal) if refusal.retry().is_none() => None,
                Err(refusal) => return Err(refusal),
            };
            let same = |known: &ModuleEntry| {
                known.record.name == record.name && known.record.labels == record.labels
            };
            let new = matches!(bytes, BytesOutcome::Written(_));
            let known = match there {
                Some(known) if same(&known) => known,
                Some(_) | None => {
                    let put = self.write_record(digest, record.clone(), &text, new).await;
                    match put {
                        Ok(known) => known,
                        Err(refusal) => {
                            if new {
                                self.undo(digest).await;
                            }
                            return Err(refusal);
                        }
                    }
                }
            };
            match bytes {
                BytesOutcome::Written(reservation) => {
                    reservation.commit();
                    known.verified_at.store(now(), Ordering::Relaxed);
                }
                BytesOutcome::Checked => known.verified_at.store(now(), Ordering::Relaxed),
                BytesOutcome::Trusted => {}
            }
            // Another daemon may have deleted the bytes before the record was there.
            let size = self
                .backend
                .size(key(ObjectKind::Module))
                .await
                .map_err(refused)?;
            if size == Some(wasm.len()) {
                known.touch();
                return Ok(known);
            }
        }
        Err(Refusal::internal(format_args!(
            "{digest} is deleted as often as it is loaded"
        )))
    }

    /// Writes a module's record. Where the bytes are `new`, its size was reserved together with
    /// them.
    async fn write_record(
        &self,
        digest: Digest,
        record: ModuleRecord,
        text: &Bytes,
        new: bool,
    ) -> Result<Arc<ModuleEntry>, Refusal> {
        let key = ObjectKey {
            kind: ObjectKind::Record,
            digest,
        };
        let refused = |fault| self.backend_refusal(fault);
        let before = self.backend.size(key).await.map_err(refused)?;
        let (before, after) = (before.unwrap_or_default(), text.len() as u64);
        let more = match new {
            true => None,
            false => Some(self.reserve(after.saturating_sub(before), 0).await?),
        };
        let put = self
            .backend
            .put(key, text.clone().into(), WriteMode::Replace)
            .await;
        put.map_err(refused)?;
        if let Some(more) = more {
            more.commit();
            let bytes = before.saturating_sub(after);
            self.budget.release(StoredAmount { bytes, modules: 0 });
        }
        let known = self.as_known(digest, record);
        self.entries.insert(digest, Arc::clone(&known));
        Ok(known)
    }

    /// Ensures that the backend holds the bytes. Bytes that are there are trusted only where this
    /// daemon wrote or verified them not long ago; otherwise they are read and verified.
    async fn write_bytes(
        &self,
        digest: Digest,
        wasm: &Blob,
        cost: u64,
    ) -> Result<BytesOutcome, Refusal> {
        let key = ObjectKey {
            kind: ObjectKind::Module,
            digest,
        };
        let refused = |fault| self.backend_refusal(fault);
        let whole =
            |known: &ModuleEntry| is_fresh(known.verified_at.load(Ordering::Relaxed), WHOLE);
        let there = self.backend.size(key).await.map_err(refused)?;
        // A large module may be entirely in memory while it is written or verified, so only a few
        // are at once.
        let _turn = match wasm.len() > Spool::THRESHOLD as u64 {
            true => Some(self.heavy.acquire().await.map_err(Refusal::internal)?),
            false => None,
        };
        if there.is_none() {
            let reservation = self.reserve(cost, 1).await?;
            let put = self.backend.put(key, wasm.clone(), WriteMode::Create);
            if put.await.map_err(refused)? == PutOutcome::Written {
                return Ok(BytesOutcome::Written(reservation));
            }
        } else if there == Some(wasm.len())
            && self.entries.get(&digest).is_some_and(|known| whole(&known))
        {
            return Ok(BytesOutcome::Trusted);
        }
        if self.read_wasm(digest).await.is_err() {
            let put = self.backend.put(key, wasm.clone(), WriteMode::Replace);
            put.await.map_err(refused)?;
        }
        Ok(BytesOutcome::Checked)
    }

    /// Deletes bytes whose record could not be written, unless another daemon has written a record
    /// meanwhile.
    async fn undo(&self, digest: Digest) {
        let key = |kind| ObjectKey { kind, digest };
        if matches!(self.backend.size(key(ObjectKind::Record)).await, Ok(None)) {
            // Whoever writes a record after this point checks for the bytes afterwards. What cannot
            // be deleted now is swept later.
            let _ = self.backend.delete(key(ObjectKind::Module)).await;
        }
    }

    /// Deletes a module, even when its caller leaves meanwhile. It returns false where the module
    /// was not kept.
    ///
    /// # Errors
    /// Returns `STORE_UNAVAILABLE` where the backend fails.
    pub async fn delete(self: &Arc<Self>, digest: Digest) -> Result<bool, Refusal> {
        let store = Arc::clone(self);
        run_to_completion(async move {
            let _mine = store.lock_writer(digest).await;
            store.delete_locked(digest).await
        })
        .await
    }

    async fn delete_locked(&self, digest: Digest) -> Result<bool, Refusal> {
        let key = |kind| ObjectKey { kind, digest };
        let refused = |fault| self.backend_refusal(fault);
        let mut sizes = [None; 2];
        for (kind, size) in ObjectKind::ALL.into_iter().zip(&mut sizes) {
            *size = self.backend.size(key(kind)).await.map_err(refused)?;
        }
        for kind in ObjectKind::ALL {
            self.backend.delete(key(kind)).await.map_err(refused)?;
        }
        self.shard(digest).deletions.fetch_add(1, Ordering::AcqRel);
        self.entries.invalidate(&digest);
        let [module, record] = sizes;
        let each = u64::from(module.is_some());
        self.budget.release(StoredAmount {
            bytes: module.unwrap_or_default() + record.unwrap_or_default() + each * EACH,
            modules: each,
        });
        Ok(record.is_some())
    }

    /// Locks a module against other writers in this process. Modules of the same shard share a
    /// lock.
    pub(super) async fn lock_writer(&self, digest: Digest) -> MutexGuard<'_, ()> {
        self.shard(digest).writer.lock().await
    }

    /// Reserves `bytes` and `modules` of the budget, and counts the backend first if that has not
    /// been done yet.
    async fn reserve(&self, bytes: u64, modules: u64) -> Result<Reservation, Refusal> {
        if self.budget.stored().is_none() {
            self.count()
                .await
                .map_err(|fault| self.backend_refusal(fault))?;
        }
        let reserved = self.budget.reserve(StoredAmount { bytes, modules });
        reserved.map_err(|full| match full {
            BudgetExceeded::Total { budget, room } => full_of(self.name, bytes, budget, room),
            BudgetExceeded::Quota {
                name,
                most,
                used,
                asked,
            } => {
                let message = format!(
                    "the tenant's quota is used up: of {name}, {most}, it has used {used}, and {asked} more are needed (tenants.quota.{name}); delete modules to make room"
                );
                Refusal::new(Reason::TenantQuota, message)
                    .with("quota", name)
                    .with("allowed", most)
                    .with("used", used)
                    .with("asked", asked)
                    .with("limit", format_args!("tenants.quota.{name}"))
            }
        })
    }
}

/// Builds the refusal of `bytes` for which the place called `store` has no room. Its `allowed` says
/// what would have fitted.
fn full_of(store: &str, bytes: u64, budget: u64, room: Room) -> Refusal {
    const SETTING: &str = "store.budget";
    let state = match room {
        Room::Own { used, left } => {
            format!("of its {budget} bytes {used} are used and {left} left ({SETTING})")
        }
        Room::Share { share, used } => format!(
            "of the {share} bytes that one tenant may have in it ({SETTING}) this one has used {used}"
        ),
        Room::Shared => {
            format!("all tenants together may have {budget} bytes in it ({SETTING})")
        }
    };
    let message = format!(
        "the module store is full: {bytes} bytes more are needed, and {state}; delete modules to make room"
    );
    let refusal = Refusal::new(Reason::StoreFull, message)
        .with("store", store)
        .with("asked", bytes)
        .with("limit", SETTING);
    match room {
        Room::Own { used, left } => refusal
            .with("allowed", left)
            .with("budget", budget)
            .with("used", used),
        Room::Share { share, used } => refusal
            .with("allowed", share.saturating_sub(used))
            .with("budget", share)
            .with("used", used),
        Room::Shared => refusal.with("budget", budget),
    }
}

/// Completes a change in a task of its own, even when its caller stops waiting: half a change is
/// worse than none.
async fn run_to_completion<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    #[expect(
        clippy::disallowed_methods,
        reason = "awaited here; bounded by the place's own timeouts where its caller leaves"
    )]
    let done = tokio::spawn(change).await;
    done.unwrap_or_else(|error| Err(Refusal::internal(format_args!("keeping a module: {error}"))))
}

/// Encodes a record as it is stored.
fn record_text(record: &ModuleRecord) -> Result<Bytes, Refusal> {
    let text = serde_json::to_vec(record).map_err(Refusal::internal)?;
    if text.len() as u64 > MAX_RECORD {
        let message = format_args!("a record of {} bytes", text.len()).to_string();
        return Err(Refusal::internal(message));
    }
    Ok(text.into())
}
