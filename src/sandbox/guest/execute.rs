//! Executes one run from a loaded module to its end: creates a store with its limits, instantiates
//! the module, calls the entry point, and reports what happened. A run that has to stop while it
//! waits in a host call is dropped after a short grace period.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Engine, Instance, Store, Val};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::classify_end;
use super::collect;
use super::directory_snapshot::OpenListings;
use super::entry::EntryPoint;
use super::guest_directories::{GuestDirectories, guest_directories, limited};
use super::guest_state::GuestState;
use super::handles::{DescriptorAccount, Handles, ReplacedStdio};
use super::mounts::MountRoots;
use super::preempt::PreemptionPolicy;
use super::session::{self, KeptGuest, ResumedGuest, RunParts, SessionRun, SessionSlot};
use super::stdin::Input;
use super::stdio::{GuestOutput, Output};
use super::stepped_clock::{ClockKind, SteppedClock};
use super::stop_signal::{StopReason, StopSignal};
use super::wasi::{self, GuestWasi};
use crate::model::collected::UncollectedFiles;
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
    guest: PreparedGuest,
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

/// What a run begins with.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every run is a fresh one, which is to allocate nothing for this"
)]
enum PreparedGuest {
    /// The state of a store that is created for the run, and the session that begins with it, if
    /// one does.
    Fresh(GuestState, Option<Box<SessionRun>>),
    /// An interpreter that its session has kept.
    Kept(ResumedGuest),
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
    /// Where the session that the run belongs to keeps its interpreter; `None` where it belongs to
    /// none.
    pub session: Option<&'a Arc<SessionSlot>>,
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
    let clock = ClockKind::of(spec.clock);
    loaded.pre_instance(clock)?;
    if let Some((slot, kept)) = ctx.session.and_then(|slot| Some((slot, slot.take()?))) {
        return prepare_kept(loaded, spec, (entry, clock), ctx, (slot, kept));
    }
    let [stdout, stderr] = [Stream::Stdout, Stream::Stderr].map(|it| guest_output(&ctx, spec, it));
    let mut handles = Handles::of(ctx.max_handles, ctx.descriptors, ctx.session.is_some());
    let GuestDirectories { dirs, memory } =
        guest_directories(spec, &loaded, pages, &mut handles, ctx.roots, &ctx.usage)?;
    let input = guest_input(ctx.input, spec);
    let begins = |slot| SessionRun::begin(slot, (input.as_ref(), &stdout, &stderr));
    let (streams, session) = ctx.session.map(begins).unzip();
    let stepped = (!spec.clock).then(SteppedClock::default);
    let names = [ctx.module_name, &loaded.inspection.description.name];
    let args = entry.command_line(&spec.args, names);
    let given = wasi::WasiParts {
        input: input.clone(),
        stdout: stdout.clone(),
        stderr: stderr.clone(),
        session: streams,
        stepped: stepped.clone(),
        table_entries: handles.table_entries(),
    };
    let has_files = !dirs.is_empty() || spec.network;
    let wasi = match has_files || memory.is_some() || spec.working_dir.is_some() {
        true => GuestWasi::build(spec, &args, &dirs, &ctx.grants.network, given)?,
        false => GuestWasi::plan(&args, &spec.env, given),
    };
    let (memory_limiter, memory_files) = limited(pages, &ctx.usage, memory);
    Ok(PreparedRun {
        loaded,
        entry,
        clock,
        guest: PreparedGuest::Fresh(
            GuestState {
                wasi,
                stepped_clock: stepped,
                memory_limiter,
                stop: Arc::clone(&ctx.stop),
                input,
                stdout,
                stderr,
                replaced_stdio: ReplacedStdio::default(),
                handles,
                labels: spec.labels.clone(),
                listings: OpenListings::default(),
                memory_files,
                files: FileCalls::none(),
                preemption: None,
                instantiated: None,
            },
            session,
        ),
        has_files,
        fuel: spec.limits.fuel,
        timeout: spec.limits.timeout,
        deadline: ctx.deadline,
        output: ctx.output,
        usage: ctx.usage,
    })
}

/// Prepares a run of a session whose interpreter was `kept` in `slot`.
fn prepare_kept(
    loaded: Arc<LoadedModule>,
    spec: &RunSpec,
    (entry, clock): (EntryPoint, ClockKind),
    ctx: RunContext<'_>,
    (slot, kept): (&Arc<SessionSlot>, Box<KeptGuest>),
) -> Result<PreparedRun, Refusal> {
    let parts = RunParts {
        usage: &ctx.usage,
        stop: &ctx.stop,
        input: guest_input(ctx.input.clone(), spec),
        stdout: guest_output(&ctx, spec, Stream::Stdout),
        stderr: guest_output(&ctx, spec, Stream::Stderr),
    };
    let resumed = session::resume(*kept, (slot, spec), parts)?;
    Ok(PreparedRun {
        loaded,
        entry,
        clock,
        guest: PreparedGuest::Kept(resumed),
        has_files: spec.network,
        fuel: spec.limits.fuel,
        timeout: spec.limits.timeout,
        deadline: ctx.deadline,
        output: ctx.output,
        usage: ctx.usage,
    })
}

/// Creates one of the output streams of a run.
fn guest_output(ctx: &RunContext<'_>, spec: &RunSpec, stream: Stream) -> GuestOutput {
    GuestOutput {
        output: Arc::clone(&ctx.output),
        stream,
        stop: Arc::clone(&ctx.stop),
        stall_timeout: ctx.stall_timeout,
        detached: spec.detach,
    }
}

/// Returns what the guest reads: the live input, which begins with the spec's own, or only that;
/// `None` where there is neither.
fn guest_input(live: Option<Arc<Input>>, spec: &RunSpec) -> Option<Arc<Input>> {
    let input = match live {
        Some(input) => {
            input.begin_with(spec.stdin.clone());
            input
        }
        None if spec.stdin.is_empty() => return None,
        None => Arc::new(Input::whole(spec.stdin.clone())),
    };
    if spec.stdin_preface > 0 {
        input.begin_count_after(spec.stdin_preface);
    }
    Some(input)
}

impl PreparedRun {
    /// Returns the module that the run executes.
    pub(in crate::sandbox) fn loaded(&self) -> Arc<LoadedModule> {
        Arc::clone(&self.loaded)
    }

    /// Returns how many bytes of memory the guest has when it begins.
    pub(in crate::sandbox) fn memory(&self) -> u64 {
        match &self.guest {
            PreparedGuest::Fresh(..) => {
                let pages = self.loaded.inspection.description.memory_minimum_pages;
                pages * WASM_PAGE_BYTES
            }
            PreparedGuest::Kept(resumed) => resumed.held(),
        }
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
    pub async fn execute(self, files: FileCalls) -> Result<RunReport, Refusal> {
        let start = Instant::now();
        let (mut store, mut session) = self.guest.begin(self.loaded.engine());
        store.data_mut().files = files.clone();
        let deadlines = [start.checked_add(self.timeout), self.deadline];
        let deadline = deadlines.into_iter().flatten().min();
        let stop = Arc::clone(&store.data().stop);
        if let Some(deadline) = deadline {
            stop.set_deadline(deadline);
        }
        let policy = PreemptionPolicy {
            epochs: self.loaded.epochs().clone(),
            start,
            deadline,
            fuel: self.fuel,
            usage: self.usage,
        };
        let fuel_yields = policy
            .install(&mut store)
            .map_err(|error| Refusal::of_host("arming a store", error.as_ref()))?;
        let (finished, cpu_time) = {
            let callee = (self.clock, &self.entry, session.as_deref_mut());
            let call = pin!(call(&mut store, &self.loaded, callee));
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
        check_host(finished.as_ref(), denied)?;
        // An interpreter that was stopped, or has trapped, is in no state to go on.
        let session = session
            .filter(|_| stop.reason().is_none() && finished.as_ref().is_some_and(Result::is_ok));
        let (outcome, trap, values) = conclude(finished, stop.reason(), denied);
        let (uncollected, collecting) =
            collect_files(&mut store, (&stop, session.is_some()), &self.output).await;
        let [stdout, stderr] = self.output.written();
        let input = store.data().input.as_ref();
        let stdin_read = input.map_or(0, |input| input.read_bytes());
        let report = RunReport {
            outcome,
            trap,
            duration,
            instantiation: store.data().instantiated.map(|at| at - start),
            cpu_time: cpu_time + collecting,
            fuel_consumed: self
                .fuel
                .map(|fuel| fuel.saturating_sub(store.get_fuel().unwrap_or_default())),
            memory_used: store.data().memory_limiter.peak(),
            memory_denied: denied,
            values,
            stdin_read,
            stdout,
            stderr,
            uncollected,
            session: None,
        };
        if let Some(session) = session {
            session.keep(store);
        }
        Ok(report)
    }
}

/// Reports a guest that the host could not instantiate, unless a limit of the run was in its way.
fn check_host(
    finished: Option<&wasmtime::Result<GuestReturn>>,
    denied: bool,
) -> Result<(), Refusal> {
    match finished {
        Some(Err(error)) if !denied && classify_end::is_host_failure(error) => {
            Err(Refusal::of_host("instantiating", error.as_ref()))
        }
        Some(_) | None => Ok(()),
    }
}

impl PreparedGuest {
    /// Returns the store that the run executes in, and the session that it belongs to, if any.
    fn begin(self, engine: &Engine) -> (Store<GuestState>, Option<Box<SessionRun>>) {
        match self {
            Self::Fresh(state, session) => (create_store(engine, state), session),
            Self::Kept(resumed) => match resumed.begin() {
                Some((store, session)) => (store, Some(session)),
                // It is taken only here, and once.
                None => (create_store(engine, GuestState::placeholder()), None),
            },
        }
    }
}

/// Hands the files that the run returns over to its output, and removes its memory file system,
/// unless that is kept. Returns what was not collected, and the processor time that this took.
async fn collect_files(
    store: &mut Store<GuestState>,
    (stop, is_kept): (&StopSignal, bool),
    output: &Output,
) -> (Option<Box<UncollectedFiles>>, Duration) {
    let Some(files) = store.data_mut().memory_files.take() else {
        return (None, Duration::ZERO);
    };
    // Boxed, so that a run without files has no room for this.
    let mut collecting = CpuTimed::new(Box::pin(async {
        let (collected, uncollected) = collect::collect(&files, stop).await;
        if is_kept {
            return (Some(files), collected, uncollected);
        }
        collect::remove(*files, stop).await;
        (None, collected, uncollected)
    }));
    let (files, collected, uncollected) = (&mut collecting).await;
    store.data_mut().memory_files = files;
    output.deliver(collected);
    (uncollected, collecting.spent())
}

/// Creates a store with the limits of the run's memory, tables and handles. Those of fuel and time
/// are installed with its [`PreemptionPolicy`].
fn create_store(engine: &Engine, state: GuestState) -> Store<GuestState> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.memory_limiter);
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    store
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
    (clock, entry, session): (ClockKind, &EntryPoint, Option<&mut SessionRun>),
) -> wasmtime::Result<GuestReturn> {
    let linkage = loaded
        .pre_instance(clock)
        .map_err(|refusal| wasmtime::Error::msg(refusal.to_string()))?;
    if let Some(session) = session {
        // Boxed, so that a run of no session has no room for this.
        return Box::pin(session.call(store, linkage))
            .await
            .map(GuestReturn::Code);
    }
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
