//! What is asked: daemons, the floor, peers.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::ask::{Beside, Build, How};
use super::caller::Question;
use super::guests;

/// A server of its own process, which ends with this value.
pub(crate) struct Process {
    child: Child,
    pub addr: String,
}

impl Process {
    /// A build of the daemon, with `set` over the defaults.
    pub(crate) fn daemon(program: &Path, set: &[String]) -> Self {
        Self::daemon_behind::<&str>(&[], program, set)
    }

    /// The same behind a command like `taskset`.
    pub(crate) fn daemon_behind<S: AsRef<OsStr>>(
        behind: &[S],
        program: &Path,
        set: &[String],
    ) -> Self {
        Self::started(behind_of(behind, program), &[], set)
    }

    fn started(mut command: Command, args: &[&str], set: &[String]) -> Self {
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(args);
        command.args(set.iter().flat_map(|set| ["--set", set]));
        command.stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = child.stderr.take().unwrap();
        Self::told(child, log, " serving")
    }

    /// A build of the daemon, with a file of its configuration.
    pub(crate) fn configured(program: &Path, set: &[String], file: &str) -> Self {
        Self::started(Command::new(program), &["--config", file], set)
    }

    /// The floor of a build of this program.
    pub(crate) fn floor(program: &Path) -> Self {
        Self::floor_behind::<&str>(&[], program)
    }

    /// The same behind a command like `taskset`.
    pub(crate) fn floor_behind<S: AsRef<OsStr>>(behind: &[S], program: &Path) -> Self {
        let mut command = behind_of(behind, program);
        command.arg("floor").stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let told = child.stdout.take().unwrap();
        Self::told(child, told, "address=")
    }

    /// Reads where it listens, up to the line that says that it does.
    fn told(child: Child, told: impl std::io::Read + Send + 'static, last: &str) -> Self {
        let mut told = BufReader::with_capacity(1 << 16, told);
        let (mut addr, mut line) = (String::new(), String::new());
        while !line.contains(last) {
            line.clear();
            assert!(told.read_line(&mut line).unwrap() > 0, "it serves");
            if let Some((_, at)) = line.split_once("address=") {
                addr = at.trim().to_owned();
            }
        }
        std::thread::spawn(move || std::io::copy(&mut told, &mut std::io::sink()));
        Self { child, addr }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How often its threads gave up a processor so far by themselves, and how often it was taken
    /// from them.
    pub(crate) fn switches(&self) -> [u64; 2] {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let mut all = [0, 0];
        for task in tasks {
            // One that has ended meanwhile did nothing for calls.
            let status = std::fs::read_to_string(task.unwrap().path().join("status"));
            let status = status.unwrap_or_default();
            let count = |key| status.lines().find_map(|line| line.strip_prefix(key));
            let keys = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
            for (key, into) in keys.into_iter().zip(&mut all) {
                *into += count(key).map_or(0, |it| it.trim().parse::<u64>().unwrap());
            }
        }
        all
    }

    /// Processor time that it has used so far, of all its threads.
    pub(crate) fn spent(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, which stands in brackets, may have spaces.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let user_and_system = rest.split_whitespace().skip(11).take(2);
        let ticks = user_and_system
            .map(|it| it.parse::<u64>().unwrap())
            .sum::<u64>();
        // A hundred a second, on every architecture that we have.
        Duration::from_millis(ticks * 10)
    }

    /// Bytes of its memory that are resident.
    pub(crate) fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.unwrap().trim().trim_end_matches(" kB");
        kib.parse::<u64>().unwrap() << 10
    }
}

fn behind_of<S: AsRef<OsStr>>(behind: &[S], program: &Path) -> Command {
    match behind {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Something that runs a hello when it is asked.
pub(crate) struct Greeter {
    pub name: String,
    pub addr: String,
    pub question: Question,
    pub process: Option<Process>,
}

impl Greeter {
    fn of(name: String, process: Process, question: &Question) -> Self {
        Self {
            name,
            addr: process.addr.clone(),
            question: question.clone(),
            process: Some(process),
        }
    }
}

/// What the floor of a build of the daemon is called.
pub(crate) fn floor_of(name: &str) -> String {
    match name {
        "ringfence" => "floor".to_owned(),
        name => format!("floor of {name}"),
    }
}

/// Everything that is asked for a hello, the daemon first and the floor second.
pub(crate) async fn greeters(how: &How, beside: &Beside) -> Vec<Greeter> {
    let (_, hello) = guests::built("hello");
    let ours = Build {
        name: "ringfence".to_owned(),
        daemon: how.daemon.clone(),
        floor: Some(how.floor.clone()),
    };
    let mut all = Vec::new();
    let mut question = None;
    for build in std::iter::once(&ours).chain(&beside.beside) {
        let process = Process::daemon(&build.daemon, &how.set);
        let digest = guests::loaded(&process.addr, hello.clone()).await;
        let asked = guests::run(guests::spec(&digest, &["hello"]), "hello\n");
        question.get_or_insert_with(|| asked.clone());
        all.push(Greeter::of(build.name.clone(), process, &asked));
        if let Some(floor) = &build.floor {
            let name = floor_of(&build.name);
            all.push(Greeter::of(name, Process::floor(floor), &asked));
        }
    }
    let question = question.unwrap();
    for (name, addr) in &beside.peer {
        all.push(Greeter {
            name: name.clone(),
            addr: addr.clone(),
            question: of_peer(beside, &question),
            process: None,
        });
    }
    for (name, addr) in &beside.http {
        all.push(Greeter {
            name: name.clone(),
            addr: addr.clone(),
            question: Question::get("/", &beside.holds),
            process: None,
        });
    }
    all
}

/// What a peer is asked.
fn of_peer(beside: &Beside, question: &Question) -> Question {
    let Some(request) = &beside.request else {
        return question.clone();
    };
    let method = beside.method.as_deref().expect("--request needs --method");
    let message = std::fs::read(request).expect("--request is readable");
    Question::raw(method, message.into(), &beside.holds)
}

/// A `wasmtime run` of code that was compiled before.
pub(crate) struct Wasmtime {
    program: PathBuf,
    flags: Vec<String>,
    code: PathBuf,
}

impl Wasmtime {
    /// Where the command line is installed: compiles `wasm`, to be run with `flags`, of which a
    /// timeout needs code that looks at epochs.
    pub(crate) fn compiled(program: &Path, wasm: &Path, flags: &[&str]) -> Option<Self> {
        let code = wasm.with_extension(format!("{}.cwasm", flags.len()));
        let epochs = if flags.is_empty() { "n" } else { "y" };
        let status = Command::new(program)
            .args(["compile", "-W", &format!("epoch-interruption={epochs}")])
            .arg("-o")
            .args([&code, wasm])
            .status();
        match status {
            Ok(status) => {
                assert!(status.success(), "{} compiles", program.display());
                Some(Self {
                    program: program.to_owned(),
                    flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
                    code,
                })
            }
            Err(error) => {
                eprintln!("SKIPPED: {} does not start: {error}", program.display());
                None
            }
        }
    }

    /// A command that runs it.
    pub(crate) fn run(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["run", "--allow-precompiled"]);
        command.args(&self.flags).arg(&self.code).args(args);
        command
    }
}
