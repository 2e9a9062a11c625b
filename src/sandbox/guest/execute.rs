//! Executes one run from a loaded module to its end: creates a store with its limits, instantiates
//! the module, calls the entry point, and reports what happened. A run that has to stop while it
//! waits in a host call is dropped after a short grace period.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Engine, Instance, Store, Val};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::classify_end;
use super::directory_snapshot::OpenListings;
use super::entry::EntryPoint;
use super::guest_state::GuestState;
use super::handles::{DescriptorAccount, Handles, ReplacedStdio};
use super::memory_limiter::MemoryLimiter;
use super::mounts::{self, MountRoots};
use super::preempt::{FuelYields, PreemptionPolicy};
use super::stdin::Input;
use super::stdio::{GuestOutput, Output};
use super::stepped_clock::ClockKind;
use super::stepped_clock::SteppedClock;
use super::stop_signal::{StopReason, StopSignal};
use super::wasi::{self, GuestWasi};
use super::working_dir;
use crate::model::limits::WASM_PAGE_BYTES;
use crate::model::outcome::{LiveUsage, Outcome, RunReport, Stream, Trap, Value};
use crate::model::policy::Grants;
use crate::model::refusal::Refusal;
use crate::model::request::RunSpec;
use crate::sandbox::modules::loaded::{LoadedModule, PreInstance};
use crate::sandbox::schedule::cpu_time::CpuTimed;
use crate::sandbox::schedule::file_threads::FileCalls;

/// The fuel for what one host call may copy: no bound. Whatever a guest can make large is bounded,
/// or done in pieces, where each host call is defined ([`super::preview1`], [`super::preview2`]).
const HOSTCALL_FUEL: usize = usize::MAX;
/// How long a guest that was asked to stop may take to do so by itself. A guest in its own code
/// stops at its next epoch; one that waits in a host call is dropped after this time.
const STOP_GRACE: Duration = Duration::from_millis(10);

/// A run that is ready to execute: its module, entry point, mounts and limits are settled, and no
/// check is left that could refuse it.
pub struct PreparedRun {
    loaded: Arc<LoadedModule>,
    entry: EntryPoint,
    clock: ClockKind,
    state: GuestState,
    /// Whether the run has directories or network access.
    has_files: bool,
    fuel: Option<u64>,
    timeout: Duration,
    /// An absolute deadline, which applies however long the run's own timeout is; `None` means
    /// there is none.
    deadline: Option<Instant>,
    output: Arc<Output>,
    usage: Arc<LiveUsage>,
}

/// What [`prepare`] needs for a run beyond its module, spec and entry point.
pub struct RunContext<'a> {
    /// The name under which the module was loaded; empty if it has none.
    pub module_name: &'a str,
    /// The operator's policy: what a run may be given.
    pub grants: &'a Grants,
    /// The granted directories that the run may mount.
    pub roots: &'a MountRoots,
    /// The live input: the guest reads the spec's input and then what the caller still writes.
    /// `None` if there is only the spec's input.
    pub input: Option<Arc<Input>>,
    /// Receives the run's output.
    pub output: Arc<Output>,
    /// Receives the run's current usage.
    pub usage: Arc<LiveUsage>,
    /// Asks the run to end.
    pub stop: Arc<StopSignal>,
    /// How long a caller may read nothing while the guest waits to write.
    pub stall_timeout: Duration,
    /// An absolute deadline, which applies however long the run's own timeout is; `None` means
    /// there is none.
    pub deadline: Option<Instant>,
    /// The maximum number of handles that the run may have.
    pub max_handles: usize,
    /// The account from which the descriptors of these handles are taken.
    pub descriptors: Arc<DescriptorAccount>,
}

/// Prepares a run: settles everything that can refuse it, and executes nothing.
///
/// # Errors
/// Returns the refusals of the run's imports, mounts and working directory.
pub fn prepare(
    loaded: Arc<LoadedModule>,
    spec: &RunSpec,
    pages: u32,
    entry: EntryPoint,
    ctx: RunContext<'_>,
) -> Result<PreparedRun, Refusal> {
    let clock = match spec.clock {
        true => ClockKind::Real,
        false => ClockKind::Stepped,
    };
    loaded.pre_instance(clock)?;
    let mut handles = Handles::new(ctx.max_handles, ctx.descriptors);
    for _ in 0..working_dir::count_preopens(spec) {
        handles.reserve().map_err(|_| mounts::no_descriptors())?;
    }
    let opened = mounts::open_mounts(ctx.roots, &spec.mounts)?;
    let dirs = working_dir::preopens(ctx.roots, spec, opened)?;
    let stream = |stream| GuestOutput {
        output: Arc::clone(&ctx.output),
        stream,
        stop: Arc::clone(&ctx.stop),
        stall_timeout: ctx.stall_timeout,
        detached: spec.detach,
    };
    let input = guest_input(ctx.input, spec);
    let stepped = (!spec.clock).then(SteppedClock::default);
    let module_name = [ctx.module_name, &loaded.inspection.description.name];
    let args = entry.command_line(&spec.args, module_name);
    let given = wasi::WasiParts {
        input: input.clone(),
        stdout: stream(Stream::Stdout),
        stderr: stream(Stream::Stderr),
        stepped: stepped.clone(),
        table_entries: handles.table_entries(),
    };
    let has_files = !dirs.is_empty() || spec.network;
    let wasi = match has_files || spec.working_dir.is_some() {
        true => GuestWasi::build(spec, &args, &dirs, &ctx.grants.network, given)?,
        false => GuestWasi::plan(&args, &spec.env, given),
    };
    Ok(PreparedRun {
        loaded,
        entry,
        clock,
        state: GuestState {
            wasi,
            stepped_clock: stepped,
            memory_limiter: MemoryLimiter::new(bytes_of(pages), Arc::clone(&ctx.usage)),
            stop: Arc::clone(&ctx.stop),
            input,
            stdout: stream(Stream::Stdout),
            stderr: stream(Stream::Stderr),
            replaced_stdio: ReplacedStdio::default(),
            handles,
            labels: spec.labels.clone(),
            listings: OpenListings::default(),
            files: FileCalls::none(),
            preemption: None,
            instantiated: None,
        },
        has_files,
        fuel: spec.limits.fuel,
        timeout: spec.limits.timeout,
        deadline: ctx.deadline,
        output: ctx.output,
        usage: ctx.usage,
    })
}

/// Returns what the guest reads: the live input, which begins with the spec's own, or only that;
/// `None` where there is neither.
fn guest_input(live: Option<Arc<Input>>, spec: &RunSpec) -> Option<Arc<Input>> {
    match live {
        Some(input) => {
            input.begin_with(spec.stdin.clone());
            Some(input)
        }
        None if spec.stdin.is_empty() => None,
        None => Some(Arc::new(Input::whole(spec.stdin.clone()))),
    }
}

/// Returns the bytes of so many pages of linear memory.
fn bytes_of(pages: u32) -> usize {
    // On a 64-bit host, which this is, the byte count of a `u32` number of 64 KiB pages fits.
    usize::try_from(u64::from(pages) * WASM_PAGE_BYTES).unwrap_or(usize::MAX)
}

impl PreparedRun {
    /// Returns the module that the run executes.
    pub(in crate::sandbox) fn loaded(&self) -> Arc<LoadedModule> {
        Arc::clone(&self.loaded)
    }

    /// Reports whether the run may make file system calls that block.
    pub(in crate::sandbox) fn has_files(&self) -> bool {
        self.has_files
    }

    /// Executes the run to its end, with its file system calls made by `files`. The run's store is
    /// gone when this returns.
    ///
    /// # Errors
    /// Returns `INTERNAL` where the host cannot provide a store or an instance. The guest has
    /// executed nothing then.
    pub async fn execute(mut self, files: FileCalls) -> Result<RunReport, Refusal> {
        self.state.files = files.clone();
        let start = Instant::now();
        let deadline = [start.checked_add(self.timeout), self.deadline]
            .into_iter()
            .flatten()
            .min();
        let stop = Arc::clone(&self.state.stop);
        if let Some(deadline) = deadline {
            stop.set_deadline(deadline);
        }
        let (mut store, fuel_yields) = create_store(
            self.loaded.engine(),
            self.state,
            PreemptionPolicy {
                epochs: self.loaded.epochs().clone(),
                start,
                deadline,
                fuel: self.fuel,
                usage: self.usage,
            },
        )
        .map_err(|error| Refusal::of_host("arming a store", error.as_ref()))?;
        let (finished, cpu_time) = {
            let call = pin!(call(&mut store, &self.loaded, self.clock, &self.entry));
            let mut call = CpuTimed::new(fuel_yields.skipped(call));
            let finished = tokio::select! {
                biased;
                result = &mut call => Some(result),
                () = drop_when_overdue(&stop, deadline) => None,
            };
            (finished, call.spent() + files.spent())
        };
        let duration = start.elapsed();
        let denied = store.data().memory_limiter.denied();
        if let Some(Err(error)) = &finished
            && !denied
            && classify_end::is_host_failure(error)
        {
            return Err(Refusal::of_host("instantiating", error.as_ref()));
        }
        let (outcome, trap, values) = conclude(finished, stop.reason(), denied);
        let [stdout, stderr] = self.output.written();
        let input = store.data().input.as_ref();
        let stdin_read = input.map_or(0, |input| input.read_bytes());
        Ok(RunReport {
            outcome,
            trap,
            duration,
            instantiation: store.data().instantiated.map(|at| at - start),
            cpu_time,
            fuel_consumed: self
                .fuel
                .map(|fuel| fuel.saturating_sub(store.get_fuel().unwrap_or_default())),
            memory_used: store.data().memory_limiter.peak(),
            memory_denied: denied,
            values,
            stdin_read,
            stdout,
            stderr,
        })
    }
}

/// Creates a store with all of the run's limits: memory, tables, handles, fuel and time. A store
/// gets its limits only here.
fn create_store(
    engine: &Engine,
    state: GuestState,
    policy: PreemptionPolicy,
) -> wasmtime::Result<(Store<GuestState>, FuelYields)> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.memory_limiter);
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    let fuel_yields = policy.install(&mut store)?;
    Ok((store, fuel_yields))
}

/// Waits until the run is asked to stop or its deadline passes, and then for [`STOP_GRACE`]. A run
/// that has not ended by itself by then has to be dropped.
async fn drop_when_overdue(stop: &StopSignal, deadline: Option<Instant>) {
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.requested() => {}
        () = late => {
            stop.request(StopReason::TimedOut);
        }
    }
    tokio::time::sleep(STOP_GRACE).await;
}

/// What a call that returned by itself gave: the values of a core function, or the exit code of a
/// component.
enum GuestReturn {
    Values(Vec<Value>),
    Code(u32),
}

async fn call(
    store: &mut Store<GuestState>,
    loaded: &LoadedModule,
    clock: ClockKind,
    entry: &EntryPoint,
) -> wasmtime::Result<GuestReturn> {
    let linkage = loaded
        .pre_instance(clock)
        .map_err(|refusal| wasmtime::Error::msg(refusal.to_string()))?;
    match linkage {
        PreInstance::Component(pre) => call_component(store, pre).await.map(GuestReturn::Code),
        PreInstance::Core(pre) => {
            let instance = pre
                .instantiate_async(&mut *store)
                .await
                .map_err(classify_end::mark_host_failure)?;
            store.data_mut().instantiated = Some(Instant::now());
            call_core(store, &instance, entry)
                .await
                .map(GuestReturn::Values)
        }
    }
}

async fn call_component(
    store: &mut Store<GuestState>,
    pre: &CommandPre<GuestState>,
) -> wasmtime::Result<u32> {
    let command = pre
        .instantiate_async(&mut *store)
        .await
        .map_err(classify_end::mark_host_failure)?;
    store.data_mut().instantiated = Some(Instant::now());
    let result = command.wasi_cli_run().call_run(store).await?;
    Ok(if result.is_ok() { 0 } else { 1 })
}

async fn call_core(
    store: &mut Store<GuestState>,
    instance: &Instance,
    entry: &EntryPoint,
) -> wasmtime::Result<Vec<Value>> {
    if entry.initialize {
        let initialize = instance.get_typed_func::<(), ()>(&mut *store, "_initialize")?;
        initialize.call_async(&mut *store, ()).await?;
    }
    if entry.is_plain() {
        let function = instance.get_typed_func::<(), ()>(&mut *store, &entry.name)?;
        function.call_async(&mut *store, ()).await?;
        return Ok(Vec::new());
    }
    let function = instance
        .get_func(&mut *store, &entry.name)
        .ok_or_else(|| wasmtime::Error::msg("the entry point is gone"))?;
    let params: Vec<Val> = entry.params.iter().copied().map(to_val).collect();
    let mut results = vec![Val::I32(0); entry.results];
    function
        .call_async(&mut *store, &params, &mut results)
        .await?;
    Ok(results.iter().filter_map(from_val).collect())
}

fn conclude(
    finished: Option<wasmtime::Result<GuestReturn>>,
    stop: Option<StopReason>,
    denied: bool,
) -> (Outcome, Option<Trap>, Vec<Value>) {
    match finished {
        Some(Ok(GuestReturn::Values(values))) => {
            (classify_end::exit_outcome(0, denied), None, values)
        }
        Some(Ok(GuestReturn::Code(code))) => {
            (classify_end::exit_outcome(code, denied), None, Vec::new())
        }
        Some(Err(error)) => {
            let (outcome, trap) = classify_end::classify(&error, stop, denied);
            (outcome, trap, Vec::new())
        }
        // The guest was dropped in a host call, which happens only after a stop request.
        None => {
            let reason = stop.unwrap_or(StopReason::TimedOut);
            (classify_end::stop_outcome(reason), None, Vec::new())
        }
    }
}

fn to_val(value: Value) -> Val {
    match value {
        Value::I32(v) => Val::I32(v),
        Value::I64(v) => Val::I64(v),
        Value::F32(v) => Val::F32(v.to_bits()),
        Value::F64(v) => Val::F64(v.to_bits()),
    }
}

fn from_val(value: &Val) -> Option<Value> {
    // The entry point's type was checked, so its results are numbers.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only numbers pass the entry point's check"
    )]
    match *value {
        Val::I32(v) => Some(Value::I32(v)),
        Val::I64(v) => Some(Value::I64(v)),
        Val::F32(v) => Some(Value::F32(f32::from_bits(v))),
        Val::F64(v) => Some(Value::F64(f64::from_bits(v))),
        _ => None,
    }
}
