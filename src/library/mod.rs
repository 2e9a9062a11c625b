//! The module library: takes modules in by upload, inline or by a pull from a registry, validates,
//! compiles and stores them, and lists and deletes them. A stored module outlives the request that
//! brought it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::model::module::ModuleDescription;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, Labels};
use crate::run::{PendingResponse, Runner, Tenant, shutting_down, with_deadline};
use crate::sandbox::{self, CodeUse, LoadedModule, Lookup, ModuleSource, Variant};
use crate::store::{
    Blob, BlobAssembler, ModuleEntry, NewModule, OciPuller, Pulled, hashed, not_found,
};

/// The most records that a listing asks the store for at once, and that one page looks at: where
/// few match the selector, the page ends early.
const BATCH: usize = 100;
const LOOKED_AT: usize = 1000;

/// What the caller says of a module that is to be stored.
pub struct ModuleMeta {
    /// The name of the module, for people to read.
    pub name: String,
    /// Whether to compile it for metered execution too.
    pub metered: bool,
    /// The labels that the listing can be filtered by.
    pub labels: Labels,
}

/// An upload of a module in pieces. It holds one of the `store.uploads` permits for as long as its
/// bytes are being assembled in a file, or are needed from there.
pub struct Upload {
    assembly: BlobAssembler,
    deadline: Instant,
    /// The time that the upload may take, for the message of a refusal.
    allowed: Duration,
}

/// A module in the store of a tenant.
pub struct StoredModule {
    /// The entry of the module in the store.
    pub known: Arc<ModuleEntry>,
    /// Where its compiled code is held now: "memory", "disk". It is always empty where other
    /// tenants may share the code.
    pub cached_in: Vec<&'static str>,
}

/// The result of storing a module.
pub struct StoreReceipt {
    /// The module that was stored.
    pub kept: StoredModule,
    /// Whether nothing had to be compiled, as far as the tenant may know.
    pub cached: bool,
    /// The time that was spent on compiling it.
    pub compiled_in: Duration,
    /// A guard that counts the answer as not yet given. A drain waits for it, and the answer takes
    /// it along.
    pub pending_response: PendingResponse,
}

impl Upload {
    /// Appends the next piece of the module.
    ///
    /// # Errors
    /// `MODULE_TOO_LARGE`, `MALFORMED_REQUEST` after `store.upload_timeout`, and the errors of the
    /// place where the pieces are assembled.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        if Instant::now() > self.deadline {
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

/// The modules that are kept for tenants: taken in, listed, and deleted.
pub struct ModuleLibrary {
    runner: Arc<Runner>,
    registries: OciPuller,
    /// The time that an upload in pieces may take.
    upload_timeout: Duration,
}

impl ModuleLibrary {
    /// Creates the library of the tenants of `runner`, which also compiles what is stored. Modules
    /// are pulled from `registries`.
    pub fn new(runner: Arc<Runner>, registries: OciPuller, upload_timeout: Duration) -> Self {
        Self {
            runner,
            registries,
            upload_timeout,
        }
    }

    /// Begins an upload of a module in pieces.
    ///
    /// # Errors
    /// `QUEUE_FULL` where `store.uploads` modules are arriving already, and `SHUTTING_DOWN`.
    pub fn begin_upload(&self, tenant: &Tenant) -> Result<Upload, Refusal> {
        Ok(Upload {
            assembly: self.assembly(tenant, "chunk")?,
            deadline: Instant::now() + self.upload_timeout,
            allowed: self.upload_timeout,
        })
    }

    fn assembly(&self, tenant: &Tenant, field: &'static str) -> Result<BlobAssembler, Refusal> {
        let place = self.runner.acquire_upload(tenant)?;
        let spool = tenant.store.spool();
        Ok(spool.assemble(field, tenant.policy.max_module, place))
    }

    /// Stores a module that was uploaded in pieces, after checking its digest where one is
    /// `expected`.
    ///
    /// # Errors
    /// `DIGEST_MISMATCH`, and those of [`Self::store_inline`].
    pub async fn store_upload(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        arrived: Upload,
        expected: Option<Digest>,
        about: ModuleMeta,
    ) -> Result<StoreReceipt, Refusal> {
        let work = async {
            let (wasm, digest) = arrived.assembly.finish().await?;
            match expected {
                Some(expected) if expected != digest => Err(mismatch(expected, digest)),
                Some(_) | None if wasm.is_empty() => Err(Refusal::invalid("chunk", "is empty")),
                Some(_) | None => self.store_module(tenant, wasm, digest, about).await,
            }
        };
        with_deadline(deadline, work).await
    }

    /// Validates, compiles and stores a module that came in one piece.
    ///
    /// # Errors
    /// Those of the module, `STORE_FULL` and `STORE_UNAVAILABLE`.
    pub async fn store_inline(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        wasm: Bytes,
        about: ModuleMeta,
    ) -> Result<StoreReceipt, Refusal> {
        let work = async {
            let (wasm, digest) = hashed(wasm).await?;
            self.store_module(tenant, wasm.into(), digest, about).await
        };
        with_deadline(deadline, work).await
    }

    /// Pulls a module from an OCI registry and stores it. The second value is the reference with
    /// its digest.
    ///
    /// # Errors
    /// `POLICY_DENIED` for a registry that is not allowed, those of the registry, and those of
    /// [`Self::store_inline`].
    pub async fn pull(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        reference: &str,
        about: ModuleMeta,
    ) -> Result<(StoreReceipt, String), Refusal> {
        let assembly = self.assembly(tenant, "oci")?;
        let work = async {
            let Pulled {
                wasm,
                digest,
                resolved,
            } = self.registries.pull(reference, assembly).await?;
            let taken = self.store_module(tenant, wasm, digest, about).await?;
            Ok((taken, resolved))
        };
        with_deadline(deadline, work).await
    }

    async fn store_module(
        &self,
        tenant: &Tenant,
        wasm: Blob,
        digest: Digest,
        about: ModuleMeta,
    ) -> Result<StoreReceipt, Refusal> {
        // The answer is counted before admission is looked at: a drain either waits for this or is
        // seen here.
        let pending_response = self.runner.track_response();
        if self.runner.is_closed() {
            return Err(shutting_down());
        }
        let ModuleMeta {
            name,
            metered,
            labels,
        } = about;
        let default = tenant.policy.ceilings.require_fuel;
        let stack = tenant.policy.ceilings.default_stack_class();
        // This tenant may not learn that another tenant has the module already: it is told what its
        // own first load is told.
        let had = !tenant.shares_code() || tenant.store.find(digest).await?.is_some();
        let (mut cached, mut compiled_in) = (had, Duration::ZERO);
        let mut description = None;
        for metered in [Some(default), (metered && !default).then_some(true)]
            .into_iter()
            .flatten()
        {
            let variant = Variant { metered, stack };
            let (loaded, was_ready) = self.compile(tenant, digest, &wasm, variant).await?;
            cached &= was_ready;
            if !was_ready || !had {
                compiled_in += loaded.compile_time;
            }
            description.get_or_insert_with(|| loaded.inspection.description.clone());
        }
        let description: ModuleDescription =
            description.ok_or_else(|| Refusal::internal("no variant to compile"))?;
        let keep = NewModule {
            digest,
            wasm,
            name,
            labels,
            description,
        };
        let known = tenant.store.insert(keep).await?;
        Ok(StoreReceipt {
            kept: self.kept(tenant, known),
            cached,
            compiled_in,
            pending_response,
        })
    }

    /// Compiles one variant of a module, and reports whether it was compiled already.
    async fn compile(
        &self,
        tenant: &Tenant,
        digest: Digest,
        wasm: &Blob,
        variant: Variant,
    ) -> Result<(Arc<LoadedModule>, bool), Refusal> {
        let modules = self.runner.sandbox().modules();
        let grants = &tenant.policy.grants;
        let code = tenant.code_key(digest);
        let code_use = CodeUse {
            tenant: tenant.id,
            kept: true,
        };
        let missing = match modules.look_up(code, variant, code_use).await? {
            Lookup::Missing(missing) => missing,
            Lookup::Loaded(loaded) => {
                sandbox::check_proposals(&loaded.inspection, grants)?;
                return Ok((loaded, true));
            }
        };
        let source = ModuleSource::Inline(wasm.clone());
        let request = self.runner.compile_request(tenant, code_use, source);
        let inspected = missing.inspect(request).await?;
        sandbox::check_proposals(inspected.inspection(), grants)?;
        inspected.compile().await
    }

    fn kept(&self, tenant: &Tenant, known: impl Into<Arc<ModuleEntry>>) -> StoredModule {
        let known = known.into();
        let cached_in = match tenant.shares_code() {
            // The code may be there because of another tenant.
            true => Vec::new(),
            false => {
                let code = tenant.code_key(known.digest);
                self.runner.sandbox().modules().cached_in(code)
            }
        };
        StoredModule { known, cached_in }
    }

    /// Looks up a stored module by its digest.
    ///
    /// # Errors
    /// `MODULE_NOT_FOUND` and `STORE_UNAVAILABLE`.
    pub async fn module(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        digest: Digest,
    ) -> Result<StoredModule, Refusal> {
        let known = with_deadline(deadline, tenant.store.find(digest)).await?;
        known
            .map(|known| self.kept(tenant, known))
            .ok_or_else(|| not_found(digest).at_field("digest"))
    }

    /// Lists up to `limit` modules after `after` that have all of `labels`, in the order of digests
    /// and without their exports and imports. The second value is where the next page starts.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn modules(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<StoredModule>, Option<Digest>), Refusal> {
        with_deadline(deadline, self.page(tenant, after, limit, labels)).await
    }

    async fn page(
        &self,
        tenant: &Tenant,
        after: Option<Digest>,
        limit: usize,
        labels: &BTreeMap<String, String>,
    ) -> Result<(Vec<StoredModule>, Option<Digest>), Refusal> {
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

    /// Deletes a module; returns false where it was not stored. Runs that use the module keep it.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn delete_module(
        &self,
        tenant: &Tenant,
        deadline: Option<Instant>,
        digest: Digest,
    ) -> Result<bool, Refusal> {
        let work = async {
            let deleted = tenant.store.delete(digest).await?;
            let code = tenant.code_key(digest);
            if !tenant.shares_code() {
                self.runner.sandbox().modules().forget(code).await?;
            } else {
                // The code may be another tenant's too.
                self.runner
                    .sandbox()
                    .modules()
                    .demote_to_inline(code, tenant.id);
            }
            Ok(deleted)
        };
        with_deadline(deadline, work).await
    }
}

fn mismatch(expected: Digest, found: Digest) -> Refusal {
    Refusal::new(
        Reason::DigestMismatch,
        format!("the bytes have the digest {found}; {expected} was expected"),
    )
    .at_field("digest")
    .with("asked", expected)
    .with("found", found)
}
