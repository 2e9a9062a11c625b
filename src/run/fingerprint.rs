//! What distinguishes a run that has an idempotency key from others.

use crate::model::refusal::Refusal;
use crate::model::request::{Digest, ModuleRef, RunSpec};
use crate::store::hashed;

/// The most bytes of input and files that are hashed on the caller's thread, which may have other
/// connections to serve.
const INLINE: usize = 64 << 10;

/// Computes the digest that distinguishes a spec, with its module, from others.
///
/// # Errors
/// The daemon is shutting down.
pub(super) async fn fingerprint(spec: &RunSpec) -> Result<Digest, Refusal> {
    let digest = match &spec.module {
        ModuleRef::Inline(wasm) => hashed(wasm.clone()).await?.1,
        ModuleRef::Loaded(digest) | ModuleRef::Provided(digest) => *digest,
    };
    let files = spec.files.iter().flat_map(|files| &files.given);
    let files: usize = files
        .map(|file| file.path.as_str().len() + file.bytes.len())
        .sum();
    if spec.stdin.len() + files <= INLINE {
        return Ok(spec.fingerprint(digest));
    }
    let spec = spec.clone();
    let hashed = tokio::task::spawn_blocking(move || spec.fingerprint(digest)).await;
    hashed.map_err(|error| Refusal::internal(format_args!("hashing: {error}")))
}
