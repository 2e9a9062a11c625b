//! The manifests of `deploy/`, started with their own settings, variables and Secrets, and asked by their own probes and
//! their own example client. Only the folders are others', and the ports.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use tempfile::TempDir;

use crate::auth::Authority;
use crate::guests;
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

    /// The commands of the three probes.
    fn probes(&self) -> Vec<Vec<String>> {
        let lines = self.manifest.lines();
        let commands = lines.filter_map(|it| it.trim().strip_prefix("command: ["));
        let probes: Vec<_> = commands
            .map(|it| {
                let words = it.trim_end_matches(']').split(", ");
                words.map(|it| it.trim_matches('"').to_owned()).collect()
            })
            .collect();
        assert_eq!(probes.len(), 3, "{}", self.manifest);
        probes
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
        let (mut addresses, mut line) = (Vec::new(), String::new());
        while !line.contains("\"serving\"") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some((_, told)) = line.split_once("\"address\":\"") {
                addresses.push(told.split('"').next().unwrap().to_owned());
            }
        }
        Deployed {
            child,
            _log: log,
            addresses,
        }
    }

    /// All three probes succeed, by the very commands that the kubelet executes.
    #[track_caller]
    fn is_probed(&self) {
        for probe in self.probes() {
            assert_eq!(probe[0], "/usr/bin/ringfence");
            let output = ringfence().args(&probe[1..]).output().unwrap();
            let said = text(&output.stdout);
            assert!(
                output.status.success() && said.starts_with("serving"),
                "{probe:?}: {output:?}"
            );
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
}

impl Drop for Deployed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_sidecar_is_probed_with_tls_tokens_and_users_or_without() {
    let pod = Pod::new("sidecar");
    pod.secrets();
    let deployed = pod.start(&[]);
    pod.is_probed();
    drop(deployed);
    let (cert, key) = (
        pod.path("etc/ringfence-tls/tls.crt"),
        pod.path("etc/ringfence-tls/tls.key"),
    );
    let tls = [
        ("RINGFENCE_TLS__CERT", cert.as_str()),
        ("RINGFENCE_TLS__KEY", &key),
    ];
    let deployed = pod.start(&tls);
    pod.is_probed();
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
    let _deployed = pod.start(&all.concat());
    pod.is_probed();
    // Nothing but health: the probe's user is no tenant.
    let server = pod.probes()[0].last().unwrap().clone();
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

#[test]
fn the_fleet_is_probed_with_tls_and_without_and_its_client_is_let_in() {
    let pod = Pod::new("fleet");
    pod.secrets();
    let memory = ("RINGFENCE_STORE__URL", "memory:");
    let deployed = pod.start(&[memory]);
    pod.is_probed();
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

    // As it was before there was a certificate.
    let plain = [
        memory,
        ("RINGFENCE_TLS__CERT", ""),
        ("RINGFENCE_TLS__KEY", ""),
    ];
    let deployed = pod.start(&plain);
    pod.is_probed();
    let told = as_client(&pod, &deployed.addresses[0], &["ps"]);
    assert!(
        text(&told.stderr).contains("it speaks plaintext, but this command speaks TLS"),
        "{told:?}"
    );
    drop(deployed);

    // And with client certificates, of which the probes have none.
    let authority = pod.path("etc/ringfence-tls/ca.crt");
    let deployed = pod.start(&[memory, ("RINGFENCE_TLS__CLIENT_CA", &authority)]);
    pod.is_probed();
    let told = as_client(&pod, &deployed.addresses[0], &["ps"]);
    assert!(
        text(&told.stderr).contains("requires a client certificate"),
        "{told:?}"
    );
}

#[tokio::test]
async fn the_fleet_keeps_its_modules_over_a_rollout_in_its_store() {
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
    // What the Secret `ringfence-store` holds.
    let store = [
        ("RINGFENCE_STORE__URL", "s3://modules/fleet"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    let pod = Pod::new("fleet");
    pod.secrets();
    let before = pod.start(&store);
    pod.is_probed();
    let loaded = as_client(&pod, &before.addresses[0], &["load", "examples/hello.wat"]);
    let digest = text(&loaded.stdout).trim().to_owned();
    assert!(digest.starts_with("sha256:"), "{loaded:?}");
    drop(before);
    let after = pod.start(&store);
    pod.is_probed();
    let ran = as_client(&pod, &after.addresses[0], &["run", &digest]);
    assert_eq!(
        text(&ran.stdout),
        "Hello from inside the fence.\n",
        "{ran:?}"
    );
    drop(after);
    let _ = moto.kill();
    let _ = moto.wait();
}
