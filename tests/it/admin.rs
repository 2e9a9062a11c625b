//! The admin listener: probes, metrics, settings, and who may ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::auth::write;
use crate::harness::{Daemon, PATIENCE, kit};
use crate::page::FILES;
use crate::tenants::{token, two};

const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");
/// Every path of the listener but those of its page, and one that there is not.
const PATHS: [&str; 6] = [
    "/livez",
    "/readyz",
    "/metrics",
    "/debug/config",
    "/nothing/here",
    "/ringfence.v1.SandboxService/Run",
];
const METHODS: [&str; 8] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE",
];

/// An answer of the listener.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    /// With the values of a header that is there more than once in one.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    pub bytes: Vec<u8>,
}

impl Answer {
    fn of(answer: &[u8]) -> Self {
        let end = answer.windows(4).position(|it| it == b"\r\n\r\n");
        let (head, bytes) = answer.split_at(end.expect("an answer has a head") + 4);
        let head = std::str::from_utf8(head).unwrap().trim_end();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap();
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let known = headers.entry(name.to_lowercase()).or_default();
            let comma = if known.is_empty() { "" } else { ", " };
            known.push_str(&format!("{comma}{value}"));
        }
        Self {
            status: status.parse().unwrap(),
            headers,
            body: String::from_utf8_lossy(bytes).into_owned(),
            bytes: bytes.to_owned(),
        }
    }
}

/// Sends one request by HTTP/1.1 and reads the whole answer.
pub(crate) async fn ask(addr: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        head.push_str(&format!("host: {addr}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    let mut answer = Vec::new();
    let talked = async {
        match addr.strip_prefix("unix:") {
            Some(path) => {
                let mut stream = UnixStream::connect(path).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.read_to_end(&mut answer).await
            }
            None => {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.read_to_end(&mut answer).await
            }
        }
    };
    tokio::time::timeout(PATIENCE, talked)
        .await
        .unwrap()
        .unwrap();
    Answer::of(&answer)
}

/// Every path of the listener, and one that there is not.
fn every_path() -> impl Iterator<Item = &'static str> {
    PATHS.into_iter().chain(FILES.map(|file| file.path))
}

async fn get(daemon: &Daemon, path: &str) -> Answer {
    ask(&daemon.admin, "GET", path, &[]).await
}

/// The value of a series, which is zero where it is not there.
pub(crate) fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    let value = line.and_then(|rest| rest.strip_prefix(' '));
    value.map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test]
async fn a_daemon_is_alive_ready_and_draining() {
    let mut daemon = Daemon::with(&[ADMIN, ("server.drain_delay", "60s")]).await;
    let alive = get(&daemon, "/livez").await;
    assert_eq!((alive.status, alive.body.as_str()), (200, "ok\n"));
    let ready = get(&daemon, "/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(
        ready.body,
        "[+] warm: ok\n[+] serving: ok\n[+] store: ok\nready\n"
    );
    daemon.drain();
    let draining = loop {
        let answer = get(&daemon, "/readyz").await;
        if answer.status != 200 {
            break answer;
        }
    };
    assert_eq!(draining.status, 503);
    assert!(
        draining
            .body
            .contains("[-] serving: the daemon is draining"),
        "{draining:?}"
    );
    // The process is alive, and its metrics go on.
    assert_eq!(get(&daemon, "/livez").await.status, 200);
    let metrics = get(&daemon, "/metrics").await.body;
    assert_eq!(value(&metrics, "ringfence_phase{phase=\"draining\"}"), 1.0);
    assert_eq!(value(&metrics, "ringfence_phase{phase=\"serving\"}"), 0.0);
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_makes_it_not_ready() {
    let data = TempDir::new().unwrap();
    let store = data.path().join("modules");
    let url = format!("file://{}", store.display());
    let daemon = Daemon::with(&[ADMIN, ("store.url", &url)]).await;
    assert_eq!(get(&daemon, "/readyz").await.status, 200);
    std::fs::remove_dir_all(&store).unwrap();
    std::fs::write(&store, "no folder").unwrap();
    // The last answer of the store is used for a few seconds.
    let begun = std::time::Instant::now();
    let unready = loop {
        let answer = get(&daemon, "/readyz").await;
        if answer.status != 200 {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "it stays ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(unready.status, 503);
    assert!(
        unready
            .body
            .contains("[-] store: the module store cannot be reached")
    );
    assert!(
        !unready.body.contains(store.to_str().unwrap()),
        "a path is nobody's business: {unready:?}"
    );
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let daemon = Daemon::with(&[ADMIN, ("admission.slots", "3")]).await;
    let before = get(&daemon, "/metrics").await.body;
    daemon.ran(kit(&["hello"])).await.exited(0);
    daemon.ran(kit(&["exit", "7"])).await.exited(7);
    let missing = crate::harness::by_digest(&format!("sha256:{}", "0".repeat(64)));
    daemon.run(missing).await.unwrap_err();
    let stream = daemon.stream(kit(&["flood", "100000"])).await.unwrap();
    crate::harness::read(stream).await;
    crate::harness::until_idle(&daemon).await;
    // A text is given to all who come within a moment.
    let begun = std::time::Instant::now();
    let after = loop {
        let after = get(&daemon, "/metrics").await;
        if value(&after.body, "ringfence_runs_executing") == 0.0
            && begun.elapsed() > Duration::from_millis(200)
        {
            break after;
        }
    };
    let kind = &after.headers["content-type"];
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    let after = after.body;
    let grown = |series: &str| value(&after, series) - value(&before, series);
    let ended = "ringfence_runs_total{tenant=\"default\",outcome=\"exited\"}";
    assert_eq!(grown(ended), 3.0, "{after}");
    let refused = "ringfence_runs_refused_total{tenant=\"default\",reason=\"MODULE_NOT_FOUND\"}";
    assert_eq!(grown(refused), 1.0);
    assert_eq!(
        grown("ringfence_refusals_total{reason=\"MODULE_NOT_FOUND\"}"),
        1.0
    );
    let calls = |method: &str, code: &str| {
        grown(&format!(
            "ringfence_calls_total{{grpc_service=\"ringfence.v1.SandboxService\",grpc_method=\"{method}\",grpc_code=\"{code}\"}}"
        ))
    };
    assert_eq!(calls("Run", "OK"), 2.0);
    assert_eq!(calls("Run", "NOT_FOUND"), 1.0);
    assert_eq!(calls("RunStream", "OK"), 1.0);
    for histogram in ["run_seconds", "run_wait_seconds", "instantiate_seconds"] {
        assert_eq!(
            grown(&format!("ringfence_{histogram}_count")),
            3.0,
            "{histogram}"
        );
    }
    assert!(grown("ringfence_compile_seconds_count") >= 1.0);
    assert!(grown("ringfence_run_seconds_sum") > 0.0);
    let stdout = "ringfence_guest_stream_bytes_total{tenant=\"default\",stream=\"stdout\"}";
    assert!(grown(stdout) > 100_000.0);
    assert!(
        grown("ringfence_network_bytes_total{listener=\"grpc\",direction=\"sent\"}") > 100_000.0
    );
    assert_eq!(
        value(&after, "ringfence_admission_capacity{queue=\"run\"}"),
        3.0
    );
    assert_eq!(value(&after, "ringfence_runs_executing"), 0.0);
    assert!(value(&after, "ringfence_connections{listener=\"grpc\"}") >= 1.0);
    assert!(grown("ringfence_module_cache_lookups_total{found=\"miss\"}") >= 1.0);
}

#[tokio::test]
async fn prometheus_is_given_the_format_that_it_asks_for() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let accepts = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3";
    let answer = ask(&daemon.admin, "GET", "/metrics", &[("accept", accepts)]).await;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.headers["content-type"], kind);
    assert!(answer.body.ends_with("# EOF\n"));
    assert!(
        answer
            .body
            .contains("# UNIT ringfence_run_seconds seconds\n")
    );
    assert!(answer.body.contains("# TYPE ringfence_runs counter\n"));
}

/// The names of metrics in an answer, with their types.
fn names(metrics: &str) -> BTreeSet<String> {
    let lines = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    lines
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn every_metric_is_explained_and_every_explanation_has_its_metric() {
    let folder = TempDir::new().unwrap();
    let authority = crate::auth::Authority::new("a");
    let (cert, key) = authority.issue(&["localhost"]);
    let cert = write(&folder, "cert.pem", &cert);
    let key = write(&folder, "key.pem", &key);
    let config = [
        (
            "admin.listen",
            format!("[\"unix:{}\"]", folder.path().join("admin").display()),
        ),
        ("tls.cert", cert.display().to_string()),
        ("tls.key", key.display().to_string()),
        (
            "runs.archive",
            format!("file://{}", folder.path().join("archive").display()),
        ),
        // Nothing is exported to it, as nothing is called.
        ("telemetry.otlp_endpoint", "http://127.0.0.1:9".to_owned()),
    ];
    let mut overrides = ringfence::config::Overrides::default();
    let listen = ("listen", "[\"127.0.0.1:0\"]".to_owned());
    overrides.set.extend(
        [listen]
            .into_iter()
            .chain(config)
            .map(|(k, v)| (k.to_owned(), v)),
    );
    let (config, _) = ringfence::app::load_config(&overrides).unwrap();
    let app = ringfence::app::build(&config, crate::harness::program())
        .await
        .unwrap();
    let addr = app.admin_addrs()[0].to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = tokio::spawn(app.serve_until(async {
        let _ = stopped.await;
    }));
    let metrics = ask(&addr, "GET", "/metrics", &[("host", "x")]).await.body;
    drop(stop);
    served.await.unwrap().unwrap();
    let given = names(&metrics);
    let page = std::fs::read_to_string("docs/metrics.md").unwrap();
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `ringfence_"));
    let explained: BTreeSet<String> = rows
        .map(|row| format!("ringfence_{}", row.split('`').next().unwrap()))
        .collect();
    assert!(given.len() > 30, "{given:?}");
    let missing: Vec<_> = given.difference(&explained).collect();
    let gone: Vec<_> = explained.difference(&given).collect();
    assert!(
        missing.is_empty() && gone.is_empty(),
        "not explained: {missing:?}; not there: {gone:?}"
    );
}

#[tokio::test]
async fn a_request_that_a_web_page_may_have_made_is_refused_on_every_path() {
    let daemon = Daemon::with(&[ADMIN, ("admin.cors_origins", "https://ops.example.com")]).await;
    let own = format!("http://{}", daemon.admin);
    let own = own.as_str();
    for path in every_path() {
        for method in METHODS {
            for foreign in [
                &[("host", "evil.example")][..],
                &[("host", "localhost.evil.example:80")],
                &[("origin", "https://evil.example")],
                &[("origin", "null")],
                &[("origin", "http://localhost:1")],
                &[("sec-fetch-site", "cross-site")],
                &[
                    ("sec-fetch-site", "same-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "iframe"),
                ],
                &[
                    ("origin", "https://evil.example"),
                    ("access-control-request-method", "POST"),
                ],
                &[
                    ("origin", "https://evil.example"),
                    ("content-type", "application/x-www-form-urlencoded"),
                ],
            ] {
                let answer = ask(&daemon.admin, method, path, foreign).await;
                assert_eq!(answer.status, 403, "{method} {path} {foreign:?}");
                let cors = answer
                    .headers
                    .keys()
                    .any(|it| it.starts_with("access-control"));
                assert!(!cors, "{answer:?}");
            }
            // What is let in, is kept from browsers' guesses all the same.
            let answer = ask(&daemon.admin, method, path, &[("origin", own)]).await;
            assert_ne!(answer.status, 403, "{method} {path}: {answer:?}");
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            assert_eq!(answer.headers["referrer-policy"], "no-referrer");
            let policy = &answer.headers["content-security-policy"];
            assert!(policy.contains("frame-ancestors 'none'"));
            assert!(!answer.headers.contains_key("set-cookie"));
        }
    }
    let allowed = [("origin", "https://ops.example.com")];
    let answer = ask(&daemon.admin, "GET", "/livez", &allowed).await;
    assert_eq!(
        answer.headers["access-control-allow-origin"],
        "https://ops.example.com"
    );
    assert_eq!(answer.headers["vary"], "origin");
    let preflight = [allowed[0], ("access-control-request-method", "POST")];
    let answer = ask(&daemon.admin, "OPTIONS", "/livez", &preflight).await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.headers["access-control-allow-methods"], "GET, POST");
}

#[tokio::test]
async fn names_of_the_host_are_taken_and_a_unix_socket_asks_for_none() {
    let folder = TempDir::new().unwrap();
    let socket = format!("unix:{}", folder.path().join("admin").display());
    let listen = format!("[\"127.0.0.1:0\", \"{socket}\"]");
    let set = [
        ("admin.listen", listen.as_str()),
        ("admin.allowed_hosts", "ringfence.internal"),
    ];
    let daemon = Daemon::with(&set).await;
    for host in ["localhost", "127.0.0.1:1", "ringfence.internal:9090"] {
        let answer = ask(&daemon.admin, "GET", "/livez", &[("host", host)]).await;
        assert_eq!(answer.status, 200, "{host}");
    }
    let answer = ask(&socket, "GET", "/livez", &[("host", "whatever")]).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn whoever_is_nobody_sees_what_is_open_and_a_tenant_its_own() {
    let set = [ADMIN, ("admin.open", "[\"livez\"]")];
    let (daemon, alpha, beta, _folder) = two("", "", &set).await;
    assert_eq!(get(&daemon, "/livez").await.status, 200);
    for path in PATHS.into_iter().filter(|path| *path != "/livez") {
        for method in METHODS {
            let answer = ask(&daemon.admin, method, path, &[]).await;
            assert_eq!(answer.status, 401, "{method} {path}");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
            let guess = [("authorization", "Bearer guess")];
            let answer = ask(&daemon.admin, method, path, &guess).await;
            assert_eq!(answer.status, 401, "{method} {path}");
            let as_query = ask(&daemon.admin, method, &format!("{path}?token=a"), &[]).await;
            assert_eq!(as_query.status, 401, "a credential is a header");
        }
    }
    // The page's files are open to everybody, to read.
    for path in FILES.map(|file| file.path) {
        for method in METHODS {
            let answer = ask(&daemon.admin, method, path, &[]).await;
            let expected = match method {
                "GET" | "HEAD" => 200,
                _ => 405,
            };
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
    for tenant in [&alpha, &beta] {
        tenant.ran(kit(&["hello"])).await.exited(0);
    }
    let bearer = format!("Bearer {}", token("a"));
    let as_a = [("authorization", bearer.as_str())];
    let metrics = ask(&daemon.admin, "GET", "/metrics", &as_a).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("tenant=\"a\""));
    assert!(!metrics.body.contains("tenant=\"b\""), "{}", metrics.body);
    let config = ask(&daemon.admin, "GET", "/debug/config", &as_a).await;
    assert_eq!(config.status, 200);
    let shown: toml::Table = config.body.parse().unwrap();
    assert_eq!(shown["tenant"].as_str(), Some("a"));
    assert!(shown["policy"]["max_memory_pages"].is_integer());
    assert!(!config.body.contains("\"b\"") && !config.body.contains("tokens_file"));
    // Guesses are counted by what was shown.
    let failures = "ringfence_authentication_failures_total{presented=\"token\"}";
    assert!(value(&metrics.body, failures) > 0.0);
}

#[tokio::test]
async fn other_hosts_read_what_is_open_where_nobody_is_authenticated() {
    let set = [("admin.listen", "[\"0.0.0.0:0\"]")];
    let daemon = Daemon::with(&set).await;
    let port = daemon.admin.rsplit_once(':').unwrap().1;
    // An address of this host that is not its loopback, as another host would use it.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let reachable = probe
        .connect("192.0.2.1:9")
        .and_then(|()| probe.local_addr());
    let Ok(own) = reachable else {
        eprintln!("\n*** SKIPPED: this host has no address but its loopback\n");
        return;
    };
    let others = format!("{}:{port}", own.ip());
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(ask(&others, "GET", path, &[]).await.status, 200, "{path}");
    }
    let closed = ["/debug/config", "/nothing/here"].into_iter();
    for path in closed.chain(FILES.map(|file| file.path)) {
        let answer = ask(&others, "GET", path, &[]).await;
        assert_eq!(answer.status, 403, "{path}");
        assert!(answer.body.contains("admin.open"), "{answer:?}");
    }
    let web = [("content-type", "application/grpc-web+proto")];
    let run = "/ringfence.v1.SandboxService/Run";
    assert_eq!(ask(&others, "POST", run, &web).await.status, 403);
    // Nor by loopback: it may be that of several containers.
    let own = format!("127.0.0.1:{port}");
    assert_eq!(ask(&own, "GET", "/debug/config", &[]).await.status, 403);
    // Where the operator says so, others may call, as on the gRPC listeners.
    let daemon = Daemon::with(&[set[0], ("server.insecure_listen", "true")]).await;
    let port = daemon.admin.rsplit_once(':').unwrap().1;
    let others = others.rsplit_once(':').unwrap().0;
    for path in ["/debug/config", "/", "/page.js"] {
        let answer = ask(&format!("{others}:{port}"), "GET", path, &[]).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_listener_with_tls_is_probed_without_a_certificate_and_tells_nobody_more() {
    let folder = TempDir::new().unwrap();
    let authority = crate::auth::Authority::new("a");
    let (cert, key) = authority.issue(&["localhost"]);
    let (client_cert, client_key) = authority.issue(&["client"]);
    let file = |name: &str, text: &str| write(&folder, name, text).display().to_string();
    let (cert, key) = (file("cert.pem", &cert), file("key.pem", &key));
    let ca = file("ca.pem", &authority.pem());
    let socket = format!("unix:{}", folder.path().join("grpc").display());
    let set = [
        ADMIN,
        ("tls.cert", cert.as_str()),
        ("tls.key", key.as_str()),
        ("tls.client_ca", ca.as_str()),
    ];
    let daemon = Daemon::listening(&socket, &set).await;
    let url = |path: &str| format!("https://{}{path}", daemon.admin);
    let root = reqwest::Certificate::from_pem(authority.pem().as_bytes()).unwrap();
    let client = || {
        reqwest::Client::builder()
            .tls_certs_only([root.clone()])
            .tls_danger_accept_invalid_hostnames(true)
    };
    let probe = client().build().unwrap();
    for path in ["/livez", "/readyz", "/metrics"] {
        let answer = probe.get(url(path)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    let refused = probe.get(url("/debug/config")).send().await.unwrap();
    assert_eq!(refused.status(), 401);
    let identity = format!("{client_cert}{client_key}");
    let identity = reqwest::Identity::from_pem(identity.as_bytes()).unwrap();
    let known = client().identity(identity).build().unwrap();
    let answer = known.get(url("/debug/config")).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let metrics = probe
        .get(url("/metrics"))
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let expires = value(
        &metrics,
        "ringfence_tls_certificate_not_after_timestamp_seconds",
    );
    assert!(expires > 1_700_000_000.0, "{metrics}");
    // A call by gRPC-Web needs a certificate as much as one of gRPC does.
    let run = url("/ringfence.v1.SandboxService/Run");
    let call = |client: &reqwest::Client| {
        let request = client
            .post(&run)
            .header("content-type", "application/grpc-web");
        request.body(vec![0; 5]).send()
    };
    let refused = call(&probe).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "16");
    let told = call(&known).await.unwrap();
    assert_eq!(told.headers()["grpc-status"], "3", "it has no spec");
}

#[tokio::test]
async fn the_settings_in_force_are_shown_where_there_is_one_tenant() {
    let daemon = Daemon::with(&[ADMIN, ("admission.queue", "17")]).await;
    let shown: toml::Table = get(&daemon, "/debug/config").await.body.parse().unwrap();
    assert_eq!(shown["admission"]["queue"].as_integer(), Some(17));
    assert_eq!(get(&daemon, "/nothing").await.status, 404);
    let answer = ask(&daemon.admin, "POST", "/metrics", &[]).await;
    assert_eq!(answer.status, 405);
    assert!(answer.headers["allow"].contains("GET"));
    let head = ask(&daemon.admin, "HEAD", "/metrics", &[]).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}
