//! Whether the daemon can take runs now, check by check.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};

use crate::api::DaemonPhase;
use crate::run::Runner;

/// How long the result of a check of the store is used again: whoever may ask for readiness must
/// not be able to keep the store busy.
const STORE_FRESH: Duration = Duration::from_secs(5);
/// How long a check of the store may take.
const STORE_PATIENCE: Duration = Duration::from_secs(2);

/// One check, and whether it passed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ReadinessCheck {
    /// The name of the check.
    pub(super) name: &'static str,
    /// Why it failed; `None` where it passed.
    pub(super) failure: Option<&'static str>,
}

/// The checks by which a daemon is ready.
pub(super) struct Readiness {
    phase: watch::Receiver<DaemonPhase>,
    runner: Arc<Runner>,
    /// The runtime that talks to the store.
    beside: Handle,
    /// Whether the store was reachable, and when that was found out.
    store: Mutex<Option<(Instant, bool)>>,
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", *self.phase.borrow())
    }
}

impl Readiness {
    /// Creates the checks of the daemon that `runner` belongs to. Its store is asked on `beside`.
    pub(super) fn new(
        phase: watch::Receiver<DaemonPhase>,
        runner: Arc<Runner>,
        beside: Handle,
    ) -> Self {
        Self {
            phase,
            runner,
            beside,
            store: Mutex::default(),
        }
    }

    /// Checks the phase and the store, and returns each check with its result.
    pub(super) async fn checks(&self) -> [ReadinessCheck; 3] {
        let phase = *self.phase.borrow();
        let failed = |fails: bool, why| fails.then_some(why);
        let check = |name, failure| ReadinessCheck { name, failure };
        let starting = phase == DaemonPhase::Starting;
        let draining = phase == DaemonPhase::Draining;
        let unreachable = !self.is_store_reachable().await;
        [
            check("warm", failed(starting, "the engine is starting")),
            check("serving", failed(draining, "the daemon is draining")),
            check(
                "store",
                failed(unreachable, "the module store cannot be reached"),
            ),
        ]
    }

    /// Asks the store, unless that was done a moment ago. Requests that come meanwhile wait for the
    /// same answer.
    async fn is_store_reachable(&self) -> bool {
        let mut known = self.store.lock().await;
        if let Some((at, reachable)) = *known
            && at.elapsed() < STORE_FRESH
        {
            return reachable;
        }
        let runner = Arc::clone(&self.runner);
        let asked = self.beside.spawn(async move {
            let asked = tokio::time::timeout(STORE_PATIENCE, runner.is_store_reachable());
            asked.await.unwrap_or(false)
        });
        let reachable = asked.await.unwrap_or(false);
        *known = Some((Instant::now(), reachable));
        reachable
    }
}
