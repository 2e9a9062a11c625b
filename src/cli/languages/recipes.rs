//! The interpreters that this program can build: their sources are part of it, and their tools are
//! pinned by digest.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::cli::Failure;
use crate::model::refusal::printable;

/// A recipe for an interpreter.
pub(super) struct Recipe {
    /// The name of the language.
    pub(super) name: &'static str,
    /// The version of the language, which `tests/languages` compares with what is built.
    pub(super) version: &'static str,
    /// Other names of the language.
    pub(super) aliases: &'static [&'static str],
    /// The name of the file that a program is taken to be in.
    pub(super) file: &'static str,
    /// The pages of memory and the bytes of stack of programs that do not ask for their own; no
    /// bytes for the daemon's default.
    pub(super) limits: (u32, &'static str),
    /// The command that fetches the tools, in the folder of the sources; empty where the build does
    /// that itself.
    fetch: &'static [&'static str],
    /// The program that builds, and the file that it is given.
    command: [&'static str; 2],
    /// What is missing where that program cannot be started.
    needs: &'static str,
    /// The sources, by their paths.
    sources: &'static [(&'static str, &'static [u8])],
}

include!(concat!(env!("OUT_DIR"), "/language_sources.rs"));

/// The recipes that there are.
const RECIPES: [Recipe; 2] = [
    Recipe {
        name: "python",
        version: "3.14",
        aliases: &["py", "python3"],
        file: "main.py",
        // Recursion through C code takes 4 KiB a level, and 1,000 levels have to be an exception.
        limits: (1024, "4MiB"),
        fetch: &[],
        command: ["python3", "build.py"],
        needs: "python3, with its module venv (apt-get install python3-venv)",
        sources: PYTHON,
    },
    Recipe {
        name: "javascript",
        // The newest edition of ECMAScript that the pinned engine has, but for what
        // docs/languages.md names.
        version: "ES2025",
        aliases: &["js"],
        file: "main.js",
        // The engine collects what lives longer only at about 1,200 pages.
        limits: (1536, ""),
        fetch: &["npm", "ci", "--no-audit", "--no-fund"],
        command: ["node", "build.mjs"],
        needs: "node 20 or later, with npm",
        sources: JAVASCRIPT,
    },
];

impl Recipe {
    /// Returns the recipe for a language; `None` where there is none.
    pub(super) fn of(name: &str) -> Option<Self> {
        RECIPES.into_iter().find(|recipe| recipe.name == name)
    }

    /// Lists the names of all recipes.
    pub(super) fn names() -> Vec<&'static str> {
        RECIPES.iter().map(|recipe| recipe.name).collect()
    }

    /// Builds the interpreter into the file at `out`, with these packages, and with these modules
    /// imported.
    ///
    /// # Errors
    /// The tools are missing, or say why they fail.
    pub(super) fn build(
        &self,
        out: &Path,
        packages: &[String],
        imports: &[String],
    ) -> Result<(), Failure> {
        let unpacked = self.unpack().map_err(|error| {
            Failure::new(format!(
                "cannot unpack the sources of {}: {error}",
                self.name
            ))
        })?;
        if let [program, args @ ..] = self.fetch {
            let mut command = Command::new(program);
            command.args(args).current_dir(unpacked.path());
            self.perform(command)?;
        }
        let [program, script] = self.command;
        let mut command = Command::new(program);
        command.arg(unpacked.path().join(script));
        command.arg("--out").arg(out);
        for package in packages {
            command.arg("--with").arg(package);
        }
        for import in imports {
            command.arg("--import").arg(import);
        }
        self.perform(command)
    }

    /// Executes a command of the build to its end.
    fn perform(&self, mut command: Command) -> Result<(), Failure> {
        // What it prints is its own record of the build; what is wrong is on standard error.
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let ended = command.status().map_err(|error| {
            let program = command.get_program().display().to_string();
            let needs = self.needs;
            Failure::new(format!(
                "cannot start {program}: {error}; the build needs {needs}"
            ))
        })?;
        match ended.success() {
            true => Ok(()),
            false => Err(Failure::new(format!(
                "the build of {} failed ({})",
                self.name,
                printable(&ended.to_string())
            ))),
        }
    }

    /// Writes the sources into a folder that is gone when it is dropped.
    fn unpack(&self) -> std::io::Result<tempfile::TempDir> {
        let folder = tempfile::Builder::new().prefix("ringfence-").tempdir()?;
        for (path, bytes) in self.sources {
            let path = folder.path().join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(path, bytes)?;
        }
        Ok(folder)
    }
}
