//! What the daemon gives up, and that all of it still works then.

use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use ringfence::api::proto::{HealthRequest, HealthResponse, RunRequest, RunSpec};
use tempfile::TempDir;

use crate::guests::{kit as kit_bytes, kit_component};
use crate::harness::{PATIENCE, Ran, SpecExt, by_digest, connect, load, spec};
use crate::process::{Served, ringfence};

async fn health(daemon: &Served) -> HealthResponse {
    let mut client = connect(&daemon.addr).await;
    client.health(HealthRequest {}).await.unwrap().into_inner()
}

fn status(of: &Path, line: &str) -> String {
    let text = std::fs::read_to_string(of.join("status")).unwrap();
    let told = text.lines().find_map(|it| it.strip_prefix(line));
    told.unwrap_or_else(|| panic!("no {line} in {text}"))
        .trim()
        .to_owned()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A folder that any user may use.
fn open_folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

#[tokio::test]
async fn what_is_in_force_is_in_health_and_in_the_kernel() {
    let daemon = Served::start(&[]);
    let told = health(&daemon).await.hardening;
    let walls: Vec<&str> = told.split('+').collect();
    let process = format!("/proc/{}", daemon.child.id());
    let process = Path::new(&process);
    assert_eq!(walls.contains(&"user"), !is_root(), "{told}");
    assert!(
        walls.contains(&"no_new_privs") && walls.contains(&"capabilities"),
        "{told}"
    );
    assert_eq!(status(process, "NoNewPrivs:"), "1");
    for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(
            u64::from_str_radix(&status(process, set), 16),
            Ok(0),
            "{set}"
        );
    }
    let limits = std::fs::read_to_string(process.join("limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    if !walls.contains(&"seccomp") {
        eprintln!("SKIPPED: this host has no seccomp");
        return;
    }
    let mut confined = 0;
    for thread in std::fs::read_dir(process.join("task")).unwrap() {
        let thread = thread.unwrap().path();
        let name = std::fs::read_to_string(thread.join("comm")).unwrap();
        let name = name.trim();
        let serves = name != "ringfence" || thread.file_name() != process.file_name();
        if serves && (name == "ringfence" || name.starts_with("guest")) {
            assert_eq!(status(&thread, "Seccomp:"), "2", "{name}");
            confined += 1;
        }
    }
    assert!(confined >= 4, "{confined} threads");
}

#[tokio::test]
async fn off_is_off() {
    let daemon = Served::start(&["--set", "hardening.mode=off"]);
    assert_eq!(health(&daemon).await.hardening, "none");
    let process = format!("/proc/{}", daemon.child.id());
    assert_eq!(status(Path::new(&process), "NoNewPrivs:"), "0");
}

#[test]
fn require_refuses_what_is_not_all_of_it() {
    if !is_root() {
        eprintln!("SKIPPED: only root lacks something that can be counted on");
        return;
    }
    let refused = ringfence()
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "hardening.mode=require",
        ])
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(125));
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("hardening.user"), "{why}");
}

/// Does everything that a daemon does, with what the configuration names and nothing else.
async fn do_everything(daemon: &Served, data: &Path, outside: &Path) {
    let mut client = connect(&daemon.addr).await;
    let mut run = async |spec: RunSpec| {
        let answer = client.run(RunRequest { spec: Some(spec) }).await.unwrap();
        Ran::new(answer.into_inner())
    };
    for wasm in [kit_bytes(), kit_component()] {
        let kit = |args: &[&str]| {
            let args = [&["kit"], args].concat();
            spec(wasm.clone()).args(&args).mount(data, "/data", false)
        };
        run(kit(&["hello"])).await.exited(0);
        run(kit(&["write", "/data/file", "words"])).await.exited(0);
        run(kit(&["append", "/data/file", " more"])).await.exited(0);
        let read = run(kit(&["read", "/data/file"])).await.exited(0);
        assert_eq!(read.out(), "words more");
        let listed = run(kit(&["list", "/data"])).await.exited(0);
        assert_eq!(listed.out(), "file\n");
        run(kit(&["sleep", "5"])).await.exited(0);
        run(kit(&["spin"]).timeout(Duration::from_millis(50)))
            .await
            .ended(ringfence::api::proto::Outcome::TimedOut);
    }
    // Over 1 MiB, by the way of the spool or the store.
    let large = outside.join("large.wat");
    let filler = " ".repeat(3 << 20);
    std::fs::write(
        &large,
        format!("(module (func (export \"_start\"))){filler}"),
    )
    .unwrap();
    let loaded = ringfence()
        .args(["load", "--server", &daemon.addr])
        .arg(&large)
        .output()
        .unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    let digest = String::from_utf8(loaded.stdout).unwrap();
    run(by_digest(digest.trim())).await.exited(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_it_works_under_all_of_it() {
    if !is_root() {
        eprintln!("SKIPPED: another user can only be become by root");
        return;
    }
    let (own, data, outside) = (open_folder(), open_folder(), open_folder());
    let at = |name: &str| own.path().join(name).display().to_string();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let socket = format!("unix:{}", at("socket"));
    let admin_port = crate::monitoring::free_port();
    let admin = [
        format!("127.0.0.1:{admin_port}"),
        format!("unix:{}", at("admin")),
    ];
    let set = [
        format!("admin.listen={admin:?}"),
        "hardening.mode=require".to_owned(),
        "hardening.user=65534:65534".to_owned(),
        format!("store.url=file://{}", at("store")),
        format!("artifacts.dir={}", at("code")),
        format!("artifacts.key_file={}", at("key")),
        format!("telemetry.audit_file={}", at("audit")),
        format!(
            "policy.mounts=[{{ host = {:?}, access = \"write\" }}]",
            data.path()
        ),
        format!("policy.network=[{{ host = \"127.0.0.1\", ports = [{port}] }}]"),
    ];
    let mut args: Vec<&str> = vec!["--listen", &socket];
    args.extend(set.iter().flat_map(|it| ["--set", it.as_str()]));
    let mut daemon = Served::start(&args);
    // The last that was told is the socket.
    assert_eq!(daemon.addr, socket);
    let walls = health(&daemon).await.hardening;
    assert!(
        walls.starts_with("user+no_new_privs+capabilities+landlock"),
        "{walls}"
    );
    assert!(walls.ends_with("seccomp"), "{walls}");
    let process = format!("/proc/{}", daemon.child.id());
    assert_eq!(
        status(Path::new(&process), "Uid:"),
        "65534\t65534\t65534\t65534"
    );
    do_everything(&daemon, data.path(), outside.path()).await;
    for addr in &admin {
        for path in ["/livez", "/readyz", "/metrics", "/debug/config"] {
            let answer = crate::admin::ask(addr, "GET", path, &[("host", "localhost")]).await;
            assert_eq!(answer.status, 200, "{addr} {path}: {answer:?}");
        }
    }
    // A socket to where it is granted.
    let mut client = connect(&daemon.addr).await;
    let accepting = tokio::spawn(async move { listener.accept().await.is_ok() });
    let connect_to = format!("127.0.0.1:{port}");
    let spec = spec(kit_component())
        .args(&["kit", "connect", &connect_to])
        .security(|it| it.enable_network = true);
    let answer = client.run(RunRequest { spec: Some(spec) }).await.unwrap();
    Ran::new(answer.into_inner()).exited(0);
    assert!(accepting.await.unwrap());
    // And a datagram, whose socket is bound first.
    let receiver = tokio::net::UdpSocket::bind(&connect_to).await.unwrap();
    let spec = crate::harness::spec(kit_component())
        .args(&["kit", "send", &connect_to])
        .security(|it| it.enable_network = true);
    let answer = client.run(RunRequest { spec: Some(spec) }).await.unwrap();
    Ran::new(answer.into_inner()).exited(0);
    let mut datagram = [0; 16];
    let received = tokio::time::timeout(PATIENCE, receiver.recv(&mut datagram)).await;
    assert_eq!(&datagram[..received.unwrap().unwrap()], b"sent");
    // Again, with what is there from before.
    let log = daemon.drain_log();
    drop(client);
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
    let log = log.join().unwrap();
    assert!(!log.contains("ERROR"), "{log}");
    let again = Served::start(&args);
    let mut client = connect(&again.addr).await;
    let loaded = client
        .load_module(load(kit_bytes()))
        .await
        .unwrap()
        .into_inner();
    let digest = loaded.module.unwrap().digest;
    let request = RunRequest {
        spec: Some(by_digest(&digest).args(&["kit", "hello"])),
    };
    Ran::new(client.run(request).await.unwrap().into_inner()).exited(0);
}

/// Whether a daemon takes a token, which is written to `shown`.
fn takes(daemon: &Served, shown: &Path, token: &str) -> bool {
    std::fs::write(shown, token).unwrap();
    let output = ringfence()
        .args(["ps", "--server", &daemon.addr, "--token-file"])
        .arg(shown)
        .output();
    output.unwrap().status.success()
}

/// What is not configured cannot be reached, by whatever name.
#[tokio::test]
async fn a_link_that_leads_out_of_what_is_configured_leads_nowhere() {
    for (mode, follows) in [("auto", false), ("off", true)] {
        let (inside, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let line = |token: &str| {
            let hash = ringfence::model::request::Digest::of(token.as_bytes());
            format!("default {hash}\n")
        };
        let tokens = inside.path().join("tokens");
        std::fs::write(&tokens, line("first")).unwrap();
        let mode = format!("hardening.mode={mode}");
        let set = format!("auth.tokens_file={}", tokens.display());
        // The folder for uploads is the daemon's too, and by default holds all of these.
        let spool = format!("store.spool={}", inside.path().display());
        let set = [set.as_str(), &mode, &spool, "auth.open_health=true"];
        let args: Vec<&str> = set.iter().flat_map(|it| ["--set", *it]).collect();
        let mut daemon = Served::start(&args);
        if !follows && !health(&daemon).await.hardening.contains("landlock") {
            eprintln!("SKIPPED: this host has no Landlock");
            continue;
        }
        // A file that is swapped beside is followed, one elsewhere is not.
        let elsewhere = outside.path().join("tokens");
        std::fs::write(&elsewhere, line("second")).unwrap();
        std::fs::remove_file(&tokens).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &tokens).unwrap();
        let shown = outside.path().join("shown");
        if follows {
            let start = Instant::now();
            while !takes(&daemon, &shown, "second") {
                assert!(start.elapsed() < PATIENCE, "it is never read again");
            }
            continue;
        }
        // It says so, once it has looked. What it cannot read has no token in force.
        let mut line = String::new();
        while !line.contains("nothing of it is in force") {
            line.clear();
            assert!(daemon.log.read_line(&mut line).unwrap() > 0);
        }
        assert!(line.contains(elsewhere.to_str().unwrap()), "{line}");
        assert!(line.contains("hardening.read"), "{line}");
        assert!(!takes(&daemon, &shown, "first") && !takes(&daemon, &shown, "second"));
    }
}
