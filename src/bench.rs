//! What benches call (`benches/inside.rs`, `benches/counts.rs`): a run in its parts, each as the daemon has it. No part of
//! the daemon calls it.

#![expect(clippy::expect_used, reason = "a bench fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::api::{codec, decode, encode, proto};
use crate::app;
use crate::config::Overrides;
use crate::limits::Delivery;
use crate::log::Captured;
use crate::outcome::Ended;
use crate::request::{Digest, Labels, RunId, RunSpec};
use crate::run::{About, Asked, Attached, Method, Origin, Runner, Tenant};
use crate::sandbox::{
    self, CodeUse, Entry, FileCalls, Loaded, Output, Prepared, Roots, Surroundings, Variant,
};

/// How long a guest waits for its reader, whom no bench keeps waiting.
const STALL: Duration = Duration::from_secs(30);

/// A daemon that listens nowhere and compiles in process.
pub struct Daemon {
    runner: Arc<Runner>,
    tenant: Arc<Tenant>,
    roots: Roots,
}

/// A module that the daemon keeps, compiled.
pub struct Module {
    /// Of its bytes.
    pub digest: Digest,
    /// Its code, in the engine that runs it.
    pub loaded: Arc<Loaded>,
}

impl Daemon {
    /// With the defaults but for `set`. In a runtime's context.
    pub fn new(set: &[(&str, &str)]) -> Self {
        let own = [("compile.mode", "in-process")];
        let overrides = Overrides {
            set: own
                .iter()
                .chain(set)
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
            ..Overrides::default()
        };
        let (config, _) = app::load_config(&overrides).expect("it is valid");
        let runner = app::runner(&config, Path::new("/proc/self/exe")).expect("the engine starts");
        let tenant = runner.tenant("default").expect("there is one");
        Self {
            tenant: Arc::clone(tenant),
            runner,
            roots: Roots::default(),
        }
    }

    /// The tenant whose runs it takes.
    #[cfg(test)]
    pub(crate) fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// How its engine allocates instances.
    pub fn pool_mode(&self) -> &'static str {
        self.runner.sandbox().pool_mode()
    }

    /// Keeps and compiles a module.
    pub async fn load(&self, wasm: Bytes) -> Module {
        let about = About {
            name: String::new(),
            metered: false,
            labels: Labels::default(),
        };
        let digest = Digest::of(&wasm);
        let kept = self.runner.keep(&self.tenant, None, wasm, about).await;
        kept.expect("it is a module");
        let variant = Variant {
            metered: false,
            stack: self.tenant.policy.ceilings.default_stack_class(),
        };
        let modules = self.runner.sandbox().modules();
        let code_use = CodeUse {
            tenant: 0,
            kept: true,
        };
        let loaded = modules.ready(digest, variant, code_use).await;
        let loaded = loaded.expect("it is compiled").expect("it is compiled");
        Module { digest, loaded }
    }

    /// What the bytes of a RunRequest ask for.
    pub fn decode(&self, bytes: &[u8]) -> RunSpec {
        let proto::RunRequest { spec } = codec::decoded(bytes).expect("a message");
        decode::spec(spec, &self.tenant.policy, Delivery::Captured).expect("it is allowed")
    }

    /// Settles a run, up to the guest threads' part of it.
    pub fn prepare(&self, module: &Module, spec: &RunSpec) -> (Prepared, Arc<Output>) {
        let inspection = &module.loaded.inspection;
        let entry = Entry::resolve(inspection, spec.entry_point.as_deref(), &spec.args)
            .expect("it has one");
        let minimum = inspection.description.memory_minimum_pages;
        let pages = spec.limits.memory_pages(minimum).expect("there is room");
        let usage = Arc::default();
        let output = Arc::new(Output::new(
            spec.limits.output,
            spec.limits.output_policy,
            Delivery::Captured,
            self.tenant.new_log(),
            Arc::clone(&usage),
        ));
        let around = Surroundings {
            module_name: "",
            grants: &self.tenant.policy.grants,
            roots: &self.roots,
            input: None,
            output: Arc::clone(&output),
            usage,
            stop: Arc::default(),
            stall: STALL,
            until: None,
            max_handles: self.tenant.policy.max_handles as usize,
            descriptors: Arc::clone(&self.tenant.descriptors),
        };
        let loaded = Arc::clone(&module.loaded);
        let prepared = sandbox::prepare(loaded, spec, pages, entry, around);
        (prepared.expect("nothing refuses it"), output)
    }

    /// Executes a run on the thread that polls this, and hands over what it wrote.
    pub async fn execute(&self, module: &Module, spec: &RunSpec) -> (Ended, [Bytes; 2]) {
        let (prepared, output) = self.prepare(module, spec);
        let ended = prepared
            .execute(FileCalls::none())
            .await
            .expect("the host provides");
        let Captured { stdout, stderr } = output.take_captured().expect("it is captured");
        (ended, [stdout, stderr].map(|pieces| pieces.concat().into()))
    }

    /// Takes a run through all rooms behind the API, guest threads included, to its end.
    pub async fn run(&self, spec: RunSpec) -> Attached {
        let asked = Asked {
            id: RunId::new(self.runner.instance()),
            origin: Origin {
                method: Method::Run,
                caller: "bench".into(),
                tenant: Arc::clone(&self.tenant),
            },
            spec,
            delivery: Delivery::Captured,
            input: None,
            until: None,
            held: None,
        };
        let attached = self
            .runner
            .start(Box::new(asked))
            .await
            .expect("nothing refuses it");
        attached.ended().await;
        attached
    }

    /// The answer to a call whose run has ended.
    pub fn answer(attached: &Attached) -> proto::RunResponse {
        let run = &attached.run;
        let (_, end) = run.log.end().expect("it has ended");
        let ended = (*end).as_ref().expect("the host provides");
        let Captured { stdout, stderr } = run.take_captured().expect("it is kept");
        proto::RunResponse {
            result: Some(encode::result(run, ended)),
            stdout: stdout.concat().into(),
            stderr: stderr.concat().into(),
        }
    }
}
