//! A module that is to be compiled: its bytes, and who says when.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::code_cache::CodeUse;
use super::compile::{CompileLane, CompilePermit};
use crate::refusal::Refusal;
use crate::request::Digest;
use crate::store::{Blob, Store};

/// Where a module's bytes are to be had when they are needed.
#[derive(Clone)]
pub enum Source {
    /// Here.
    Here(Blob),
    /// In a store.
    Stored {
        /// Which has it.
        store: Arc<Store>,
        /// By this digest.
        digest: Digest,
        /// Bytes of it.
        size: u64,
    },
}

impl Source {
    /// Bytes of the module.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Here(blob) => blob.len(),
            Self::Stored { size, .. } => *size,
        }
    }
}

/// A lane, and the permission to compile in it.
type Permitted = Result<(CompileLane, CompilePermit), Refusal>;
type PermitSource = Arc<dyn Fn(CompileLane) -> BoxFuture<'static, Permitted> + Send + Sync>;

/// A module's bytes, and who says when it may be compiled.
#[derive(Clone)]
pub struct Wanted {
    pub(super) wasm: Source,
    /// Whose it is, and what for: what one waits for, or fails by, is not another's.
    pub(super) code_use: CodeUse,
    permits: PermitSource,
}

impl Wanted {
    /// `wasm` for `code_use`, to be compiled while what `permit` gives is held. It is told the lane that is asked for, and
    /// gives that or the large one.
    pub fn new<F>(
        wasm: Source,
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

    /// The tenant whose module it is.
    pub(super) fn owner(&self) -> usize {
        self.code_use.tenant
    }

    /// Waits until it may be compiled in `lane`, or, where it is for the small one and that comes first, in the large
    /// one.
    pub(super) async fn permit(&self, lane: CompileLane) -> Permitted {
        (self.permits)(lane).await
    }
}
