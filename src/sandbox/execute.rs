//! One run, from a loaded module to its end: arm a fresh store, instantiate, call, tell what happened.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::{Engine, Instance, Store, Val};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::clock::SteppedClock;
use super::cpu_time::OnCpu;
use super::entry::Entry;
use super::files::FileCalls;
use super::handles::{DescriptorAccount, Handles, Moved};
use super::host::{Clock, State};
use super::listing::OpenListings;
use super::loaded::{Linkage, Loaded};
use super::meter::Meter;
use super::mounts::{self, Roots};
use super::stdin::Input;
use super::stdio::{GuestOutput, Output};
use super::stop::{Stop, StopReason};
use super::trap;
use super::turn::{Pauses, Turn};
use super::wasi::{self, GuestWasi};
use super::working_dir;
use crate::limits::PAGE;
use crate::outcome::{Ended, Outcome, Stream, Trap, Usage, Value};
use crate::policy::Grants;
use crate::refusal::Refusal;
use crate::request::RunSpec;

/// The runtime's bound on what a host call may copy is none: what guests may make large is bounded, or done in pieces, where
/// each call is defined ([`super::preview1`], [`super::preview2`]).
const HOSTCALL_FUEL: usize = usize::MAX;
/// How long a guest that was asked to stop may take to do so by itself, as a guest in its own code does at its next
/// epoch. One that waits in a host call is dropped after this.
const STOP_GRACE: Duration = Duration::from_millis(10);

/// A run whose module, entry point, mounts and limits are settled: nothing is left that could refuse it.
pub struct Prepared {
    loaded: Arc<Loaded>,
    entry: Entry,
    clock: Clock,
    state: State,
    /// Whether it is given directories, or sockets.
    has_files: bool,
    fuel: Option<u64>,
    timeout: Duration,
    /// Ends the run however long its own timeout is.
    until: Option<Instant>,
    output: Arc<Output>,
    usage: Arc<Usage>,
}

/// What a run takes beyond its spec.
pub struct Surroundings<'a> {
    /// What the module was loaded as; empty: nothing.
    pub module_name: &'a str,
    /// What the operator grants.
    pub grants: &'a Grants,
    /// Directories that it may mount.
    pub roots: &'a Roots,
    /// What the guest reads while its caller still writes it, rather than the spec's input alone.
    pub input: Option<Arc<Input>>,
    /// Where output goes.
    pub output: Arc<Output>,
    /// Told what the run uses.
    pub usage: Arc<Usage>,
    /// Asks it to end.
    pub stop: Arc<Stop>,
    /// How long a caller may take nothing while the guest waits.
    pub stall: Duration,
    /// Ends the run however long its own timeout is.
    pub until: Option<Instant>,
    /// The most handles that the run may have.
    pub max_handles: usize,
    /// Where their descriptors come from.
    pub descriptors: Arc<DescriptorAccount>,
}

/// Settles all that can refuse a run.
///
/// # Errors
/// Those of its entry point, imports and mounts.
pub fn prepare(
    loaded: Arc<Loaded>,
    spec: &RunSpec,
    pages: u32,
    entry: Entry,
    around: Surroundings<'_>,
) -> Result<Prepared, Refusal> {
    let clock = if spec.clock {
        Clock::Real
    } else {
        Clock::Stepped
    };
    loaded.linkage(clock)?;
    let mut handles = Handles::new(around.max_handles, around.descriptors);
    for _ in 0..working_dir::given(spec) {
        handles.reserve().map_err(|_| mounts::no_descriptors())?;
    }
    let opened = mounts::open(around.roots, &spec.mounts)?;
    let dirs = working_dir::arrange(around.roots, spec, opened)?;
    let stream = |stream| GuestOutput {
        output: Arc::clone(&around.output),
        stream,
        stop: Arc::clone(&around.stop),
        stall: around.stall,
        detached: spec.detach,
    };
    let input = match around.input {
        Some(input) => {
            input.begin_with(spec.stdin.clone());
            Some(input)
        }
        None if spec.stdin.is_empty() => None,
        None => Some(Arc::new(Input::whole(spec.stdin.clone()))),
    };
    let stepped = (!spec.clock).then(SteppedClock::default);
    let module_name = [around.module_name, &loaded.inspection.description.name];
    let args = entry.command_line(&spec.args, module_name);
    let given = wasi::Given {
        input: input.clone(),
        stdout: stream(Stream::Stdout),
        stderr: stream(Stream::Stderr),
        stepped: stepped.clone(),
        table_entries: handles.table_entries(),
    };
    let has_files = !dirs.is_empty() || spec.network;
    let wasi = match has_files || spec.working_dir.is_some() {
        true => GuestWasi::build(spec, &args, &dirs, &around.grants.network, given)?,
        false => GuestWasi::plan(&args, &spec.env, given),
    };
    Ok(Prepared {
        loaded,
        entry,
        clock,
        state: State {
            wasi,
            stepped,
            // On a 64-bit host, which this is, pages of 64 KiB counted by a u32 fit.
            meter: Meter::new(
                usize::try_from(u64::from(pages) * PAGE).unwrap_or(usize::MAX),
                Arc::clone(&around.usage),
            ),
            stop: Arc::clone(&around.stop),
            input,
            stdout: stream(Stream::Stdout),
            stderr: stream(Stream::Stderr),
            moved: Moved::default(),
            handles,
            labels: spec.labels.clone(),
            listings: OpenListings::default(),
            files: FileCalls::none(),
            watched: None,
        },
        has_files,
        fuel: spec.limits.fuel,
        timeout: spec.limits.timeout,
        until: around.until,
        output: around.output,
        usage: around.usage,
    })
}

impl Prepared {
    /// What it runs.
    pub(super) fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded)
    }

    /// Whether it may make file system calls that block.
    pub(super) fn has_files(&self) -> bool {
        self.has_files
    }

    /// Runs it to its end, with its file system calls made by `files`. When this returns its store is gone.
    ///
    /// # Errors
    /// `INTERNAL` where the host cannot provide a store or an instance: the guest has executed nothing.
    pub async fn execute(mut self, files: FileCalls) -> Result<Ended, Refusal> {
        self.state.files = files.clone();
        let start = Instant::now();
        let deadline = [start.checked_add(self.timeout), self.until]
            .into_iter()
            .flatten()
            .min();
        let stop = Arc::clone(&self.state.stop);
        if let Some(deadline) = deadline {
            stop.set_deadline(deadline);
        }
        let (mut store, pauses) = arm(
            self.loaded.engine(),
            self.state,
            Turn {
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
            let mut call = OnCpu::new(pauses.skipped(call));
            let finished = tokio::select! {
                biased;
                result = &mut call => Some(result),
                () = overdue(&stop, deadline) => None,
            };
            (finished, call.spent() + files.spent())
        };
        let duration = start.elapsed();
        let denied = store.data().meter.denied();
        if let Some(Err(error)) = &finished
            && !denied
            && trap::is_the_hosts(error)
        {
            return Err(Refusal::of_host("instantiating", error.as_ref()));
        }
        let (outcome, trap, values) = conclude(finished, stop.reason(), denied);
        let [stdout, stderr] = self.output.written();
        let input = store.data().input.as_ref();
        let stdin_read = input.map_or(0, |input| input.read_bytes());
        Ok(Ended {
            outcome,
            trap,
            duration,
            cpu_time,
            fuel_consumed: self
                .fuel
                .map(|fuel| fuel.saturating_sub(store.get_fuel().unwrap_or_default())),
            memory_used: store.data().meter.peak(),
            memory_denied: denied,
            values,
            stdin_read,
            stdout,
            stderr,
        })
    }
}

/// The one place where a store gets its limits: memory, tables, handles, fuel, time.
fn arm(engine: &Engine, state: State, turn: Turn) -> wasmtime::Result<(Store<State>, Pauses)> {
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.meter);
    store.set_hostcall_fuel(HOSTCALL_FUEL);
    let pauses = turn.watch(&mut store)?;
    Ok((store, pauses))
}

/// Resolves when a run that has to stop did not do so by itself.
async fn overdue(stop: &Stop, deadline: Option<Instant>) {
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

/// How a call ended: by itself, with values, or with an exit code of a component.
enum Returned {
    Values(Vec<Value>),
    Code(u32),
}

async fn call(
    store: &mut Store<State>,
    loaded: &Loaded,
    clock: Clock,
    entry: &Entry,
) -> wasmtime::Result<Returned> {
    let linkage = loaded
        .linkage(clock)
        .map_err(|refusal| wasmtime::Error::msg(refusal.to_string()))?;
    match linkage {
        Linkage::Component(pre) => call_component(store, pre).await.map(Returned::Code),
        Linkage::Core(pre) => {
            let instance = pre
                .instantiate_async(&mut *store)
                .await
                .map_err(trap::instantiating)?;
            call_core(store, &instance, entry)
                .await
                .map(Returned::Values)
        }
    }
}

async fn call_component(
    store: &mut Store<State>,
    pre: &CommandPre<State>,
) -> wasmtime::Result<u32> {
    let command = pre
        .instantiate_async(&mut *store)
        .await
        .map_err(trap::instantiating)?;
    let result = command.wasi_cli_run().call_run(store).await?;
    Ok(if result.is_ok() { 0 } else { 1 })
}

async fn call_core(
    store: &mut Store<State>,
    instance: &Instance,
    entry: &Entry,
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
    finished: Option<wasmtime::Result<Returned>>,
    stop: Option<StopReason>,
    denied: bool,
) -> (Outcome, Option<Trap>, Vec<Value>) {
    match finished {
        Some(Ok(Returned::Values(values))) => (trap::exited(0, denied), None, values),
        Some(Ok(Returned::Code(code))) => (trap::exited(code, denied), None, Vec::new()),
        Some(Err(error)) => {
            let (outcome, trap) = trap::classify(&error, stop, denied);
            (outcome, trap, Vec::new())
        }
        // Dropped in a host call: only a stop request does that.
        None => {
            let reason = stop.unwrap_or(StopReason::TimedOut);
            (trap::stopped(reason), None, Vec::new())
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
    // The entry point's type was checked: its results are numbers.
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
