//! Other sandboxes: programs that execute what they are given in a library, and print what it took.
//! `benches/peers/languages` has them.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::Measured;
use crate::figures::Figures;

/// The exit code of a peer that does not have the language.
const NO_SUCH_LANGUAGE: i32 = 3;

/// A peer: its name, and the shell's command that starts it.
pub(crate) struct Peer {
    pub(crate) name: String,
    command: String,
}

impl Peer {
    /// Reads `NAME=COMMAND`, in which the command may have arguments.
    pub(crate) fn parse(told: &str) -> Self {
        let (name, command) = told
            .split_once('=')
            .filter(|(name, command)| !name.is_empty() && !command.is_empty())
            .expect("--peer takes NAME=COMMAND");
        Self {
            name: name.to_owned(),
            command: command.to_owned(),
        }
    }

    /// Has the peer execute a program, which must write what the daemon's program wrote. Returns
    /// nothing where the peer does not have the language.
    pub(crate) fn measure(&self, program: &Measured, expected: &str) -> Option<Figures> {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("{} \"$@\"", self.command))
            .args(["peer", "measure", "--language", program.language])
            .args(["--program", program.name])
            .arg(format!("--expect={expected}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut code = child.stdin.take().unwrap();
        // A peer without the language may have ended, and its exit code says so.
        let _ = code.write_all(program.code.as_bytes());
        drop(code);
        let output = child.wait_with_output().unwrap();
        if output.status.code() == Some(NO_SUCH_LANGUAGE) {
            return None;
        }
        let (name, told) = (&self.name, String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{name}: {}: {told}", output.status);
        Some(serde_json::from_str(&told).expect("the peer prints one object of JSON"))
    }
}
