//! Modules that outlive their request: take them in, validate, compile, keep, list, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::shutting_down;
use super::{Runner, Untold, before};
use crate::module::Description;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels};
use crate::sandbox::{Source, Variant};
use crate::store::{Assembly, Blob, Keep, Known, Pulled, hashed, not_found};

/// What a caller is told to wait while too many modules arrive.
const RETRY: Duration = Duration::from_secs(1);
/// Records that a listing asks for at once, and that one page looks at, at the most: a selector that few match ends a
/// page early.
const BATCH: usize = 100;
const LOOKED_AT: usize = 1000;

/// What a module is to be called.
pub struct About {
    /// Its name for people.
    pub name: String,
    /// Compile it for metered execution too.
    pub metered: bool,
    /// Metadata.
    pub labels: Labels,
}

/// A module that arrives in pieces. It counts under `store.uploads` for as long as it is in a file that is put together,
/// or its bytes are needed from there.
pub struct Arriving {
    assembly: Assembly,
    until: Instant,
}

/// A module that is kept.
pub struct Kept {
    /// As the store knows it.
    pub known: Arc<Known>,
    /// Where its compiled form is held now.
    pub cached_in: Vec<&'static str>,
}

/// A module that [`Runner::keep`] took.
pub struct Taken {
    /// The module.
    pub kept: Kept,
    /// Whether nothing had to be compiled.
    pub cached: bool,
    /// Time spent compiling.
    pub compiled_in: Duration,
    /// A drain waits for what has not been told yet; the answer takes it along.
    pub untold: Untold,
}

impl Arriving {
    /// Adds the next piece.
    ///
    /// # Errors
    /// `MODULE_TOO_LARGE`, `MALFORMED_REQUEST` after `store.upload_timeout`, and those of the place where it is put
    /// together.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        if Instant::now() > self.until {
            let message = "the upload took too long (store.upload_timeout)";
            return Err(Refusal::new(Reason::MalformedRequest, message));
        }
        self.assembly.push(piece).await
    }
}

impl Runner {
    /// Makes ready for a module that arrives in pieces.
    ///
    /// # Errors
    /// `QUEUE_FULL` where `store.uploads` arrive already; `SHUTTING_DOWN`.
    pub fn arrive(&self) -> Result<Arriving, Refusal> {
        Ok(Arriving {
            assembly: self.assembly("chunk")?,
            until: Instant::now() + self.upload_timeout,
        })
    }

    fn assembly(&self, field: &'static str) -> Result<Assembly, Refusal> {
        if self.admission.is_closed() {
            return Err(shutting_down());
        }
        let place = Arc::clone(&self.arrivals).try_acquire_owned();
        let place = place.map_err(|_| {
            let message = "too many modules are arriving (store.uploads)";
            Refusal::new(Reason::QueueFull, message).retry_after(RETRY)
        })?;
        let spool = self.store.spool();
        Ok(spool.assemble(field, self.policy.max_module, place))
    }

    /// Keeps a module that arrived in pieces and is, where that was said, the one of `expected`.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH`, and those of [`Self::keep`].
    pub async fn keep_arrived(
        &self,
        until: Option<Instant>,
        arrived: Arriving,
        expected: Option<Digest>,
        about: About,
    ) -> Result<Taken, Refusal> {
        let work = async {
            let (wasm, digest) = arrived.assembly.finish().await?;
            match expected {
                Some(expected) if expected != digest => Err(mismatch(expected, digest)),
                Some(_) | None if wasm.is_empty() => Err(Refusal::invalid("chunk", "is empty")),
                Some(_) | None => self.keep_now(wasm, digest, about).await,
            }
        };
        before(until, work).await
    }

    /// Validates, compiles and keeps a module.
    ///
    /// # Errors
    /// Those of the module, `STORE_FULL`, `STORE_UNAVAILABLE`.
    pub async fn keep(
        &self,
        until: Option<Instant>,
        wasm: Bytes,
        about: About,
    ) -> Result<Taken, Refusal> {
        let work = async {
            let (wasm, digest) = hashed(wasm).await?;
            self.keep_now(wasm.into(), digest, about).await
        };
        before(until, work).await
    }

    /// Pulls a module from an OCI registry and keeps it; the second value is the reference with its digest.
    ///
    /// # Errors
    /// `POLICY_DENIED` for a registry that is not allowed, those of the registry, and those of [`Self::keep`].
    pub async fn pull(
        &self,
        until: Option<Instant>,
        reference: &str,
        about: About,
    ) -> Result<(Taken, String), Refusal> {
        let assembly = self.assembly("oci")?;
        let work = async {
            let Pulled {
                wasm,
                digest,
                resolved,
            } = self.registries.pull(reference, assembly).await?;
            let taken = self.keep_now(wasm, digest, about).await?;
            Ok((taken, resolved))
        };
        before(until, work).await
    }

    async fn keep_now(&self, wasm: Blob, digest: Digest, about: About) -> Result<Taken, Refusal> {
        // Counted before the look: a drain either waits for this or is seen here.
        let untold = self.inflight.untold();
        if self.admission.is_closed() {
            return Err(shutting_down());
        }
        let About {
            name,
            metered,
            labels,
        } = about;
        let default = self.policy.ceilings.require_fuel;
        let stack = self.policy.ceilings.default_stack_class();
        let (mut cached, mut compiled_in) = (true, Duration::ZERO);
        let mut description = None;
        for metered in [Some(default), (metered && !default).then_some(true)]
            .into_iter()
            .flatten()
        {
            let variant = Variant { metered, stack };
            let modules = self.sandbox.modules();
            let loaded = match modules.ready(digest, variant).await? {
                Some(loaded) => loaded,
                None => {
                    let source = || Source::Here(wasm.clone());
                    let inspected = modules.inspect(digest, source()).await?;
                    let (loaded, ready) = modules.get(digest, variant, source(), inspected).await?;
                    if !ready {
                        cached = false;
                        compiled_in += loaded.compiled_in;
                    }
                    loaded
                }
            };
            description.get_or_insert_with(|| loaded.inspection.description.clone());
        }
        let description: Description =
            description.ok_or_else(|| Refusal::internal("no variant to compile"))?;
        let keep = Keep {
            digest,
            wasm,
            name,
            labels,
            description,
        };
        let known = self.store.keep(keep).await?;
        Ok(Taken {
            kept: self.kept(known),
            cached,
            compiled_in,
            untold,
        })
    }

    fn kept(&self, known: impl Into<Arc<Known>>) -> Kept {
        let known = known.into();
        let cached_in = self.sandbox.modules().cached_in(known.digest);
        Kept { known, cached_in }
    }

    /// A module that is kept.
    ///
    /// # Errors
    /// `MODULE_NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn module(&self, until: Option<Instant>, digest: Digest) -> Result<Kept, Refusal> {
        let known = before(until, self.store.find(digest)).await?;
        known
            .map(|known| self.kept(known))
            .ok_or_else(|| not_found(digest).at("digest"))
    }

    /// Up to `limit` modules after `after` that have all of `labels`, by digest, without their exports and imports; and
    /// where the next page starts.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn modules(
        &self,
        until: Option<Instant>,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<Kept>, Option<Digest>), Refusal> {
        before(until, self.page(after, limit, labels)).await
    }

    async fn page(
        &self,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<Kept>, Option<Digest>), Refusal> {
        let (mut page, mut next, mut looked_at) = (Vec::new(), after, 0);
        while looked_at < LOOKED_AT {
            let (found, after) = self.store.list(next, BATCH).await?;
            looked_at += BATCH;
            let mut found = found.into_iter().peekable();
            while let Some(known) = found.next() {
                let of = |key: &String| known.record.labels.get(key);
                if !labels.iter().all(|(key, value)| of(key) == Some(value)) {
                    continue;
                }
                let digest = known.digest;
                page.push(self.kept(known));
                if page.len() == limit {
                    let more = found.peek().is_some() || after.is_some();
                    return Ok((page, more.then_some(digest)));
                }
            }
            next = after;
            if next.is_none() {
                break;
            }
        }
        Ok((page, next))
    }

    /// Deletes a module; false where it was not kept. Runs that have it keep it.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn delete_module(
        &self,
        until: Option<Instant>,
        digest: Digest,
    ) -> Result<bool, Refusal> {
        let work = async {
            let deleted = self.store.delete(digest).await?;
            self.sandbox.modules().forget(digest).await?;
            Ok(deleted)
        };
        before(until, work).await
    }
}

fn mismatch(expected: Digest, found: Digest) -> Refusal {
    Refusal::new(
        Reason::DigestMismatch,
        format!("the bytes have the digest {found}; {expected} was expected"),
    )
    .at("digest")
    .with("asked", expected)
    .with("found", found)
}
