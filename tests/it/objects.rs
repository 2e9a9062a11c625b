//! Object stores that do not do everything, refuse, or are something else: who is told what.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use ringfence::api::proto::RunRequest;
use tonic::Code;

use crate::harness::{Refused, by_digest, connect, load, spec};
use crate::modules::saying;
use crate::process::{Served, ringfence};
use crate::scripted::{Asked, Reply, Scripted};

/// An S3 that keeps objects, and first asks whether it should answer otherwise.
fn s3(other: impl Fn(&Asked) -> Option<Reply> + Send + Sync + 'static) -> Scripted {
    let objects = Arc::new(Mutex::new(BTreeMap::<String, Vec<u8>>::new()));
    Scripted::start(move |asked| {
        if let Some(reply) = other(asked) {
            return reply;
        }
        let mut objects = objects.lock().unwrap();
        let path = asked.path().to_owned();
        let dated = |reply: Reply| {
            reply
                .with("last-modified", "Sat, 28 Nov 2026 20:00:00 GMT")
                .with("etag", "\"x\"")
        };
        match asked.method.as_str() {
            "PUT" => {
                objects.insert(path, asked.body.clone());
                dated(Reply::new(200, ""))
            }
            "DELETE" => {
                objects.remove(&path);
                Reply::new(204, "")
            }
            _ if path == "/modules" => listing(asked, &objects),
            _ => match objects.get(&path) {
                Some(object) => dated(Reply::new(200, object.clone())),
                None => error(404, "NoSuchKey"),
            },
        }
    })
}

fn listing(asked: &Asked, objects: &BTreeMap<String, Vec<u8>>) -> Reply {
    let folder = match asked.target.contains("records") {
        true => "records/",
        false => "modules/",
    };
    let entries: Vec<String> = objects
        .iter()
        .filter_map(|(path, object)| {
            let key = path.strip_prefix("/modules/")?;
            key.contains(folder).then(|| {
                format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-11-28T20:00:00.000Z</LastModified><ETag>x</ETag></Contents>",
                    object.len()
                )
            })
        })
        .collect();
    let body = format!(
        "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
        entries.concat()
    );
    Reply::new(200, body).with("content-type", "application/xml")
}

fn error(status: u16, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>It is so.</Message></Error>");
    Reply::new(status, body).with("content-type", "application/xml")
}

const KEYS: [(&str, &str); 3] = [
    ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
    ("AWS_SECRET_ACCESS_KEY", "s3cretkey"),
    ("AWS_REGION", "us-east-1"),
];
const STORE: [&str; 2] = ["--set", "store.url=s3://modules/fleet"];

/// A daemon with that store.
fn daemon(endpoint: &str) -> Served {
    let env = [&KEYS[..], &[("AWS_ENDPOINT_URL", endpoint)]].concat();
    Served::with(&STORE, &env)
}

fn url(server: &Scripted) -> String {
    format!("http://{}", server.host)
}

/// The code and the words with which a daemon that does not start ends.
fn does_not_start(env: &[(&str, &str)]) -> (i32, String) {
    let mut child = ringfence()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(STORE)
        .envs(KEYS)
        .envs(env.iter().copied())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut told).unwrap();
    (child.wait().unwrap().code().unwrap_or(-1), told)
}

/// Loads a module, runs it, and finds it again.
async fn keeps(served: &Served, text: &str) -> Result<(), Refused> {
    let mut client = connect(&served.addr).await;
    let loaded = client.load_module(load(saying(text, 0))).await;
    let loaded = loaded.map_err(|status| Refused::new(&status))?.into_inner();
    let request = RunRequest {
        spec: Some(by_digest(&loaded.module.unwrap().digest)),
    };
    let ran = client.run(request).await;
    let ran = ran.map_err(|status| Refused::new(&status))?.into_inner();
    assert_eq!(ran.stdout, text);
    Ok(())
}

/// What is sent with a run needs no store.
async fn runs(served: &Served) {
    let request = RunRequest {
        spec: Some(spec(saying("inline", 0))),
    };
    let ran = connect(&served.addr).await.run(request).await.unwrap();
    assert_eq!(ran.into_inner().stdout, "inline");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_cannot_create_only_what_is_absent_is_put_to_plainly() {
    let ways: [(u16, &str); 6] = [
        (501, "NotImplemented"),
        (400, "NotImplemented"),
        (400, "InvalidArgument"),
        (400, "InvalidRequest"),
        (405, "MethodNotAllowed"),
        (501, ""),
    ];
    for (status, code) in ways {
        let server = s3(move |asked| {
            let conditional = asked.method == "PUT" && asked.header("if-none-match").is_some();
            conditional.then(|| match code {
                "" => Reply::new(status, "no"),
                code => error(status, code),
            })
        });
        let served = daemon(&url(&server));
        keeps(&served, "first").await.unwrap();
        keeps(&served, "second").await.unwrap();
        // It is asked for until it is known, and no more.
        let asked = server.asked();
        let conditional = |it: &&Asked| it.header("if-none-match").is_some();
        let last = asked.iter().rev().find(|it| it.method == "PUT").unwrap();
        assert!(last.header("if-none-match").is_none());
        let paths: Vec<&str> = asked.iter().filter(conditional).map(Asked::path).collect();
        assert!(!paths.is_empty());
        assert!(paths.iter().all(|path| path == &paths[0]), "{paths:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_that_is_refused_in_both_ways_is_told() {
    let server = s3(|asked| (asked.method == "PUT").then(|| error(400, "InvalidStorageClass")));
    let served = daemon(&url(&server));
    let refused = keeps(&served, "x").await.unwrap_err();
    let refused = refused.is(Code::Unavailable, "STORE_UNAVAILABLE");
    let told = "it says InvalidStorageClass: It is so.";
    assert!(refused.message.contains(told), "{}", refused.message);
    runs(&served).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_permission_is_named() {
    // Who may not list is not told what is absent.
    for (methods, body, told) in [
        (
            &["GET", "HEAD"][..],
            true,
            "s3:GetObject on the object, or, where it is not there, s3:ListBucket",
        ),
        (
            &["GET", "HEAD"],
            false,
            "s3:GetObject on the object, or, where it is not there, s3:ListBucket",
        ),
        (&["PUT"], true, "s3:PutObject"),
        (&["LIST"], true, "s3:ListBucket on the bucket"),
    ] {
        let server = s3(move |asked| {
            let method = match (asked.method.as_str(), asked.path()) {
                ("GET", "/modules") => "LIST",
                (method, _) => method,
            };
            methods.contains(&method).then(|| match body {
                true => error(403, "AccessDenied"),
                false => Reply::new(403, ""),
            })
        });
        let served = daemon(&url(&server));
        let refused = keeps(&served, "x").await.unwrap_err();
        let refused = refused.is(Code::Unavailable, "STORE_UNAVAILABLE");
        assert_eq!(refused.metadata["store"], "s3:");
        assert!(refused.message.contains(told), "{}", refused.message);
        runs(&served).await;
        if methods.contains(&"GET") {
            // Absent or not, nobody can tell: it is not said to be absent.
            let unknown = format!("sha256:{}", "0".repeat(64));
            let request = RunRequest {
                spec: Some(by_digest(&unknown)),
            };
            let status = connect(&served.addr).await.run(request).await.unwrap_err();
            let refused = Refused::new(&status).is(Code::Unavailable, "STORE_UNAVAILABLE");
            assert!(refused.message.contains(told), "{}", refused.message);
        }
    }
}

#[test]
fn what_a_store_will_never_take_is_told_at_start() {
    for (status, code, told) in [
        (404, "NoSuchBucket", "there is no such bucket"),
        (403, "InvalidAccessKeyId", "does not know AWS_ACCESS_KEY_ID"),
        (
            403,
            "SignatureDoesNotMatch",
            "AWS_SECRET_ACCESS_KEY is not that of",
        ),
        (403, "RequestTimeTooSkewed", "the clock of this machine"),
        (400, "ExpiredToken", "AWS_SESSION_TOKEN"),
        (
            400,
            "AuthorizationHeaderMalformed",
            "another region than AWS_REGION says",
        ),
        (301, "PermanentRedirect", "AWS_REGION"),
        (400, "InvalidBucketName", "there is no such bucket"),
    ] {
        let server = Scripted::start(move |_| error(status, code));
        let (code, stderr) = does_not_start(&[("AWS_ENDPOINT_URL", &url(&server))]);
        assert_eq!(code, 125, "{stderr}");
        let last = stderr.lines().last().unwrap();
        for part in ["store.url (s3:)", told] {
            assert!(last.contains(part), "{part} in {last}");
        }
        assert!(!stderr.contains("s3cretkey") && !stderr.contains("panicked"));
    }
    // Something that is no object store.
    for page in ["<!DOCTYPE html><html><body>Welcome</body></html>", "", "{}"] {
        let server = Scripted::start(move |_| Reply::new(200, page));
        let (code, stderr) = does_not_start(&[("AWS_ENDPOINT_URL", &url(&server))]);
        assert_eq!(code, 125, "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.contains("what answers is no object store"), "{last}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_away_keeps_no_daemon_from_starting_and_callers_are_told_why() {
    // A port that was somebody's a moment ago, and one that speaks no TLS.
    let closed = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", closed.local_addr().unwrap())
    };
    let plain = s3(|_| None);
    let failing = s3(|_| Some(error(500, "InternalError")));
    for (endpoint, told) in [
        (closed, "Connection refused"),
        (format!("https://{}", plain.host), "(s3:): "),
        (url(&failing), "status code: 500"),
    ] {
        let served = daemon(&endpoint);
        let refused = keeps(&served, "x").await.unwrap_err();
        let refused = refused.is(Code::Unavailable, "STORE_UNAVAILABLE");
        assert!(refused.retry);
        assert!(refused.message.contains(told), "{}", refused.message);
        assert!(!refused.message.contains("http"), "{}", refused.message);
        runs(&served).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_surrounds_a_providers_variables_is_not_sent() {
    let server = s3(|_| None);
    let endpoint = format!("{}\n", url(&server));
    let env = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE\n"),
        ("AWS_SECRET_ACCESS_KEY", " s3cretkey\r\n"),
        ("AWS_SESSION_TOKEN", "\u{feff}s3ssion\n"),
        ("AWS_REGION", "eu-north-1\n"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ENDPOINT_URL_S3", ""),
    ];
    let served = Served::with(&STORE, &env);
    keeps(&served, "x").await.unwrap();
    for asked in server.asked() {
        let authorization = asked.header("authorization").unwrap();
        assert!(authorization.contains("Credential=AKIDEXAMPLE/"));
        assert!(authorization.contains("/eu-north-1/s3/"));
        assert_eq!(asked.header("x-amz-security-token"), Some("s3ssion"));
    }
    // In the middle it is refused, and nothing starts.
    let (code, stderr) = does_not_start(&[("AWS_SECRET_ACCESS_KEY", "s3cret\nkey")]);
    assert_eq!(code, 125, "{stderr}");
    assert!(stderr.contains("AWS_SECRET_ACCESS_KEY"), "{stderr}");
    assert!(!stderr.contains("s3cret") && !stderr.contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_room_says_so() {
    for (status, code) in [
        (507, "XMinioStorageFull"),
        (403, "QuotaExceeded"),
        (507, ""),
    ] {
        let server = s3(move |asked| {
            (asked.method == "PUT").then(|| match code {
                "" => Reply::new(status, ""),
                code => error(status, code),
            })
        });
        let served = daemon(&url(&server));
        let refused = keeps(&served, "x").await.unwrap_err();
        refused.is(Code::ResourceExhausted, "STORE_FULL");
    }
}
