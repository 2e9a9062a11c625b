//! What benches run: a hello of an ordinary compiler, and a module that does nothing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::{RunRequest, RunSpec};
use ringfence::model::request::Digest;

pub(crate) const HELLO: &str = "Hello from inside the fence.\n";

fn path() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-hello.wasm")
}

/// Builds the hello. rust-toolchain.toml says by which compiler.
pub(crate) fn build() {
    let mut rustc = Command::new("rustc")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["--edition=2024", "--crate-name=hello"])
        .args(["--target=wasm32-wasip1", "-Copt-level=s"])
        .args(["-Cstrip=symbols", "-o"])
        .arg(path())
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let source = format!("fn main() {{ print!({HELLO:?}); }}");
    let mut stdin = rustc.stdin.take().unwrap();
    stdin.write_all(source.as_bytes()).unwrap();
    drop(stdin);
    assert!(
        rustc.wait().unwrap().success(),
        "rustc builds for wasm32-wasip1 (rustup target add wasm32-wasip1)"
    );
}

/// The hello that was built.
pub(crate) fn hello() -> Bytes {
    std::fs::read(path()).unwrap().into()
}

/// A module that does nothing.
pub(crate) fn noop() -> Bytes {
    wat::parse_str("(module (func (export \"_start\")))")
        .unwrap()
        .into()
}

/// A request for a run of a module, with something in the fields that most callers use.
pub(crate) fn request(digest: Digest) -> Vec<u8> {
    let text = |text: &str| text.to_owned();
    let spec = RunSpec {
        module: Some(Module::Digest(digest.to_string())),
        args: vec![text("hello"), text("--loudly")],
        env: vec![text("LANG=C.UTF-8"), text("HOME=/")],
        timeout: Some(prost_types::Duration {
            seconds: 10,
            nanos: 0,
        }),
        labels: [(text("job"), text("bench"))].into(),
        ..RunSpec::default()
    };
    RunRequest { spec: Some(spec) }.encode_to_vec()
}
