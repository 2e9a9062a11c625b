//! Reloading on request (SIGHUP): tokens, keys and certificates are read again without a restart.
//! For the rest of the configuration the daemon only reports what a restart would change.

use std::sync::Arc;

use crate::api::TlsReloader;
use crate::auth::Authenticator;
use crate::config::{Config, Overrides};

/// A handle that reads the daemon's files again at once, which the daemon by itself does only from
/// time to time.
#[derive(Clone)]
pub struct Reloader {
    pub(super) authenticator: Arc<Authenticator>,
    pub(super) tls: Vec<TlsReloader>,
}

impl Reloader {
    /// Reads the files of credentials and certificates again. It also loads the configuration that
    /// `overrides` lead to now, and logs which of its keys differ from `config`, which is in force:
    /// they need a restart.
    pub async fn reload(&self, config: &Config, overrides: &Overrides) {
        tracing::info!("reading files again: tokens, keys, certificates");
        self.authenticator.reload_if_changed();
        for tls in &self.tls {
            tls.reload_if_changed();
        }
        let overrides = overrides.clone();
        // Loading the configuration resolves names, and whatever is in the file's place may block.
        let read = tokio::task::spawn_blocking(move || {
            let is_read_once = |file: &std::path::PathBuf| !file.is_file();
            match &overrides.file {
                Some(file) if is_read_once(file) => Err(format!(
                    "{} is no file that can be read twice",
                    file.display()
                )),
                Some(_) | None => super::load_config(&overrides)
                    .map(|(config, _)| config)
                    .map_err(|problems| problems.to_string()),
            }
        });
        match read.await {
            Ok(Ok(now)) => tell_changes(config, &now),
            Ok(Err(error)) => tracing::error!(
                error,
                "the configuration is not read again; what is in force stays in force"
            ),
            Err(error) => tracing::error!(%error, "the configuration is not read again"),
        }
    }
}

/// Logs the configuration keys that differ.
fn tell_changes(config: &Config, now: &Config) {
    let changed = config.changed_keys(now);
    if changed.is_empty() {
        tracing::info!("the configuration is as it was");
        return;
    }
    let keys = changed.join(", ");
    tracing::warn!(keys, "the configuration is another, which needs a restart");
}
