//! A program on a daemon of its own: refused as it should be, or loaded, run, judged and measured.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use ringfence::api::proto::{LoadModuleResponse, Outcome, RunRequest, RunSpec};
use tempfile::TempDir;

use crate::build::{Recipe, kept};
use crate::child::{Taken, Watch};
use crate::fetch::{self, Unreachable, folder, succeeded};
use crate::harness::{Client, Ran, Refused, SpecExt, by_digest, connect, load};
use crate::process::Served;
use crate::program::{Call, Content, Program, Put};

/// Runs of which the one in the middle is told as the warm one.
const WARM_RUNS: usize = 9;
/// The classes of call stack.
const STACKS: [(u32, &str); 5] = [
    (256 << 10, "256 KiB"),
    (512 << 10, "512 KiB"),
    (1 << 20, "1 MiB"),
    (4 << 20, "4 MiB"),
    (16 << 20, "16 MiB"),
];

/// What a program cost.
pub(crate) struct Figures {
    pub size: u64,
    pub compile: Duration,
    pub taken: Taken,
    /// Bytes of its compiled code.
    pub artifact: u64,
    pub first: Duration,
    pub warm: Duration,
    /// The most pages that a run had.
    pub pages: u64,
    /// The least class in which all its runs end as they should.
    pub stack: Option<&'static str>,
}

/// Why a program was not found right.
pub(crate) enum Wrong {
    Unreachable(Unreachable),
    Failed(String),
}

impl From<String> for Wrong {
    fn from(told: String) -> Self {
        Self::Failed(told)
    }
}

/// Tries a program: `None` where it is rightly refused, and that is all there is to it.
pub(crate) async fn tried(
    program: &Program,
    module: &Path,
    measure: bool,
) -> Result<Option<Figures>, Wrong> {
    if let Recipe::Kept(file) = program.recipe {
        kept(file).map_err(Wrong::Unreachable)?;
    }
    let wasm = std::fs::read(module).unwrap();
    if let Some(reason) = program.refused {
        refused(&wasm, reason).await?;
    }
    if program.calls.is_empty() {
        return Ok(None);
    }
    let place = Place::new(program).map_err(Wrong::Unreachable)?;
    let on = On::start(program, &place).await;
    let watch = Watch::start(on.served.child.id());
    let loaded = on.client.clone().load_module(load(wasm.clone())).await;
    let taken = watch.end();
    let loaded = loaded.map_err(|status| format!("refused: {:?}", Refused::new(&status)))?;
    let LoadModuleResponse {
        module,
        compile_duration,
        ..
    } = loaded.into_inner();
    let spec = place.spec(program, &module.unwrap().digest);
    let (first, pages) = on.all(program, &spec).await?;
    let mut warm = Vec::new();
    for _ in 0..if measure { WARM_RUNS } else { 1 } {
        warm.push(on.one(&program.calls[0], &spec).await?.took);
    }
    warm.sort();
    let stack = if measure {
        on.least_stack(program, &spec).await
    } else {
        None
    };
    place.keep(program)?;
    // Compiled code is written beside its use: by its end it is all there.
    let (code, _) = on.served.end();
    if code != 0 {
        return Err(Wrong::Failed(format!("the daemon ended with {code}")));
    }
    Ok(Some(Figures {
        size: wasm.len() as u64,
        compile: compile_duration.unwrap().try_into().unwrap(),
        taken,
        artifact: place.artifacts(),
        first,
        warm: warm[warm.len() / 2],
        pages,
        stack,
    }))
}

/// By a daemon with the defaults.
async fn refused(wasm: &[u8], reason: &str) -> Result<(), String> {
    let mut served = Served::start(&[]);
    drop(served.drain_log());
    let mut client = connect(&served.addr).await;
    match client.load_module(load(wasm.to_vec())).await {
        Ok(_) => Err(format!("not refused with {reason} at the defaults")),
        Err(status) => {
            let refused = Refused::new(&status);
            let right = refused.reason == reason;
            let told = || format!("refused at the defaults, but not with {reason}: {refused:?}");
            right.then_some(()).ok_or_else(told)
        }
    }
}

/// A program's folders.
struct Place(TempDir);

impl Place {
    fn new(program: &Program) -> Result<Self, Unreachable> {
        let place = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.folder()).unwrap();
        let mut own = std::fs::DirBuilder::new();
        own.mode(0o700)
            .create(place.0.path().join("artifacts"))
            .unwrap();
        for put in program.folder {
            put.put_into(&place.folder())?;
        }
        Ok(place)
    }

    fn folder(&self) -> std::path::PathBuf {
        self.0.path().join("folder")
    }

    /// The settings of its daemon.
    fn settings(&self, program: &Program) -> Vec<String> {
        let path = self.0.path().display();
        let mut settings = vec![
            format!("policy.mounts=[{{ host = \"{path}/folder\", access = \"write\" }}]"),
            format!("artifacts.dir={path}/artifacts"),
            format!("artifacts.key_file={path}/key"),
        ];
        let needed = program.settings.iter();
        settings.extend(needed.map(|(key, value)| format!("{key}={value}")));
        settings
    }

    fn spec(&self, program: &Program, digest: &str) -> RunSpec {
        let spec = by_digest(digest).resources(|r| {
            r.memory_pages = program.pages;
            r.stack_size = program.stack;
            r.output_limit = Some(16 << 20);
        });
        if program.folder.is_empty() {
            return spec;
        }
        spec.mount(self.folder(), program.guest_path, false)
    }

    /// Bytes of compiled code.
    fn artifacts(&self) -> u64 {
        fn within(folder: &Path) -> u64 {
            let entries = std::fs::read_dir(folder).unwrap().flatten();
            let sizes = entries.map(|entry| match entry.metadata().unwrap() {
                data if data.is_dir() => within(&entry.path()),
                data => data.len(),
            });
            sizes.sum()
        }
        within(&self.0.path().join("artifacts"))
    }

    /// Keeps what is for others.
    fn keep(&self, program: &Program) -> Result<(), String> {
        for name in program.keeps {
            let kept = std::fs::copy(self.folder().join(name), folder("kept").join(name));
            kept.map_err(|error| format!("it left no {name}: {error}"))?;
        }
        Ok(())
    }
}

impl Put {
    fn put_into(&self, folder: &Path) -> Result<(), Unreachable> {
        let to = folder.join(self.at);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        match self.content {
            Content::Text(text) => std::fs::write(to, text).unwrap(),
            Content::Source(name) => copy(&fetch::sources().join(name), &to),
            Content::Counting(length) => {
                let numbers: Vec<u8> = (0..=250).cycle().take(length).collect();
                std::fs::write(to, numbers).unwrap();
            }
            Content::Of(package, path) => copy(&package.unpacked()?.join(path), &to),
            Content::Unpacked(package, path) => {
                let mut unpack = Command::new("tar");
                // The daemon's user owns what it is to read.
                unpack.args(["xz", "--no-same-owner", "-C"]).arg(&to);
                succeeded(unpack.arg("-f").arg(package.unpacked()?.join(path)));
            }
            Content::Kept(name) => copy(&kept(name)?, &to),
            Content::Empty => std::fs::create_dir(to).unwrap(),
        }
        Ok(())
    }
}

fn copy(from: &Path, to: &Path) {
    succeeded(Command::new("cp").arg("-r").args([from, to]));
}

/// A daemon for one program.
struct On {
    served: Served,
    client: Client,
}

/// A run that ended as it should.
struct Right {
    took: Duration,
    pages: u64,
}

impl On {
    async fn start(program: &Program, place: &Place) -> Self {
        let settings = place.settings(program);
        let args: Vec<_> = settings.iter().flat_map(|it| ["--set", it]).collect();
        let mut served = Served::start(&args);
        drop(served.drain_log());
        let client = connect(&served.addr).await;
        Self { served, client }
    }

    /// All calls: how long the first took, and the most pages of them all.
    async fn all(&self, program: &Program, spec: &RunSpec) -> Result<(Duration, u64), String> {
        let (mut first, mut pages, mut wrong) = (None, 0, Vec::new());
        for call in program.calls {
            match self.one(call, spec).await {
                Ok(right) => {
                    first.get_or_insert(right.took);
                    pages = pages.max(right.pages);
                }
                Err(told) => wrong.push(told),
            }
        }
        match first {
            Some(first) if wrong.is_empty() => Ok((first, pages)),
            _ => Err(wrong.join("\n")),
        }
    }

    async fn one(&self, call: &Call, spec: &RunSpec) -> Result<Right, String> {
        let spec = spec.clone().args(call.args).env(call.env).stdin(call.stdin);
        let spec = spec.change(|spec| spec.working_dir = call.working_dir.to_owned());
        let request = RunRequest { spec: Some(spec) };
        let start = Instant::now();
        let answer = self.client.clone().run(request).await;
        let took = start.elapsed();
        let wrong = |told: String| Err(format!("asked to {}: {told}", call.asks));
        let ran = match answer {
            Ok(answer) => Ran::new(answer.into_inner()),
            Err(status) => return wrong(format!("refused: {:?}", Refused::new(&status))),
        };
        let ended = (ran.result.outcome(), ran.result.exit_code);
        if ended != (Outcome::Exited, Some(call.exit)) {
            let said = String::from_utf8_lossy(&ran.stderr);
            let said: String = said.chars().take(500).collect();
            let memory = (ran.result.memory_used >> 16, ran.result.memory_denied);
            let trap = ran.trap_code();
            return wrong(format!(
                "{ended:?} {trap}, pages and whether more were denied: {memory:?}, {said:?}"
            ));
        }
        for (name, expected, stream) in [
            ("stdout", &call.stdout, &ran.stdout),
            ("stderr", &call.stderr, &ran.stderr),
        ] {
            if let Err(told) = expected.judge(stream) {
                return wrong(format!("{name}: {told}"));
            }
        }
        let pages = ran.result.memory_used >> 16;
        Ok(Right { took, pages })
    }

    /// The least class of stack that is enough for all calls.
    async fn least_stack(&self, program: &Program, spec: &RunSpec) -> Option<&'static str> {
        for (size, name) in STACKS {
            let spec = spec.clone().resources(|r| r.stack_size = Some(size));
            if self.all(program, &spec).await.is_ok() {
                return Some(name);
            }
        }
        None
    }
}
