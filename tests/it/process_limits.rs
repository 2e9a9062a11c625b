//! Resource limits of the process: what is said of them at the start, and that whoever meets one later meets it alone.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use ringfence::api::proto::{Outcome, RunRequest, RunSpec};
use tempfile::TempDir;
use tonic::Code;

use crate::harness::{
    Client, PATIENCE, Ran, Refused, SpecExt, by_digest, connect, kit, kit_component, load, spec,
};
use crate::machine::open_folder;
use crate::process::{Served, ringfence};

const NOTHING: &str = "(module (func (export \"_start\")))";

/// What a daemon says and how it exits which a shell starts after `first`, and which is not to serve.
#[track_caller]
fn refused(first: &str) -> String {
    let output = Command::new("bash")
        .args(["-c", &format!("{first} && exec \"$0\" \"$@\"")])
        .arg(ringfence().get_program())
        .args(["serve", "--listen", "127.0.0.1:0"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{first}: {told}");
    assert!(!told.contains("panic"), "{told}");
    told
}

#[test]
fn a_limit_that_lets_nothing_run_is_named_with_what_is_needed() {
    for (first, name, needed) in [
        ("ulimit -n 20", "RLIMIT_NOFILE (ulimit -n) is 20", "64"),
        (
            "ulimit -s 64",
            "RLIMIT_STACK (ulimit -s) is 65536",
            "524288",
        ),
        (
            "ulimit -v 4000000",
            "RLIMIT_AS (ulimit -v) is 4096000000",
            "8589934592",
        ),
        (
            "ulimit -d 50000",
            "RLIMIT_DATA (ulimit -d) is 51200000",
            "bytes of memory",
        ),
    ] {
        let told = refused(first);
        assert!(told.contains(name) && told.contains(needed), "{told}");
    }
}

/// The log up to when it serves, and the daemon.
fn started(first: &str, args: &[&str]) -> (Served, String) {
    let path = TempDir::new().unwrap();
    let log = path.path().join("log");
    // It is in a file as well, since what is read of it to find the address is gone.
    let first = format!("{first} && exec 2> >(tee {} >&2)", log.display());
    let daemon = Served::limited_by("bash", &first, args);
    // It may come there a moment later.
    let start = Instant::now();
    loop {
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        if told.contains(" serving") {
            return (daemon, told);
        }
        assert!(start.elapsed() < PATIENCE, "{first}: {told}");
        std::thread::yield_now();
    }
}

#[test]
fn what_is_lower_than_the_configuration_needs_is_told() {
    for (first, words) in [
        (
            "ulimit -n 256",
            &[
                "WARN",
                "RLIMIT_NOFILE",
                "is 256",
                "server.max_connections = 1024",
            ][..],
        ),
        (
            "ulimit -f 2000",
            &["WARN", "RLIMIT_FSIZE", "compile.max_module"],
        ),
        (
            "ulimit -v 20000000",
            &["WARN", "RLIMIT_AS", "a pool of 320 slots"],
        ),
        (
            "ulimit -d 1000000",
            &["WARN", "RLIMIT_DATA", "engine.cache_budget"],
        ),
        (
            "ulimit -t 3600",
            &["WARN", "RLIMIT_CPU (ulimit -t) is 3600 s"],
        ),
        ("ulimit -l 0", &["INFO", "memlock=0"]),
        ("ulimit -s 2048", &["INFO", "stack=2097152"]),
        // A soft limit that is low is raised.
        ("ulimit -S -n 64", &["INFO", "nofile="]),
        ("ulimit -S -s 64", &["INFO", "stack="]),
    ] {
        let (_daemon, told) = started(first, &[]);
        let said = told
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)));
        assert!(said, "{first}: {told}");
        if first.contains("-S") {
            assert!(
                !told.contains("nofile=64 ") && !told.contains("stack=65536"),
                "{told}"
            );
            assert!(!told.contains("RLIMIT_NOFILE"), "{told}");
        }
    }
}

async fn run(client: &mut Client, spec: RunSpec) -> Result<Ran, Refused> {
    let request = RunRequest { spec: Some(spec) };
    match client.run(request).await {
        Ok(answer) => Ok(Ran::new(answer.into_inner())),
        Err(status) => Err(Refused::new(&status)),
    }
}

/// A guest that writes eight bytes far into a file of the directory that it is given, and exits with the error.
const FAR: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pwrite"
        (func $write (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "file")
    (data (i32.const 16) "\00\00\00\00\08\00\00\00")
    (func (export "_start")
        (if (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 4) (i32.const 1)
                (i64.const 0x44) (i64.const 0) (i32.const 0) (i32.const 32))
            (then (call $exit (i32.const 99))))
        (call $exit (call $write (i32.load (i32.const 32)) (i32.const 16) (i32.const 1)
            (i64.const 4000000) (i32.const 40)))))"#;

/// As text, larger than any file may be.
fn large() -> String {
    format!("{NOTHING}{}", " ".repeat(2 << 20))
}

/// `ulimit -f` and one upload of 2 MiB ended the daemon and everybody's runs.
#[tokio::test]
async fn a_file_that_may_not_grow_is_one_callers_error() {
    let data = TempDir::new().unwrap();
    let folder = TempDir::new().unwrap();
    let mount = format!(
        "policy.mounts=[{{ host = {:?}, access = \"write\" }}]",
        data.path()
    );
    let store = format!("store.url=file://{}", folder.path().display());
    for store in ["store.url=memory:", &store] {
        let set = ["--set", &mount, "--set", store];
        // 1 MiB.
        let daemon = Served::limited_by("bash", "ulimit -f 1024", &set);
        let mut client = connect(&daemon.addr).await;
        let loaded = client.load_module(load(large())).await;
        match store.contains("memory") {
            true => drop(loaded.unwrap()),
            false => {
                let told = Refused::new(&loaded.unwrap_err());
                let told = told.is(Code::ResourceExhausted, "STORE_FULL");
                assert!(told.message.contains("RLIMIT_FSIZE"), "{}", told.message);
            }
        }
        let file = Path::new("large.wat");
        let path = data.path().join(file);
        std::fs::write(&path, large()).unwrap();
        let loaded = ringfence()
            .args(["load", "--server", &daemon.addr])
            .arg(&path)
            .output()
            .unwrap();
        let why = String::from_utf8(loaded.stderr).unwrap();
        assert!(
            why.contains("STORE_FULL") && why.contains("RLIMIT_FSIZE"),
            "{why}"
        );
        // EFBIG is 22 there.
        let far = spec(FAR).mount(data.path(), "/d", false);
        run(&mut client, far).await.unwrap().exited(22);
        run(&mut client, spec(NOTHING)).await.unwrap().exited(0);
        let (code, log) = daemon.end();
        assert_eq!(code, 0, "{log}");
        assert!(!log.contains("panic"), "{log}");
    }
}

/// Many functions, so that what comes of them is larger than a file may be.
fn much_code() -> String {
    let body = "(i32.add (i32.mul (local.get 0) (i32.const 77)) (i32.load (local.get 0)))";
    let deep = (0..30).fold(body.to_owned(), |inner, n| {
        format!("(i32.xor (i32.const {n}) {inner})")
    });
    let function = format!("(func (param i32) (result i32) {deep})");
    format!(
        "(module (memory 1) {} (func (export \"_start\")))",
        function.repeat(900)
    )
}

#[tokio::test]
async fn code_that_may_not_grow_is_one_callers_error() {
    let daemon = Served::limited_by("bash", "ulimit -f 64", &[]);
    let mut client = connect(&daemon.addr).await;
    let told = run(&mut client, spec(much_code())).await.unwrap_err();
    let told = told.is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED");
    told.with("limit", "RLIMIT_FSIZE");
    run(&mut client, spec(NOTHING)).await.unwrap().exited(0);
    assert_eq!(daemon.end().0, 0);
}

/// Whoever holds all descriptors that connections may have holds up nobody's run for ever, and nothing spins.
#[tokio::test]
async fn descriptors_that_are_used_up_are_one_callers_error() {
    let daemon = Served::limited_by("bash", "ulimit -n 100", &[]);
    let mut client = connect(&daemon.addr).await;
    let digest = client
        .load_module(load(crate::guests::kit()))
        .await
        .unwrap();
    let digest = digest.into_inner().module.unwrap().digest;
    let hello = || by_digest(&digest).args(&["kit", "hello"]);
    let mut idle = Vec::new();
    for _ in 0..150 {
        idle.extend(std::net::TcpStream::connect(&daemon.addr));
    }
    let before = processor_time(&daemon);
    // Those that meet it are told so, all others run.
    for n in 0..20 {
        let new = format!("(module (func (export \"_start\")) (global i32 (i32.const {n})))");
        for spec in [hello(), spec(new), kit_component(&["hello"])] {
            if let Err(refused) = run(&mut client, spec).await {
                assert_eq!(refused.reason, "RUNTIME_UNAVAILABLE", "{}", refused.message);
                assert!(refused.retry);
            }
        }
    }
    run(&mut client, hello()).await.unwrap().exited(0);
    let spent = processor_time(&daemon) - before;
    assert!(spent < 3000, "{spent} hundredths of a second");
    drop(idle);
    // There is room again.
    let mut client = connect(&daemon.addr).await;
    run(
        &mut client,
        spec("(module (memory 2) (func (export \"_start\")))"),
    )
    .await
    .unwrap()
    .exited(0);
    let (code, log) = daemon.end();
    assert_eq!(code, 0, "{log}");
    assert!(
        !log.contains("panic") && !log.contains("internal failure"),
        "{log}"
    );
}

/// In hundredths of a second.
fn processor_time(daemon: &Served) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.child.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let mut fields = fields
        .split(' ')
        .skip(11)
        .map(|it| it.parse::<u64>().unwrap());
    fields.next().unwrap() + fields.next().unwrap()
}

/// Runs of all kinds, at once: each ends as it should or is told which limit it met.
async fn all_kinds(addr: &str, data: &Path, met: &str) {
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..24 {
        let mut client = connect(addr).await;
        let name = format!("/d/{n}");
        let new = format!("(module (func (export \"_start\")) (global i32 (i32.const {n})))");
        let spec = match n % 4 {
            0 => kit(&["hello"]),
            1 => kit(&["write", &name, "words"]).mount(data, "/d", false),
            2 => kit_component(&["write", &name, "words"]).mount(data, "/d", false),
            _ => spec(new),
        };
        calls.spawn(async move { run(&mut client, spec).await });
    }
    let mut ran = 0;
    while let Some(call) = calls.join_next().await {
        match call.unwrap() {
            Ok(run) => {
                assert_ne!(run.result.outcome(), Outcome::Unspecified);
                ran += 1;
            }
            Err(refused) => {
                assert_eq!(refused.reason, "RUNTIME_UNAVAILABLE", "{}", refused.message);
                assert!(refused.message.contains(met), "{}", refused.message);
            }
        }
    }
    assert!(ran > 0, "none ran");
}

#[tokio::test]
async fn threads_that_are_used_up_are_one_callers_error() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become a user that has no other processes");
        return;
    }
    let data = open_folder(0o777);
    let mount = format!(
        "policy.mounts=[{{ host = {:?}, access = \"write\" }}]",
        data.path()
    );
    // Users of this test's own, one for each daemon; what it needs to start, and next to nothing more.
    let user = 200_000 + 100 * (std::process::id() % 100_000);
    let cores = std::thread::available_parallelism().unwrap().get();
    let least = 2 * cores + 24;
    for more in [2, 6] {
        let become_user = format!(
            "setpriv --reuid {} --clear-groups --inh-caps=-all",
            user + u32::try_from(more).unwrap()
        );
        let first = format!("ulimit -u {}", least + more);
        let (first, args) = (first.as_str(), ["--set", &mount]);
        let daemon = Served::limited_by_user("bash", first, &become_user, &args);
        all_kinds(&daemon.addr, data.path(), "RLIMIT_NPROC").await;
        let mut client = connect(&daemon.addr).await;
        // What had the last thread may not be gone yet.
        let start = Instant::now();
        loop {
            match run(&mut client, spec(NOTHING)).await {
                Ok(ran) => break drop(ran.exited(0)),
                Err(refused) => {
                    assert_eq!(refused.reason, "RUNTIME_UNAVAILABLE");
                    assert!(start.elapsed() < PATIENCE, "{}", refused.message);
                }
            }
        }
        let (code, log) = daemon.end();
        assert_eq!(code, 0, "{log}");
        assert!(
            !log.contains("panic") && !log.contains("internal failure"),
            "{log}"
        );
    }
    let told = Command::new("setpriv")
        .args(["--reuid", &user.to_string(), "--clear-groups"])
        .args([
            "bash",
            "-c",
            "ulimit -u 8 && exec \"$0\" serve --listen 127.0.0.1:0",
        ])
        .arg(ringfence().get_program())
        .output()
        .unwrap();
    let (code, told) = (told.status.code(), String::from_utf8(told.stderr).unwrap());
    assert_eq!(code, Some(125), "{told}");
    assert!(
        told.contains("RLIMIT_NPROC") && !told.contains("panic"),
        "{told}"
    );
}

#[tokio::test]
async fn address_space_that_is_used_up_is_one_callers_error() {
    let data = TempDir::new().unwrap();
    let mount = format!(
        "policy.mounts=[{{ host = {:?}, access = \"write\" }}]",
        data.path()
    );
    let daemon = Served::limited_by("bash", "ulimit -v 10000000", &["--set", &mount]);
    all_kinds(&daemon.addr, data.path(), "RLIMIT_AS").await;
    let mut client = connect(&daemon.addr).await;
    run(&mut client, spec(NOTHING)).await.unwrap().exited(0);
    let (code, log) = daemon.end();
    assert_eq!(code, 0, "{log}");
    assert!(
        !log.contains("panic") && !log.contains("internal failure"),
        "{log}"
    );
}
