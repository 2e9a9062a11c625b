//! Keys from a URL: what an answer and a failure mean, redirects, keys that change, and who waits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

use crate::auth::{Signer, call, judged, until_judged};
use crate::harness::{Daemon, PATIENCE, Refused, channel};

const METHOD: &str = "RunService/ListRuns";

/// What a server says to a request for a path; `None`: nothing, ever.
type Answers = dyn Fn(&str) -> Option<String> + Send + Sync;

/// A server of keys, whose answers change.
struct KeyServer {
    addr: String,
    answers: Arc<Mutex<Arc<Answers>>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Drop for KeyServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl KeyServer {
    async fn start(answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let answers: Arc<Mutex<Arc<Answers>>> = Arc::new(Mutex::new(Arc::new(answers)));
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = tokio::spawn({
            let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
            async move {
                let mut silent = Vec::new();
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let mut head = [0; 4096];
                    let read = stream.read(&mut head).await.unwrap_or_default();
                    let head = String::from_utf8_lossy(&head[..read]).into_owned();
                    let path = head.split_whitespace().nth(1).unwrap_or_default();
                    asked.fetch_add(1, Ordering::SeqCst);
                    let now = Arc::clone(&answers.lock().unwrap());
                    match now(path) {
                        Some(answer) => {
                            let _ = stream.write_all(answer.as_bytes()).await;
                        }
                        None => silent.push(stream),
                    }
                }
            }
        });
        Self {
            addr,
            answers,
            asked,
            serving,
        }
    }

    fn answer(&self, answers: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        *self.answers.lock().unwrap() = Arc::new(answers);
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits until it was asked so often since.
    async fn until_asked(&self, since: usize, times: usize) {
        let start = Instant::now();
        while self.asked() < since + times {
            assert!(start.elapsed() < PATIENCE, "it is not asked");
            tokio::task::yield_now().await;
        }
    }

    async fn daemon(&self, more: &[(&str, &str)]) -> (Daemon, Channel) {
        let url = format!("http://{}/jwks.json", self.addr);
        let mut set = vec![
            ("tenants", "[{ name = \"a\" }]"),
            ("auth.jwt.jwks", url.as_str()),
            ("auth.jwt.issuer", "https://issuer.test"),
            ("auth.jwt.audience", "ringfence"),
            ("auth.open_health", "true"),
        ];
        set.extend(more);
        let daemon = Daemon::with(&set).await;
        let channel = channel(&daemon.addr).await;
        (daemon, channel)
    }
}

fn answer(status: &str, more: &str, body: &str) -> Option<String> {
    Some(format!(
        "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    ))
}

fn ok(body: &str) -> Option<String> {
    answer("200 OK", "", body)
}

fn always(body: &str) -> impl Fn(&str) -> Option<String> + Send + Sync + use<> {
    let body = body.to_owned();
    move |_| ok(&body)
}

async fn shown(channel: &Channel, token: &str) -> Status {
    call(channel, METHOD, &[format!("Bearer {token}")]).await
}

/// Keys are asked for each second.
const OFTEN: (&str, &str) = ("auth.jwt.refresh", "1s");

#[tokio::test]
async fn a_set_without_the_key_revokes_it_at_the_next_answer() {
    let (one, other) = (Signer::new("one"), Signer::new("other"));
    let good = Signer::set(&[&one]);
    let server = KeyServer::start(always(&good)).await;
    let (_daemon, channel) = server.daemon(&[OFTEN]).await;
    let token = one.sign(|_| ());
    until_judged(&channel, &token, "let in").await;
    let unusable = json!({ "keys": [{ "kty": "odd" }] }).to_string();
    for set in ["{\"keys\": []}", &unusable, &Signer::set(&[&other])] {
        server.answer(always(set));
        until_judged(&channel, &token, "unauthenticated").await;
        server.answer(always(&good));
        until_judged(&channel, &token, "let in").await;
    }
}

/// What a server says that has no keys to give.
type Failure = fn(&str) -> Option<String>;

#[tokio::test]
async fn a_failure_leaves_keys_in_force_for_a_bounded_time() {
    let one = Signer::new("one");
    let good = Signer::set(&[&one]);
    let token = one.sign(|_| ());
    let failures: [(&str, Failure); 4] = [
        ("an error", |_| answer("500 Internal Server Error", "", "")),
        ("not found", |_| {
            answer("404 Not Found", "", "{\"keys\": []}")
        }),
        ("something else", |_| ok("<html>log in</html>")),
        ("half an answer", |_| {
            Some("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"keys\": [".to_owned())
        }),
    ];
    for (what, failure) in failures {
        eprintln!("{what}");
        let server = KeyServer::start(always(&good)).await;
        let stale = ("auth.jwt.max_stale", "5s");
        let (_daemon, channel) = server.daemon(&[OFTEN, stale]).await;
        until_judged(&channel, &token, "let in").await;
        let asked = server.asked();
        server.answer(failure);
        // It was asked twice more: the first of the two has failed.
        server.until_asked(asked, 2).await;
        assert_eq!(judged(&shown(&channel, &token).await), "let in", "{what}");
        until_judged(&channel, &token, "unavailable").await;
        server.answer(always(&good));
        until_judged(&channel, &token, "let in").await;
    }
}

#[tokio::test]
async fn a_key_that_was_replaced_is_asked_for_under_its_own_id_and_under_another() {
    let (old, new) = (Signer::new("same"), Signer::new("same"));
    let newer = Signer::new("other");
    let server = KeyServer::start(always(&Signer::set(&[&old]))).await;
    // Not before the test is over, unless somebody wants it.
    let (_daemon, channel) = server.daemon(&[("auth.jwt.refresh", "10m")]).await;
    until_judged(&channel, &old.sign(|_| ()), "let in").await;
    assert_eq!(server.asked(), 1);
    server.answer(always(&Signer::set(&[&new])));
    // Too soon: refused, and told when to come again.
    let status = shown(&channel, &new.sign(|_| ())).await;
    assert_eq!(judged(&status), "unauthenticated");
    assert!(Refused::new(&status).retry);
    until_judged(&channel, &new.sign(|_| ()), "let in").await;
    assert_eq!(server.asked(), 2);
    assert_eq!(
        judged(&shown(&channel, &old.sign(|_| ())).await),
        "unauthenticated"
    );
    server.answer(always(&Signer::set(&[&new, &newer])));
    until_judged(&channel, &newer.sign(|_| ()), "let in").await;
    assert_eq!(server.asked(), 3);
    assert_eq!(judged(&shown(&channel, &new.sign(|_| ())).await), "let in");
}

#[tokio::test]
async fn a_key_without_an_id_may_be_any_tokens_and_a_token_without_one_any_keys() {
    let (plain, named) = (Signer::new("plain"), Signer::new("named"));
    let mut jwk = plain.jwk.clone();
    jwk.as_object_mut().unwrap().remove("kid");
    let set = json!({ "keys": [jwk, named.jwk] }).to_string();
    let server = KeyServer::start(always(&set)).await;
    let (_daemon, channel) = server.daemon(&[]).await;
    let no_kid = |signer: &Signer| signer.sign_as(|it| it.kid = None, |_| ());
    for token in [
        plain.sign(|_| ()),
        no_kid(&plain),
        no_kid(&named),
        named.sign(|_| ()),
    ] {
        assert_eq!(judged(&shown(&channel, &token).await), "let in");
    }
    // An id says which of those that have one it is.
    let misnamed = named.sign_as(|it| it.kid = Some("plain".to_owned()), |_| ());
    assert_eq!(judged(&shown(&channel, &misnamed).await), "unauthenticated");
}

#[tokio::test]
async fn redirects_are_followed_within_an_origin_only() {
    let one = Signer::new("one");
    let token = one.sign(|_| ());
    let good = Signer::set(&[&one]);
    let elsewhere = KeyServer::start(always(&good)).await;
    let other_port = format!("Location: http://{}/keys\r\n", elsewhere.addr);
    let cases: [(&str, String, &str); 4] = [
        ("a path", "Location: /keys\r\n".to_owned(), "let in"),
        (
            "itself",
            "Location: /jwks.json\r\n".to_owned(),
            "unavailable",
        ),
        ("another port", other_port, "unavailable"),
        (
            "another scheme",
            "Location: https://127.0.0.1:1/keys\r\n".to_owned(),
            "unavailable",
        ),
    ];
    for (what, location, expected) in cases {
        let good = good.clone();
        let server = KeyServer::start(move |path| match path {
            "/keys" => ok(&good),
            _ => answer("302 Found", &location, ""),
        })
        .await;
        let (_daemon, channel) = server.daemon(&[]).await;
        let status = shown(&channel, &token).await;
        assert_eq!(judged(&status), expected, "{what}: {status:?}");
        assert!(server.asked() <= 4, "{what}");
    }
    assert_eq!(elsewhere.asked(), 0);
}

/// Callers with keys that nobody knows wait for one answer, few at once, and no longer than it takes.
#[tokio::test(flavor = "multi_thread")]
async fn few_wait_for_keys_and_the_rest_are_refused_at_once() {
    let tokens: Vec<String> = (0..90)
        .map(|i| Signer::new(&format!("unknown-{i}")).sign(|_| ()))
        .collect();
    let server = KeyServer::start(|_| None).await;
    let (_daemon, channel) = server.daemon(&[]).await;
    let start = Instant::now();
    let calls: Vec<JoinHandle<(Status, Duration)>> = tokens
        .into_iter()
        .map(|token| {
            let channel = channel.clone();
            tokio::spawn(async move {
                let status = shown(&channel, &token).await;
                (status, start.elapsed())
            })
        })
        .collect();
    let mut busy = 0;
    for call in calls {
        let (status, after) = call.await.unwrap();
        assert_eq!(judged(&status), "unavailable");
        let told = Refused::new(&status).message;
        busy += usize::from(told.contains("too many callers wait"));
        assert!(after < Duration::from_secs(30), "{after:?}");
    }
    assert_eq!(busy, 90 - 64);
    // Once, for all of them; and again at the soonest after ten seconds, by itself.
    assert!(server.asked() <= 2, "{}", server.asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_whose_key_is_known_never_waits_for_those_whose_key_is_not() {
    let one = Signer::new("one");
    let server = KeyServer::start(always(&Signer::set(&[&one]))).await;
    let (daemon, channel) = server.daemon(&[]).await;
    let token = one.sign(|_| ());
    until_judged(&channel, &token, "let in").await;
    server.answer(|_| None);
    let asked = server.asked();
    let waiting = tokio::spawn({
        let addr = daemon.addr.clone();
        let unknown = Signer::new("unknown").sign(|_| ());
        async move {
            loop {
                // One connection bears only so many calls that are refused unread.
                let status = shown(&crate::harness::channel(&addr).await, &unknown).await;
                if judged(&status) != "unauthenticated" {
                    return status;
                }
            }
        }
    });
    // It is being asked, and does not answer.
    server.until_asked(asked, 1).await;
    for _ in 0..10 {
        assert_eq!(judged(&shown(&channel, &token).await), "let in");
    }
    assert!(!waiting.is_finished());
    assert_eq!(judged(&waiting.await.unwrap()), "unavailable");
    assert_eq!(server.asked(), asked + 1);
}
