//! The memory that a request holds, charged to the budget of all requests and to its tenant's share
//! of it until the request is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::in_flight_bytes::{HeldBytes, InFlightLimit, release_bytes, reserve_bytes};
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
    /// The bytes that all requests together may hold.
    budget: u64,
    tenant: Option<Arc<Tenant>>,
    bytes: AtomicU64,
}

impl RequestCharge {
    /// Creates a charge of nothing yet, which counts towards `total` and its tenant. All requests
    /// together may hold `budget` bytes.
    pub fn new(total: Arc<AtomicU64>, budget: u64, tenant: Option<Arc<Tenant>>) -> Self {
        Self(Arc::new(RequestChargeInner {
            total,
            budget,
            tenant,
            bytes: AtomicU64::new(0),
        }))
    }

    /// Adds `bytes` to what the request holds.
    ///
    /// # Errors
    /// Returns `QUEUE_FULL` where the budget, or the tenant's share of it, has no room.
    pub fn add(&self, bytes: usize) -> Result<(), Refusal> {
        let bytes = bytes as u64;
        let RequestChargeInner {
            total,
            budget,
            tenant,
            bytes: mine,
        } = &*self.0;
        let share = tenant.as_ref().map(|tenant| HeldBytes {
            held: &tenant.request_bytes,
            max: share_of(*budget, tenant.has_neighbours),
        });
        let budget = HeldBytes {
            held: total,
            max: *budget,
        };
        reserve_bytes(bytes, share, budget, REQUESTS)?;
        mine.fetch_add(bytes, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for RequestChargeInner {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        let share = self.tenant.as_ref().map(|tenant| &tenant.request_bytes);
        release_bytes(bytes, share, &self.total);
    }
}
