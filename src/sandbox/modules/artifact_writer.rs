//! Writes compiled code to disk on a thread of its own, so that no caller waits for it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio::sync::watch;

use super::compile::Artifact;
use super::inspection::Inspection;
use crate::store::{ArtifactCache, ArtifactName};

/// How many compiled modules may wait to be written.
const SAVES: usize = 16;

/// Compiled code that is queued to be written to disk, with the inspection of its module.
pub(in crate::sandbox) struct ArtifactWrite {
    pub(in crate::sandbox) name: ArtifactName,
    pub(in crate::sandbox) artifact: Arc<Artifact>,
    pub(in crate::sandbox) inspection: Arc<Inspection>,
}

/// The queue of the thread that writes compiled code to disk. The thread ends when it is dropped.
pub(in crate::sandbox) struct ArtifactWriter {
    queue: SyncSender<ArtifactWrite>,
    /// How many writes are queued or in progress.
    unwritten: watch::Sender<usize>,
}

impl ArtifactWriter {
    /// Starts the thread that writes to `artifacts`.
    ///
    /// # Errors
    /// The host refuses the thread.
    pub(in crate::sandbox) fn start(artifacts: Arc<ArtifactCache>) -> std::io::Result<Self> {
        let (queue, writes) = sync_channel::<ArtifactWrite>(SAVES);
        let unwritten = watch::Sender::new(0);
        let counter = unwritten.clone();
        std::thread::Builder::new()
            .name("artifacts".to_owned())
            .spawn(move || write_all(&artifacts, writes, &counter))?;
        Ok(Self { queue, unwritten })
    }

    /// Queues a write. Returns whether there was room for it.
    pub(in crate::sandbox) fn queue(&self, write: ArtifactWrite) -> bool {
        self.unwritten.send_modify(|count| *count += 1);
        let is_queued = self.queue.try_send(write).is_ok();
        if !is_queued {
            self.unwritten.send_modify(|count| *count -= 1);
        }
        is_queued
    }

    /// Waits until nothing is queued or being written.
    pub(in crate::sandbox) async fn wait_until_written(&self) {
        let mut unwritten = self.unwritten.subscribe();
        // The sender is a field of this writer, and so is not gone.
        let _ = unwritten.wait_for(|count| *count == 0).await;
    }
}

/// Writes what comes until the queue is dropped, and counts it as written.
fn write_all(
    artifacts: &ArtifactCache,
    writes: Receiver<ArtifactWrite>,
    unwritten: &watch::Sender<usize>,
) {
    for write in writes {
        let ArtifactWrite {
            name,
            artifact,
            inspection,
        } = write;
        match serde_json::to_vec(&*inspection) {
            Ok(about) => {
                artifacts.save(name, &about, artifact.len(), |to| artifact.write_to(to));
            }
            Err(error) => tracing::warn!(%error, "an inspection cannot be written down"),
        }
        unwritten.send_modify(|count| *count -= 1);
    }
}
