//! Places that others serve: an object store that daemons share, and registries.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use oci_client::Reference;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use ringfence::api::proto::load_module_request::Source;
use ringfence::api::proto::{
    ListModulesRequest, LoadModuleRequest, LoadModuleResponse, RunRequest, RunSpec,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::harness::{Daemon, Refused, by_digest, connect, load};
use crate::modules::saying;
use crate::monitoring::Ended;
use crate::process::{Served, ringfence};

/// What stands between clients and a server, and can be taken away.
struct Door {
    port: u16,
    to: u16,
    open: Option<JoinSet<()>>,
}

impl Door {
    async fn to(to: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut door = Self {
            port,
            to,
            open: None,
        };
        door.serve(listener);
        door
    }

    fn serve(&mut self, listener: TcpListener) {
        let to = self.to;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Dropped with it: connections end when the door is shut.
            let mut going = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                going.spawn(async move {
                    let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        self.open = Some(tasks);
    }

    async fn shut(&mut self) {
        if let Some(mut tasks) = self.open.take() {
            tasks.shutdown().await;
        }
    }

    async fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        self.serve(listener);
    }
}

async fn run(served: &Served, spec: RunSpec) -> Result<String, Status> {
    let request = RunRequest { spec: Some(spec) };
    let answer = connect(&served.addr).await.run(request).await?;
    Ok(String::from_utf8(answer.into_inner().stdout.to_vec()).unwrap())
}

async fn digest_of(served: &Served, module: Vec<u8>) -> Result<String, Status> {
    let answer = connect(&served.addr)
        .await
        .load_module(load(module))
        .await?;
    Ok(answer.into_inner().module.unwrap().digest)
}

fn object(digest: &str) -> Path {
    let hex = digest.strip_prefix("sha256:").unwrap();
    Path::from(format!("fleet/modules/{hex}.wasm"))
}

fn s3(port: u16) -> AmazonS3 {
    AmazonS3Builder::new()
        .with_bucket_name("modules")
        .with_region("us-east-1")
        .with_access_key_id("test")
        .with_secret_access_key("test")
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .build()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_bucket_and_outlive_its_absence() {
    let Some(python) = crate::interop::python().await else {
        return;
    };
    let mut moto = Command::new(python)
        .arg(crate::guests::root().join("tests/interop/s3.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(moto.stdout.take().unwrap())
        .read_line(&mut told)
        .unwrap();
    let _moto = Ended(moto);
    let port: u16 = told.trim().parse().expect("moto tells its port");
    let mut door = Door::to(port).await;
    let endpoint = format!("http://127.0.0.1:{}", door.port);
    let env = [
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
    ];
    let args = ["--set", "store.url=s3://modules/fleet"];
    let [one, two, three] = std::array::from_fn(|_| Served::with(&args, &env));

    // Loaded on one, run on the others, listed by all.
    let shared = digest_of(&one, saying("shared", 0)).await.unwrap();
    for served in [&two, &three, &one] {
        assert_eq!(run(served, by_digest(&shared)).await.unwrap(), "shared");
        let mut modules = crate::harness::Modules::new(crate::harness::channel(&served.addr).await);
        let list = modules.list_modules(ListModulesRequest::default()).await;
        assert_eq!(list.unwrap().into_inner().modules.len(), 1);
    }
    // At once, by all three.
    let same = futures_util::future::join_all(
        [&one, &two, &three].map(|served| digest_of(served, saying("same", 0))),
    );
    for digest in same.await {
        let digest = digest.unwrap();
        assert_eq!(run(&two, by_digest(&digest)).await.unwrap(), "same");
    }
    let unseen = digest_of(&one, saying("unseen", 0)).await.unwrap();

    door.shut().await;
    // What a daemon knows runs; what it would have to ask for does not; nothing new is acknowledged.
    for served in [&one, &two, &three] {
        assert_eq!(run(served, by_digest(&shared)).await.unwrap(), "shared");
    }
    let away = run(&two, by_digest(&unseen)).await.unwrap_err();
    let refused = Refused::new(&away).is(Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(refused.retry && refused.metadata["store"] == "s3:");
    let away = digest_of(&three, saying("new", 0)).await.unwrap_err();
    Refused::new(&away).is(Code::Unavailable, "STORE_UNAVAILABLE");

    door.open().await;
    assert_eq!(run(&two, by_digest(&unseen)).await.unwrap(), "unseen");
    digest_of(&three, saying("new", 0)).await.unwrap();

    // Bytes that are not those of their digest run nowhere, and are mended by loading them again.
    let spoilt = digest_of(&one, saying("spoilt", 0)).await.unwrap();
    let store = s3(port);
    store
        .put(&object(&spoilt), PutPayload::from(saying("wrong!", 0)))
        .await
        .unwrap();
    let damaged = run(&two, by_digest(&spoilt)).await.unwrap_err();
    let refused = Refused::new(&damaged).is(Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(refused.message.contains("damaged"), "{}", refused.message);
    digest_of(&three, saying("spoilt", 0)).await.unwrap();
    assert_eq!(run(&two, by_digest(&spoilt)).await.unwrap(), "spoilt");
}

/// A registry of its own, with a folder that tests can reach into.
struct Registry {
    _process: Ended,
    host: String,
    dir: tempfile::TempDir,
}

/// bcrypt of "open sesame".
const HTPASSWD: &str = "ali:$2b$10$p81PcOrv3XqSQy1YOQTlguFZyDeA1Z0lBdJaia.HJIBlW64Tn1kU2\n";

impl Registry {
    /// `None`, loudly, where Debian's docker-registry is not installed.
    fn start(password: bool) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("htpasswd"), HTPASSWD).unwrap();
        let auth = match password {
            true => format!(
                "auth: {{htpasswd: {{realm: cave, path: {}}}}}\n",
                at("htpasswd").display()
            ),
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n{auth}",
            at("data").display()
        );
        std::fs::write(at("config.yml"), config).unwrap();
        let started = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut process) = started else {
            eprintln!("\n*** SKIPPED: there is no docker-registry; pulling was NOT tested.\n");
            return None;
        };
        let mut log = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        let host = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it listens");
            if let Some((_, told)) = line.split_once("listening on ") {
                let end = |c: char| !(c.is_ascii_digit() || ".:".contains(c));
                break told.split(end).next().unwrap().to_owned();
            }
        };
        // What it goes on to say is nobody's to read.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(Self {
            _process: Ended(process),
            host,
            dir,
        })
    }

    fn auth(password: bool) -> RegistryAuth {
        match password {
            true => RegistryAuth::Basic("ali".to_owned(), "open sesame".to_owned()),
            false => RegistryAuth::Anonymous,
        }
    }

    /// Pushes layers as the CNCF's layout has a module; returns the manifest's digest.
    async fn push(&self, name: &str, layers: &[(&[u8], &str)], password: bool) -> String {
        let client = oci_client::Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        });
        let reference: Reference = format!("{}/{name}", self.host).parse().unwrap();
        let layers: Vec<_> = layers
            .iter()
            .map(|(data, kind)| ImageLayer::new(data.to_vec(), (*kind).to_owned(), None))
            .collect();
        let config = Config::new(
            b"{\"architecture\":\"wasm\",\"os\":\"wasip1\"}".to_vec(),
            "application/vnd.wasm.config.v0+json".to_owned(),
            None,
        );
        let auth = Self::auth(password);
        let pushed = client.push(&reference, &layers, config, &auth, None);
        pushed.await.unwrap();
        let digest = client.fetch_manifest_digest(&reference, &auth);
        digest.await.unwrap()
    }

    /// The file with a blob.
    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let root = "data/docker/registry/v2/blobs/sha256";
        let dir = self.dir.path().join(root).join(&hex[..2]).join(hex);
        dir.join("data")
    }
}

pub(crate) async fn pull(daemon: &Daemon, reference: &str) -> Result<LoadModuleResponse, Status> {
    let request = LoadModuleRequest {
        source: Some(Source::Oci(reference.to_owned())),
        ..LoadModuleRequest::default()
    };
    let answer = daemon.client.clone().load_module(request).await?;
    Ok(answer.into_inner())
}

pub(crate) async fn refused(daemon: &Daemon, reference: &str) -> Refused {
    Refused::new(&pull(daemon, reference).await.unwrap_err())
}

const WASM: &str = "application/wasm";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn modules_are_pulled_from_registries_that_are_allowed() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let host = registry.host.as_str();
    let allowed = format!("[\"http://{host}\"]");
    let daemon =
        Daemon::with(&[("oci.registries", &allowed), ("compile.max_module", "2MiB")]).await;
    let module = saying("pulled", 1500 << 10);
    let digest = ringfence::model::request::Digest::of(&module).to_string();
    let manifest = registry.push("a/b:v1", &[(&module, WASM)], false).await;

    let by_tag = pull(&daemon, &format!("oci://{host}/a/b:v1"))
        .await
        .unwrap();
    assert_eq!(by_tag.resolved, format!("oci://{host}/a/b@{manifest}"));
    assert_eq!(by_tag.module.unwrap().digest, digest);
    let pulled = pull(&daemon, &by_tag.resolved).await.unwrap();
    assert!(pulled.cached && pulled.resolved == by_tag.resolved);
    let ran = daemon.ran(by_digest(&digest)).await.exited(0);
    assert_eq!(ran.out(), "pulled");

    // The command line does the same.
    let served = Served::start(&["--set", &format!("oci.registries={allowed}")]);
    let output = ringfence()
        .args(["load", "--output", "json", "--server", &served.addr])
        .arg(format!("oci://{host}/a/b:v1"))
        .output()
        .unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["digest"], &told["resolved"]),
        (&digest.clone().into(), &by_tag.resolved.clone().into())
    );

    for (reference, code, reason) in [
        ("ghcr.io/a/b:v1", Code::InvalidArgument, "SPEC_INVALID"),
        ("oci://a/b:v1", Code::InvalidArgument, "SPEC_INVALID"),
        ("oci://b", Code::InvalidArgument, "SPEC_INVALID"),
        ("oci://UPPER/b:v1", Code::InvalidArgument, "SPEC_INVALID"),
        (
            "oci://ghcr.io/a/b:v1",
            Code::PermissionDenied,
            "POLICY_DENIED",
        ),
        (
            "oci://localhost:1/a/b:v1",
            Code::PermissionDenied,
            "POLICY_DENIED",
        ),
    ] {
        refused(&daemon, reference).await.is(code, reason).at("oci");
    }
    for missing in ["a/b:v2", "other:v1"] {
        refused(&daemon, &format!("oci://{host}/{missing}"))
            .await
            .is(Code::NotFound, "MODULE_NOT_FOUND");
    }
    let large = saying("large", (2 << 20) + 1);
    for (name, layers, reason) in [
        (
            "two:v1",
            &[(&module[..], WASM), (b"x", WASM)][..],
            "MODULE_INVALID",
        ),
        ("text:v1", &[(b"x", "text/plain")], "MODULE_INVALID"),
        ("large:v1", &[(&large, WASM)], "MODULE_TOO_LARGE"),
        ("none:v1", &[(b"no module", WASM)], "MODULE_INVALID"),
    ] {
        registry.push(name, layers, false).await;
        refused(&daemon, &format!("oci://{host}/{name}"))
            .await
            .is(Code::InvalidArgument, reason);
    }

    // A blob, and a manifest, that are not what their digests say.
    let victim = saying("victim", 0);
    let manifest = registry.push("victim:v1", &[(&victim, WASM)], false).await;
    let blob = registry.blob(&ringfence::model::request::Digest::of(&victim).to_string());
    std::fs::write(blob, saying("forged", 0)).unwrap();
    refused(&daemon, &format!("oci://{host}/victim:v1"))
        .await
        .is(Code::InvalidArgument, "DIGEST_MISMATCH");
    let file = registry.blob(&manifest);
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text} ")).unwrap();
    refused(&daemon, &format!("oci://{host}/victim@{manifest}"))
        .await
        .is(Code::InvalidArgument, "DIGEST_MISMATCH");

    let host = registry.host.clone();
    drop(registry);
    let away = refused(&daemon, &format!("oci://{host}/a/b:v1"))
        .await
        .is(Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(away.retry);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_registry_gets_the_credentials_of_the_file() {
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let host = registry.host.as_str();
    let module = saying("private", 0);
    registry.push("a:v1", &[(&module, WASM)], true).await;
    let allowed = format!("[\"http://{host}\"]");
    let reference = format!("oci://{host}/a:v1");

    let stranger = Daemon::with(&[("oci.registries", &allowed)]).await;
    refused(&stranger, &reference)
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND");

    let mut file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap().to_owned();
    let daemon = Daemon::with(&[
        ("oci.registries", &allowed),
        ("oci.credentials_file", &path),
    ])
    .await;
    // "ali:open sesame", and read anew for each pull.
    let config = format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"YWxpOm9wZW4gc2VzYW1l\"}}}}}}");
    file.write_all(config.as_bytes()).unwrap();
    pull(&daemon, &reference).await.unwrap();
    std::fs::write(&path, "{\"auths\": secret}").unwrap();
    refused(&daemon, &reference)
        .await
        .is(Code::Unavailable, "STORE_UNAVAILABLE");
}
