//! Manners: what is no gRPC is told so by HTTP, deadlines of any length are answered in the API's terms, metadata has a
//! limit that says so, and health and reflection are as their protocols want them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use ringfence::api::health_proto::health_client::HealthClient as OurHealthClient;
use ringfence::api::health_proto::{HealthListRequest, health_check_response};
use ringfence::api::proto::run_info::End;
use ringfence::api::proto::{
    CancelCause, CancelRunsRequest, CancelRunsResponse, ExecuteRequest, ExecutionSpec,
    ListRunsRequest, Outcome, RunRequest, RunResponse, RunSpec, RunState,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::frames::{Frames, PREFACE, Tally, block, message, remembered};
use crate::harness::{Daemon, PATIENCE, Ran, Refused, SpecExt, by_digest, channel, spec};
use crate::tenants::{token, tokens_file};

const RUN: &str = "/ringfence.v1.SandboxService/Run";
const NOTHING: &str = "(module (func (export \"_start\")))";
/// Bytes that the metadata of a call may take.
const MAX_METADATA: usize = 8 << 10;

/// A client that says what it is told to, and no more.
struct Raw(SendRequest<Full<Bytes>>);

/// All that came back.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Raw {
    async fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = made.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, async {
            let answer = self.0.send_request(request).await.expect("it is answered");
            let (head, body) = answer.into_parts();
            let body = body.collect().await.expect("the answer is whole");
            (head, body)
        });
        let (head, body) = answer.await.expect("it hangs");
        Answer {
            status: head.status,
            headers: head.headers,
            trailers: body.trailers().cloned().unwrap_or_default(),
            body: body.to_bytes(),
        }
    }
}

impl Answer {
    /// What it says as an answer of gRPC.
    #[track_caller]
    fn grpc(&self) -> Status {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.headers[CONTENT_TYPE], "application/grpc");
        let status = Status::from_header_map(&self.headers);
        let status = status.or_else(|| Status::from_header_map(&self.trailers));
        status.expect("a status of gRPC")
    }

    #[track_caller]
    fn refused(&self) -> Refused {
        Refused::new(&self.grpc())
    }

    /// The run that it tells of.
    #[track_caller]
    fn ran(&self) -> Ran {
        assert_eq!(self.grpc().code(), Code::Ok, "{:?}", self.grpc());
        Ran::new(RunResponse::decode(&self.body[5..]).unwrap())
    }
}

/// A call with `sent` in it.
fn call(path: &str, sent: &impl Message) -> Request<Full<Bytes>> {
    let body = Bytes::from(message(&sent.encode_to_vec()));
    let request = Request::post(format!("http://localhost{path}"))
        .header(CONTENT_TYPE, "application/grpc")
        .header("te", "trailers");
    request.body(Full::new(body)).unwrap()
}

fn run(spec: RunSpec) -> Request<Full<Bytes>> {
    call(RUN, &RunRequest { spec: Some(spec) })
}

fn with(mut request: Request<Full<Bytes>>, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
    for (name, value) in fields {
        let name = http::HeaderName::try_from(*name).unwrap();
        let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
        request.headers_mut().append(name, value);
    }
    request
}

/// Nothing has run, or was even refused.
async fn nothing_ran(daemon: &Daemon) {
    let runs = daemon.list(ListRunsRequest::default()).await.runs;
    assert!(runs.is_empty(), "{runs:?}");
}

#[tokio::test]
async fn another_content_type_is_told_what_is_wanted_and_nothing_runs() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for content_type in [
        // What a form on another page sends without asking.
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=b",
        "application/json",
        "",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpc-web-text",
        "application/grpc+json",
        "application/grpcfoo",
        "application/octet-stream",
        "text/plain; application/grpc",
    ] {
        for path in [RUN, "/grpc.health.v1.Health/Check", "/nothing", "/"] {
            let mut request = run(spec(NOTHING));
            *request.uri_mut() = format!("http://localhost{path}").parse().unwrap();
            let value = HeaderValue::from_static(content_type);
            request.headers_mut().insert(CONTENT_TYPE, value);
            let answer = raw.send(request).await;
            is_unsupported(&answer, content_type);
        }
    }
    let mut without = run(spec(NOTHING));
    without.headers_mut().remove(CONTENT_TYPE);
    is_unsupported(&raw.send(without).await, "none");
    let twice = with(run(spec(NOTHING)), &[("content-type", "text/plain")]);
    is_unsupported(&raw.send(twice).await, "two");
    nothing_ran(&daemon).await;
}

#[track_caller]
fn is_unsupported(answer: &Answer, content_type: &str) {
    assert_eq!(
        answer.status,
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "{content_type}"
    );
    assert_eq!(answer.headers[CONTENT_TYPE], "text/plain; charset=utf-8");
    let accepted = answer.headers[ACCEPT].to_str().unwrap();
    assert_eq!(accepted, "application/grpc, application/grpc+proto");
    let text = std::str::from_utf8(&answer.body).unwrap();
    assert!(text.contains("application/grpc"), "{text}");
}

#[tokio::test]
async fn every_method_but_post_is_told_so_and_nothing_runs() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for method in [
        "GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "BREW", "CONNECT",
    ] {
        for content_type in ["application/grpc", "text/html"] {
            let mut request = run(spec(NOTHING));
            *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
            let value = HeaderValue::from_static(content_type);
            request.headers_mut().insert(CONTENT_TYPE, value);
            if method == "CONNECT" {
                *request.uri_mut() = http::Uri::from_static("localhost:443");
                *request.body_mut() = Full::default();
            }
            let answer = raw.send(request).await;
            assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method}");
            assert_eq!(answer.headers[ALLOW], "POST", "{method}");
            let text = std::str::from_utf8(&answer.body).unwrap();
            assert!(
                text.contains(method) || method == "HEAD",
                "{method}: {text}"
            );
        }
    }
    nothing_ran(&daemon).await;
}

#[tokio::test]
async fn nobody_is_asked_who_calls_where_there_is_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let daemon = Daemon::with(&[
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.open_health", "true"),
    ])
    .await;
    let mut raw = Raw::connect(&daemon.addr).await;
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let mut request = run(spec(NOTHING));
    request.headers_mut().remove(CONTENT_TYPE);
    let answer = raw.send(with(request, &form)).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    // A call is.
    let refused = raw.send(run(spec(NOTHING))).await.refused();
    refused.is(Code::Unauthenticated, "CREDENTIALS_INVALID");
    // Two credentials are none, and so is one that is no text.
    let bearer = format!("Bearer {}", token("default"));
    let doubled = [("authorization", &*bearer), ("authorization", &*bearer)];
    let refused = raw.send(with(run(spec(NOTHING)), &doubled)).await.refused();
    refused.is(Code::Unauthenticated, "CREDENTIALS_INVALID");
    let strange = [("authorization", "Bearer schl\u{fc}ssel")];
    let refused = raw.send(with(run(spec(NOTHING)), &strange)).await.refused();
    refused.is(Code::Unauthenticated, "CREDENTIALS_INVALID");
    let good = [("authorization", &*bearer)];
    raw.send(with(run(spec(NOTHING)), &good))
        .await
        .ran()
        .exited(0);
}

#[tokio::test]
async fn a_content_type_of_grpc_is_one_in_any_case_and_with_parameters() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for content_type in [
        "application/grpc",
        "application/grpc+proto",
        "Application/gRPC",
        "application/grpc;charset=utf-8",
        "application/grpc+proto ; charset=utf-8",
    ] {
        let mut request = run(spec(NOTHING));
        let value = HeaderValue::from_static(content_type);
        request.headers_mut().insert(CONTENT_TYPE, value);
        raw.send(request).await.ran().exited(0);
    }
    // What is not there is told in the terms of gRPC to those who speak it.
    for path in ["/nothing", "/", "/ringfence.v1.SandboxService/Nothing"] {
        let answer = raw.send(call(path, &ListRunsRequest::default())).await;
        assert_eq!(answer.grpc().code(), Code::Unimplemented, "{path}");
    }
}

/// Nobody who speaks HTTP/1 can be told anything that it reads: the daemon greets first, as HTTP/2 does.
#[tokio::test]
async fn http_1_is_hung_up_on_and_nothing_runs() {
    let daemon = Daemon::start().await;
    let post = "POST /ringfence.v1.SandboxService/Run HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n";
    for said in [
        "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n",
        &format!("{post}content-type: text/plain\r\n\r\n"),
        &format!("{post}content-type: application/grpc\r\n\r\n"),
        &format!(
            "{post}connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: \r\n\r\n"
        ),
        "OPTIONS * HTTP/1.0\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(&daemon.addr).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard);
        // An end and a reset are the same to it.
        let _ = tokio::time::timeout(PATIENCE, end).await.expect("it hangs");
        let mut tally = Tally::default();
        tally.take(&mut heard);
        assert_eq!((tally.answers, tally.ended), (0, 0), "{said}");
    }
    nothing_ran(&daemon).await;
}

/// Methods of every service.
const METHODS: [&str; 13] = [
    RUN,
    "/ringfence.v1.SandboxService/RunStream",
    "/ringfence.v1.SandboxService/LoadModule",
    "/ringfence.v1.SandboxService/Health",
    "/ringfence.v1.ExecutionService/Execute",
    "/ringfence.v1.ExecutionService/ExecuteStream",
    "/ringfence.v1.ExecutionService/ListLanguages",
    "/ringfence.v1.ExecutionService/ListSessions",
    "/ringfence.v1.RunService/ListRuns",
    "/ringfence.v1.ModuleService/ListModules",
    "/ringfence.v1.StatsService/GetStats",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/List",
];

/// Methods whose answers or requests are streams, and those that ask for what has to be there.
const OTHERS: [&str; 16] = [
    "/ringfence.v1.ExecutionService/CloseSession",
    "/ringfence.v1.RunService/GetRun",
    "/ringfence.v1.ModuleService/GetModule",
    "/ringfence.v1.ModuleService/DeleteModule",
    "/ringfence.v1.RunService/Interact",
    "/ringfence.v1.RunService/AttachRun",
    "/ringfence.v1.RunService/WatchRuns",
    "/ringfence.v1.StatsService/WatchStats",
    "/ringfence.v1.RunService/CancelRun",
    "/ringfence.v1.RunService/CancelRuns",
    "/ringfence.v1.RunService/DeleteRuns",
    "/ringfence.v1.RunService/SendInput",
    "/ringfence.v1.ModuleService/UploadModule",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

fn all_methods() -> impl Iterator<Item = &'static str> {
    METHODS.into_iter().chain(OTHERS)
}

/// A call of a method that it can do something for.
fn any_call(path: &str) -> Request<Full<Bytes>> {
    match path.rsplit_once('/').unwrap().1 {
        "Run" | "RunStream" => {
            let spec = Some(spec(NOTHING));
            call(path, &RunRequest { spec })
        }
        "Execute" | "ExecuteStream" => {
            let spec = Some(ExecutionSpec {
                language: "wat".to_owned(),
                code: NOTHING.to_owned(),
                ..ExecutionSpec::default()
            });
            call(path, &ExecuteRequest { spec })
        }
        "LoadModule" => call(path, &crate::harness::load(NOTHING)),
        _ => call(path, &ListRunsRequest::default()),
    }
}

#[tokio::test]
async fn a_deadline_that_has_passed_is_told_as_such_by_every_method() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for timeout in ["0m", "0n", "0H", "1n"] {
        for path in all_methods() {
            let request = with(any_call(path), &[("grpc-timeout", timeout)]);
            let answer = raw.send(request).await;
            let refused = answer.refused();
            let told = (refused.code, refused.reason.as_str());
            let expected = (Code::DeadlineExceeded, "NOT_STARTED");
            assert_eq!(told, expected, "{timeout} {path}: {}", refused.message);
        }
    }
}

#[tokio::test]
async fn a_short_deadline_ends_in_what_the_api_documents() {
    let daemon = Daemon::start().await;
    let spin = "(module (func (export \"_start\") (loop br 0)))";
    let digest = daemon.loaded(spin).await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for timeout in ["1m", "10m", "30m", "50m", "50000u", "100m", "40000000n"] {
        let request = with(run(by_digest(&digest)), &[("grpc-timeout", timeout)]);
        let answer = raw.send(request).await;
        let status = answer.grpc();
        if status.code() == Code::Ok {
            answer.ran().ended(Outcome::TimedOut);
        } else {
            // On a machine that is busy it could not even start.
            Refused::new(&status).is(Code::DeadlineExceeded, "NOT_STARTED");
        }
    }
    // Time enough, however it is said.
    for timeout in ["99999999H", "60S", "1M", "30000m", "99999999u", "0060S"] {
        let request = with(run(spec(NOTHING)), &[("grpc-timeout", timeout)]);
        raw.send(request).await.ran().exited(0);
        for path in METHODS {
            let request = with(any_call(path), &[("grpc-timeout", timeout)]);
            assert_eq!(raw.send(request).await.grpc().code(), Code::Ok, "{path}");
        }
    }
}

#[tokio::test]
async fn a_short_deadline_of_a_call_that_ends_runs_counts_those_that_have_not_ended() {
    const RUNS: usize = 30;
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let mut raw = Raw::connect(&daemon.addr).await;
    let ended = |run: &ringfence::api::proto::RunInfo| run.state() == RunState::Ended;
    // From what ends nothing in time to what ends all of them.
    for timeout in ["1m", "3m", "5m", "10m", "30m", "100m", "60S"] {
        let mut started = Vec::new();
        for _ in 0..RUNS {
            let spin = by_digest(&digest).args(&["kit", "spin"]).detach();
            let mut stream = daemon.stream(spin.label("timeout", timeout)).await.unwrap();
            started.push(stream.message().await.unwrap().unwrap().run_id);
        }
        let request = CancelRunsRequest {
            labels: [("timeout".to_owned(), timeout.to_owned())].into(),
            ..CancelRunsRequest::default()
        };
        let path = "/ringfence.v1.RunService/CancelRuns";
        let within = with(call(path, &request), &[("grpc-timeout", timeout)]);
        let answer = raw.send(within).await;
        if answer.grpc().code() != Code::Ok {
            // The machine was so busy that the time had passed when the call was looked at: nothing
            // has been asked to end.
            answer.refused().is(Code::DeadlineExceeded, "NOT_STARTED");
            assert_ne!(timeout, "60S");
            assert_eq!(raw.send(call(path, &request)).await.grpc().code(), Code::Ok);
            continue;
        }
        let answer = CancelRunsResponse::decode(&answer.body[5..]).unwrap();
        assert_eq!(answer.runs.len() + answer.unfinished as usize, RUNS);
        assert!(timeout != "60S" || answer.unfinished == 0);
        for run in &answer.runs {
            assert!(run.cancelled && ended(&daemon.get(&run.run_id).await));
        }
        // The others have been asked to end all the same.
        for id in &started {
            let run = daemon.until_run(id, ended).await;
            let Some(End::Result(result)) = run.end else {
                panic!("{run:?}")
            };
            assert_eq!(result.cancel_cause(), CancelCause::CancelRpc);
        }
    }
}

#[tokio::test]
async fn a_deadline_that_is_no_time_is_refused_by_every_method() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    for timeout in [
        "",
        "abc",
        "1",
        "-1S",
        "123456789S",
        "1s",
        "+1S",
        "1.5S",
        "S",
        "\u{663}S",
    ] {
        for path in all_methods() {
            let request = with(any_call(path), &[("grpc-timeout", timeout)]);
            let refused = raw.send(request).await.refused();
            let refused = refused.is(Code::InvalidArgument, "MALFORMED_REQUEST");
            assert!(
                refused.message.contains("grpc-timeout"),
                "{}",
                refused.message
            );
        }
    }
    let twice = [("grpc-timeout", "1S"), ("grpc-timeout", "2S")];
    for path in all_methods() {
        let refused = raw.send(with(any_call(path), &twice)).await.refused();
        refused.is(Code::InvalidArgument, "MALFORMED_REQUEST");
    }
}

#[tokio::test]
async fn metadata_over_the_limit_is_refused_with_the_limit() {
    let daemon = Daemon::start().await;
    let mut raw = Raw::connect(&daemon.addr).await;
    let large = "x".repeat(MAX_METADATA);
    let larger = "x".repeat(20_000);
    let many: Vec<_> = (0..240).map(|n| (format!("x-{n}"), "y")).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (&**name, *value)).collect();
    for fields in [
        &[("x-large", &*large)][..],
        &[("x-larger-bin", &*larger)],
        &[("authorization", &*large)],
        &many,
    ] {
        for path in all_methods() {
            let answer = raw.send(with(any_call(path), fields)).await;
            let refused = answer.refused();
            let refused = refused.is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
            let refused = refused.with("allowed", MAX_METADATA);
            let asked: usize = refused.metadata["asked"].parse().unwrap();
            assert!(asked > MAX_METADATA, "{asked}");
            assert!(refused.message.contains("metadata"), "{}", refused.message);
        }
    }
    // So is a path that nobody needs.
    let path = format!("/{}/{}", "a".repeat(4000), "b".repeat(5000));
    let refused = raw.send(call(&path, &ListRunsRequest::default())).await;
    let refused = refused.refused();
    refused.is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    nothing_ran(&daemon).await;
    // What is far over it is not even kept while it is read; HTTP has an answer for that, and the connection goes on.
    let vast = "x".repeat(60_000);
    let answer = raw
        .send(with(run(spec(NOTHING)), &[("x-vast", &vast)]))
        .await;
    assert_eq!(answer.status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    // Under it nobody minds, whatever it is.
    let fitting = "x".repeat(MAX_METADATA - 1000);
    for field in [
        ("x-fits", &*fitting),
        ("x-no-base64-bin", "!!! no base64 !!!"),
        ("x-cut-bin", "A"),
        ("x-latin", "caf\u{e9}"),
        ("x-empty", ""),
    ] {
        raw.send(with(run(spec(NOTHING)), &[field]))
            .await
            .ran()
            .exited(0);
    }
}

fn asks(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

#[tokio::test]
async fn health_of_a_service_that_is_not_there_is_unknown_and_watching_it_goes_on() {
    let mut daemon = Daemon::with(&[("server.drain_delay", "100ms")]).await;
    let mut health = HealthClient::new(channel(&daemon.addr).await);
    let mut watched = BTreeMap::new();
    for service in [
        "nothing.Here",
        "",
        "ringfence.v1.RunService",
        "ringfence.v1",
    ] {
        let watch = health.watch(asks(service)).await.unwrap().into_inner();
        watched.insert(service, watch);
    }
    let known = |service: &str| matches!(service, "" | "ringfence.v1.RunService");
    for (service, watch) in &mut watched {
        let first = watch.message().await.unwrap().expect("it says something");
        let expected = match known(service) {
            true => ServingStatus::Serving,
            false => ServingStatus::ServiceUnknown,
        };
        assert_eq!(first.status(), expected, "{service}");
    }
    for service in ["nothing.Here", "ringfence.v1", "ringfence.v1.RunService "] {
        let refused = Refused::new(&health.check(asks(service)).await.unwrap_err());
        let refused = refused.is(Code::NotFound, "SERVICE_NOT_FOUND");
        assert!(refused.message.contains("ringfence.v1.RunService"));
    }
    // Those of unknown services are open still: as the daemon ends they say nothing more, and end without an error.
    daemon.drain();
    for (service, watch) in &mut watched {
        let next = tokio::time::timeout(PATIENCE, watch.message()).await;
        let next = next.expect("it hangs").unwrap();
        let told = next.map(|it| it.status());
        let expected = known(service).then_some(ServingStatus::NotServing);
        assert_eq!(told, expected, "{service}");
        if known(service) {
            let end = tokio::time::timeout(PATIENCE, watch.message()).await;
            assert_eq!(end.expect("it hangs").unwrap(), None, "{service}");
        }
    }
    drop((watched, health));
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn health_lists_every_service_and_says_who_may_ask() {
    let daemon = Daemon::start().await;
    let mut health = OurHealthClient::new(channel(&daemon.addr).await);
    let listed = health
        .list(HealthListRequest {})
        .await
        .unwrap()
        .into_inner();
    let mut names: Vec<_> = listed.statuses.keys().map(String::as_str).collect();
    names.sort_unstable();
    let services = [
        "ExecutionService",
        "ModuleService",
        "RunService",
        "SandboxService",
        "StatsService",
    ];
    let services = services.map(|it| format!("ringfence.v1.{it}"));
    let expected: Vec<_> = [""]
        .into_iter()
        .chain(services.iter().map(String::as_str))
        .collect();
    assert_eq!(names, expected);
    for (service, status) in &listed.statuses {
        let serving = health_check_response::ServingStatus::Serving;
        assert_eq!(status.status(), serving, "{service}");
    }
    // What is no message is the caller's fault, of each method.
    let mut raw = Raw::connect(&daemon.addr).await;
    for method in ["Check", "List", "Watch"] {
        let mut request = call(&format!("/grpc.health.v1.Health/{method}"), &asks(""));
        let body = message(b"\xff\xff\xff\xff\xff");
        *request.body_mut() = Full::new(Bytes::from(body));
        let refused = raw.send(request).await.refused();
        refused.is(Code::InvalidArgument, "MALFORMED_REQUEST");
    }
}

#[tokio::test]
async fn health_asks_who_calls_unless_it_is_left_open() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let set = format!("auth.tokens_file={}", tokens.to_str().unwrap());
    let shut = crate::process::Served::start(&["--set", &set]);
    let open = ["--set", &set, "--set", "auth.open_health=true"];
    let open = crate::process::Served::start(&open);
    for method in ["Check", "List", "Watch"] {
        let request = || call(&format!("/grpc.health.v1.Health/{method}"), &asks(""));
        let refused = Raw::connect(&shut.addr).await.send(request()).await;
        let refused = refused.refused();
        refused.is(Code::Unauthenticated, "CREDENTIALS_INVALID");
        // Watching goes on: what it said first is enough.
        let mut raw = Raw::connect(&open.addr).await;
        let answer = raw.0.send_request(request()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(
            Status::from_header_map(answer.headers()).is_none(),
            "{method}"
        );
    }
}

/// Asks reflection of either version for a file, and returns it.
macro_rules! reflected {
    ($version:ident, $channel:expr, $request:expr) => {{
        use pb::server_reflection_client::ServerReflectionClient;
        use pb::server_reflection_request::MessageRequest::{FileByFilename, FileContainingSymbol};
        use pb::server_reflection_response::MessageResponse::FileDescriptorResponse;
        use tonic_reflection::pb::$version as pb;
        let asked = match $request {
            Asked::Symbol(name) => FileContainingSymbol(name.to_owned()),
            Asked::File(name) => FileByFilename(name.to_owned()),
        };
        let request = pb::ServerReflectionRequest {
            message_request: Some(asked),
            ..Default::default()
        };
        let mut client = ServerReflectionClient::new($channel.clone());
        let answers = client
            .server_reflection_info(tokio_stream::once(request))
            .await;
        let answer = answers.unwrap().into_inner().next().await.unwrap();
        match answer.unwrap().message_response {
            Some(FileDescriptorResponse(files)) => {
                let [file] = &files.file_descriptor_proto[..] else {
                    panic!("{} files", files.file_descriptor_proto.len())
                };
                prost_types::FileDescriptorProto::decode(&file[..]).unwrap()
            }
            other => panic!("{other:?}"),
        }
    }};
}

#[derive(Clone, Copy, Debug)]
enum Asked<'a> {
    Symbol(&'a str),
    File(&'a str),
}

#[tokio::test]
async fn reflection_knows_the_details_of_errors_and_all_that_they_import() {
    let daemon = Daemon::start().await;
    let channel = channel(&daemon.addr).await;
    let details = "google/rpc/error_details.proto";
    let mut asked = vec![
        (
            Asked::Symbol("google.rpc.Status"),
            "google/rpc/status.proto",
        ),
        (Asked::Symbol("google.rpc.QuotaFailure.Violation"), details),
        (
            Asked::Symbol("google.protobuf.Any"),
            "google/protobuf/any.proto",
        ),
        (
            Asked::Symbol("google.protobuf.Duration"),
            "google/protobuf/duration.proto",
        ),
        (
            Asked::Symbol("google.protobuf.Timestamp"),
            "google/protobuf/timestamp.proto",
        ),
        (
            Asked::Symbol("grpc.health.v1.Health.List"),
            "grpc/health/v1/health.proto",
        ),
        (Asked::File(details), details),
        (
            Asked::File("google/rpc/status.proto"),
            "google/rpc/status.proto",
        ),
    ];
    let kinds = [
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RetryInfo",
        "google.rpc.QuotaFailure",
        "google.rpc.PreconditionFailure",
        "google.rpc.ResourceInfo",
        "google.rpc.Help",
    ];
    asked.extend(kinds.map(|kind| (Asked::Symbol(kind), details)));
    while let Some((request, name)) = asked.pop() {
        let files = [
            reflected!(v1, channel, request),
            reflected!(v1alpha, channel, request),
        ];
        for file in &files {
            assert_eq!(file.name(), name, "{request:?}");
        }
        assert_eq!(files[0], files[1], "{request:?}");
        for import in &files[0].dependency {
            let file = reflected!(v1, channel, Asked::File(import));
            assert_eq!(file.name(), import);
        }
    }
}

/// Clients send the path of the socket, as it is or percent-encoded; HTTP/2 as we have it would reset their streams.
async fn over_a_unix_socket_any_authority_is_taken_with(grpc_web: &str) {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/s", dir.path().display());
    let set = [
        ("server.allowed_authorities", "[\"127.0.0.1\"]"),
        ("server.grpc_web", grpc_web),
    ];
    let daemon = Daemon::listening(&listen, &set).await;
    let mut stream = UnixStream::connect(dir.path().join("s")).await.unwrap();
    let mut frames = Frames::default();
    frames.0.extend_from_slice(PREFACE);
    frames.settings(&[]);
    let authorities = [
        "%2Ftmp%2Fa.sock",
        "/tmp/a.sock",
        "/tmp/a b",
        "localhost",
        "%2F%2F",
        "a%",
    ];
    for (n, authority) in authorities.into_iter().enumerate() {
        let mut fields = block(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/ringfence.v1.SandboxService/Health"),
        ]);
        match n % 2 {
            // By the place of its name in the table of all, and to be remembered; and by its name.
            0 => {
                fields.push(0x41);
                fields.push(u8::try_from(authority.len()).unwrap());
                fields.extend_from_slice(authority.as_bytes());
            }
            _ => {
                fields.push(0x01);
                fields.push(u8::try_from(authority.len()).unwrap());
                fields.extend_from_slice(authority.as_bytes());
            }
        }
        remembered(&mut fields, b"content-type", b"application/grpc");
        frames.open(crate::frames::stream(n), &fields);
        frames.finish(crate::frames::stream(n), &message(b""));
    }
    // In pieces that end anywhere.
    for piece in frames.0.chunks(7) {
        stream.write_all(piece).await.unwrap();
    }
    let (mut tally, mut heard) = (Tally::default(), Vec::new());
    while tally.ended < authorities.len() {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut heard)).await;
        assert!(read.expect("it hangs").unwrap() > 0, "{tally:?}");
        tally.take(&mut heard);
        assert!(tally.resets.is_empty(), "{tally:?}");
    }
    assert_eq!(tally.answers, authorities.len(), "{tally:?}");
    daemon
        .ran(spec(NOTHING).timeout(Duration::from_secs(5)))
        .await
        .exited(0);
}

cases! { over_a_unix_socket_any_authority_is_taken_with:
    over_a_unix_socket_any_authority_is_taken("false"),
    over_a_unix_socket_any_authority_is_taken_where_grpc_web_is_served("true"),
}
