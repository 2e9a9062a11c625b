//! Writes compiled code to disk, on a thread of its own, behind whoever waits for it.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use super::compile::Artifact;
use super::inspection::Inspection;
use crate::store::{ArtifactName, Artifacts};

/// Compiled modules that may wait to be written.
const SAVES: usize = 16;

/// Code to be written to disk.
pub(super) struct Save {
    pub(super) name: ArtifactName,
    pub(super) artifact: Arc<Artifact>,
    pub(super) inspection: Arc<Inspection>,
}

/// Starts the thread that writes code to disk; it ends when nobody can send it any.
pub(super) fn start_saver(artifacts: Arc<Artifacts>) -> std::io::Result<SyncSender<Save>> {
    let (saver, saves) = sync_channel::<Save>(SAVES);
    std::thread::Builder::new()
        .name("artifacts".to_owned())
        .spawn(move || {
            for save in saves {
                let Save {
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
