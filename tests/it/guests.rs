//! Guests, built from source once per test run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bytes::Bytes;

/// Where this repository is.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `tests/guests/kit.rs` for preview 1.
pub(crate) fn kit() -> Bytes {
    static KIT: OnceLock<Bytes> = OnceLock::new();
    KIT.get_or_init(|| build("kit", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/kit.rs` as a component.
pub(crate) fn kit_component() -> Bytes {
    static KIT: OnceLock<Bytes> = OnceLock::new();
    KIT.get_or_init(|| build("kit", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/calls.rs` for preview 1.
pub(crate) fn calls() -> Bytes {
    static CALLS: OnceLock<Bytes> = OnceLock::new();
    CALLS
        .get_or_init(|| build("calls", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/calls.rs` as a component.
pub(crate) fn calls_component() -> Bytes {
    static CALLS: OnceLock<Bytes> = OnceLock::new();
    CALLS
        .get_or_init(|| build("calls", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/listing.rs` for preview 1.
pub(crate) fn listing() -> Bytes {
    static LISTING: OnceLock<Bytes> = OnceLock::new();
    LISTING
        .get_or_init(|| build("listing", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/listing.rs` as a component.
pub(crate) fn listing_component() -> Bytes {
    static LISTING: OnceLock<Bytes> = OnceLock::new();
    LISTING
        .get_or_init(|| build("listing", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/file_calls.rs` for preview 1.
pub(crate) fn file_calls() -> Bytes {
    static CALLS: OnceLock<Bytes> = OnceLock::new();
    CALLS
        .get_or_init(|| build("file_calls", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/file_calls.rs` as a component.
pub(crate) fn file_calls_component() -> Bytes {
    static CALLS: OnceLock<Bytes> = OnceLock::new();
    CALLS
        .get_or_init(|| build("file_calls", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/memory_files.rs` for preview 1.
pub(crate) fn memory_files() -> Bytes {
    static FILES: OnceLock<Bytes> = OnceLock::new();
    FILES
        .get_or_init(|| build("memory_files", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/memory_files.rs` as a component.
pub(crate) fn memory_files_component() -> Bytes {
    static FILES: OnceLock<Bytes> = OnceLock::new();
    FILES
        .get_or_init(|| build("memory_files", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/reactor.rs`.
pub(crate) fn reactor() -> Bytes {
    static REACTOR: OnceLock<Bytes> = OnceLock::new();
    REACTOR
        .get_or_init(|| build("reactor", "wasm32-wasip1", &["--crate-type=cdylib"]))
        .clone()
}

/// `tests/guests/places.rs` for preview 1.
pub(crate) fn places() -> Bytes {
    static PLACES: OnceLock<Bytes> = OnceLock::new();
    PLACES
        .get_or_init(|| build("places", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/places.rs` as a component.
pub(crate) fn places_component() -> Bytes {
    static PLACES: OnceLock<Bytes> = OnceLock::new();
    PLACES
        .get_or_init(|| build("places", "wasm32-wasip2", &[]))
        .clone()
}

/// `tests/guests/times.rs` for preview 1.
pub(crate) fn times() -> Bytes {
    static TIMES: OnceLock<Bytes> = OnceLock::new();
    TIMES
        .get_or_init(|| build("times", "wasm32-wasip1", &[]))
        .clone()
}

/// `tests/guests/times.rs` as a component.
pub(crate) fn times_component() -> Bytes {
    static TIMES: OnceLock<Bytes> = OnceLock::new();
    TIMES
        .get_or_init(|| build("times", "wasm32-wasip2", &[]))
        .clone()
}

fn build(name: &str, target: &str, flags: &[&str]) -> Bytes {
    install_target(target);
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{target}.wasm"));
    let source = root().join(format!("tests/guests/{name}.rs"));
    let status = Command::new("rustc")
        .current_dir(root())
        .args(["--edition=2024", "--target", target, "-Copt-level=s"])
        .args(["-Cstrip=debuginfo", "-o"])
        .arg(&out)
        .args(flags)
        .arg(&source)
        .status()
        .expect("rustc starts");
    assert!(status.success(), "{name} builds for {target}");
    std::fs::read(&out).expect("the guest is there").into()
}

/// rustup adds the targets of rust-toolchain.toml when it installs the toolchain; one that was there already may lack
/// them.
fn install_target(target: &str) {
    let output = Command::new("rustc")
        .current_dir(root())
        .args(["--print", "target-libdir", "--target", target])
        .output()
        .expect("rustc starts");
    let dir = String::from_utf8(output.stdout).expect("a path");
    if !Path::new(dir.trim()).is_dir() {
        let status = Command::new("rustup")
            .current_dir(root())
            .args(["target", "add", target])
            .status()
            .expect("rustup starts");
        assert!(status.success(), "rustup adds {target}");
    }
}
