//! Opens the directories that a guest begins with, and limits the memory that they may take.

use std::sync::Arc;

use super::handles::Handles;
use super::memory_files::{GuestPreopen, MemoryFiles};
use super::memory_fs::account::FileMemoryAccount;
use super::memory_limiter::MemoryLimiter;
use super::memory_preopens::{self, MemoryBounds};
use super::mounts::{self, MountRoots, Preopen};
use super::stepped_clock::START;
use super::working_dir;
use crate::model::limits::WASM_PAGE_BYTES;
use crate::model::outcome::LiveUsage;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunSpec;
use crate::sandbox::modules::loaded::LoadedModule;

/// The directories that a guest begins with.
pub(in crate::sandbox) struct GuestDirectories {
    /// Those of the host, in their order.
    pub(in crate::sandbox) dirs: Vec<Preopen>,
    /// The memory file system and its account; `None` where the run has none.
    pub(in crate::sandbox) memory: Option<(Box<MemoryFiles>, Arc<FileMemoryAccount>)>,
}

/// Opens the directories of the host that a guest begins with, makes its memory file system if it
/// has one, and counts them all as handles.
pub(in crate::sandbox) fn guest_directories(
    spec: &RunSpec,
    loaded: &LoadedModule,
    pages: u32,
    handles: &mut Handles,
    roots: &MountRoots,
    usage: &Arc<LiveUsage>,
) -> Result<GuestDirectories, Refusal> {
    let Some(given) = &spec.files else {
        for _ in 0..working_dir::count_preopens(spec) {
            handles.reserve().map_err(|_| mounts::no_descriptors())?;
        }
        let opened = mounts::open_mounts(roots, &spec.mounts)?;
        let dirs = working_dir::preopens(roots, spec, opened)?;
        return Ok(GuestDirectories { dirs, memory: None });
    };
    let minimum = loaded.inspection.description.memory_minimum_pages;
    let bounds = MemoryBounds {
        limit: bytes_of(pages),
        minimum: bytes_of(u32::try_from(minimum).unwrap_or(u32::MAX)),
    };
    let fixed_time = (!spec.clock).then(|| u64::try_from(START.as_nanos()).unwrap_or(u64::MAX));
    let opened = mounts::open_mounts(roots, &spec.mounts)?;
    let prepared = memory_preopens::prepare(spec, given, opened, bounds, (usage, fixed_time))?;
    for preopen in &prepared.files.preopens {
        match preopen {
            GuestPreopen::Host => handles.reserve().map_err(|_| mounts::no_descriptors())?,
            GuestPreopen::Memory(..) if handles.take_in_memory() => {}
            GuestPreopen::Memory(..) => return Err(too_many_directories(handles.most())),
        }
    }
    Ok(GuestDirectories {
        dirs: prepared.host,
        memory: Some((Box::new(prepared.files), prepared.account)),
    })
}

/// Creates the limiter of a run that may have `pages` of memory, which `memory` shares if there is
/// any.
pub(in crate::sandbox) fn limited(
    pages: u32,
    usage: &Arc<LiveUsage>,
    memory: Option<(Box<MemoryFiles>, Arc<FileMemoryAccount>)>,
) -> (MemoryLimiter, Option<Box<MemoryFiles>>) {
    let mut limiter = MemoryLimiter::new(bytes_of(pages), Arc::clone(usage));
    let files = memory.map(|(files, account)| {
        limiter.share_with(account);
        files
    });
    (limiter, files)
}

/// Returns the refusal of a run that begins with more directories than it may have open.
fn too_many_directories(most: usize) -> Refusal {
    let message = format!(
        "beside its working directory the run would begin with more open directories than the {most} that it may \
         have (policy.max_handles); allowed are files in fewer directories of \"/\""
    );
    Refusal::new(Reason::LimitAboveMaximum, message)
        .at_field("spec.files")
        .with("allowed", most)
        .with("limit", "policy.max_handles")
}

/// Returns the bytes of so many pages of linear memory.
fn bytes_of(pages: u32) -> usize {
    // On a 64-bit host, which this is, the byte count of a `u32` number of 64 KiB pages fits.
    usize::try_from(u64::from(pages) * WASM_PAGE_BYTES).unwrap_or(usize::MAX)
}
