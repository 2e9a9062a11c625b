//! The causes of the embedded daemon's internal failures, which are kept in memory because a
//! command has no log to write them to.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

use super::Failure;
use crate::sync::lock;

/// Number of failures that are remembered; the oldest is dropped first.
const REMEMBERED: usize = 16;

/// A tracing layer that remembers the internal failures of the embedded daemon by their incident
/// ids.
#[derive(Clone, Debug, Default)]
pub(super) struct IncidentCauses(Arc<Mutex<VecDeque<Incident>>>);

/// The fields of a log event about an internal failure.
#[derive(Debug, Default)]
struct Incident {
    incident: String,
    cause: String,
}

impl IncidentCauses {
    /// Installs the layer, which remembers causes from now on.
    pub(super) fn start() -> Self {
        let causes = Self::default();
        let errors = tracing_subscriber::filter::LevelFilter::ERROR;
        // A command has no other subscriber.
        let _ = tracing_subscriber::registry()
            .with(causes.clone().with_filter(errors))
            .try_init();
        causes
    }

    /// Adds the cause to a failure, where it is an internal failure of the embedded daemon.
    pub(super) fn explain(&self, failure: Failure) -> Failure {
        let incidents = lock(&self.0);
        failure.with_cause(|message| {
            let known = incidents
                .iter()
                .find(|known| message.contains(&known.incident))?;
            // The text before it says whose failure it is. The rest speaks of a log that does not
            // exist here.
            let (before, _) = message.split_once("internal failure;")?;
            Some(format!("{before}{}", known.cause))
        })
    }
}

impl Layer<Registry> for IncidentCauses {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, Registry>) {
        let mut incident = Incident::default();
        event.record(&mut incident);
        if incident.incident.is_empty() || incident.cause.is_empty() {
            return;
        }
        let mut incidents = lock(&self.0);
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
