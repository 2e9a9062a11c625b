//! Writes compiled code to disk on a thread of its own, so that no caller waits for it.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

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

/// Starts the thread that writes code to disk, and returns its queue. The thread ends when the last
/// sender of the queue is dropped.
///
/// # Errors
/// The host refuses the thread.
pub(in crate::sandbox) fn start_artifact_writer(
    artifacts: Arc<ArtifactCache>,
) -> std::io::Result<SyncSender<ArtifactWrite>> {
    let (saver, saves) = sync_channel::<ArtifactWrite>(SAVES);
    std::thread::Builder::new()
        .name("artifacts".to_owned())
        .spawn(move || {
            for save in saves {
                let ArtifactWrite {
                    name,
                    artifact,
                    inspection,
                } = save;
                match serde_json::to_vec(&*inspection) {
                    Ok(about) => {
                        artifacts.save(name, &about, artifact.len(), |to| artifact.write_to(to));
                    }
                    Err(error) => tracing::warn!(%error, "an inspection cannot be written down"),
                }
            }
        })?;
    Ok(saver)
}
