//! Compiles the API without protoc: protox parses the files, tonic-prost-build generates the code.

use std::error::Error;
use std::path::PathBuf;

use prost_build::Config;
use prost_types::FileDescriptorSet;

const PROTOS: [&str; 13] = [
    "grpc/health/v1/health.proto",
    "ringfence/v1/event.proto",
    "ringfence/v1/execution.proto",
    "ringfence/v1/execution_service.proto",
    "ringfence/v1/file.proto",
    "ringfence/v1/module.proto",
    "ringfence/v1/module_service.proto",
    "ringfence/v1/result.proto",
    "ringfence/v1/run.proto",
    "ringfence/v1/run_service.proto",
    "ringfence/v1/sandbox_service.proto",
    "ringfence/v1/spec.proto",
    "ringfence/v1/stats_service.proto",
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

    std::fs::write(out.join("methods.rs"), methods(&descriptors))?;

    println!("cargo::rerun-if-changed=languages");
    std::fs::write(out.join("language_sources.rs"), language_sources()?)?;

    let mut config = Config::new();
    // Modules, input and output are handed on without a copy.
    config.bytes(["."]);
    // Most messages of a stream are small: they need not be as large as the largest.
    for large in [
        "StreamEvent.event.exit",
        "RunInfo.end.result",
        "WatchRunsResponse.event.run",
        "InteractRequest.frame.start",
        "InteractRequest.frame.execute",
    ] {
        config.boxed(format!(".ringfence.v1.{large}"));
    }
    tonic_prost_build::configure()
        .codec_path("crate::api::codec::Codec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}

/// Writes an enum of every method of the services, so that the table of their contracts is a `match` that does not
/// compile while a method has no row.
fn methods(descriptors: &FileDescriptorSet) -> String {
    let (mut variants, mut paths, mut all) = (String::new(), String::new(), String::new());
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let (package, service, method) = (file.package(), service.name(), method.name());
                let path = format!("/{package}.{service}/{method}");
                let variant = format!("{}{method}", service.trim_end_matches("Service"));
                variants.push_str(&format!(
                    "    /// The method at `{path}`.\n    {variant},\n"
                ));
                paths.push_str(&format!("            \"{path}\" => Self::{variant},\n"));
                all.push_str(&format!("        (Self::{variant}, \"{path}\"),\n"));
            }
        }
    }
    let count = all.lines().count();
    format!(
        "/// A method of the services of the API, named by its service and its own name.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq)]\n\
         pub(super) enum ApiMethod {{\n{variants}}}\n\n\
         impl ApiMethod {{\n    \
             /// Every method with its path.\n    \
             pub(super) const ALL: [(Self, &'static str); {count}] = [\n{all}    ];\n\n    \
             /// Returns the method at a path; `None` where the services have none there.\n    \
             pub(super) fn at(path: &str) -> Option<Self> {{\n        \
                 Some(match path {{\n{paths}            _ => return None,\n        }})\n    }}\n}}\n"
    )
}

/// Writes a constant for each folder in `languages`, which has all of its files with their paths, so that the program
/// can build the interpreters without this repository.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo tells a build script where the package is by its environment"
)]
fn language_sources() -> Result<String, Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("languages");
    let mut text = String::new();
    let mut folders: Vec<_> = std::fs::read_dir(&root)?.collect::<Result<_, _>>()?;
    folders.retain(|entry| entry.path().is_dir());
    folders.sort_by_key(std::fs::DirEntry::file_name);
    for folder in folders {
        let name = folder.file_name().to_string_lossy().to_uppercase();
        let mut files = Vec::new();
        collect(&folder.path(), &mut files)?;
        files.sort();
        text.push_str(&format!(
            "/// The files of `languages/{}` by their paths.\nconst {name}: &[(&str, &[u8])] = &[\n",
            folder.file_name().to_string_lossy()
        ));
        for file in files {
            let inside = file.strip_prefix(folder.path())?.display();
            text.push_str(&format!(
                "    ({:?}, include_bytes!({:?})),\n",
                inside.to_string(),
                file
            ));
        }
        text.push_str("];\n");
    }
    Ok(text)
}

/// Collects the files in a folder and below it, without what tools leave there.
fn collect(folder: &std::path::Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name == "__pycache__" || name == "node_modules" {
            continue;
        }
        match path.is_dir() {
            true => collect(&path, files)?,
            false => files.push(path),
        }
    }
    Ok(())
}
