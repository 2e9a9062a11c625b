//! Entry points for benchmarks (`benches/inside.rs`, `benches/counts.rs`): the parts of a run, each
//! as the daemon does it. The daemon itself calls none of this.

#![expect(clippy::expect_used, reason = "a bench fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::api::{codec, decode, encode, proto};
use crate::app;
use crate::config::Overrides;
use crate::event_log::CapturedOutput;
use crate::library::{ModuleLibrary, ModuleMeta};
use crate::model::limits::OutputMode;
use crate::model::outcome::RunReport;
use crate::model::request::{Digest, Labels, RunId, RunSpec};
use crate::model::tenant_id::TenantId;
use crate::run::{Origin, RunHandle, RunMethod, Runner, StartRequest, Tenant};
use crate::sandbox::{
    self, CodeUse, EntryPoint, FileCalls, LoadedModule, Lookup, MountRoots, Output, PreparedRun,
    RunContext, Variant,
};

/// How long a guest waits for a slow reader of its output. No bench has one.
const STALL: Duration = Duration::from_secs(30);

/// A daemon for benchmarks, which listens nowhere and compiles in process.
pub struct BenchDaemon {
    runner: Arc<Runner>,
    library: Arc<ModuleLibrary>,
    tenant: Arc<Tenant>,
    roots: MountRoots,
}

/// A module that is stored and compiled in a [`BenchDaemon`].
pub struct BenchModule {
    /// The digest of the module's bytes.
    pub digest: Digest,
    /// Its compiled code, in the engine that runs it.
    pub loaded: Arc<LoadedModule>,
}

impl BenchDaemon {
    /// Creates a daemon with the default configuration except for the keys in `set`. It must be
    /// called in the context of a tokio runtime.
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
        let runner = app::runner(
            &config,
            Path::new("/proc/self/exe"),
            Default::default(),
            None,
        )
        .expect("the engine starts");
        let tenant = runner.tenant("default").expect("there is one");
        Self {
            tenant: Arc::clone(tenant),
            library: app::library(&config, &runner),
            runner,
            roots: MountRoots::default(),
        }
    }

    /// Returns the tenant that all runs belong to.
    #[cfg(test)]
    pub(crate) fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }

    /// Returns how the engine allocates instances.
    pub fn pool_mode(&self) -> &'static str {
        self.runner.sandbox().pool_mode()
    }

    /// Stores a module and compiles it.
    pub async fn load(&self, wasm: Bytes) -> BenchModule {
        let about = ModuleMeta {
            name: String::new(),
            metered: false,
            labels: Labels::default(),
        };
        let digest = Digest::of(&wasm);
        let kept = self
            .library
            .store_inline(&self.tenant, None, wasm, about)
            .await;
        kept.expect("it is a module");
        let variant = Variant {
            metered: false,
            stack: self.tenant.policy.ceilings.default_stack_class(),
        };
        let modules = self.runner.sandbox().modules();
        let code_use = CodeUse {
            tenant: TenantId::Named(0),
            kept: true,
        };
        let loaded = match modules.look_up(digest, variant, code_use).await {
            Ok(Lookup::Loaded(loaded)) => loaded,
            Ok(Lookup::Missing(_)) | Err(_) => unreachable!("it is compiled"),
        };
        BenchModule { digest, loaded }
    }

    /// Decodes the bytes of a `RunRequest` and checks them against the tenant's policy.
    pub fn decode(&self, bytes: &[u8]) -> RunSpec {
        let proto::RunRequest { spec } = codec::decoded(bytes).expect("a message");
        decode::spec(spec, &self.tenant.policy, OutputMode::Captured).expect("it is allowed")
    }

    /// Prepares a run up to the point where a guest thread would take it over.
    pub fn prepare(&self, module: &BenchModule, spec: &RunSpec) -> (PreparedRun, Arc<Output>) {
        let inspection = &module.loaded.inspection;
        let entry = EntryPoint::resolve(inspection, spec.entry_point.as_deref(), &spec.args)
            .expect("it has one");
        let minimum = inspection.description.memory_minimum_pages;
        let pages = spec.limits.memory_pages(minimum).expect("there is room");
        let usage = Arc::default();
        let output = Arc::new(Output::new(
            spec.limits.output,
            spec.limits.output_policy,
            OutputMode::Captured,
            self.tenant.new_log(),
            Arc::clone(&usage),
            None,
        ));
        let around = RunContext {
            module_name: "",
            grants: &self.tenant.policy.grants,
            roots: &self.roots,
            input: None,
            output: Arc::clone(&output),
            usage,
            stop: Arc::default(),
            stall_timeout: STALL,
            deadline: None,
            max_handles: self.tenant.policy.max_handles as usize,
            descriptors: Arc::clone(&self.tenant.descriptors),
            session: None,
        };
        let loaded = Arc::clone(&module.loaded);
        let prepared = sandbox::prepare(loaded, spec, pages, entry, around);
        (prepared.expect("nothing refuses it"), output)
    }

    /// Executes a run on the thread that polls this, and returns its report with what it wrote to
    /// stdout and stderr.
    pub async fn execute(&self, module: &BenchModule, spec: &RunSpec) -> (RunReport, [Bytes; 2]) {
        let (prepared, output) = self.prepare(module, spec);
        let ended = prepared
            .execute(FileCalls::none())
            .await
            .expect("the host provides");
        let CapturedOutput { stdout, stderr, .. } = output.take_captured().expect("it is captured");
        (ended, [stdout, stderr].map(|pieces| pieces.concat().into()))
    }

    /// Takes a run through everything behind the API, guest threads included, and waits for its
    /// end.
    pub async fn run(&self, spec: RunSpec) -> RunHandle {
        let asked = StartRequest {
            id: RunId::new(self.runner.instance()),
            origin: Origin {
                method: RunMethod::Run,
                caller: "bench".into(),
                tenant: Arc::clone(&self.tenant.name),
                trace: Default::default(),
            },
            tenant: Arc::clone(&self.tenant),
            spec,
            delivery: OutputMode::Captured,
            input: None,
            deadline: None,
            held_until_started: None,
        };
        let attached = self
            .runner
            .start(Box::new(asked))
            .await
            .expect("nothing refuses it");
        attached.wait_for_end().await;
        attached
    }

    /// Builds the response to a call whose run has ended.
    pub fn answer(attached: &RunHandle) -> proto::RunResponse {
        let run = &attached.run;
        let (_, end) = run.log.end().expect("it has ended");
        let ended = (*end).as_ref().expect("the host provides");
        let CapturedOutput { stdout, stderr, .. } = run.take_captured().expect("it is kept");
        proto::RunResponse {
            result: Some(encode::result(run, ended)),
            stdout: stdout.concat().into(),
            stderr: stderr.concat().into(),
            files: Vec::new(),
        }
    }
}
