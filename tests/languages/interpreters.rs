//! The interpreters: built once into `.cache/languages`, and compiled once.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use crate::guests;

/// The interpreters that could be built, by the names of their languages.
pub(crate) struct Interpreters(Vec<(&'static str, PathBuf)>);

/// How each is built, in a copy of its sources.
const BUILDS: [(&str, &str); 2] = [
    ("python", "python3 build.py --out \"$0\""),
    (
        "javascript",
        "npm ci --no-audit --no-fund && node build.mjs --out \"$0\"",
    ),
];

impl Interpreters {
    /// Builds those that are missing, once.
    pub(crate) fn get() -> &'static Self {
        static BUILT: OnceLock<Interpreters> = OnceLock::new();
        BUILT.get_or_init(|| {
            let built = BUILDS.into_iter().filter_map(|(language, command)| {
                build(language, command, "").map(|path| (language, path))
            });
            Self(built.collect())
        })
    }

    /// The names of their languages.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.0.iter().map(|(name, _)| *name).collect()
    }

    /// The file of a language's interpreter, which has to be one of `names`.
    pub(crate) fn module(&self, language: &str) -> &Path {
        let found = self.0.iter().find(|(name, _)| *name == language);
        found.map(|(_, path)| path.as_path()).unwrap()
    }

    /// The settings of a daemon that has them.
    pub(crate) fn config(&self) -> Vec<(&'static str, String)> {
        let file = |name: &str| {
            if name == "python" {
                "main.py"
            } else {
                "main.js"
            }
        };
        let languages = self.0.iter().map(|(name, path)| {
            let (path, file) = (path.display(), file(name));
            format!("{name} = {{ module = \"{path}\", file = \"{file}\" }}")
        });
        let languages = languages.collect::<Vec<_>>().join(", ");
        let [dir, key_file] = artifacts();
        vec![("languages", format!("{{ {languages} }}")), dir, key_file]
    }
}

/// The settings of a daemon that keeps what it has compiled for the next one.
pub(crate) fn artifacts() -> [(&'static str, String); 2] {
    let place = |name: &str| cache().join(name).display().to_string();
    [
        ("artifacts.dir", place("compiled")),
        ("artifacts.key_file", place("key")),
    ]
}

fn cache() -> PathBuf {
    let cache = guests::root().join(".cache/languages");
    std::fs::create_dir_all(&cache).unwrap();
    cache
}

/// Builds the interpreter of a language with packages, by `options` of its build script; `None`,
/// loudly, where that cannot be.
pub(crate) fn with_packages(language: &'static str, options: &str) -> Option<PathBuf> {
    let (_, command) = BUILDS.into_iter().find(|(name, _)| *name == language)?;
    // Two builds of JavaScript at once refuse each other.
    Interpreters::get();
    build(language, command, options)
}

/// Runs a build that is refused, and returns what it says.
pub(crate) fn refused_build(language: &'static str, options: &str) -> Option<String> {
    let (_, command) = BUILDS.into_iter().find(|(name, _)| *name == language)?;
    let out = tempfile::tempdir().unwrap();
    let output = run(
        language,
        &format!("{command} {options}"),
        &out.path().join("none"),
    );
    let output = output.expect("the shell runs");
    assert!(!output.status.success(), "{options} is taken: {output:?}");
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs a command in a copy of the sources of a language, which writes the interpreter to `out`.
fn run(language: &str, command: &str, out: &Path) -> std::io::Result<Output> {
    let sources = guests::root().join("languages").join(language);
    let copy = tempfile::tempdir().unwrap();
    let copied = Command::new("cp")
        .arg("-r")
        .arg(sources.join("."))
        .arg(copy.path())
        .status();
    assert!(copied.unwrap().success());
    Command::new("sh")
        .args(["-c", command])
        .arg(out)
        .current_dir(copy.path())
        .output()
}

/// Builds an interpreter, unless it is there; `None`, loudly, where that cannot be.
fn build(language: &str, command: &str, options: &str) -> Option<PathBuf> {
    let sources = guests::root().join("languages").join(language);
    let sum = digest_of(&sources);
    let name: String = options
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let out = cache().join(format!("{language}{name}-{sum}.wasm"));
    if out.exists() {
        return Some(out);
    }
    match run(language, &format!("{command} {options}"), &out) {
        Ok(output) if output.status.success() => Some(out),
        failed => {
            eprintln!(
                "\n*** SKIPPED: the interpreter of {language} cannot be built: {failed:?}\n*** {language} was NOT tested.\n"
            );
            None
        }
    }
}

/// A short digest of all files in a folder, so that another version of them is built again.
fn digest_of(folder: &Path) -> String {
    let sums = Command::new("sh")
        .args(["-c", "find . -type f -not -path '*/__pycache__/*' -not -path './node_modules/*' | sort | xargs sha256sum | sha256sum"])
        .current_dir(folder)
        .output()
        .unwrap();
    let sum = String::from_utf8(sums.stdout).unwrap();
    sum.get(..16).unwrap().to_owned()
}
