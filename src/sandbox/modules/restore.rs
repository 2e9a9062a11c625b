//! Compiled code that is there already: in memory for another stack class, or on disk.

use std::sync::Arc;
use std::time::Duration;

use super::{Inner, Key};
use crate::refusal::Refusal;
use crate::request::Digest;
use crate::sandbox::code_cache::CodeUse;
use crate::sandbox::compile::Artifact;
use crate::sandbox::engine::Variant;
use crate::sandbox::inspection::Inspection;
use crate::sandbox::loaded::Loaded;
use crate::sandbox::saver::Save;
use crate::store::{ArtifactName, Artifacts};

impl Inner {
    /// The name of a module's code on disk, where there is some.
    pub(super) fn on_disk(
        &self,
        digest: Digest,
        metered: bool,
    ) -> Option<(&Arc<Artifacts>, ArtifactName)> {
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

    /// What the cache in memory holds, in KiB.
    pub(super) fn budget(&self) -> u64 {
        self.loaded.budget()
    }

    /// Whether the cache holds a module at all: one that it does not would be dropped as soon as it is inserted, and
    /// compiled again for every run.
    pub(super) fn fits(&self, loaded: &Loaded) -> bool {
        u64::from(loaded.weight()) <= self.budget()
    }

    /// Holds a module in memory, for its tenant's use among others', as far as there is room.
    pub(super) fn hold(&self, key: Key, loaded: &Arc<Loaded>, code_use: CodeUse) {
        let weight = u64::from(loaded.weight()).max(self.least_weight);
        self.loaded
            .insert(key, Arc::clone(loaded), weight, code_use);
    }

    /// The module in any stack class that is in memory, which is used.
    pub(super) fn sibling(&self, key: Key, code_use: CodeUse) -> Option<Arc<Loaded>> {
        let Key { digest, variant } = key;
        let same = self.loaded.get(&key, code_use);
        same.or_else(|| {
            Variant::with_metering(variant.metered)
                .find_map(|variant| self.loaded.get(&Key { digest, variant }, code_use))
        })
    }

    /// Has code written to disk, behind whoever waits for it. A cache that cannot keep up goes without.
    pub(super) fn save(
        &self,
        digest: Digest,
        metered: bool,
        artifact: Arc<Artifact>,
        inspection: Arc<Inspection>,
    ) {
        let Some(saver) = &self.saver else {
            return;
        };
        let save = Save {
            name: self.name(digest, metered),
            artifact,
            inspection,
        };
        if saver.try_send(save).is_err() {
            tracing::debug!(%digest, "compiled code is not written to disk: too much of it waits");
        }
    }

    /// The module from code that is there: of another stack, or on disk. May block.
    pub(super) fn restore(
        &self,
        key: Key,
        code_use: CodeUse,
    ) -> Result<Option<Arc<Loaded>>, Refusal> {
        let Key { digest, variant } = key;
        let (artifact, inspection, from) = match self.sibling(key, code_use) {
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
                    // The budget is smaller than it was: compiling says what is wrong, and remembers it.
                    return Ok(None);
                }
                self.hold(key, &loaded, code_use);
                Ok(Some(loaded))
            }
            // What the host has too little of says nothing about the file.
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
        match Artifact::sealed(code, Duration::ZERO) {
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
    ) -> wasmtime::Result<Arc<Loaded>> {
        // What is too large for a slot of the pool fails here and runs on demand.
        let proposals = inspection.proposals;
        if let Some(linked) = self.engines.pooled(variant, proposals)? {
            match Loaded::map(variant, linked, artifact, inspection) {
                Ok(loaded) => return Ok(Arc::new(loaded)),
                Err(error) => tracing::debug!(%error, "a module does not fit the pool"),
            }
        }
        let linked = self.engines.on_demand(variant, proposals)?;
        Loaded::map(variant, linked, artifact, inspection).map(Arc::new)
    }
}

pub(super) fn not_mapped(error: wasmtime::Error) -> Refusal {
    Refusal::of_host("mapping a compiled module", error.as_ref())
}
