//! The manifests of `deploy/`, started with their own settings, variables and Secrets, and asked by their own probes and
//! their own example client. Only the folders are others', and the ports.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use tempfile::TempDir;

use crate::auth::Authority;
use crate::guests;
use crate::harness::PATIENCE;
use crate::process::ringfence;
use crate::tenants::token;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn file(folder: &str, name: &str) -> String {
    let path = guests::root().join("deploy").join(folder).join(name);
    std::fs::read_to_string(path).unwrap()
}

/// Folders of a pod, in one of this test's.
struct Pod {
    dir: TempDir,
    manifest: String,
    settings: String,
}

impl Pod {
    fn new(folder: &str) -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir_all(dir.path().join("run/ringfence")).unwrap();
        let mut pod = Self {
            dir,
            manifest: String::new(),
            settings: String::new(),
        };
        pod.manifest = pod.moved(&file(folder, "deployment.yaml"));
        pod.settings = pod.moved(&file(folder, "ringfence.toml"));
        pod
    }

    /// `text` with this pod's folders, and ports that are free.
    fn moved(&self, text: &str) -> String {
        let root = self.dir.path().to_str().unwrap();
        text.replace("/run/ringfence", &format!("{root}/run/ringfence"))
            .replace("/etc/ringfence", &format!("{root}/etc/ringfence"))
            .replace("0.0.0.0:50051", "127.0.0.1:0")
            .replace("0.0.0.0:50052", "127.0.0.1:0")
            .replace("$(POD_IP):50052", "127.0.0.1:0")
    }

    fn path(&self, path: &str) -> String {
        self.dir.path().join(path).to_str().unwrap().to_owned()
    }

    /// A Secret as the kubelet mounts one: links to a folder that is replaced as a whole.
    fn secret(&self, at: &str, files: &[(&str, &str)]) {
        let folder = self.dir.path().join(at);
        std::fs::create_dir_all(folder.join("..2026")).unwrap();
        std::os::unix::fs::symlink("..2026", folder.join("..data")).unwrap();
        for (name, contents) in files {
            std::fs::write(folder.join("..2026").join(name), contents).unwrap();
            let to = Path::new("..data").join(name);
            std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
        }
    }

    /// What `deploy/README.md` has made before the fleet starts.
    fn secrets(&self) {
        use sha2::Digest;
        let servers = Authority::new("servers");
        let (cert, key) = servers.issue(&["ringfence", "ringfence.default.svc"]);
        let ca = servers.pem();
        let tls = [("tls.crt", &*cert), ("tls.key", &*key), ("ca.crt", &*ca)];
        self.secret("etc/ringfence-tls", &tls);
        self.secret("etc/ringfence-ca", &[("ca.crt", &ca)]);
        let hash = sha2::Sha256::digest(token("default"));
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let line = format!("default sha256:{hash}\n");
        self.secret("etc/ringfence-tokens", &[("tokens", &line)]);
        self.secret("etc/ringfence-client", &[("token", &token("default"))]);
    }

    /// The three probes, as a kubelet reads them: the scheme and the path of each.
    fn probes(&self) -> Vec<(String, &'static str)> {
        let (_, ports) = self.manifest.split_once("ports:\n").unwrap();
        let (ports, _) = ports.split_once("Probe:").unwrap();
        assert!(ports.contains("- name: admin\n              containerPort: 50052\n"));
        let kinds = [
            ("startupProbe", "/readyz"),
            ("readinessProbe", "/readyz"),
            ("livenessProbe", "/livez"),
        ];
        let probes = kinds.map(|(kind, path)| {
            let (_, probe) = self
                .manifest
                .split_once(&format!("{kind}:\n            httpGet:\n"))
                .unwrap();
            let (probe, _) = probe.split_once("periodSeconds").unwrap();
            let of = |key: &str| {
                let line = probe.lines().find_map(|it| it.trim().strip_prefix(key));
                line.unwrap().to_owned()
            };
            assert_eq!((of("port: "), of("path: ")), ("admin".into(), path.into()));
            (of("scheme: ").to_lowercase(), path)
        });
        probes.to_vec()
    }

    /// Changes the scheme of the probes, as an operator does who turns TLS on or off.
    fn with_scheme(mut self, now: &str, then: &str) -> Self {
        let line = |scheme| format!("scheme: {scheme}\n");
        assert_eq!(self.manifest.matches(&line(now)).count(), 3);
        self.manifest = self.manifest.replace(&line(now), &line(then));
        self
    }

    /// Starts the daemon as the manifest does, with what else is in its environment.
    fn start(&self, env: &[(&str, &str)]) -> Deployed {
        let settings = self.dir.path().join("ringfence.toml");
        std::fs::write(&settings, &self.settings).unwrap();
        assert!(
            self.manifest
                .contains(&self.moved("args: [serve, --config, /etc/ringfence/ringfence.toml]"))
        );
        let mut command = ringfence();
        let mut child = command
            .args(["serve", "--config"])
            .arg(settings)
            .envs(variables(&self.manifest, "ringfence"))
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut addresses, mut admin, mut line) = (Vec::new(), Vec::new(), String::new());
        while !line.contains("\"serving\"") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
            for (key, all) in [("address", &mut addresses), ("admin", &mut admin)] {
                if let Some((_, told)) = line.split_once(&format!("\"{key}\":\"")) {
                    all.push(told.split('"').next().unwrap().to_owned());
                }
            }
        }
        assert_eq!(admin.len(), 1, "{admin:?}");
        Deployed {
            child,
            _log: log,
            addresses,
            admin: admin.remove(0),
        }
    }

    /// All three probes succeed, asked as a kubelet asks.
    async fn is_probed(&self, deployed: &Deployed) {
        for (scheme, path) in self.probes() {
            let (status, said) = deployed.ask(&scheme, path).await;
            let good = match path {
                "/readyz" => said.ends_with("\nready\n"),
                _ => said == "ok\n",
            };
            assert!(good && status == 200, "{path}: {status}: {said}");
        }
    }
}

/// Variables of a container: the names and values that stand in its manifest.
fn variables(manifest: &str, container: &str) -> Vec<(String, String)> {
    let (_, own) = manifest
        .split_once(&format!("- name: {container}\n          image:"))
        .unwrap();
    let own = own.split("\n      volumes:").next().unwrap();
    let own = own.split("\n      containers:").next().unwrap();
    let lines: Vec<_> = own.lines().map(str::trim).collect();
    let pairs = lines.windows(2).filter_map(|pair| {
        let name = pair[0].strip_prefix("- name: ")?;
        let value = pair[1].strip_prefix("value: ")?;
        Some((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

struct Deployed {
    child: Child,
    _log: BufReader<ChildStderr>,
    addresses: Vec<String>,
    admin: String,
}

impl Deployed {
    /// The answer of the admin listener to a kubelet: it has no credential, and does not verify the certificate.
    async fn ask(&self, scheme: &str, path: &str) -> (u16, String) {
        let client = reqwest::Client::builder()
            .tls_danger_accept_invalid_certs(true)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .unwrap();
        let url = format!("{scheme}://{}{path}", self.admin);
        let answer = client.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

impl Deployed {
    /// Ends it as a kubelet does, and waits until it has.
    fn stop(mut self) {
        let signal = ["-TERM", &self.child.id().to_string()];
        let sent = Command::new("kill").args(signal).status().unwrap();
        assert!(sent.success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Deployed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn the_sidecar_is_probed_with_tls_tokens_and_users_or_without() {
    let pod = Pod::new("sidecar");
    pod.secrets();
    let server = format!("unix:{}", pod.path("run/ringfence/ringfence.sock"));
    // The health check of the image, whatever is asked of callers.
    let is_healthy = || {
        let output = ringfence()
            .args(["health", "--server", &server])
            .output()
            .unwrap();
        assert!(
            output.status.success() && text(&output.stdout).starts_with("serving"),
            "{output:?}"
        );
    };
    let deployed = pod.start(&[]);
    pod.is_probed(&deployed).await;
    is_healthy();
    drop(deployed);
    let pod = pod.with_scheme("HTTP", "HTTPS");
    let (cert, key) = (
        pod.path("etc/ringfence-tls/tls.crt"),
        pod.path("etc/ringfence-tls/tls.key"),
    );
    let tls = [
        ("RINGFENCE_TLS__CERT", cert.as_str()),
        ("RINGFENCE_TLS__KEY", &key),
    ];
    let deployed = pod.start(&tls);
    pod.is_probed(&deployed).await;
    is_healthy();
    drop(deployed);
    let tokens = pod.path("etc/ringfence-tokens/tokens");
    let authority = pod.path("etc/ringfence-tls/ca.crt");
    let all = [
        &tls[..],
        &[
            ("RINGFENCE_TLS__CLIENT_CA", authority.as_str()),
            ("RINGFENCE_AUTH__TOKENS_FILE", &tokens),
            (
                "RINGFENCE_TENANTS",
                "[{name=\"default\"},{name=\"app\",uids=[10001]}]",
            ),
        ],
    ];
    let deployed = pod.start(&all.concat());
    pod.is_probed(&deployed).await;
    assert_eq!(deployed.ask("https", "/debug/config").await.0, 401);
    is_healthy();
    // Nothing but health: the user who asks is no tenant.
    let output = ringfence()
        .args(["ps", "--server", &server])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(126), "{output:?}");
}

/// The example client, in its own environment, at a daemon whose port is another.
fn as_client(pod: &Pod, port: &str, args: &[&str]) -> Output {
    let manifest = pod.moved(&file("fleet", "client.yaml"));
    let own = variables(&manifest, "app");
    let server = own.iter().find(|(name, _)| name == "RINGFENCE_SERVER");
    let server = server.unwrap().1.replace("ringfence:50051", port);
    assert!(server.starts_with("https://127.0.0.1:"), "{server}");
    let mut command = ringfence();
    command.envs(own).env("RINGFENCE_SERVER", server).args(args);
    command.output().unwrap()
}

#[tokio::test]
async fn the_fleet_is_probed_with_tls_and_without_and_its_client_is_let_in() {
    let pod = Pod::new("fleet");
    pod.secrets();
    let memory = ("RINGFENCE_STORE__URL", "memory:");
    let deployed = pod.start(&[memory]);
    pod.is_probed(&deployed).await;
    assert_eq!(deployed.ask("https", "/debug/config").await.0, 401);
    let port = deployed.addresses[0].clone();
    let hello = as_client(&pod, &port, &["run", "examples/hello.wat"]);
    assert_eq!(
        (text(&hello.stdout), text(&hello.stderr)),
        ("Hello from inside the fence.\n".to_owned(), String::new())
    );
    // What its manifest runs goes on for as long as it is let; without the watch it ends.
    assert!(file("fleet", "client.yaml").contains("args: [ps, --watch, --output, json]"));
    let runs = as_client(&pod, &port, &["ps", "--all", "--output", "json"]);
    assert!(text(&runs.stdout).contains("\"run_id\""), "{runs:?}");
    // Others are not, not even to ask for health over the network.
    let output = ringfence()
        .args(["health", "--server", &format!("https://{port}")])
        .args(["--tls-ca", &pod.path("etc/ringfence-ca/ca.crt")])
        .args(["--tls-server-name", "ringfence"])
        .output()
        .unwrap();
    assert!(
        text(&output.stderr).contains("CREDENTIALS_INVALID"),
        "{output:?}"
    );
    drop(deployed);

    // And with client certificates, of which the probes have none.
    let authority = pod.path("etc/ringfence-tls/ca.crt");
    let deployed = pod.start(&[memory, ("RINGFENCE_TLS__CLIENT_CA", &authority)]);
    pod.is_probed(&deployed).await;
    let told = as_client(&pod, &deployed.addresses[0], &["ps"]);
    assert!(
        text(&told.stderr).contains("requires a client certificate"),
        "{told:?}"
    );
    drop(deployed);

    // As it was before there was a certificate.
    let pod = pod.with_scheme("HTTPS", "HTTP");
    let plain = [
        memory,
        ("RINGFENCE_TLS__CERT", ""),
        ("RINGFENCE_TLS__KEY", ""),
    ];
    let deployed = pod.start(&plain);
    pod.is_probed(&deployed).await;
    let told = as_client(&pod, &deployed.addresses[0], &["ps"]);
    assert!(
        text(&told.stderr).contains("it speaks plaintext, but this command speaks TLS"),
        "{told:?}"
    );
}

#[tokio::test]
async fn the_fleet_keeps_its_modules_and_ended_runs_over_a_rollout_in_its_bucket() {
    let Some(python) = crate::interop::python().await else {
        return;
    };
    let mut moto = Command::new(python)
        .arg(guests::root().join("tests/interop/s3.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut port = String::new();
    let out = moto.stdout.take().unwrap();
    BufReader::new(out).read_line(&mut port).unwrap();
    let endpoint = format!("http://127.0.0.1:{}", port.trim());
    let pod = Pod::new("fleet");
    pod.secrets();
    let spool = pod.path("var/spool/ringfence/runs");
    // What the Secret `ringfence-store` holds, and no time for clients that are not there.
    let store = [
        ("RINGFENCE_STORE__URL", "s3://modules/fleet"),
        ("RINGFENCE_RUNS__ARCHIVE", "s3://modules/runs"),
        ("RINGFENCE_RUNS__ARCHIVE_SPOOL", spool.as_str()),
        ("RINGFENCE_SERVER__DRAIN_DELAY", "0s"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let before = pod.start(&store);
    pod.is_probed(&before).await;
    let loaded = as_client(&pod, &before.addresses[0], &["load", "examples/hello.wat"]);
    let digest = text(&loaded.stdout).trim().to_owned();
    assert!(digest.starts_with("sha256:"), "{loaded:?}");
    let detached = as_client(&pod, &before.addresses[0], &["run", "--detach", &digest]);
    let run_id = text(&detached.stdout).trim().to_owned();
    assert!(!run_id.is_empty(), "{detached:?}");
    before.stop();
    let after = pod.start(&store);
    pod.is_probed(&after).await;
    let ran = as_client(&pod, &after.addresses[0], &["run", &digest]);
    assert_eq!(
        text(&ran.stdout),
        "Hello from inside the fence.\n",
        "{ran:?}"
    );
    let told = as_client(&pod, &after.addresses[0], &["logs", &run_id]);
    assert_eq!(
        text(&told.stdout),
        "Hello from inside the fence.\n",
        "{told:?}"
    );
    drop(after);
    let _ = moto.kill();
    let _ = moto.wait();
}
