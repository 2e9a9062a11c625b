//! gRPC-Web on the gRPC listeners (`server.grpc_web`): by HTTP/1.1 and by HTTP/2, beside gRPC, what browsers are refused,
//! and what is the same without it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    ListRunsRequest, Outcome, RunRequest, RunResponse, RunStreamRequest, SendInputRequest,
    StreamEvent,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::auth::{Authority, write};
use crate::grpc_web::{RUN, STREAM, WebAnswer, frame, hello, output};
use crate::harness::{Daemon, PATIENCE, SpecExt, kit, spec};
use crate::tenants::{token, two};

const WEB: (&str, &str) = ("server.grpc_web", "true");
const KIND: &str = "application/grpc-web+proto";
const NOTHING: &str = "(module (func (export \"_start\")))";
const EVIL: &str = "https://evil.example";
const OPS: &str = "https://ops.example.com";

/// The version of HTTP that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Http {
    One,
    Two,
}

const BOTH: [Http; 2] = [Http::One, Http::Two];

/// A connection by which requests of any kind are made.
enum Browser {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Browser {
    async fn to(addr: &str, version: Http) -> Self {
        Self::on(TcpStream::connect(addr).await.unwrap(), version).await
    }

    async fn on(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        version: Http,
    ) -> Self {
        let stream = TokioIo::new(stream);
        match version {
            Http::One => {
                let (sender, connection) = http1::handshake(stream).await.unwrap();
                tokio::spawn(connection);
                Self::One(sender)
            }
            Http::Two => {
                let made = http2::handshake(TokioExecutor::new(), stream).await;
                let (sender, connection) = made.unwrap();
                tokio::spawn(connection);
                Self::Two(sender)
            }
        }
    }

    /// Sends a request, and gets the head of its answer.
    async fn begin(&mut self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let answer = async {
            match self {
                Self::One(sender) => {
                    sender.ready().await.unwrap();
                    sender.send_request(request).await
                }
                Self::Two(sender) => {
                    sender.ready().await.unwrap();
                    sender.send_request(request).await
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.expect("it hangs").expect("it is answered")
    }

    /// Sends a request, and gets all of its answer.
    async fn send(&mut self, request: Request<Full<Bytes>>) -> WebAnswer {
        let kind = request.headers().get("content-type");
        let kind = kind.map_or("", |kind| kind.to_str().unwrap()).to_owned();
        let (head, body) = self.begin(request).await.into_parts();
        let headers = head.headers.iter();
        let headers = headers.map(|(name, value)| {
            let value = value.to_str().unwrap().to_owned();
            (name.as_str().to_owned(), value)
        });
        let mut answer = WebAnswer {
            status: head.status.as_u16(),
            headers: headers.collect(),
            ..WebAnswer::default()
        };
        let body = tokio::time::timeout(PATIENCE, body.collect()).await;
        let body = body.expect("it hangs").expect("the answer is whole");
        assert!(body.trailers().is_none(), "browsers cannot read them");
        answer.take(&kind, body.to_bytes().into());
        answer
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::One(sender) => sender.is_closed(),
            Self::Two(sender) => sender.is_closed(),
        }
    }

    fn version(&self) -> Http {
        match self {
            Self::One(_) => Http::One,
            Self::Two(_) => Http::Two,
        }
    }

    /// A request with `fields`, of which `host` says where it is addressed to.
    fn request(
        &self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Request<Full<Bytes>> {
        let named = fields.iter().find(|(name, _)| *name == "host");
        let host = named.map_or("localhost", |(_, host)| host);
        let mut request = match self.version() {
            Http::One => Request::builder().uri(path).header("host", host),
            Http::Two => Request::builder().uri(format!("http://{host}{path}")),
        };
        for (name, value) in fields.iter().filter(|(name, _)| *name != "host") {
            request = request.header(*name, *value);
        }
        let body = Full::new(Bytes::from(body));
        request.method(method).body(body).unwrap()
    }

    /// Calls by gRPC-Web, with more `fields`.
    async fn call(
        &mut self,
        path: &str,
        message: &impl Message,
        fields: &[(&str, &str)],
    ) -> WebAnswer {
        let fields = [&[("content-type", KIND)], fields].concat();
        let request = self.request("POST", path, &fields, frame(message));
        self.send(request).await
    }
}

#[track_caller]
fn said_hello(answer: &WebAnswer) {
    assert_eq!(
        (answer.status, answer.grpc_status()),
        (200, Some("0")),
        "{answer:?}"
    );
    let told = RunResponse::decode(answer.messages[0].as_slice()).unwrap();
    assert_eq!(told.stdout, Bytes::from("hello\n"));
    assert!(answer.header("ringfence-run-id").is_some());
}

/// How many runs there were, refused ones too.
async fn runs_of(daemon: &Daemon) -> usize {
    daemon.list(ListRunsRequest::default()).await.runs.len()
}

#[tokio::test]
async fn calls_and_streams_are_answered_by_both_versions_of_http() {
    use base64::Engine as _;
    let daemon = Daemon::with(&[WEB]).await;
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        let answer = browser.call(RUN, &hello(), &[]).await;
        said_hello(&answer);
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("access-control-allow-origin"), None);
        // One after the other on one connection, and in base64.
        let text = base64::engine::general_purpose::STANDARD.encode(frame(&hello()));
        let kind = "application/grpc-web-text+proto";
        let fields = [("content-type", kind), ("accept", kind)];
        let request = browser.request("POST", RUN, &fields, text.into_bytes());
        said_hello(&browser.send(request).await);
        let request = RunStreamRequest {
            spec: Some(kit(&["count", "100000"])),
        };
        let answer = browser.call(STREAM, &request, &[]).await;
        assert_eq!(answer.grpc_status(), Some("0"));
        let lines = output(&answer);
        assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 100_000);
    }
}

#[tokio::test]
async fn a_refusal_has_its_code_its_reason_and_its_details() {
    let daemon = Daemon::with(&[WEB]).await;
    let large = || Some(kit(&["hello"]).resources(|it| it.memory_pages = Some(70_000)));
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        let run = RunRequest { spec: large() };
        let stream = RunStreamRequest { spec: large() };
        for answer in [
            browser.call(RUN, &run, &[]).await,
            browser.call(STREAM, &stream, &[]).await,
        ] {
            assert_eq!(
                (answer.status, answer.grpc_status()),
                (200, Some("3")),
                "{answer:?}"
            );
            let reason = answer.reason();
            assert!(reason.contains("LIMIT_ABOVE_MAXIMUM"), "{reason}");
            assert!(reason.contains("policy.max_memory_pages"), "{reason}");
            let message = answer.header("grpc-message").unwrap();
            assert!(message.contains("memory_pages"), "{message}");
        }
        // What is malformed is its caller's fault, and the connection goes on.
        for garbage in [&b"\0\0\0\0\xff"[..], b"\0\0", b"\0\xff\xff\xff\xff"] {
            let kind = [("content-type", KIND)];
            let request = browser.request("POST", RUN, &kind, garbage.to_vec());
            let answer = browser.send(request).await;
            let status = answer.grpc_status().unwrap();
            assert!(["3", "8"].contains(&status), "{answer:?}");
        }
        let answer = browser.call("/no.such/Method", &hello(), &[]).await;
        assert_eq!(answer.grpc_status(), Some("12"), "{answer:?}");
        said_hello(&browser.call(RUN, &hello(), &[]).await);
    }
}

#[tokio::test]
async fn grpc_is_spoken_on_the_same_port_while_a_browser_listens() {
    let daemon = Daemon::with(&[WEB]).await;
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        let mut spec = kit(&["lines"]).timeout(Duration::from_secs(100));
        spec.open_stdin = true;
        let sent = frame(&RunStreamRequest { spec: Some(spec) });
        let request = browser.request("POST", STREAM, &[("content-type", KIND)], sent);
        let answer = browser.begin(request).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let id = answer.headers()["ringfence-run-id"].to_str().unwrap();
        // The stream is open. Meanwhile gRPC is what it ever was.
        daemon.ran(kit(&["hello"])).await.exited(0);
        let input = SendInputRequest {
            run_id: id.to_owned(),
            data: Bytes::from("a line\n"),
            eof: true,
            ..SendInputRequest::default()
        };
        daemon.runs().await.send_input(input).await.unwrap();
        let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
        let mut told = WebAnswer {
            status: 200,
            ..WebAnswer::default()
        };
        told.take(KIND, body.unwrap().unwrap().to_bytes().into());
        assert_eq!(told.grpc_status(), Some("0"), "{told:?}");
        let last = StreamEvent::decode(told.messages.last().unwrap().as_slice()).unwrap();
        assert!(matches!(last.event, Some(Event::Exit(_))), "{last:?}");
    }
}

/// The methods of HTTP that a page can have a browser use, and some that it cannot.
const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW",
];

#[tokio::test]
async fn what_a_foreign_page_may_have_made_is_refused_before_anything_runs() {
    let daemon = Daemon::with(&[WEB, ("server.cors_origins", OPS)]).await;
    let foreign = [
        ([("host", "evil.example")], "server.allowed_hosts"),
        ([("host", "10.255.255.1:50051")], "server.allowed_hosts"),
        ([("origin", EVIL)], "server.cors_origins"),
        ([("origin", "null")], "server.cors_origins"),
        ([("sec-fetch-site", "cross-site")], "server.cors_origins"),
    ];
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        for (fields, key) in foreign {
            let answer = browser.call(RUN, &hello(), &fields).await;
            assert_eq!(answer.status, 403, "{version:?} {fields:?}: {answer:?}");
            assert!(answer.text.contains(key), "{answer:?}");
            assert_eq!(answer.grpc_status(), None);
            assert_eq!(answer.header("access-control-allow-origin"), None);
            assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
            let asks = [&fields[..], &[("access-control-request-method", "POST")]].concat();
            let preflight = browser.request("OPTIONS", RUN, &asks, Vec::new());
            let answer = browser.send(preflight).await;
            assert_eq!(answer.status, 403, "{version:?} {fields:?}: {answer:?}");
            assert_eq!(answer.header("access-control-allow-methods"), None);
        }
    }
    // By HTTP/1.1 that is so whatever is asked: no gRPC can come by it.
    let mut browser = Browser::to(&daemon.addr, Http::One).await;
    for (fields, _) in foreign {
        for method in METHODS {
            for kind in ["application/grpc", "application/x-www-form-urlencoded"] {
                let fields = [&fields[..], &[("content-type", kind)]].concat();
                let request = browser.request(method, RUN, &fields, Vec::new());
                let answer = browser.send(request).await;
                assert_eq!(answer.status, 403, "{method} {fields:?}: {answer:?}");
            }
        }
    }
    assert_eq!(runs_of(&daemon).await, 0);
    // It is no page that speaks gRPC: whatever host it names is its own affair, as ever.
    let mut caller = Browser::to(&daemon.addr, Http::Two).await;
    let fields = [
        ("host", "evil.example"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("origin", EVIL),
    ];
    let answer = caller.begin(caller.request("POST", RUN, &fields, frame(&hello())));
    let body = answer.await.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn pages_of_allowed_origins_and_own_names_call_after_a_preflight() {
    let set = [
        WEB,
        ("server.cors_origins", OPS),
        ("server.allowed_hosts", "ringfence.internal"),
    ];
    let daemon = Daemon::with(&set).await;
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        let before = runs_of(&daemon).await;
        let asks = [
            ("origin", OPS),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,x-grpc-web"),
        ];
        let preflight = browser.request("OPTIONS", RUN, &asks, Vec::new());
        let answer = browser.send(preflight).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some(OPS));
        let methods = answer.header("access-control-allow-methods");
        assert_eq!(methods, Some("GET, POST"));
        let headers = answer.header("access-control-allow-headers").unwrap();
        assert!(headers.contains("x-grpc-web") && headers.contains("authorization"));
        assert_eq!(answer.header("vary"), Some("origin"));
        assert_eq!(runs_of(&daemon).await, before);
        let answer = browser.call(RUN, &hello(), &[("origin", OPS)]).await;
        said_hello(&answer);
        assert_eq!(answer.header("access-control-allow-origin"), Some(OPS));
        let exposed = answer.header("access-control-expose-headers").unwrap();
        assert!(exposed.contains("grpc-status-details-bin"), "{exposed}");
        // Names of this host, and pages of its own.
        for fields in [
            &[("host", daemon.addr.as_str())][..],
            &[("host", "ringfence.internal:1")],
            &[("host", "localhost:1"), ("origin", "http://localhost:1")],
            &[("sec-fetch-site", "same-origin")],
        ] {
            said_hello(&browser.call(RUN, &hello(), fields).await);
        }
    }
}

#[tokio::test]
async fn callers_are_known_as_they_are_by_grpc() {
    let (daemon, _a, _b, _folder) = two("", "", &[WEB]).await;
    let bearer = format!("Bearer {}", token("a"));
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        for fields in [&[][..], &[("authorization", "Bearer guess")]] {
            let answer = browser.call(RUN, &hello(), fields).await;
            assert_eq!(
                (answer.status, answer.grpc_status()),
                (200, Some("16")),
                "{answer:?}"
            );
            assert!(answer.reason().contains("CREDENTIALS_INVALID"));
        }
        let as_a = [("authorization", bearer.as_str())];
        said_hello(&browser.call(RUN, &hello(), &as_a).await);
    }
}

#[tokio::test]
async fn what_is_no_call_is_told_so_by_http_and_nothing_runs() {
    let daemon = Daemon::with(&[WEB]).await;
    let web = "application/grpc-web, application/grpc-web+proto, application/grpc-web-text, application/grpc-web-text+proto";
    let both = format!("application/grpc, application/grpc+proto, {web}");
    for (version, accepted) in [(Http::One, web), (Http::Two, both.as_str())] {
        let mut browser = Browser::to(&daemon.addr, version).await;
        for method in METHODS.into_iter().filter(|method| *method != "POST") {
            let fields = [("content-type", KIND)];
            let request = browser.request(method, RUN, &fields, Vec::new());
            let answer = browser.send(request).await;
            assert_eq!(answer.status, 405, "{version:?} {method}: {answer:?}");
            assert_eq!(answer.header("allow"), Some("POST"));
            let text = &answer.text;
            assert!(
                method == "HEAD" || text.contains(method) && text.contains(KIND),
                "{text}"
            );
        }
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json",
            "",
        ] {
            let fields = [("content-type", kind)];
            let request = browser.request("POST", RUN, &fields, frame(&hello()));
            let answer = browser.send(request).await;
            assert_eq!(answer.status, 415, "{version:?} {kind}: {answer:?}");
            assert_eq!(answer.header("accept"), Some(accepted));
            assert!(answer.text.contains(KIND), "{answer:?}");
            let plain = "text/plain; charset=utf-8";
            assert_eq!(answer.header("content-type"), Some(plain));
        }
        // What resembles gRPC-Web.
        for kind in ["application/grpc-web+json", "application/grpc-webs"] {
            let fields = [("content-type", kind)];
            let request = browser.request("POST", RUN, &fields, frame(&hello()));
            let answer = browser.send(request).await;
            assert_eq!(answer.status, 415, "{version:?} {kind}: {answer:?}");
            assert_eq!(answer.header("accept"), Some(web));
        }
    }
    // gRPC has no trailers by HTTP/1.1.
    let mut browser = Browser::to(&daemon.addr, Http::One).await;
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    let answer = browser.request("POST", RUN, &fields, frame(&hello()));
    let answer = browser.send(answer).await;
    assert_eq!(answer.status, 415, "{answer:?}");
    assert!(answer.text.contains("gRPC itself needs HTTP/2"));
    assert_eq!(runs_of(&daemon).await, 0);
}

/// Sends bytes and gets all that is answered, until the daemon closes the connection.
async fn answer(addr: &str, said: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    read.expect("it hangs").unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn without_the_setting_a_listener_speaks_grpc_alone() {
    let daemon = Daemon::start().await;
    let head = format!("POST {RUN} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {KIND}\r\n\r\n");
    let told = answer(&daemon.addr, head.as_bytes()).await;
    let first = told.lines().next();
    assert_eq!(first, Some("HTTP/1.1 505 HTTP Version Not Supported"));
    let mut browser = Browser::to(&daemon.addr, Http::Two).await;
    let told = browser.call(RUN, &hello(), &[]).await;
    assert_eq!(told.status, 415);
    assert!(told.text.contains("gRPC-Web and JSON are not offered here"));
    let asks = [("origin", OPS), ("access-control-request-method", "POST")];
    let preflight = browser.request("OPTIONS", RUN, &asks, Vec::new());
    assert_eq!(browser.send(preflight).await.status, 405);
    assert_eq!(runs_of(&daemon).await, 0);
}

/// What is refused before its body was read leaves the connection to the calls after it.
#[tokio::test]
async fn a_refused_call_leaves_its_connection_to_others() {
    let (daemon, _a, _b, _folder) = two("", "", &[WEB]).await;
    let bearer = format!("Bearer {}", token("a"));
    let large = |bytes: usize| {
        let spec = Some(spec(NOTHING).stdin(vec![b'x'; bytes]));
        frame(&RunRequest { spec })
    };
    let refused = async |browser: &mut Browser, bytes: usize| {
        let message = large(bytes);
        let length = message.len().to_string();
        let fields = [("content-type", KIND), ("content-length", length.as_str())];
        let request = browser.request("POST", RUN, &fields, message);
        let answer = browser.send(request).await;
        assert_eq!(answer.grpc_status(), Some("16"), "{answer:?}");
    };
    // By HTTP/1.1 the answer to more than a socket takes at once would be lost with the connection.
    // Each has its own, since this client does not always go on after an answer that came before
    // its request was written.
    for _ in 0..3 {
        let mut browser = Browser::to(&daemon.addr, Http::One).await;
        refused(&mut browser, 8 << 20).await;
    }
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        for _ in 0..3 {
            refused(&mut browser, 60 << 10).await;
        }
        let as_a = [("authorization", bearer.as_str())];
        said_hello(&browser.call(RUN, &hello(), &as_a).await);
    }
}

#[tokio::test]
async fn a_browser_that_leaves_ends_its_run() {
    let daemon = Daemon::with(&[WEB]).await;
    for version in BOTH {
        let mut browser = Browser::to(&daemon.addr, version).await;
        let spec = kit(&["spin"]).timeout(Duration::from_secs(100));
        let sent = frame(&RunStreamRequest { spec: Some(spec) });
        let request = browser.request("POST", STREAM, &[("content-type", KIND)], sent);
        let answer = browser.begin(request).await;
        let id = answer.headers()["ringfence-run-id"].to_str().unwrap();
        let id = id.to_owned();
        drop((answer, browser));
        let ended = |run: &ringfence::api::proto::RunInfo| run.end.is_some();
        let run = daemon.until_run(&id, ended).await;
        let Some(ringfence::api::proto::run_info::End::Result(result)) = run.end else {
            panic!("{run:?}");
        };
        assert_eq!(result.outcome(), Outcome::Cancelled);
    }
}

#[tokio::test]
async fn a_drain_ends_connections_of_both_versions() {
    for version in BOTH {
        let mut daemon = Daemon::with(&[WEB, ("server.drain_grace", "60s")]).await;
        // One that is idle between two calls, one that said nothing yet, and one whose run goes on.
        let mut idle = Browser::to(&daemon.addr, version).await;
        said_hello(&idle.call(RUN, &hello(), &[]).await);
        let mut silent = TcpStream::connect(&daemon.addr).await.unwrap();
        let mut busy = Browser::to(&daemon.addr, version).await;
        let mut spec = kit(&["lines"]).timeout(Duration::from_secs(100));
        spec.open_stdin = true;
        let sent = frame(&RunStreamRequest { spec: Some(spec) });
        let request = busy.request("POST", STREAM, &[("content-type", KIND)], sent);
        let answer = busy.begin(request).await;
        let id = answer.headers()["ringfence-run-id"].to_str().unwrap();
        let input = SendInputRequest {
            run_id: id.to_owned(),
            data: Bytes::from("the last line\n"),
            eof: true,
            ..SendInputRequest::default()
        };
        let mut runs = daemon.runs().await;
        daemon.drain();
        // New runs are refused once it drains, and what runs is let finish.
        let begun = Instant::now();
        loop {
            let answer = idle.call(RUN, &hello(), &[]).await;
            if answer.grpc_status() == Some("14") {
                assert!(answer.reason().contains("SHUTTING_DOWN"), "{answer:?}");
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not drain");
        }
        runs.send_input(input).await.unwrap();
        drop(runs);
        let body = tokio::time::timeout(PATIENCE, answer.into_body().collect()).await;
        let mut told = WebAnswer {
            status: 200,
            ..WebAnswer::default()
        };
        told.take(KIND, body.unwrap().unwrap().to_bytes().into());
        assert_eq!(told.grpc_status(), Some("0"), "{told:?}");
        // None of the connections keeps it: they are closed, not waited for.
        let ended = tokio::time::timeout(PATIENCE, daemon.ended()).await;
        ended.expect("a connection keeps it").unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap_or(0), 0);
        let closed = async {
            while !idle.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        let closed = tokio::time::timeout(PATIENCE, closed).await;
        closed.expect("it is closed");
    }
}

/// When a drain is over, what is left of answers has 900 ms to go out. No idle connection uses them up.
#[tokio::test]
async fn a_drain_waits_for_no_idle_connection() {
    for version in BOTH {
        let mut shortest = Duration::MAX;
        // Another process may have the processor once.
        for _ in 0..5 {
            let mut daemon = Daemon::with(&[WEB]).await;
            let mut idle = Browser::to(&daemon.addr, version).await;
            said_hello(&idle.call(RUN, &hello(), &[]).await);
            let begun = Instant::now();
            daemon.drain();
            daemon.ended().await.unwrap();
            shortest = shortest.min(begun.elapsed());
            if shortest < Duration::from_millis(800) {
                break;
            }
        }
        assert!(shortest < Duration::from_millis(800), "{shortest:?}");
    }
}

/// A client of TLS that offers `protocols` and presents a certificate, or none.
fn connector(
    authority: &Authority,
    identity: Option<&(String, String)>,
    protocols: &[&str],
) -> tokio_rustls::TlsConnector {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls;
    let certificate = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate(&authority.pem())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((cert, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config
                .with_client_auth_cert(vec![certificate(cert)], key)
                .unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let protocols = protocols.iter().map(|it| it.as_bytes().to_vec());
    config.alpn_protocols = protocols.collect();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn with_tls_either_version_is_negotiated_and_certificates_are_required_as_ever() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("a");
    let (cert, key) = authority.issue(&["localhost"]);
    let client = authority.issue(&["client"]);
    let file = |name: &str, text: &str| write(&folder, name, text).display().to_string();
    let (cert, key) = (file("cert.pem", &cert), file("key.pem", &key));
    let ca = file("ca.pem", &authority.pem());
    // The harness is connected by the socket, so that TLS can be what is tested.
    let listen = format!(
        "[\"unix:{}\", \"127.0.0.1:0\"]",
        folder.path().join("s").display()
    );
    let set = [
        WEB,
        ("listen", listen.as_str()),
        ("tls.cert", cert.as_str()),
        ("tls.key", key.as_str()),
        ("tls.client_ca", ca.as_str()),
    ];
    let daemon = Daemon::with(&set).await;
    let addr = &daemon.addrs[1];
    let connect = async |identity, protocols: &[&str]| {
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = "localhost".try_into().unwrap();
        let connector = connector(&authority, identity, protocols);
        connector.connect(name, stream).await
    };
    let both = ["h2", "http/1.1"];
    for (offered, version) in [
        (&["http/1.1"][..], Http::One),
        (&["h2"], Http::Two),
        (&both, Http::Two),
        // A client that says nothing of it.
        (&[], Http::One),
    ] {
        let stream = connect(Some(&client), offered).await.unwrap();
        let chosen = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let expected = match (offered, version) {
            ([], _) => None,
            (_, Http::One) => Some(b"http/1.1".to_vec()),
            (_, Http::Two) => Some(b"h2".to_vec()),
        };
        assert_eq!(chosen, expected, "{offered:?}");
        let mut browser = Browser::on(stream, version).await;
        said_hello(&browser.call(RUN, &hello(), &[]).await);
        let answer = browser.call(RUN, &hello(), &[("origin", EVIL)]).await;
        assert_eq!(answer.status, 403, "{answer:?}");
    }
    // Where clients have to present a certificate, a handshake without one fails (in TLS 1.3, its first read).
    for offered in [&["http/1.1"][..], &["h2"], &both] {
        let shaken = async {
            let mut stream = connect(None, offered).await?;
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n")
                .await?;
            stream.read(&mut [0; 64]).await
        };
        let told = tokio::time::timeout(PATIENCE, shaken)
            .await
            .expect("it hangs");
        let error = told.expect_err("it has no certificate");
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
    }
}

#[tokio::test]
async fn over_a_unix_socket_no_host_is_foreign() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("s");
    let daemon = Daemon::listening(&format!("unix:{}", path.display()), &[WEB]).await;
    for version in BOTH {
        let stream = UnixStream::connect(&path).await.unwrap();
        let mut browser = Browser::on(stream, version).await;
        let answer = browser.call(RUN, &hello(), &[("host", "made.up")]).await;
        said_hello(&answer);
        // What makes HTTP/2 of a path is not looked for in HTTP/1.1.
        let long = format!("/{}", "%2F".repeat(200));
        let answer = browser.call(&long, &hello(), &[("host", "made.up")]).await;
        assert_eq!(answer.grpc_status(), Some("12"), "{answer:?}");
        let answer = browser.call(RUN, &hello(), &[("origin", EVIL)]).await;
        assert_eq!(answer.status, 403, "{answer:?}");
    }
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// By HTTP/1.1 nobody holds a connection longer than by HTTP/2.
#[tokio::test]
async fn connections_by_http1_that_do_not_authenticate_are_closed_in_time() {
    let set = [
        WEB,
        ("server.handshake_timeout", "200ms"),
        ("server.first_call_timeout", "1s"),
    ];
    let (daemon, _a, _b, _folder) = two("", "", &set).await;
    let bearer = format!("Bearer {}", token("a"));
    let mut known = Browser::to(&daemon.addr, Http::One).await;
    let as_a = [("authorization", bearer.as_str())];
    said_hello(&known.call(RUN, &hello(), &as_a).await);
    // Nothing, half a method, half a head, a head without its body, and calls of nobody that are all answered.
    let head = format!(
        "POST {RUN} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {KIND}\r\ncontent-length: 0\r\n\r\n"
    );
    let get = "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for said in ["", "POS", &head[..40], &head, &head.repeat(3), get] {
        let begun = Instant::now();
        let told = answer(&daemon.addr, said.as_bytes()).await;
        let took = begun.elapsed();
        assert_eq!(told.is_empty(), !said.ends_with("\r\n\r\n"), "{told}");
        let least = Duration::from_millis(if said.len() < 4 { 150 } else { 900 });
        assert!(took >= least, "{said:?}: after {took:?}");
    }
    // Whoever authenticated keeps its connection.
    said_hello(&known.call(RUN, &hello(), &as_a).await);
}
