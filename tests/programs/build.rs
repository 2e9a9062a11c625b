//! How each module is had: as it is in a package, or by a toolchain from `src/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::fetch::{self, Package, Unreachable, folder, hex, sources, succeeded};
use crate::guests;
use crate::packages::{COMPONENTIZE_PY, GO, ZIG};

/// How a module is had.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Recipe {
    /// It is in a package.
    Ready(Package, &'static str),
    /// By Go for `wasip1`.
    Go(Package, &'static str),
    /// By this repository's Rust, for a target.
    Rust(&'static str, &'static str),
    /// By zig: the command, a source of ours, flags, and those of a crate's sources that go with it.
    Zig(
        &'static str,
        &'static str,
        &'static [&'static str],
        Option<OfCrate>,
    ),
    AssemblyScript(&'static str),
    ComponentizePy(&'static str),
    ComponentizeJs(&'static str),
    /// By a program of this list that ran before.
    Kept(&'static str),
}

/// C sources of a crate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OfCrate {
    pub spec: &'static str,
    pub folder: &'static str,
    /// Without their ".c".
    pub names: &'static [&'static str],
}

impl Recipe {
    /// What it is made by, for people.
    pub(crate) fn told(&self) -> String {
        let pypi = |package: &Package| format!("PyPI `{}`", package.spec);
        match self {
            Self::Ready(package, path) => {
                let registry = match package.registry {
                    fetch::Registry::Npm => "npm",
                    fetch::Registry::Pypi => "PyPI",
                };
                let file = path.rsplit('/').next().unwrap();
                format!("{registry} `{}`, `{file}`", package.spec)
            }
            Self::Go(package, _) => format!("{}, `GOOS=wasip1`", pypi(package)),
            Self::Rust(target, _) => format!("rustc of rust-toolchain.toml, `{target}`"),
            Self::Zig(_, _, _, None) => pypi(&ZIG),
            Self::Zig(_, _, _, Some(of)) => format!("{}, crate `{}`", pypi(&ZIG), of.spec),
            Self::AssemblyScript(_) => {
                "npm `assemblyscript@0.28.20`, `@assemblyscript/wasi-shim@0.1.0`".to_owned()
            }
            Self::ComponentizePy(_) => pypi(&COMPONENTIZE_PY),
            Self::ComponentizeJs(_) => "npm `@bytecodealliance/componentize-js@0.23.0`".to_owned(),
            Self::Kept(_) => "the two before it".to_owned(),
        }
    }

    /// The source of ours that it is made of.
    fn source(&self) -> Option<&'static str> {
        match *self {
            Self::Ready(..) | Self::Kept(_) => None,
            Self::Go(_, source)
            | Self::Rust(_, source)
            | Self::Zig(_, source, ..)
            | Self::AssemblyScript(source)
            | Self::ComponentizePy(source)
            | Self::ComponentizeJs(source) => Some(source),
        }
    }

    /// The module, made where it was not made of the same before.
    pub(crate) fn module(&self, name: &str) -> Result<PathBuf, Unreachable> {
        match self {
            Self::Ready(package, path) => Ok(package.unpacked()?.join(path)),
            // Whether it is there shows when those before it have run.
            Self::Kept(file) => Ok(folder("kept").join(file)),
            Self::Go(..)
            | Self::Rust(..)
            | Self::Zig(..)
            | Self::AssemblyScript(_)
            | Self::ComponentizePy(_)
            | Self::ComponentizeJs(_) => self.built(name),
        }
    }

    fn built(&self, name: &str) -> Result<PathBuf, Unreachable> {
        let out = folder("built").join(format!("{name}.wasm"));
        let key = out.with_extension("key");
        let source = sources().join(self.source().unwrap());
        let text = std::fs::read(&source).unwrap();
        let now = hex(format!("{self:?} {}", hex(&text)).as_bytes());
        if out.exists() && std::fs::read_to_string(&key).is_ok_and(|made_of| made_of == now) {
            return Ok(out);
        }
        self.build(&source, &out)?;
        std::fs::write(key, now).unwrap();
        Ok(out)
    }

    fn build(&self, source: &Path, out: &Path) -> Result<(), Unreachable> {
        match *self {
            Self::Ready(..) | Self::Kept(_) => {}
            Self::Go(toolchain, _) => go(&toolchain, source, out)?,
            Self::Rust(target, _) => rust(target, source, out),
            Self::Zig(command, _, flags, of) => zig(command, source, flags, of, out)?,
            Self::AssemblyScript(_) => assemblyscript(source, out)?,
            Self::ComponentizePy(_) => componentize_py(source, out)?,
            Self::ComponentizeJs(_) => componentize_js(source, out)?,
        }
        Ok(())
    }
}

/// What a program before left.
pub(crate) fn kept(file: &str) -> Result<PathBuf, Unreachable> {
    let kept = folder("kept").join(file);
    let missing = || Unreachable(format!("no program before it made {file}"));
    kept.exists().then_some(kept).ok_or_else(missing)
}

fn go(toolchain: &Package, source: &Path, out: &Path) -> Result<(), Unreachable> {
    let root = toolchain.unpacked()?.join("go");
    succeeded(
        Command::new(root.join("bin/go"))
            .arg("build")
            .arg("-trimpath")
            .arg("-o")
            .args([out, source])
            .current_dir(fetch::cache())
            .env("GOROOT", &root)
            .env("GOPATH", folder("go-path"))
            .env("GOCACHE", folder("go-cache"))
            .envs([("GOOS", "wasip1"), ("GOARCH", "wasm"), ("GOENV", "off")])
            .envs([("GOTOOLCHAIN", "local"), ("GOPROXY", "off")])
            .envs([("GO111MODULE", "off"), ("GOTELEMETRY", "off")])
            .env_remove("GOFLAGS"),
    );
    if toolchain.spec != GO.spec {
        // It makes one program, and takes 250 MB.
        toolchain.forget();
    }
    Ok(())
}

fn rust(target: &str, source: &Path, out: &Path) {
    // They install the targets where they are not there.
    drop(match target {
        "wasm32-wasip1" => guests::kit(),
        _ => guests::kit_component(),
    });
    succeeded(
        Command::new("rustc")
            .current_dir(guests::root())
            .args(["--edition=2024", "--target", target, "-O"])
            .arg("-Cstrip=symbols")
            .arg("-o")
            .args([out, source]),
    );
}

fn zig(
    command: &str,
    source: &Path,
    flags: &[&str],
    of: Option<OfCrate>,
    out: &Path,
) -> Result<(), Unreachable> {
    let zig = ZIG.unpacked()?.join("ziglang/zig");
    let mut build = Command::new(zig);
    build.args([command, "-target", "wasm32-wasi"]);
    match command {
        "build-exe" => build.arg(format!("-femit-bin={}", out.display())),
        _ => build.args(["-O2", "-s", "-w", "-o"]).arg(out),
    };
    build.arg(source);
    if let Some(of) = of {
        let folder = fetch::crates()?.join(of.folder);
        build.arg("-I").arg(&folder);
        let file = |name| folder.join(format!("{name}.c"));
        build.args(of.names.iter().map(file));
    }
    // Libraries come last.
    build.args(flags);
    for cache in ["ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"] {
        build.env(cache, folder("zig-cache"));
    }
    succeeded(&mut build);
    Ok(())
}

fn assemblyscript(source: &Path, out: &Path) -> Result<(), Unreachable> {
    let tools = fetch::node("as")?;
    // Its compiler takes only files below the folder that it is started in.
    std::fs::copy(source, tools.join("program.ts")).unwrap();
    succeeded(
        Command::new("node")
            .current_dir(&tools)
            .arg("node_modules/assemblyscript/bin/asc.js")
            .args(["program.ts", "-O", "--config"])
            .arg("node_modules/@assemblyscript/wasi-shim/asconfig.json")
            .arg("-o")
            .arg(out),
    );
    Ok(())
}

fn componentize_py(source: &Path, out: &Path) -> Result<(), Unreachable> {
    let tools = COMPONENTIZE_PY.unpacked()?;
    succeeded(
        Command::new("python3")
            .arg(tools.join("bin/componentize-py"))
            .arg("-d")
            .arg(world())
            .args(["-w", "command", "componentize", "app", "-o"])
            .arg(out)
            .arg("-p")
            .arg(source.parent().unwrap())
            .current_dir(fetch::cache())
            .env("PYTHONPATH", &tools)
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    );
    Ok(())
}

fn componentize_js(source: &Path, out: &Path) -> Result<(), Unreachable> {
    let tools = fetch::node("js")?;
    // Modules are looked for from where the one that imports them is.
    let build = tools.join("build.mjs");
    std::fs::copy(sources().join("js/build.mjs"), &build).unwrap();
    succeeded(
        Command::new("node")
            .arg(build)
            .arg(source)
            .arg(world())
            .arg(out),
    );
    Ok(())
}

/// `src/component/world.wit`, with the interfaces of WASI that wasmtime has.
fn world() -> PathBuf {
    let mut ask = Command::new("cargo");
    ask.current_dir(guests::root())
        .args(["metadata", "--format-version=1", "--locked"])
        // Without one it fetches what only other systems need.
        .arg("--filter-platform")
        .arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
    let told = ask.output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    let packages = told["packages"].as_array().unwrap();
    let named = packages.iter().find(|it| it["name"] == "wasmtime-wasi");
    let manifest = named.unwrap()["manifest_path"].as_str().unwrap();
    let interfaces = Path::new(manifest).with_file_name("src/p2/wit/deps");
    let world = folder("world");
    std::fs::copy(
        sources().join("component/world.wit"),
        world.join("world.wit"),
    )
    .unwrap();
    let deps = world.join("deps");
    std::fs::create_dir_all(&deps).unwrap();
    for entry in std::fs::read_dir(interfaces).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, deps.join(from.file_name().unwrap())).unwrap();
    }
    world
}
