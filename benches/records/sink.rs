//! A collector of OpenTelemetry that counts what it is sent, and keeps nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

/// What a collector has been sent.
#[derive(Default)]
struct Counts {
    spans: AtomicU64,
    log_bytes: AtomicU64,
}

#[derive(Clone, Default)]
struct Counting(Arc<Counts>);

/// A collector on a port of its own, which ends with the program.
pub(crate) struct Sink {
    /// Its URL, as the daemon's configuration names it.
    pub(crate) url: String,
    counting: Counting,
}

impl Sink {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let counting = Counting::default();
        let (traces, logs) = (counting.clone(), counting.clone());
        tokio::spawn(async move {
            let server = Server::builder()
                .add_service(TraceServiceServer::new(traces))
                .add_service(LogsServiceServer::new(logs));
            let incoming = TcpListenerStream::new(listener);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self { url, counting }
    }

    /// How many spans it has been sent so far.
    pub(crate) fn spans(&self) -> u64 {
        self.counting.0.spans.load(Ordering::Relaxed)
    }

    /// How many bytes the lines of the records have that it has been sent so far.
    pub(crate) fn log_bytes(&self) -> u64 {
        self.counting.0.log_bytes.load(Ordering::Relaxed)
    }
}

fn length(record: &LogRecord) -> u64 {
    let body = record.body.as_ref().and_then(|it| it.value.as_ref());
    match body {
        Some(Value::StringValue(line)) => line.len() as u64,
        other => panic!("a line is text, not {other:?}"),
    }
}

#[tonic::async_trait]
impl TraceService for Counting {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.get_ref().resource_spans.iter();
        let scopes = scopes.flat_map(|it| &it.scope_spans);
        let spans = scopes.map(|it| it.spans.len() as u64).sum();
        self.0.spans.fetch_add(spans, Ordering::Relaxed);
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Counting {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let scopes = request.get_ref().resource_logs.iter();
        let records = scopes.flat_map(|it| &it.scope_logs);
        let bytes = records.flat_map(|it| &it.log_records).map(length).sum();
        self.0.log_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Response::new(Default::default()))
    }
}
