//! What a caller asks for, once it is well-formed: a [`RunSpec`] and its newtypes.
//!
//! Every constructor refuses what its field may not hold, and says which field it was. Nothing here
//! knows the wire or the runtime.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::limits::Limits;
use super::refusal::{Reason, Refusal, quote};

mod digest;
mod files;
mod hex;
mod path_conflicts;
mod run_id;
mod session;
mod time_range;

pub use self::digest::Digest;
pub use self::files::{
    CollectCaps, CollectPattern, FileSpec, GivenFile, MAX_PATTERNS, PathMatcher, collect_patterns,
    given_files,
};
pub use self::path_conflicts::check_path_conflicts;
pub use self::run_id::RunId;
pub use self::session::{MAX_SESSION_NAME, SessionName, SessionSpec};
pub use self::time_range::{TimeRange, millis_since_epoch};

/// The most labels of a run or a module.
pub const MAX_LABELS: usize = 32;
/// The most bytes of a label's key, of its value, and of an idempotency key.
pub const MAX_LABEL_BYTES: usize = 128;
/// The most mounts of a run.
pub const MAX_MOUNTS: usize = 32;
/// The most bytes of a path or a name in a spec; Linux takes no longer path.
pub const MAX_PATH_BYTES: usize = 4096;

/// The name of the spec's field that holds the working directory.
pub const WORKING_DIR_FIELD: &str = "spec.working_dir";

/// The module of a run, as its caller names it.
#[derive(Clone)]
pub enum ModuleRef {
    /// The bytes of a module that is sent with the run.
    Inline(Bytes),
    /// The digest of a module that was loaded before.
    Loaded(Digest),
    /// The digest of a module that the operator provides, such as the interpreter of a language.
    Provided(Digest),
}

/// What to run, and within which bounds.
#[derive(Clone)]
pub struct RunSpec {
    /// The module that is run.
    pub module: ModuleRef,
    /// The exported function to call; `None`: the module's command.
    pub entry_point: Option<String>,
    /// The command line, or the arguments of an entry point that has parameters.
    pub args: Vec<String>,
    /// The environment, as keys and values.
    pub env: Vec<(String, String)>,
    /// Standard input that is sent with the request.
    pub stdin: Bytes,
    /// How many bytes at the start of `stdin` are for the interpreter of a program, which are not
    /// counted as input of the program.
    pub stdin_preface: usize,
    /// Whether more input may follow it, until somebody ends the input.
    pub open_stdin: bool,
    /// The guest directory that relative paths start from; `None`: "/".
    pub working_dir: Option<GuestPath>,
    /// The host directories that the guest sees.
    pub mounts: Vec<Mount>,
    /// The files in memory that the run begins with and returns; `None` where it has none.
    pub files: Option<Box<FileSpec>>,
    /// The limits on what the run may use.
    pub limits: Limits,
    /// Whether the guest gets the WASI imports.
    pub wasi: bool,
    /// The host functions that the guest may import, as "module.name".
    pub host_functions: BTreeSet<String>,
    /// Whether the guest may use the sockets that are granted.
    pub network: bool,
    /// Whether the guest gets the real clock rather than the deterministic one.
    pub clock: bool,
    /// The labels that the caller gives the run.
    pub labels: Labels,
    /// Whether the run goes on without its caller.
    pub detach: bool,
    /// The key that makes a second call the same run as the first; `None`: none.
    pub idempotency_key: Option<String>,
    /// The session whose interpreter executes the program; `None`: a fresh one does.
    pub session: Option<Box<SessionSpec>>,
    /// Whether the output is remembered once the caller was told of the end.
    pub keep_output: bool,
}

impl RunSpec {
    /// Computes the digest that distinguishes this spec, with the module of `digest`, from others.
    /// Two specs of the same fingerprint run the same.
    pub fn fingerprint(&self, digest: Digest) -> Digest {
        let Self {
            module: _,
            entry_point,
            args,
            env,
            stdin,
            stdin_preface: _,
            open_stdin,
            working_dir,
            mounts,
            files,
            limits,
            wasi,
            host_functions,
            network,
            clock,
            labels,
            detach,
            idempotency_key: _,
            session,
            keep_output,
        } = self;
        // The debug form of plain data names every field, and escapes what could look like another
        // field.
        let told = format!(
            "{:?}",
            (
                (entry_point, args, env, working_dir, mounts, limits),
                (wasi, host_functions, network, clock, labels, detach),
                (digest, Digest::of(stdin), open_stdin),
                files.as_deref().map(FileSpec::fingerprint),
                (session, keep_output),
            )
        );
        Digest::of(told.as_bytes())
    }
}

/// A host directory that the guest sees as one of its own.
#[derive(Clone, Debug)]
pub struct Mount {
    /// The index of the mount in the spec, by which a refusal names it.
    pub index: usize,
    /// The directory on the daemon's machine: an absolute path without "." or "..".
    pub host: PathBuf,
    /// The path at which the guest sees it.
    pub guest: GuestPath,
    /// Whether the guest may not write to it.
    pub read_only: bool,
}

/// An absolute path in the guest, without ".", ".." or repeated slashes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GuestPath(String);

impl GuestPath {
    /// Parses an absolute path, and drops its "." parts and repeated slashes.
    ///
    /// # Errors
    /// `SPEC_INVALID` where it is not absolute, or has a NUL byte or a ".." part;
    /// `LIMIT_ABOVE_MAXIMUM` where it is too long.
    pub fn parse(field: &str, text: &str) -> Result<Self, Refusal> {
        check_text(field, text, MAX_PATH_BYTES)?;
        if !text.starts_with('/') {
            let message = format!("\"{}\" is not an absolute path", quote(text));
            return Err(Refusal::invalid(field, message));
        }
        let mut path = String::with_capacity(text.len());
        for part in text.split('/').filter(|p| !p.is_empty() && *p != ".") {
            if part == ".." {
                let message = format!("\"{}\" has a \"..\" part", quote(text));
                return Err(Refusal::invalid(field, message));
            }
            path.push('/');
            path.push_str(part);
        }
        if path.is_empty() {
            path.push('/');
        }
        Ok(Self(path))
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reports whether the path is "/".
    pub fn is_root(&self) -> bool {
        self.0 == "/"
    }

    /// Reports whether the path is `dir`, or lies in it.
    pub fn is_in(&self, dir: &Self) -> bool {
        self.beneath(dir).is_some()
    }

    /// Returns the path relative to `root`, without a leading slash; `None` where it is not at or
    /// under `root`.
    pub fn beneath(&self, root: &Self) -> Option<&str> {
        if root.0 == "/" {
            return Some(&self.0[1..]);
        }
        let rest = self.0.strip_prefix(&root.0)?;
        if rest.is_empty() {
            return Some("");
        }
        rest.strip_prefix('/')
    }
}

/// Checks the name of an exported function.
///
/// # Errors
/// `SPEC_INVALID` where it has a NUL byte; `LIMIT_ABOVE_MAXIMUM` where it is too long.
pub fn entry_point(field: &str, text: String) -> Result<String, Refusal> {
    check_text(field, &text, MAX_PATH_BYTES)?;
    Ok(text)
}

/// Checks a command line, which may have `max` bytes, terminators included.
///
/// # Errors
/// `SPEC_INVALID` for a NUL byte; `LIMIT_ABOVE_MAXIMUM` for more than `max` bytes.
pub fn args(field: &str, args: Vec<String>, max: u64) -> Result<Vec<String>, Refusal> {
    check_list(field, "policy.max_args", &args, max)?;
    Ok(args)
}

/// Parses an environment, which may have `max` bytes, terminators included.
///
/// # Errors
/// `SPEC_INVALID` for an entry without "=", an empty or repeated key, or a NUL byte;
/// `LIMIT_ABOVE_MAXIMUM` for more than `max` bytes. Values are never quoted in an error.
pub fn env(field: &str, entries: &[String], max: u64) -> Result<Vec<(String, String)>, Refusal> {
    check_list(field, "policy.max_env", entries, max)?;
    let mut seen = HashSet::with_capacity(entries.len());
    entries
        .iter()
        .enumerate()
        .map(|(i, entry)| {
            let at = || format!("{field}[{i}]");
            let (key, value) = entry
                .split_once('=')
                .ok_or_else(|| Refusal::invalid(at(), "has no \"=\"; allowed is KEY=value"))?;
            if key.is_empty() {
                return Err(Refusal::invalid(at(), "has an empty key"));
            }
            if !seen.insert(key) {
                let message = format!("the key \"{}\" is there twice", quote(key));
                return Err(Refusal::invalid(at(), message));
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Checks mounts, which need absolute, plain host paths and distinct guest paths.
///
/// # Errors
/// `SPEC_INVALID`, naming the mount and its field; `LIMIT_ABOVE_MAXIMUM` for too many mounts, or
/// for a path that is too long.
pub fn mounts(
    field: &str,
    mounts: impl ExactSizeIterator<Item = (String, String, bool)>,
) -> Result<Vec<Mount>, Refusal> {
    if mounts.len() > MAX_MOUNTS {
        return Err(Refusal::above(field, mounts.len(), MAX_MOUNTS));
    }
    let mut out: Vec<Mount> = Vec::with_capacity(mounts.len());
    for (index, (host, guest, read_only)) in mounts.enumerate() {
        let host_field = format!("{field}[{index}].host_path");
        check_text(&host_field, &host, MAX_PATH_BYTES)?;
        let host = PathBuf::from(host);
        if !is_plain(&host) {
            return Err(Refusal::invalid(
                host_field,
                "is not an absolute path without \".\" or \"..\" parts",
            ));
        }
        let guest_field = format!("{field}[{index}].guest_path");
        let guest = GuestPath::parse(&guest_field, &guest)?;
        if out.iter().any(|mount| mount.guest == guest) {
            let message = format!("\"{}\" is mounted twice", quote(guest.as_str()));
            return Err(Refusal::invalid(guest_field, message));
        }
        out.push(Mount {
            index,
            host,
            guest,
            read_only,
        });
    }
    Ok(out)
}

fn is_plain(path: &Path) -> bool {
    // `components` hides "." in the middle and repeated slashes, neither of which can lead anywhere
    // else.
    path.is_absolute()
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// The labels of a run or a module: keys and values that its caller chose.
///
/// A clone shares them, because a run hands its labels to its record, its guest and its history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Labels(Option<Arc<BTreeMap<String, String>>>);

impl From<BTreeMap<String, String>> for Labels {
    fn from(labels: BTreeMap<String, String>) -> Self {
        Self((!labels.is_empty()).then(|| Arc::new(labels)))
    }
}

impl From<Labels> for BTreeMap<String, String> {
    fn from(labels: Labels) -> Self {
        labels.0.map(Arc::unwrap_or_clone).unwrap_or_default()
    }
}

impl Labels {
    /// Checks labels against the rules, and keeps them.
    ///
    /// # Errors
    /// `SPEC_INVALID` for more than 32 labels, for a key or value over 128 bytes or with control
    /// characters, for an empty key, and for the reserved prefix "ringfence.".
    pub fn new(
        field: &str,
        labels: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Refusal> {
        let mut out = BTreeMap::new();
        for (key, value) in labels {
            let bad = if key.is_empty() {
                Some("has an empty key")
            } else if key.starts_with("ringfence.") {
                Some("has a key with the reserved prefix \"ringfence.\"")
            } else if key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
                Some("has a key or value over 128 bytes")
            } else if key.chars().chain(value.chars()).any(char::is_control) {
                Some("has a key or value with a control character")
            } else {
                None
            };
            if let Some(bad) = bad {
                return Err(Refusal::invalid(field, bad).with("key", &key));
            }
            out.insert(key, value);
            if out.len() > MAX_LABELS {
                let message = format!("there are more than the {MAX_LABELS} that are allowed");
                return Err(Refusal::invalid(field, message).with("allowed", MAX_LABELS));
            }
        }
        Ok(out.into())
    }

    /// Returns the value of one label; `None` where there is no such key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.as_ref()?.get(key).map(String::as_str)
    }

    /// Reports whether `others` has all of these labels, with the same values.
    pub fn are_among(&self, others: &Self) -> bool {
        self.iter()
            .all(|(key, value)| others.get(key) == Some(value))
    }

    /// Iterates over all keys and values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let labels = self.0.as_deref().into_iter().flatten();
        labels.map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// Checks an idempotency key, which makes a second call the same run as the first. An empty key
/// counts as none.
///
/// # Errors
/// `LIMIT_ABOVE_MAXIMUM` for more than 128 bytes; `SPEC_INVALID` for control characters.
pub fn idempotency_key(field: &str, key: String) -> Result<Option<String>, Refusal> {
    if key.len() > MAX_LABEL_BYTES {
        return Err(Refusal::above(field, key.len(), MAX_LABEL_BYTES));
    }
    if key.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, "has a control character"));
    }
    Ok((!key.is_empty()).then_some(key))
}

/// Checks standard input, which may have `max` bytes.
///
/// # Errors
/// `LIMIT_ABOVE_MAXIMUM` for more than `max` bytes.
pub fn stdin(field: &str, bytes: Bytes, max: u64) -> Result<Bytes, Refusal> {
    if bytes.len() as u64 > max {
        const SETTING: &str = "policy.max_stdin";
        return Err(Refusal::above_ceiling(field, SETTING, bytes.len(), max));
    }
    Ok(bytes)
}

/// Builds the refusal of a module that is too large. `asked` is its size in bytes or, where
/// `is_whole` is false, how many have come so far while the rest is not known.
pub fn module_too_large(field: &str, asked: u64, is_whole: bool, max: u64) -> Refusal {
    const SETTING: &str = "compile.max_module";
    let size = if is_whole {
        format!("the module of {asked} bytes")
    } else {
        format!("the module, of which {asked} bytes have come so far,")
    };
    Refusal::new(
        Reason::ModuleTooLarge,
        format!("{size} is above the maximum of {max} ({SETTING})"),
    )
    .at_field(field)
    .with("asked", asked)
    .with("allowed", max)
    .with("limit", SETTING)
}

/// Checks the bytes of a module: at least one, and at most `max`.
///
/// # Errors
/// `SPEC_INVALID` where there are none; `MODULE_TOO_LARGE` for more than `max`.
pub fn module_bytes(field: &str, bytes: Bytes, max: u64) -> Result<Bytes, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::invalid(field, "is empty"));
    }
    let asked = bytes.len() as u64;
    if asked > max {
        return Err(module_too_large(field, asked, true, max));
    }
    Ok(bytes)
}

fn check_text(field: &str, text: &str, max: usize) -> Result<(), Refusal> {
    if text.contains('\0') {
        return Err(Refusal::invalid(field, "has a NUL byte"));
    }
    if text.len() > max {
        return Err(Refusal::above(field, text.len(), max));
    }
    Ok(())
}

fn check_list(
    field: &str,
    setting: &'static str,
    list: &[String],
    max: u64,
) -> Result<(), Refusal> {
    let total: u64 = list.iter().map(|item| item.len() as u64 + 1).sum();
    if total > max {
        return Err(Refusal::above_ceiling(field, setting, total, max));
    }
    match list.iter().position(|item| item.contains('\0')) {
        Some(i) => Err(Refusal::invalid(format!("{field}[{i}]"), "has a NUL byte")),
        None => Ok(()),
    }
}
