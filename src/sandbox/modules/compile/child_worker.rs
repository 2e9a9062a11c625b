//! The compile child: a process that inspects and compiles one module and then ends.
//!
//! It talks over its standard input, which is a socket, and leaves the artefact in its standard
//! output, which is a file in memory. By the time it says that it is ready, it is warm and
//! confined.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use wasmtime::Engine;

use super::confine::{self, AddressSpace};
use super::wire::{
    self, ChildCompileError, ChildHello, ChildSetup, CompileCommand, CompileReply, InspectError,
};
use super::{STACK, compatibility_hashes, decode_and_inspect, precompile, with_proposals};
use crate::host_limit::HostLimit;
use crate::sandbox::engine;
use crate::sandbox::engine::features::ProposalSet;
use crate::sandbox::modules::compile_limit::compile_limit;
use crate::sandbox::modules::inspect::{self, ImportRules};
use crate::sandbox::panic_message;

/// A small module that a child compiles once to warm up.
const WARM_UP_MODULE: &[u8] =
    br#"(module (memory 1) (func (export "f") (param i32) (result i32) (i32.load (local.get 0))))"#;

/// Serves one module to the daemon that started this process.
///
/// # Errors
/// The daemon is gone, or the host does not let this process be what it has to be.
pub fn serve() -> io::Result<()> {
    confine::block_signals();
    let mut daemon = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let artifact = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let setup: ChildSetup = wire::receive(&mut daemon)?;
    let space = AddressSpace::open()?;
    let confinement = confine::confine_process(setup.nice);
    rayon::ThreadPoolBuilder::new()
        .num_threads(setup.threads)
        .stack_size(STACK)
        .build_global()
        .map_err(io::Error::other)?;
    let child = ChildWorker {
        daemon,
        artifact,
        setup,
        space,
        confinement,
    };
    std::thread::Builder::new()
        .name("compile".to_owned())
        .stack_size(STACK)
        .spawn(move || child.serve())?
        .join()
        .map_err(|panic| io::Error::other(panic_message(panic.as_ref())))?
}

struct ChildWorker {
    daemon: UnixStream,
    artifact: File,
    setup: ChildSetup,
    space: AddressSpace,
    confinement: Vec<String>,
}

impl ChildWorker {
    fn serve(mut self) -> io::Result<()> {
        let (engines, rules) = self.warm().map_err(io::Error::other)?;
        let ChildSetup {
            memory,
            cpu,
            ref artifact,
            bounds,
            ..
        } = self.setup;
        confine::set_rlimits(&self.space, memory, cpu, artifact.bytes)?;
        if confine::seccomp() {
            self.confinement.push("seccomp".to_owned());
        }
        let hello = ChildHello {
            compatible: compatibility_hashes(&engines).map_err(io::Error::other)?,
            confinement: std::mem::take(&mut self.confinement),
        };
        wire::send(&mut self.daemon, &hello)?;
        let bytes = wire::receive_module(&mut self.daemon)?;
        let (wasm, inspection) = match decode_and_inspect(&bytes, &rules, &bounds) {
            Ok(inspected) => inspected,
            Err(why) => return wire::send(&mut self.daemon, &wire::InspectReply::Err(why)),
        };
        let proposals = inspection.proposals;
        let text = serde_json::to_vec(&wire::InspectReply::Ok(inspection))?;
        if text.len() > wire::MAX_MESSAGE {
            let asked = text.len();
            let message =
                format!("what the module exports and imports takes {asked} bytes to tell");
            let refusal = compile_limit("exports", message, wire::MAX_MESSAGE);
            let why = InspectError::Refused(refusal.with("asked", asked));
            return wire::send(&mut self.daemon, &wire::InspectReply::Err(why));
        }
        wire::send_text(&mut self.daemon, &text)?;
        drop(text);
        let order: CompileCommand = match wire::receive(&mut self.daemon) {
            Ok(order) => order,
            // Whoever asked does not want the module compiled.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let compiled = match with_proposals(proposals, order.metered) {
            Ok(Some(own)) => self.compile(&own, &wasm),
            Ok(None) => self.compile(&engines[usize::from(order.metered)], &wasm),
            Err(refusal) => Err(ChildCompileError::Refused(refusal)),
        };
        wire::send(&mut self.daemon, &compiled)
    }

    /// Does everything once that is slow the first time.
    fn warm(&self) -> wasmtime::Result<([Engine; 2], ImportRules)> {
        let make = |metered| engine::compile_only_engine(ProposalSet::default(), metered, true);
        let engines = [make(false)?, make(true)?];
        for engine in &engines {
            engine.precompile_module(WARM_UP_MODULE)?;
        }
        let rules = ImportRules::of(&engines[0])?;
        // The result does not matter, only that it was done once.
        let _ = decode_and_inspect(WARM_UP_MODULE, &rules, &self.setup.bounds);
        Ok((engines, rules))
    }

    fn compile(&mut self, engine: &Engine, wasm: &[u8]) -> CompileReply {
        let start = Instant::now();
        let component = inspect::is_component(wasm);
        let most = &self.setup.artifact;
        let work = || precompile(engine, wasm, component, most);
        let compiled = catch_unwind(AssertUnwindSafe(work));
        let bytes = compiled
            .map_err(|panic| ChildCompileError::Panicked(panic_message(panic.as_ref())))?
            .map_err(ChildCompileError::Refused)?;
        self.artifact
            .write_all(&bytes)
            .map_err(|error| match HostLimit::of(&error) {
                Some(limit) => {
                    ChildCompileError::Refused(limit.refusal("writing the compiled module"))
                }
                None => ChildCompileError::Panicked(format!("writing the artefact: {error}")),
            })?;
        Ok(start.elapsed())
    }
}
