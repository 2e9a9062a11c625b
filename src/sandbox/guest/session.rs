//! Sessions: interpreters that are kept between the programs that they execute.
//!
//! An ordinary run drops its store before its end is told. A run of a session leaves its store in
//! the [`SessionSlot`] of the session if the interpreter returned by itself. The next run takes it
//! from there, and gives it an output, an input, a stop signal and limits of its own.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use wasmtime::Store;
use wasmtime::component::TypedFunc;

use super::classify_end;
use super::guest_state::GuestState;
use super::memory_fs::FileError;
use super::session_streams::SessionStreams;
use super::stdin::Input;
use super::stdio::GuestOutput;
use super::stop_signal::StopSignal;
use crate::model::outcome::LiveUsage;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{FileSpec, GivenFile, RunSpec};
use crate::sandbox::modules::inspection::Inspection;
use crate::sandbox::modules::loaded::PreInstance;
use crate::sync::lock;

/// The interface that a component exports in order to be kept.
const INTERFACE: &str = "ringfence:runner/session@1.0.0";
/// Its function, which executes one program.
const EXECUTE: &str = "execute";

/// The type of that function: it reads the program from standard input, and returns its exit code.
type ExecuteFunc = TypedFunc<(), (u8,)>;

/// Where the interpreter of a session is kept while it executes nothing.
#[derive(Default)]
pub struct SessionSlot(Mutex<Option<Box<KeptGuest>>>);

/// An interpreter that is kept.
pub(in crate::sandbox) struct KeptGuest {
    store: Store<GuestState>,
    execute: ExecuteFunc,
    streams: SessionStreams,
}

/// What belongs to one run of a session.
pub(in crate::sandbox) struct RunParts<'a> {
    pub(in crate::sandbox) usage: &'a Arc<LiveUsage>,
    pub(in crate::sandbox) stop: &'a Arc<StopSignal>,
    pub(in crate::sandbox) input: Option<Arc<Input>>,
    pub(in crate::sandbox) stdout: GuestOutput,
    pub(in crate::sandbox) stderr: GuestOutput,
}

/// What a run of a session has beside its store.
pub(in crate::sandbox) struct SessionRun {
    slot: Arc<SessionSlot>,
    streams: SessionStreams,
    /// The function of the interpreter; `None` until it is instantiated.
    execute: Option<ExecuteFunc>,
}

impl SessionSlot {
    /// Reports whether an interpreter is kept here.
    pub fn is_kept(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// Drops the interpreter that is kept here.
    pub fn clear(&self) {
        // Dropped without the lock, since a store takes a while.
        drop(self.take());
    }

    pub(in crate::sandbox) fn take(&self) -> Option<Box<KeptGuest>> {
        lock(&self.0).take()
    }

    fn put(&self, guest: Box<KeptGuest>) {
        *lock(&self.0) = Some(guest);
    }
}

impl SessionRun {
    /// Creates the run of a session whose interpreter has yet to be instantiated, and the streams
    /// that it is to have.
    pub(in crate::sandbox) fn begin(
        slot: &Arc<SessionSlot>,
        (input, stdout, stderr): (Option<&Arc<Input>>, &GuestOutput, &GuestOutput),
    ) -> (SessionStreams, Box<Self>) {
        let streams = SessionStreams::new(or_empty(input), stdout.clone(), stderr.clone());
        let run = Self {
            slot: Arc::clone(slot),
            streams: streams.clone(),
            execute: None,
        };
        (streams, Box::new(run))
    }

    /// Executes the program, in the interpreter that is there or in a new one, and returns its exit
    /// code.
    pub(in crate::sandbox) async fn call(
        &mut self,
        store: &mut Store<GuestState>,
        linkage: PreInstance<'_>,
    ) -> wasmtime::Result<u32> {
        let execute = match self.execute {
            Some(execute) => execute,
            None => *self.execute.insert(instantiate(store, linkage).await?),
        };
        let (code,) = execute.call_async(store, ()).await?;
        Ok(u32::from(code))
    }

    /// Leaves the interpreter to the next run of the session.
    pub(in crate::sandbox) fn keep(self, mut store: Store<GuestState>) {
        let Self {
            slot,
            streams,
            execute,
        } = self;
        let Some(execute) = execute else {
            return;
        };
        // The log and the output of this run are not the session's to hold.
        rest(store.data_mut(), &streams);
        slot.put(Box::new(KeptGuest {
            store,
            execute,
            streams,
        }));
    }
}

/// Instantiates an interpreter, and looks up its function.
async fn instantiate(
    store: &mut Store<GuestState>,
    linkage: PreInstance<'_>,
) -> wasmtime::Result<ExecuteFunc> {
    let PreInstance::Component(pre) = linkage else {
        return Err(wasmtime::Error::msg("a core module cannot be kept"));
    };
    let instance = pre
        .instance_pre()
        .instantiate_async(&mut *store)
        .await
        .map_err(classify_end::mark_host_failure)?;
    store.data_mut().instantiated = Some(Instant::now());
    let interface = instance.get_export_index(&mut *store, None, INTERFACE);
    let function = interface
        .and_then(|interface| instance.get_export_index(&mut *store, Some(&interface), EXECUTE))
        .ok_or_else(|| wasmtime::Error::msg(format!("{INTERFACE} is not exported")))?;
    instance.get_typed_func(store, function)
}

/// Returns an input, or one that is at its end.
fn or_empty(input: Option<&Arc<Input>>) -> Arc<Input> {
    let empty = || Arc::new(Input::whole(Bytes::new()));
    input.map_or_else(empty, Arc::clone)
}

/// Takes everything of its last run from an interpreter.
fn rest(state: &mut GuestState, streams: &SessionStreams) {
    let GuestState {
        stop,
        stdout,
        stderr,
        files,
        ..
    } = GuestState::placeholder();
    streams.switch(or_empty(None), &stdout, &stderr);
    state.stop = stop;
    state.input = None;
    state.stdout = stdout;
    state.stderr = stderr;
    state.labels = Default::default();
    state.files = files;
    state.preemption = None;
    state.instantiated = None;
}

/// Refuses a program of a session whose interpreter cannot be kept.
///
/// # Errors
/// `SPEC_INVALID`.
pub fn check_session(inspection: &Inspection, spec: &RunSpec) -> Result<(), Refusal> {
    let mut exports = inspection.description.exports.iter();
    if spec.session.is_none() || exports.any(|export| export.name == INTERFACE) {
        return Ok(());
    }
    let message = format!(
        "cannot be kept by the interpreter of this language, which does not export {INTERFACE}"
    );
    Err(Refusal::invalid("spec.session", message))
}

/// A kept interpreter that is prepared for its next run. It is kept on if that does not begin.
pub(in crate::sandbox) struct ResumedGuest(Option<(Store<GuestState>, Box<SessionRun>)>);

impl ResumedGuest {
    /// Returns the store and the session's part of the run, which begins.
    pub(in crate::sandbox) fn begin(mut self) -> Option<(Store<GuestState>, Box<SessionRun>)> {
        self.0.take()
    }

    /// Returns how many bytes of memory the interpreter holds.
    pub(in crate::sandbox) fn held(&self) -> u64 {
        let store = self.0.as_ref().map(|(store, _)| store);
        store.map_or(0, |store| store.data().memory_limiter.held())
    }
}

impl Drop for ResumedGuest {
    fn drop(&mut self) {
        if let Some((store, run)) = self.0.take() {
            run.keep(store);
        }
    }
}

/// Gives a kept interpreter what belongs to its next run: its output, input, stop signal, labels
/// and files.
///
/// # Errors
/// `SPEC_INVALID` or `LIMIT_ABOVE_MAXIMUM` for a file that cannot be made. The interpreter is back
/// in its slot then.
pub(in crate::sandbox) fn resume(
    guest: KeptGuest,
    (slot, spec): (&Arc<SessionSlot>, &RunSpec),
    parts: RunParts<'_>,
) -> Result<ResumedGuest, Refusal> {
    let KeptGuest {
        mut store,
        execute,
        streams,
    } = guest;
    let run = SessionRun {
        slot: Arc::clone(slot),
        streams,
        execute: Some(execute),
    };
    let state = store.data_mut();
    let RunParts {
        usage,
        stop,
        input,
        stdout,
        stderr,
    } = parts;
    let files = state.memory_files.as_ref();
    let account = files.map(|files| lock(&files.fs).renew_account(usage));
    state.memory_limiter.renew(Arc::clone(usage), account);
    if let Some(given) = &spec.files
        && let Err(refusal) = add_files(state, given)
    {
        run.keep(store);
        return Err(refusal);
    }
    run.streams
        .switch(or_empty(input.as_ref()), &stdout, &stderr);
    state.stop = Arc::clone(stop);
    state.input = input;
    state.stdout = stdout;
    state.stderr = stderr;
    state.labels = spec.labels.clone();
    Ok(ResumedGuest(Some((store, Box::new(run)))))
}

/// Puts the files of a run where its session has its own, in place of those of the same names.
fn add_files(state: &mut GuestState, given: &FileSpec) -> Result<(), Refusal> {
    let Some(files) = &mut state.memory_files else {
        return Ok(());
    };
    files.collect = Arc::clone(&given.collect);
    files.caps = given.caps;
    let mut fs = lock(&files.fs);
    let given_files: Vec<_> = given.given.iter().collect();
    let put: Vec<_> = given_files
        .iter()
        .map(|file| (file.path.as_str(), &file.bytes))
        .collect();
    fs.replace_files(&put)
        .map_err(|(index, error)| not_put(index, given_files[index], error))?;
    for pattern in given.collect.iter() {
        let path = pattern.directory().as_str();
        if fs.has_room_for(path) {
            // A pattern whose directory cannot be made matches nothing.
            let _ = fs.make_directories(path);
        }
    }
    Ok(())
}

/// Returns the refusal of a file that cannot be made in a session.
fn not_put(index: usize, file: &GivenFile, error: FileError) -> Refusal {
    let field = format!("spec.files[{index}]");
    let bytes = file.bytes.len();
    match error {
        FileError::NoSpace => Refusal::of_field(
            Reason::LimitAboveMaximum,
            field,
            format!("of {bytes} bytes does not fit into the memory that the session has left"),
        )
        .with("asked", bytes),
        FileError::IsDirectory => Refusal::invalid(field, "is a directory in the session"),
        FileError::NotDirectory | FileError::Loop => Refusal::invalid(
            field,
            "is below something that is no directory in the session",
        ),
        FileError::BadDescriptor
        | FileError::Busy
        | FileError::Exists
        | FileError::Invalid
        | FileError::NameTooLong
        | FileError::NotEmpty
        | FileError::NotFound
        | FileError::NotPermitted
        | FileError::ReadOnly
        | FileError::TooLarge => Refusal::invalid(field, format!("cannot be made: {error:?}")),
    }
}
