//! Modules that outlive their request: validate, compile, keep.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::admission::shutting_down;
use super::{Runner, before};
use crate::refusal::Refusal;
use crate::request::{Digest, Labels};
use crate::sandbox::{Inspection, Variant};
use crate::store::Stored;

/// The most bytes that are hashed on the thread that received them.
const HASHED_INLINE: usize = 1 << 20;

/// A module to keep.
pub struct Load {
    /// Its bytes as received.
    pub wasm: Bytes,
    /// Its name for people.
    pub name: String,
    /// Compile it for metered execution too.
    pub metered: bool,
    /// Metadata.
    pub labels: Labels,
}

/// A module that [`Runner::keep`] took.
pub struct Kept {
    /// Its digest.
    pub digest: Digest,
    /// What it is.
    pub inspection: Arc<Inspection>,
    /// As it is stored.
    pub stored: Stored,
    /// Whether nothing had to be compiled.
    pub cached: bool,
    /// Time spent compiling.
    pub compiled_in: Duration,
}

impl Runner {
    /// Validates, compiles and keeps a module.
    ///
    /// # Errors
    /// Those of the module, and `STORE_FULL`.
    pub async fn keep(&self, until: Option<Instant>, load: Load) -> Result<Kept, Refusal> {
        // A drain waits for it.
        let _untold = self.inflight.untold();
        before(until, self.keep_now(load)).await
    }

    async fn keep_now(&self, load: Load) -> Result<Kept, Refusal> {
        let Load {
            wasm,
            name,
            metered,
            labels,
        } = load;
        if self.admission.is_closed() {
            return Err(shutting_down());
        }
        let digest = digest_of(&wasm).await?;
        let default = self.policy.ceilings.require_fuel;
        let stack = self.policy.ceilings.default_stack_class();
        let mut variants = vec![Variant {
            metered: default,
            stack,
        }];
        if metered && !default {
            variants.push(Variant {
                metered: true,
                stack,
            });
        }
        let mut inspection = None;
        let (mut cached, mut compiled_in) = (true, Duration::ZERO);
        for variant in variants {
            let (loaded, ready) = match self.sandbox.modules().cached(digest, variant) {
                Some(loaded) => (loaded, true),
                None => {
                    let known = match inspection.clone() {
                        Some(known) => known,
                        None => self.sandbox.modules().inspect(digest, wasm.clone()).await?,
                    };
                    self.sandbox
                        .modules()
                        .get(digest, variant, wasm.clone(), known)
                        .await?
                }
            };
            if !ready {
                cached = false;
                compiled_in += loaded.compiled_in;
            }
            inspection = Some(Arc::clone(&loaded.inspection));
        }
        let inspection = inspection.ok_or_else(|| Refusal::internal("no variant to compile"))?;
        let stored = self.store.keep(digest, &wasm, name, labels)?;
        Ok(Kept {
            digest,
            inspection,
            stored,
            cached,
            compiled_in,
        })
    }
}

/// The digest of a module. A large one takes tens of milliseconds, which are not the serving threads' to give.
pub(super) async fn digest_of(wasm: &Bytes) -> Result<Digest, Refusal> {
    if wasm.len() <= HASHED_INLINE {
        return Ok(Digest::of(wasm));
    }
    let wasm = wasm.clone();
    tokio::task::spawn_blocking(move || Digest::of(&wasm))
        .await
        .map_err(|error| Refusal::internal(format_args!("hashing: {error}")))
}
