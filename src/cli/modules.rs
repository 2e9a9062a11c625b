//! `ringfence modules`

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{DaemonArgs, connect_modules, failure};
use super::{Failure, can_be_written, exit, print, print_json, runtime, values};
use crate::api::proto::{
    DeleteModuleRequest, GetModuleRequest, ListModulesRequest, ModuleInfo, ModuleKind,
};
use crate::refusal::printable;

/// The modules that a daemon keeps.
#[derive(Debug, Args)]
pub(super) struct Modules {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List modules
    Ls {
        /// Only those with this label; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_value())]
        label: Vec<(String, String)>,
        /// One JSON object a line, rather than a table
        #[arg(long, value_name = "FORMAT")]
        output: Option<Format>,
    },
    /// Delete modules; what runs goes on
    Rm {
        /// Their digests
        #[arg(required = true)]
        digest: Vec<String>,
    },
    /// Print all that is known of a module, as JSON
    Show {
        /// Its digest
        digest: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
}

impl Modules {
    pub(super) fn prints_json(&self) -> bool {
        match &self.what {
            What::Ls { output, .. } => output.is_some(),
            What::Show { .. } => true,
            What::Rm { .. } => false,
        }
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let Self { daemon, what } = self;
        let at = &daemon;
        runtime()?.block_on(async {
            match what {
                What::Ls { label, output } => list(at, label, output).await,
                What::Rm { digest } => remove(at, digest).await,
                What::Show { digest } => show(at, digest).await,
            }
        })
    }
}

async fn list(
    at: &DaemonArgs,
    labels: Vec<(String, String)>,
    output: Option<Format>,
) -> Result<ExitCode, Failure> {
    let mut client = connect_modules(at).await?;
    let mut request = ListModulesRequest {
        page_size: 0,
        page_token: String::new(),
        labels: labels.into_iter().collect(),
    };
    let mut head = match output {
        Some(Format::Json) => "",
        None => HEAD,
    };
    loop {
        let answer = client.list_modules(request.clone()).await;
        let page = answer.map_err(|status| failure(&status))?.into_inner();
        let mut text = std::mem::take(&mut head).to_owned();
        for module in &page.modules {
            // Writing to a string cannot fail.
            let _ = match output {
                Some(Format::Json) => writeln!(text, "{}", report(module)),
                None => writeln!(text, "{}", row(module)),
            };
        }
        print(text.as_bytes())?;
        if page.next_page_token.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        request.page_token = page.next_page_token;
    }
}

async fn remove(at: &DaemonArgs, digests: Vec<String>) -> Result<ExitCode, Failure> {
    let mut client = connect_modules(at).await?;
    let mut code = ExitCode::SUCCESS;
    // Whoever does not read of one wants the others deleted all the same.
    let mut printed = Ok(code);
    for digest in digests {
        let request = DeleteModuleRequest {
            digest: digest.clone(),
        };
        let answer = client.delete_module(request).await;
        let answer = answer.map_err(|status| failure(&status))?.into_inner();
        if answer.deleted {
            printed = printed.and(print(format!("{digest}\n").as_bytes()));
        } else {
            super::complain(&format!("no module {digest} is loaded there"));
            code = ExitCode::from(exit::REFUSED);
        }
    }
    printed.map(|_| code)
}

async fn show(at: &DaemonArgs, digest: String) -> Result<ExitCode, Failure> {
    let mut client = connect_modules(at).await?;
    let answer = client.get_module(GetModuleRequest { digest }).await;
    let answer = answer.map_err(|status| failure(&status))?.into_inner();
    print_json(&report(&answer.module.unwrap_or_default()))
}

const HEAD: &str = "DIGEST                                                                   KIND       SIZE       USED      NAME\n";

fn kind(module: &ModuleInfo) -> &'static str {
    match module.kind() {
        ModuleKind::Component => "component",
        ModuleKind::Core | ModuleKind::Unspecified => "core",
    }
}

fn last_used(module: &ModuleInfo) -> SystemTime {
    let told = module
        .last_used
        .and_then(|at| SystemTime::try_from(at).ok())
        .filter(can_be_written);
    told.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn row(module: &ModuleInfo) -> String {
    let ago = last_used(module).elapsed().unwrap_or_default();
    // Seconds are enough for people.
    let ago = humantime::format_duration(Duration::from_secs(ago.as_secs())).to_string();
    let ago = ago.split(' ').next().unwrap_or_default();
    format!(
        "{:<72} {:<10} {:<10} {:<9} {}",
        module.digest,
        kind(module),
        bytesize::ByteSize(module.size)
            .display()
            .iec_short()
            .to_string(),
        format!("{ago} ago"),
        printable(&module.name)
    )
}

/// All that is told of a module.
pub(super) fn report(module: &ModuleInfo) -> Value {
    json!({
        "digest": module.digest,
        "name": module.name,
        "name_section": module.name_section,
        "kind": kind(module),
        "size": module.size,
        "memory_minimum_pages": module.memory_minimum_pages,
        "exports": module.exports.iter().map(|e| json!({ "name": e.name, "kind": e.kind, "type": e.r#type })).collect::<Vec<_>>(),
        "imports": module.imports.iter().map(|i| json!({ "module": i.module, "name": i.name, "kind": i.kind })).collect::<Vec<_>>(),
        "labels": module.labels,
        "last_used": humantime::format_rfc3339_seconds(last_used(module)).to_string(),
        "cached_in": module.cached_in,
    })
}
