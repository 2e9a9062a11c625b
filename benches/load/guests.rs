//! Guests, and what is asked of a server about them.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::load_module_request::Source;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::{
    LoadModuleRequest, LoadModuleResponse, RunRequest, RunSpec, RunStreamRequest,
};

use super::caller::{Caller, Question};

const SERVICE: &str = "/ringfence.v1.SandboxService";

/// The guest `benches/guests/NAME.rs`, built for preview 1.
pub(crate) fn built(name: &str) -> (PathBuf, Bytes) {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("load-{name}.wasm"));
    let status = Command::new("rustc")
        .current_dir(&root)
        .args(["--edition=2024", "--target=wasm32-wasip1", "-Copt-level=3"])
        .args(["-Cstrip=symbols", "-o"])
        .arg(&out)
        .arg(root.join(format!("benches/guests/{name}.rs")))
        .status()
        .expect("rustc starts");
    assert!(
        status.success(),
        "{name} builds; rust-toolchain.toml has its target"
    );
    let wasm = std::fs::read(&out).unwrap();
    (out, wasm.into())
}

/// About `kib` KiB of ordinary code that no other number has, of which a run executes next to
/// nothing.
pub(crate) fn module(number: u64, kib: usize) -> Bytes {
    let mut text = String::from("(module (memory 1) (func (export \"_start\"))");
    for function in 0..(kib as u64 * 1024).div_ceil(198) {
        text.push_str("(func (param i32 i32) (result i32) (local i32)");
        for i in 0..10 {
            let n = number * 1_000_003 + function * 31 + i;
            write!(
                text,
                "(local.set 2 (i32.add (i32.load (i32.and (local.get {}) (i32.const 65532))) (i32.mul (local.get 2) (i32.const {}))))",
                i % 3,
                n & 0x3fff_ffff
            )
            .unwrap();
        }
        text.push_str("(local.get 2))");
    }
    // Distinct however small.
    write!(text, "(global i64 (i64.const {number})))").unwrap();
    wat::parse_str(text).unwrap().into()
}

/// The spec of a run of a loaded module.
pub(crate) fn spec(digest: &str, args: &[&str]) -> RunSpec {
    RunSpec {
        module: Some(Module::Digest(digest.to_owned())),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        ..RunSpec::default()
    }
}

/// A run, whose answer holds `holds`.
pub(crate) fn run(spec: RunSpec, holds: &str) -> Question {
    let message = RunRequest { spec: Some(spec) };
    Question::new(&format!("{SERVICE}/Run"), &message, holds)
}

/// A run whose output is streamed.
pub(crate) fn stream(spec: RunSpec) -> Question {
    let message = RunStreamRequest { spec: Some(spec) };
    Question::new(&format!("{SERVICE}/RunStream"), &message, "")
}

/// A load.
pub(crate) fn load(wasm: Bytes) -> Question {
    let message = LoadModuleRequest {
        source: Some(Source::Wasm(wasm)),
        ..LoadModuleRequest::default()
    };
    Question::new(&format!("{SERVICE}/LoadModule"), &message, "sha256:")
}

/// Loads a module, and returns its digest.
pub(crate) async fn loaded(addr: &str, wasm: Bytes) -> String {
    let answer = Caller::connect(addr).await.ask(&load(wasm)).await;
    let answer = LoadModuleResponse::decode(answer.expect("it is taken")).unwrap();
    answer.module.unwrap().digest
}
