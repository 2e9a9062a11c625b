//! A daemon for a bench.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A daemon of its own process, with where it listens.
pub(crate) struct Served(pub(crate) Child, pub(crate) String);

impl Served {
    pub(crate) fn start(set: &[String]) -> Self {
        Self::with(set, &[])
    }

    /// With variables of the environment too.
    pub(crate) fn with(set: &[String], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ringfence"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(set.iter().flat_map(|set| ["--set", set]))
            .envs(env.iter().copied())
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

    /// Processor time that the daemon has used so far, of all its threads.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        // The name, which stands in brackets, may have spaces.
        let (_, rest) = stat.rsplit_once(')').unwrap();
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks = ticks.map(|it| it.parse::<u64>().unwrap()).sum::<u64>();
        // A hundred a second, on every architecture that we have.
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
