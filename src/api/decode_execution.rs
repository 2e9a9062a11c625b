//! Decodes a program that is to be executed, and makes the run of it. Every field is either taken
//! or refused; none is ignored.

use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::{decode, decode_files, proto};
use crate::language::{
    Catalogue, ExecutionProfile, Interpreter, InterpreterCommand, Language, Program, Protocol,
};
use crate::model::limits::{Ceilings, Limits, OutputMode, RequestedLimits};
use crate::model::policy::Policy;
use crate::model::refusal::{Refusal, quote};
use crate::model::request::{self, FileSpec, Labels, RunSpec, SessionName, SessionSpec};
use crate::run::RequestCharge;

/// The directories that a program finds.
const DIRECTORIES: [&str; 2] = ["/out", "/tmp"];
/// The key of the metadata that has a module.
const MODULE: &str = "wasm_module";
/// The key of the metadata that has a module in base64.
const MODULE_BASE64: &str = "wasm_module_b64";

/// Decodes what is to be executed into the spec of its run, and grants its limits. The caller
/// `takes_input` as it is typed, or has given all of it. What is made of the request on the way is
/// charged to `charge`.
///
/// # Errors
/// `UNSUPPORTED_LANGUAGE`; `SPEC_INVALID`, `LIMIT_ABOVE_MAXIMUM`, `MODULE_TOO_LARGE` or
/// `POLICY_DENIED`, with the field's name; `QUEUE_FULL` where the memory for requests is used up.
pub(super) fn execution(
    spec: Option<proto::ExecutionSpec>,
    catalogue: &Catalogue,
    policy: &Policy,
    (delivery, takes_input): (OutputMode, bool),
    charge: Option<&RequestCharge>,
) -> Result<RunSpec, Refusal> {
    let spec = spec.ok_or_else(|| Refusal::invalid("spec", "is missing"))?;
    let proto::ExecutionSpec {
        language,
        version,
        code,
        args,
        env,
        stdin,
        open_stdin,
        resources,
        profile,
        timeout,
        labels,
        metadata,
        detach,
        idempotency_key,
        files,
        collect,
        session,
        resume,
        keep_output,
    } = spec;
    let language = catalogue.find(&language, &version, &policy.grants)?;
    let profile = catalogue.profile(&profile)?;
    let (wasi, clock) = grant(language, profile, policy)?;
    let module = module(language, &code, metadata, policy)?;
    let is_open = takes_input || open_stdin;
    let program = program((code, args, &env, stdin), policy, is_open, clock)?;
    let asked = decode::requested(resources.unwrap_or_default(), timeout)?;
    let defaults = [&profile.limits, &language.limits];
    let InterpreterCommand {
        module,
        args,
        env,
        stdin,
        preface,
        file,
    } = language.command(program, module)?;
    charge.map_or(Ok(()), |charge| charge.add(stdin.len()))?;
    decode::consistent(RunSpec {
        module,
        entry_point: None,
        args,
        env,
        stdin,
        stdin_preface: preface,
        open_stdin,
        working_dir: None,
        mounts: Vec::new(),
        files: file_spec(language, files, file, &collect, policy)?,
        limits: granted(asked, defaults, &policy.ceilings, delivery)?,
        wasi,
        host_functions: host_functions(profile, policy),
        network: profile.network && !policy.grants.network.is_empty(),
        clock,
        labels: Labels::new("spec.labels", labels)?,
        detach,
        idempotency_key: request::idempotency_key("spec.idempotency_key", idempotency_key)?,
        session: self::session(language, &session, resume)?,
        keep_output: keep_output.unwrap_or(true),
    })
}

/// Decodes the session that a program belongs to.
fn session(
    language: &Language,
    name: &str,
    must_exist: bool,
) -> Result<Option<Box<SessionSpec>>, Refusal> {
    match (name, must_exist) {
        ("", false) => return Ok(None),
        ("", true) => {
            return Err(Refusal::invalid(
                "spec.resume",
                "needs a session (spec.session)",
            ));
        }
        (_, _) => {}
    }
    let name = SessionName::parse("spec.session", name)?;
    if language.protocol() != Some(Protocol::Runner) {
        let message = format!(
            "cannot be kept in the language \"{}\", whose interpreter ends with each program",
            language.name
        );
        return Err(Refusal::invalid("spec.session", message));
    }
    Ok(Some(Box::new(SessionSpec {
        name,
        language: language.name.clone(),
        must_exist,
    })))
}

/// Grants WASI, which an interpreter needs, and the clock of a profile.
fn grant(
    language: &Language,
    profile: &ExecutionProfile,
    policy: &Policy,
) -> Result<(bool, bool), Refusal> {
    let (wasi, clock) = policy.grant_wasi_and_clock(None, clock_of(profile))?;
    if wasi || language.digest().is_none() {
        return Ok((wasi, clock));
    }
    let message = "its interpreter needs WASI, which is not granted";
    Err(Refusal::denied("spec.language", "policy.wasi", message))
}

/// Checks a program's text, arguments, environment and input.
fn program(
    (code, args, env, stdin): (String, Vec<String>, &[String], Bytes),
    policy: &Policy,
    is_input_open: bool,
    clock: bool,
) -> Result<Program, Refusal> {
    if code.len() as u64 > policy.max_code {
        let (setting, most) = ("policy.max_code", policy.max_code);
        return Err(Refusal::above_ceiling(
            "spec.code",
            setting,
            code.len(),
            most,
        ));
    }
    Ok(Program {
        code,
        args: request::args("spec.args", args, policy.max_args)?,
        env: request::env("spec.env", env, policy.max_env)?,
        stdin: request::stdin("spec.stdin", stdin, policy.max_stdin)?,
        is_input_open,
        max_args: policy.max_args,
        clock,
    })
}

/// Decodes the files that a program begins with and those that it returns. A program in a language
/// that has an interpreter always has a file system in memory, since programs expect one.
fn file_spec(
    language: &Language,
    mut files: Vec<proto::File>,
    program: Option<(String, Bytes)>,
    collect: &[String],
    policy: &Policy,
) -> Result<Option<Box<FileSpec>>, Refusal> {
    if let Some((path, data)) = program {
        if let Some(index) = files.iter().position(|file| file.path == path) {
            let message = format!("\"{path}\" is the file of the program itself");
            return Err(Refusal::invalid(
                format!("spec.files[{index}].path"),
                message,
            ));
        }
        files.push(proto::File { path, data });
    }
    for (index, file) in files.iter().enumerate() {
        if DIRECTORIES.contains(&file.path.trim_end_matches('/')) {
            let message = format!(
                "\"{}\" is a directory that is there already",
                quote(&file.path)
            );
            return Err(Refusal::invalid(
                format!("spec.files[{index}].path"),
                message,
            ));
        }
    }
    let directories: &[&str] = match &language.interpreter {
        Interpreter::Provided { .. } => &DIRECTORIES,
        Interpreter::None => &[],
    };
    decode_files::file_spec(files, collect, directories, policy)
}

/// Returns the host functions that a profile lets programs have, of those that the policy grants.
fn host_functions(profile: &ExecutionProfile, policy: &Policy) -> BTreeSet<String> {
    match profile.host_functions {
        true => policy.grants.host_functions.iter().cloned().collect(),
        false => BTreeSet::new(),
    }
}

/// Returns what a profile says of the clock: that it is the policy's, or that it is not the real
/// one.
fn clock_of(profile: &ExecutionProfile) -> Option<bool> {
    match profile.clock {
        true => None,
        false => Some(false),
    }
}

/// Grants the limits that are asked for, with `defaults` for those that are not.
fn granted(
    asked: RequestedLimits,
    defaults: [&RequestedLimits; 2],
    ceilings: &Ceilings,
    delivery: OutputMode,
) -> Result<Limits, Refusal> {
    let most_output = match delivery {
        OutputMode::Captured => ceilings.max_output,
        OutputMode::Streamed => ceilings.max_stream_output.unwrap_or(u64::MAX),
    };
    let asked = with_defaults(asked, defaults, ceilings, most_output);
    ceilings.grant(&asked, delivery)
}

/// Fills in the limits that the caller did not ask for from `defaults`, the first of which comes
/// first. A default is granted as far as the ceilings go: nobody asked for more.
fn with_defaults(
    asked: RequestedLimits,
    defaults: [&RequestedLimits; 2],
    ceilings: &Ceilings,
    most_output: u64,
) -> RequestedLimits {
    let [first, second] = defaults;
    let RequestedLimits {
        memory_pages,
        fuel,
        stack,
        output,
        output_policy,
        timeout,
    } = asked;
    let pages = first.memory_pages.or(second.memory_pages);
    let stack_size = first.stack.or(second.stack);
    let wall = first.timeout.or(second.timeout);
    let fuel_limit = first.fuel.or(second.fuel);
    let output_limit = first.output.or(second.output);
    RequestedLimits {
        memory_pages: memory_pages.or(pages.map(|it| it.min(ceilings.max_memory_pages))),
        fuel: fuel.or(fuel_limit.map(|it| it.min(ceilings.max_fuel.unwrap_or(u64::MAX)))),
        stack: stack.or(stack_size.map(|it| it.min(ceilings.max_stack))),
        output: output.or(output_limit.map(|it| it.min(most_output))),
        output_policy,
        timeout: timeout.or(wall.map(|it| it.min(ceilings.max_timeout))),
    }
}

/// Returns the module that a program is; `None` in a language that has an interpreter.
///
/// # Errors
/// `SPEC_INVALID` where the program is missing, is there twice, or the metadata has another key;
/// `MODULE_TOO_LARGE`.
fn module(
    language: &Language,
    code: &str,
    metadata: HashMap<String, Bytes>,
    policy: &Policy,
) -> Result<Option<Bytes>, Refusal> {
    let takes_module = match &language.interpreter {
        Interpreter::None => language.name == "wasm",
        Interpreter::Provided { .. } => false,
    };
    let mut found: Option<(String, Bytes)> = None;
    for (key, value) in metadata {
        let field = format!("spec.metadata[\"{}\"]", quote(&key));
        if !takes_module || (key != MODULE && key != MODULE_BASE64) {
            let allowed = match takes_module {
                true => format!("allowed are: {MODULE}, {MODULE_BASE64}"),
                false => "this language takes no metadata".to_owned(),
            };
            return Err(Refusal::invalid(field, format!("is unknown; {allowed}")));
        }
        if found.is_some() {
            let message = format!("cannot go with {MODULE}: there is one module");
            return Err(Refusal::invalid(
                format!("spec.metadata[\"{MODULE_BASE64}\"]"),
                message,
            ));
        }
        let bytes = match key == MODULE {
            true => value,
            false => STANDARD
                .decode(&value)
                .map(Bytes::from)
                .map_err(|error| Refusal::invalid(&field, format!("is not base64: {error}")))?,
        };
        found = Some((field, bytes));
    }
    match (&language.interpreter, found) {
        (_, Some((field, _))) if !code.is_empty() => Err(Refusal::invalid(
            field,
            "cannot go with spec.code: the program is one or the other",
        )),
        (_, Some((field, bytes))) => {
            request::module_bytes(&field, bytes, policy.max_module).map(Some)
        }
        (_, None) if code.is_empty() => Err(Refusal::invalid("spec.code", "is empty")),
        (Interpreter::None, None) => {
            let bytes = Bytes::from(code.to_owned());
            request::module_bytes("spec.code", bytes, policy.max_module).map(Some)
        }
        (Interpreter::Provided { .. }, None) if code.contains('\0') => {
            Err(Refusal::invalid("spec.code", "has a NUL byte"))
        }
        (Interpreter::Provided { .. }, None) => Ok(None),
    }
}

/// Describes the languages that a tenant may use.
pub(super) fn languages(
    catalogue: &Catalogue,
    policy: &Policy,
    is_ready: impl Fn(&Language) -> bool,
) -> proto::ListLanguagesResponse {
    let languages = catalogue.languages(&policy.grants);
    let languages = languages.map(|language| proto::Language {
        name: language.name.clone(),
        version: language.version.clone(),
        aliases: language.aliases.clone(),
        module_digest: language
            .digest()
            .map(|it| it.to_string())
            .unwrap_or_default(),
        ready: is_ready(language),
    });
    proto::ListLanguagesResponse {
        languages: languages.collect(),
        profiles: catalogue.profiles().map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::limits::OutputPolicy;

    fn ceilings() -> Ceilings {
        Ceilings {
            default_memory_pages: 16,
            max_memory_pages: 100,
            default_timeout: Duration::from_secs(1),
            max_timeout: Duration::from_secs(10),
            default_stack: 512 << 10,
            max_stack: 1 << 20,
            default_output: 1000,
            max_output: 5000,
            max_stream_output: None,
            default_fuel: 10,
            max_fuel: Some(77),
            require_fuel: false,
        }
    }

    /// Limits of which each is `n` times something.
    fn limits(n: u32) -> RequestedLimits {
        RequestedLimits {
            memory_pages: Some(n),
            fuel: Some(u64::from(n)),
            stack: Some(n << 16),
            output: Some(u64::from(n)),
            output_policy: OutputPolicy::Truncate,
            timeout: Some(Duration::from_secs(u64::from(n))),
        }
    }

    #[test]
    fn defaults_fill_in_what_was_not_asked_for_as_far_as_the_ceilings_go() {
        let none = RequestedLimits::default();
        let seen = |asked: &RequestedLimits, first: &RequestedLimits, second: &RequestedLimits| {
            let filled = with_defaults(asked.clone(), [first, second], &ceilings(), 5000);
            format!("{filled:?}")
        };
        let of = |limits: &RequestedLimits| format!("{limits:?}");
        assert_eq!(seen(&limits(1), &limits(2), &limits(3)), of(&limits(1)));
        let second = RequestedLimits {
            output_policy: OutputPolicy::Stop,
            ..limits(2)
        };
        assert_eq!(seen(&none, &limits(2), &limits(3)), of(&second));
        assert_eq!(seen(&none, &none, &limits(2)), of(&second));
        assert_eq!(seen(&none, &none, &none), of(&none));
        let most = RequestedLimits {
            memory_pages: Some(100),
            fuel: Some(77),
            stack: Some(1 << 20),
            output: Some(5000),
            output_policy: OutputPolicy::Stop,
            timeout: Some(Duration::from_secs(10)),
        };
        assert_eq!(seen(&none, &none, &limits(9000)), of(&most));
        // What the caller itself asks for is never changed: the ceiling refuses it.
        assert_eq!(seen(&limits(9000), &none, &none), of(&limits(9000)));
    }
}
