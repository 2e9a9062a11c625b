//! Every signal, while the daemon starts, serves and drains, as the first process of its namespace and as any other.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringfence::api::proto::{RunRequest, RunStreamRequest, StreamEvent};
use ringfence::model::request::Digest;
use tempfile::TempDir;
use tonic::Streaming;

use crate::harness::{PATIENCE, SpecExt, connect, kit, load};
use crate::process::ringfence;

const TERM: i32 = 15;
const INT: i32 = 2;
const QUIT: i32 = 3;
const HUP: i32 = 1;
/// Signals that mean nothing to a daemon, and what its log calls them; without a name those that it does not even see.
const MEANINGLESS: [(i32, &str); 16] = [
    (10, "SIGUSR1"),
    (12, "SIGUSR2"),
    (13, ""),
    (14, "SIGALRM"),
    (16, "SIGSTKFLT"),
    (17, ""),
    (21, ""),
    (22, ""),
    (24, "SIGXCPU"),
    (25, "SIGXFSZ"),
    (26, "SIGVTALRM"),
    (27, "SIGPROF"),
    (29, "SIGIO"),
    (30, "SIGPWR"),
    (37, "SIGRTMIN+3"),
    (64, "SIGRTMIN+30"),
];

/// A daemon that may be the first process of a namespace of its own.
struct Process {
    /// What was started: the daemon, or what started it in its namespace.
    outer: Child,
    /// The daemon.
    pid: u32,
    log: BufReader<ChildStderr>,
    /// All that was read of the log.
    told: String,
}

/// Whether this user may make a namespace of processes.
fn may_be_first() -> bool {
    let tried = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "true"])
        .stderr(Stdio::null())
        .status();
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        eprintln!("SKIPPED: this host lets nobody be the first process of a namespace");
    }
    may
}

impl Process {
    fn start(first: bool, args: &[&str]) -> Self {
        Self::by(&[], first, args)
    }

    /// Started by a command that becomes it.
    fn by(wrapper: &[&str], first: bool, args: &[&str]) -> Self {
        let daemon = ringfence();
        let namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
        let mut words: Vec<&str> = Vec::new();
        words.extend(namespace.iter().filter(|_| first));
        words.extend(wrapper);
        words.push(daemon.get_program().to_str().unwrap());
        words.extend(["serve", "--listen", "127.0.0.1:0"]);
        words.extend(args);
        let mut command = ringfence_env(Command::new(words[0]));
        let mut outer = command
            .args(&words[1..])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(outer.stderr.take().unwrap());
        let pid = match first {
            true => only_child(&mut outer),
            false => outer.id(),
        };
        Self {
            outer,
            pid,
            log,
            told: String::new(),
        }
    }

    /// Waits until it has seen to signals, as the kernel tells.
    fn caught(&self) {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it never catches signals");
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
            let status = status.unwrap_or_default();
            let caught = status.lines().find_map(|it| it.strip_prefix("SigCgt:"));
            let caught = caught.and_then(|it| u64::from_str_radix(it.trim(), 16).ok());
            // The last that it sees to is the last that there is.
            if caught.is_some_and(|it| it & (1 << 63) != 0) {
                return;
            }
            std::thread::yield_now();
        }
    }

    fn signal(&self, signal: i32) {
        kill(signal, self.pid);
    }

    /// Reads its log up to a line that has all of `words`, which it returns.
    fn until(&mut self, words: &[&str]) -> String {
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).unwrap();
            assert!(read > 0, "{words:?} is never said: {}", self.told);
            self.told.push_str(&line);
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
        }
    }

    /// Reads its log until it serves, and returns its address.
    fn serving(&mut self) -> String {
        let line = self.until(&["listening", "address="]);
        let (_, address) = line.trim_end().split_once("address=").unwrap();
        self.until(&["serving"]);
        address.to_owned()
    }

    /// Waits for its end, and returns that and all of its log.
    fn end(mut self) -> (ExitStatus, String) {
        self.log.read_to_string(&mut self.told).unwrap();
        (self.outer.wait().unwrap(), std::mem::take(&mut self.told))
    }

    #[track_caller]
    fn exits(self, code: i32) -> String {
        let (status, log) = self.end();
        assert_eq!(status.code(), Some(code), "{status}: {log}");
        assert!(!log.contains("panic"), "{log}");
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

/// Without this machine's settings.
fn ringfence_env(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("RINGFENCE_") {
            command.env_remove(key);
        }
    }
    command
}

fn kill(signal: i32, pid: u32) {
    let status = Command::new("kill")
        .args([format!("-{signal}"), pid.to_string()])
        .status();
    assert!(status.unwrap().success(), "{signal} to {pid}");
}

fn children(pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    for task in tasks.into_iter().flatten().flatten() {
        let told = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(told.split_whitespace().map(|it| it.parse::<u32>().unwrap()));
    }
    all
}

fn only_child(parent: &mut Child) -> u32 {
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "nothing is started");
        assert_eq!(parent.try_wait().unwrap(), None, "it ended by itself");
        if let [child] = children(parent.id())[..] {
            return child;
        }
        std::thread::yield_now();
    }
}

/// An audit file that holds up whoever opens it: a FIFO that nobody reads.
struct Holding {
    dir: TempDir,
    setting: String,
}

impl Holding {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("audit");
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
        let setting = format!("telemetry.audit_file={}", path.display());
        Self { dir, setting }
    }

    fn args(&self) -> [&str; 2] {
        ["--set", &self.setting]
    }

    /// Lets the daemon go on, and reads what it writes.
    fn release(&self) -> std::thread::JoinHandle<()> {
        let path = self.dir.path().join("audit");
        std::thread::spawn(move || {
            std::fs::read(path).unwrap();
        })
    }
}

fn tokens(token: &str) -> String {
    format!("default {}\n", Digest::of(token.as_bytes()))
}

fn every_signal_while_it_starts(first: bool) {
    if first && !may_be_first() {
        return;
    }
    for (signal, code) in [(TERM, 0), (INT, 0), (QUIT, 131)] {
        let holding = Holding::new();
        let daemon = Process::start(first, &holding.args());
        daemon.caught();
        daemon.signal(signal);
        daemon.exits(code);
    }
    let holding = Holding::new();
    let mut daemon = Process::start(first, &holding.args());
    daemon.caught();
    for (signal, _) in MEANINGLESS {
        daemon.signal(signal);
    }
    daemon.signal(HUP);
    let reads = holding.release();
    // What came while it started is done as soon as it can be.
    daemon.until(&["reading files again"]);
    daemon.signal(TERM);
    let log = daemon.exits(0);
    reads.join().unwrap();
    for (_, name) in MEANINGLESS {
        assert!(
            log.contains(&format!("signal=\"{name}\"")) || name.is_empty(),
            "{name}: {log}"
        );
    }
}

#[test]
fn every_signal_while_it_starts_as_any_process() {
    every_signal_while_it_starts(false);
}

#[test]
fn every_signal_while_it_starts_as_the_first_process() {
    every_signal_while_it_starts(true);
}

fn every_signal_while_it_serves(first: bool) {
    if first && !may_be_first() {
        return;
    }
    for (signal, code, word) in [
        (TERM, 0, "draining"),
        (INT, 0, "draining"),
        (QUIT, 131, "at once"),
    ] {
        let mut daemon = Process::start(first, &[]);
        daemon.serving();
        daemon.signal(signal);
        let log = daemon.exits(code);
        assert!(log.contains(word), "{log}");
    }
    let mut daemon = Process::start(first, &[]);
    daemon.serving();
    all_that_end_nothing(&mut daemon);
    daemon.signal(TERM);
    daemon.exits(0);
}

/// Sends it all signals that are not to end it.
fn all_that_end_nothing(daemon: &mut Process) {
    for (signal, name) in MEANINGLESS {
        daemon.signal(signal);
        if !name.is_empty() {
            daemon.until(&[&format!("signal=\"{name}\"")]);
        }
    }
    for _ in 0..2 {
        daemon.signal(HUP);
        daemon.until(&["reading files again"]);
        daemon.until(&["the configuration is as it was"]);
    }
}

#[test]
fn every_signal_while_it_serves_as_any_process() {
    every_signal_while_it_serves(false);
}

#[test]
fn every_signal_while_it_serves_as_the_first_process() {
    every_signal_while_it_serves(true);
}

fn every_signal_while_it_drains(first: bool) {
    if first && !may_be_first() {
        return;
    }
    let draining = || {
        let mut daemon = Process::start(first, &["--set", "server.drain_delay=60s"]);
        daemon.serving();
        daemon.signal(TERM);
        daemon.until(&["draining", "SIGTERM"]);
        daemon
    };
    for (signal, code) in [(TERM, 143), (INT, 130), (QUIT, 131)] {
        let daemon = draining();
        daemon.signal(signal);
        let log = daemon.exits(code);
        assert!(log.contains("ending at once"), "{log}");
    }
    let mut daemon = draining();
    all_that_end_nothing(&mut daemon);
    daemon.signal(TERM);
    daemon.exits(143);
}

#[test]
fn every_signal_while_it_drains_as_any_process() {
    every_signal_while_it_drains(false);
}

#[test]
fn every_signal_while_it_drains_as_the_first_process() {
    every_signal_while_it_drains(true);
}

/// At each step of the start that the log tells of, and before the first.
#[test]
fn none_is_lost_at_any_step_of_the_start() {
    let both = [false, true]
        .into_iter()
        .filter(|first| !first || may_be_first());
    for first in both {
        for lines in 0..9 {
            let mut daemon = Process::start(first, &[]);
            daemon.caught();
            for _ in 0..lines {
                daemon.log.read_line(&mut daemon.told).unwrap();
            }
            daemon.signal(TERM);
            daemon.exits(0);
        }
    }
}

/// Whoever starts it may have blocked or ignored what it needs, as `nohup` and shells do.
#[test]
fn it_is_the_same_whatever_it_was_started_with() {
    let wrapper = [
        "env",
        "--ignore-signal=HUP,INT,QUIT,CHLD,XCPU,XFSZ",
        "--block-signal=TERM,HUP,USR1",
    ];
    let mut daemon = Process::by(&wrapper, false, &[]);
    daemon.serving();
    all_that_end_nothing(&mut daemon);
    let compiler = children(daemon.pid)[0];
    let ignored = mask(compiler, "SigIgn:");
    assert_eq!(
        ignored & bit(24),
        0,
        "a compiler that has used its time is told"
    );
    daemon.signal(TERM);
    daemon.exits(0);
    let mut daemon = Process::by(&wrapper, false, &[]);
    daemon.serving();
    daemon.signal(QUIT);
    daemon.exits(131);
}

fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

fn mask(pid: u32, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let told = status.lines().find_map(|it| it.strip_prefix(line)).unwrap();
    u64::from_str_radix(told.trim(), 16).unwrap()
}

/// As a terminal and a service manager send it.
#[tokio::test]
async fn a_signal_to_all_processes_ends_no_compilation_and_the_daemons_end_does() {
    let mut daemon = Process::start(false, &[]);
    let addr = daemon.serving();
    let compilers = children(daemon.pid);
    assert!(!compilers.is_empty());
    for compiler in &compilers {
        // Those that say that it is broken, or has used its time, are its own.
        let blocked = mask(*compiler, "SigBlk:");
        assert_eq!(blocked & (bit(24) | bit(6) | bit(11)), 0);
        for signal in [TERM, INT, HUP, QUIT, 10, 25] {
            assert_ne!(blocked & bit(signal.unsigned_abs()), 0, "{signal}");
            kill(signal, *compiler);
        }
    }
    let mut client = connect(&addr).await;
    client
        .load_module(load(crate::guests::kit()))
        .await
        .unwrap();
    assert!(
        compilers
            .iter()
            .any(|it| !children(daemon.pid).contains(it)),
        "one was used"
    );
    let compilers = children(daemon.pid);
    daemon.signal(9);
    let (status, _) = std::mem::replace(&mut daemon, Process::start(false, &[])).end();
    assert_eq!(status.code(), None);
    let start = Instant::now();
    let is_there = |pid: &u32| Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok();
    while compilers.iter().any(is_there) {
        assert!(start.elapsed() < PATIENCE, "they outlive the daemon");
        std::thread::yield_now();
    }
}

/// A daemon with a short grace, and the stream of a run of `args` that has started.
async fn streaming(args: &[&str], settings: &[&str]) -> (Process, Streaming<StreamEvent>) {
    let settings = ["server.drain_grace=100ms"].iter().chain(settings);
    let set: Vec<&str> = settings.flat_map(|it| ["--set", it]).collect();
    let mut daemon = Process::start(false, &set);
    let addr = daemon.serving();
    let mut client = connect(&addr).await;
    let spec = Some(kit(args).timeout(Duration::from_secs(60)));
    let request = RunStreamRequest { spec };
    let mut stream = client.run_stream(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap();
    (daemon, stream)
}

#[tokio::test]
async fn a_drain_whose_callers_were_not_told_says_so_and_exits_otherwise() {
    // Its output fills what room there is, so that the caller, who reads no more, cannot be told of its end.
    let (mut daemon, stream) = streaming(
        &["flood", "50000000"],
        &["runs.stall_timeout=1s", "policy.max_output=64MiB"],
    )
    .await;
    daemon.until(&["run ended", "reader_stalled"]);
    daemon.signal(TERM);
    let log = daemon.exits(3);
    assert!(
        log.contains("1 answers did not reach their callers"),
        "{log}"
    );
    drop(stream);
}

#[tokio::test]
async fn a_drain_that_cancels_runs_and_tells_their_callers_is_a_success() {
    let (daemon, mut stream) = streaming(&["spin", "x"], &[]).await;
    daemon.signal(TERM);
    while stream.message().await.unwrap().is_some() {}
    let log = daemon.exits(0);
    assert!(
        log.contains("the drain grace is over; cancelling what still runs"),
        "{log}"
    );
}

#[tokio::test]
async fn a_drain_whose_runs_end_by_themselves_is_a_success() {
    let mut daemon = Process::start(false, &[]);
    let addr = daemon.serving();
    let mut client = connect(&addr).await;
    let spec = Some(kit(&["spin", "x"]).timeout(Duration::from_millis(300)));
    let mut stream = client
        .run_stream(RunStreamRequest { spec })
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap().unwrap();
    daemon.signal(INT);
    while stream.message().await.unwrap().is_some() {}
    daemon.exits(0);
}

/// Whether the daemon takes a token.
async fn takes(addr: &str, token: &str) -> bool {
    let mut client = connect(addr).await;
    let spec = Some(crate::harness::spec("(module (func (export \"_start\")))"));
    let mut request = tonic::Request::new(RunRequest { spec });
    let header = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", header);
    client.run(request).await.is_ok()
}

#[tokio::test]
async fn hup_reads_tokens_at_once_and_names_what_needs_a_restart() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("tokens"), tokens("before")).unwrap();
    let config = |more: &str| {
        let tokens = at("tokens");
        let text = format!("{more}\n[auth]\ntokens_file = {tokens:?}\n");
        std::fs::write(at("config.toml"), text).unwrap();
    };
    config("");
    let mut daemon = Process::start(false, &["--config", at("config.toml").to_str().unwrap()]);
    let addr = daemon.serving();
    assert!(takes(&addr, "before").await && !takes(&addr, "after").await);
    std::fs::write(at("tokens"), tokens("after")).unwrap();
    daemon.signal(HUP);
    daemon.until(&["INFO", "the configuration is as it was"]);
    assert!(takes(&addr, "after").await && !takes(&addr, "before").await);
    config("[admission]\nslots = 7\nqueue = 1024\n[policy]\nmax_timeout = \"61s\"\n");
    daemon.signal(HUP);
    let line = daemon.until(&["WARN", "needs a restart"]);
    assert!(
        line.contains("keys=\"admission.slots, policy.max_timeout\""),
        "{line}"
    );
    config("[admission]\nslots = \"many\"\n");
    daemon.signal(HUP);
    let line = daemon.until(&["ERROR", "what is in force stays in force"]);
    assert!(line.contains("admission.slots"), "{line}");
    assert!(takes(&addr, "after").await);
    daemon.signal(TERM);
    daemon.exits(0);
}

#[test]
fn hup_reads_certificates_and_keys_of_tokens_at_once() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let certify = || {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(at("cert"), own.cert.pem()).unwrap();
        std::fs::write(at("key"), own.signing_key.serialize_pem()).unwrap();
    };
    certify();
    let publish = |id: &str| {
        let set = serde_json::json!({ "keys": [{
            "kty": "EC",
            "crv": "P-256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
            "kid": id,
        }] });
        std::fs::write(at("jwks"), set.to_string()).unwrap();
    };
    publish("before");
    let set = [
        format!("tls.cert={}", at("cert").display()),
        format!("tls.key={}", at("key").display()),
        format!("auth.jwt.jwks={}", at("jwks").display()),
        "auth.jwt.issuer=https://issuer.example".to_owned(),
        "auth.jwt.audience=ringfence".to_owned(),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Process::start(false, &args);
    daemon.serving();
    certify();
    publish("after");
    daemon.signal(HUP);
    daemon.until(&["the configuration is as it was"]);
    for what in ["[tls]", "auth.jwt.jwks"] {
        let line = format!("read again what=\"{what}\"");
        assert!(daemon.told.contains(&line), "{}", daemon.told);
    }
    daemon.signal(TERM);
    daemon.exits(0);
}
