//! `ringfence load`

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::connect::{connect, failure};
use super::{Failure, key_value, print, print_json, read, runtime};
use crate::api::proto::load_module_request::Source;
use crate::api::proto::{LoadModuleRequest, LoadModuleResponse, ModuleKind};

/// Load a module into a daemon.
#[derive(Debug, Args)]
pub(super) struct Load {
    /// A file (binary or text), or "-" for standard input
    file: String,
    /// The daemon, at "host:port" or "unix:/path"
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    server: String,
    /// A name for listings; the file's by default
    #[arg(long)]
    name: Option<String>,
    /// Compile for runs with a fuel limit too
    #[arg(long)]
    metered: bool,
    /// Label the module; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Print all that the daemon tells, rather than the digest
    #[arg(long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object
    Json,
}

impl Load {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let wasm = read(&self.file)?;
        let file_name = || {
            let name = Path::new(&self.file).file_name()?.to_str()?;
            (name != "-").then(|| name.to_owned())
        };
        let request = LoadModuleRequest {
            name: self.name.clone().or_else(file_name).unwrap_or_default(),
            source: Some(Source::Wasm(wasm.into())),
            metered: self.metered,
            labels: self.label.into_iter().collect(),
        };
        let answer = runtime()?.block_on(async {
            let mut client = connect(&self.server).await?;
            client
                .load_module(request)
                .await
                .map_err(|status| failure(&status))
        })?;
        let answer = answer.into_inner();
        match self.output {
            Some(Format::Json) => print_json(&report(&answer)),
            None => {
                let digest = answer
                    .module
                    .map(|module| module.digest)
                    .unwrap_or_default();
                print(format!("{digest}\n").as_bytes())
            }
        }
    }
}

fn report(answer: &LoadModuleResponse) -> Value {
    let module = answer.module.clone().unwrap_or_default();
    let kind = match module.kind() {
        ModuleKind::Component => "component",
        ModuleKind::Core | ModuleKind::Unspecified => "core",
    };
    let took = std::time::Duration::try_from(answer.compile_duration.unwrap_or_default());
    json!({
        "digest": module.digest,
        "name": module.name,
        "name_section": module.name_section,
        "kind": kind,
        "size": module.size,
        "memory_minimum_pages": module.memory_minimum_pages,
        "exports": module.exports.iter().map(|e| json!({ "name": e.name, "kind": e.kind, "type": e.r#type })).collect::<Vec<_>>(),
        "imports": module.imports.iter().map(|i| json!({ "module": i.module, "name": i.name, "kind": i.kind })).collect::<Vec<_>>(),
        "labels": module.labels,
        "cached": answer.cached,
        "compile_seconds": took.unwrap_or_default().as_secs_f64(),
    })
}
