//! Counts calls by method and by how they ended, and measures how long each took, from the request
//! to the last byte of its answer.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderMap;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::methods::ApiMethod;
use super::status::CODES;
use crate::metrics::{Count, LatencyHistogram, Level, LevelGuard, MetricSource, MetricWriter};
use crate::model::refusal::Reason;

/// The number of methods that are counted: those of the services, and one for all other paths.
const METHODS: usize = ApiMethod::ALL.len() + 1;
/// The path that stands for those of no method, which are callers' own words.
const OTHER: &str = "/other/other";

/// Counters of all calls since the daemon's start.
#[derive(Debug)]
pub struct CallCounters {
    methods: [MethodCounters; METHODS],
    refused: [Count; Reason::ALL.len()],
    in_flight: Level,
}

#[derive(Debug, Default)]
struct MethodCounters {
    by_code: [Count; CODES.len()],
    latency: LatencyHistogram,
}

impl CallCounters {
    /// Creates counters of no calls.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            methods: std::array::from_fn(|_| MethodCounters::default()),
            refused: std::array::from_fn(|_| Count::default()),
            in_flight: Level::default(),
        })
    }

    /// Begins a call of `method`, which is `None` for a path of no method.
    pub(super) fn begin(self: &Arc<Self>, method: Option<ApiMethod>) -> CallTimer {
        CallTimer {
            method: method.map_or(METHODS - 1, |method| method as usize),
            begun: Instant::now(),
            code: Code::Cancelled,
            _in_flight: self.in_flight.enter(),
            counters: Arc::clone(self),
        }
    }
}

/// The measurement of one call. Dropping it counts the call, as one that its client left where no
/// end has been noted.
#[derive(Debug)]
pub(super) struct CallTimer {
    counters: Arc<CallCounters>,
    method: usize,
    begun: Instant,
    code: Code,
    _in_flight: LevelGuard,
}

impl CallTimer {
    /// Notes how the call ended, if `headers` say so: those of an answer without a body, or its
    /// trailers.
    pub(super) fn note_end(&mut self, headers: &HeaderMap) {
        let Some(status) = headers.get(Status::GRPC_STATUS) else {
            return;
        };
        self.code = Code::from_bytes(status.as_bytes());
        if self.code == Code::Ok {
            return;
        }
        let status = Status::from_header_map(headers);
        let reason = status.and_then(|status| status.get_details_error_info());
        let reason = reason.and_then(|info| {
            let mut all = Reason::ALL.into_iter();
            all.find(|reason| reason.as_str() == info.reason)
        });
        if let Some(reason) = reason {
            self.counters.refused[reason as usize].increment();
        }
    }

    /// Notes that the call got an answer in plain HTTP, because it was no call of gRPC.
    pub(super) fn note_foreign(&mut self) {
        self.code = Code::Unknown;
    }
}

impl Drop for CallTimer {
    fn drop(&mut self) {
        let method = &self.counters.methods[self.method];
        let code = usize::try_from(i32::from(self.code)).unwrap_or_default();
        method.by_code[code.min(CODES.len() - 1)].increment();
        method.latency.observe(self.begun.elapsed());
    }
}

impl MetricSource for CallCounters {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let paths = ApiMethod::ALL.iter().map(|(_, path)| *path).chain([OTHER]);
        let methods = paths.zip(&self.methods).filter_map(|(path, counters)| {
            let (service, method) = path.strip_prefix('/')?.split_once('/')?;
            let labels = [("grpc_service", service), ("grpc_method", method)];
            Some((labels, counters))
        });
        let by_code = methods.clone().flat_map(|([service, method], counters)| {
            let named = CODES.into_iter().zip(&counters.by_code);
            named.filter_map(move |(code, count)| {
                let labels = [service, method, ("grpc_code", code)];
                (count.get() > 0).then(|| (labels, count.get()))
            })
        });
        to.counters(
            "calls",
            "Calls that ended, by method and by gRPC code; CANCELLED are those whose client left.",
            None,
            by_code,
        )?;
        let called = methods.map(|(labels, counters)| (labels, counters.latency.snapshot()));
        to.histograms(
            "call",
            "The time from a call's request to the last byte of its answer, by method.",
            called.filter(|(_, latency)| latency.count() > 0),
        )?;
        to.gauge(
            "calls_in_flight",
            "Calls that have no complete answer yet.",
            None,
            self.in_flight.get(),
        )?;
        let refused = Reason::ALL.into_iter().zip(&self.refused);
        let refused = refused.map(|(reason, count)| ([("reason", reason.as_str())], count.get()));
        to.counters(
            "refusals",
            "Calls that ended with an error, by its reason (docs/errors.md).",
            None,
            refused.filter(|(_, count)| *count > 0),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::refusal::Refusal;

    #[test]
    fn methods_reasons_and_codes_are_counted_in_their_own_places() {
        for (i, (method, _)) in ApiMethod::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, i);
        }
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
        }
        for (i, name) in (0..).zip(CODES) {
            let code = format!("{:?}", Code::from_i32(i)).to_uppercase();
            assert_eq!(name.replace('_', ""), code);
        }
    }

    #[test]
    fn a_call_is_counted_once_as_it_ended() {
        let counters = CallCounters::new();
        let run = ApiMethod::SandboxRun as usize;
        let count = |code: Code| counters.methods[run].by_code[code as usize].get();
        drop(counters.begin(Some(ApiMethod::SandboxRun)));
        assert_eq!(count(Code::Cancelled), 1, "its client left");
        let mut call = counters.begin(Some(ApiMethod::SandboxRun));
        assert_eq!(counters.in_flight.get(), 1);
        let refusal = Refusal::new(Reason::QueueFull, "there is no room");
        let answer = Status::from(refusal).into_http::<tonic::body::Body>();
        call.note_end(answer.headers());
        drop(call);
        assert_eq!(count(Code::ResourceExhausted), 1);
        assert_eq!(counters.refused[Reason::QueueFull as usize].get(), 1);
        assert_eq!(counters.in_flight.get(), 0);
        assert_eq!(counters.methods[run].latency.snapshot().count(), 2);
        drop(counters.begin(ApiMethod::at("/a/name/of/a/caller")));
        assert_eq!(counters.methods[METHODS - 1].latency.snapshot().count(), 1);
    }
}
