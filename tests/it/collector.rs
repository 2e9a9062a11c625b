//! A stand-in of an OpenTelemetry collector: a server of the protocol's own services, which keeps what it is sent, and
//! answers as a test says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::harness::PATIENCE;

/// What a collector answers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Reply {
    /// It takes everything.
    #[default]
    Take,
    /// It fails with a code.
    Fail(Code),
    /// It takes all but so many spans or log records of each request, for good. With none of them it only warns.
    Reject(i64),
    /// It has no room for one request, and wants it again after so long. It takes everything then.
    Throttle(Duration),
    /// It takes everything, but only after so long.
    Late(Duration),
    /// It never answers.
    Never,
}

/// What a collector has been sent.
#[derive(Default)]
pub(crate) struct Received {
    pub spans: Vec<Span>,
    pub logs: Vec<LogRecord>,
    /// How many log records came with each request.
    pub logs_together: Vec<usize>,
    /// The attributes of the resource of the last request.
    pub resource: BTreeMap<String, String>,
    pub headers: Vec<MetadataMap>,
    /// When each request came.
    pub at: Vec<Instant>,
    /// All requests as they were on the wire.
    pub wire: Vec<u8>,
    reply: Reply,
}

#[derive(Default)]
struct Shared {
    received: Mutex<Received>,
    changed: Notify,
}

#[derive(Clone, Default)]
struct Services(Arc<Shared>);

/// A collector on a port of its own.
pub(crate) struct Collector {
    pub addr: SocketAddr,
    services: Services,
    served: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serving(Server::builder()).await
    }

    /// With TLS, by a certificate and its key.
    pub(crate) async fn with_tls((cert, key): (String, String)) -> Self {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(cert, key));
        Self::serving(Server::builder().tls_config(tls).unwrap()).await
    }

    async fn serving(mut server: Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let services = Services::default();
        let (traces, logs) = (services.clone(), services.clone());
        let served = tokio::spawn(async move {
            let server = server
                .add_service(TraceServiceServer::new(traces))
                .add_service(LogsServiceServer::new(logs));
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            addr,
            services,
            served,
        }
    }

    /// Its URL, as the daemon's configuration names it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Keeps what `tests/interop/otlp_sink.py` has been sent, whose lines `from` has.
    pub(crate) fn keep_lines(&self, from: impl std::io::BufRead + Send + 'static) {
        let services = self.services.clone();
        std::thread::spawn(move || {
            for line in from.lines() {
                let line = line.unwrap();
                let (kind, bytes) = line.split_once(' ').unwrap();
                let bytes = BASE64_STANDARD.decode(bytes).unwrap();
                match kind {
                    "traces" => services.keep_spans(Message::decode(&*bytes).unwrap()),
                    "logs" => services.keep_logs(Message::decode(&*bytes).unwrap()),
                    other => panic!("{other}"),
                }
            }
        });
    }

    /// Answers like this from now on.
    pub(crate) fn reply(&self, reply: Reply) {
        self.received().reply = reply;
    }

    /// What it has been sent so far.
    pub(crate) fn received(&self) -> MutexGuard<'_, Received> {
        self.services.0.received.lock().unwrap()
    }

    /// Waits until what it has been sent is as `holds` says.
    pub(crate) async fn until(&self, holds: impl Fn(&Received) -> bool) {
        let waited = async {
            loop {
                let mut changed = std::pin::pin!(self.services.0.changed.notified());
                changed.as_mut().enable();
                if holds(&self.received()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(PATIENCE, waited).await.is_err() {
            let received = self.received();
            panic!("not sent: {:#?} {:#?}", received.spans, received.logs);
        }
    }

    /// The spans of a trace, once there are so many.
    pub(crate) async fn spans(&self, trace_id: &str, count: usize) -> Vec<Span> {
        let of_trace = |received: &Received| -> Vec<Span> {
            let spans = received.spans.iter();
            spans
                .filter(|it| hex(&it.trace_id) == trace_id)
                .cloned()
                .collect()
        };
        self.until(|received| of_trace(received).len() >= count)
            .await;
        let spans = of_trace(&self.received());
        assert_eq!(spans.len(), count, "{spans:#?}");
        spans
    }

    /// The log records of a run, once `holds` is true of them.
    pub(crate) async fn logs(
        &self,
        run_id: &str,
        holds: impl Fn(&[LogRecord]) -> bool,
    ) -> Vec<LogRecord> {
        let of_run = |received: &Received| -> Vec<LogRecord> {
            let logs = received.logs.iter();
            let is_of_run =
                |it: &&LogRecord| attribute(&it.attributes, "ringfence.run.id") == run_id;
            logs.filter(is_of_run).cloned().collect()
        };
        self.until(|received| holds(&of_run(received))).await;
        of_run(&self.received())
    }
}

impl Services {
    /// Notes a request, and says what is answered.
    fn receive(&self, metadata: &MetadataMap, message: &impl Message) -> Reply {
        let mut received = self.0.received.lock().unwrap();
        received.headers.push(metadata.clone());
        received.at.push(Instant::now());
        message.encode(&mut received.wire).unwrap();
        let reply = received.reply;
        if let Reply::Throttle(_) = reply {
            received.reply = Reply::Take;
        }
        reply
    }

    /// What is answered: the number of records that are rejected, where the answer says anything of that.
    async fn answer(reply: Reply) -> Result<Option<i64>, Status> {
        match reply {
            Reply::Take => Ok(None),
            Reply::Fail(code) => Err(Status::new(code, "as a test says")),
            Reply::Reject(records) => Ok(Some(records)),
            Reply::Throttle(after) => {
                let details = ErrorDetails::with_retry_info(Some(after));
                let (code, why) = (Code::ResourceExhausted, "as a test says");
                Err(Status::with_error_details(code, why, details))
            }
            Reply::Late(after) => {
                tokio::time::sleep(after).await;
                Ok(None)
            }
            Reply::Never => std::future::pending().await,
        }
    }

    fn keep_spans(&self, request: ExportTraceServiceRequest) {
        self.keep(|received| {
            for of_resource in request.resource_spans {
                received.resource = told(&of_resource.resource.unwrap_or_default().attributes);
                let scopes = of_resource.scope_spans.into_iter();
                received.spans.extend(scopes.flat_map(|it| it.spans));
            }
        });
    }

    fn keep_logs(&self, request: ExportLogsServiceRequest) {
        self.keep(|received| {
            let before = received.logs.len();
            for of_resource in request.resource_logs {
                received.resource = told(&of_resource.resource.unwrap_or_default().attributes);
                let scopes = of_resource.scope_logs.into_iter();
                received.logs.extend(scopes.flat_map(|it| it.log_records));
            }
            received.logs_together.push(received.logs.len() - before);
        });
    }

    fn keep(&self, change: impl FnOnce(&mut Received)) {
        change(&mut self.0.received.lock().unwrap());
        self.0.changed.notify_waiters();
    }
}

#[tonic::async_trait]
impl TraceService for Services {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let reply = self.receive(request.metadata(), request.get_ref());
        let rejected = Self::answer(reply).await?;
        self.keep_spans(request.into_inner());
        let partial_success = rejected.map(|rejected_spans| ExportTracePartialSuccess {
            rejected_spans,
            error_message: "as a test says".to_owned(),
        });
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success,
        }))
    }
}

#[tonic::async_trait]
impl LogsService for Services {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let reply = self.receive(request.metadata(), request.get_ref());
        let rejected = Self::answer(reply).await?;
        self.keep_logs(request.into_inner());
        let partial_success = rejected.map(|rejected_log_records| ExportLogsPartialSuccess {
            rejected_log_records,
            error_message: "as a test says".to_owned(),
        });
        Ok(Response::new(ExportLogsServiceResponse { partial_success }))
    }
}

/// Bytes of an id as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Attributes by their keys, as text.
pub(crate) fn told(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |it: &KeyValue| match it.value.as_ref().and_then(|it| it.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{}: {other:?}", it.key),
    };
    attributes
        .iter()
        .map(|it| (it.key.clone(), text(it)))
        .collect()
}

/// One attribute as text; empty where it is not there.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> String {
    told(attributes).remove(key).unwrap_or_default()
}

/// The text of a log record.
pub(crate) fn body(record: &LogRecord) -> &str {
    match record.body.as_ref().and_then(|it| it.value.as_ref()) {
        Some(Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}
