//! What a daemon of this command's own would write to its log, where there is none: the causes of internal failures.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use super::Failure;

/// The last failures that are remembered.
const REMEMBERED: usize = 16;

/// Internal failures of this process's daemon, by their incidents.
#[derive(Clone, Debug, Default)]
pub(super) struct Causes(Arc<Mutex<VecDeque<Incident>>>);

/// What the daemon tells its log of an internal failure.
#[derive(Debug, Default)]
struct Incident {
    incident: String,
    cause: String,
}

impl Causes {
    /// Remembers causes from now on.
    pub(super) fn start() -> Self {
        let causes = Self::default();
        let errors = tracing_subscriber::filter::LevelFilter::ERROR;
        // Another subscriber there is none of in a command.
        let _ = tracing_subscriber::registry()
            .with(causes.clone().with_filter(errors))
            .try_init();
        causes
    }

    /// The failure with its cause, where it is one of the daemon's own.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        let incidents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failure.explained(|message| {
            let known = incidents
                .iter()
                .find(|known| message.contains(&known.incident))?;
            // What stands before it says whose failure it is; the log that it speaks of is not there.
            let (before, _) = message.split_once("internal failure;")?;
            Some(format!("{before}{}", known.cause))
        })
    }
}

impl Layer<Registry> for Causes {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, Registry>) {
        let mut incident = Incident::default();
        event.record(&mut incident);
        if incident.incident.is_empty() || incident.cause.is_empty() {
            return;
        }
        let mut incidents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if incidents.len() == REMEMBERED {
            incidents.pop_front();
        }
        incidents.push_back(incident);
    }
}

impl Visit for Incident {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "incident" => self.incident = format!("{value:?}"),
            "cause" => self.cause = format!("{value:?}"),
            _ => {}
        }
    }
}
