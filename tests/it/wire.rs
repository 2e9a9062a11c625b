//! The wire: listeners, caps, malformed messages, health, reflection.

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use ringfence::api::proto::{HealthRequest, RunRequest, ServingStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::{Code, Status};

use crate::harness::{Daemon, Refused, SpecExt, connect, kit, spec};

#[tokio::test]
async fn health_tells_what_runs_here() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client.clone();
    let health = loop {
        let health = client.health(HealthRequest {}).await.unwrap().into_inner();
        if health.status() == ServingStatus::Serving {
            break health;
        }
        assert_eq!(health.status(), ServingStatus::NotServing);
    };
    let runtime = health.runtime.unwrap();
    assert_eq!(runtime.name, "wasmtime");
    // The version that Cargo.lock holds.
    let lock = std::fs::read_to_string(crate::guests::root().join("Cargo.lock")).unwrap();
    assert!(lock.contains(&format!(
        "name = \"wasmtime\"\nversion = \"{}\"",
        runtime.version
    )));
    for feature in [
        "wasi_snapshot_preview1",
        "memory_limits",
        "fuel",
        "compilation_cache",
        "context_cancellation",
        "streaming",
    ] {
        assert!(runtime.features.iter().any(|f| f == feature), "{feature}");
    }
    assert_eq!(health.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (health.instance.as_str(), health.run_capacity),
        ("test", 32)
    );
    assert_eq!((health.runs_in_flight, health.runs_queued), (0, 0));
    assert!(health.pool_mode.starts_with("pooled") || health.pool_mode == "on-demand");
    let mode: Vec<_> = health.compile_mode.split('+').collect();
    assert_eq!(mode[0], "child");
    assert!(
        mode[1..]
            .iter()
            .all(|wall| ["landlock", "landlock-partial", "seccomp"].contains(wall)),
        "{mode:?}"
    );
    assert_eq!(health.hardening, "none");
    assert!(health.uptime.is_some());
}

#[tokio::test]
async fn a_unix_socket_serves_the_same_with_its_permissions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ringfence.sock");
    let mut daemon = Daemon::listening(&format!("unix:{}", path.display()), &[]).await;
    assert_eq!(daemon.addr, format!("unix:{}", path.display()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(daemon.ran(kit(&["hello"])).await.exited(0).out(), "hello\n");
    let story = crate::harness::read(daemon.stream(kit(&["both", "10"])).await.unwrap()).await;
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
    daemon.drain();
    daemon.ended().await.unwrap();
    assert!(!path.exists(), "it removes its socket");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let listen = format!("unix:{}", path.display());
    // A socket that nobody answers on, as a killed daemon leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let daemon = Daemon::listening(&listen, &[("server.socket_mode", "\"0600\"")]).await;
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let why = bind_error(&listen).await;
    assert!(why.contains("another process answers"), "{why}");
    daemon.ran(kit(&["hello"])).await.exited(0);
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let why = bind_error(&format!("unix:{}", file.display())).await;
    assert!(why.contains("no socket"), "{why}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

async fn bind_error(listen: &str) -> String {
    let mut overrides = ringfence::config::Overrides::default();
    overrides
        .set
        .push(("listen".to_owned(), format!("[{listen:?}]")));
    let (config, _) = ringfence::app::load_config(&overrides).unwrap();
    match ringfence::app::build(&config, crate::harness::program()).await {
        Ok(_) => panic!("it binds"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn an_address_that_is_taken_says_so() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let why = bind_error(&addr).await;
    assert!(why.contains(&addr), "{why}");
}

/// Sends a body of one's own making to a method, and returns the status.
async fn raw(daemon: &Daemon, method: &str, body: impl Into<Bytes>) -> Status {
    raw_body(daemon, method, Full::new(body.into())).await
}

async fn raw_body<B>(daemon: &Daemon, method: &str, body: B) -> Status
where
    B: http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    raw_call(daemon, method, ("x-nothing", ""), body).await
}

async fn raw_call<B>(daemon: &Daemon, method: &str, header: (&str, &str), body: B) -> Status
where
    B: http_body::Body<Data = Bytes, Error = std::convert::Infallible> + Send + 'static,
{
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr)).unwrap();
    let mut channel = channel.connect().await.unwrap();
    let request = http::Request::post(format!(
        "http://{}/ringfence.v1.SandboxService/{method}",
        daemon.addr
    ))
    .header("content-type", "application/grpc")
    .header("te", "trailers")
    .header(header.0, header.1)
    .body(tonic::body::Body::new(body.map_err(|never| match never {})))
    .unwrap();
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut channel, cx))
        .await
        .unwrap();
    let response = tower_service::Service::call(&mut channel, request)
        .await
        .unwrap();
    let (parts, body) = response.into_parts();
    if let Some(status) = Status::from_header_map(&parts.headers) {
        return status;
    }
    let trailers = body
        .collect()
        .await
        .unwrap()
        .trailers()
        .cloned()
        .unwrap_or_default();
    Status::from_header_map(&trailers).expect("a status")
}

fn framed(flag: u8, length: u32, message: &[u8]) -> Vec<u8> {
    [&[flag], &length.to_be_bytes()[..], message].concat()
}

cases!(malformed_requests_are_the_callers_fault:
    an_empty_body_is_malformed(Vec::new()),
    half_a_prefix_is_malformed(vec![0, 0, 0]),
    half_a_message_is_malformed(framed(0, 100, b"abc")),
    a_compressed_message_is_malformed(framed(1, 3, b"abc")),
    an_unknown_flag_is_malformed(framed(7, 3, b"abc")),
    what_is_not_protobuf_is_malformed(framed(0, 5, b"\xff\xff\xff\xff\xff")),
    two_messages_are_malformed([framed(0, 2, b"\x0a\x00"), framed(0, 2, b"\x0a\x00")].concat()),
    a_wrong_wire_type_is_malformed(framed(0, 4, b"\x08\x01\x08\x01")),
);
async fn malformed_requests_are_the_callers_fault(body: Vec<u8>) {
    let daemon = Daemon::start().await;
    let mut told = Vec::new();
    for method in ["Run", "RunStream", "LoadModule"] {
        let status = raw(&daemon, method, body.clone()).await;
        Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
        // Each message by its own name.
        told.push(status.message().replace("RunStreamRequest", "RunRequest"));
    }
    // Whichever way a method takes to its run, its caller is told the same.
    assert_eq!(told[0], told[1]);
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// Clients that compress send what they sent again, uncompressed, where they are told so in gRPC's own terms.
#[tokio::test]
async fn an_encoding_that_is_not_offered_is_unimplemented_whatever_the_method() {
    let daemon = Daemon::start().await;
    for (encoding, code) in [
        ("gzip", Code::Unimplemented),
        ("zstd", Code::Unimplemented),
        ("nonsense", Code::Unimplemented),
        ("identity", Code::InvalidArgument),
    ] {
        let mut told = Vec::new();
        for method in ["Run", "RunStream", "LoadModule"] {
            let body = Full::new(Bytes::from(framed(1, 3, b"abc")));
            let status = raw_call(&daemon, method, ("grpc-encoding", encoding), body).await;
            assert_eq!(status.code(), code, "{encoding} {method}: {status:?}");
            told.push(status.message().to_owned());
        }
        assert!(told.iter().all(|it| *it == told[0]), "{told:?}");
    }
}

#[tokio::test]
async fn text_that_is_no_utf8_is_malformed() {
    let daemon = Daemon::start().await;
    // The entry point of a spec, and the name of a module.
    for (method, message) in [
        ("Run", &b"\x0a\x04\x1a\x02\xff\xfe"[..]),
        ("RunStream", b"\x0a\x04\x1a\x02\xff\xfe"),
        ("LoadModule", b"\x12\x02\xff\xfe"),
    ] {
        let length = u32::try_from(message.len()).unwrap();
        let status = raw(&daemon, method, framed(0, length, message)).await;
        Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
    }
}

#[tokio::test]
async fn messages_that_are_all_entries_are_refused_before_they_are_decoded() {
    let daemon = Daemon::start().await;
    // Two million empty entries: four megabytes that would become a hundred.
    let nested = |tag: u8, inner: &[u8]| [&[tag][..], &varint(inner.len()), inner].concat();
    let mounts = nested(0x0a, &[0x42, 0].repeat(2_000_000));
    let functions = nested(0x0a, &nested(0x52, &[0x12, 0].repeat(2_000_000)));
    for (method, message) in [
        ("Run", mounts),
        ("RunStream", functions),
        ("LoadModule", [0x22, 0].repeat(2_000_000)),
    ] {
        let length = u32::try_from(message.len()).unwrap();
        let status = raw(&daemon, method, framed(0, length, &message)).await;
        let refused = Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
        assert!(
            refused.message.contains("400000"),
            "{method}: {}",
            refused.message
        );
    }
}

fn varint(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
        n >>= 7;
    }
    bytes.push(u8::try_from(n).unwrap());
    bytes
}

#[tokio::test]
async fn a_request_whose_rest_does_not_come_gives_back_what_it_holds() {
    let daemon = Daemon::with(&[
        ("server.request_stall", "300ms"),
        ("server.inflight_request_bytes", "5MiB"),
        ("server.max_message", "4700KiB"),
        ("compile.max_module", "4700KiB"),
    ])
    .await;
    // 4 MiB of a message that is said to be 4.5, and then nothing.
    let body = framed(0, 4_600 << 10, &vec![0; 4 << 20]);
    let endless = tokio_stream::StreamExt::chain(
        tokio_stream::once(Ok::<_, std::convert::Infallible>(http_body::Frame::data(
            Bytes::from(body),
        ))),
        tokio_stream::pending(),
    );
    let status = raw_body(&daemon, "Run", http_body_util::StreamBody::new(endless)).await;
    let refused = Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
    assert!(refused.message.contains("server.request_stall"));
    daemon
        .ran(
            kit(&["echo"])
                .stdin(vec![0; 4 << 20])
                .resources(|r| r.output_limit = Some(8 << 20)),
        )
        .await
        .exited(0);
}

#[tokio::test]
async fn messages_are_capped_by_method() {
    let daemon = Daemon::with(&[
        ("server.max_message", "5MiB"),
        ("policy.max_stdin", "64KiB"),
        ("compile.max_module", "8MiB"),
    ])
    .await;
    let cap = 5 << 20;
    // The frame is refused by its prefix, before its bytes come.
    let status = raw(&daemon, "Run", framed(0, cap + 1, b"")).await;
    Refused::new(&status)
        .is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
        .with("asked", cap + 1)
        .with("allowed", cap)
        .with("limit", "server.max_message");
    // At the cap a message is looked at: this one ends too soon.
    let status = raw(&daemon, "Run", framed(0, cap, b"")).await;
    Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
    let padded = |bytes: usize| {
        format!(
            "(module (func (export \"_start\"))){}",
            " ".repeat(bytes - 33)
        )
    };
    daemon.loaded(padded(6 << 20)).await;
    let status = daemon.run(spec(padded(6 << 20))).await.unwrap_err();
    Refused::new(&status).is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn a_message_of_65_mib_is_refused_and_the_connection_goes_on() {
    let daemon = Daemon::start().await;
    let status = daemon.run(spec(vec![0; 65 << 20])).await.unwrap_err();
    Refused::new(&status).is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    // Each is told by what it is, not by what it is over.
    for size in [65 << 20, 70 << 20] {
        let message = crate::harness::load(vec![0; size]);
        let length = prost::Message::encoded_len(&message);
        let status = daemon.client.clone().load_module(message).await;
        let refused = Refused::new(&status.unwrap_err())
            .is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE")
            .with("asked", length)
            .with("limit", "compile.max_module");
        for part in [&length.to_string(), "compile.max_module"] {
            assert!(refused.message.contains(part), "{}", refused.message);
        }
    }
    daemon.ran(kit(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn request_bytes_in_flight_are_bounded_and_given_back() {
    let daemon = Daemon::with(&[
        ("server.inflight_request_bytes", "5MiB"),
        ("server.max_message", "1MiB"),
        ("policy.max_stdin", "720KiB"),
        ("compile.max_module", "4MiB"),
    ])
    .await;
    let held = || {
        kit(&["spin", "x"])
            .stdin(vec![0; 700 << 10])
            .timeout(std::time::Duration::from_secs(60))
    };
    let mut streams = Vec::new();
    let refused = loop {
        match daemon.stream(held()).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break Refused::new(&status),
        }
        assert!(streams.len() < 20, "7 or so of these fit 5 MiB");
    };
    assert!(refused.is(Code::ResourceExhausted, "QUEUE_FULL").retry);
    assert!(streams.len() >= 4, "{}", streams.len());
    drop(streams);
    crate::harness::until_idle(&daemon).await;
    for _ in 0..20 {
        let run = kit(&["echo"]).stdin(vec![b'a'; 700 << 10]);
        assert_eq!(daemon.ran(run).await.exited(0).stdout.len(), 700 << 10);
    }
}

#[tokio::test]
async fn unknown_methods_are_unimplemented() {
    let daemon = Daemon::start().await;
    let status = raw(&daemon, "Nothing", framed(0, 0, b"")).await;
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_malformed_deadline_is_refused() {
    let daemon = Daemon::start().await;
    for bad in ["", "5", "S", "123456789S", "1x", "-1S"] {
        let mut request = tonic::Request::new(RunRequest {
            spec: Some(kit(&["hello"])),
        });
        request
            .metadata_mut()
            .insert("grpc-timeout", bad.parse().unwrap());
        let status = daemon.client.clone().run(request).await.unwrap_err();
        Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
    }
}

#[tokio::test]
async fn connections_are_capped_and_silent_ones_closed() {
    let daemon = Daemon::with(&[
        ("server.max_connections", "2"),
        ("server.handshake_timeout", "200ms"),
    ])
    .await;
    // The harness holds one.
    let held = connect(&daemon.addr).await;
    held.clone().health(HealthRequest {}).await.unwrap();
    let mut over = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
    let mut byte = [0; 64];
    assert_eq!(over.read(&mut byte).await.unwrap_or(0), 0, "closed at once");
    drop(held);
    let mut silent = loop {
        let mut silent = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
        // It is greeted once the other's place is free.
        if silent.read(&mut byte).await.unwrap_or(0) > 0 {
            break silent;
        }
    };
    while silent.read(&mut byte).await.unwrap_or(0) > 0 {}
    // One that says a little and then nothing is no better.
    let mut slow = loop {
        let mut slow = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
        if slow.write_all(b"PRI * HTTP").await.is_ok()
            && slow.peek(&mut byte).await.unwrap_or(0) > 0
        {
            break slow;
        }
    };
    while slow.read(&mut byte).await.unwrap_or(0) > 0 {}
    // Its place is free again.
    let mut again = loop {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr)).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            let mut client =
                ringfence::api::proto::sandbox_service_client::SandboxServiceClient::new(channel);
            if client.health(HealthRequest {}).await.is_ok() {
                break client;
            }
        }
    };
    again.health(HealthRequest {}).await.unwrap();
    daemon.ran(kit(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn connections_of_one_address_are_capped() {
    let daemon = Daemon::with(&[("server.max_connections_per_peer", "3")]).await;
    let mut byte = [0; 64];
    let mut held = Vec::new();
    // The harness holds one.
    for _ in 0..2 {
        let mut client = connect(&daemon.addr).await;
        client.health(HealthRequest {}).await.unwrap();
        held.push(client);
    }
    let mut over = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
    assert_eq!(over.read(&mut byte).await.unwrap_or(0), 0, "closed at once");
    // Another address has places of its own.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let other = socket.connect(daemon.addr.parse().unwrap()).await.unwrap();
    let mut other = Some(hyper_util::rt::TokioIo::new(other));
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint
        .connect_with_connector(tower::service_fn(move |_| {
            let other = other.take().ok_or(std::io::ErrorKind::NotConnected);
            async move { other.map_err(std::io::Error::from) }
        }))
        .await
        .unwrap();
    let mut client =
        ringfence::api::proto::sandbox_service_client::SandboxServiceClient::new(channel);
    client.health(HealthRequest {}).await.unwrap();
    for client in &mut held {
        client.health(HealthRequest {}).await.unwrap();
    }
}

/// Whoever connects when no descriptor is left is told so by being closed, and the daemon goes on.
#[tokio::test]
async fn without_descriptors_connections_are_closed_and_later_ones_served() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let daemon = crate::process::Served::start(&[]);
    let pid = Pid::from_raw(i32::try_from(daemon.child.id()).unwrap());
    let limit = |descriptors: u64| {
        let to = Rlimit {
            current: Some(descriptors),
            maximum: Some(4096),
        };
        prlimit(pid, Resource::Nofile, to).unwrap();
    };
    connect(&daemon.addr)
        .await
        .health(HealthRequest {})
        .await
        .unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", daemon.child.id())).unwrap();
    limit(open.count() as u64 + 4);
    let mut held = Vec::new();
    let mut closed = 0;
    while closed < 3 {
        assert!(held.len() < 1000, "none is ever closed");
        let mut stream = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
        let mut byte = [0; 64];
        // One that is taken is greeted; one for which there is no descriptor ends.
        let told = tokio::time::timeout(crate::harness::PATIENCE, async {
            stream
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await?;
            stream.read(&mut byte).await
        });
        match told.await.expect("it is neither taken nor closed") {
            Ok(n) if n > 0 => held.push(stream),
            Ok(_) | Err(_) => closed += 1,
        }
    }
    drop(held);
    limit(4096);
    // One that came at that moment may still be closed.
    let start = std::time::Instant::now();
    loop {
        let endpoint =
            tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr)).unwrap();
        if let Ok(channel) = endpoint.connect().await {
            let mut client =
                ringfence::api::proto::sandbox_service_client::SandboxServiceClient::new(channel);
            if client.health(HealthRequest {}).await.is_ok() {
                break;
            }
        }
        assert!(
            start.elapsed() < crate::harness::PATIENCE,
            "nobody is served"
        );
    }
}

#[tokio::test]
async fn requests_may_be_limited_to_hosts_that_they_are_addressed_to() {
    let daemon = Daemon::with(&[("server.allowed_authorities", "[\"127.0.0.1\"]")]).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr));
    let origin = http::Uri::from_static("http://rebound.example:50051");
    let channel = endpoint.unwrap().origin(origin).connect().await.unwrap();
    let mut client =
        ringfence::api::proto::sandbox_service_client::SandboxServiceClient::new(channel);
    let refused = client.health(HealthRequest {}).await.unwrap_err();
    Refused::new(&refused).is(Code::PermissionDenied, "FORBIDDEN");
}

#[tokio::test]
async fn reflection_can_be_turned_off() {
    let daemon = Daemon::with(&[("server.reflection", "false")]).await;
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut client =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let request = tonic_reflection::pb::v1::ServerReflectionRequest::default();
    let status = client
        .server_reflection_info(tokio_stream::once(request))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}

#[tokio::test]
async fn many_connections_see_one_daemon() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let (addr, digest) = (daemon.addr.clone(), digest.clone());
            tokio::spawn(async move {
                let mut client = connect(&addr).await;
                let spec = crate::harness::by_digest(&digest).args(&["kit", "hello"]);
                client.run(RunRequest { spec: Some(spec) }).await
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().into_inner().stdout, "hello\n");
    }
}
