//! Clients that others wrote: Python's grpcio, and buf over reflection.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::guests;
use crate::harness::Daemon;

/// Runs a command to its end beside the daemon.
async fn output(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().expect("it starts"))
        .await
        .unwrap()
}

#[track_caller]
fn succeeded(output: &Output, what: &str) -> String {
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
    let venv = guests::root().join(".cache/venv");
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
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(guests::root().join("tests/interop/requirements.txt"));
    let installed = output(install).await;
    if !installed.status.success() {
        skipped("tests/interop/requirements.txt", &installed);
        return None;
    }
    Some(python)
}

async fn drive(python: &Path, stubs: &Path, target: String) {
    let mut client = Command::new(python);
    client
        .arg(guests::root().join("tests/interop/client.py"))
        .arg(stubs)
        .arg(target);
    let told = succeeded(&output(client).await, "client.py");
    assert!(told.ends_with("interop ok\n"), "{told}");
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
    for file in ["sandbox_service", "spec", "result", "event", "module"] {
        generate.arg(format!("proto/ringfence/v1/{file}.proto"));
    }
    succeeded(&output(generate).await, "grpc_tools.protoc");

    let tcp = Daemon::start().await;
    drive(&python, stubs.path(), tcp.addr.clone()).await;

    let dir = tempfile::tempdir().unwrap();
    let listen = format!("unix:{}/s", dir.path().display());
    let _unix = Daemon::listening(&listen, &[]).await;
    drive(&python, stubs.path(), listen).await;
}

/// buf, in `.cache/buf`.
async fn buf() -> Option<PathBuf> {
    let prefix = guests::root().join(".cache/buf");
    let bin = prefix.join("node_modules/.bin/buf");
    if !bin.exists() {
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
                "--prefix",
            ])
            .arg(&prefix)
            .arg("@bufbuild/buf@1.75.0");
        let installed = output(install).await;
        if !installed.status.success() {
            skipped("buf", &installed);
            return None;
        }
    }
    Some(bin)
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
    assert!(
        told.contains("spec: is missing") && told.contains("ErrorInfo"),
        "{told}"
    );

    let mut lint = Command::new(&buf);
    lint.args(["lint"])
        .current_dir(guests::root().join("proto"));
    succeeded(&output(lint).await, "buf lint");
}
