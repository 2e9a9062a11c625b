//! What answers hold until their callers have them, and who is charged for it.
//!
//! The answer of a run keeps a part of the run's reservation. Every other one is charged to
//! `server.inflight_answer_bytes`, of which no tenant of several holds the last eighth: an answer that
//! is given whole by its bytes, a stream by the most that it holds however long it is.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::inflight::{InflightBytes, take};
use crate::limits::share_of;
use crate::refusal::{Reason, Refusal};
use crate::run::{AnswerReservation, STREAMED_FRAMES, Tenant};

/// What a call of a method that answers whole is charged before it does anything, so that a short
/// answer to something that was done is never refused.
const SHORT: u64 = 4 << 10;
const SETTING: &str = "server.inflight_answer_bytes";

/// How the answers of a method are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerKind {
    /// Whole, of a run's reservation.
    Run,
    /// As a stream, of a run's reservation.
    RunStream,
    /// Whole, of the budget.
    Whole,
    /// As a stream, of the budget.
    Stream,
    /// In a few bytes that nobody is charged for.
    Health,
}

impl AnswerKind {
    /// That of the method at `path`.
    pub(super) fn of(path: &str) -> Self {
        match path {
            "/ringfence.v1.SandboxService/Run" => Self::Run,
            "/ringfence.v1.SandboxService/RunStream" | "/ringfence.v1.RunService/Interact" => {
                Self::RunStream
            }
            "/ringfence.v1.RunService/AttachRun" | "/ringfence.v1.RunService/WatchRuns" => {
                Self::Stream
            }
            "/ringfence.v1.SandboxService/Health" => Self::Health,
            path if path.starts_with("/grpc.health.v1.Health/") => Self::Health,
            path if path.starts_with("/ringfence.v1.") => Self::Whole,
            // Reflection, which answers as often as it is asked.
            _ => Self::Stream,
        }
    }

    /// Whether there is one message, which is there at once.
    pub(super) fn is_whole(self) -> bool {
        match self {
            Self::Run | Self::Whole => true,
            Self::RunStream | Self::Stream | Self::Health => false,
        }
    }

    /// What is charged before the method does anything.
    fn in_advance(self) -> u64 {
        match self {
            Self::Run | Self::RunStream | Self::Health => 0,
            Self::Whole => SHORT,
            Self::Stream => STREAMED_FRAMES,
        }
    }
}

/// The budget of all answers that no run's reservation holds.
#[derive(Debug)]
pub(super) struct AnswerBudget {
    bytes: u64,
    held: AtomicU64,
}

impl AnswerBudget {
    /// Creates one of `bytes`.
    pub(super) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes,
            held: AtomicU64::new(0),
        })
    }

    /// Charges `tenant` for an answer of `kind` before there is one.
    ///
    /// # Errors
    /// `QUEUE_FULL`.
    pub(super) fn enter(
        self: &Arc<Self>,
        kind: AnswerKind,
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
}

/// Bytes of the budget, until this is dropped.
#[derive(Debug)]
pub(super) struct BudgetedBytes {
    budget: Arc<AnswerBudget>,
    /// `None`: of a caller that need not say who it is, which gets nothing that is charged.
    tenant: Option<Arc<Tenant>>,
    bytes: u64,
}

impl BudgetedBytes {
    /// Holds `bytes`, where it holds less.
    ///
    /// # Errors
    /// `QUEUE_FULL`, or `CAPACITY_EXCEEDED` where that could never be held.
    pub(super) fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let Some(more) = bytes.checked_sub(self.bytes).filter(|more| *more > 0) else {
            return Ok(());
        };
        let Some(tenant) = &self.tenant else {
            return Ok(());
        };
        let all = self.budget.bytes;
        let share = share_of(all, tenant.shares);
        if bytes > share {
            let message = format!(
                "the answer of {bytes} bytes is above the {share} that a tenant's answers may hold together ({SETTING}): ask for less at once"
            );
            return Err(Refusal::new(Reason::CapacityExceeded, message)
                .with("asked", bytes)
                .with("allowed", share)
                .with("limit", SETTING));
        }
        const ANSWERS: InflightBytes = InflightBytes {
            of: "answers that were not taken yet",
            setting: SETTING,
        };
        take(&tenant.answer_bytes, more, share, ANSWERS)?;
        if let Err(refusal) = take(&self.budget.held, more, all, ANSWERS) {
            tenant.answer_bytes.fetch_sub(more, Ordering::AcqRel);
            return Err(refusal);
        }
        self.bytes += more;
        Ok(())
    }

    /// Gives back `bytes`, or as many as it holds.
    fn release(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if let Some(tenant) = &self.tenant
            && bytes > 0
        {
            self.budget.held.fetch_sub(bytes, Ordering::AcqRel);
            tenant.answer_bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
    }
}

impl Drop for BudgetedBytes {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}

/// What is charged for an answer, until this is dropped.
#[derive(Debug)]
pub(super) enum AnswerCharge {
    /// A part of its run's reservation.
    Reserved(AnswerReservation),
    /// Bytes of the budget.
    Budgeted(BudgetedBytes),
}

impl AnswerCharge {
    /// Bytes that are charged.
    fn bytes(&self) -> u64 {
        match self {
            Self::Reserved(reservation) => reservation.bytes(),
            Self::Budgeted(budgeted) => budgeted.bytes,
        }
    }

    /// Gives back `bytes` of them.
    pub(super) fn release(&mut self, bytes: u64) {
        match self {
            Self::Reserved(reservation) => reservation.release(bytes),
            Self::Budgeted(budgeted) => budgeted.release(bytes),
        }
    }

    /// Gives back all but `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: u64) {
        self.release(self.bytes().saturating_sub(bytes));
    }

    /// Says that the caller may have all of the answer from now on.
    pub(super) fn handed_on(&mut self) {
        match self {
            Self::Reserved(reservation) => reservation.release_quota(),
            Self::Budgeted(_) => {}
        }
    }
}

/// What the run keeps for its answer, which a handler gives to the layer around it beside the answer, once.
#[derive(Clone, Debug)]
pub(super) struct Enclosed(Arc<Mutex<Option<AnswerReservation>>>);

impl Enclosed {
    /// Creates one, to be put into the answer's extensions.
    pub(super) fn new(reservation: Option<AnswerReservation>) -> Self {
        Self(Arc::new(Mutex::new(reservation)))
    }

    /// Takes the reservation out: a second time there is none.
    pub(super) fn take(&self) -> Option<AnswerReservation> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    #[test]
    fn the_answers_of_each_method_are_given_as_the_api_declares_them() {
        let descriptors = prost_types::FileDescriptorSet::decode(crate::api::proto::DESCRIPTORS);
        let mut methods = 0;
        for file in descriptors.unwrap().file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    let path = format!("/{package}.{service}/{}", method.name());
                    let kind = AnswerKind::of(&path);
                    methods += 1;
                    if kind == AnswerKind::Health {
                        continue;
                    }
                    assert_eq!(kind.is_whole(), !method.server_streaming(), "{path}");
                }
            }
        }
        assert!(methods > 10, "{methods}");
    }
}
