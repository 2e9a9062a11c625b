//! Who calls: every listener, every credential, every method; what is revoked, rotated, forged.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use ringfence::api::proto::{HealthRequest, RunRequest};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::harness::{Daemon, PATIENCE, Refused, channel, spec};
use crate::process::{Served, ringfence};
use crate::tenants::{Tenant, methods, token, tokens_file};

const NOTHING: &str = "(module (func (export \"_start\")))";

/// An authority, and what it certifies.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate of `names`, and its key.
    pub(crate) fn issue(&self, names: &[&str]) -> (String, String) {
        self.issue_until(names, None)
    }

    pub(crate) fn issue_until(&self, names: &[&str], year: Option<i32>) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        for name in names {
            params.subject_alt_names.push(match name.contains("://") {
                true => SanType::URI((*name).try_into().unwrap()),
                false => SanType::DnsName((*name).try_into().unwrap()),
            });
        }
        if let Some(year) = year {
            params.not_before = rcgen::date_time_ymd(year - 1, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
        }
        self.certify(&params)
    }

    /// A certificate of a common name, and of other names that may be of any kind.
    pub(crate) fn issue_common(&self, common: &str, names: &[SanType]) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common);
        params.subject_alt_names = names.to_vec();
        self.certify(&params)
    }

    fn certify(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

pub(crate) fn write(dir: &TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A signer of tokens, and its key as one of a set.
pub(crate) struct Signer {
    pub(crate) key: EncodingKey,
    pub(crate) jwk: Value,
    pub(crate) kid: String,
}

impl Signer {
    pub(crate) fn new(kid: &str) -> Self {
        let pair = KeyPair::generate().unwrap();
        // An uncompressed point: a byte that says so, then both coordinates.
        let point = pair.public_key_raw().to_vec();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        Self {
            key: EncodingKey::from_ec_der(&pair.serialize_der()),
            jwk: json!({
                "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": kid,
                "x": part(1..33), "y": part(33..65),
            }),
            kid: kid.to_owned(),
        }
    }

    pub(crate) fn set(signers: &[&Self]) -> String {
        let keys: Vec<&Value> = signers.iter().map(|it| &it.jwk).collect();
        json!({ "keys": keys }).to_string()
    }

    pub(crate) fn sign(&self, change: impl FnOnce(&mut Value)) -> String {
        self.sign_as(|_| (), change)
    }

    /// With another header.
    pub(crate) fn sign_as(
        &self,
        header: impl FnOnce(&mut Header),
        change: impl FnOnce(&mut Value),
    ) -> String {
        let mut claims = claims();
        change(&mut claims);
        let mut shown = Header::new(Algorithm::ES256);
        shown.kid = Some(self.kid.clone());
        header(&mut shown);
        jsonwebtoken::encode(&shown, &claims, &self.key).unwrap()
    }
}

fn claims() -> Value {
    json!({ "iss": "https://issuer.test", "aud": "ringfence", "exp": in_seconds(600), "sub": "a" })
}

pub(crate) fn in_seconds(seconds: i64) -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap() + seconds
}

/// A token whose header says that nobody signed it.
fn unsigned() -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "none", "typ": "JWT" }));
    format!("{header}.{}.", part(claims()))
}

/// A token that is signed with a public key as if that were a secret.
fn confused(signer: &Signer) -> String {
    let x = signer.jwk["x"].as_str().unwrap();
    let key = EncodingKey::from_secret(&URL_SAFE_NO_PAD.decode(x).unwrap());
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some(signer.kid.clone());
    jsonwebtoken::encode(&header, &claims(), &key).unwrap()
}

/// Calls a method with nothing in it, and says how that went.
pub(crate) async fn call(channel: &Channel, method: &str, authorization: &[String]) -> Status {
    let mut channel = channel.clone();
    let mut request = http::Request::post(format!("http://localhost/ringfence.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for value in authorization {
        request = request.header("authorization", value);
    }
    // An empty message, whole.
    let body = http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]));
    let body = http_body_util::BodyExt::map_err(body, |never| match never {});
    let request = request.body(tonic::body::Body::new(body)).unwrap();
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut channel, cx))
        .await
        .unwrap();
    let answer = tower_service::Service::call(&mut channel, request)
        .await
        .unwrap();
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return status;
    }
    // A stream that began was let in; nothing else is asked of it.
    Status::from_header_map(&http::HeaderMap::new()).unwrap_or_else(|| Status::ok(""))
}

/// How a call was judged.
pub(crate) fn judged(status: &Status) -> &'static str {
    let code = status.code();
    if code == Code::Unauthenticated {
        Refused::new(status).is(code, "CREDENTIALS_INVALID");
        return "unauthenticated";
    }
    if code == Code::PermissionDenied {
        Refused::new(status).is(code, "FORBIDDEN");
        return "forbidden";
    }
    if code == Code::Unavailable {
        let refused = Refused::new(status).is(code, "RUNTIME_UNAVAILABLE");
        assert!(refused.retry, "{refused:?}");
        return "unavailable";
    }
    "let in"
}

pub(crate) async fn tls(
    addr: &str,
    ca: &str,
    identity: Option<&(String, String)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca))
        .domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let endpoint = Endpoint::from_shared(format!("https://{addr}")).unwrap();
    endpoint.tls_config(tls).unwrap().connect().await
}

/// Every listener, every credential, every method.
#[tokio::test(flavor = "multi_thread")]
async fn every_method_of_every_listener_asks_who_calls() {
    let dir = TempDir::new().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (cert, key) = servers.issue(&["localhost"]);
    let signer = Signer::new("first");
    let stranger = Signer::new("first");
    let tokens = tokens_file(&dir, &["a", "b"]);
    let cert = write(&dir, "cert.pem", &cert);
    let key = write(&dir, "key.pem", &key);
    let ca = write(&dir, "ca.pem", &clients.pem());
    let jwks = write(&dir, "jwks.json", &Signer::set(&[&signer]));
    let uid = rustix::process::getuid().as_raw();
    let tenants = format!(
        r#"[{{ name = "a", certificates = ["spiffe://test/a"] }}, {{ name = "b", certificates = ["b.test"] }}, {{ name = "c", uids = [{uid}] }}]"#
    );
    let socket = format!("unix:{}", dir.path().join("s").display());
    let common = [
        ("tenants", tenants.as_str()),
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.jwt.jwks", jwks.to_str().unwrap()),
        ("auth.jwt.issuer", "https://issuer.test"),
        ("auth.jwt.audience", "ringfence"),
        ("tls.cert", cert.to_str().unwrap()),
        ("tls.key", key.to_str().unwrap()),
        ("tls.client_ca", ca.to_str().unwrap()),
        ("tls.client_auth", "request"),
    ];
    let overrides = ringfence::config::Overrides {
        set: common
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .chain([(
                "listen".to_owned(),
                format!("[\"127.0.0.1:0\", {socket:?}]"),
            )])
            .collect(),
        ..Default::default()
    };
    let (config, _) = ringfence::app::load_config(&overrides).unwrap();
    let app = ringfence::app::build(&config, crate::harness::program())
        .await
        .unwrap();
    let addr = app.addrs()[0].to_string();
    let served = tokio::spawn(app.serve_until(std::future::pending()));

    let expired = signer.sign(|it| it["exp"] = json!(in_seconds(-600)));
    let bearer = |token: &str| vec![format!("Bearer {token}")];
    // A credential in the header, how it is judged alone, and beside the certificate of "a".
    let headers: Vec<(&str, Vec<String>, &str, &str)> = vec![
        ("a token", bearer(&token("a")), "let in", "let in"),
        (
            "another tenant's token",
            bearer(&token("b")),
            "let in",
            "forbidden",
        ),
        (
            "a token in lower case",
            vec![format!("bearer {}", token("a"))],
            "let in",
            "let in",
        ),
        (
            "an unknown token",
            bearer("nonsense"),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "half a token",
            bearer(&token("a")[1..]),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "a long token",
            bearer(&"x".repeat(7000)),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "another scheme",
            vec!["Basic YTpi".to_owned()],
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "an empty header",
            vec![String::new()],
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "two headers",
            [bearer(&token("a")), bearer(&token("a"))].concat(),
            "unauthenticated",
            "unauthenticated",
        ),
        ("a JWT", bearer(&signer.sign(|_| ())), "let in", "let in"),
        (
            "an expired JWT",
            bearer(&expired),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "one that never expires",
            bearer(&signer.sign(|it| {
                it.as_object_mut().unwrap().remove("exp");
            })),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "one that is not valid yet",
            bearer(&signer.sign(|it| it["nbf"] = json!(in_seconds(600)))),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "another audience",
            bearer(&signer.sign(|it| it["aud"] = json!("other"))),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "no audience",
            bearer(&signer.sign(|it| {
                it.as_object_mut().unwrap().remove("aud");
            })),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "another issuer",
            bearer(&signer.sign(|it| it["iss"] = json!("https://other.test"))),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "no tenant",
            bearer(&signer.sign(|it| {
                it.as_object_mut().unwrap().remove("sub");
            })),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "a tenant that there is not",
            bearer(&signer.sign(|it| it["sub"] = json!("nobody"))),
            "forbidden",
            "forbidden",
        ),
        (
            "alg none",
            bearer(&unsigned()),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "a public key as a secret",
            bearer(&confused(&signer)),
            "unauthenticated",
            "unauthenticated",
        ),
        (
            "a stranger's signature",
            bearer(&stranger.sign(|_| ())),
            "unauthenticated",
            "unauthenticated",
        ),
    ];
    let disagrees = |alone: &&'static str| match *alone {
        "let in" => "forbidden",
        refused => refused,
    };
    let a = clients.issue(&["spiffe://test/a"]);
    let unknown = clients.issue(&["unknown.test"]);
    let plain = tls(&addr, &servers.pem(), None).await.unwrap();
    let with_a = tls(&addr, &servers.pem(), Some(&a)).await.unwrap();
    let with_unknown = tls(&addr, &servers.pem(), Some(&unknown)).await.unwrap();
    let unix = channel(&socket).await;
    for method in methods() {
        for (name, header, alone, beside) in &headers {
            for (listener, channel, expected) in [
                ("TLS", &plain, alone),
                ("TLS, a certificate", &with_a, beside),
                ("TLS, a certificate of nobody", &with_unknown, alone),
                // Its user is the tenant "c".
                ("a unix socket", &unix, &disagrees(alone)),
            ] {
                let status = call(channel, &method, header).await;
                assert_eq!(
                    judged(&status),
                    *expected,
                    "{method}, {listener}, {name}: {status:?}"
                );
            }
        }
        for (listener, channel, expected) in [
            ("TLS", &plain, "unauthenticated"),
            ("TLS, a certificate", &with_a, "let in"),
            (
                "TLS, a certificate of nobody",
                &with_unknown,
                "unauthenticated",
            ),
            ("a unix socket, its user", &unix, "let in"),
        ] {
            let status = call(channel, &method, &[]).await;
            assert_eq!(
                judged(&status),
                expected,
                "{method}, {listener}, nothing: {status:?}"
            );
        }
    }
    // One that stands for two tenants is neither.
    let both = clients.issue(&["spiffe://test/a", "b.test"]);
    let both = tls(&addr, &servers.pem(), Some(&both)).await.unwrap();
    for header in [vec![], bearer(&token("a"))] {
        let status = call(&both, "RunService/ListRuns", &header).await;
        assert_eq!(judged(&status), "forbidden");
    }
    // Certificates that are not valid make no connection that can be called on.
    let strangers = Authority::new("clients");
    for bad in [
        strangers.issue(&["spiffe://test/a"]),
        clients.issue_until(&["spiffe://test/a"], Some(2020)),
    ] {
        let refused = match tls(&addr, &servers.pem(), Some(&bad)).await {
            Err(_) => true,
            Ok(channel) => {
                let mut client = Tenant::of(channel, &token("a")).sandbox;
                client.health(HealthRequest {}).await.is_err()
            }
        };
        assert!(refused);
    }
    // Health and reflection are methods like any other, unless Health is left open.
    let mut health = tonic_health::pb::health_client::HealthClient::new(plain.clone());
    let status = health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await;
    assert_eq!(judged(&status.unwrap_err()), "unauthenticated");
    // A plain client of a listener with TLS, and one that says nothing, are let go.
    let mut stream = tokio::net::TcpStream::connect(&addr).await.unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap();
    served.abort();
}

#[tokio::test]
async fn health_can_be_left_open_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let set = [
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.open_health", "true"),
    ];
    let daemon = Daemon::with(&set).await;
    let channel = channel(&daemon.addr).await;
    for method in methods() {
        let expected = match method.ends_with("/Health") {
            true => "let in",
            false => "unauthenticated",
        };
        assert_eq!(
            judged(&call(&channel, &method, &[]).await),
            expected,
            "{method}"
        );
    }
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    health
        .check(tonic_health::pb::HealthCheckRequest::default())
        .await
        .unwrap();
}

/// Asks until the answer is as `expected`, which it comes to be when a file is read again.
pub(crate) async fn until_judged(channel: &Channel, token: &str, expected: &str) {
    let start = Instant::now();
    let header = [format!("Bearer {token}")];
    while judged(&call(channel, "RunService/ListRuns", &header).await) != expected {
        assert!(
            start.elapsed() < PATIENCE,
            "it never comes to be {expected}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_token_that_is_taken_out_of_the_file_is_refused_from_then_on() {
    let dir = TempDir::new().unwrap();
    let tokens = tokens_file(&dir, &["default"]);
    let set = [
        ("auth.tokens_file", tokens.to_str().unwrap()),
        ("auth.open_health", "true"),
    ];
    let daemon = Daemon::with(&set).await;
    // The same connection throughout.
    let channel = channel(&daemon.addr).await;
    until_judged(&channel, &token("default"), "let in").await;
    let fresh = "another-token-of-the-same";
    let hash = ringfence::model::request::Digest::of(fresh.as_bytes());
    // What is written halfway is not there.
    std::fs::write(&tokens, "default sha256:12").unwrap();
    until_judged(&channel, &token("default"), "unauthenticated").await;
    std::fs::write(&tokens, format!("default {hash}\n")).unwrap();
    until_judged(&channel, &token("default"), "unauthenticated").await;
    until_judged(&channel, fresh, "let in").await;
}

#[tokio::test]
async fn keys_of_a_set_are_read_again() {
    let dir = TempDir::new().unwrap();
    let (first, second) = (Signer::new("first"), Signer::new("second"));
    let jwks = write(&dir, "jwks.json", &Signer::set(&[&first]));
    let set = [
        ("auth.jwt.jwks", jwks.to_str().unwrap()),
        ("auth.jwt.issuer", "https://issuer.test"),
        ("auth.jwt.audience", "ringfence"),
        ("auth.jwt.tenant_claim", "tenant"),
        ("auth.open_health", "true"),
    ];
    let daemon = Daemon::with(&set).await;
    let channel = channel(&daemon.addr).await;
    let tenant = |it: &mut Value| it["tenant"] = json!("default");
    let (old, new) = (first.sign(tenant), second.sign(tenant));
    until_judged(&channel, &old, "let in").await;
    until_judged(&channel, &new, "unauthenticated").await;
    write(&dir, "jwks.json", &Signer::set(&[&second]));
    until_judged(&channel, &new, "let in").await;
    until_judged(&channel, &old, "unauthenticated").await;
}

#[tokio::test]
async fn keys_come_from_a_url_too() {
    let (first, second) = (Signer::new("first"), Signer::new("second"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
    let both = Signer::set(&[&first, &second]);
    let asked = Arc::new(AtomicBool::new(false));
    let serving = tokio::spawn({
        let asked = Arc::clone(&asked);
        async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await.unwrap();
                asked.store(true, Ordering::Relaxed);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{both}",
                    both.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    let set = [
        ("auth.jwt.jwks", url.as_str()),
        ("auth.jwt.issuer", "https://issuer.test"),
        ("auth.jwt.audience", "ringfence"),
        ("auth.open_health", "true"),
    ];
    let daemon = Daemon::with(&set).await;
    let channel = channel(&daemon.addr).await;
    let tenant = |it: &mut Value| it["sub"] = json!("default");
    until_judged(&channel, &second.sign(tenant), "let in").await;
    assert!(asked.load(Ordering::Relaxed));
    until_judged(
        &channel,
        &Signer::new("second").sign(tenant),
        "unauthenticated",
    )
    .await;
    serving.abort();
}

/// Calls go on, on connections that are there and on fresh ones, while the certificate is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_rotated_under_load_and_no_call_fails() {
    let dir = TempDir::new().unwrap();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let put = |authority: &Authority| {
        let (cert, key) = authority.issue(&["localhost"]);
        // One file after the other: in between the key is not the certificate's.
        write(&dir, "key.pem", &key);
        write(&dir, "cert.pem", &cert);
    };
    put(&old);
    let tokens = tokens_file(&dir, &["default"]);
    let overrides = ringfence::config::Overrides {
        set: [
            ("listen", "[\"127.0.0.1:0\"]"),
            ("tls.cert", dir.path().join("cert.pem").to_str().unwrap()),
            ("tls.key", dir.path().join("key.pem").to_str().unwrap()),
            ("auth.tokens_file", tokens.to_str().unwrap()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec(),
        ..Default::default()
    };
    let (config, _) = ringfence::app::load_config(&overrides).unwrap();
    let app = ringfence::app::build(&config, crate::harness::program())
        .await
        .unwrap();
    let addr = app.addrs()[0].to_string();
    let served = tokio::spawn(app.serve_until(std::future::pending()));
    // Trusts both, so that only a handshake that fails is a failure.
    let both = format!("{}{}", old.pem(), new.pem());
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = Vec::new();
    for fresh in [false, false, true, true] {
        let (addr, both, done) = (addr.clone(), both.clone(), Arc::clone(&done));
        callers.push(tokio::spawn(async move {
            let mut kept = Tenant::of(tls(&addr, &both, None).await.unwrap(), &token("default"));
            let mut calls = 0;
            while !done.load(Ordering::Relaxed) || calls < 10 {
                if fresh {
                    kept = Tenant::of(tls(&addr, &both, None).await.unwrap(), &token("default"));
                }
                let request = RunRequest {
                    spec: Some(spec(NOTHING)),
                };
                kept.sandbox.run(request).await.unwrap();
                calls += 1;
            }
            calls
        }));
    }
    // The new one is shown when somebody who trusts only that is served.
    let start = Instant::now();
    put(&new);
    while tls(&addr, &new.pem(), None).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it is never read again");
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        assert!(caller.await.unwrap() >= 10);
    }
    served.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_whose_authority_is_gone_is_refused_on_the_connection_that_has_it() {
    let dir = TempDir::new().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (cert, key) = servers.issue(&["localhost"]);
    let (cert, key) = (write(&dir, "cert.pem", &cert), write(&dir, "key.pem", &key));
    let ca = write(&dir, "ca.pem", &clients.pem());
    let overrides = ringfence::config::Overrides {
        set: [
            ("listen", "[\"127.0.0.1:0\"]"),
            ("tls.cert", cert.to_str().unwrap()),
            ("tls.key", key.to_str().unwrap()),
            ("tls.client_ca", ca.to_str().unwrap()),
            ("tenants", "[{ name = \"a\", certificates = [\"a.test\"] }]"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec(),
        ..Default::default()
    };
    let (config, _) = ringfence::app::load_config(&overrides).unwrap();
    let app = ringfence::app::build(&config, crate::harness::program())
        .await
        .unwrap();
    let addr = app.addrs()[0].to_string();
    let served = tokio::spawn(app.serve_until(std::future::pending()));
    let channel = tls(&addr, &servers.pem(), Some(&clients.issue(&["a.test"])))
        .await
        .unwrap();
    let judge = async || judged(&call(&channel, "RunService/ListRuns", &[]).await);
    assert_eq!(judge().await, "let in");
    // One of an authority that is trusted, which stands for nobody.
    let nobody = tls(&addr, &servers.pem(), Some(&clients.issue(&["b.test"])))
        .await
        .unwrap();
    let status = call(&nobody, "RunService/ListRuns", &[]).await;
    assert_eq!(judged(&status), "forbidden");
    // Without one there is no connection.
    let without = match tls(&addr, &servers.pem(), None).await {
        Err(_) => true,
        Ok(channel) => Tenant::of(channel, "x")
            .sandbox
            .health(HealthRequest {})
            .await
            .is_err(),
    };
    assert!(without);
    std::fs::write(&ca, Authority::new("others").pem()).unwrap();
    let start = Instant::now();
    while judge().await != "unauthenticated" {
        assert!(start.elapsed() < PATIENCE, "it is never read again");
        tokio::task::yield_now().await;
    }
    served.abort();
}

pub(crate) fn problem(set: &[&str]) -> String {
    let mut command = ringfence();
    command.args(["config", "check"]);
    for pair in set {
        command.args(["--set", pair]);
    }
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_listener_that_others_reach_needs_callers_to_be_told_apart() {
    let dir = TempDir::new().unwrap();
    let open = "listen=[\"0.0.0.0:0\"]";
    assert!(problem(&[open]).contains("because nothing authenticates the callers"));
    // Encryption alone tells nobody apart.
    let (cert, key) = Authority::new("servers").issue(&["localhost"]);
    let (cert, key) = (write(&dir, "c", &cert), write(&dir, "k", &key));
    let tls = [
        format!("tls.cert={}", cert.display()),
        format!("tls.key={}", key.display()),
    ];
    assert!(
        problem(&[open, &tls[0], &tls[1]]).contains("because nothing authenticates the callers")
    );
    let tokens = format!(
        "auth.tokens_file={}",
        tokens_file(&dir, &["default"]).display()
    );
    let checked = |set: &[&str]| {
        let mut command = ringfence();
        command.args(["config", "check"]);
        for pair in set {
            command.args(["--set", pair]);
        }
        assert!(command.status().unwrap().success(), "{set:?}");
    };
    checked(&[open, &tokens]);
    checked(&[open, "server.insecure_listen=true"]);
}

#[test]
fn what_makes_no_sense_about_callers_is_told() {
    for (set, told) in [
        (
            &["tenants=[{ name = \"a\" }]"][..],
            "certificates of a tenant tell callers apart",
        ),
        (&["tenants=[{ name = \"A b\" }]"], "tenants[0].name"),
        (
            &["tenants=[{ name = \"a\", uids = [1] }, { name = \"a\", uids = [2] }]"],
            "tenants[1].name = a: must be a name that no other tenant has",
        ),
        (
            &["tenants=[{ name = \"a\", uids = [1] }, { name = \"b\", uids = [1] }]"],
            "a user that no other tenant has",
        ),
        (
            &["tenants=[{ name = \"a\", uids = [1], policy = { max_memory_pages = 70000 } }]"],
            "tenants[0].policy.max_memory_pages",
        ),
        (
            &["tenants=[{ name = \"a\", uids = [1], policy = { nonsense = 1 } }]"],
            "nonsense",
        ),
        (
            &["tenants=[{ name = \"a\", uids = [1], quota = { runs_per_second = -1.0 } }]"],
            "tenants[0].quota.runs_per_second",
        ),
        (
            &["tenants=[{ name = \"a\", uids = [1], weight = 0 }]"],
            "tenants[0].weight",
        ),
        (
            &["tenants=[{ name = \"a\", certificates = [\"a.test\"] }]"],
            "tls.client_ca",
        ),
        (
            &["tenants=[{ name = \"a\", certificates = [\"*.a.test\"] }]"],
            "tenants[0].certificates",
        ),
        (
            &["tenants=[{ name = \"a\", certificates = [\"Team A\"] }]"],
            "or a name with its kind before it: \"uri:\", \"dns:\", \"email:\", \"ip:\" or \"cn:\"",
        ),
        (
            &["tenants=[{ name = \"a\", certificates = [\"10.0.0.1\"] }]"],
            "tenants[0].certificates",
        ),
        (
            &[
                "tenants=[{ name = \"a\", certificates = [\"A.test\"] }, { name = \"b\", certificates = [\"dns:a.test\"] }]",
            ],
            "a name that no other tenant has",
        ),
        (&["tls.cert=/nonexistent"], "tls.cert"),
        (&["auth.tokens_file=/nonexistent"], "auth.tokens_file"),
        (&["auth.jwt.jwks=http://example.com/keys"], "auth.jwt.jwks"),
        (
            &["auth.jwt.jwks=https://example.com/keys"],
            "auth.jwt.issuer",
        ),
        (
            &[
                "auth.jwt.jwks=https://example.com/keys",
                "auth.jwt.refresh=0s",
            ],
            "auth.jwt.refresh",
        ),
        (
            &[
                "auth.jwt.jwks=https://example.com/keys",
                "auth.jwt.max_stale=1m",
            ],
            "auth.jwt.max_stale",
        ),
        (
            &[
                "auth.jwt.jwks=https://example.com/keys",
                "auth.jwt.algorithms=[\"HS256\"]",
            ],
            "auth.jwt.algorithms",
        ),
        (&["admission.memory_share=1.5"], "admission.memory_share"),
        (&["hardening.user=root"], "hardening.user"),
        (&["hardening.user=0:0"], "hardening.user"),
        (&["telemetry.audit_file=relative"], "telemetry.audit_file"),
    ] {
        let problem = problem(set);
        assert!(problem.contains(told), "{set:?}: {problem}");
    }
}

/// The whole way by the command line: a token is made, goes into the file, and is shown.
#[test]
fn the_command_line_makes_tokens_and_shows_them() {
    let dir = TempDir::new().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let (cert, key) = servers.issue(&["localhost", "127.0.0.1.test"]);
    let made = ringfence().args(["token", "default"]).output().unwrap();
    let shown = write(&dir, "token", &String::from_utf8(made.stdout).unwrap());
    let told = String::from_utf8(made.stderr).unwrap();
    let line = told.split_once("auth.tokens_file: ").unwrap().1;
    let tokens = write(&dir, "tokens", line);
    let (cert, key) = (write(&dir, "c", &cert), write(&dir, "k", &key));
    let (ca, trusted) = (
        write(&dir, "client-ca", &clients.pem()),
        write(&dir, "ca", &servers.pem()),
    );
    let (own, own_key) = clients.issue(&["me.test"]);
    let (own, own_key) = (write(&dir, "own", &own), write(&dir, "own-key", &own_key));
    let set = |key: &str, path: &Path| format!("{key}={}", path.display());
    let daemon = Served::start(&[
        "--set",
        &set("auth.tokens_file", &tokens),
        "--set",
        &set("tls.cert", &cert),
        "--set",
        &set("tls.key", &key),
        "--set",
        &set("tls.client_ca", &ca),
    ]);
    let port = daemon.addr.rsplit_once(':').unwrap().1;
    let server = format!("localhost:{port}");
    let shows = |what: &[(&str, &Path)]| {
        let mut command = ringfence();
        command.args(["run", "examples/hello.wat", "--server", &server]);
        let mut command_line = ringfence();
        command_line.args(["run", "--server", &server]);
        for (flag, path) in what {
            command_line.arg(flag).arg(path);
        }
        command_line.arg("examples/hello.wat");
        drop(command);
        let output = command_line.output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let certificate = [
        ("--tls-ca", &*trusted),
        ("--tls-cert", &*own),
        ("--tls-key", &*own_key),
    ];
    let all = [&certificate[..], &[("--token-file", &*shown)]].concat();
    assert_eq!(shows(&all), (0, String::new()));
    let (code, why) = shows(&certificate);
    assert!(
        code == 126 && why.contains("CREDENTIALS_INVALID"),
        "{code} {why}"
    );
    let (code, _) = shows(&[("--tls-ca", &*trusted), ("--token-file", &*shown)]);
    assert_eq!(code, 125, "no certificate, no connection");
    // By the environment, which the daemon's configuration shares a prefix with.
    let status = ringfence()
        .args([
            "ps",
            "--server",
            &server,
            "--tls-cert",
            own.to_str().unwrap(),
            "--tls-key",
            own_key.to_str().unwrap(),
        ])
        .env("RINGFENCE_TOKEN_FILE", &shown)
        .env("RINGFENCE_TLS_CA", &trusted)
        .status();
    assert!(status.unwrap().success());
    let status = ringfence()
        .args(["config", "check"])
        .env("RINGFENCE_TOKEN_FILE", &shown)
        .status();
    assert!(status.unwrap().success());
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
}
