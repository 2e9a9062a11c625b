//! The same runs by wasmtime alone, in the engine that the daemon made: same pool, same epochs,
//! same stack.

use bytes::Bytes;
use wasmtime::{Engine, InstancePre, Linker, Module, Store};
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::pipe::MemoryOutputPipe;

/// The most that a guest may write.
const OUTPUT: usize = 1 << 20;

/// A module, compiled and linked.
pub(crate) struct Bare(InstancePre<WasiP1Ctx>);

impl Bare {
    pub(crate) fn new(engine: &Engine, wasm: &[u8]) -> Self {
        let mut linker = Linker::new(engine);
        p1::add_to_linker_async(&mut linker, |wasi: &mut WasiP1Ctx| wasi).unwrap();
        let module = Module::new(engine, wasm).unwrap();
        Self(linker.instantiate_pre(&module).unwrap())
    }

    /// Runs it, and hands over what it wrote.
    pub(crate) async fn execute(&self, args: &[String], env: &[(String, String)]) -> Bytes {
        let stdout = MemoryOutputPipe::new(OUTPUT);
        let wasi = WasiCtxBuilder::new()
            .args(args)
            .envs(env)
            .stdout(stdout.clone())
            .build_p1();
        let mut store = Store::new(self.0.module().engine(), wasi);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        let instance = self.0.instantiate_async(&mut store).await.unwrap();
        let start = instance
            .get_typed_func::<(), ()>(&mut store, "_start")
            .unwrap();
        start.call_async(&mut store, ()).await.unwrap();
        drop(store);
        stdout.contents()
    }
}
