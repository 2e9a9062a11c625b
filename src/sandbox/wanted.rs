//! A module that is to be compiled: its bytes, and who says when.

use std::any::Any;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::compile::CompileLane;
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

/// Held for as long as a module is compiled.
pub type Turn = Box<dyn Any + Send>;
type Turns = Arc<
    dyn Fn(CompileLane) -> BoxFuture<'static, Result<(CompileLane, Turn), Refusal>> + Send + Sync,
>;

/// A module's bytes, and who says when it may be compiled.
#[derive(Clone)]
pub struct Wanted {
    pub(super) wasm: Source,
    /// Whose it is: what one waits for, or fails by, is not another's.
    pub(super) owner: usize,
    turn: Turns,
}

impl Wanted {
    /// `wasm` of `owner`, to be compiled while what `turn` gives is held. It is told the lane that is asked for, and
    /// gives that or the large one.
    pub fn new<F, T>(
        wasm: Source,
        owner: usize,
        turn: impl Fn(CompileLane) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(CompileLane, T), Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        let boxed = move |lane| {
            let turn = turn(lane);
            async move {
                let (lane, held) = turn.await?;
                Ok((lane, Box::new(held) as Turn))
            }
            .boxed()
        };
        Self {
            wasm,
            owner,
            turn: Arc::new(boxed),
        }
    }

    /// Waits until it may be compiled in `lane`, or, where it is for the small one and that comes first, in the large
    /// one.
    pub(super) async fn turn(&self, lane: CompileLane) -> Result<(CompileLane, Turn), Refusal> {
        (self.turn)(lane).await
    }
}
