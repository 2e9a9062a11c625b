//! The request to compile a module: where its bytes are, whose it is, and who grants the permit.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::code_cache::CodeUse;
use super::compile::{CompileLane, CompilePermit};
use crate::model::refusal::Refusal;
use crate::model::request::Digest;
use crate::model::tenant_id::TenantId;
use crate::store::{Blob, ProvidedModule, Store};

/// The source of a module's bytes, which are fetched only when they are needed.
#[derive(Clone)]
pub enum ModuleSource {
    /// The bytes are at hand.
    Inline(Blob),
    /// The bytes are in a store.
    Stored {
        /// The store that has the bytes.
        store: Arc<Store>,
        /// The digest under which the store has them.
        digest: Digest,
        /// Size of the module in bytes.
        size: u64,
    },
    /// The bytes are in a file of the operator's.
    Provided(Arc<ProvidedModule>),
}

impl ModuleSource {
    /// Returns the size of the module in bytes.
    pub(in crate::sandbox) fn len(&self) -> u64 {
        match self {
            Self::Inline(blob) => blob.len(),
            Self::Stored { size, .. } => *size,
            Self::Provided(module) => module.size(),
        }
    }
}

/// The lane in which a module may be compiled, and the permit to do so.
type Permitted = Result<(CompileLane, CompilePermit), Refusal>;
/// Waits for a permit in the lane that is asked for.
type PermitSource = Arc<dyn Fn(CompileLane) -> BoxFuture<'static, Permitted> + Send + Sync>;

/// A request to compile a module: the source of its bytes, and who grants the permit.
#[derive(Clone)]
pub struct CompileRequest {
    pub(in crate::sandbox) wasm: ModuleSource,
    /// Whose module it is, and whether the tenant keeps it. What one tenant waits for, or fails by,
    /// does not concern another.
    pub(in crate::sandbox) code_use: CodeUse,
    permits: PermitSource,
}

impl CompileRequest {
    /// Creates a request to compile `wasm` for `code_use`. The module is compiled while the permit
    /// that `permit` returns is held. `permit` is given the lane that is asked for, and returns
    /// that lane or the large one.
    pub fn new<F>(
        wasm: ModuleSource,
        code_use: CodeUse,
        permit: impl Fn(CompileLane) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Permitted> + Send + 'static,
    {
        Self {
            wasm,
            code_use,
            permits: Arc::new(move |lane| permit(lane).boxed()),
        }
    }

    /// Returns the tenant whose module it is.
    pub(in crate::sandbox) fn owner(&self) -> TenantId {
        self.code_use.tenant
    }

    /// Waits until the module may be compiled in `lane`. A module that waits for the small lane
    /// takes the large one if that comes first.
    pub(in crate::sandbox) async fn permit(&self, lane: CompileLane) -> Permitted {
        (self.permits)(lane).await
    }
}
