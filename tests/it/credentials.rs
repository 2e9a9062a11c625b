//! What is taken out is refused whatever else is wrong, names are of a kind, credentials agree, and
//! the best reason is told.

use std::io::BufRead;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use rcgen::SanType;
use ringfence::config::Overrides;
use ringfence::model::request::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

use crate::auth::{Authority, Signer, call, in_seconds, judged, tls, until_judged, write};
use crate::harness::{Daemon, PATIENCE, Refused, channel, program};
use crate::process::Served;
use crate::tenants::token;

const METHOD: &str = "RunService/ListRuns";

fn line(tenant: &str, token_of: &str) -> String {
    format!("{tenant} {}\n", Digest::of(token(token_of).as_bytes()))
}

fn bearer(token: &str) -> [String; 1] {
    [format!("Bearer {token}")]
}

async fn judge(channel: &Channel, token: &str) -> &'static str {
    judged(&call(channel, METHOD, &bearer(token)).await)
}

/// A daemon that takes tokens of a file, for the tenants "a" and "b".
struct Tokens {
    _daemon: Daemon,
    channel: Channel,
    file: PathBuf,
    _dir: TempDir,
}

impl Tokens {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let file = write(&dir, "tokens", &(line("a", "a") + &line("b", "b")));
        let set = [
            ("tenants", "[{ name = \"a\" }, { name = \"b\" }]"),
            ("auth.tokens_file", file.to_str().unwrap()),
            ("auth.open_health", "true"),
        ];
        let daemon = Daemon::with(&set).await;
        let channel = channel(&daemon.addr).await;
        let tokens = Self {
            _daemon: daemon,
            channel,
            file,
            _dir: dir,
        };
        tokens.expect("let in", "let in").await;
        tokens
    }

    /// Waits until the token of "b" is judged so, and then that of "a" is.
    async fn expect(&self, a: &str, b: &str) {
        until_judged(&self.channel, &token("b"), b).await;
        assert_eq!(judge(&self.channel, &token("a")).await, a);
    }

    /// Writes another file, beside it and renamed.
    fn replace(&self, contents: &[u8]) {
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, contents).unwrap();
        std::fs::rename(beside, &self.file).unwrap();
    }
}

/// Whatever else is wrong with a file, what is in it counts and what is not does not.
#[tokio::test]
async fn a_token_that_is_taken_out_is_refused_whatever_else_is_in_its_file() {
    let tokens = Tokens::start().await;
    let (a, b) = (line("a", "a"), line("b", "b"));
    let with = |bad: &[u8]| [bad, b"\n", a.as_bytes(), bad].concat();
    for bad in [
        &b"nonsense"[..],
        b"a sha256:12",
        b"a b c",
        b"nobody sha256:0000000000000000000000000000000000000000000000000000000000000000",
        b"a \xff\xfe",
        // Commented out, as people do who try something.
        format!("# {b}").as_bytes(),
        // Half written.
        &b.as_bytes()[..40],
    ] {
        tokens.replace(&with(bad));
        tokens.expect("let in", "unauthenticated").await;
        tokens.replace(format!("{a}{b}").as_bytes());
        tokens.expect("let in", "let in").await;
    }
    // One of two tenants is nobody's.
    tokens.replace(format!("{a}{b}{}", line("a", "b")).as_bytes());
    tokens.expect("let in", "unauthenticated").await;
}

/// What becomes of a file.
type Change = fn(&Path);

#[tokio::test]
async fn tokens_of_a_file_that_is_gone_or_cannot_be_read_are_refused_until_it_is_back() {
    let tokens = Tokens::start().await;
    let all = line("a", "a") + &line("b", "b");
    let unreadable: [(&str, Change); 4] = [
        ("removed", |file| std::fs::remove_file(file).unwrap()),
        ("emptied", |file| std::fs::write(file, "").unwrap()),
        ("a folder", |file| {
            std::fs::remove_file(file).unwrap();
            std::fs::create_dir(file).unwrap();
        }),
        ("too large", |file| {
            std::fs::write(file, "#".repeat((4 << 20) + 1)).unwrap();
        }),
    ];
    for (how, change) in unreadable {
        eprintln!("{how}");
        change(&tokens.file);
        tokens.expect("unauthenticated", "unauthenticated").await;
        if tokens.file.is_dir() {
            std::fs::remove_dir(&tokens.file).unwrap();
        }
        tokens.replace(all.as_bytes());
        tokens.expect("let in", "let in").await;
    }
}

#[test]
fn what_is_wrong_with_a_file_is_loud_while_the_daemon_goes_on_and_keeps_it_from_starting() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "tokens", &line("default", "a"));
    let set = format!("auth.tokens_file={}", file.display());
    let mut served = Served::start(&["--set", &set]);
    let mut told = |expected: &[&str]| {
        let mut text = String::new();
        while !(text.contains("ERROR") && expected.iter().all(|it| text.contains(it))) {
            text.clear();
            assert!(served.log.read_line(&mut text).unwrap() > 0, "it ended");
            assert!(!text.contains("secret"), "{text}");
        }
    };
    std::fs::write(&file, "one secret too many\n\ndefault secret\n").unwrap();
    told(&["auth.tokens_file", "line 1", "line 3"]);
    std::fs::remove_file(&file).unwrap();
    told(&["auth.tokens_file", "nothing of it is in force"]);
    std::fs::write(&file, b"\xff secret").unwrap();
    told(&["auth.tokens_file", "line 1: is not text"]);
    drop(served);
    for (contents, expected) in [
        ("default secret\n".to_owned(), "line 1"),
        (line("default", "a") + "one secret too many", "line 2"),
        (line("nobody", "a"), "there is no tenant of that name"),
    ] {
        std::fs::write(&file, contents).unwrap();
        let output = crate::process::ringfence()
            .args(["serve", "--listen", "127.0.0.1:0", "--set", &set])
            .output()
            .unwrap();
        let why = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && why.contains(expected), "{why}");
        assert!(!why.contains("secret"), "{why}");
    }
}

/// A daemon that takes JSON Web Tokens by the keys of a file, for the tenant "a".
struct Jwts {
    _daemon: Daemon,
    channel: Channel,
    file: PathBuf,
    _dir: TempDir,
}

impl Jwts {
    async fn start(set: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let file = write(&dir, "jwks.json", set);
        let set = [
            ("tenants", "[{ name = \"a\" }]"),
            ("auth.jwt.jwks", file.to_str().unwrap()),
            ("auth.jwt.issuer", "https://issuer.test"),
            ("auth.jwt.audience", "ringfence"),
            ("auth.open_health", "true"),
        ];
        let daemon = Daemon::with(&set).await;
        let channel = channel(&daemon.addr).await;
        Self {
            _daemon: daemon,
            channel,
            file,
            _dir: dir,
        }
    }

    /// Why a token is refused; nothing where it is not.
    async fn why(&self, token: &str) -> String {
        let status = call(&self.channel, METHOD, &bearer(token)).await;
        match judged(&status) {
            "let in" => String::new(),
            _ => Refused::new(&status).message,
        }
    }
}

#[tokio::test]
async fn keys_that_are_taken_out_of_their_file_are_refused_whatever_became_of_it() {
    let (one, other) = (Signer::new("one"), Signer::new("other"));
    let good = Signer::set(&[&one]);
    let jwts = Jwts::start(&good).await;
    let token = one.sign(|_| ());
    let secret = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0", "alg": "HS256" }] });
    let encrypts = {
        let mut jwk = one.jwk.clone();
        jwk["use"] = json!("enc");
        json!({ "keys": [jwk] })
    };
    for contents in [
        Some("{\"keys\": []}".to_owned()),
        Some(Signer::set(&[&other])),
        Some(String::new()),
        Some("{\"keys\": 1}".to_owned()),
        Some(good[..good.len() / 2].to_owned()),
        Some(secret.to_string()),
        Some(encrypts.to_string()),
        None,
    ] {
        eprintln!("{contents:?}");
        match &contents {
            Some(contents) => std::fs::write(&jwts.file, contents).unwrap(),
            None => std::fs::remove_file(&jwts.file).unwrap(),
        }
        until_judged(&jwts.channel, &token, "unauthenticated").await;
        std::fs::write(&jwts.file, &good).unwrap();
        until_judged(&jwts.channel, &token, "let in").await;
    }
}

/// RFC 7517, section 5: what is not understood in a set is passed over.
#[tokio::test]
async fn a_key_of_an_unknown_kind_takes_nothing_from_those_beside_it() {
    let good = Signer::new("good");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut jwk = Signer::new("odd").jwk;
        change(&mut jwk);
        jwk
    };
    let odd = [
        json!({ "kty": "AKP", "alg": "ML-DSA-65", "kid": "pq", "pub": "AA" }),
        changed(&|it| it["alg"] = json!("ES999")),
        changed(&|it| it["crv"] = json!("secp256k1")),
        changed(&|it| it["kid"] = json!(7)),
        changed(&|it| {
            it.as_object_mut().unwrap().remove("x");
        }),
        json!("no key at all"),
    ];
    let keys = [&odd[..], std::slice::from_ref(&good.jwk)].concat();
    let jwts = Jwts::start(&json!({ "keys": keys, "more": 1 }).to_string()).await;
    assert_eq!(jwts.why(&good.sign(|_| ())).await, "");
}

/// RFC 7515, section 4.1.11: who does not understand an extension that must be refuses the token.
#[tokio::test]
async fn a_token_whose_header_asks_for_what_is_not_understood_is_refused() {
    let signer = Signer::new("one");
    let jwts = Jwts::start(&Signer::set(&[&signer])).await;
    let shown = |key: &'static str, value: Value| {
        signer.sign_as(|header| header.extras.insert(key, value), |_| ())
    };
    assert_eq!(jwts.why(&shown("x", json!("not critical"))).await, "");
    assert_eq!(jwts.why(&shown("b64", json!(true))).await, "");
    for crit in [
        json!(["exp"]),
        json!(["b64"]),
        json!([]),
        json!("exp"),
        json!(null),
        json!([1]),
    ] {
        let why = jwts.why(&shown("crit", crit.clone())).await;
        assert!(why.contains("crit"), "{crit}: {why}");
    }
    for b64 in [json!(false), json!("false"), json!(0)] {
        let why = jwts.why(&shown("b64", b64.clone())).await;
        assert!(why.contains("b64"), "{b64}: {why}");
    }
    // Spelt otherwise, or twice.
    for header in [
        r#"{"alg":"ES256","kid":"one","cr\u0069t":["exp"]}"#,
        r#"{"alg":"ES256","kid":"one","crit":["exp"],"crit":null}"#,
    ] {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims = signer.sign(|_| ());
        let claims = claims.split('.').nth(1).unwrap();
        let message = format!("{}.{claims}", part(header));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &signer.key, Algorithm::ES256).unwrap();
        let why = jwts.why(&format!("{message}.{signature}")).await;
        assert!(why.contains("crit"), "{header}: {why}");
    }
}

#[tokio::test]
async fn the_best_reason_is_told() {
    let (one, other) = (Signer::new("one"), Signer::new("other"));
    // What is after it does not verify the token.
    let jwts = Jwts::start(&Signer::set(&[&one, &other])).await;
    let without = |claim: &'static str| {
        move |it: &mut Value| {
            it.as_object_mut().unwrap().remove(claim);
        }
    };
    let no_kid = |change: &dyn Fn(&mut Value)| one.sign_as(|it| it.kid = None, |it| change(it));
    let stranger = Signer::new("one");
    let gone = |it: &mut Value| it["exp"] = json!(in_seconds(-600));
    for (token, expected) in [
        (no_kid(&gone), "has expired"),
        (one.sign(gone), "has expired"),
        (stranger.sign(gone), "has expired"),
        (Signer::new("unknown").sign(gone), "has expired"),
        (
            no_kid(&|it| it["nbf"] = json!(in_seconds(600))),
            "is not valid yet",
        ),
        (no_kid(&|it| it["aud"] = json!("x")), "another audience"),
        (no_kid(&|it| it["aud"] = json!(["x"])), "another audience"),
        (no_kid(&|it| it["iss"] = json!("x")), "another issuer"),
        (one.sign(without("exp")), "lacks exp, aud or iss"),
        (one.sign(without("aud")), "lacks exp, aud or iss"),
        (
            one.sign(|it| it["exp"] = json!("x")),
            "exp or nbf is not a number",
        ),
        (
            one.sign(|it| it["nbf"] = json!("x")),
            "exp or nbf is not a number",
        ),
        (one.sign(without("sub")), "names no tenant"),
        (stranger.sign(|_| ()), "not signed by a key that is known"),
        ("a.b.c".to_owned(), "not a JWT"),
        (one.sign(|_| ()) + ".x", "not a JWT"),
    ] {
        let why = jwts.why(&token).await;
        assert!(why.contains(expected), "{expected}: {why}");
    }
    // Of several, the first.
    let all = one.sign(|it| {
        gone(it);
        it["nbf"] = json!(in_seconds(600));
        it["aud"] = json!("x");
        it.as_object_mut().unwrap().remove("iss");
    });
    assert!(jwts.why(&all).await.contains("has expired"));
    let some = one.sign(|it| {
        it["aud"] = json!("x");
        it.as_object_mut().unwrap().remove("exp");
    });
    assert!(jwts.why(&some).await.contains("another audience"));
}

/// A daemon with TLS in this process.
struct Secure {
    addr: String,
    servers: Authority,
    served: JoinHandle<Result<(), ringfence::app::AppError>>,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.served.abort();
    }
}

impl Secure {
    async fn start(dir: &TempDir, clients: &Authority, tenants: &str) -> Self {
        let servers = Authority::new("servers");
        let (cert, key) = servers.issue(&["localhost"]);
        let cert = write(dir, "cert.pem", &cert);
        let key = write(dir, "key.pem", &key);
        let ca = write(dir, "ca.pem", &clients.pem());
        let set = [
            ("listen", "[\"127.0.0.1:0\"]"),
            ("tls.cert", cert.to_str().unwrap()),
            ("tls.key", key.to_str().unwrap()),
            ("tls.client_ca", ca.to_str().unwrap()),
            ("tenants", tenants),
        ];
        let overrides = Overrides {
            set: set.map(|(key, value)| (key.into(), value.into())).to_vec(),
            ..Overrides::default()
        };
        let (config, _) = ringfence::app::load_config(&overrides).unwrap();
        let app = ringfence::app::build(&config, program()).await.unwrap();
        Self {
            addr: app.addrs()[0].to_string(),
            servers,
            served: tokio::spawn(app.serve_until(std::future::pending())),
        }
    }

    async fn connect(&self, shown: &(String, String)) -> Channel {
        tls(&self.addr, &self.servers.pem(), Some(shown))
            .await
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_certificates_are_equal_to_those_of_their_kind_only() {
    let dir = TempDir::new().unwrap();
    let clients = Authority::new("clients");
    let tenants = r#"[{ name = "a", certificates = ["spiffe://test/a", "Host.test", "dns:only.test", "cn:Team A",
        "email:me@a.test", "ip:10.0.0.7", "uri:urn:a"] }]"#;
    let secure = Secure::start(&dir, &clients, tenants).await;
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let email = |name: &str| SanType::Rfc822Name(name.try_into().unwrap());
    let ip = |address: &str| SanType::IpAddress(address.parse::<IpAddr>().unwrap());
    let nobody = "Nobody";
    for (common, others, expected) in [
        (nobody, vec![uri("spiffe://test/a")], "let in"),
        (nobody, vec![uri("urn:a")], "let in"),
        (nobody, vec![dns("host.TEST")], "let in"),
        (nobody, vec![dns("only.test")], "let in"),
        (nobody, vec![email("me@A.test")], "let in"),
        (nobody, vec![ip("10.0.0.7")], "let in"),
        (
            nobody,
            vec![dns("x.test"), uri("spiffe://test/a")],
            "let in",
        ),
        // A common name counts where there is nothing else, of any kind.
        ("Team A", vec![], "let in"),
        ("Host.test", vec![], "let in"),
        ("Team A", vec![dns("x.test")], "forbidden"),
        ("Team A", vec![email("x@x.test")], "forbidden"),
        ("Team A", vec![ip("10.0.0.8")], "forbidden"),
        ("Host.test", vec![uri("spiffe://test/x")], "forbidden"),
        ("only.test", vec![], "forbidden"),
        // One that is spelt like one of another kind.
        (nobody, vec![dns("spiffe://test/a")], "forbidden"),
        ("spiffe://test/a", vec![], "forbidden"),
        (nobody, vec![email("spiffe://test/a")], "forbidden"),
        (nobody, vec![uri("host.test")], "forbidden"),
        (nobody, vec![email("host.test")], "forbidden"),
        (nobody, vec![dns("Team A")], "forbidden"),
        (nobody, vec![dns("10.0.0.7")], "forbidden"),
        (nobody, vec![dns("me@a.test")], "forbidden"),
        // No pattern, and no part.
        (nobody, vec![dns("*.test")], "forbidden"),
        (nobody, vec![dns("*")], "forbidden"),
        (nobody, vec![dns("x.host.test")], "forbidden"),
        (nobody, vec![uri("spiffe://test/a/b")], "forbidden"),
        ("uri:spiffe://test/a", vec![], "forbidden"),
    ] {
        let channel = secure.connect(&clients.issue_common(common, &others)).await;
        let status = call(&channel, METHOD, &[]).await;
        assert_eq!(judged(&status), expected, "{common} {others:?}");
    }
}

/// What is wrong with the daemon's own certificate keeps no authority of clients in force.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_taken_out_is_refused_whatever_became_of_the_other_files() {
    let dir = TempDir::new().unwrap();
    let (clients, others) = (Authority::new("clients"), Authority::new("others"));
    let tenants = r#"[{ name = "a", certificates = ["a.test"] }]"#;
    let secure = Secure::start(&dir, &clients, tenants).await;
    let (ca, key) = (dir.path().join("ca.pem"), dir.path().join("key.pem"));
    let own = std::fs::read_to_string(&key).unwrap();
    let channel = secure.connect(&clients.issue(&["a.test"])).await;
    let judge = async || judged(&call(&channel, METHOD, &[]).await);
    let until = async |expected: &str| {
        let start = Instant::now();
        while judge().await != expected {
            assert!(start.elapsed() < PATIENCE, "it is never {expected}");
            tokio::task::yield_now().await;
        }
    };
    until("let in").await;
    // A key that is another certificate's.
    std::fs::write(&key, others.issue(&["localhost"]).1).unwrap();
    std::fs::write(&ca, others.pem()).unwrap();
    until("unauthenticated").await;
    std::fs::write(&key, own).unwrap();
    std::fs::write(&ca, clients.pem()).unwrap();
    until("let in").await;
    std::fs::remove_file(&ca).unwrap();
    until("unauthenticated").await;
    // One that is malformed takes nothing from those beside it, and keeps none that is not there.
    let malformed = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(&ca, format!("{malformed}{}", clients.pem())).unwrap();
    until("let in").await;
    std::fs::write(&ca, format!("{malformed}{}", others.pem())).unwrap();
    until("unauthenticated").await;
}

#[tokio::test]
async fn a_user_and_a_token_that_disagree_are_refused() {
    let dir = TempDir::new().unwrap();
    let signer = Signer::new("one");
    let jwks = write(&dir, "jwks.json", &Signer::set(&[&signer]));
    let tokens = write(&dir, "tokens", &(line("a", "a") + &line("b", "b")));
    let uid = rustix::process::getuid().as_raw();
    for (owner, alone, with_a, with_b) in [
        (uid, "let in", "let in", "forbidden"),
        // A user that stands for nobody says nothing.
        (uid + 1, "unauthenticated", "let in", "let in"),
    ] {
        let tenants = format!("[{{ name = \"a\", uids = [{owner}] }}, {{ name = \"b\" }}]");
        let socket = format!("unix:{}", dir.path().join(format!("s{owner}")).display());
        let set = [
            ("tenants", tenants.as_str()),
            ("auth.tokens_file", tokens.to_str().unwrap()),
            ("auth.jwt.jwks", jwks.to_str().unwrap()),
            ("auth.jwt.issuer", "https://issuer.test"),
            ("auth.jwt.audience", "ringfence"),
            ("auth.open_health", "true"),
        ];
        let _daemon = Daemon::listening(&socket, &set).await;
        let channel = channel(&socket).await;
        let status = call(&channel, METHOD, &[]).await;
        assert_eq!(judged(&status), alone);
        for (token, expected) in [
            (token("a"), with_a),
            (token("b"), with_b),
            (signer.sign(|_| ()), with_a),
            (signer.sign(|it| it["sub"] = json!("b")), with_b),
            ("nonsense".to_owned(), "unauthenticated"),
            (
                signer.sign(|it| it["exp"] = json!(in_seconds(-600))),
                "unauthenticated",
            ),
        ] {
            assert_eq!(judge(&channel, &token).await, expected, "{owner} {token}");
        }
    }
}

/// Each refused call ends before its message came, which HTTP/2 counts against a connection.
#[tokio::test]
async fn a_caller_that_is_refused_again_and_again_keeps_its_connection() {
    let tokens = Tokens::start().await;
    for _ in 0..300 {
        assert_eq!(judge(&tokens.channel, "unknown").await, "unauthenticated");
    }
    assert_eq!(judge(&tokens.channel, &token("a")).await, "let in");
}
