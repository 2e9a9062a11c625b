//! Cancels all runs in flight that a selector matches: it matches them at one moment, then either
//! reports them or asks all of them to end and waits for them together.

use std::sync::Arc;
use std::time::Instant;

use super::control::was_cancelled;
use super::origin::RunState;
use super::record::Run;
use super::registry::Selector;
use super::tenant::Tenant;
use super::{Runner, with_deadline};
use crate::model::refusal::Refusal;
use crate::model::request::RunId;

/// The most runs that one call ends, so that the answer fits into a message: each takes 105 bytes
/// of it at the most.
pub const MAX_MATCHED: usize = 10_000;

/// The runs in flight that a selector matched at one moment. Runs that begin later are not among
/// them.
#[derive(Debug)]
pub struct MatchedRuns {
    /// The runs with the states that they were found in, the oldest first.
    runs: Vec<(Arc<Run>, RunState)>,
    /// How many more runs matched, and are too many for one call.
    rest: usize,
}

/// The result of cancelling what a selector matches, or of asking what that would be.
#[derive(Debug)]
pub struct BulkCancelReport {
    /// The runs that have ended, or that would be asked to end; the oldest first.
    pub runs: Vec<CancelledRun>,
    /// How many other runs matched: those that had not ended in time, and those that were too many.
    pub unfinished: usize,
}

/// One run that a selector matched, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelledRun {
    /// The id of the run.
    pub id: RunId,
    /// The state in which the request found the run.
    pub found: RunState,
    /// Whether the run ended because of this request, rather than before it or for another reason.
    pub by_this: bool,
}

impl Runner {
    /// Selects the runs of a tenant that match and have not ended, as they are now.
    pub fn match_in_flight(&self, tenant: &Tenant, selector: &Selector) -> MatchedRuns {
        MatchedRuns::of(tenant.registry.live(), selector, MAX_MATCHED)
    }
}

impl MatchedRuns {
    /// Selects the runs that match and have not ended, and keeps the oldest `most` of them.
    fn of(live: Vec<Arc<Run>>, selector: &Selector, most: usize) -> Self {
        let labelled = live
            .into_iter()
            .filter(|run| selector.is_among(&run.labels));
        let mut runs: Vec<_> = labelled
            .map(|run| (run.state(), run))
            .filter(|(state, _)| *state != RunState::Ended && selector.takes(*state))
            .map(|(state, run)| (run, state))
            .collect();
        // Ids sort by the time of the request.
        runs.sort_unstable_by_key(|(run, _)| run.id.number());
        let rest = runs.len().saturating_sub(most);
        runs.truncate(most);
        Self { runs, rest }
    }

    /// Reports the runs, and changes nothing.
    pub fn report(&self) -> BulkCancelReport {
        let runs = self.runs.iter().map(|(run, found)| CancelledRun {
            id: run.id,
            found: *found,
            by_this: false,
        });
        BulkCancelReport {
            runs: runs.collect(),
            unfinished: self.rest,
        }
    }

    /// Asks all of the runs to end, and waits until they have, or until the caller's `deadline`.
    pub async fn cancel(self, deadline: Option<Instant>) -> BulkCancelReport {
        let Self { runs, rest } = self;
        // The newest first: what waits leaves the queue before those that run give it their slots.
        let asked = runs.iter().rev();
        let asked: Vec<bool> = asked.map(|(run, _)| run.cancel()).collect();
        let all_ended = async {
            // All of them end meanwhile, whichever is waited for.
            for (run, _) in &runs {
                run.log.wait_for_end().await;
            }
            Ok::<_, Refusal>(())
        };
        // What has not ended when the deadline passes is counted, and is no error.
        let _ = with_deadline(deadline, all_ended).await;
        let mut report = BulkCancelReport {
            runs: Vec::with_capacity(runs.len()),
            unfinished: rest,
        };
        for ((run, found), is_first) in runs.iter().zip(asked.into_iter().rev()) {
            match run.log.end() {
                Some((_, end)) => report.runs.push(CancelledRun {
                    id: run.id,
                    found: *found,
                    by_this: is_first && was_cancelled(&end),
                }),
                None => report.unfinished += 1,
            }
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::event_log::{EventLog, EventLogBudget, RunEnd};
    use crate::model::outcome::{CancelCause, Outcome, RunReport, Written};
    use crate::model::refusal::Reason;
    use crate::model::request::Labels;
    use crate::run::origin::{Origin, RunMethod};
    use crate::run::record::RunTerms;
    use crate::sandbox::StopReason;

    fn labels(labels: &[(&str, &str)]) -> Labels {
        let owned = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        Labels::new("labels", owned).unwrap()
    }

    fn run(of: &[(&str, &str)]) -> Arc<Run> {
        let origin = Origin {
            method: RunMethod::Run,
            caller: "a test".into(),
            tenant: "a tenant".into(),
            trace: Default::default(),
        };
        let log = EventLog::new(0, EventLogBudget::new(0));
        let terms = RunTerms {
            labels: labels(of),
            detached: true,
            key: None,
            keeps_output: true,
        };
        Run::new(RunId::new("here"), origin, terms, log, None)
    }

    fn selector(of: &[(&str, &str)], states: &[RunState]) -> Selector {
        Selector {
            states: states.to_vec(),
            labels: labels(of),
        }
    }

    fn ended(outcome: Outcome) -> RunEnd {
        Ok(RunReport {
            outcome,
            trap: None,
            duration: Duration::ZERO,
            instantiation: None,
            cpu_time: Duration::ZERO,
            fuel_consumed: None,
            memory_used: 0,
            memory_denied: false,
            values: Vec::new(),
            stdin_read: 0,
            stdout: Written::default(),
            stderr: Written::default(),
            uncollected: None,
            session: None,
        })
    }

    fn end(run: &Run, end: RunEnd) {
        run.log.finish(SystemTime::now(), Arc::new(end));
    }

    fn ids(matched: &MatchedRuns) -> Vec<RunId> {
        matched.report().runs.iter().map(|run| run.id).collect()
    }

    #[test]
    fn all_labels_and_one_of_the_states_match_in_the_order_of_the_requests() {
        let (first, second) = (run(&[("a", "1"), ("b", "2")]), run(&[("a", "1")]));
        let (third, over) = (run(&[("a", "1"), ("b", "2")]), run(&[("a", "1")]));
        second.set_queued();
        end(&over, ended(Outcome::Exited(0)));
        let live = || [&third, &over, &first, &second].map(Arc::clone).to_vec();
        let matched = |of: &[(&str, &str)], states: &[RunState], most| {
            MatchedRuns::of(live(), &selector(of, states), most)
        };
        let a = [("a", "1")];
        assert_eq!(ids(&matched(&a, &[], 9)), [first.id, second.id, third.id]);
        assert_eq!(ids(&matched(&a, &[RunState::Queued], 9)), [second.id]);
        assert_eq!(ids(&matched(&[("a", "1"), ("b", "2")], &[], 9)).len(), 2);
        assert_eq!(ids(&matched(&[("a", "2")], &[], 9)), []);
        // The bound, one below it, and one above it.
        for (most, listed, rest) in [(2, 2, 1), (3, 3, 0), (4, 3, 0)] {
            let matched = matched(&a, &[], most);
            assert_eq!(ids(&matched)[..], [first.id, second.id, third.id][..listed]);
            assert_eq!(matched.report().unfinished, rest);
        }
        // Nothing was asked to end.
        assert_eq!(first.stop.reason(), None);
    }

    #[tokio::test]
    async fn a_run_that_ends_for_another_reason_was_not_cancelled() {
        let all = [(); 6].map(|()| run(&[("a", "1")]));
        let [by_itself, left, cancelled, never_started, at_once, goes_on] = &all;
        let matched = MatchedRuns::of(all.to_vec(), &selector(&[("a", "1")], &[]), 9);
        // Its caller had left it when the call came.
        assert!(
            left.stop
                .request(StopReason::Cancelled(CancelCause::CallerGone))
        );
        end(at_once, ended(Outcome::Exited(7)));
        let ends = async {
            end(by_itself, ended(Outcome::Exited(0)));
            let gone = Outcome::Cancelled(CancelCause::CallerGone);
            end(left, ended(gone));
            let called = Outcome::Cancelled(CancelCause::CancelRpc);
            end(cancelled, ended(called));
            let refusal = Refusal::new(Reason::RunCancelled, "of a test");
            end(never_started, Err(refusal));
        };
        // The call is polled first, so that all are asked before any of them ends.
        let deadline = Instant::now() + Duration::from_millis(50);
        let (report, ()) = tokio::join!(matched.cancel(Some(deadline)), ends);
        let by_this: Vec<_> = report
            .runs
            .iter()
            .map(|run| (run.id, run.by_this))
            .collect();
        let expected = [
            (by_itself.id, false),
            (left.id, false),
            (cancelled.id, true),
            (never_started.id, true),
            (at_once.id, false),
        ];
        assert_eq!(by_this, expected);
        assert_eq!(report.unfinished, 1, "one had not ended in time");
        let asked = StopReason::Cancelled(CancelCause::CancelRpc);
        assert_eq!(
            goes_on.stop.reason(),
            Some(asked),
            "it was asked all the same"
        );
    }
}
