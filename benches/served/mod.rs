//! A daemon for a bench.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A daemon of its own process, with where it listens.
pub(crate) struct Served(pub(crate) Child, pub(crate) String);

impl Served {
    pub(crate) fn start(set: &[String]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(set.iter().flat_map(|set| ["--set", set]))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut addr, mut line) = (String::new(), String::new());
        while !line.contains(" serving") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it serves");
            if let Some((_, told)) = line.split_once("address=") {
                addr = told.trim().to_owned();
            }
        }
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self(child, addr)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
