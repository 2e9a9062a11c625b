//! The archive of runs that have ended, which outlives the daemon and which any number of daemons
//! share: a folder, or an object store.
//!
//! Runs are written behind the daemon, many of them in one segment of NDJSON that zstd has
//! compressed. What is known of a run is opaque here; its reader decodes it.

mod batch;
mod metrics;
mod opened_segment;
mod packed_line;
mod page;
mod place;
mod queue;
mod reader;
mod removal;
mod segment;
mod segment_name;
mod spool;
mod staged_files;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::sync::{OwnedMutexGuard, Semaphore, mpsc, watch};

use self::place::{Place, create_folder};
use self::queue::ArchiveQueue;
use self::staged_files::StagedSweep;
use self::writer::{Encoder, Uploader, start_encoder};
use crate::model::limits::share_of;
use crate::model::request::{RunId, TimeRange, millis_since_epoch};
use crate::store::StoreLocation;
use crate::sync::lock;

pub use self::opened_segment::ArchivedEntry;
pub use self::packed_line::PackedLine;
pub use self::page::{ArchivedPage, PageRequest};
pub use self::place::{ArchiveError, ArchiveOpenError};
pub use self::queue::{ArchivableRun, ArchiveCounters, ArchiveMark, ArchiveState};
pub use self::removal::{Removal, Removed, Retention};
pub use self::segment::{EncodedRun, MAX_LINE, MAX_OUTPUT};

/// Requests of callers that have parts of the archive in memory at once, a few MiB each. It is more
/// than one tenant may have there.
const AT_ONCE: usize = 4;
/// How long a deletion waits for runs that are on their way into the archive.
const DELETION_WAITS: Duration = Duration::from_secs(10);
/// How long the end of the archive waits for what is given up to be told.
const GIVE_UP: Duration = Duration::from_millis(500);
/// How long whoever asks for a run waits for it to be written.
const FIND_WAITS: Duration = Duration::from_secs(2);
/// How often the retention is seen to.
const RETAIN_EVERY: Duration = Duration::from_secs(600);
/// How often it is looked for what daemons that were killed have left, since each look reads the
/// names of all segments.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// The folder for runs on their way, in an archive that is a folder.
const SPOOL: &str = ".spool";

/// The settings with which an archive is opened.
#[derive(Clone, Debug)]
pub struct ArchiveSettings {
    /// The place of its segments.
    pub location: StoreLocation,
    /// The folder for runs on their way, where the archive is no folder; `None`: those of the last
    /// second are lost if the daemon is killed.
    pub spool: Option<PathBuf>,
    /// The most bytes of runs that wait to be written.
    pub queue: usize,
    /// How long runs gather before they are written, unless they are large.
    pub interval: Duration,
    /// Whether a part of that is kept from any one tenant.
    pub has_several_tenants: bool,
    /// How long and how much is kept.
    pub retention: Retention,
}

/// The archive of ended runs.
#[derive(Debug)]
pub struct Archive {
    /// The daemon whose archive this is.
    instance: Arc<str>,
    place: Arc<Place>,
    queue: Arc<ArchiveQueue>,
    gives_up: watch::Sender<bool>,
    /// The locks of [`Self::lock_deletions`], by tenant.
    deletions: Mutex<HashMap<Box<str>, Arc<tokio::sync::Mutex<()>>>>,
    readers: Semaphore,
    retention: Retention,
}

impl Archive {
    /// Opens the archive for the daemon `instance`, and starts what writes it, on the runtime that
    /// this is called on.
    ///
    /// # Errors
    /// The place or the folder for runs on their way cannot be used, or the host has no thread.
    pub fn open(instance: &str, settings: ArchiveSettings) -> Result<Self, ArchiveOpenError> {
        let ArchiveSettings {
            location,
            spool,
            queue,
            interval,
            has_several_tenants,
            retention,
        } = settings;
        let place = Arc::new(Place::open(&location)?);
        let spool = match location {
            StoreLocation::Directory(folder) => Some(folder.join(SPOOL)),
            StoreLocation::Memory | StoreLocation::Objects { .. } => spool,
        };
        if let Some(folder) = &spool {
            create_folder("runs.archive_spool", folder)?;
        }
        let most_of_one = share_of(queue as u64, has_several_tenants);
        let most_of_one = usize::try_from(most_of_one).unwrap_or(queue);
        let queue = ArchiveQueue::new(queue, most_of_one);
        let (sealed, batches) = mpsc::unbounded_channel();
        let (gives_up, ends) = watch::channel(false);
        let instance: Arc<str> = instance.into();
        let encoder = Encoder {
            queue: Arc::clone(&queue),
            instance: Arc::clone(&instance),
            interval,
            spool,
            sealed,
        };
        start_encoder(encoder).map_err(ArchiveOpenError::Host)?;
        let uploader = Uploader {
            queue: Arc::clone(&queue),
            place: Arc::clone(&place),
            sealed: batches,
            gives_up: ends,
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with the thread that encodes, which ends when the archive is closed"
        )]
        tokio::spawn(uploader.run());
        Ok(Self {
            instance,
            place,
            queue,
            gives_up,
            deletions: Mutex::default(),
            readers: Semaphore::new(AT_ONCE),
            retention,
        })
    }

    /// Takes on a run that has ended, or drops it where there is no room, and says so in its mark.
    pub fn offer(&self, run: ArchivableRun) {
        self.queue.offer(run);
    }

    /// Returns the counts of what became of runs.
    pub fn counters(&self) -> &ArchiveCounters {
        &self.queue.counters
    }

    /// Returns how many bytes of runs wait to be written.
    pub fn waiting_bytes(&self) -> usize {
        self.queue.held()
    }

    /// Returns the most bytes of runs that may wait to be written.
    pub fn queue_capacity(&self) -> usize {
        self.queue.most
    }

    /// Waits until every run that was taken on has been written or dropped.
    pub async fn flush(&self) {
        let offered = self.queue.hurry();
        // An error says that nothing more will be written.
        let mut settled = self.queue.settled();
        let _ = settled.wait_for(|settled| *settled >= offered).await;
    }

    /// Takes nothing on any more, and waits for `grace` until all is written. What is not written
    /// then stays in the folder for runs on their way, or is lost, and the log says so.
    pub async fn close(&self, grace: Duration) {
        self.queue.close();
        if tokio::time::timeout(grace, self.flush()).await.is_ok() {
            return;
        }
        self.gives_up.send_replace(true);
        // What was being written is told of now.
        let told = tokio::time::timeout(GIVE_UP, self.flush()).await;
        if told.is_err() {
            tracing::error!("ended runs were not written to the archive in time");
        }
    }

    /// Deletes what is beyond the retention and what daemons that were killed have left, again and
    /// again for as long as it is polled.
    pub async fn run_maintenance(&self) {
        tokio::join!(self.retain(), self.sweep());
    }

    async fn retain(&self) {
        let Retention { age, bytes } = self.retention;
        if age.is_none() && bytes.is_none() {
            return;
        }
        loop {
            let now = millis_since_epoch(SystemTime::now());
            match removal::retain(&self.place, self.retention, now).await {
                Ok(0) => {}
                Ok(segments) => tracing::info!(segments, "old runs were deleted from the archive"),
                Err(error) => tracing::warn!(%error, "old runs stay in the archive"),
            }
            tokio::time::sleep(RETAIN_EVERY).await;
        }
    }

    async fn sweep(&self) {
        let Some(runs) = self.place.folder() else {
            return;
        };
        loop {
            let runs = runs.to_owned();
            let swept = tokio::task::spawn_blocking(move || StagedSweep::run(&runs));
            let StagedSweep { deleted, error } = swept.await.unwrap_or_default();
            if deleted > 0 {
                tracing::info!(
                    files = deleted,
                    "what killed daemons left in the archive was deleted"
                );
            }
            if let Some(error) = error {
                tracing::warn!(%error, "what killed daemons left may stay in the archive");
            }
            tokio::time::sleep(SWEEP_EVERY).await;
        }
    }

    /// Finds a run of a tenant by its id; `None` where the archive does not have it. A run that
    /// waits to be written is waited for.
    ///
    /// # Errors
    /// The archive does not answer, the part of it that may have the run is damaged, or the run
    /// cannot be written now.
    pub async fn find(
        &self,
        tenant: &str,
        id: &RunId,
    ) -> Result<Option<ArchivedEntry>, ArchiveError> {
        if id.instance() == &*self.instance {
            let written = self.until_written(tenant, id.number());
            let written = tokio::time::timeout(FIND_WAITS, written).await;
            written.map_err(|_| {
                ArchiveError::Unavailable("has not taken this run yet, which waits to be written")
            })?;
        }
        let _permit = self.readers.acquire().await;
        reader::find(&self.place, tenant, id).await
    }

    /// Has a run of `tenant` written at once, if it waits, and waits until it is written or
    /// dropped.
    async fn until_written(&self, tenant: &str, number: u128) {
        // What is settled after the look below wakes this one.
        let mut settled = self.queue.settled();
        if self.queue.has(tenant, number) {
            self.queue.hurry();
            // An error says that nothing more will be written.
            let is_settled = |_: &u64| !self.queue.has(tenant, number);
            drop(settled.wait_for(is_settled).await);
        }
    }

    /// Reads the line of a run, which stays packed; `None` where it was deleted in the meantime.
    ///
    /// # Errors
    /// The archive does not answer.
    pub async fn line(&self, entry: &ArchivedEntry) -> Result<Option<PackedLine>, ArchiveError> {
        let _permit = self.readers.acquire().await;
        reader::line(&self.place, entry).await
    }

    /// Lists runs of a tenant whose summary `takes` accepts, the newest first.
    ///
    /// # Errors
    /// The archive does not answer.
    pub async fn list(
        &self,
        tenant: &str,
        asked: PageRequest,
        takes: impl Fn(&[u8]) -> bool,
    ) -> Result<ArchivedPage, ArchiveError> {
        let _permit = self.readers.acquire().await;
        page::list(&self.place, tenant, asked, takes).await
    }

    /// Acquires the lock that whoever deletes runs of a tenant holds: of two deletions at once,
    /// each would write what the other takes out, and have to look again. Those of other tenants,
    /// and those that only count, need no lock.
    pub async fn lock_deletions(&self, tenant: &str) -> OwnedMutexGuard<()> {
        // There are no more of them than tenants.
        let of_tenant = Arc::clone(lock(&self.deletions).entry(tenant.into()).or_default());
        of_tenant.lock_owned().await
    }

    /// Deletes the runs of a tenant that were asked for in `range` and that `removal` takes, those
    /// that wait to be written among them, and adds them to `removed` as they go.
    ///
    /// # Errors
    /// The archive does not answer, or segments are damaged, which are passed over.
    pub async fn remove(
        &self,
        tenant: &str,
        range: TimeRange,
        removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
        removed: &mut Removed,
    ) -> Result<(), ArchiveError> {
        self.begin_deletion(removal.dry_run).await?;
        let from = (&*self.place, &self.readers);
        removal::remove(from, tenant, range, removal, removed).await
    }

    /// Deletes runs of a tenant that are among `ids` and that `removal` takes, those that wait to
    /// be written among them, and adds them to `removed` as they go.
    ///
    /// # Errors
    /// The archive does not answer, or segments that may have one are damaged, which are passed
    /// over.
    pub async fn remove_named(
        &self,
        tenant: &str,
        ids: &BTreeSet<RunId>,
        removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
        removed: &mut Removed,
    ) -> Result<(), ArchiveError> {
        self.begin_deletion(removal.dry_run).await?;
        let from = (&*self.place, &self.readers);
        removal::remove_named(from, tenant, ids, removal, removed).await
    }

    /// Waits until all runs that killed daemons have left in the folder for runs on their way are
    /// written.
    async fn until_recovered(&self) {
        let asked = self.queue.ask_recovery();
        let mut recovered = self.queue.recovered();
        // An error says that nothing more will be written.
        let _ = recovered.wait_for(|recovered| *recovered >= asked).await;
    }

    /// Waits until runs that may be meant by a deletion are written.
    ///
    /// # Errors
    /// They cannot be written now.
    async fn begin_deletion(&self, dry_run: bool) -> Result<(), ArchiveError> {
        if dry_run {
            return Ok(());
        }
        let written = async { tokio::join!(self.flush(), self.until_recovered()) };
        let written = tokio::time::timeout(DELETION_WAITS, written).await;
        written.map(drop).map_err(|_| {
            ArchiveError::Unavailable("cannot be written, and runs wait for it that may be meant")
        })
    }
}

#[cfg(test)]
mod tests;
