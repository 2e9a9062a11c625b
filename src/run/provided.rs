//! The modules that the operator provides to all tenants, such as the interpreters of languages.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::model::refusal::Refusal;
use crate::model::request::Digest;
use crate::sandbox::{LoadedModule, Variant};
use crate::store::ProvidedModule;
use crate::sync::lock;

/// The modules that the operator provides, by digest.
#[derive(Default)]
pub struct ProvidedModules(HashMap<Digest, ProvidedEntry>);

/// A provided module with its compiled code.
struct ProvidedEntry {
    module: Arc<ProvidedModule>,
    /// The code that is kept in memory whatever else needs room. Code for other variants is in the
    /// cache, as that of any module.
    prepared: Mutex<Vec<(Variant, Arc<LoadedModule>)>>,
}

impl ProvidedModules {
    /// Creates the collection of `modules`.
    pub fn new(modules: impl IntoIterator<Item = Arc<ProvidedModule>>) -> Self {
        let entries = modules.into_iter().map(|module| {
            let prepared = Mutex::default();
            (module.digest(), ProvidedEntry { module, prepared })
        });
        Self(entries.collect())
    }

    /// Returns the module with this digest.
    ///
    /// # Errors
    /// `INTERNAL` where there is none: only the daemon itself names these modules.
    pub(super) fn module(&self, digest: Digest) -> Result<Arc<ProvidedModule>, Refusal> {
        let entry = self.0.get(&digest);
        let entry = entry
            .ok_or_else(|| Refusal::internal(format_args!("no module {digest} is provided")))?;
        Ok(Arc::clone(&entry.module))
    }

    /// Returns the code of a module that is kept in memory, if it is of this variant.
    pub(super) fn prepared(&self, digest: Digest, variant: Variant) -> Option<Arc<LoadedModule>> {
        let prepared = lock(&self.0.get(&digest)?.prepared);
        let found = prepared.iter().find(|(kept, _)| *kept == variant);
        found.map(|(_, loaded)| Arc::clone(loaded))
    }

    /// Keeps the code of a module in memory, for one variant.
    pub(super) fn keep(&self, digest: Digest, variant: Variant, loaded: Arc<LoadedModule>) {
        if let Some(entry) = self.0.get(&digest) {
            let mut prepared = lock(&entry.prepared);
            if !prepared.iter().any(|(kept, _)| *kept == variant) {
                prepared.push((variant, loaded));
            }
        }
    }

    /// Reports whether code of a module is kept in memory, so that runs of it start at once.
    pub fn is_prepared(&self, digest: Digest) -> bool {
        let entry = self.0.get(&digest);
        entry.is_some_and(|entry| !lock(&entry.prepared).is_empty())
    }
}
