//! Restores compiled code that exists already, in memory for another stack class or on disk, and
//! maps it for the variant that is asked for.

use std::sync::Arc;
use std::time::Duration;

use super::artifact_writer::ArtifactWrite;
use super::code_cache::CodeUse;
use super::compile::Artifact;
use super::inspection::Inspection;
use super::loaded::LoadedModule;
use super::{Inner, LoadedKey};
use crate::model::refusal::Refusal;
use crate::model::request::Digest;
use crate::sandbox::engine::Variant;
use crate::store::{ArtifactCache, ArtifactName};

impl Inner {
    /// Returns the cache on disk and the name of a module's code in it, if the code is there.
    pub(super) fn on_disk(
        &self,
        digest: Digest,
        metered: bool,
    ) -> Option<(&Arc<ArtifactCache>, ArtifactName)> {
        let artifacts = self.artifacts.as_ref()?;
        let name = self.name(digest, metered);
        artifacts.has(name).then_some((artifacts, name))
    }

    pub(super) fn name(&self, digest: Digest, metered: bool) -> ArtifactName {
        ArtifactName {
            digest,
            metered,
            compatible: self.compatible[usize::from(metered)],
        }
    }

    /// Returns the budget of the cache in memory, in KiB.
    pub(super) fn budget(&self) -> u64 {
        self.loaded.budget()
    }

    /// Reports whether the cache can hold a module at all. A module that it cannot hold would be
    /// dropped as soon as it is inserted, and compiled again for every run.
    pub(super) fn fits(&self, loaded: &LoadedModule) -> bool {
        u64::from(loaded.weight()) <= self.budget()
    }

    /// Inserts a module into the cache in memory, with the tenant of `code_use` as one of its
    /// users, as far as there is room.
    pub(super) fn insert_loaded(
        &self,
        key: LoadedKey,
        loaded: &Arc<LoadedModule>,
        code_use: CodeUse,
    ) {
        let weight = u64::from(loaded.weight()).max(self.least_weight);
        self.loaded
            .insert(key, Arc::clone(loaded), weight, code_use);
    }

    /// Returns the module from memory, in the stack class of `key` or else in any other with the
    /// same metering, and counts that as a use of it.
    pub(super) fn any_stack_class(
        &self,
        key: LoadedKey,
        code_use: CodeUse,
    ) -> Option<Arc<LoadedModule>> {
        let LoadedKey { digest, variant } = key;
        let same = self.loaded.get(&key, code_use);
        same.or_else(|| {
            Variant::with_metering(variant.metered)
                .find_map(|variant| self.loaded.get(&LoadedKey { digest, variant }, code_use))
        })
    }

    /// Queues code to be written to disk, so that no caller waits for the write. If the queue is
    /// full, the code is not written.
    pub(super) fn save(
        &self,
        digest: Digest,
        metered: bool,
        artifact: Arc<Artifact>,
        inspection: Arc<Inspection>,
    ) {
        let Some(writer) = &self.artifact_writer else {
            return;
        };
        let write = ArtifactWrite {
            name: self.name(digest, metered),
            artifact,
            inspection,
        };
        if !writer.queue(write) {
            tracing::debug!(%digest, "compiled code is not written to disk: too much of it waits");
        }
    }

    /// Restores the module from code of another stack class or from disk; `None` means that it has
    /// to be compiled. May block.
    pub(super) fn restore(
        &self,
        key: LoadedKey,
        code_use: CodeUse,
    ) -> Result<Option<Arc<LoadedModule>>, Refusal> {
        let LoadedKey { digest, variant } = key;
        let (artifact, inspection, from) = match self.any_stack_class(key, code_use) {
            Some(loaded) => {
                let artifact = loaded.artifact().map_err(not_mapped)?;
                (artifact, Arc::clone(&loaded.inspection), None)
            }
            None => match self.read(digest, variant.metered) {
                Some((artifact, inspection)) => {
                    let from = self.on_disk(digest, variant.metered);
                    (Arc::new(artifact), inspection, from)
                }
                None => return Ok(None),
            },
        };
        match self.map(variant, &artifact, &inspection) {
            Ok(loaded) => {
                if !self.fits(&loaded) {
                    // The budget is smaller than it was when the code was written. Compiling
                    // reports what is wrong, and remembers it.
                    return Ok(None);
                }
                self.insert_loaded(key, &loaded, code_use);
                Ok(Some(loaded))
            }
            // A shortage of the host says nothing about the file, which is therefore kept.
            Err(error) if error.downcast_ref::<std::io::Error>().is_some() => {
                Err(not_mapped(error))
            }
            Err(error) => match from {
                Some((artifacts, name)) => {
                    artifacts.reject(name, &format!("the engine does not take it: {error:#}"));
                    Ok(None)
                }
                None => Err(not_mapped(error)),
            },
        }
    }

    pub(super) fn read(
        &self,
        digest: Digest,
        metered: bool,
    ) -> Option<(Artifact, Arc<Inspection>)> {
        let (artifacts, name) = self.on_disk(digest, metered)?;
        let (about, code) = artifacts.load(name)?;
        let inspection = match serde_json::from_slice(&about) {
            Ok(inspection) => inspection,
            Err(error) => {
                artifacts.reject(name, &format!("what it says of its module: {error}"));
                return None;
            }
        };
        match Artifact::from_sealed(code, Duration::ZERO) {
            Ok(artifact) => Some((artifact, Arc::new(inspection))),
            Err(error) => {
                tracing::warn!(%error, "an artefact cannot be read");
                None
            }
        }
    }

    pub(super) fn map(
        &self,
        variant: Variant,
        artifact: &Arc<Artifact>,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Arc<LoadedModule>> {
        // A module that is too large for a slot of the pool fails to be mapped here, and is mapped
        // into the on-demand engine.
        let proposals = inspection.proposals;
        if let Some(linked) = self.engines.pooled(variant, proposals)? {
            match LoadedModule::map(variant, linked, artifact, inspection) {
                Ok(loaded) => return Ok(Arc::new(loaded)),
                Err(error) => tracing::debug!(%error, "a module does not fit the pool"),
            }
        }
        let linked = self.engines.on_demand(variant, proposals)?;
        LoadedModule::map(variant, linked, artifact, inspection).map(Arc::new)
    }
}

pub(super) fn not_mapped(error: wasmtime::Error) -> Refusal {
    Refusal::of_host("mapping a compiled module", error.as_ref())
}
