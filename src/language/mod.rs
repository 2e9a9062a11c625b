//! Languages: which there are, and how a program in one of them becomes a run.
//!
//! The interpreter of a language is a module like any other. A [`Language`] says how it is given a
//! program, and the [`Catalogue`] has all of them, with the profiles that say what programs may
//! reach. Nothing here knows the wire or wasmtime.

mod runner;
mod value;

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::model::limits::RequestedLimits;
use crate::model::policy::Grants;
use crate::model::refusal::{Reason, Refusal, list, quote};
use crate::model::request::{Digest, ModuleRef};

pub use self::value::reported_value;

/// The profile of an execution that names none.
pub const DEFAULT_PROFILE: &str = "standard";
/// The most bytes of the name of a language, of a version or of a profile that are looked at.
const MAX_NAME: usize = 64;

/// How an interpreter is given its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// It is a runner, which reads a header on standard input.
    Runner,
    /// The program is a file, whose path is one of its arguments.
    File,
    /// The program is one of its arguments.
    Argument,
    /// The program is its standard input.
    Stdin,
}

/// Where the code of a language comes from.
#[derive(Clone, Debug)]
pub enum Interpreter {
    /// A module that the operator provides is given the program.
    Provided {
        /// The digest of the module.
        digest: Digest,
        /// How it is given the program.
        protocol: Protocol,
        /// The command line, in which "{code}" stands for the program, "{file}" for the path of
        /// its file, and "{args}" for its arguments.
        args: Vec<String>,
        /// The environment of the interpreter, before that of the program.
        env: Vec<(String, String)>,
    },
    /// The program is a module itself.
    None,
}

/// A language in which programs can be executed.
#[derive(Clone, Debug)]
pub struct Language {
    /// The name of the language, in lower case.
    pub name: String,
    /// Its version; empty where none is known.
    pub version: String,
    /// Other names that mean it, in lower case.
    pub aliases: Vec<String>,
    /// What executes its programs.
    pub interpreter: Interpreter,
    /// The name of the file that the program is taken to be in.
    pub file: String,
    /// The limits of a program whose caller asks for none.
    pub limits: RequestedLimits,
}

/// A named set of what programs may reach, with limits.
#[derive(Clone, Debug, Default)]
pub struct ExecutionProfile {
    /// Whether programs have the real clock, where the policy grants it.
    pub clock: bool,
    /// Whether programs may use the network that the policy grants.
    pub network: bool,
    /// Whether programs may use the host functions that the policy grants.
    pub host_functions: bool,
    /// The limits of a program whose caller asks for none. They come before those of the language.
    pub limits: RequestedLimits,
}

/// All languages and profiles.
#[derive(Clone, Debug)]
pub struct Catalogue {
    languages: Vec<Language>,
    profiles: BTreeMap<String, ExecutionProfile>,
}

/// A program with everything that its interpreter has to know of it.
pub struct Program {
    /// The source text of the program.
    pub code: String,
    /// Its arguments, without its name.
    pub args: Vec<String>,
    /// Its environment, as keys and values.
    pub env: Vec<(String, String)>,
    /// Its standard input, or the beginning of it.
    pub stdin: Bytes,
    /// Whether more input may follow, or be sent while it goes on.
    pub is_input_open: bool,
    /// The most bytes of a command line, terminators included.
    pub max_args: u64,
    /// Whether it has the real clock.
    pub clock: bool,
}

/// A program as its interpreter is given it: the parts of a run's spec that depend on the language.
pub struct InterpreterCommand {
    /// The module to run.
    pub module: ModuleRef,
    /// The command line, with the name of the program.
    pub args: Vec<String>,
    /// The environment of the run.
    pub env: Vec<(String, String)>,
    /// The standard input of the run.
    pub stdin: Bytes,
    /// How many bytes of it come before the program's own input.
    pub preface: usize,
    /// The path and the contents of the file that has the program; `None` where none has it.
    pub file: Option<(String, Bytes)>,
}

impl Catalogue {
    /// Creates a catalogue of `languages`, to which those are added that are always there.
    pub fn new(mut languages: Vec<Language>, profiles: BTreeMap<String, ExecutionProfile>) -> Self {
        for name in ["wasm", "wat"] {
            if !languages.iter().any(|it| it.is_called(name)) {
                languages.push(Language {
                    name: name.to_owned(),
                    version: String::new(),
                    aliases: Vec::new(),
                    interpreter: Interpreter::None,
                    file: format!("main.{name}"),
                    limits: RequestedLimits::default(),
                });
            }
        }
        languages.sort_by(|one, other| one.name.cmp(&other.name));
        Self {
            languages,
            profiles,
        }
    }

    /// Lists the languages that `grants` allow, in the order of their names.
    pub fn languages<'a>(&'a self, grants: &'a Grants) -> impl Iterator<Item = &'a Language> {
        let all = self.languages.iter();
        all.filter(|language| grants.allows_language(&language.name))
    }

    /// Lists the languages whose interpreter the operator provides, with the digest of its module.
    pub fn provided(&self) -> impl Iterator<Item = (&Language, Digest)> {
        self.languages.iter().filter_map(|language| {
            let digest = language.digest()?;
            Some((language, digest))
        })
    }

    /// Lists the names of the profiles.
    pub fn profiles(&self) -> impl Iterator<Item = &str> {
        self.profiles.keys().map(String::as_str)
    }

    /// Finds a language by its name or an alias, in any case, and by the beginning of its version.
    ///
    /// # Errors
    /// `UNSUPPORTED_LANGUAGE`, with the names of what `grants` allow; `SPEC_INVALID` where none is
    /// named.
    pub fn find<'a>(
        &'a self,
        name: &str,
        version: &str,
        grants: &'a Grants,
    ) -> Result<&'a Language, Refusal> {
        if name.is_empty() {
            let allowed = self.names(grants);
            let message = format!("is missing; allowed are: {allowed}");
            return Err(Refusal::invalid("spec.language", message).with("allowed", allowed));
        }
        let unsupported = |field: &str, message: String, allowed: String| {
            let message = format!("{message}; there are: {allowed}");
            Refusal::new(Reason::UnsupportedLanguage, message)
                .at_field(field)
                .with("allowed", allowed)
        };
        let wanted = name.to_ascii_lowercase();
        let called = self.languages(grants).filter(|it| it.is_called(&wanted));
        let called: Vec<&Language> = called.collect();
        if called.is_empty() || name.len() > MAX_NAME {
            let message = format!("the language \"{}\" is not supported", quote(name));
            return Err(unsupported("spec.language", message, self.names(grants)));
        }
        let versions = || {
            let versions = called.iter().map(|it| it.version.as_str());
            list(versions.filter(|it| !it.is_empty()))
        };
        // The language of that very name comes before those that have it as an alias.
        let fitting = called.iter().filter(|it| it.has_version(version));
        let best = fitting.min_by_key(|it| it.name != wanted);
        best.copied().ok_or_else(|| {
            let (name, version) = (quote(name), quote(version));
            let message = format!("the language \"{name}\" is not there in version \"{version}\"");
            unsupported("spec.version", message, versions())
        })
    }

    /// Finds a profile by its name; an empty name stands for the default.
    ///
    /// # Errors
    /// `SPEC_INVALID`, with the names that there are.
    pub fn profile(&self, name: &str) -> Result<&ExecutionProfile, Refusal> {
        let wanted = match name {
            "" => DEFAULT_PROFILE,
            name => name,
        };
        self.profiles.get(wanted).ok_or_else(|| {
            let allowed = list(self.profiles());
            let message = format!("\"{}\" is unknown; allowed are: {allowed}", quote(wanted));
            Refusal::invalid("spec.profile", message).with("allowed", allowed)
        })
    }

    /// Lists the names of what `grants` allow, as an error names them.
    fn names(&self, grants: &Grants) -> String {
        list(
            self.languages(grants)
                .map(|language| language.name.as_str()),
        )
    }
}

impl Language {
    /// Returns the digest of the interpreter; `None` where programs are modules themselves.
    pub fn digest(&self) -> Option<Digest> {
        match &self.interpreter {
            Interpreter::Provided { digest, .. } => Some(*digest),
            Interpreter::None => None,
        }
    }

    /// Returns how the interpreter is given its program; `None` where programs are modules
    /// themselves.
    pub fn protocol(&self) -> Option<Protocol> {
        match &self.interpreter {
            Interpreter::Provided { protocol, .. } => Some(*protocol),
            Interpreter::None => None,
        }
    }

    /// Returns the path of the file that has a program.
    fn path(&self) -> String {
        format!("/{}", self.file)
    }

    /// Reports whether `name`, in lower case, means this language.
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }

    /// Reports whether `asked` is its version, or the beginning of it at a dot.
    fn has_version(&self, asked: &str) -> bool {
        let rest = self.version.strip_prefix(asked);
        asked.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Translates a program into what its interpreter is given. A program that is a module itself
    /// comes as `module`.
    ///
    /// # Errors
    /// `SPEC_INVALID` where the language takes no standard input, or no program is there;
    /// `LIMIT_ABOVE_MAXIMUM` where the program is too long to be an argument.
    pub fn command(
        &self,
        program: Program,
        module: Option<Bytes>,
    ) -> Result<InterpreterCommand, Refusal> {
        let Interpreter::Provided {
            digest,
            protocol,
            args,
            env,
        } = &self.interpreter
        else {
            return self.command_without_interpreter(program, module);
        };
        let own_env = env.iter().filter(|(key, _)| {
            let mut given = program.env.iter();
            !given.any(|(name, _)| name == key)
        });
        let own_env: Vec<_> = own_env.cloned().collect();
        let mut command = InterpreterCommand {
            module: ModuleRef::Provided(*digest),
            args: filled(args, &program, &self.path()),
            env: own_env,
            stdin: Bytes::new(),
            preface: 0,
            file: None,
        };
        match protocol {
            Protocol::Runner => {
                command.args = vec![self.file.clone()];
                command.stdin = runner::standard_input(&program, &self.file, env)?;
                command.preface = command.stdin.len() - program.stdin.len();
                return Ok(command);
            }
            Protocol::File => {
                command.file = Some((self.path(), Bytes::from(program.code)));
                command.stdin = program.stdin;
            }
            Protocol::Argument => {
                let bytes: u64 = command.args.iter().map(|arg| arg.len() as u64 + 1).sum();
                if bytes > program.max_args {
                    let (setting, most) = ("policy.max_args", program.max_args);
                    return Err(Refusal::above_ceiling("spec.code", setting, bytes, most));
                }
                command.stdin = program.stdin;
            }
            Protocol::Stdin => {
                refuse_stdin_of(&program)?;
                command.preface = program.code.len();
                command.stdin = Bytes::from(program.code);
            }
        }
        command.env.extend(program.env);
        Ok(command)
    }

    /// Translates a program that is a module itself.
    fn command_without_interpreter(
        &self,
        program: Program,
        module: Option<Bytes>,
    ) -> Result<InterpreterCommand, Refusal> {
        let module = module.ok_or_else(|| Refusal::invalid("spec.code", "is empty"))?;
        let mut args = program.args;
        if !args.is_empty() {
            args.insert(0, self.file.clone());
        }
        Ok(InterpreterCommand {
            module: ModuleRef::Inline(module),
            args,
            env: program.env,
            stdin: program.stdin,
            preface: 0,
            file: None,
        })
    }
}

/// Refuses input for a program that is itself the standard input of its interpreter.
fn refuse_stdin_of(program: &Program) -> Result<(), Refusal> {
    let field = match (program.stdin.is_empty(), program.is_input_open) {
        (false, _) => "spec.stdin",
        (true, true) => "spec.open_stdin",
        (true, false) => return Ok(()),
    };
    let message =
        "cannot be given in this language, whose program is the standard input (`exec --no-stdin`)";
    Err(Refusal::invalid(field, message))
}

/// Fills a template of arguments with a program and its arguments. Arguments without a place in the
/// template come last.
fn filled(template: &[String], program: &Program, path: &str) -> Vec<String> {
    let mut args = Vec::with_capacity(template.len() + program.args.len());
    let mut has_place = false;
    for part in template {
        match part.as_str() {
            "{args}" => {
                has_place = true;
                args.extend_from_slice(&program.args);
            }
            "{code}" => args.push(program.code.clone()),
            "{file}" => args.push(path.to_owned()),
            _ => args.push(part.clone()),
        }
    }
    if !has_place {
        args.extend_from_slice(&program.args);
    }
    args
}

#[cfg(test)]
mod tests;
