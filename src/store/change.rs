//! Changes to a store: keeping a module and deleting one, each to its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::MutexGuard;

use super::backend::{Key, Kind, Mode, Put};
use super::blob::{Blob, Spool};
use super::budget::{Amount, EACH, Full, Reservation, Room};
use super::known::{Known, Record, is_fresh, now};
use super::{MAX_RECORD, Store};
use crate::module::Description;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels};

/// How long bytes that this daemon wrote, or read and checked, are taken to be whole by a load of the same module.
const WHOLE: Duration = Duration::from_secs(30);
/// How often bytes are written again that another daemon deletes meanwhile.
const ATTEMPTS: usize = 4;

/// What a module is kept as.
#[derive(Clone, Debug)]
pub struct Keep {
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub wasm: Blob,
    /// Its name for people.
    pub name: String,
    /// Metadata.
    pub labels: Labels,
    /// What it is.
    pub description: Description,
}

/// What became of a module's bytes.
enum Stored {
    /// They were written.
    Written(Reservation),
    /// They were there and whole, or were replaced.
    Checked,
    /// They are there, and were whole not long ago.
    Trusted,
}

impl Store {
    /// Keeps a module, also where its caller leaves meanwhile. One that is there already gets the new name and labels.
    ///
    /// # Errors
    /// `STORE_FULL` where it does not fit the budget or the place; `STORE_UNAVAILABLE`.
    pub async fn keep(self: &Arc<Self>, module: Keep) -> Result<Arc<Known>, Refusal> {
        let store = Arc::clone(self);
        whole(async move {
            let _mine = store.writer(module.digest).await;
            store.keep_now(module).await
        })
        .await
    }

    async fn keep_now(&self, module: Keep) -> Result<Arc<Known>, Refusal> {
        let Keep {
            digest,
            wasm,
            name,
            labels,
            description,
        } = module;
        let record = Record {
            name,
            labels,
            size: wasm.len(),
            loaded: now(),
            description,
        };
        let text: Bytes = serde_json::to_vec(&record)
            .map_err(Refusal::internal)?
            .into();
        if text.len() as u64 > MAX_RECORD {
            return Err(Refusal::internal(format_args!(
                "a record of {} bytes",
                text.len()
            )));
        }
        let cost = wasm.len() + text.len() as u64 + EACH;
        let key = |kind| Key { kind, digest };
        let refused = |fault| self.refused(fault);
        for _ in 0..ATTEMPTS {
            let bytes = self.keep_bytes(digest, &wasm, cost).await?;
            let there = match self.fetch(digest).await {
                Ok(there) => there,
                // A record that is damaged is written again.
                Err(refusal) if refusal.retry().is_none() => None,
                Err(refusal) => return Err(refusal),
            };
            let same = |known: &Known| {
                known.record.name == record.name && known.record.labels == record.labels
            };
            let new = matches!(bytes, Stored::Written(_));
            let known = match there {
                Some(known) if same(&known) => known,
                Some(_) | None => {
                    let put = self.keep_record(digest, record.clone(), &text, new).await;
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
                Stored::Written(reservation) => {
                    reservation.written();
                    known.checked.store(now(), Ordering::Relaxed);
                }
                Stored::Checked => known.checked.store(now(), Ordering::Relaxed),
                Stored::Trusted => {}
            }
            // Another daemon may have deleted the bytes before the record was there.
            let size = self
                .backend
                .size(key(Kind::Module))
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

    /// Writes a record; where the bytes are `new`, it was reserved with them.
    async fn keep_record(
        &self,
        digest: Digest,
        record: Record,
        text: &Bytes,
        new: bool,
    ) -> Result<Arc<Known>, Refusal> {
        let key = Key {
            kind: Kind::Record,
            digest,
        };
        let refused = |fault| self.refused(fault);
        let before = self.backend.size(key).await.map_err(refused)?;
        let (before, after) = (before.unwrap_or_default(), text.len() as u64);
        let more = match new {
            true => None,
            false => Some(self.reserve(after.saturating_sub(before), 0).await?),
        };
        let put = self
            .backend
            .put(key, text.clone().into(), Mode::Replace)
            .await;
        put.map_err(refused)?;
        if let Some(more) = more {
            more.written();
            let bytes = before.saturating_sub(after);
            self.budget.freed(Amount { bytes, modules: 0 });
        }
        let known = self.as_known(digest, record);
        self.known.insert(digest, Arc::clone(&known));
        Ok(known)
    }

    /// Makes the place hold the bytes. Those that are there are taken for whole only where this daemon wrote or checked
    /// them not long ago.
    async fn keep_bytes(&self, digest: Digest, wasm: &Blob, cost: u64) -> Result<Stored, Refusal> {
        let key = Key {
            kind: Kind::Module,
            digest,
        };
        let refused = |fault| self.refused(fault);
        let whole = |known: &Known| is_fresh(known.checked.load(Ordering::Relaxed), WHOLE);
        let there = self.backend.size(key).await.map_err(refused)?;
        // Large ones may be in memory as a whole while they are written or checked: a few at once.
        let _turn = match wasm.len() > Spool::THRESHOLD as u64 {
            true => Some(self.heavy.acquire().await.map_err(Refusal::internal)?),
            false => None,
        };
        if there.is_none() {
            let reservation = self.reserve(cost, 1).await?;
            let put = self.backend.put(key, wasm.clone(), Mode::Create);
            if put.await.map_err(refused)? == Put::Written {
                return Ok(Stored::Written(reservation));
            }
        } else if there == Some(wasm.len())
            && self.known.get(&digest).is_some_and(|known| whole(&known))
        {
            return Ok(Stored::Trusted);
        }
        if self.wasm(digest).await.is_err() {
            let put = self.backend.put(key, wasm.clone(), Mode::Replace);
            put.await.map_err(refused)?;
        }
        Ok(Stored::Checked)
    }

    /// Takes bytes away again whose record could not be written, unless another daemon has written one meanwhile.
    async fn undo(&self, digest: Digest) {
        let key = |kind| Key { kind, digest };
        if matches!(self.backend.size(key(Kind::Record)).await, Ok(None)) {
            // Whoever writes a record after this looks for the bytes after that. What cannot be deleted now is swept.
            let _ = self.backend.delete(key(Kind::Module)).await;
        }
    }

    /// Deletes a module, also where its caller leaves meanwhile; false where it was not kept.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn delete(self: &Arc<Self>, digest: Digest) -> Result<bool, Refusal> {
        let store = Arc::clone(self);
        whole(async move {
            let _mine = store.writer(digest).await;
            store.delete_now(digest).await
        })
        .await
    }

    async fn delete_now(&self, digest: Digest) -> Result<bool, Refusal> {
        let key = |kind| Key { kind, digest };
        let refused = |fault| self.refused(fault);
        let mut sizes = [None; 2];
        for (kind, size) in Kind::ALL.into_iter().zip(&mut sizes) {
            *size = self.backend.size(key(kind)).await.map_err(refused)?;
        }
        for kind in Kind::ALL {
            self.backend.delete(key(kind)).await.map_err(refused)?;
        }
        self.shard(digest).deletions.fetch_add(1, Ordering::AcqRel);
        self.known.invalidate(&digest);
        let [module, record] = sizes;
        let each = u64::from(module.is_some());
        self.budget.freed(Amount {
            bytes: module.unwrap_or_default() + record.unwrap_or_default() + each * EACH,
            modules: each,
        });
        Ok(record.is_some())
    }

    /// The turn of whoever writes to a module.
    pub(super) async fn writer(&self, digest: Digest) -> MutexGuard<'_, ()> {
        self.shard(digest).writer.lock().await
    }

    /// Takes `bytes` of the budget, for so many more modules.
    async fn reserve(&self, bytes: u64, modules: u64) -> Result<Reservation, Refusal> {
        if !self.budget.is_counted() {
            self.count().await.map_err(|fault| self.refused(fault))?;
        }
        let reserved = self.budget.reserve(Amount { bytes, modules });
        reserved.map_err(|full| match full {
            Full::Total { budget, room } => full_of(self.name, bytes, budget, room),
            Full::Quota {
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

/// Refuses `bytes` for which the place `store` has no room. `allowed` is what would have fitted.
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

/// Does a change to its end, whoever waits for it or does not any more: half of one is worse than none.
async fn whole<T: Send + 'static>(
    change: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    #[expect(
        clippy::disallowed_methods,
        reason = "awaited here; bounded by the place's own timeouts where its caller leaves"
    )]
    let done = tokio::spawn(change).await;
    done.unwrap_or_else(|error| Err(Refusal::internal(format_args!("keeping a module: {error}"))))
}
