//! The floor: a tonic service that takes and answers messages of the same sizes, and does nothing
//! else. Nothing that speaks gRPC by tonic can be faster.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::stream;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    LoadModuleRequest, LoadModuleResponse, ModuleInfo, RunRequest, RunResponse, RunResult, RunSpec,
    RunStreamRequest, StreamEvent,
};
use ringfence::api::{CONNECTION_WINDOW, STREAM_WINDOW};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// What a daemon sends at once.
const CHUNK: usize = 64 << 10;

#[derive(Clone)]
struct Floor {
    result: Arc<RunResult>,
}

/// Serves until it is killed, and tells where.
pub(crate) async fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("address={}", listener.local_addr().unwrap());
    let incoming = TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok::<_, std::io::Error>(stream)
    });
    let floor = Floor {
        result: Arc::new(result()),
    };
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(floor)
        .serve_with_incoming(incoming)
        .await
        .unwrap();
}

use tokio_stream::StreamExt;

/// As large as that of a hello.
fn result() -> RunResult {
    RunResult {
        run_id: "019b0000-0000-7000-8000-000000000000".to_owned(),
        exit_code: Some(0),
        outcome: 1,
        duration: Some(prost_types::Duration {
            seconds: 0,
            nanos: 123_456,
        }),
        cpu_time: Some(prost_types::Duration {
            seconds: 0,
            nanos: 123_456,
        }),
        module_digest: format!("sha256:{}", "0".repeat(64)),
        ..RunResult::default()
    }
}

/// The bytes that a `flood` of these arguments writes, and those of a hello otherwise.
fn output(spec: Option<&RunSpec>) -> usize {
    match spec.map(|spec| spec.args.as_slice()) {
        Some([_, habit, bytes, ..]) if habit == "flood" => bytes.parse().unwrap(),
        _ => 6,
    }
}

fn text(bytes: usize) -> Bytes {
    static HELLO: &[u8] = b"hello\n";
    match bytes {
        6 => Bytes::from_static(HELLO),
        _ => vec![b'x'; bytes].into(),
    }
}

fn run(floor: &Floor, request: Request<RunRequest>) -> Result<Response<RunResponse>, Status> {
    let spec = request.into_inner().spec;
    let digest = match spec.as_ref().and_then(|spec| spec.module.as_ref()) {
        Some(Module::Digest(digest)) => digest.clone(),
        Some(Module::Wasm(_)) | None => String::new(),
    };
    Ok(Response::new(RunResponse {
        files: Vec::new(),
        result: Some(RunResult {
            module_digest: digest,
            ..(*floor.result).clone()
        }),
        stdout: text(output(spec.as_ref())),
        stderr: Bytes::new(),
    }))
}

fn run_stream(
    floor: &Floor,
    request: &Request<RunStreamRequest>,
) -> Response<impl tokio_stream::Stream<Item = Result<StreamEvent, Status>> + Send + use<>> {
    let bytes = output(request.get_ref().spec.as_ref());
    let chunk = text(bytes.min(CHUNK));
    let id = floor.result.run_id.clone();
    let whole = bytes.div_ceil(chunk.len());
    let chunks = (0..whole).map(move |seq| {
        Ok(StreamEvent {
            run_id: id.clone(),
            seq: seq as u64,
            time: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: 1,
            }),
            event: Some(Event::Stdout(chunk.clone())),
        })
    });
    Response::new(stream::iter(chunks))
}

fn load(request: Request<LoadModuleRequest>) -> Response<LoadModuleResponse> {
    // Takes it as a whole.
    drop(request.into_inner());
    Response::new(LoadModuleResponse {
        module: Some(ModuleInfo {
            digest: format!("sha256:{}", "0".repeat(64)),
            ..ModuleInfo::default()
        }),
        cached: true,
        ..LoadModuleResponse::default()
    })
}

impl NamedService for Floor {
    const NAME: &'static str = "ringfence.v1.SandboxService";
}

impl Service<http::Request<Body>> for Floor {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let floor = self.clone();
        async move {
            let answer = match request.uri().path().rsplit('/').next() {
                Some("RunStream") => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    let call = service_fn(move |request| {
                        let answer = run_stream(&floor, &request);
                        async move { Ok::<_, Status>(answer) }
                    });
                    grpc.server_streaming(call, request).await
                }
                Some("LoadModule") => {
                    let grpc = Grpc::new(ProstCodec::default());
                    let call = service_fn(|request| async move { Ok::<_, Status>(load(request)) });
                    let mut grpc = grpc.max_decoding_message_size(usize::MAX);
                    grpc.unary(call, request).await
                }
                _ => {
                    let mut grpc = Grpc::new(ProstCodec::default());
                    let call = service_fn(move |request| {
                        let answer = run(&floor, request);
                        async move { answer }
                    });
                    grpc.unary(call, request).await
                }
            };
            Ok(answer)
        }
        .boxed()
    }
}
