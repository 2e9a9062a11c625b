//! Compiles the API without protoc: protox parses the files, tonic-prost-build generates the code.

use std::error::Error;
use std::path::PathBuf;

use prost_build::Config;

const PROTOS: [&str; 9] = [
    "grpc/health/v1/health.proto",
    "ringfence/v1/event.proto",
    "ringfence/v1/module.proto",
    "ringfence/v1/module_service.proto",
    "ringfence/v1/result.proto",
    "ringfence/v1/run.proto",
    "ringfence/v1/run_service.proto",
    "ringfence/v1/sandbox_service.proto",
    "ringfence/v1/spec.proto",
];

#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script where to write by its environment"
)]
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    let descriptors = compiler.file_descriptor_set();

    // Comments are not part of what reflection serves: half the size, and nothing reads them there.
    let mut served = descriptors.clone();
    for file in &mut served.file {
        file.source_code_info = None;
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&served),
    )?;

    let mut config = Config::new();
    // Modules, input and output are handed on without a copy.
    config.bytes(["."]);
    // Most messages of a stream are small: they need not be as large as the largest.
    for large in [
        "StreamEvent.event.exit",
        "RunInfo.end.result",
        "WatchRunsResponse.event.run",
        "InteractRequest.frame.start",
    ] {
        config.boxed(format!(".ringfence.v1.{large}"));
    }
    tonic_prost_build::configure()
        .codec_path("crate::api::codec::Codec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
