//! Modules that outlive their request: take them in, validate, compile, keep, list, delete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::shutting_down;
use super::tenant::Tenant;
use super::{Pass, Runner, Untold, before};
use crate::module::Description;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels};
use crate::sandbox::{self, CodeUse, Source, Variant};
use crate::store::{Assembly, Blob, Keep, Known, Pulled, hashed, not_found};

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
    /// How long it may take, to name it.
    allowed: Duration,
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
            let allowed = humantime::format_duration(self.allowed);
            let message = format!(
                "the upload took longer than the {allowed} that it may (store.upload_timeout)"
            );
            return Err(Refusal::new(Reason::MalformedRequest, message)
                .with("allowed", allowed)
                .with("limit", "store.upload_timeout"));
        }
        self.assembly.push(piece).await
    }
}

impl Runner {
    /// Makes ready for a module that arrives in pieces.
    ///
    /// # Errors
    /// `QUEUE_FULL` where `store.uploads` arrive already; `SHUTTING_DOWN`.
    pub fn arrive(&self, tenant: &Tenant) -> Result<Arriving, Refusal> {
        Ok(Arriving {
            assembly: self.assembly(tenant, "chunk")?,
            until: Instant::now() + self.upload_timeout,
            allowed: self.upload_timeout,
        })
    }

    fn assembly(&self, tenant: &Tenant, field: &'static str) -> Result<Assembly, Refusal> {
        let place: Pass = self.admission.arrive(tenant.line)?;
        let spool = tenant.store.spool();
        Ok(spool.assemble(field, tenant.policy.max_module, Box::new(place)))
    }

    /// Keeps a module that arrived in pieces and is, where that was said, the one of `expected`.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH`, and those of [`Self::keep`].
    pub async fn keep_arrived(
        &self,
        tenant: &Tenant,
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
                Some(_) | None => self.keep_now(tenant, wasm, digest, about).await,
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
        tenant: &Tenant,
        until: Option<Instant>,
        wasm: Bytes,
        about: About,
    ) -> Result<Taken, Refusal> {
        let work = async {
            let (wasm, digest) = hashed(wasm).await?;
            self.keep_now(tenant, wasm.into(), digest, about).await
        };
        before(until, work).await
    }

    /// Pulls a module from an OCI registry and keeps it; the second value is the reference with its digest.
    ///
    /// # Errors
    /// `POLICY_DENIED` for a registry that is not allowed, those of the registry, and those of [`Self::keep`].
    pub async fn pull(
        &self,
        tenant: &Tenant,
        until: Option<Instant>,
        reference: &str,
        about: About,
    ) -> Result<(Taken, String), Refusal> {
        let assembly = self.assembly(tenant, "oci")?;
        let work = async {
            let Pulled {
                wasm,
                digest,
                resolved,
            } = self.registries.pull(reference, assembly).await?;
            let taken = self.keep_now(tenant, wasm, digest, about).await?;
            Ok((taken, resolved))
        };
        before(until, work).await
    }

    async fn keep_now(
        &self,
        tenant: &Tenant,
        wasm: Blob,
        digest: Digest,
        about: About,
    ) -> Result<Taken, Refusal> {
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
        let default = tenant.policy.ceilings.require_fuel;
        let stack = tenant.policy.ceilings.default_stack_class();
        // That another tenant has it already is not this one's to know: it is told what its own first load is told.
        let had = !tenant.has_code_in_common() || tenant.store.find(digest).await?.is_some();
        let code = tenant.code_of(digest);
        let code_use = CodeUse {
            tenant: tenant.line,
            kept: true,
        };
        let grants = &tenant.policy.grants;
        let (mut cached, mut compiled_in) = (had, Duration::ZERO);
        let mut description = None;
        for metered in [Some(default), (metered && !default).then_some(true)]
            .into_iter()
            .flatten()
        {
            let variant = Variant { metered, stack };
            let modules = self.sandbox.modules();
            let loaded = match modules.ready(code, variant, code_use).await? {
                Some(loaded) => {
                    sandbox::check_proposals(&loaded.inspection, grants)?;
                    if !had {
                        compiled_in += loaded.compiled_in;
                    }
                    loaded
                }
                None => {
                    let wanted = self.wanted(tenant, code_use, Source::Here(wasm.clone()));
                    let inspected = modules.inspect(code, wanted.clone()).await?;
                    sandbox::check_proposals(&inspected.inspection, grants)?;
                    let (loaded, ready) = modules.get(code, variant, wanted, inspected).await?;
                    if !ready || !had {
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
        let known = tenant.store.keep(keep).await?;
        Ok(Taken {
            kept: self.kept(tenant, known),
            cached,
            compiled_in,
            untold,
        })
    }

    fn kept(&self, tenant: &Tenant, known: impl Into<Arc<Known>>) -> Kept {
        let known = known.into();
        let cached_in = match tenant.has_code_in_common() {
            // It may be there because of another.
            true => Vec::new(),
            false => {
                let code = tenant.code_of(known.digest);
                self.sandbox.modules().cached_in(code)
            }
        };
        Kept { known, cached_in }
    }

    /// A module that is kept.
    ///
    /// # Errors
    /// `MODULE_NOT_FOUND`, `STORE_UNAVAILABLE`.
    pub async fn module(
        &self,
        tenant: &Tenant,
        until: Option<Instant>,
        digest: Digest,
    ) -> Result<Kept, Refusal> {
        let known = before(until, tenant.store.find(digest)).await?;
        known
            .map(|known| self.kept(tenant, known))
            .ok_or_else(|| not_found(digest).at("digest"))
    }

    /// Up to `limit` modules after `after` that have all of `labels`, by digest, without their exports and imports; and
    /// where the next page starts.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn modules(
        &self,
        tenant: &Tenant,
        until: Option<Instant>,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<Kept>, Option<Digest>), Refusal> {
        before(until, self.page(tenant, after, limit, labels)).await
    }

    async fn page(
        &self,
        tenant: &Tenant,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<Kept>, Option<Digest>), Refusal> {
        let (mut page, mut next, mut looked_at) = (Vec::new(), after, 0);
        while looked_at < LOOKED_AT {
            let (found, after) = tenant.store.list(next, BATCH).await?;
            looked_at += BATCH;
            let mut found = found.into_iter().peekable();
            while let Some(known) = found.next() {
                let of = |key: &String| known.record.labels.get(key);
                if !labels.iter().all(|(key, value)| of(key) == Some(value)) {
                    continue;
                }
                let digest = known.digest;
                page.push(self.kept(tenant, known));
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
        tenant: &Tenant,
        until: Option<Instant>,
        digest: Digest,
    ) -> Result<bool, Refusal> {
        let work = async {
            let deleted = tenant.store.delete(digest).await?;
            let code = tenant.code_of(digest);
            if !tenant.has_code_in_common() {
                self.sandbox.modules().forget(code).await?;
            } else {
                // The code may be another's too.
                self.sandbox.modules().keep_no_longer(code, tenant.line);
            }
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
