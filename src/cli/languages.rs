//! The command `ringfence languages`, which lists the languages of a daemon, and adds, checks and
//! removes those of a configuration file.

mod config_file;
mod recipes;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use self::config_file::{LanguageBlock, LanguageFile};
use self::recipes::Recipe;
use super::connect::{DaemonArgs, EmbeddedDaemon, executions_client, status_failure};
use super::incident_causes::IncidentCauses;
use super::wait_indicator::WaitIndicator;
use super::{Failure, exit, print, print_to_stderr, runtime};
use crate::api::proto::{ExecuteRequest, ExecutionSpec, Language, ListLanguagesRequest, Outcome};
use crate::config::{Overrides, variable};
use crate::model::refusal::printable;

/// The program by which a language is checked: it does nothing, in nearly every language.
const NOTHING: &str = "\n";

/// List the languages of a daemon, or add, check and remove those of a configuration.
#[derive(Debug, Args)]
pub(super) struct LanguagesCommand {
    #[command(subcommand)]
    action: LanguagesAction,
}

#[derive(Debug, Subcommand)]
enum LanguagesAction {
    /// List the languages of a daemon
    Ls {
        #[command(flatten)]
        daemon: DaemonArgs,
        /// Print one JSON object per line, instead of a table
        #[arg(long, value_name = "FORMAT")]
        output: Option<LanguagesOutputFormat>,
    },
    /// Add a language to a configuration file
    ///
    /// Builds the interpreter of "python" or "javascript" with tools of PyPI or npm that are pinned
    /// by their digests, which takes python3 with venv, or node 20 with npm, and about a minute.
    /// Then checks it, which compiles it. With --module, nothing is fetched or built.
    Add(AddArgs),
    /// Execute a program that does nothing in each language of a configuration file, and report how
    /// long it took
    Check {
        #[command(flatten)]
        file: FileArgs,
        /// Check only these languages
        name: Vec<String>,
    },
    /// Remove a language from a configuration file
    Rm {
        #[command(flatten)]
        file: FileArgs,
        /// The name of the language
        name: String,
    },
}

#[derive(Clone, Debug, Args)]
struct FileArgs {
    /// The configuration file to use
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct AddArgs {
    #[command(flatten)]
    file: FileArgs,
    /// The name of the language. "python" and "javascript" are known; any other takes
    /// --module
    name: String,
    /// Use this module, which speaks the runner's protocol, instead of building one
    #[arg(long, value_name = "FILE", conflicts_with_all = ["with", "import"])]
    module: Option<PathBuf>,
    /// Build a package into the interpreter: "NAME==VERSION" of PyPI, without native code, or
    /// "NAME@VERSION" of npm. May be repeated
    #[arg(long, value_name = "PACKAGE")]
    with: Vec<String>,
    /// Import this module when the interpreter is built, so that it costs a program nothing. May be
    /// repeated
    #[arg(long, value_name = "NAME")]
    import: Vec<String>,
    /// The folder for the module, instead of `ringfence` in the user's data folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Do not compile and check the language
    #[arg(long)]
    no_check: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LanguagesOutputFormat {
    /// Print one JSON object per line
    Json,
}

impl LanguagesCommand {
    pub(super) fn prints_json(&self) -> bool {
        match &self.action {
            LanguagesAction::Ls { output, .. } => output.is_some(),
            LanguagesAction::Add(_)
            | LanguagesAction::Check { .. }
            | LanguagesAction::Rm { .. } => false,
        }
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        match self.action {
            LanguagesAction::Ls { daemon, output } => runtime()?.block_on(list(&daemon, output)),
            LanguagesAction::Add(args) => args.execute(),
            LanguagesAction::Check { file, name } => check(&file.config, name),
            LanguagesAction::Rm { file, name } => {
                let mut configured = LanguageFile::open(&file.config)?;
                configured.remove(&name)?;
                configured.save()?;
                print(format!("{}\n", printable(&name)).as_bytes())
            }
        }
    }
}

/// Prints the languages of a daemon.
async fn list(
    daemon: &DaemonArgs,
    output: Option<LanguagesOutputFormat>,
) -> Result<ExitCode, Failure> {
    let mut client = executions_client(daemon.channel().await?);
    let answer = client.list_languages(ListLanguagesRequest {}).await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    let mut text = match output {
        Some(LanguagesOutputFormat::Json) => String::new(),
        None => row(["LANGUAGE", "VERSION", "READY", "ALIASES", "MODULE"]),
    };
    for language in &answer.into_inner().languages {
        text.push_str(&match output {
            Some(LanguagesOutputFormat::Json) => format!("{}\n", language_json(language)),
            None => row([
                &printable(&language.name),
                &printable(&language.version),
                if language.ready { "yes" } else { "no" },
                &printable(&language.aliases.join(",")),
                &printable(&language.module_digest),
            ]),
        });
    }
    print(text.as_bytes())
}

/// Formats a line of the table of languages.
fn row([name, version, ready, aliases, module]: [&str; 5]) -> String {
    let line = format!("{name:<16} {version:<12} {ready:<6} {aliases:<20} {module}");
    format!("{}\n", line.trim_end())
}

/// Formats a language as JSON, with the names of the API.
fn language_json(language: &Language) -> serde_json::Value {
    json!({
        "name": language.name,
        "version": language.version,
        "aliases": language.aliases,
        "module_digest": language.module_digest,
        "ready": language.ready,
    })
}

impl AddArgs {
    fn execute(self) -> Result<ExitCode, Failure> {
        let mut file = LanguageFile::open(&self.file.config)?;
        file.require_absent(&self.name)?;
        let recipe = Recipe::of(&self.name);
        let (module, digest) = match (&self.module, &recipe) {
            (Some(module), _) => {
                let module =
                    std::path::absolute(module).map_err(|error| unreadable(module, &error))?;
                let bytes = std::fs::read(&module).map_err(|error| unreadable(&module, &error))?;
                let digest = digest_of(&bytes);
                (module, digest)
            }
            (None, Some(recipe)) => self.build(recipe)?,
            (None, None) => {
                return Err(Failure::new(format!(
                    "there is no recipe for \"{}\"; there are: {}. Any other language takes --module",
                    printable(&self.name),
                    Recipe::names().join(", ")
                )));
            }
        };
        file.add(&LanguageBlock {
            name: &self.name,
            module: &module,
            digest: &digest,
            recipe: recipe.as_ref(),
        })?;
        file.save()?;
        print_to_stderr(&format!(
            "{} has the language \"{}\" now",
            printable(&self.file.config.display().to_string()),
            printable(&self.name)
        ));
        match self.no_check {
            true => Ok(ExitCode::SUCCESS),
            false => check(&self.file.config, vec![self.name]),
        }
    }

    /// Builds the interpreter of a recipe, and returns its file and its digest.
    fn build(&self, recipe: &Recipe) -> Result<(PathBuf, String), Failure> {
        let folder = match &self.dir {
            Some(dir) => dir.clone(),
            None => data_folder()?,
        };
        let failed = |error: std::io::Error| {
            let folder = printable(&folder.display().to_string());
            Failure::new(format!("cannot use the folder {folder}: {error}"))
        };
        std::fs::create_dir_all(&folder).map_err(failed)?;
        let folder = std::path::absolute(&folder).map_err(failed)?;
        print_to_stderr(&format!(
            "building the interpreter of {}: this fetches pinned tools, and takes about a minute",
            recipe.name
        ));
        let built = tempfile::Builder::new()
            .prefix("building-")
            .suffix(".wasm")
            .tempfile_in(&folder)
            .map_err(failed)?;
        recipe.build(built.path(), &self.with, &self.import)?;
        let bytes = std::fs::read(built.path()).map_err(failed)?;
        let digest = digest_of(&bytes);
        let short = digest.trim_start_matches("sha256:").get(..12);
        let module = folder.join(format!(
            "{}-{}.wasm",
            recipe.name,
            short.unwrap_or_default()
        ));
        built
            .persist(&module)
            .map_err(|error| failed(error.error))?;
        Ok((module, digest))
    }
}

/// Returns the digest of bytes, as the API spells it.
fn digest_of(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Builds the failure for a file that cannot be read.
fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    let path = printable(&path.display().to_string());
    Failure::new(format!("cannot read {path}: {error}"))
}

/// Returns the folder in which modules are kept, by the rules that desktops agree on.
fn data_folder() -> Result<PathBuf, Failure> {
    let set = |name: &str| {
        let value = variable(name).map_err(|problems| Failure::new(problems.to_string()))?;
        Ok::<_, Failure>(value.map(PathBuf::from).filter(|path| path.is_absolute()))
    };
    let base = match set("XDG_DATA_HOME")? {
        Some(base) => Some(base),
        None => set("HOME")?.map(|home| home.join(".local/share")),
    };
    let base = base.ok_or_else(|| {
        Failure::new("there is no folder for the module: HOME is not set; name one with --dir")
    })?;
    Ok(base.join("ringfence"))
}

/// Executes a program that does nothing in the languages of a file; all of them where none is
/// named.
fn check(path: &Path, mut names: Vec<String>) -> Result<ExitCode, Failure> {
    if names.is_empty() {
        names = LanguageFile::open(path)?.names();
    }
    runtime()?.block_on(async {
        let causes = IncidentCauses::start();
        let overrides = Overrides {
            file: Some(path.to_owned()),
            // What the daemon itself would listen on is not wanted here.
            environment: true,
            ..Overrides::default()
        };
        let started = EmbeddedDaemon::start_with(overrides).await;
        let (daemon, channel) = started.map_err(|failure| causes.explain(failure))?;
        let mut code = ExitCode::SUCCESS;
        for name in names {
            let checked = check_one(channel.clone(), &name).await;
            match checked.map_err(|failure| causes.explain(failure)) {
                Ok(text) => {
                    print(text.as_bytes())?;
                }
                Err(failure) => {
                    failure.report(false);
                    code = ExitCode::from(exit::REFUSED);
                }
            }
        }
        daemon.end().await?;
        Ok(code)
    })
}

/// Executes a program that does nothing in one language, twice, and describes how long that took.
async fn check_one(channel: super::connect::DaemonChannel, name: &str) -> Result<String, Failure> {
    let mut client = executions_client(channel);
    let mut took = Vec::new();
    for _ in 0..2 {
        let spec = ExecutionSpec {
            language: name.to_owned(),
            code: NOTHING.to_owned(),
            ..ExecutionSpec::default()
        };
        let begun = Instant::now();
        let waiting = WaitIndicator::new(format!("compiling {}", printable(name)));
        let answer = waiting
            .during(client.execute(ExecuteRequest { spec: Some(spec) }))
            .await
            .map_err(|status| status_failure(&status))?
            .into_inner();
        took.push(begun.elapsed());
        let result = answer.result.unwrap_or_default();
        if result.outcome() != Outcome::Exited || result.exit_code != Some(0) {
            let said = String::from_utf8_lossy(&answer.stderr);
            return Err(Failure::with(
                exit::REFUSED,
                format!(
                    "{}: a program that does nothing did not end with exit code 0, but with {}: {}",
                    printable(name),
                    super::ending::briefly(&result),
                    printable(said.trim_end())
                ),
            ));
        }
    }
    let [first, second] = [took.first(), took.get(1)].map(|it| it.copied().unwrap_or_default());
    Ok(format!(
        "{}: works; {:.1} s with compiling, {:.1} ms without\n",
        printable(name),
        first.as_secs_f64(),
        second.as_secs_f64() * 1e3
    ))
}
