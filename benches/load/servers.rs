//! What is asked: daemons, the floor, peers.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::ask::Beside;
use super::caller::Question;
use super::guests;

/// A server of its own process, which ends with this value.
pub(crate) struct Process {
    child: Child,
    pub addr: String,
}

impl Process {
    /// This build of the daemon, with `set` over the defaults.
    pub(crate) fn daemon(set: &[String]) -> Self {
        Self::daemon_of(Path::new(env!("CARGO_BIN_EXE_ringfence")), set, &[])
    }

    /// A build of the daemon, behind a command like `taskset`.
    pub(crate) fn daemon_of(program: &Path, set: &[String], behind: &[&str]) -> Self {
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

    /// This build of the daemon, with a file of its configuration.
    pub(crate) fn configured(set: &[String], file: &str) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_ringfence"));
        Self::started(Command::new(program), &["--config", file], set)
    }

    /// The floor.
    pub(crate) fn floor(behind: &[&str]) -> Self {
        let mut command = behind_of(behind, &std::env::current_exe().unwrap());
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

fn behind_of(behind: &[&str], program: &Path) -> Command {
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

/// Everything that is asked for a hello, the daemon first and the floor second.
pub(crate) async fn greeters(set: &[String], beside: &Beside) -> Vec<Greeter> {
    let (_, hello) = guests::built("hello");
    let mut all = Vec::new();
    let mut programs = vec![(
        "ringfence".to_owned(),
        PathBuf::from(env!("CARGO_BIN_EXE_ringfence")),
    )];
    let others = beside.beside.iter();
    programs.extend(others.map(|(name, program)| (name.clone(), program.into())));
    let mut question = None;
    for (name, program) in programs {
        let process = Process::daemon_of(&program, set, &[]);
        let digest = guests::loaded(&process.addr, hello.clone()).await;
        let asked = guests::run(guests::spec(&digest, &["hello"]), "hello\n");
        question.get_or_insert_with(|| asked.clone());
        all.push(Greeter {
            name,
            addr: process.addr.clone(),
            question: asked,
            process: Some(process),
        });
    }
    let question = question.unwrap();
    let floor = Process::floor(&[]);
    all.insert(
        1,
        Greeter {
            name: "floor".to_owned(),
            addr: floor.addr.clone(),
            question: question.clone(),
            process: Some(floor),
        },
    );
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
    /// Where the command line is installed: compiles `wasm`, to be run with `flags`, of which a timeout needs code that
    /// looks at epochs.
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
