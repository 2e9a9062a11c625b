//! Registries as they are: what they call a module, how they ask for credentials, and how those are written.

use std::sync::{Arc, Mutex};

use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::{ExecuteRequest, ExecutionSpec};
use ringfence::model::request::Digest;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Daemon, by_digest, channel};
use crate::modules::saying;
use crate::places::{pull, refused};
use crate::process::ringfence;
use crate::scripted::{Asked, Reply, Scripted};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const WASM: &str = "application/wasm";
/// "ali:open sesame".
const ALI: &str = "YWxpOm9wZW4gc2VzYW1l";

/// What a registry holds: manifests by reference, blobs by digest.
#[derive(Clone, Default)]
struct Shelf {
    manifests: Vec<(String, String, String)>,
    blobs: Vec<(String, Vec<u8>)>,
}

impl Shelf {
    fn blob(&mut self, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        self.blobs.push((digest.clone(), bytes));
        digest
    }

    /// Keeps a manifest under its digest and under `tag`.
    fn manifest(&mut self, tag: &str, kind: &str, manifest: &Value) -> String {
        let text = manifest.to_string();
        let digest = Digest::of(text.as_bytes()).to_string();
        for name in [tag, &digest] {
            let entry = (name.to_owned(), kind.to_owned(), text.clone());
            self.manifests.push(entry);
        }
        digest
    }

    /// A module under `tag`, whose layer is called `layer`.
    fn module(&mut self, tag: &str, text: &str, layer: &str) -> String {
        let layers = [self.layer(saying(text, 0), layer)];
        self.layers(tag, OCI_MANIFEST, &layers)
    }

    fn layer(&mut self, bytes: Vec<u8>, kind: &str) -> Value {
        let size = bytes.len();
        json!({"mediaType": kind, "size": size, "digest": self.blob(bytes)})
    }

    fn layers(&mut self, tag: &str, kind: &str, layers: &[Value]) -> String {
        let config = self.layer(b"{}".to_vec(), "application/vnd.wasm.config.v0+json");
        let manifest =
            json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        self.manifest(tag, kind, &manifest)
    }

    fn answer(&self, asked: &Asked) -> Reply {
        let Some((_, name)) = asked.path().rsplit_once('/') else {
            return Reply::new(404, "");
        };
        if asked.path().contains("/manifests/") {
            let found = self.manifests.iter().find(|(it, ..)| it == name);
            return match found {
                Some((_, kind, text)) => Reply::new(200, text.clone())
                    .with("content-type", kind)
                    .with(
                        "docker-content-digest",
                        &Digest::of(text.as_bytes()).to_string(),
                    ),
                None => refusal(404, "MANIFEST_UNKNOWN"),
            };
        }
        match self.blobs.iter().find(|(digest, _)| digest == name) {
            Some((_, bytes)) => Reply::new(200, bytes.clone()),
            None if asked.path() == "/v2/" => Reply::new(200, "{}"),
            None => refusal(404, "BLOB_UNKNOWN"),
        }
    }
}

fn refusal(status: u16, code: &str) -> Reply {
    let body = json!({"errors": [{"code": code, "message": "so it is"}]});
    Reply::new(status, body.to_string()).with("content-type", "application/json")
}

/// Pulls it and runs it.
async fn says(daemon: &Daemon, reference: &str, text: &str) -> String {
    let pulled = pull(daemon, reference).await;
    let pulled = pulled.unwrap_or_else(|status| panic!("{reference}: {status:?}"));
    let ran = daemon.ran(by_digest(&pulled.module.unwrap().digest)).await;
    assert_eq!(ran.exited(0).out(), text, "{reference}");
    pulled.resolved
}

/// A daemon that may pull from there, without credentials.
async fn stranger(server: &Scripted) -> Daemon {
    let allowed = format!("[\"http://{}\"]", server.host);
    Daemon::with(&[("oci.registries", &allowed)]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_module_of_a_language_is_pulled_when_the_daemon_starts() {
    let mut shelf = Shelf::default();
    let digest = shelf.module("1", "interpreted", WASM);
    let server = Scripted::start(move |asked| shelf.answer(asked));
    let allowed = format!("[\"http://{}\"]", server.host);
    let expected = Digest::of(&saying("interpreted", 0)).to_string();
    for place in ["lang:1".to_owned(), format!("lang@{digest}")] {
        let languages = format!(
            "{{ x = {{ module = \"oci://{}/{place}\", digest = \"{expected}\", protocol = \"stdin\", args = [\"x\"] }} }}",
            server.host
        );
        let set = [
            ("oci.registries", allowed.as_str()),
            ("languages", &languages),
        ];
        let daemon = Daemon::with(&set).await;
        let mut client = ExecutionServiceClient::new(channel(&daemon.addr).await);
        let spec = Some(ExecutionSpec {
            language: "x".to_owned(),
            code: "anything".to_owned(),
            ..ExecutionSpec::default()
        });
        let answer = client.execute(ExecuteRequest { spec }).await.unwrap();
        assert_eq!(answer.into_inner().stdout, "interpreted");
    }
}

/// A daemon that may pull from there, with a file of credentials.
async fn with_file(server: &Scripted, file: &tempfile::NamedTempFile) -> Daemon {
    let allowed = format!("[\"http://{}\"]", server.host);
    let path = file.path().display().to_string();
    Daemon::with(&[
        ("oci.registries", &allowed),
        ("oci.credentials_file", &path),
    ])
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_name_of_a_module_is_known_and_what_is_beside_it_passed_over() {
    let mut shelf = Shelf::default();
    let kinds = [
        WASM,
        "application/vnd.wasm.content.layer.v1+wasm",
        "application/vnd.module.wasm.content.layer.v1+wasm",
        "Application/WASM; version=1",
    ];
    for (i, kind) in kinds.iter().enumerate() {
        shelf.module(&format!("kind{i}"), kind, kind);
    }
    let module = shelf.layer(saying("beside", 0), WASM);
    let text = shelf.layer(b"a description".to_vec(), "text/markdown");
    let image = "application/vnd.oci.image.layer.v1.tar+gzip";
    let tar = shelf.layer(b"tar".to_vec(), image);
    shelf.layers("beside", DOCKER_MANIFEST, &[text.clone(), module.clone()]);
    shelf.layers("two", OCI_MANIFEST, &[module.clone(), module]);
    shelf.layers("image", OCI_MANIFEST, std::slice::from_ref(&tar));
    shelf.layers("neither", OCI_MANIFEST, &[text, tar]);
    shelf.layers("none", OCI_MANIFEST, &[]);
    let server = Scripted::start(move |asked| shelf.answer(asked));
    let daemon = stranger(&server).await;
    let at = |tag: &str| format!("oci://{}/a/b:{tag}", server.host);
    for (i, kind) in kinds.iter().enumerate() {
        says(&daemon, &at(&format!("kind{i}")), kind).await;
    }
    says(&daemon, &at("beside"), "beside").await;
    for (tag, told) in [
        ("two", "several layers of modules"),
        (
            "image",
            "its layer is application/vnd.oci.image.layer.v1.tar+gzip",
        ),
        (
            "neither",
            "none of its layers is a module: text/markdown, application/vnd.oci",
        ),
        ("none", "it has no layer"),
    ] {
        let refused = refused(&daemon, &at(tag)).await;
        let refused = refused
            .is(Code::InvalidArgument, "MODULE_INVALID")
            .at("oci");
        assert!(refused.message.contains(told), "{}", refused.message);
    }
    refused(&daemon, &at("absent"))
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND");
}

/// An entry of an index.
fn entry(digest: &str, platform: Option<(&str, &str)>) -> Value {
    let mut entry = json!({"mediaType": OCI_MANIFEST, "size": 1, "digest": digest});
    if let Some((os, architecture)) = platform {
        entry["platform"] = json!({"os": os, "architecture": architecture});
    }
    entry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_is_followed_to_its_one_module() {
    let mut shelf = Shelf::default();
    let one = shelf.module("one", "one", WASM);
    let other = shelf.module("other", "other", WASM);
    let mut attestation = entry(&other, Some(("unknown", "unknown")));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let indexes = [
        ("single", OCI_INDEX, vec![entry(&one, None)]),
        (
            "list",
            DOCKER_LIST,
            vec![entry(&one, Some(("linux", "amd64")))],
        ),
        (
            "attested",
            OCI_INDEX,
            vec![entry(&one, Some(("wasip1", "wasm"))), attestation],
        ),
        (
            "by-os",
            OCI_INDEX,
            vec![
                entry(&other, Some(("linux", "amd64"))),
                entry(&one, Some(("wasip1", "wasm"))),
            ],
        ),
        (
            "by-arch",
            OCI_INDEX,
            vec![
                entry(&one, Some(("wasi", "wasm32"))),
                entry(&other, Some(("linux", "arm64"))),
            ],
        ),
        (
            "p2",
            OCI_INDEX,
            vec![
                entry(&other, Some(("windows", "amd64"))),
                entry(&one, Some(("wasip2", "wasm"))),
            ],
        ),
    ];
    for (tag, kind, entries) in &indexes {
        let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries});
        shelf.manifest(tag, kind, &index);
    }
    let several = [
        (
            "both",
            vec![
                entry(&one, Some(("wasip1", "wasm"))),
                entry(&other, Some(("wasip2", "wasm"))),
            ],
        ),
        (
            "images",
            vec![
                entry(&one, Some(("linux", "amd64"))),
                entry(&other, Some(("linux", "arm64"))),
            ],
        ),
        ("empty", vec![]),
    ];
    for (tag, entries) in &several {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        shelf.manifest(tag, OCI_INDEX, &index);
    }
    let (_, _, inner) = shelf.manifests.iter().find(|it| it.0 == "single").unwrap();
    let inner = Digest::of(inner.as_bytes()).to_string();
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry(&inner, None)]});
    shelf.manifest("nested", OCI_INDEX, &index);
    let server = Scripted::start(move |asked| shelf.answer(asked));
    let daemon = stranger(&server).await;
    let at = |tag: &str| format!("oci://{}/a/b:{tag}", server.host);
    let pinned = format!("oci://{}/a/b@{one}", server.host);
    for (tag, ..) in indexes {
        assert_eq!(says(&daemon, &at(tag), "one").await, pinned, "{tag}");
    }
    assert_eq!(says(&daemon, &pinned, "one").await, pinned);
    let both = format!("oci://{}/a/b:one@{one}", server.host);
    assert_eq!(says(&daemon, &both, "one").await, pinned);
    for (tag, parts) in [
        (
            "both",
            &[
                "2 of them for wasm",
                "wasip1/wasm",
                "wasip2/wasm",
                &one,
                &other,
            ][..],
        ),
        (
            "images",
            &["none of them for wasm", "linux/amd64", "linux/arm64"],
        ),
        ("empty", &["an index of nothing"]),
        ("nested", &["an index of indexes"]),
    ] {
        let refused = refused(&daemon, &at(tag)).await;
        let refused = refused
            .is(Code::InvalidArgument, "MODULE_INVALID")
            .at("oci");
        for part in parts {
            assert!(
                refused.message.contains(part),
                "{part} in {}",
                refused.message
            );
        }
    }
}

/// A registry that gives nothing to who does not say `authorization`, and asks for it in the way of `challenge`.
fn guarded(
    authorization: &str,
    challenge: impl Fn(&Asked) -> String + Send + Sync + 'static,
) -> Scripted {
    let mut shelf = Shelf::default();
    shelf.module("v1", "guarded", WASM);
    let authorization = authorization.to_owned();
    Scripted::start(move |asked| {
        let said = asked.header("authorization").unwrap_or_default();
        if asked.path() == "/token" {
            return match said == format!("Basic {ALI}") {
                true => Reply::new(200, json!({"token": "t0ken"}).to_string()),
                false => refusal(401, "UNAUTHORIZED"),
            };
        }
        match said == authorization {
            true => shelf.answer(asked),
            false => refusal(401, "UNAUTHORIZED").with("www-authenticate", &challenge(asked)),
        }
    })
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_are_found_as_tools_write_them() {
    let basic = guarded(&format!("Basic {ALI}"), |_| {
        "Basic realm=\"cave\"".to_owned()
    });
    let bearer = guarded("Bearer t0ken", |asked| {
        let host = asked.header("host").unwrap();
        format!("Bearer realm=\"http://{host}/token\",service=\"cave\"")
    });
    for server in [&basic, &bearer] {
        let host = &server.host;
        let reference = format!("oci://{host}/org/repo:v1");
        let broken = format!("{}\\n{}==\\n", &ALI[..8], &ALI[8..]);
        let auth = json!({"auth": ALI});
        for auths in [
            json!({host.as_str(): auth}),
            json!({format!("http://{host}"): auth}),
            json!({format!("https://{host}/v1/"): auth}),
            json!({format!("{host}/v2/"): auth}),
            json!({format!("{host}/org/repo"): auth, host.as_str(): {"auth": "eDp5"}}),
            json!({host.as_str(): {"username": "ali", "password": "open sesame"}}),
            json!({host.as_str(): {"auth": format!("{ALI}\n")}}),
            json!({host.as_str(): {"auth": "YWxpOm9wZW4gc2VzYW1lCg"}}),
        ] {
            let text = json!({"auths": auths, "HttpHeaders": {"User-Agent": "x"}}).to_string();
            let file = file(&format!("{text}\n"));
            says(&with_file(server, &file).await, &reference, "guarded").await;
        }
        let text = format!("\u{feff}{{\"auths\": {{\"{host}\": {{\"auth\": \"{broken}\"}}}}}}");
        let file = file(&text);
        says(&with_file(server, &file).await, &reference, "guarded").await;
    }
    // A token for the registry itself.
    let token = guarded("Bearer s3cret", |_| {
        "Bearer realm=\"http://127.0.0.1:1/\"".to_owned()
    });
    let auths = json!({token.host.as_str(): {"registrytoken": "s3cret\n"}});
    let file = file(&json!({ "auths": auths }).to_string());
    let reference = format!("oci://{}/a:v1", token.host);
    says(&with_file(&token, &file).await, &reference, "guarded").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_credentials_are_told_with_what_to_do() {
    let server = guarded(&format!("Basic {ALI}"), |_| {
        "Basic realm=\"cave\"".to_owned()
    });
    let host = &server.host;
    let reference = format!("oci://{host}/a:v1");
    let told = refused(&stranger(&server).await, &reference).await;
    let told = told.is(Code::NotFound, "MODULE_NOT_FOUND").at("oci");
    assert!(
        told.message.contains("oci.credentials_file is not set"),
        "{}",
        told.message
    );
    for (text, parts) in [
        (Value::Null, &["auths has no entry for"][..]),
        (json!({}), &["auths has no entry for"]),
        (json!({"auths": {}}), &["auths has no entry for"]),
        (
            json!({"auths": {"ghcr.io": {"auth": ALI}}}),
            &["auths has no entry for"],
        ),
        (json!({"auths": {host.as_str(): {}}}), &["is empty"]),
        (
            json!({"auths": {host.as_str(): {}}, "credsStore": "desktop"}),
            &[
                "the helper \"desktop\" (credsStore)",
                "not run here",
                ".auth, as user:password in base64",
            ],
        ),
        (
            json!({"credsStore": "osxkeychain"}),
            &["the helper \"osxkeychain\""],
        ),
        (
            json!({"credHelpers": {host.as_str(): "ecr-login"}, "credsStore": "desktop"}),
            &["the helper \"ecr-login\" (credHelpers)"],
        ),
    ] {
        let text = match text.is_null() {
            true => String::new(),
            false => text.to_string(),
        };
        let file = file(&text);
        let told = refused(&with_file(&server, &file).await, &reference).await;
        let told = told.is(Code::NotFound, "MODULE_NOT_FOUND").at("oci");
        for part in [&["oci.credentials_file: "], parts].concat() {
            assert!(told.message.contains(part), "{part} in {}", told.message);
        }
    }
    // Wrong ones are not missing.
    let wrong = file(&json!({"auths": {host.as_str(): {"auth": "eDp5"}}}).to_string());
    let told = refused(&with_file(&server, &wrong).await, &reference).await;
    let told = told.is(Code::NotFound, "MODULE_NOT_FOUND");
    assert!(!told.message.contains("credentials"), "{}", told.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_credentials_that_makes_no_sense_is_told() {
    let server = guarded(&format!("Basic {ALI}"), |_| {
        "Basic realm=\"cave\"".to_owned()
    });
    let reference = format!("oci://{}/a:v1", server.host);
    let host = server.host.as_str();
    let file = file("{}");
    let daemon = with_file(&server, &file).await;
    for (text, part) in [
        ("s3cret".to_owned(), "it is no Docker configuration: line 1"),
        (
            json!({"auths": {host: {"auth": "*s3cret*"}}}).to_string(),
            "its auth is not base64",
        ),
        (
            json!({"auths": {host: {"auth": "YQ=="}}}).to_string(),
            "not user:password",
        ),
        (
            json!({"auths": {host: {"identitytoken": "s3cret"}}}).to_string(),
            "identitytoken",
        ),
        (
            json!({"auths": {host: {"registrytoken": "s3\ncret"}}}).to_string(),
            "registrytoken",
        ),
    ] {
        // It is read for each pull.
        std::fs::write(file.path(), &text).unwrap();
        let told = refused(&daemon, &reference).await;
        let told = told.is(Code::Unavailable, "STORE_UNAVAILABLE");
        let whole = "oci.credentials_file cannot be used: ";
        assert!(told.message.starts_with(whole), "{}", told.message);
        assert!(told.message.contains(part), "{part} in {}", told.message);
        assert!(!told.message.contains("s3cret"), "{}", told.message);
        // A daemon does not start with it.
        let set = format!("oci.credentials_file={}", file.path().display());
        let output = ringfence()
            .args(["config", "check", "--set", &set])
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        for part in [part, "--set oci.credentials_file: "] {
            assert!(stderr.contains(part), "{part} in {stderr}");
        }
        assert!(!stderr.contains("s3cret"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_go_to_their_registry_and_nowhere_else() {
    let mut shelf = Shelf::default();
    shelf.module("v1", "moved", WASM);
    let elsewhere = {
        let shelf = shelf.clone();
        Scripted::start(move |asked| shelf.answer(asked))
    };
    let to = elsewhere.host.clone();
    let server = Scripted::start(move |asked| {
        let said = asked.header("authorization").unwrap_or_default();
        if said != format!("Basic {ALI}") {
            return refusal(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=\"cave\"");
        }
        match asked.path().contains("/blobs/") {
            true => {
                let place = format!("http://{to}{}", asked.target);
                Reply::new(307, "").with("location", &place)
            }
            false => shelf.answer(asked),
        }
    });
    let auths = json!({server.host.as_str(): {"auth": ALI}});
    let file = file(&json!({ "auths": auths }).to_string());
    let reference = format!("oci://{}/a:v1", server.host);
    says(&with_file(&server, &file).await, &reference, "moved").await;
    let asked = elsewhere.asked();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].header("authorization"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_registry_says_is_told_for_what_it_is() {
    let now = Arc::new(Mutex::new((0, "")));
    let answers = Arc::clone(&now);
    let server = Scripted::start(move |asked| {
        let (status, code) = *answers.lock().unwrap();
        match (asked.path(), code) {
            ("/v2/", "BAD_TOKEN") => {
                let realm = format!(
                    "Bearer realm=\"http://{}/token\"",
                    asked.header("host").unwrap()
                );
                Reply::new(401, "").with("www-authenticate", &realm)
            }
            ("/token", _) => Reply::new(200, "{\"token\": \"a\\nb\"}"),
            ("/v2/", _) => Reply::new(200, "{}"),
            (_, "") => Reply::new(status, "no"),
            _ => refusal(status, code).with("retry-after", "7"),
        }
    });
    let daemon = stranger(&server).await;
    let reference = format!("oci://{}/a:v1", server.host);
    for (status, code, grpc, reason) in [
        (404, "MANIFEST_UNKNOWN", Code::NotFound, "MODULE_NOT_FOUND"),
        (404, "", Code::NotFound, "MODULE_NOT_FOUND"),
        (403, "DENIED", Code::NotFound, "MODULE_NOT_FOUND"),
        (403, "", Code::NotFound, "MODULE_NOT_FOUND"),
        (401, "UNAUTHORIZED", Code::NotFound, "MODULE_NOT_FOUND"),
        (
            429,
            "TOOMANYREQUESTS",
            Code::Unavailable,
            "STORE_UNAVAILABLE",
        ),
        (429, "", Code::Unavailable, "STORE_UNAVAILABLE"),
        (500, "", Code::Unavailable, "STORE_UNAVAILABLE"),
        (503, "UNAVAILABLE", Code::Unavailable, "STORE_UNAVAILABLE"),
        (200, "", Code::InvalidArgument, "MODULE_INVALID"),
        (200, "BAD_TOKEN", Code::Unavailable, "STORE_UNAVAILABLE"),
    ] {
        *now.lock().unwrap() = (status, code);
        let told = refused(&daemon, &reference).await.is(grpc, reason);
        let often = told.message.contains("asked too often");
        assert_eq!(often, status == 429, "{}", told.message);
        assert_eq!(told.retry, grpc == Code::Unavailable);
    }
}

#[tokio::test]
async fn docker_hub_is_granted_under_its_names() {
    // It is not asked: what is checked is what is granted.
    for (allowed, reference, code) in [
        ("ghcr.io", "oci://docker.io/a/b:v1", Code::PermissionDenied),
        (
            "docker.io",
            "oci://index.docker.io.evil/a/b:v1",
            Code::PermissionDenied,
        ),
        ("docker.io", "oci://a/b:v1", Code::InvalidArgument),
    ] {
        let daemon = Daemon::with(&[("oci.registries", allowed)]).await;
        assert_eq!(refused(&daemon, reference).await.code, code, "{reference}");
    }
}
