//! gRPC-Web on the admin listener: hand-made frames, and what a browser is refused.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    GetRunRequest, HealthRequest, HealthResponse, ListRunsRequest, RunRequest, RunResponse,
    RunState, RunStreamRequest, StreamEvent,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Daemon, PATIENCE, SpecExt, kit};
use crate::tenants::{token, two};

const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");
pub(crate) const RUN: &str = "/ringfence.v1.SandboxService/Run";
pub(crate) const STREAM: &str = "/ringfence.v1.SandboxService/RunStream";

/// An answer of gRPC-Web: its HTTP status, its headers, its messages, and its trailers.
#[derive(Debug, Default)]
pub(crate) struct WebAnswer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub messages: Vec<Vec<u8>>,
    pub trailers: Vec<(String, String)>,
    /// The body of an answer that is not 200.
    pub text: String,
}

impl WebAnswer {
    /// Takes the frames of a body, which is in base64 if `kind` says so.
    pub(crate) fn take(&mut self, kind: &str, mut body: Vec<u8>) {
        if self.status != 200 {
            self.text = String::from_utf8(body).unwrap();
            return;
        }
        if kind.starts_with("application/grpc-web-text") {
            // Each piece is encoded by itself, with its own padding.
            let mut decoded = Vec::new();
            for quad in body.chunks(4) {
                decoded.extend(STANDARD.decode(quad).unwrap());
            }
            body = decoded;
        }
        let mut rest = body.as_slice();
        while let [flag, a, b, c, d, after @ ..] = rest {
            let size = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            match flag {
                0 => self.messages.push(after[..size].to_vec()),
                0x80 => self.trailers = pairs(std::str::from_utf8(&after[..size]).unwrap()),
                other => panic!("a frame of kind {other}"),
            }
            rest = &after[size..];
        }
        assert!(rest.is_empty(), "{rest:?}");
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let all = self.headers.iter().chain(&self.trailers);
        let mut found = all
            .filter(|(it, _)| it == name)
            .map(|(_, value)| value.as_str());
        found.next()
    }

    pub(crate) fn grpc_status(&self) -> Option<&str> {
        self.header("grpc-status")
    }

    /// The reason that the details give.
    pub(crate) fn reason(&self) -> String {
        let details = self
            .header("grpc-status-details-bin")
            .expect("it has details");
        let decoded = base64::engine::general_purpose::STANDARD_NO_PAD
            .decode(details.trim_end_matches('='))
            .unwrap();
        String::from_utf8_lossy(&decoded).into_owned()
    }
}

fn pairs(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect()
}

/// One frame: a flag, a length, and what follows.
pub(crate) fn frame(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut frame = vec![0];
    frame.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
    frame.extend(bytes);
    frame
}

/// Undoes HTTP/1.1's chunks.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let end = body.windows(2).position(|it| it == b"\r\n").unwrap();
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
}

/// Sends a body by HTTP/1.1 and reads the whole answer.
async fn post(addr: &str, path: &str, kind: &str, body: &[u8], more: &[(&str, &str)]) -> WebAnswer {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-type: {kind}\r\n\
         accept: {kind}\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in more {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut request = format!("{head}\r\n").into_bytes();
    request.extend_from_slice(body);
    let mut answer = Vec::new();
    let talked = async {
        stream.write_all(&request).await.unwrap();
        stream.read_to_end(&mut answer).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, talked).await.unwrap();
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    let mut told = WebAnswer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        headers: pairs(&head),
        ..WebAnswer::default()
    };
    let mut body = answer[end + 4..].to_vec();
    if told.header("transfer-encoding") == Some("chunked") {
        body = unchunked(&body);
    }
    told.take(kind, body);
    told
}

pub(crate) fn hello() -> RunRequest {
    RunRequest {
        spec: Some(kit(&["hello"])),
    }
}

#[tokio::test]
async fn calls_by_hand_made_frames_are_answered_in_binary_and_in_text() {
    let daemon = Daemon::with(&[ADMIN]).await;
    for kind in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "Application/gRPC-Web+proto; charset=utf-8",
    ] {
        let answer = post(&daemon.admin, RUN, kind, &frame(&hello()), &[]).await;
        assert_eq!(
            (answer.status, answer.grpc_status()),
            (200, Some("0")),
            "{answer:?}"
        );
        let told = RunResponse::decode(answer.messages[0].as_slice()).unwrap();
        assert_eq!(told.stdout, Bytes::from("hello\n"));
        assert!(answer.header("ringfence-run-id").is_some());
    }
    let kind = "application/grpc-web-text+proto";
    let text = STANDARD.encode(frame(&hello()));
    let answer = post(&daemon.admin, RUN, kind, text.as_bytes(), &[]).await;
    assert_eq!(answer.grpc_status(), Some("0"), "{answer:?}");
    let told = RunResponse::decode(answer.messages[0].as_slice()).unwrap();
    assert_eq!(told.stdout, Bytes::from("hello\n"));
    let health = "/ringfence.v1.SandboxService/Health";
    let answer = post(
        &daemon.admin,
        health,
        "application/grpc-web",
        &frame(&HealthRequest {}),
        &[],
    )
    .await;
    let told = HealthResponse::decode(answer.messages[0].as_slice()).unwrap();
    assert_eq!(told.instance, "test");
}

/// The output that a stream told, which is whole and in order.
pub(crate) fn output(answer: &WebAnswer) -> Vec<u8> {
    let (mut text, mut ended) = (Vec::new(), false);
    for (seq, message) in (0..).zip(&answer.messages) {
        let event = StreamEvent::decode(message.as_slice()).unwrap();
        assert_eq!(event.seq, seq);
        match event.event {
            Some(Event::Stdout(piece)) => text.extend_from_slice(&piece),
            Some(Event::Exit(_)) => ended = true,
            Some(Event::Started(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(ended);
    text
}

#[tokio::test]
async fn a_stream_arrives_whole_and_in_order() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let request = RunStreamRequest {
        spec: Some(kit(&["count", "100000"])),
    };
    let kind = "application/grpc-web+proto";
    let answer = post(&daemon.admin, STREAM, kind, &frame(&request), &[]).await;
    assert_eq!(answer.grpc_status(), Some("0"));
    let text = output(&answer);
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 100_000);
}

#[tokio::test]
async fn a_refusal_has_its_code_its_reason_and_its_details() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let kind = "application/grpc-web+proto";
    let large = || kit(&["hello"]).resources(|it| it.memory_pages = Some(70_000));
    let run = RunRequest {
        spec: Some(large()),
    };
    let stream = RunStreamRequest {
        spec: Some(large()),
    };
    for (path, body) in [(RUN, frame(&run)), (STREAM, frame(&stream))] {
        let answer = post(&daemon.admin, path, kind, &body, &[]).await;
        assert_eq!(
            (answer.status, answer.grpc_status()),
            (200, Some("3")),
            "{answer:?}"
        );
        let reason = answer.reason();
        assert!(
            reason.contains("LIMIT_ABOVE_MAXIMUM") && reason.contains("policy.max_memory_pages")
        );
        assert!(
            answer
                .header("grpc-message")
                .unwrap()
                .contains("memory_pages")
        );
    }
    // What is no message, no frame, or no such method.
    let get = "/ringfence.v1.RunService/GetRun";
    let id = GetRunRequest {
        run_id: "no id".to_owned(),
    };
    let answer = post(&daemon.admin, get, kind, &frame(&id), &[]).await;
    assert_eq!(answer.grpc_status(), Some("3"));
    for garbage in [
        &b"\0\0\0\0\xff"[..],
        b"\0\0",
        b"garbage of some length",
        b"\0\xff\xff\xff\xff",
    ] {
        let answer = post(&daemon.admin, RUN, kind, garbage, &[]).await;
        assert_eq!(answer.status, 200);
        let status = answer.grpc_status().unwrap().to_owned();
        assert!(["3", "8"].contains(&status.as_str()), "{answer:?}");
    }
    let text = "application/grpc-web-text";
    let answer = post(&daemon.admin, RUN, text, b"not base64!", &[]).await;
    assert_eq!(answer.grpc_status(), Some("3"), "{answer:?}");
    let answer = post(&daemon.admin, "/no.such/Method", kind, &frame(&id), &[]).await;
    assert_eq!(answer.grpc_status(), Some("12"), "{answer:?}");
    // What resembles it is told what is wanted.
    let json = "application/grpc-web+json";
    let answer = post(&daemon.admin, RUN, json, b"{}", &[]).await;
    assert_eq!(answer.status, 415);
    assert!(
        answer.text.contains("application/grpc-web+proto"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn callers_are_known_as_they_are_by_grpc() {
    let (daemon, _a, _b, _folder) = two("", "", &[ADMIN]).await;
    let kind = "application/grpc-web";
    let answer = post(&daemon.admin, RUN, kind, &frame(&hello()), &[]).await;
    assert_eq!(
        (answer.status, answer.grpc_status()),
        (200, Some("16")),
        "{answer:?}"
    );
    assert!(answer.reason().contains("CREDENTIALS_INVALID"));
    let bearer = |name| format!("Bearer {}", token(name));
    let (a, b) = (bearer("a"), bearer("b"));
    let as_a = [("authorization", a.as_str())];
    let answer = post(&daemon.admin, RUN, kind, &frame(&hello()), &as_a).await;
    assert_eq!(answer.grpc_status(), Some("0"), "{answer:?}");
    let id = answer.header("ringfence-run-id").unwrap().to_owned();
    // A run is nobody else's, by whichever listener it is asked for.
    let get = "/ringfence.v1.RunService/GetRun";
    let asked = frame(&GetRunRequest { run_id: id });
    let as_b = [("authorization", b.as_str())];
    let answer = post(&daemon.admin, get, kind, &asked, &as_b).await;
    assert_eq!(answer.grpc_status(), Some("5"));
    let answer = post(&daemon.admin, get, kind, &asked, &as_a).await;
    assert_eq!(answer.grpc_status(), Some("0"));
}

#[tokio::test]
async fn pages_of_other_origins_call_nothing() {
    let daemon = Daemon::with(&[ADMIN, ("admin.cors_origins", "https://ops.example.com")]).await;
    let kind = "application/grpc-web+proto";
    for foreign in [
        [("origin", "https://evil.example")],
        [("origin", "null")],
        [("sec-fetch-site", "cross-site")],
    ] {
        let answer = post(&daemon.admin, RUN, kind, &frame(&hello()), &foreign).await;
        assert_eq!(
            (answer.status, answer.grpc_status()),
            (403, None),
            "{foreign:?}"
        );
    }
    // Nothing has run.
    assert_eq!(daemon.list(ListRunsRequest::default()).await.runs.len(), 0);
    let allowed = [("origin", "https://ops.example.com")];
    let answer = post(&daemon.admin, RUN, kind, &frame(&hello()), &allowed).await;
    assert_eq!(answer.grpc_status(), Some("0"));
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://ops.example.com")
    );
    let exposed = answer.header("access-control-expose-headers").unwrap();
    assert!(exposed.contains("grpc-status-details-bin") && exposed.contains("ringfence-run-id"));
}

#[tokio::test]
async fn a_listener_that_only_answers_questions_changes_nothing() {
    let daemon = Daemon::with(&[ADMIN, ("admin.read_only", "true")]).await;
    let kind = "application/grpc-web+proto";
    let mut refused = Vec::new();
    for method in crate::tenants::methods() {
        // It has no end of its own.
        if method.contains("/Watch") {
            continue;
        }
        let path = format!("/ringfence.v1.{method}");
        // An empty message, whatever the method takes.
        let answer = post(&daemon.admin, &path, kind, &[0; 5], &[]).await;
        if answer.grpc_status() == Some("7") && answer.reason().contains("admin.read_only") {
            refused.push(method);
        }
    }
    let changing = [
        "ExecutionService/CloseSession",
        "ExecutionService/Execute",
        "ExecutionService/ExecuteStream",
        "ModuleService/DeleteModule",
        "ModuleService/UploadModule",
        "RunService/CancelRun",
        "RunService/CancelRuns",
        "RunService/DeleteRuns",
        "RunService/Interact",
        "RunService/SendInput",
        "SandboxService/LoadModule",
        "SandboxService/Run",
        "SandboxService/RunStream",
    ];
    assert_eq!(refused, changing);
    // The gRPC listeners are as ever.
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// HTTP/1.1 leaves it to the kernel how much is on its way, and the kernel tells of what was taken in large steps.
#[tokio::test]
async fn whoever_reads_slowly_by_http1_has_not_stalled() {
    const STALL: Duration = Duration::from_secs(1);
    let daemon = Daemon::with(&[ADMIN, ("runs.stall_timeout", "1s")]).await;
    let spec = kit(&["flood", "200000000"]).timeout(PATIENCE);
    let body = frame(&RunStreamRequest { spec: Some(spec) });
    let head = format!(
        "POST {STREAM} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/grpc-web+proto\r\n\
         content-length: {}\r\n\r\n",
        daemon.admin,
        body.len()
    );
    let mut stream = TcpStream::connect(&daemon.admin).await.unwrap();
    let request = [head.as_bytes(), &body].concat();
    stream.write_all(&request).await.unwrap();
    // About 600 KiB a second.
    let mut piece = vec![0; 32 << 10];
    let begun = Instant::now();
    while begun.elapsed() < 5 * STALL {
        assert!(stream.read(&mut piece).await.unwrap() > 0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let runs = daemon.list(ListRunsRequest::default()).await.runs;
    assert_eq!(runs[0].state(), RunState::Running, "{:?}", runs[0].end);
    // The guest was held up: less is on its way than it has written.
    let written = runs[0].usage.as_ref().unwrap().stdout_bytes;
    assert!(written < 50_000_000, "{written}");
}
