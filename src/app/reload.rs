//! Reading again what can be read again without a restart, when somebody asks for it.

use std::sync::Arc;

use crate::api::TlsFiles;
use crate::auth::Gatekeeper;
use crate::config::{Config, Overrides};

/// Reads files of a daemon again at once, which it does by itself only now and then.
#[derive(Clone)]
pub struct Reloader {
    pub(super) gatekeeper: Arc<Gatekeeper>,
    pub(super) tls: Option<TlsFiles>,
}

impl Reloader {
    /// Reads again the files of credentials and certificates, and says in the log which keys of the
    /// configuration that `overrides` lead to now are others than those of `config`, which is in force:
    /// they need a restart.
    pub async fn reload(&self, config: &Config, overrides: &Overrides) {
        tracing::info!("reading files again: tokens, keys, certificates");
        self.gatekeeper.look();
        if let Some(tls) = &self.tls {
            tls.look();
        }
        let overrides = overrides.clone();
        // It looks names up, and whatever is in the file's place may block.
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

fn tell_changes(config: &Config, now: &Config) {
    let changed = config.changed_keys(now);
    if changed.is_empty() {
        tracing::info!("the configuration is as it was");
        return;
    }
    let keys = changed.join(", ");
    tracing::warn!(keys, "the configuration is another, which needs a restart");
}
