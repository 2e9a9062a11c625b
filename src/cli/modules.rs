//! The command `ringfence modules`, which lists, shows and deletes modules.

use std::collections::HashMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::connect::{DaemonArgs, connect_modules, status_failure};
use super::{Failure, can_be_written, exit, print, print_json, runtime, value_parsers};
use crate::api::proto::{
    DeleteModuleRequest, GetModuleRequest, ListModulesRequest, ModuleInfo, ModuleKind,
};
use crate::model::refusal::printable;

/// List, show or delete the modules that a daemon stores.
#[derive(Debug, Args)]
pub(super) struct ModulesCommand {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(subcommand)]
    action: ModulesAction,
}

#[derive(Debug, Subcommand)]
enum ModulesAction {
    /// List the modules of the daemon
    Ls {
        /// List only modules with this label. May be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
        label: Vec<(String, String)>,
        /// Print one JSON object per line, instead of a table
        #[arg(long, value_name = "FORMAT")]
        output: Option<ModulesOutputFormat>,
    },
    /// Delete modules, while runs that use them continue
    Rm {
        /// The digests of the modules
        #[arg(required = true)]
        digest: Vec<String>,
    },
    /// Print everything that is known about a module, as JSON
    Show {
        /// The digest of the module
        digest: String,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModulesOutputFormat {
    /// Print one JSON object per line
    Json,
}

impl ModulesCommand {
    pub(super) fn prints_json(&self) -> bool {
        match &self.action {
            ModulesAction::Ls { output, .. } => output.is_some(),
            ModulesAction::Show { .. } => true,
            ModulesAction::Rm { .. } => false,
        }
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let Self {
            daemon,
            action: what,
        } = self;
        let at = &daemon;
        runtime()?.block_on(async {
            match what {
                ModulesAction::Ls { label, output } => {
                    list(at, value_parsers::labels(&label)?, output).await
                }
                ModulesAction::Rm { digest } => remove(at, digest).await,
                ModulesAction::Show { digest } => show(at, digest).await,
            }
        })
    }
}

async fn list(
    at: &DaemonArgs,
    labels: HashMap<String, String>,
    output: Option<ModulesOutputFormat>,
) -> Result<ExitCode, Failure> {
    let mut client = connect_modules(at).await?;
    let mut request = ListModulesRequest {
        page_size: 0,
        page_token: String::new(),
        labels,
    };
    let mut head = match output {
        Some(ModulesOutputFormat::Json) => "",
        None => HEAD,
    };
    loop {
        let answer = client.list_modules(request.clone()).await;
        let page = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        let mut text = std::mem::take(&mut head).to_owned();
        for module in &page.modules {
            // Writing to a string cannot fail.
            let _ = match output {
                Some(ModulesOutputFormat::Json) => writeln!(text, "{}", module_json(module)),
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
    // The other modules are to be deleted even if nobody reads what is printed about one.
    let mut printed = Ok(code);
    for digest in digests {
        let request = DeleteModuleRequest {
            digest: digest.clone(),
        };
        let answer = client.delete_module(request).await;
        let answer = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        if answer.deleted {
            printed = printed.and(print(format!("{digest}\n").as_bytes()));
        } else {
            super::print_to_stderr(&format!("the daemon has no module {digest}"));
            code = ExitCode::from(exit::REFUSED);
        }
    }
    printed.map(|_| code)
}

async fn show(at: &DaemonArgs, digest: String) -> Result<ExitCode, Failure> {
    let mut client = connect_modules(at).await?;
    let answer = client.get_module(GetModuleRequest { digest }).await;
    let answer = answer
        .map_err(|status| status_failure(&status))?
        .into_inner();
    print_json(&module_json(&answer.module.unwrap_or_default()))
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
    // People need no more than seconds.
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

/// Formats everything that the daemon tells about a module as JSON.
pub(super) fn module_json(module: &ModuleInfo) -> Value {
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
