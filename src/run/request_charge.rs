//! The memory that a request holds, charged to the budget of all requests and to its tenant's share
//! of it until the request is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::in_flight_bytes::{InFlightLimit, reserve_bytes};
use super::tenant::Tenant;
use crate::model::limits::share_of;
use crate::model::refusal::Refusal;

/// The budget of all requests, as a refusal names it.
const REQUESTS: InFlightLimit = InFlightLimit {
    of: "requests in flight",
    setting: "server.inflight_request_bytes",
};

/// The bytes of a budget that one request holds. They are given back when the last clone is
/// dropped.
#[derive(Clone, Debug)]
pub struct RequestCharge(Arc<RequestChargeInner>);

#[derive(Debug)]
struct RequestChargeInner {
    total: Arc<AtomicU64>,
    tenant: Option<Arc<Tenant>>,
    bytes: AtomicU64,
}

impl RequestCharge {
    /// Creates a charge of nothing yet, which counts towards `total` and its tenant.
    pub fn new(total: Arc<AtomicU64>, tenant: Option<Arc<Tenant>>) -> Self {
        Self(Arc::new(RequestChargeInner {
            total,
            tenant,
            bytes: AtomicU64::new(0),
        }))
    }

    /// Adds `bytes` to what the request holds, of a budget of `budget` bytes for all requests.
    ///
    /// # Errors
    /// Returns `QUEUE_FULL` where the budget, or the tenant's share of it, has no room.
    pub fn add(&self, bytes: usize, budget: u64) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        let RequestChargeInner {
            total,
            tenant,
            bytes: mine,
        } = &*self.0;
        if let Some(tenant) = tenant {
            let share = share_of(budget, tenant.has_neighbours);
            reserve_bytes(&tenant.request_bytes, bytes, share, REQUESTS)?;
        }
        if let Err(refusal) = reserve_bytes(total, bytes, budget, REQUESTS) {
            if let Some(tenant) = tenant {
                tenant.request_bytes.fetch_sub(bytes, Ordering::AcqRel);
            }
            return Err(refusal);
        }
        mine.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for RequestChargeInner {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.total.fetch_sub(bytes, Ordering::AcqRel);
        if let Some(tenant) = &self.tenant {
            tenant.request_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}
