//! Where lines go: the audit to standard output and other streams, as systemd, Docker and a shell hand them over; and
//! configurations that come by a pipe.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use serde_json::Value;

use crate::machine::{FS_GROUP, Machine, USER, fed, is_root, open_folder, runs_hello, set};
use crate::process::{Served, ringfence};

/// Until a line of the audit says that a run of a caller ended; what of it was read.
#[track_caller]
fn audited(from: impl Read) -> String {
    let mut lines = BufReader::new(from);
    let mut line = String::new();
    loop {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended");
        let Ok(told) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if told["event"] == "end" && told["tenant"] == "default" {
            assert_eq!(told["outcome"], "exited");
            return line;
        }
    }
}

fn audit_to(path: &str) -> [String; 2] {
    ["--set".to_owned(), format!("telemetry.audit_file={path}")]
}

/// The same daemon, as root that becomes another user, and as another user from the start.
fn users() -> [(Machine, Vec<&'static str>); 2] {
    let becomes = vec!["--set", "hardening.user=65532:65532"];
    [
        (Machine::default(), becomes),
        (Machine::default().user(USER, USER, &[]), Vec::new()),
    ]
}

/// Starts a daemon whose standard output is `stdout` and whose audit goes to `path`, and has it run something.
fn serve(machine: &Machine, path: &str, more: &[&str], stdout: impl Into<Stdio>) -> Served {
    let mut command = machine.command();
    command.stdout(stdout);
    let audit = audit_to(path);
    let audit: Vec<&str> = audit.iter().map(String::as_str).collect();
    let daemon = Served::of(command, &[&audit[..], more].concat());
    runs_hello(&daemon, &daemon.addr);
    daemon
}

#[test]
fn the_audit_goes_to_standard_output_whatever_that_is() {
    if !is_root() {
        return;
    }
    // As it is called, and by a link of an image's, as servers of others have them.
    let image = open_folder(0o755);
    symlink("/dev/stdout", image.path().join("audit.log")).unwrap();
    let linked = image.path().join("audit.log").display().to_string();
    let paths = ["/dev/stdout", "/proc/self/fd/1", "/dev/fd/1", &linked];
    for ((machine, more), paths) in users().into_iter().zip([&paths[..], &paths[..1]]) {
        for path in paths {
            // A pipe, as Docker and a shell have it.
            let (read, write) = std::io::pipe().unwrap();
            let daemon = serve(&machine, path, &more, write);
            audited(read);
            assert_eq!(daemon.end().0, 0, "{path}");
        }
        // A socket, as systemd has it, which no path opens.
        let (read, write) = UnixStream::pair().unwrap();
        let daemon = serve(&machine, "/dev/stdout", &more, OwnedFd::from(write));
        audited(read);
        assert_eq!(daemon.end().0, 0);
        // A file that only root may write.
        let root_only = open_folder(0o700);
        let file = root_only.path().join("out");
        let out = std::fs::File::create(&file).unwrap();
        let daemon = serve(&machine, "/dev/stdout", &more, out);
        assert_eq!(daemon.end().0, 0);
        audited(std::fs::File::open(&file).unwrap());
    }
}

#[test]
fn the_audit_goes_to_another_descriptor_also_where_it_is_a_socket() {
    if !is_root() {
        return;
    }
    let (read, write) = UnixStream::pair().unwrap();
    for (machine, more) in users() {
        // The shell hands its standard output on as the third.
        let machine = machine.first("exec 3>&1 1>/dev/null");
        let ours = write.try_clone().unwrap();
        let daemon = serve(&machine, "/proc/self/fd/3", &more, OwnedFd::from(ours));
        audited(&read);
        assert_eq!(daemon.end().0, 0);
    }
}

#[test]
fn the_audit_and_the_log_share_standard_error_line_by_line() {
    if !is_root() {
        return;
    }
    for (machine, more) in users() {
        let more = [
            &more[..],
            &[
                "--set",
                "telemetry.log_format=json",
                "--set",
                "telemetry.log_level=debug",
            ],
        ]
        .concat();
        let mut daemon = serve(&machine, "/dev/stderr", &more, Stdio::null());
        let log = daemon.drain_log();
        for _ in 0..20 {
            runs_hello(&daemon, &daemon.addr);
        }
        assert_eq!(daemon.end().0, 0);
        let log = log.join().unwrap();
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
            .collect();
        let ends = lines.iter().filter(|it| it["event"] == "end");
        assert!(ends.count() >= 20);
    }
}

/// As systemd has it: one socket for both.
#[test]
fn the_audit_and_the_log_share_a_socket_line_by_line() {
    if !is_root() {
        return;
    }
    for (machine, more) in users() {
        let (read, write) = UnixStream::pair().unwrap();
        let mut command = machine.command();
        let mut child = command
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--set",
                "telemetry.log_format=json",
            ])
            .args(audit_to("/dev/stdout"))
            .args(&more)
            .stdout(OwnedFd::from(write.try_clone().unwrap()))
            .stderr(OwnedFd::from(write))
            .spawn()
            .unwrap();
        // What the command holds of the other end is not the daemon's.
        drop(command);
        let mut addr = None;
        let (mut ended, mut drained) = (0, false);
        for line in BufReader::new(read).lines() {
            let line = line.unwrap();
            let told: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            let message = told["fields"]["message"].as_str().unwrap_or_default();
            match (message, &addr) {
                ("listening", _) => addr = told["fields"]["address"].as_str().map(str::to_owned),
                ("serving", Some(addr)) => {
                    let run = ["run", "--server", addr, "examples/hello.wat"];
                    assert!(ringfence().args(run).status().unwrap().success());
                }
                _ => {}
            }
            ended += usize::from(told["event"] == "end" && told["tenant"] == "default");
            if ended == 1 && !drained {
                drained = true;
                let pid = child.id().to_string();
                let kill = std::process::Command::new("kill")
                    .args(["-TERM", &pid])
                    .status();
                assert!(kill.unwrap().success());
            }
        }
        assert!(child.wait().unwrap().success());
        assert_eq!(ended, 1);
    }
}

#[test]
fn the_audit_goes_to_a_fifo_that_is_read_later_or_never() {
    if !is_root() {
        return;
    }
    for (machine, more) in users() {
        let dir = open_folder(0o755);
        let fifo = dir.path().join("audit");
        let path = fifo.display().to_string();
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        set(&fifo, 0o660, 0, USER);
        let daemon = serve(&machine, &path, &more, Stdio::null());
        audited(std::fs::File::open(&fifo).unwrap());
        assert_eq!(daemon.end().0, 0);
    }
}

#[test]
fn the_audit_goes_to_a_device_or_to_a_volume() {
    if !is_root() {
        return;
    }
    for (machine, more) in users() {
        let daemon = serve(&machine, "/dev/null", &more, Stdio::null());
        assert_eq!(daemon.end().0, 0);
    }
    let volume = open_folder(0o755);
    set(volume.path(), 0o2775, 0, FS_GROUP);
    let elsewhere = open_folder(0o777);
    symlink(elsewhere.path().join("audit"), volume.path().join("linked")).unwrap();
    std::fs::write(elsewhere.path().join("audit"), "").unwrap();
    set(&elsewhere.path().join("audit"), 0o640, USER, USER);
    let pod = Machine::default().user(USER, USER, &[FS_GROUP]);
    for name in ["audit", "linked"] {
        let path = volume.path().join(name);
        let daemon = serve(&pod, path.to_str().unwrap(), &[], Stdio::null());
        assert_eq!(daemon.end().0, 0);
        audited(std::fs::File::open(&path).unwrap());
    }
}

#[test]
fn an_audit_that_can_go_nowhere_is_refused_by_its_path() {
    if !is_root() {
        return;
    }
    let dir = open_folder(0o755);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let file = dir.path().join("file");
    for (path, why) in [
        (dir.path(), "it is a folder"),
        (socket.as_path(), "it is a socket"),
        (file.as_path(), "Permission denied"),
        (std::path::Path::new("/nowhere/audit"), "No such file"),
        (std::path::Path::new("/proc/self/fd/77"), "No such file"),
    ] {
        for (machine, more) in users() {
            let audit = audit_to(path.to_str().unwrap());
            let audit: Vec<&str> = audit.iter().map(String::as_str).collect();
            let told = machine.refuses(&[&audit[..], &more].concat());
            let named = format!("telemetry.audit_file: {}: ", path.display());
            assert!(told.contains(&named) && told.contains(why), "{told}");
        }
    }
}

/// What `config check` says of a configuration that comes as `--config path`.
fn checks(path: &str, script: &str, input: &[u8]) -> (bool, String) {
    let program = ringfence();
    let mut command = std::process::Command::new("bash");
    let script = format!("{script} exec \"$0\" config show --config {path}");
    command.args(["-c", &script]).arg(program.get_program());
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = fed(command.spawn().unwrap(), input);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_configuration_comes_by_a_pipe() {
    let text = b"[admission]\nslots = 37\n";
    for (path, script) in [
        ("/dev/stdin", ""),
        ("/proc/self/fd/0", ""),
        ("/dev/fd/5", "exec 5<&0;"),
        ("<(cat)", "exec 7<&0;"),
    ] {
        let path = path.replace("cat", "cat <&7");
        let (valid, said) = checks(&path, script, text);
        assert!(valid && said.contains("slots = 37"), "{path}: {said}");
    }
    let dir = tempfile::TempDir::new().unwrap();
    let fifo = dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let (from, to) = (fifo.display().to_string(), fifo.clone());
    let writes = std::thread::spawn(move || {
        let mut to = std::fs::OpenOptions::new().write(true).open(to).unwrap();
        to.write_all(text).unwrap();
    });
    let (valid, said) = checks(&from, "", b"");
    assert!(valid && said.contains("slots = 37"), "{said}");
    writes.join().unwrap();
    // Nothing at all is what the defaults say.
    assert!(checks("/dev/null", "", b"").0);
}

#[test]
fn a_daemon_has_its_configuration_by_a_pipe() {
    let text = "listen = [\"127.0.0.1:0\"]\n[admission]\nslots = 37\n";
    let mut command = ringfence();
    let (read, mut write) = std::io::pipe().unwrap();
    write.write_all(text.as_bytes()).unwrap();
    drop(write);
    command.stdin(read);
    let daemon = Served::as_told(command, &["serve", "--config", "/dev/stdin"]);
    let output = ringfence()
        .args(["health", "--output", "json", "--server", &daemon.addr])
        .output()
        .unwrap();
    let health: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(health["run_capacity"], 37);
    assert_eq!(daemon.end().0, 0);
}

#[test]
fn a_configuration_that_cannot_be_one_is_refused_by_the_name_it_was_given() {
    let dir = tempfile::TempDir::new().unwrap();
    let folder = dir.path().display().to_string();
    for (path, input, why) in [
        (folder.as_str(), &b""[..], "Is a directory"),
        ("/nowhere/at/all.toml", b"", "No such file"),
        ("/dev/zero", b"", "at most 4194304 bytes"),
        (
            "/dev/stdin",
            b"listen = [\xff]",
            "UTF-8, but line 1 is not UTF-8",
        ),
        (
            "/dev/stdin",
            b"admission.slots = \"many\"",
            "admission.slots",
        ),
        ("/dev/stdin", b"admission.slots = = 3", "it is not TOML"),
    ] {
        let (valid, said) = checks(path, "", input);
        assert!(!valid && said.contains(why), "{path}: {said}");
        assert!(said.contains(path), "{path}: {said}");
    }
}
