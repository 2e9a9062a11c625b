//! Starts under conditions that hosts and operators make: none of them is a panic, each is an error that names its cause, or
//! it works. And with a log of JSON everything that a daemon says is JSON.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use tempfile::TempDir;

use crate::process::{Served, ringfence};

/// The variable that says to [`under_seccomp`] which calls are refused, and how.
const REFUSED: &str = "RF_TEST_REFUSED";

fn serve() -> Command {
    let mut command = ringfence();
    command.args(["serve", "--listen", "127.0.0.1:0"]);
    command
}

/// What a daemon says that is not to serve.
#[track_caller]
fn refused(mut command: Command) -> String {
    let output = command.stdout(Stdio::null()).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{}: {told}", output.status);
    assert!(!told.contains("panic"), "{told}");
    told
}

/// How a daemon ends, and all that it says, which is asked to end as soon as it serves.
fn ends(mut command: Command) -> (ExitStatus, String) {
    let (read, write) = std::io::pipe().unwrap();
    let mut child = command.stderr(write).spawn().unwrap();
    drop(command);
    let (mut told, mut read, mut asked) = (Vec::new(), read, false);
    let mut piece = [0; 4096];
    loop {
        let n = read.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        told.extend_from_slice(&piece[..n]);
        let text = String::from_utf8_lossy(&told);
        if !asked && (text.contains(" serving") || text.contains("\"serving\"")) {
            asked = true;
            let kill = Command::new("kill").arg(child.id().to_string()).status();
            assert!(kill.unwrap().success());
        }
    }
    let told = String::from_utf8(told).unwrap();
    (child.wait().unwrap(), told)
}

#[track_caller]
fn serves(command: Command) -> String {
    let (status, told) = ends(command);
    assert_eq!(status.code(), Some(0), "{told}");
    assert!(told.contains("serving"), "{told}");
    assert!(!told.contains("panic"), "{told}");
    told
}

/// No test by itself: what becomes a daemon of which the kernel refuses some calls. A process that is refused them cannot
/// start another; so it is this one that becomes it.
#[test]
#[ignore = "becomes another program"]
fn under_seccomp() {
    let Ok(refused) = std::env::var(REFUSED) else {
        return;
    };
    let (calls, errno) = refused.split_once('=').unwrap();
    let calls = calls.split(',').map(|it| it.parse::<i64>().unwrap());
    let rules: BTreeMap<i64, Vec<_>> = calls.map(|call| (call, Vec::new())).collect();
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let denied = SeccompAction::Errno(errno.parse().unwrap());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, denied, arch).unwrap();
    let filter: BpfProgram = filter.try_into().unwrap();
    let mut daemon = serve();
    daemon.env_remove(REFUSED);
    seccompiler::apply_filter(&filter).unwrap();
    panic!("{}", daemon.exec());
}

fn refusing(calls: &[libc::c_long], errno: i32) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let calls: Vec<String> = calls.iter().map(ToString::to_string).collect();
    command
        .args(["--exact", "hostile_start::under_seccomp", "--ignored"])
        .args(["--nocapture", "--test-threads=1"])
        .env(REFUSED, format!("{}={errno}", calls.join(",")))
        .stdin(Stdio::null());
    command
}

#[test]
fn a_host_that_refuses_threads_is_told() {
    let told = refused(refusing(&[libc::SYS_clone3], libc::EPERM));
    assert!(told.contains("clone3(2)"), "{told}");
    // This is how a kernel without it answers.
    serves(refusing(&[libc::SYS_clone3], libc::ENOSYS));
    let both = [libc::SYS_clone3, libc::SYS_clone];
    for errno in [libc::EPERM, libc::ENOSYS, libc::EAGAIN, libc::ENOMEM] {
        let told = refused(refusing(&both, errno));
        assert!(told.contains("threads that are needed"), "{errno}: {told}");
    }
}

#[test]
fn a_host_that_refuses_socket_pairs_is_told() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EMFILE] {
        let told = refused(refusing(&[libc::SYS_socketpair], errno));
        assert!(told.contains("socketpair(2)"), "{errno}: {told}");
    }
}

#[test]
fn a_host_that_refuses_any_other_call_is_met_without_a_panic() {
    let calls = [
        libc::SYS_epoll_create1,
        libc::SYS_eventfd2,
        libc::SYS_memfd_create,
        libc::SYS_getrandom,
        libc::SYS_sched_getaffinity,
        libc::SYS_prlimit64,
        libc::SYS_prctl,
        libc::SYS_setpriority,
        libc::SYS_membarrier,
        libc::SYS_statx,
        libc::SYS_bind,
    ];
    for call in calls {
        let (status, told) = ends(refusing(&[call], libc::EPERM));
        assert!(!told.contains("panic"), "{call}: {told}");
        assert!(
            matches!(status.code(), Some(0 | 125)),
            "{call}: {status}: {told}"
        );
        let line = told.lines().last().unwrap_or_default();
        assert!(!line.is_empty(), "{call}");
    }
}

#[test]
fn variables_of_libraries_panic_nobody() {
    let fine = [
        ("TOKIO_WORKER_THREADS", "0"),
        ("TOKIO_WORKER_THREADS", "many"),
        ("TOKIO_WORKER_THREADS", ""),
        ("RAYON_NUM_THREADS", "0"),
        ("RUST_BACKTRACE", "x"),
        ("RUST_MIN_STACK", "words"),
        ("COLUMNS", "0"),
    ];
    for (name, value) in fine {
        let mut command = serve();
        command.env(name, value);
        serves(command);
    }
    let mut command = serve();
    command.env("TOKIO_WORKER_THREADS", OsStr::from_bytes(b"\xff"));
    serves(command);
    for value in ["1", "4611686018427387904"] {
        let mut command = serve();
        command.env("RUST_MIN_STACK", value);
        let told = refused(command);
        assert!(
            told.contains("RUST_MIN_STACK") && told.contains(value),
            "{told}"
        );
    }
    // Commands that are no daemon have the same library.
    let output = ringfence()
        .args(["health", "--server", "127.0.0.1:1"])
        .env("TOKIO_WORKER_THREADS", "0")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!told.contains("panic"), "{told}");
}

/// A library that has the clock of every program that loads it say a time before 1970.
fn clock_of_1969() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("libclock1969.so");
        let status = Command::new("rustc")
            .current_dir(crate::guests::root())
            .args([
                "--edition=2024",
                "--crate-type=cdylib",
                "-Cpanic=abort",
                "-o",
            ])
            .arg(&out)
            .arg("tests/guests/clock1969.rs")
            .status();
        assert!(status.unwrap().success());
        out
    };
    BUILT.get_or_init(build).clone()
}

#[test]
fn a_clock_before_1970_is_told() {
    let mut command = serve();
    command.env("LD_PRELOAD", clock_of_1969());
    let told = refused(command);
    assert!(told.contains("1970"), "{told}");
    let mut command = serve();
    command
        .env("LD_PRELOAD", clock_of_1969())
        .args(["--set", "telemetry.log_format=json"]);
    let told = refused(command);
    assert!(json(&told)[0].contains("1970"), "{told}");
    let output = ringfence()
        .args(["health", "--server", "127.0.0.1:1"])
        .env("LD_PRELOAD", clock_of_1969())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("1970") && !told.contains("panic"), "{told}");
}

#[test]
fn what_is_no_text_is_told() {
    let bytes = OsStr::from_bytes(b"\xff");
    for arg in ["--set", "--listen", "--config"] {
        let mut command = serve();
        command.arg(arg).arg(bytes);
        refused(command);
    }
    let mut command = serve();
    command.env("PATH", bytes).env("ANYTHING", bytes);
    command.env(OsStr::from_bytes(b"\xffNAME"), "x");
    serves(command);
}

#[test]
fn a_place_that_is_gone_is_no_matter() {
    // Standard streams that are closed, a folder that is gone, no home, no place for temporary files.
    let script = "mkdir $0 && cd $0 && rmdir $0 && exec \"$@\" <&- >&-";
    let dir = TempDir::new().unwrap();
    let daemon = serve();
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(dir.path().join("gone"))
        .arg(daemon.get_program())
        .args(daemon.get_args())
        .env_remove("HOME")
        .env("TMPDIR", "/nowhere/at/all");
    serves(command);
    // Nobody reads what it says: it serves, and ends when it is asked to.
    let daemon = serve();
    let mut command = Command::new("sh");
    let mut child = command
        .args(["-c", "exec \"$0\" \"$@\" <&- >&- 2>&-"])
        .arg(daemon.get_program())
        .args(daemon.get_args())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let start = std::time::Instant::now();
    let path = format!("/proc/{}/task", child.id());
    // Threads of guests are the last that it starts.
    while !std::fs::read_dir(&path).unwrap().flatten().any(|it| {
        let name = std::fs::read_to_string(it.path().join("comm")).unwrap_or_default();
        name.starts_with("guest-0")
    }) {
        assert!(start.elapsed() < crate::harness::PATIENCE);
        std::thread::yield_now();
    }
    let kill = Command::new("kill").arg(child.id().to_string()).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// The messages of lines that are JSON objects, all of them.
#[track_caller]
fn json(told: &str) -> Vec<String> {
    let message = |line: &str| {
        let value: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(
            value["timestamp"].is_string() && value["level"].is_string(),
            "{line}"
        );
        value["fields"].to_string()
    };
    let all: Vec<String> = told.lines().map(message).collect();
    assert!(!all.is_empty());
    all
}

const JSON: [&str; 2] = ["--set", "telemetry.log_format=json"];

#[test]
fn with_a_log_of_json_all_that_it_says_is_json() {
    let mut command = serve();
    command.args(JSON);
    let told = json(&serves(command));
    assert!(told.iter().any(|it| it.contains("serving")), "{told:?}");
    let mut command = serve();
    command.env("RINGFENCE_TELEMETRY__LOG_FORMAT", "json");
    json(&serves(command));
}

#[test]
fn errors_at_the_start_are_json_too() {
    let holds = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holds.local_addr().unwrap().to_string();
    let listen = format!("listen=[{taken:?}]");
    let user = "hardening.user=70000:70000:70000";
    let cases: [(&[&str], &str); 7] = [
        (&["--set", "admission.slots=0"], "admission.slots"),
        (&["--set", "no.such.key=1"], "no"),
        (&["--set", user], "hardening.user"),
        (&["--no-such-flag"], "--no-such-flag"),
        (
            &["--config", "/nowhere/at/all.toml"],
            "/nowhere/at/all.toml",
        ),
        (&["--set", "auth.tokens_file=/nowhere"], "tokens_file"),
        (
            &["--set", "telemetry.audit_file=/nowhere/at/all"],
            "audit_file",
        ),
    ];
    for (args, word) in cases {
        let mut command = serve();
        command.args(JSON).args(args);
        let told = json(&refused(command));
        assert!(told.last().unwrap().contains(word), "{word}: {told:?}");
        // By the variable as by the flag.
        let mut command = serve();
        command
            .env("RINGFENCE_TELEMETRY__LOG_FORMAT", "json")
            .args(args);
        json(&refused(command));
    }
    let mut command = ringfence();
    command.args(["serve", "--set", &listen]).args(JSON);
    let told = json(&refused(command));
    assert!(told.last().unwrap().contains(&taken), "{told:?}");
}

#[test]
fn the_form_is_known_though_the_file_is_wrong() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("config.toml");
    for text in [
        "[telemetry]\nlog_format = \"json\"\n[admission]\nslots = \"x\"\n",
        "[telemetry]\nlog_format = \"json\"\n[[[\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let mut command = serve();
        command.arg("--config").arg(&path);
        json(&refused(command));
        // A flag goes before it.
        let mut command = serve();
        command.arg("--config").arg(&path);
        command.args(["--set", "telemetry.log_format=text"]);
        assert!(refused(command).starts_with("ringfence: "));
    }
}

#[test]
fn signals_are_told_as_json_too() {
    let mut daemon = Served::start(&JSON);
    daemon.signal("-USR1");
    daemon.signal("-HUP");
    let log = daemon.drain_log();
    daemon.signal("-QUIT");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(131));
    json(&log.join().unwrap());
}
