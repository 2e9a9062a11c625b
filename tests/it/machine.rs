//! Other machines than this one, made of namespaces and users: what starts in them is the built binary.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use tempfile::TempDir;

use crate::guests;
use crate::harness::{PATIENCE, program};
use crate::process::{Served, ringfence};

/// The user and the group of the image, and a group of volumes.
pub(crate) const USER: u32 = 65_532;
pub(crate) const FS_GROUP: u32 = 2_000;

/// Whether what only root can make can be made; says so loudly where it cannot.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("\n*** SKIPPED: only root can become another user, or make another machine\n");
    }
    root
}

/// Whether `tool` is there; says so loudly where it is not.
pub(crate) fn has(tool: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {tool}")])
        .stdout(Stdio::null())
        .status();
    let found = found.is_ok_and(|it| it.success());
    if !found {
        eprintln!("\n*** SKIPPED: there is no {tool}\n");
    }
    found
}

/// A folder with `mode`, which is root's.
pub(crate) fn open_folder(mode: u32) -> TempDir {
    let dir = TempDir::new().unwrap();
    set(dir.path(), mode, 0, 0);
    dir
}

/// Gives a file or a folder its mode and its owners.
pub(crate) fn set(path: &Path, mode: u32, uid: u32, gid: u32) {
    chown(path, Some(uid), Some(gid)).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A machine: what happens on it before it becomes the program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    namespaces: Vec<&'static str>,
    script: Vec<String>,
    user: Option<String>,
}

impl Machine {
    /// With a namespace of its own of that kind, "--mount" or "--net".
    pub(crate) fn unshare(mut self, kind: &'static str) -> Self {
        self.namespaces.push(kind);
        self
    }

    /// On which that is done first, by root.
    pub(crate) fn first(mut self, script: impl Into<String>) -> Self {
        self.script.push(script.into());
        self
    }

    /// Where the program is that user, in these groups besides.
    pub(crate) fn user(mut self, uid: u32, gid: u32, groups: &[u32]) -> Self {
        let groups: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let groups = match groups.is_empty() {
            true => "--clear-groups".to_owned(),
            false => format!("--groups {}", groups.join(",")),
        };
        self.user = Some(format!("setpriv --reuid {uid} --regid {gid} {groups} --"));
        self
    }

    /// Whose file systems cannot be written, none of them.
    pub(crate) fn read_only(self) -> Self {
        self.unshare("--mount").first(
            "for m in $(awk '{print $5}' /proc/self/mountinfo); do \
             case $m in /proc*|/sys*) ;; *) mount -o remount,bind,ro $m 2>/dev/null || : ;; esac; done; \
             ! touch /tmp/written 2>/dev/null && ! touch /dev/shm/written 2>/dev/null",
        )
    }

    /// A command that becomes the program there.
    pub(crate) fn command(&self) -> Command {
        let user = self.user.as_deref().unwrap_or_default();
        // Opened by root: other users may not reach where it lies.
        let mut script = vec!["exec 9<\"$0\"".to_owned()];
        script.extend(self.script.iter().cloned());
        script.push(format!("exec {user} /proc/self/fd/9 \"$@\""));
        let script = script.join(" && ");
        let mut command = match self.namespaces.is_empty() {
            true => Command::new("sh"),
            false => {
                let mut command = Command::new("unshare");
                command.args(&self.namespaces).arg("sh");
                command
            }
        };
        command
            .args(["-c", &script])
            .arg(program())
            .current_dir(guests::root())
            .stdin(Stdio::null());
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("RINGFENCE_") || name.starts_with("SSL_CERT_") {
                command.env_remove(key);
            }
        }
        command
    }

    /// A daemon on it, which listens on 127.0.0.1.
    pub(crate) fn serve(&self, args: &[&str]) -> Served {
        Served::of(self.command(), args)
    }

    /// A daemon on it, which listens where `listen` says.
    pub(crate) fn serve_on(&self, listen: &[&str], args: &[&str]) -> Served {
        let listen = listen.iter().flat_map(|it| ["--listen", it]);
        let all: Vec<&str> = ["serve"]
            .into_iter()
            .chain(listen)
            .chain(args.iter().copied())
            .collect();
        Served::as_told(self.command(), &all)
    }

    /// What a daemon says that does not start.
    #[track_caller]
    pub(crate) fn refuses(&self, args: &[&str]) -> String {
        let listen = ["serve", "--listen", "127.0.0.1:0"];
        let output = self.command().args(listen).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

/// What a daemon says until it serves; then it is ended.
#[track_caller]
pub(crate) fn starts(mut command: Command) -> String {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    while !told.contains(" serving\n") {
        assert!(log.read_line(&mut told).unwrap() > 0, "{told}");
    }
    child.kill().unwrap();
    child.wait().unwrap();
    told
}

/// Runs the example on `served` by the command line, on the daemon's own machine.
#[track_caller]
pub(crate) fn runs_hello(served: &Served, addr: &str) {
    let example = guests::root().join("examples/hello.wat");
    let example = example.to_str().unwrap();
    let output = beside(served, &["run", "--server", addr, example], b"");
    assert!(output.status.success(), "{addr}: {output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said, "Hello from inside the fence.\n", "{addr}");
}

/// A command in the network of `served`, among its files, with its input.
pub(crate) fn beside(served: &Served, args: &[&str], input: &[u8]) -> Output {
    let own = ringfence();
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &served.child.id().to_string()])
        .args(["--net", "--mount", "--"])
        .arg(own.get_program())
        .args(args);
    let child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    fed(child.unwrap(), input)
}

/// What `child` says once it has been given `input`.
pub(crate) fn fed(mut child: Child, input: &[u8]) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    // One that does not read it all is no failure of the test's.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Waits until something comes to be, by asking.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} never came to be");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
