//! Charges for what answers hold until their callers have them.
//!
//! The answer of a run keeps a part of the run's reservation. Every other answer is charged to the
//! budget `server.inflight_answer_bytes`: a unary one by its bytes, and a stream by the most that
//! it holds at once, however long it is. If there are several tenants, none may hold the last
//! eighth of the budget.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use crate::model::limits::share_of;
use crate::model::refusal::{Reason, Refusal};
use crate::run::{
    HeldBytes, InFlightLimit, ResponseReservation, STREAMED_FRAMES, Tenant, release_bytes,
    reserve_bytes,
};
use crate::sync::lock;

/// The bytes that a unary method is charged before it does anything, so that a short answer to
/// something that was done is never refused.
const UNARY_ADVANCE: u64 = 4 << 10;
/// The setting that gives the size of the budget.
const SETTING: &str = "server.inflight_answer_bytes";

/// How the answers of a method are delivered, and what they are charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum ResponseKind {
    /// As one message, charged to the run's reservation.
    Run,
    /// As a stream, charged to the run's reservation.
    RunStream,
    /// As one message, charged to the budget.
    Unary,
    /// As a stream, charged to the budget.
    Streaming,
    /// In a few bytes, which are not charged.
    Health,
}

impl ResponseKind {
    /// Reports whether the answer is one message that is there at once, and is charged by its
    /// bytes.
    pub(in crate::api) fn is_unary(self) -> bool {
        match self {
            Self::Run | Self::Unary => true,
            Self::RunStream | Self::Streaming | Self::Health => false,
        }
    }

    /// Returns the bytes that are charged before the method does anything.
    fn in_advance(self) -> u64 {
        match self {
            Self::Run | Self::RunStream | Self::Health => 0,
            Self::Unary => UNARY_ADVANCE,
            Self::Streaming => STREAMED_FRAMES,
        }
    }
}

/// The budget, in bytes, of all answers that no run's reservation holds.
#[derive(Debug)]
pub(in crate::api) struct ResponseBudget {
    bytes: u64,
    held: AtomicU64,
}

impl ResponseBudget {
    /// Creates a budget of `bytes`.
    pub(in crate::api) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            held: AtomicU64::new(0),
        })
    }

    /// Charges `tenant` in advance for an answer of `kind`.
    ///
    /// # Errors
    /// The errors of [`BudgetedBytes::grow_to`].
    pub(in crate::api) fn reserve(
        self: &Arc<Self>,
        kind: ResponseKind,
        tenant: Option<Arc<Tenant>>,
    ) -> Result<BudgetedBytes, Refusal> {
        let mut charge = BudgetedBytes {
            budget: Arc::clone(self),
            tenant,
            bytes: 0,
        };
        charge.grow_to(kind.in_advance())?;
        Ok(charge)
    }

    /// Charges `tenant` for the `bytes` that the replay of an archived run takes besides what its
    /// stream is charged in advance.
    ///
    /// # Errors
    /// `QUEUE_FULL` if there is no room now; `CAPACITY_EXCEEDED` if it is more than a tenant may
    /// ever hold, together with its stream.
    pub(in crate::api) fn reserve_replay(
        self: &Arc<Self>,
        tenant: Arc<Tenant>,
        bytes: u64,
    ) -> Result<BudgetedBytes, Refusal> {
        let asked = bytes.saturating_add(ResponseKind::Streaming.in_advance());
        let share = share_of(self.bytes, tenant.has_neighbours);
        if asked > share {
            let message = format!(
                "to read the archived output takes {asked} bytes, above the {share} that a tenant's answers may hold together ({SETTING})"
            );
            return Err(over_share(message, asked, share));
        }
        let mut charge = BudgetedBytes {
            budget: Arc::clone(self),
            tenant: Some(tenant),
            bytes: 0,
        };
        charge.grow_to(bytes)?;
        Ok(charge)
    }
}

/// Creates the refusal of an answer that would hold more than the share of its tenant.
fn over_share(message: String, asked: u64, share: u64) -> Refusal {
    Refusal::new(Reason::CapacityExceeded, message)
        .with("asked", asked)
        .with("allowed", share)
        .with("limit", SETTING)
}

/// Bytes that are taken from the budget. Dropping this gives them back.
#[derive(Debug)]
pub(in crate::api) struct BudgetedBytes {
    budget: Arc<ResponseBudget>,
    /// The tenant that is charged; `None` for a caller that need not say who it is, which gets
    /// nothing that is charged.
    tenant: Option<Arc<Tenant>>,
    bytes: u64,
}

impl BudgetedBytes {
    /// Takes more from the budget if this holds less than `bytes`.
    ///
    /// # Errors
    /// `QUEUE_FULL` if there is no room now; `CAPACITY_EXCEEDED` if `bytes` is more than a tenant
    /// may ever hold.
    pub(in crate::api) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let Some(tenant) = &self.tenant else {
            return Ok(());
        };
        let all = self.budget.bytes;
        let share = share_of(all, tenant.has_neighbours);
        if bytes > share {
            let message = format!(
                "the answer of {bytes} bytes is above the {share} that a tenant's answers may hold together ({SETTING}): ask for less at once"
            );
            return Err(over_share(message, bytes, share));
        }
        const ANSWERS: InFlightLimit = InFlightLimit {
            of: "answers that were not taken yet",
            setting: SETTING,
        };
        let share = HeldBytes {
            held: &tenant.answer_bytes,
            max: share,
        };
        let budget = HeldBytes {
            held: &self.budget.held,
            max: all,
        };
        reserve_bytes(more, Some(share), budget, ANSWERS)?;
        self.bytes += more;
        Ok(())
    }

    /// Gives back all that this holds but `bytes`.
    pub(in crate::api) fn shrink_to(&mut self, bytes: u64) {
        self.release(self.bytes.saturating_sub(bytes));
    }

    /// Gives back `bytes`, or all that this holds if that is less.
    fn release(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if let Some(tenant) = &self.tenant
            && bytes > 0
        {
            release_bytes(bytes, Some(&tenant.answer_bytes), &self.budget.held);
        }
    }
}

impl Drop for BudgetedBytes {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

/// The charge for an answer. Dropping it gives back what it still holds.
#[derive(Debug)]
pub(in crate::api) enum ResponseCharge {
    /// A part of the run's reservation.
    Reserved(ResponseReservation),
    /// Bytes of the budget for all other answers.
    Budgeted(BudgetedBytes),
}

impl ResponseCharge {
    /// Returns the bytes that are charged.
    fn bytes(&self) -> u64 {
        match self {
            Self::Reserved(reservation) => reservation.bytes(),
            Self::Budgeted(budgeted) => budgeted.bytes,
        }
    }

    /// Gives back `bytes` of the charge.
    pub(in crate::api) fn release(&mut self, bytes: u64) {
        match self {
            Self::Reserved(reservation) => reservation.release(bytes),
            Self::Budgeted(budgeted) => budgeted.release(bytes),
        }
    }

    /// Gives back all of the charge but `bytes`.
    pub(in crate::api) fn shrink_to(&mut self, bytes: u64) {
        self.release(self.bytes().saturating_sub(bytes));
    }

    /// Stops counting the run against its tenant's quota, because its caller may have all of the
    /// answer from now on.
    pub(in crate::api) fn release_run_quota(&mut self) {
        match self {
            Self::Reserved(reservation) => reservation.release_quota(),
            Self::Budgeted(_) => {}
        }
    }
}

/// A response extension through which a handler gives its run's reservation to the layer around it,
/// once.
#[derive(Clone, Debug)]
pub(in crate::api) struct ReservationExtension(Arc<Mutex<Option<ResponseReservation>>>);

impl ReservationExtension {
    /// Creates the extension, to be put into the answer's extensions.
    pub(in crate::api) fn new(reservation: Option<ResponseReservation>) -> Self {
        Self(Arc::new(Mutex::new(reservation)))
    }

    /// Takes the reservation out; a second call returns `None`.
    pub(in crate::api) fn take(&self) -> Option<ResponseReservation> {
        lock(&self.0).take()
    }
}
