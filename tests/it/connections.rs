//! Connections: those that never authenticate keep nobody out and are closed in time, each listener and each peer has its
//! share, what one call leaves unread holds up no other, and who shows no credential fills no log.

use std::io::{BufRead, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::{
    CancelRunRequest, HealthRequest, InteractRequest, ListRunsRequest, RunRequest, StreamEvent,
    UploadModuleRequest, upload_module_request,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::frames::{Frames, HEAD, PREFACE, Tally, block, flag, kind, message, stream};
use crate::harness::{
    Client, Daemon, Modules, PATIENCE, Ran, Refused, Runs, SpecExt, by_digest, kit, load, told_id,
};
use crate::process::Served;
use crate::tenants::{Tenant, token, tokens_file};

const HEALTH: &str = "/ringfence.v1.SandboxService/Health";
const LIST: &str = "/ringfence.v1.RunService/ListRuns";
const NOTHING: &str = "(module (func (export \"_start\")))";
/// Connections that the daemon may have in these tests.
const PLACES: usize = 64;
/// Of those, what is kept for peers without any.
const RESERVED: usize = PLACES / 8;

/// What a connection that never authenticates does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Attack {
    /// It does not even greet.
    Mute,
    /// It greets, and answers pings.
    Silent,
    /// It asks for the health that is open to all, again and again.
    Probes,
    /// It calls with a token that is nobody's, again and again.
    Guesses,
    /// It calls without any credential, again and again.
    Calls,
}

impl Attack {
    fn call(self) -> Option<Vec<u8>> {
        let fields = |path, authorization: Option<&str>| {
            let mut fields = vec![
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", "localhost"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ];
            fields.extend(authorization.map(|value| ("authorization", value)));
            block(&fields)
        };
        match self {
            Self::Mute | Self::Silent => None,
            Self::Probes => Some(fields(HEALTH, None)),
            Self::Guesses => Some(fields(LIST, Some("Bearer nobodys"))),
            Self::Calls => Some(fields(LIST, None)),
        }
    }
}

/// What an attacker has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// It was greeted.
    greeted: bool,
    pings: usize,
    answers: usize,
    closed: bool,
}

/// A connection that never authenticates, and goes on until the daemon closes it.
struct Attacker(
    watch::Receiver<Seen>,
    #[expect(dead_code, reason = "ends it when it is dropped")] JoinSet<()>,
);

impl Attacker {
    fn on(
        connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        attack: Attack,
    ) -> Self {
        let (tell, seen) = watch::channel(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // An end and an error are the same to it.
            let _ = go_on(connection, attack, &tell).await;
            tell.send_modify(|seen| seen.closed = true);
        });
        Self(seen, tasks)
    }

    async fn from(host: u8, addr: &str, attack: Attack) -> Self {
        Self::on(connect_from(host, addr).await, attack)
    }

    /// Waits until it has seen what `holds`.
    async fn until(&mut self, holds: impl Fn(&Seen) -> bool) -> Seen {
        let wait = self.0.wait_for(|seen| holds(seen) || seen.closed);
        let seen = *tokio::time::timeout(PATIENCE, wait).await.unwrap().unwrap();
        assert!(holds(&seen), "it was closed before: {seen:?}");
        seen
    }

    fn is_closed(&self) -> bool {
        self.0.borrow().closed
    }
}

/// Answers pings and settings, and makes a call whenever none is under way.
async fn go_on(
    mut connection: impl AsyncRead + AsyncWrite + Unpin,
    attack: Attack,
    tell: &watch::Sender<Seen>,
) -> std::io::Result<()> {
    let mut call = attack.call();
    let mut calls = 0;
    let mut say = Frames::default();
    if attack != Attack::Mute {
        say.0.extend_from_slice(PREFACE);
        say.settings(&[]);
    }
    loop {
        if let Some(block) = call.take() {
            say.open(stream(calls), &block)
                .finish(stream(calls), &message(b""));
            calls += 1;
        }
        if attack != Attack::Mute {
            connection.write_all(&say.0).await?;
        }
        say.0.clear();
        let mut head = [0; HEAD];
        connection.read_exact(&mut head).await?;
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        connection.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            kind::SETTINGS if flags & flag::ACK == 0 => {
                say.frame(kind::SETTINGS, flag::ACK, 0, &[]);
                tell.send_modify(|seen| seen.greeted = true);
            }
            kind::PING if flags & flag::ACK == 0 => {
                say.frame(kind::PING, flag::ACK, 0, &payload);
                tell.send_modify(|seen| seen.pings += 1);
            }
            kind::HEADERS if flags & flag::END_STREAM != 0 => {
                call = attack.call();
                tell.send_modify(|seen| seen.answers += 1);
            }
            _ => {}
        }
    }
}

/// Connects from `127.0.0.host`: each is another peer.
async fn connect_from(host: u8, addr: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let from = IpAddr::V4(Ipv4Addr::new(127, 0, 0, host));
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(addr.parse().unwrap()).await.unwrap()
}

/// A channel that has this one connection and never another.
async fn only(
    connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Channel, tonic::transport::Error> {
    let mut connection = Some(TokioIo::new(connection));
    let endpoint = Endpoint::from_static("http://localhost");
    let connector = tower::service_fn(move |_| {
        let connection = connection.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { connection.map_err(std::io::Error::from) }
    });
    endpoint.connect_with_connector(connector).await
}

async fn channel_from(host: u8, addr: &str) -> Channel {
    only(connect_from(host, addr).await).await.unwrap()
}

/// A caller with a token, from an address of its own or of others.
async fn caller_from(host: u8, addr: &str) -> Tenant {
    Tenant::of(channel_from(host, addr).await, &token("default"))
}

async fn calls(caller: &Tenant) -> Result<(), Status> {
    let mut runs = caller.runs.clone();
    let answer = tokio::time::timeout(PATIENCE, runs.list_runs(ListRunsRequest::default())).await;
    answer.expect("it answers").map(|_| ())
}

async fn probes(channel: Channel) -> Result<(), Status> {
    let mut client = Client::new(channel);
    let answer = tokio::time::timeout(PATIENCE, client.health(HealthRequest {})).await;
    answer.expect("it answers").map(|_| ())
}

/// A daemon that tells callers apart, leaves its health open and has few places, all of which one peer may have.
async fn daemon(set: &[(&str, &str)]) -> (Daemon, TempDir) {
    let dir = TempDir::new().unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let places = PLACES.to_string();
    let mut all = vec![
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.open_health", "true"),
        ("server.max_connections", &places),
        ("server.max_connections_per_peer", &places),
        ("server.keepalive_interval", "100ms"),
        ("server.first_call_timeout", "10m"),
        ("server.handshake_timeout", "5m"),
    ];
    all.extend(set);
    (Daemon::with(&all).await, dir)
}

/// Takes all places, from so many addresses.
async fn take_all(addr: &str, hosts: u8, attack: Attack) -> Vec<Attacker> {
    let mut attackers = Vec::new();
    for n in 0..2 * PLACES {
        let host = 10 + u8::try_from(n % usize::from(hosts)).unwrap();
        attackers.push(Attacker::from(host, addr, attack).await);
    }
    // The last that came have a place.
    for attacker in attackers.iter_mut().rev().take(PLACES / 2) {
        match attack {
            Attack::Mute => {}
            Attack::Silent => drop(attacker.until(|seen| seen.pings > 0).await),
            Attack::Probes | Attack::Guesses | Attack::Calls => {
                let _ = attacker.until(|seen| seen.answers > 1).await;
            }
        }
    }
    attackers
}

/// However all places were taken, who calls gets in, and so does a probe; who was in before stays.
async fn keep_nobody_out(attack: Attack) {
    for hosts in [1, 8, 100] {
        let (daemon, _dir) = daemon(&[]).await;
        let addr = &daemon.addr;
        let idle = caller_from(2, addr).await;
        calls(&idle).await.unwrap();
        let attackers = take_all(addr, hosts, attack).await;
        // From another address, and from one of those that attack.
        for host in [3, 10] {
            calls(&caller_from(host, addr).await).await.unwrap();
            probes(channel_from(host, addr).await).await.unwrap();
        }
        // On the connection that was there before: it has no other.
        calls(&idle).await.unwrap();
        let open = attackers.iter().filter(|it| !it.is_closed()).count();
        assert!(open < PLACES, "{open} of {attack:?} are open");
        assert!(open >= PLACES / 2, "{attack:?}: not more than need be");
    }
}

cases! { keep_nobody_out:
    connections_that_say_nothing_keep_nobody_out(Attack::Mute),
    connections_that_only_answer_pings_keep_nobody_out(Attack::Silent),
    connections_that_ask_an_open_health_keep_nobody_out(Attack::Probes),
    connections_that_guess_tokens_keep_nobody_out(Attack::Guesses),
    connections_that_call_without_a_token_keep_nobody_out(Attack::Calls),
}

/// A daemon with TLS, and what a client needs to know of it.
async fn with_tls(set: &[(&str, &str)]) -> (Daemon, TempDir, tokio_rustls::TlsConnector) {
    use tokio_rustls::rustls;
    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = TempDir::new().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, own.cert.pem()).unwrap();
    std::fs::write(&key, own.signing_key.serialize_pem()).unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let socket = dir.path().join("socket");
    // What the harness is connected to, so that TLS can be what is tested.
    let listen = format!("[\"unix:{}\", \"127.0.0.1:0\"]", socket.display());
    let places = (2 * PLACES).to_string();
    let mut all = vec![
        ("listen", listen.as_str()),
        ("tls.cert", cert.to_str().unwrap()),
        ("tls.key", key.to_str().unwrap()),
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.open_health", "true"),
        ("server.max_connections", &places),
        ("server.max_connections_per_peer", &places),
        ("server.handshake_timeout", "5m"),
    ];
    all.extend(set);
    let daemon = Daemon::with(&all).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(own.cert.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    (
        daemon,
        dir,
        tokio_rustls::TlsConnector::from(Arc::new(config)),
    )
}

async fn shake_hands(
    connector: &tokio_rustls::TlsConnector,
    host: u8,
    addr: &str,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = connect_from(host, addr).await;
    let name = "localhost".try_into().unwrap();
    connector.connect(name, stream).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_shook_hands_or_did_not_keep_nobody_out() {
    let (daemon, _dir, connector) = with_tls(&[("server.first_call_timeout", "10m")]).await;
    let addr = &daemon.addrs[1];
    let idle = shake_hands(&connector, 2, addr).await;
    let idle = Tenant::of(only(idle).await.unwrap(), &token("default"));
    calls(&idle).await.unwrap();
    let mut silent = Vec::new();
    let mut shaken = Vec::new();
    for n in 0..PLACES {
        let host = 10 + u8::try_from(n % 8).unwrap();
        // In the middle of the handshake, and after it.
        silent.push(connect_from(host, addr).await);
        shaken.push(Attacker::on(
            shake_hands(&connector, host, addr).await,
            Attack::Mute,
        ));
    }
    for host in [3, 10] {
        let stream = shake_hands(&connector, host, addr).await;
        let caller = Tenant::of(only(stream).await.unwrap(), &token("default"));
        calls(&caller).await.unwrap();
    }
    calls(&idle).await.unwrap();
}

/// Connections on which nobody authenticates are closed when their time is over, one on which somebody did is not.
async fn are_closed_in_time(attack: Attack) {
    let (daemon, dir) = daemon(&[
        // Long enough for the harness, whose questions about health do not count, on a busy machine.
        ("server.first_call_timeout", "3s"),
        ("server.keepalive_interval", "10s"),
    ])
    .await;
    let idle = caller_from(2, &daemon.addr).await;
    calls(&idle).await.unwrap();
    let start = Instant::now();
    let mut attackers = Vec::new();
    for _ in 0..4 {
        attackers.push(Attacker::from(3, &daemon.addr, attack).await);
    }
    for attacker in &mut attackers {
        attacker.until(|seen| seen.closed).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(3), "not sooner");
    // Without another connection to call on.
    calls(&idle).await.unwrap();
    drop(dir);
}

cases! { are_closed_in_time:
    connections_that_say_nothing_are_closed_in_time(Attack::Mute),
    connections_that_only_answer_pings_are_closed_in_time(Attack::Silent),
    connections_that_ask_an_open_health_are_closed_in_time(Attack::Probes),
    connections_that_guess_tokens_are_closed_in_time(Attack::Guesses),
    connections_that_call_without_a_token_are_closed_in_time(Attack::Calls),
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_with_tls_and_on_unix_sockets_are_closed_in_time_too() {
    let (daemon, _dir, connector) = with_tls(&[("server.first_call_timeout", "500ms")]).await;
    let addr = &daemon.addrs[1];
    let shaken = shake_hands(&connector, 3, addr).await;
    let unix = UnixStream::connect(daemon.addrs[0].strip_prefix("unix:").unwrap()).await;
    for mut attacker in [
        Attacker::on(connect_from(3, addr).await, Attack::Mute),
        Attacker::on(shaken, Attack::Silent),
        Attacker::on(unix.unwrap(), Attack::Silent),
    ] {
        attacker.until(|seen| seen.closed).await;
    }
}

#[tokio::test]
async fn where_nobody_is_told_apart_the_first_call_counts() {
    let places = PLACES.to_string();
    let set = [
        ("server.first_call_timeout", "500ms"),
        ("server.max_connections", &places),
        ("server.max_connections_per_peer", &places),
    ];
    let daemon = Daemon::with(&set).await;
    // The health that has to be let in counts here as any other call.
    let idle = channel_from(2, &daemon.addr).await;
    probes(idle.clone()).await.unwrap();
    let mut silent = Attacker::from(3, &daemon.addr, Attack::Silent).await;
    silent.until(|seen| seen.closed).await;
    let attackers = take_all(&daemon.addr, 8, Attack::Mute).await;
    probes(channel_from(3, &daemon.addr).await).await.unwrap();
    probes(idle).await.unwrap();
    drop(attackers);
}

/// Callers that have authenticated, from one address, until one is refused.
async fn authenticate_all(addr: &str, host: u8) -> Vec<Tenant> {
    let mut callers = Vec::new();
    loop {
        let Ok(channel) = only(connect_from(host, addr).await).await else {
            return callers;
        };
        let caller = Tenant::of(channel, &token("default"));
        match calls(&caller).await {
            Ok(()) => callers.push(caller),
            Err(_) => return callers,
        }
        assert!(callers.len() <= PLACES);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_eighth_is_kept_for_peers_that_have_no_connection() {
    let (daemon, _dir) = daemon(&[]).await;
    let addr = &daemon.addr;
    let of_one = authenticate_all(addr, 2).await;
    assert_eq!(of_one.len(), PLACES - RESERVED);
    let mut of_others = Vec::new();
    for host in 0..u8::try_from(RESERVED).unwrap() {
        let caller = caller_from(10 + host, addr).await;
        calls(&caller).await.unwrap();
        of_others.push(caller);
    }
    // All have authenticated: nobody makes way.
    assert_eq!(authenticate_all(addr, 3).await.len(), 0);
    assert_eq!(authenticate_all(addr, 2).await.len(), 0);
    for caller in of_one.iter().chain(&of_others) {
        calls(caller).await.unwrap();
    }
    // One leaves, and there is a place again.
    drop(of_others.pop());
    let start = Instant::now();
    while authenticate_all(addr, 3).await.is_empty() {
        assert!(start.elapsed() < PATIENCE, "the place does not come back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_has_all_it_may_replaces_its_own_and_nobody_elses() {
    let (daemon, _dir) = daemon(&[("server.max_connections_per_peer", "4")]).await;
    let addr = &daemon.addr;
    let mut other = Attacker::from(9, addr, Attack::Silent).await;
    other.until(|seen| seen.pings > 0).await;
    let mut first = Attacker::from(2, addr, Attack::Silent).await;
    first.until(|seen| seen.greeted).await;
    let callers = authenticate_all(addr, 2).await;
    assert_eq!(callers.len(), 4, "the silent one made way");
    first.until(|seen| seen.closed).await;
    let pings = other.until(|seen| seen.pings > 0).await.pings;
    other.until(|seen| seen.pings > pings).await;
    for caller in &callers {
        calls(caller).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_is_full_takes_nothing_from_another() {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("socket");
    let listen = format!(
        "[\"127.0.0.1:0\", \"127.0.0.1:0\", \"unix:{}\"]",
        socket.display()
    );
    let (daemon, _dir) = daemon(&[("listen", &listen), ("server.max_connections", "24")]).await;
    // Full of those who do not make way, the harness having done so.
    let full = authenticate_all(&daemon.addrs[0], 2).await;
    assert_eq!(full.len(), 7, "seven eighths of a third");
    calls(&caller_from(3, &daemon.addrs[0]).await)
        .await
        .unwrap();
    let caller = caller_from(2, &daemon.addrs[1]).await;
    calls(&caller).await.unwrap();
    for _ in 0..4 {
        let unix = only(UnixStream::connect(&socket).await.unwrap()).await;
        calls(&Tenant::of(unix.unwrap(), &token("default")))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn fewer_connections_than_listeners_are_refused() {
    let mut overrides = ringfence::config::Overrides::default();
    for (key, value) in [
        ("listen", "[\"127.0.0.1:0\", \"127.0.0.1:0\"]"),
        ("server.max_connections", "1"),
    ] {
        overrides.set.push((key.into(), value.into()));
    }
    let refused = ringfence::app::load_config(&overrides).err().unwrap();
    let told = refused.to_string();
    assert!(told.contains("server.max_connections"), "{told}");
}

/// Calls of a connection that may take input as it comes.
const MAX_INPUT_CALLS: usize = 40;
/// Bytes of a piece of input.
const PIECE: usize = 64 << 10;
/// Pieces that a call takes and nobody reads: what a guest has yet to read, and what lies in the connection beyond that.
const UNREAD: u32 = 5;

/// Calls on one connection.
#[derive(Clone)]
struct Link {
    sandbox: Client,
    runs: Runs,
    modules: Modules,
}

impl Link {
    async fn to(addr: &str) -> Self {
        let channel = channel_from(2, addr).await;
        Self {
            sandbox: Client::new(channel.clone()),
            runs: Runs::new(channel.clone()),
            modules: Modules::new(channel),
        }
    }

    /// An interaction with more input than the connection takes, of which `taken` counts the pieces.
    async fn interact(
        &mut self,
        taken: &Arc<AtomicU32>,
    ) -> Result<(String, Streaming<StreamEvent>), Status> {
        let run = kit(&["sleep", "3600000"]).timeout(Duration::from_secs(290));
        let frame = |frame| InteractRequest { frame: Some(frame) };
        let start = frame(Frame::Start(Box::new(run)));
        let piece = frame(Frame::Stdin(Bytes::from(vec![0; PIECE])));
        let taken = Arc::clone(taken);
        let pieces = std::iter::repeat_with(move || {
            taken.fetch_add(1, Ordering::Relaxed);
            piece.clone()
        });
        let say = tokio_stream::iter(std::iter::once(start).chain(pieces));
        let answer = self.runs.interact(say).await?;
        Ok((told_id(answer.metadata()), answer.into_inner()))
    }

    /// An interaction without any input.
    async fn greet(&mut self) -> Result<(), Status> {
        let start = Frame::Start(Box::new(kit(&["hello"])));
        let start = InteractRequest { frame: Some(start) };
        let answer = self.runs.interact(tokio_stream::once(start));
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        let mut events = answer.expect("it is answered")?.into_inner();
        while events.message().await?.is_some() {}
        Ok(())
    }

    /// Everything else is answered on the connection.
    async fn serves(&mut self, digest: &str, run_id: &str) {
        let answers = async {
            self.sandbox.health(HealthRequest {}).await.unwrap();
            let spec = Some(by_digest(digest));
            let ran = self.sandbox.run(RunRequest { spec }).await.unwrap();
            Ran::new(ran.into_inner()).exited(0);
            // What is larger than any window.
            let large = format!("{NOTHING}{}", " ".repeat(3 << 20));
            self.sandbox.load_module(load(large)).await.unwrap();
            let run_id = run_id.to_owned();
            let cancel = CancelRunRequest { run_id };
            self.runs.cancel_run(cancel).await.unwrap();
        };
        tokio::time::timeout(PATIENCE, answers)
            .await
            .expect("other calls are answered");
    }
}

async fn until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it does not come to be");
        tokio::task::yield_now().await;
    }
}

/// Interactions that nobody reads the input of, as many as a connection may have; those beyond are refused.
async fn talk(link: &Link, slots: usize) -> Vec<(String, Streaming<StreamEvent>)> {
    const CALLS: usize = 100;
    let taken: Vec<Arc<AtomicU32>> = (0..CALLS).map(|_| Arc::default()).collect();
    let mut calls = JoinSet::new();
    for taken in &taken {
        let (mut link, taken) = (link.clone(), Arc::clone(taken));
        calls.spawn(async move { link.interact(&taken).await });
    }
    let mut begun = Vec::new();
    for _ in 0..CALLS - MAX_INPUT_CALLS + slots.min(MAX_INPUT_CALLS) {
        match calls.join_next().await.unwrap().unwrap() {
            Ok(talk) => begun.push(talk),
            Err(status) => {
                let refused = Refused::new(&status).is(Code::ResourceExhausted, "QUEUE_FULL");
                let refused = refused.with("allowed", MAX_INPUT_CALLS);
                assert!(refused.message.contains("another connection"));
            }
        }
    }
    assert_eq!(begun.len(), slots.min(MAX_INPUT_CALLS));
    // All that were not refused have sent what can be sent.
    let unread = |taken: &&Arc<AtomicU32>| taken.load(Ordering::Relaxed) >= UNREAD;
    until(|| taken.iter().filter(unread).count() >= MAX_INPUT_CALLS).await;
    // Those that wait for a slot go on.
    tokio::spawn(calls.join_all());
    begun
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_no_guest_reads_holds_up_no_other_call_of_its_connection() {
    let daemon = Served::start(&["--set", "admission.slots=64"]);
    let mut link = Link::to(&daemon.addr).await;
    let loaded = link.sandbox.load_module(load(NOTHING)).await.unwrap();
    let digest = loaded.into_inner().module.unwrap().digest;
    let talks = talk(&link, 64).await;
    link.serves(&digest, &talks[0].0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interactions_that_end_make_room_for_others() {
    let daemon = Served::start(&["--set", "admission.slots=64"]);
    let mut link = Link::to(&daemon.addr).await;
    for _ in 0..2 * MAX_INPUT_CALLS {
        link.greet().await.unwrap();
    }
    let mut talks = talk(&link, 64).await;
    let refused = link.greet().await.unwrap_err();
    Refused::new(&refused).is(Code::ResourceExhausted, "QUEUE_FULL");
    let (run_id, mut events) = talks.swap_remove(0);
    link.runs
        .cancel_run(CancelRunRequest { run_id })
        .await
        .unwrap();
    while events.message().await.unwrap().is_some() {}
    let start = Instant::now();
    while let Err(status) = link.greet().await {
        Refused::new(&status).is(Code::ResourceExhausted, "QUEUE_FULL");
        assert!(start.elapsed() < PATIENCE, "none is let in again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn input_of_runs_that_wait_holds_up_no_other_call_of_its_connection() {
    let daemon = Served::start(&["--set", "admission.slots=1"]);
    let mut link = Link::to(&daemon.addr).await;
    let talks = talk(&link, 1).await;
    let answers = async {
        link.sandbox.health(HealthRequest {}).await.unwrap();
        for (run_id, _) in &talks {
            let run_id = run_id.clone();
            let cancel = CancelRunRequest { run_id };
            link.runs.cancel_run(cancel).await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, answers).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_stall_hold_up_no_other_call_of_their_connection() {
    let set = [("admission.slots", "4"), ("store.uploads", "64")];
    let daemon = Daemon::with(&set).await;
    let digest = daemon.loaded(NOTHING).await;
    let mut link = Link::to(&daemon.addr).await;
    let stalled = Arc::new(AtomicU32::new(0));
    let mut uploads = JoinSet::new();
    for _ in 0..MAX_INPUT_CALLS {
        let (mut link, stalled) = (link.clone(), Arc::clone(&stalled));
        uploads.spawn(async move {
            let frame = |frame| UploadModuleRequest { frame: Some(frame) };
            let start = upload_module_request::Frame::Start(Default::default());
            let start = frame(start);
            let chunk = Bytes::from(vec![0; 1 << 20]);
            let chunk = frame(upload_module_request::Frame::Chunk(chunk));
            let begun = tokio_stream::iter([start, chunk]);
            let then = std::iter::once_with(move || stalled.fetch_add(1, Ordering::Relaxed));
            let then = tokio_stream::iter(then).map(|_| None);
            let never = tokio_stream::pending();
            let say = begun.map(Some).chain(then).chain(never);
            link.modules.upload_module(say.filter_map(|it| it)).await
        });
    }
    until(|| stalled.load(Ordering::Relaxed) as usize == MAX_INPUT_CALLS).await;
    let run = kit(&["sleep", "3600000"]).label("who", "runs");
    let stream = daemon.stream(run).await.unwrap();
    let run_id = daemon.labelled("who", "runs").await[0].run_id.clone();
    link.serves(&digest, &run_id).await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_refused_for_the_budget_hold_up_no_other_call_of_their_connection() {
    let set = [
        ("server.inflight_request_bytes", "12MiB"),
        ("server.max_message", "10MiB"),
        ("compile.max_module", "10MiB"),
    ];
    let daemon = Daemon::with(&set).await;
    let digest = daemon.loaded(NOTHING).await;
    let mut link = Link::to(&daemon.addr).await;
    let mut calls = JoinSet::new();
    for _ in 0..90 {
        let mut link = link.clone();
        calls.spawn(async move { link.sandbox.load_module(load(vec![0; 9 << 20])).await });
    }
    for status in calls.join_all().await.into_iter().filter_map(Result::err) {
        assert_ne!(status.code(), Code::Internal, "{status}");
    }
    let stream = daemon.stream(kit(&["sleep", "3600000"]).label("who", "runs"));
    let stream = stream.await.unwrap();
    let run_id = daemon.labelled("who", "runs").await[0].run_id.clone();
    link.serves(&digest, &run_id).await;
    drop(stream);
}

/// A daemon of its own process that tells callers apart and keeps an audit.
fn served(dir: &TempDir, set: &[&str]) -> Served {
    let tokens = tokens_file(dir, &["default"]);
    let set: Vec<String> = [
        format!("auth.tokens_file={}", tokens.display()),
        format!(
            "telemetry.audit_file={}",
            dir.path().join("audit").display()
        ),
    ]
    .into_iter()
    .chain(set.iter().map(|it| (*it).to_owned()))
    .collect();
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    Served::start(&args)
}

/// Ends a daemon, and returns what it wrote to its log since it served, and how many seconds it was there for.
fn log_of(mut daemon: Served, start: Instant) -> (Vec<String>, u64) {
    daemon.signal("-TERM");
    let log = daemon.log.by_ref().lines().map(Result::unwrap).collect();
    (log, start.elapsed().as_secs() + 2)
}

/// The sum of what lines tell under `key`.
fn sum(log: &[String], key: &str) -> u64 {
    let told = log.iter().filter_map(|line| {
        let (_, value) = line.split_once(&format!(" {key}="))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    });
    told.sum()
}

/// Calls from so many addresses, each as often, with a token that is nobody's or without one.
async fn are_counted(hosts: u8, times: usize, attack: Attack) {
    const EACH_SECOND: u64 = 20 + 5;
    let dir = TempDir::new().unwrap();
    // Long enough for all that each of them calls.
    let daemon = served(&dir, &["server.first_call_timeout=10m"]);
    let start = Instant::now();
    let mut callers = JoinSet::new();
    for host in 0..hosts {
        let (addr, attack) = (daemon.addr.clone(), attack.call().unwrap());
        callers.spawn(async move {
            let mut connection = connect_from(10 + host, &addr).await;
            let mut say = Frames(PREFACE.to_vec());
            say.settings(&[]);
            let (mut heard, mut tally) = (Vec::new(), Tally::default());
            for begun in 0..times {
                say.open(stream(begun), &attack)
                    .finish(stream(begun), &message(b""));
                connection.write_all(&say.0).await.unwrap();
                say.0.clear();
                // A few at once.
                while tally.ended + 20 <= begun || begun + 1 == times && tally.ended < times {
                    assert!(connection.read_buf(&mut heard).await.unwrap() > 0);
                    tally.take(&mut heard);
                }
            }
        });
    }
    callers.join_all().await;
    let (log, seconds) = log_of(daemon, start);
    let lines = log.iter().filter(|it| it.contains("call refused")).count() as u64;
    let told = log.iter().filter(|it| it.contains("left_out=")).count() as u64;
    let calls = u64::from(hosts) * times as u64;
    assert_eq!(lines + sum(&log, "left_out"), calls, "none is lost");
    assert!(lines + told <= EACH_SECOND * seconds, "{lines} and {told}");
    assert!(
        calls > 10 * EACH_SECOND * seconds,
        "{seconds} s: too slow to tell"
    );
    let audit = std::fs::read_to_string(dir.path().join("audit")).unwrap();
    // That the daemon runs one itself when it starts is there.
    let of_others = audit.lines().find(|it| !it.contains("\"(ringfence)\""));
    assert_eq!(of_others, None, "nobody's calls are no decisions");
}

cases! { are_counted:
    refused_calls_of_one_peer_are_counted(1, 10_000, Attack::Guesses),
    refused_calls_of_many_peers_are_counted(100, 100, Attack::Guesses),
    calls_without_a_credential_are_counted(4, 2_500, Attack::Calls),
}

#[tokio::test]
async fn closed_connections_are_counted_and_told_why() {
    const CONNECTIONS: u64 = 300;
    let dir = TempDir::new().unwrap();
    let set = [
        "server.max_connections=2",
        "server.first_call_timeout=300ms",
    ];
    let debug = ["telemetry.log_level=info,ringfence=debug"];
    let daemon = served(&dir, &[&set[..], &debug].concat());
    let start = Instant::now();
    let first = caller_from(2, &daemon.addr).await;
    calls(&first).await.unwrap();
    let mut last = Attacker::from(3, &daemon.addr, Attack::Silent).await;
    for _ in 1..CONNECTIONS {
        let next = Attacker::from(3, &daemon.addr, Attack::Silent).await;
        last.until(|seen| seen.closed).await;
        last = next;
    }
    last.until(|seen| seen.closed).await;
    let second = caller_from(2, &daemon.addr).await;
    calls(&second).await.unwrap();
    for _ in 0..CONNECTIONS {
        let mut over = Attacker::from(3, &daemon.addr, Attack::Silent).await;
        over.until(|seen| seen.closed).await;
    }
    let (log, seconds) = log_of(daemon, start);
    let (evicted, overdue) = (sum(&log, "evicted"), sum(&log, "overdue"));
    assert_eq!(evicted + overdue, CONNECTIONS);
    assert!(overdue >= 1 && evicted >= 1, "{evicted}, {overdue}");
    assert_eq!(sum(&log, "refused"), CONNECTIONS);
    let told = |what: &str| log.iter().filter(|it| it.contains(what)).count() as u64;
    assert!(told("connections were closed") <= seconds);
    let lines = told("a connection was closed");
    assert!(1 <= lines && lines <= 20 * seconds, "{lines}");
    assert!(told("peer=127.0.0.3") == lines, "{log:#?}");
}

/// Nor do frames that mean nothing, of whoever can connect, fill the log.
#[tokio::test]
async fn answers_to_pings_that_nobody_sent_leave_no_line() {
    let dir = TempDir::new().unwrap();
    let daemon = served(&dir, &["auth.open_health=true"]);
    let mut connection = connect_from(3, &daemon.addr).await;
    let mut frames = Frames(PREFACE.to_vec());
    frames.settings(&[]);
    for _ in 0..10_000 {
        frames.frame(kind::PING, flag::ACK, 0, b"unasked!");
    }
    frames.ask();
    connection.write_all(&frames.0).await.unwrap();
    // Its own ping is answered when all before it was taken.
    let mut heard = Vec::new();
    let mut tally = Tally::default();
    while tally.assents == 0 {
        assert!(connection.read_buf(&mut heard).await.unwrap() > 0);
        tally.take(&mut heard);
    }
    let (log, _) = log_of(daemon, Instant::now());
    let pings = log.iter().filter(|it| it.contains("PING")).count();
    assert_eq!(pings, 0, "{:?}", log.first());
}

/// Health that anybody may ask for is no failure of the daemon.
#[tokio::test]
async fn an_open_health_that_nobody_signs_leaves_no_line() {
    use ringfence::api::proto::HealthRequest;
    use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
    let dir = TempDir::new().unwrap();
    let daemon = served(&dir, &["auth.open_health=true"]);
    let address = format!("http://{}", daemon.addr);
    let mut client = SandboxServiceClient::connect(address).await.unwrap();
    let health = client.health(HealthRequest {}).await.unwrap();
    let features = health.into_inner().runtime.unwrap().features;
    assert!(features.iter().any(|it| it == "fuel"), "{features:?}");
    assert!(
        !features.iter().any(|it| it.starts_with("wasm:")),
        "{features:?}"
    );
    let (log, _) = log_of(daemon, Instant::now());
    let failures = log.iter().filter(|it| it.contains("ERROR")).count();
    assert_eq!(failures, 0, "{log:#?}");
}
