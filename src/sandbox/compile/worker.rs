//! The compile child: a process that inspects and compiles one module and ends.
//!
//! It speaks over its standard input, a socket, and leaves the artefact in its standard output, a file in memory. By the
//! time it says that it is ready it is warm and confined.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use wasmtime::Engine;

use super::confine::{self, AddressSpace};
use super::wire::{self, Compiled, Failure, Hello, NotInspected, Order, Setup};
use super::{STACK, compatibilities, compile_limit, inspected, precompile, with_proposals};
use crate::host_limit::HostLimit;
use crate::sandbox::engine;
use crate::sandbox::features::Proposals;
use crate::sandbox::inspect::{self, Rules};
use crate::sandbox::panic_message;

/// What a warm compiler has compiled once.
const SMALL: &[u8] =
    br#"(module (memory 1) (func (export "f") (param i32) (result i32) (i32.load (local.get 0))))"#;

/// Serves one module to the daemon that started this process.
///
/// # Errors
/// Where the daemon is gone, or the host does not let this process be what it has to be.
pub fn serve() -> io::Result<()> {
    confine::block_signals();
    let mut daemon = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let artifact = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let setup: Setup = wire::receive(&mut daemon)?;
    let space = AddressSpace::open()?;
    let confinement = confine::before_threads(setup.nice);
    rayon::ThreadPoolBuilder::new()
        .num_threads(setup.threads)
        .stack_size(STACK)
        .build_global()
        .map_err(io::Error::other)?;
    let child = Child {
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

struct Child {
    daemon: UnixStream,
    artifact: File,
    setup: Setup,
    space: AddressSpace,
    confinement: Vec<String>,
}

impl Child {
    fn serve(mut self) -> io::Result<()> {
        let (engines, rules) = self.warm().map_err(io::Error::other)?;
        let Setup {
            memory,
            cpu,
            ref artifact,
            bounds,
            ..
        } = self.setup;
        confine::budget(&self.space, memory, cpu, artifact.bytes)?;
        if confine::seccomp() {
            self.confinement.push("seccomp".to_owned());
        }
        let hello = Hello {
            compatible: compatibilities(&engines).map_err(io::Error::other)?,
            confinement: std::mem::take(&mut self.confinement),
        };
        wire::send(&mut self.daemon, &hello)?;
        let bytes = wire::receive_module(&mut self.daemon)?;
        let (wasm, inspection) = match inspected(&bytes, &rules, &bounds) {
            Ok(inspected) => inspected,
            Err(why) => return wire::send(&mut self.daemon, &wire::Inspected::Err(why)),
        };
        let proposals = inspection.proposals;
        let text = serde_json::to_vec(&wire::Inspected::Ok(inspection))?;
        if text.len() > wire::MAX_MESSAGE {
            let asked = text.len();
            let message =
                format!("what the module exports and imports takes {asked} bytes to tell");
            let refusal = compile_limit("exports", message, wire::MAX_MESSAGE);
            let why = NotInspected::Refused(refusal.with("asked", asked));
            return wire::send(&mut self.daemon, &wire::Inspected::Err(why));
        }
        wire::send_text(&mut self.daemon, &text)?;
        drop(text);
        let order: Order = match wire::receive(&mut self.daemon) {
            Ok(order) => order,
            // Whoever asked does not want it compiled.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        };
        let compiled = match with_proposals(proposals, order.metered) {
            Ok(Some(own)) => self.compile(&own, &wasm),
            Ok(None) => self.compile(&engines[usize::from(order.metered)], &wasm),
            Err(refusal) => Err(Failure::Refused(refusal)),
        };
        wire::send(&mut self.daemon, &compiled)
    }

    /// Does once all that is slow the first time.
    fn warm(&self) -> wasmtime::Result<([Engine; 2], Rules)> {
        let make = |metered| engine::compiler(Proposals::default(), metered, true);
        let engines = [make(false)?, make(true)?];
        for engine in &engines {
            engine.precompile_module(SMALL)?;
        }
        let rules = Rules::of(&engines[0])?;
        // What comes of it does not matter: that it was done once does.
        let _ = inspected(SMALL, &rules, &self.setup.bounds);
        Ok((engines, rules))
    }

    fn compile(&mut self, engine: &Engine, wasm: &[u8]) -> Compiled {
        let start = Instant::now();
        let component = inspect::is_component(wasm);
        let most = &self.setup.artifact;
        let work = || precompile(engine, wasm, component, most);
        let compiled = catch_unwind(AssertUnwindSafe(work));
        let bytes = compiled
            .map_err(|panic| Failure::Panicked(panic_message(panic.as_ref())))?
            .map_err(Failure::Refused)?;
        self.artifact
            .write_all(&bytes)
            .map_err(|error| match HostLimit::of(&error) {
                Some(limit) => Failure::Refused(limit.refusal("writing the compiled module")),
                None => Failure::Panicked(format!("writing the artefact: {error}")),
            })?;
        Ok(start.elapsed())
    }
}
