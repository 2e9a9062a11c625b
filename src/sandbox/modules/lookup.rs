//! Getting a module, step by step: it is looked up, inspected where its code is missing, and then
//! compiled. Each step is a type, so that none can be left out or done twice.

use std::sync::{Arc, Mutex};

use super::code_cache::CodeUse;
use super::compile_request::CompileRequest;
use super::inspection::Inspection;
use super::loaded::LoadedModule;
use super::restore::not_mapped;
use super::{Inspected, LoadedKey, ModuleCache, OpenOutcome, RefusedStage, spawn_blocking};
use crate::model::refusal::Refusal;
use crate::model::request::Digest;
use crate::sandbox::engine::Variant;

/// The result of looking up a module's code.
pub enum Lookup<'a> {
    /// The code is in memory.
    Loaded(Arc<LoadedModule>),
    /// The code is neither in memory nor on disk.
    Missing(MissingModule<'a>),
}

/// A module whose code is missing. It is inspected next.
pub struct MissingModule<'a> {
    pub(super) modules: &'a ModuleCache,
    pub(super) digest: Digest,
    pub(super) variant: Variant,
}

/// A module that was inspected. Whoever decides that it may run has it compiled; dropping this
/// ends its compile session.
pub struct InspectedModule<'a> {
    missing: MissingModule<'a>,
    request: CompileRequest,
    inspected: Inspected,
}

impl<'a> MissingModule<'a> {
    /// Validates the module that `request` brings, and reads what it is.
    ///
    /// # Errors
    /// `MODULE_INVALID`, `FEATURE_NOT_ENABLED`, `IMPORT_NOT_ALLOWED`, `COMPILE_LIMIT_EXCEEDED`,
    /// `QUEUE_FULL`, and those of the store.
    pub async fn inspect(self, request: CompileRequest) -> Result<InspectedModule<'a>, Refusal> {
        let inspected = self.modules.inspect(self.digest, request.clone()).await?;
        Ok(InspectedModule {
            missing: self,
            request,
            inspected,
        })
    }
}

impl InspectedModule<'_> {
    /// Returns what the inspection found out about the module.
    pub fn inspection(&self) -> &Inspection {
        &self.inspected.inspection
    }

    /// Compiles the module. The second value says whether it was ready, since another caller had it
    /// compiled meanwhile.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`, and those of the store.
    pub async fn compile(self) -> Result<(Arc<LoadedModule>, bool), Refusal> {
        let MissingModule {
            modules,
            digest,
            variant,
        } = self.missing;
        modules
            .get_or_compile(digest, variant, self.request, self.inspected)
            .await
    }
}

impl ModuleCache {
    /// Looks up the module in `variant`. It need not be compiled where it is in memory, or where
    /// its code is there for another stack class or on disk. From then on the tenant of `code_use`
    /// is one of its users, for as long as it stays in memory.
    ///
    /// # Errors
    /// The daemon or its host fails; nothing here is the fault of the module.
    pub async fn look_up(
        &self,
        digest: Digest,
        variant: Variant,
        code_use: CodeUse,
    ) -> Result<Lookup<'_>, Refusal> {
        let ready = match self.in_memory(digest, variant, code_use) {
            Some(loaded) => Some(loaded),
            None => {
                let restored = self.restore(digest, variant, code_use).await?;
                let lookups = &self.inner.lookups;
                match restored.is_some() {
                    true => lookups.disk.increment(),
                    false => lookups.nowhere.increment(),
                }
                restored
            }
        };
        Ok(match ready {
            Some(loaded) => Lookup::Loaded(loaded),
            None => Lookup::Missing(MissingModule {
                modules: self,
                digest,
                variant,
            }),
        })
    }

    /// Maps the module in `variant` from the code that there is for another stack class, or on
    /// disk; returns `None` where there is none.
    ///
    /// # Errors
    /// Those of [`Self::look_up`].
    async fn restore(
        &self,
        digest: Digest,
        variant: Variant,
        code_use: CodeUse,
    ) -> Result<Option<Arc<LoadedModule>>, Refusal> {
        let (inner, key) = (&self.inner, LoadedKey { digest, variant });
        let on_disk = || inner.on_disk(digest, variant.metered).is_some();
        if inner.any_stack_class(key, code_use).is_none() && !on_disk() {
            return Ok(None);
        }
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let _place = inner.reading.acquire().await.map_err(Refusal::internal)?;
                let reader = Arc::clone(&inner);
                spawn_blocking(move || reader.restore(key, code_use)).await
            }
        };
        let ready = || inner.loaded.get(&key, code_use).map(Some);
        let (restored, _) = self.restoring.run(key, ready, work).await?;
        // The work in flight may be another tenant's, so this tenant's use is noted here.
        inner.loaded.touch(&key, code_use);
        Ok(restored)
    }

    /// Validates a module and reads what it is.
    ///
    /// # Errors
    /// `MODULE_INVALID`, `FEATURE_NOT_ENABLED`, `IMPORT_NOT_ALLOWED`, `COMPILE_LIMIT_EXCEEDED`,
    /// `QUEUE_FULL`, and those of the store.
    async fn inspect(&self, digest: Digest, request: CompileRequest) -> Result<Inspected, Refusal> {
        let inner = &self.inner;
        if let Some(refusal) = inner.refusals.get(&(digest, RefusedStage::Inspection)) {
            return Err(refusal);
        }
        let key = (digest, request.owner());
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                // Another tenant may have inspected the module meanwhile, or have failed to.
                let done = || match inner.refusals.get(&(digest, RefusedStage::Inspection)) {
                    Some(refusal) => Some(Err(refusal)),
                    None => inner.inspected.get(&digest).map(Ok),
                };
                let (inspection, session) = match inner.open(digest, &request, done).await? {
                    OpenOutcome::Done(inspection) => {
                        return Ok(Inspected {
                            inspection,
                            open_session: None,
                        });
                    }
                    OpenOutcome::Opened(inspection, session) => (inspection, session),
                };
                inner.inspected.insert(digest, Arc::clone(&inspection));
                Ok(Inspected {
                    inspection,
                    open_session: Some(Arc::new(Mutex::new(Some(session)))),
                })
            }
        };
        let ready = || {
            let inspection = inner.inspected.get(&digest)?;
            Some(Inspected {
                inspection,
                open_session: None,
            })
        };
        let (inspected, _) = self.inspecting.run(key, ready, work).await?;
        Ok(inspected)
    }

    /// Returns the module in `variant`, and compiles it first if it is not ready. The second value
    /// says whether it was ready.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`, and those of the store.
    async fn get_or_compile(
        &self,
        digest: Digest,
        variant: Variant,
        request: CompileRequest,
        inspected: Inspected,
    ) -> Result<(Arc<LoadedModule>, bool), Refusal> {
        let (inner, key) = (&self.inner, LoadedKey { digest, variant });
        if let Some(refusal) = inner
            .refusals
            .get(&(digest, RefusedStage::compilation(variant)))
        {
            return Err(refusal);
        }
        let code = (digest, variant.metered, request.owner());
        let code_use = request.code_use;
        // Where the same work is in flight already, this closure is dropped, and `inspected` with
        // it: a session that nobody uses would hold a compile thread.
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let loaded = Arc::clone(&inner).compile(key, request, inspected).await?;
                // The code is inserted under the variant that it has: another tenant may have had
                // it compiled meanwhile, for another stack class.
                let key = LoadedKey {
                    variant: loaded.variant,
                    ..key
                };
                inner.insert_loaded(key, &loaded, code_use);
                Ok(loaded)
            }
        };
        let (loaded, ready) = self
            .compiling
            .run(code, || inner.any_stack_class(key, code_use), work)
            .await?;
        if loaded.variant == variant {
            return Ok((loaded, ready));
        }
        // It was compiled for another stack class: the same code is mapped once more, for this one.
        let artifact = loaded.artifact().map_err(not_mapped)?;
        let inspection = Arc::clone(&loaded.inspection);
        let mapper = Arc::clone(inner);
        let loaded = spawn_blocking(move || {
            let loaded = mapper
                .map(variant, &artifact, &inspection)
                .map_err(not_mapped)?;
            mapper.insert_loaded(key, &loaded, code_use);
            Ok(loaded)
        });
        Ok((loaded.await?, ready))
    }
}
