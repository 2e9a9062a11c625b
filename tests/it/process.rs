//! The built binary as processes of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use assert_cmd::cargo::cargo_bin;

use crate::guests;

/// A command of the binary, without this machine's settings for it.
pub(crate) fn ringfence() -> Command {
    without_settings(Command::new(cargo_bin!("ringfence")))
}

/// A command of `program` with signals that do what they do by default: whoever started the tests in the background may
/// have had some ignored.
pub(crate) fn interruptible(program: impl AsRef<OsStr>) -> Command {
    let mut command = without_settings(Command::new("env"));
    command.arg("--default-signal").arg(program);
    command
}

fn without_settings(mut command: Command) -> Command {
    command.current_dir(guests::root()).stdin(Stdio::null());
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("RINGFENCE_") {
            command.env_remove(key);
        }
    }
    command
}

/// A daemon of its own process.
pub(crate) struct Served {
    pub child: Child,
    pub addr: String,
    pub log: BufReader<std::process::ChildStderr>,
}

impl Served {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::with(args, &[])
    }

    /// With `env` in its environment.
    pub(crate) fn with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = ringfence();
        command.envs(env.iter().copied());
        Self::of(command, args)
    }

    /// Of a shell that runs `first`, such as `ulimit`, before it becomes the daemon.
    pub(crate) fn limited(first: &str, args: &[&str]) -> Self {
        Self::limited_by("sh", first, args)
    }

    /// Of a shell of that name, which may know more limits.
    pub(crate) fn limited_by(shell: &str, first: &str, args: &[&str]) -> Self {
        Self::limited_by_user(shell, first, "", args)
    }

    /// Of a shell that becomes the daemon by a command that becomes another user.
    pub(crate) fn limited_by_user(
        shell: &str,
        first: &str,
        become_user: &str,
        args: &[&str],
    ) -> Self {
        let daemon = ringfence();
        let mut command = Command::new(shell);
        command
            .current_dir(guests::root())
            .stdin(Stdio::null())
            .args([
                "-c",
                &format!("{first} && exec {become_user} \"$0\" \"$@\""),
            ])
            .arg(daemon.get_program());
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("RINGFENCE_") {
                command.env_remove(key);
            }
        }
        Self::of(command, args)
    }

    /// Of a command that becomes the daemon.
    pub(crate) fn of(command: Command, args: &[&str]) -> Self {
        let listen = ["serve", "--listen", "127.0.0.1:0"];
        Self::as_told(command, &[&listen, args].concat())
    }

    /// Of a command that becomes what `args` say, which is a daemon.
    pub(crate) fn as_told(mut command: Command, args: &[&str]) -> Self {
        let mut child = command.args(args).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut addr = String::new();
        let mut line = String::new();
        while !line.contains(" serving") && !line.contains("\"serving\"") {
            line.clear();
            assert!(
                log.read_line(&mut line).unwrap() > 0,
                "it ended before it served"
            );
            for key in ["address=", "\"address\":\""] {
                if let Some((_, told)) = line.split_once(key) {
                    addr = told.trim().split('"').next().unwrap_or_default().to_owned();
                }
            }
        }
        Self { child, addr, log }
    }

    /// Reads the log from now on, so that none of it is dropped.
    pub(crate) fn drain_log(&mut self) -> std::thread::JoinHandle<String> {
        let empty = BufReader::new(self.child.stderr.take().unwrap_or_else(|| {
            let (read, _) = std::io::pipe().unwrap();
            std::process::ChildStderr::from(std::os::fd::OwnedFd::from(read))
        }));
        let mut log = std::mem::replace(&mut self.log, empty);
        std::thread::spawn(move || {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            text
        })
    }

    /// A line of its `/proc/<pid>/status`, in KiB.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let told = status.lines().find_map(|it| it.strip_prefix(line));
        told.and_then(|told| told.trim_start_matches(':').split_whitespace().next())
            .and_then(|kib| kib.parse().ok())
            .unwrap_or_else(|| panic!("no {line} in {status}"))
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    pub(crate) fn end(mut self) -> (i32, String) {
        self.signal("-TERM");
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code().unwrap_or(-1), rest)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
