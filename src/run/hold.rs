//! Guards that hold on to a run, for its callers and for those that read its output. Dropping the
//! last caller's ends a run that is not detached; dropping the last of all packs an ended run away.

use std::sync::Arc;

use super::record::{Holder, Run};
use super::registry::Registry;

/// A guard that counts one hold on a run until it is dropped. A run that is not detached is asked
/// to end with the last hold of a caller. Its output is packed away when it has ended and nobody
/// holds on to it.
#[derive(Debug)]
pub(super) struct Hold {
    run: Arc<Run>,
    /// Where the run is packed away when nobody holds on to it any more.
    registry: Arc<Registry>,
    by: Holder,
}

impl Hold {
    /// Holds on to a run of `registry`.
    pub(super) fn new(registry: &Arc<Registry>, run: &Arc<Run>, by: Holder) -> Self {
        run.count_hold(by);
        Self {
            run: Arc::clone(run),
            registry: Arc::clone(registry),
            by,
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(left) = self.run.release_hold(self.by) {
            self.registry.settle(&self.run, left);
        }
    }
}
