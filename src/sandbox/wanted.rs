//! A module that is to be compiled: its bytes, and who says when.

use std::any::Any;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::refusal::Refusal;
use crate::request::Digest;
use crate::store::{Blob, Store};

/// Where a module's bytes are to be had when they are needed.
#[derive(Clone)]
pub enum Source {
    /// Here.
    Here(Blob),
    /// In a store, by its digest.
    Stored(Arc<Store>, Digest),
}

/// Held for as long as a module is compiled.
pub type Turn = Box<dyn Any + Send>;
type Turns = Arc<dyn Fn() -> BoxFuture<'static, Result<Turn, Refusal>> + Send + Sync>;

/// A module's bytes, and who says when it may be compiled.
#[derive(Clone)]
pub struct Wanted {
    pub(super) wasm: Source,
    /// Whose it is: what one waits for, or fails by, is not another's.
    pub(super) owner: usize,
    turn: Turns,
}

impl Wanted {
    /// `wasm` of `owner`, to be compiled while what `turn` gives is held.
    pub fn new<F, T>(
        wasm: Source,
        owner: usize,
        turn: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, Refusal>> + Send + 'static,
        T: Send + 'static,
    {
        let boxed = move || {
            let turn = turn();
            async move { turn.await.map(|held| Box::new(held) as Turn) }.boxed()
        };
        Self {
            wasm,
            owner,
            turn: Arc::new(boxed),
        }
    }

    /// Waits until it may be compiled.
    pub(super) async fn turn(&self) -> Result<Turn, Refusal> {
        (self.turn)().await
    }
}
