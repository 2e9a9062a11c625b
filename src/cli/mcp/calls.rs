//! The calls of tools: parsed of their arguments, and performed on a daemon.

use bytes::Bytes;
use rmcp::model::JsonObject;

use super::arguments::ToolArguments;
use super::listing::{RunSelection, end_run, list_languages, list_runs};
use super::output_slice::{LogPosition, read_slice};
use super::report::{ToolReport, run_report, slice_report};
use super::schema::ToolName;
use super::tool_settings::ToolSettings;
use crate::api::proto::run_spec::Module;
use crate::api::proto::{
    ExecutionSpec, LoadModuleRequest, Resources, RunSpec, load_module_request,
};
use crate::cli::Failure;
use crate::cli::connect::{DaemonChannel, runs_client, sandbox_client, status_failure};
use crate::cli::launch::Launch;
use crate::cli::module_argument::file_name;

/// The name of a program that is run by its digest, which the daemon uses for want of another.
const NAMELESS: &str = "main";
/// Most bytes of the name under which a module is loaded, as the API has it.
const LONGEST_NAME: usize = 128;
/// Runs that are listed where the agent does not say how many.
const LISTED: u64 = 20;
/// The most runs that one call lists.
const MOST_LISTED: u64 = 1000;

/// A call whose arguments were checked.
pub(super) enum ToolCall {
    RunCode(Box<ExecutionSpec>),
    RunModule(Box<ModuleRun>),
    ReadOutput {
        run_id: String,
        from: LogPosition,
        max_bytes: usize,
    },
    ListRuns(RunSelection),
    KillRun(String),
    ListLanguages,
}

/// A run of a module, which may have to be loaded first.
pub(super) struct ModuleRun {
    spec: RunSpec,
    /// The module's file; `None` where the spec has a digest.
    file: Option<ModuleFile>,
}

/// A module that was read from a file.
struct ModuleFile {
    name: String,
    wasm: Bytes,
}

impl ToolCall {
    /// Parses a call of `tool`.
    ///
    /// # Errors
    /// Returns which argument is wrong, and what is allowed.
    pub(super) fn parse(
        tool: ToolName,
        given: Option<JsonObject>,
        settings: &ToolSettings,
    ) -> Result<Self, Failure> {
        let mut args = ToolArguments::new(given);
        let call = match tool {
            ToolName::RunCode => Self::RunCode(Box::new(execution(&mut args, settings)?)),
            ToolName::RunModule => Self::RunModule(Box::new(module_run(&mut args, settings)?)),
            ToolName::ReadOutput => {
                let most = settings.max_output as u64;
                let run_id = args.required_text("run_id")?;
                let seq = args.whole("from_seq", 0..=u64::MAX)?.unwrap_or_default();
                let byte = args.whole("from_byte", 0..=u32::MAX.into())?;
                let max_bytes = args.whole("max_bytes", 1..=most)?.unwrap_or(most);
                Self::ReadOutput {
                    run_id,
                    from: LogPosition {
                        seq,
                        byte: usize::try_from(byte.unwrap_or_default()).unwrap_or(usize::MAX),
                    },
                    max_bytes: usize::try_from(max_bytes).unwrap_or(settings.max_output),
                }
            }
            ToolName::ListRuns => Self::ListRuns(RunSelection::parse(
                args.texts("states")?,
                args.pairs("labels")?,
                args.whole("limit", 1..=MOST_LISTED)?.unwrap_or(LISTED),
            )?),
            ToolName::KillRun => Self::KillRun(args.required_text("run_id")?),
            ToolName::ListLanguages => Self::ListLanguages,
        };
        args.end()?;
        Ok(call)
    }

    /// Performs the call. Dropping the future ends a run that it started.
    pub(super) async fn perform(
        self,
        channel: DaemonChannel,
        settings: &ToolSettings,
    ) -> Result<ToolReport, Failure> {
        let most = settings.max_output;
        match self {
            Self::RunCode(spec) => {
                let asked_files = !spec.collect.is_empty();
                let answer = Launch::Program(spec)
                    .captured(channel.clone(), None)
                    .await?;
                Ok(run_report(channel, answer, asked_files, most).await)
            }
            Self::RunModule(run) => {
                let spec = run.with_module(channel.clone()).await?;
                let asked_files = !spec.collect.is_empty();
                let answer = Launch::Module(Box::new(spec))
                    .captured(channel.clone(), None)
                    .await?;
                Ok(run_report(channel, answer, asked_files, most).await)
            }
            Self::ReadOutput {
                run_id,
                from,
                max_bytes,
            } => {
                let slice = read_slice(&mut runs_client(channel), &run_id, from, max_bytes).await?;
                Ok(slice_report(&run_id, &slice))
            }
            Self::ListRuns(selection) => list_runs(channel, selection, most).await,
            Self::KillRun(run_id) => end_run(channel, run_id).await,
            Self::ListLanguages => list_languages(channel).await,
        }
    }
}

impl ModuleRun {
    /// Completes the spec by its module, which is loaded where it is a file.
    async fn with_module(self, channel: DaemonChannel) -> Result<RunSpec, Failure> {
        let Self { mut spec, file } = self;
        if let Some(ModuleFile { name, wasm }) = file {
            let fits = name.len() <= LONGEST_NAME && !name.contains(char::is_control);
            let request = LoadModuleRequest {
                source: Some(load_module_request::Source::Wasm(wasm)),
                name: if fits { name } else { String::new() },
                ..LoadModuleRequest::default()
            };
            let answer = sandbox_client(channel).load_module(request).await;
            let answer = answer.map_err(|status| status_failure(&status))?;
            let loaded = answer.into_inner().module.unwrap_or_default();
            spec.module = Some(Module::Digest(loaded.digest));
        }
        Ok(spec)
    }
}

/// Takes the arguments of `run_code`.
fn execution(args: &mut ToolArguments, settings: &ToolSettings) -> Result<ExecutionSpec, Failure> {
    Ok(ExecutionSpec {
        language: args.required_text("language")?,
        version: args.text("version")?.unwrap_or_default(),
        code: args.required_text("code")?,
        args: args.texts("args")?,
        env: env(args)?,
        stdin: stdin(args)?,
        profile: args.text("profile")?.unwrap_or_default(),
        session: args.text("session")?.unwrap_or_default(),
        files: args.files("files")?,
        collect: args.texts("collect")?,
        resources: Some(Resources {
            memory_pages: memory_pages(args)?,
            ..Resources::default()
        }),
        timeout: timeout(args, settings)?,
        labels: settings.labels.clone(),
        ..ExecutionSpec::default()
    })
}

/// Takes the arguments of `run_module`.
fn module_run(args: &mut ToolArguments, settings: &ToolSettings) -> Result<ModuleRun, Failure> {
    let (digest, path) = (args.text("digest")?, args.text("path")?);
    let entry_point = args.text("entry_point")?.unwrap_or_default();
    let mut command_line = args.texts("args")?;
    let small = |most: Option<u64>| most.and_then(|it| u32::try_from(it).ok());
    let mut spec = RunSpec {
        entry_point,
        env: env(args)?,
        stdin: stdin(args)?,
        files: args.files("files")?,
        collect: args.texts("collect")?,
        resources: Some(Resources {
            memory_pages: memory_pages(args)?,
            fuel_limit: args.whole("fuel_limit", 1..=u64::MAX)?,
            stack_size: small(args.whole("stack_size", 1..=u32::MAX.into())?),
            output_limit: args.whole("output_limit", 1..=u64::MAX)?,
            ..Resources::default()
        }),
        timeout: timeout(args, settings)?,
        labels: settings.labels.clone(),
        ..RunSpec::default()
    };
    let file = match (digest, path) {
        (Some(digest), None) => {
            spec.module = Some(Module::Digest(digest));
            None
        }
        (None, Some(path)) => {
            let Some(folder) = &settings.modules else {
                let allowed = "left out: the operator of this server allows it no files \
                               (--module-dir), so name a loaded module by its digest";
                return Err(Failure::bad_argument("path", "given", allowed));
            };
            let wasm = folder.read(&path)?;
            let name = file_name(path.as_ref());
            Some(ModuleFile { name, wasm })
        }
        (Some(_), Some(_)) => {
            let allowed = "left out where path is given: a run has one module";
            return Err(Failure::bad_argument("digest", "given too", allowed));
        }
        (None, None) => {
            let allowed = "the digest of a loaded module, unless path names a file";
            return Err(Failure::bad_argument("digest", "missing", allowed));
        }
    };
    // A command expects its name before its arguments; without arguments, the daemon names it.
    if spec.entry_point.is_empty() && !command_line.is_empty() {
        let name = file.as_ref().map_or(NAMELESS, |file| &file.name);
        command_line.insert(0, name.to_owned());
    }
    spec.args = command_line;
    Ok(ModuleRun { spec, file })
}

/// Takes the environment, in the form that the API has for it.
fn env(args: &mut ToolArguments) -> Result<Vec<String>, Failure> {
    let pairs = args.pairs("env")?.into_iter();
    Ok(pairs.map(|(key, value)| format!("{key}={value}")).collect())
}

fn stdin(args: &mut ToolArguments) -> Result<Bytes, Failure> {
    Ok(args.text("stdin")?.unwrap_or_default().into())
}

fn memory_pages(args: &mut ToolArguments) -> Result<Option<u32>, Failure> {
    let pages = args.whole("memory_pages", 1..=u32::MAX.into())?;
    Ok(pages.and_then(|pages| u32::try_from(pages).ok()))
}

/// Takes the time limit, which is the operator's where the agent asks for none.
fn timeout(
    args: &mut ToolArguments,
    settings: &ToolSettings,
) -> Result<Option<prost_types::Duration>, Failure> {
    let asked = args.seconds("timeout_seconds", settings.timeout)?;
    let timeout = asked.or(settings.timeout);
    Ok(timeout.and_then(|timeout| timeout.try_into().ok()))
}
