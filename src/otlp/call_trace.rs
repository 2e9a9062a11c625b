//! The trace of one call that asks for a run. While the call goes on, nothing but a few instants is
//! noted. Its spans are made of them in the background, once the run, and then the call, has ended.
//!
//! The run and its call end independently: a detached run outlives its call, and an answer is taken
//! after its run. So each adds a record of its own to the queue when it ends.

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};

use super::counters::{DropReason, ExportCounters};
use super::export_queue::ExportQueue;
use super::span_record::{
    NotedMoments, RunMoment, SpanRecord, TraceHead, TracedCall, TracedEnd, TracedOutcome,
};
use crate::model::outcome::RunReport;
use crate::model::refusal::Refusal;
use crate::model::request::{Digest, RunId};
use crate::model::trace_context::{SpanId, TraceContext, TraceId};
use crate::sync::lock;

/// Decides which calls are traced, and takes what is known of them when they end.
#[derive(Debug)]
pub struct Tracer {
    /// Of the calls without a parent, those are traced whose ids have random bits below this.
    threshold: u128,
    pub(super) queue: ExportQueue<SpanRecord>,
    counters: Arc<ExportCounters>,
}

/// The trace of one call: its ids, and the moments of its run.
#[derive(Debug)]
pub struct CallTrace {
    head: Arc<TraceHead>,
    /// What takes the spans; `None` where the trace is not recorded here.
    tracer: Option<Arc<Tracer>>,
    noted: Mutex<NotedMoments>,
}

/// A guard that ends the span of a call, at the latest when it is dropped. Where nothing was said
/// of its end by then, its caller has left it.
#[derive(Debug, Default)]
pub struct CallSpan(Option<Arc<CallTrace>>);

/// What the log records of a run's output tell of its trace.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogTrace {
    pub(super) trace_id: TraceId,
    /// The span of the guest or, where that is not recorded, the span of the caller.
    pub(super) span: SpanId,
    pub(super) is_sampled: bool,
}

impl Tracer {
    /// Creates a tracer that traces this ratio, from 0 to 1, of the calls without a parent.
    pub(super) fn new(
        ratio: f64,
        queue: ExportQueue<SpanRecord>,
        counters: Arc<ExportCounters>,
    ) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the ratio is from 0 to 1, as the check of the configuration has seen"
        )]
        let threshold = (ratio * TraceId::RANDOM_RANGE as f64) as u128;
        Self {
            threshold,
            queue,
            counters,
        }
    }

    /// Reports whether a trace that begins here is recorded.
    fn samples(&self, trace_id: TraceId) -> bool {
        trace_id.random_bits() < self.threshold
    }

    /// Queues a record, or counts its spans as dropped where there is no room.
    fn take(&self, record: SpanRecord) {
        if let Err(record) = self.queue.push(record) {
            let spans = record.phases().len() as u64;
            let counters = &self.counters.spans;
            counters.count_dropped(DropReason::QueueFull, spans);
        }
    }
}

/// Generates a random id of a trace, which is not zero.
fn new_trace_id(ids: &RandomIdGenerator) -> TraceId {
    loop {
        let id = u128::from_be_bytes(ids.new_trace_id().to_bytes());
        if let Some(id) = TraceId::new(id) {
            return id;
        }
    }
}

/// Generates a random id of a span, which is not zero.
fn new_span_id(ids: &RandomIdGenerator) -> SpanId {
    loop {
        let id = u64::from_be_bytes(ids.new_span_id().to_bytes());
        if let Some(id) = SpanId::new(id) {
            return id;
        }
    }
}

/// Generates the id of a span that nothing else refers to.
pub(super) fn fresh_span_id() -> SpanId {
    new_span_id(&RandomIdGenerator::default())
}

impl CallTrace {
    /// Begins the trace of a call. It is a part of `parent` where its caller gave one, which also
    /// says whether the trace is recorded; otherwise `tracer` decides that. `None`: the call
    /// belongs to no trace.
    pub fn begin(
        tracer: Option<&Arc<Tracer>>,
        parent: Option<TraceContext>,
        call: impl FnOnce() -> TracedCall,
    ) -> Option<Arc<Self>> {
        let ids = RandomIdGenerator::default();
        let (trace_id, parent, state, tracer) = match (parent, tracer) {
            (Some(parent), tracer) => {
                let tracer = tracer.filter(|_| parent.is_sampled);
                (parent.trace_id, Some(parent.parent), parent.state, tracer)
            }
            (None, Some(tracer)) => {
                let trace_id = new_trace_id(&ids);
                if !tracer.samples(trace_id) {
                    return None;
                }
                (trace_id, None, None, Some(tracer))
            }
            (None, None) => return None,
        };
        Some(Arc::new(Self {
            head: Arc::new(TraceHead {
                trace_id,
                call_span: new_span_id(&ids),
                guest_span: new_span_id(&ids),
                parent,
                state,
                call: call(),
                begun: (Instant::now(), SystemTime::now()),
            }),
            tracer: tracer.cloned(),
            noted: Mutex::default(),
        }))
    }

    /// Returns the id of the trace that the call belongs to.
    pub fn trace_id(&self) -> TraceId {
        self.head.trace_id
    }

    /// Returns what log records of the run's output tell of the trace.
    pub(super) fn log_trace(&self) -> LogTrace {
        let TraceHead {
            trace_id,
            guest_span,
            parent,
            ..
        } = *self.head;
        let is_sampled = self.tracer.is_some();
        LogTrace {
            trace_id,
            span: parent.filter(|_| !is_sampled).unwrap_or(guest_span),
            is_sampled,
        }
    }

    /// Notes that a moment of the run is now.
    pub fn note(&self, moment: RunMoment) {
        if self.tracer.is_some() {
            lock(&self.noted).note(moment);
        }
    }

    /// Notes how the run of the call has ended, and has its spans made.
    pub fn end_run(&self, run_id: RunId, digest: Option<Digest>, end: &Result<RunReport, Refusal>) {
        let Some(tracer) = &self.tracer else { return };
        let outcome = match end {
            Ok(ended) => TracedOutcome::Ended {
                outcome: ended.outcome.as_str(),
                exit_code: ended.outcome.exit_code(),
                duration: ended.duration,
                instantiation: ended.instantiation,
            },
            Err(refusal) => TracedOutcome::Refused(refusal.reason().as_str()),
        };
        let mut noted = lock(&self.noted);
        noted.end = Some(TracedEnd {
            at: Instant::now(),
            run_id,
            digest,
            outcome,
        });
        let record = SpanRecord {
            head: Arc::clone(&self.head),
            noted: *noted,
            answered: None,
        };
        drop(noted);
        tracer.take(record);
    }

    /// Has the span of the call made, which has ended with that status code.
    fn end_call(&self, code: &'static str) {
        let Some(tracer) = &self.tracer else { return };
        let noted = *lock(&self.noted);
        tracer.take(SpanRecord {
            head: Arc::clone(&self.head),
            noted,
            answered: Some((Instant::now(), code)),
        });
    }
}

impl CallSpan {
    /// Creates the guard of a call; it does nothing where the call is not traced.
    pub fn new(trace: Option<&Arc<CallTrace>>) -> Self {
        let recorded = trace.filter(|trace| trace.tracer.is_some());
        Self(recorded.cloned())
    }

    /// Notes the run that the call was attached to.
    pub fn attach(&self, run_id: RunId) {
        if let Some(trace) = &self.0 {
            lock(&trace.noted).attached = Some(run_id);
        }
    }

    /// Ends the span of the call, which was answered with the status code of that name.
    pub fn end(&mut self, code: &'static str) {
        if let Some(trace) = self.0.take() {
            trace.end_call(code);
        }
    }
}

impl Drop for CallSpan {
    fn drop(&mut self) {
        self.end("CANCELLED");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracer(ratio: f64) -> Arc<Tracer> {
        let queue = ExportQueue::of_things(1 << 20, false);
        Arc::new(Tracer::new(ratio, queue, Arc::default()))
    }

    fn call() -> TracedCall {
        TracedCall {
            rpc: "service/Method",
            tenant: "tenant".into(),
            arrived: Instant::now(),
        }
    }

    fn parent(is_sampled: bool) -> Option<TraceContext> {
        Some(TraceContext {
            trace_id: TraceId::new(7).unwrap(),
            parent: SpanId::new(8).unwrap(),
            is_sampled,
            state: None,
        })
    }

    #[test]
    fn a_parent_decides_and_without_one_the_ratio_does() {
        let (none, all, half) = (tracer(0.0), tracer(1.0), tracer(0.5));
        for _ in 0..100 {
            assert!(CallTrace::begin(Some(&none), None, call).is_none());
            assert!(CallTrace::begin(Some(&all), None, call).is_some());
        }
        let begun = (0..1000).filter(|_| CallTrace::begin(Some(&half), None, call).is_some());
        assert!((300..700).contains(&begun.count()));
        assert!(CallTrace::begin(None, None, call).is_none());
        for (tracer, is_sampled) in [(&none, true), (&all, false)] {
            let begun = CallTrace::begin(Some(tracer), parent(is_sampled), call).unwrap();
            assert_eq!(begun.trace_id(), TraceId::new(7).unwrap());
            assert_eq!(begun.log_trace().is_sampled, is_sampled);
        }
    }

    #[test]
    fn a_call_has_one_end_and_one_that_is_not_recorded_has_none() {
        let tracer = tracer(1.0);
        let trace = CallTrace::begin(Some(&tracer), parent(true), call);
        let mut span = CallSpan::new(trace.as_ref());
        span.end("OK");
        drop(span);
        drop(CallSpan::new(trace.as_ref()));
        let codes = std::iter::from_fn(|| tracer.queue.pop()).map(|it| it.answered.unwrap().1);
        assert_eq!(codes.collect::<Vec<_>>(), ["OK", "CANCELLED"]);
        let trace = CallTrace::begin(Some(&tracer), parent(false), call);
        drop(CallSpan::new(trace.as_ref()));
        let end = Err(Refusal::internal("for a test"));
        trace.unwrap().end_run(RunId::new("here"), None, &end);
        assert!(tracer.queue.pop().is_none());
    }
}
