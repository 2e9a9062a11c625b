//! What compile children take, looked at from outside while they are there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What one compile took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    /// The most that was resident, in KiB.
    pub resident: u64,
    /// The address space that it came to have over what it started with, in KiB: what `compile.memory` bounds.
    pub space: u64,
    pub processor: Duration,
}

/// Looks at the children of a daemon.
pub(crate) struct Watch {
    done: Arc<AtomicBool>,
    looks: JoinHandle<Taken>,
}

struct Seen {
    /// In KiB, when it was confined and idle.
    space_before: Option<u64>,
    taken: Taken,
}

impl Watch {
    /// From when the child that waits for its module is ready.
    pub(crate) fn start(daemon: u32) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let mut seen = HashMap::new();
        let start = Instant::now();
        while !seen.values().any(|seen: &Seen| seen.space_before.is_some())
            && start.elapsed() < Duration::from_secs(5)
        {
            look(daemon, &mut seen);
            pause();
        }
        let stop = Arc::clone(&done);
        let looks = std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                look(daemon, &mut seen);
                pause();
            }
            // The one that compiled took most; those that wait take next to nothing.
            let taken = seen.into_values().map(|seen| seen.taken);
            taken.max_by_key(|taken| taken.resident).unwrap_or_default()
        });
        Self { done, looks }
    }

    pub(crate) fn end(self) -> Taken {
        self.done.store(true, Ordering::Relaxed);
        self.looks.join().unwrap()
    }
}

/// Between two looks: what is missed of a compile is its last two milliseconds.
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

fn look(daemon: u32, seen: &mut HashMap<u32, Seen>) {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{daemon}/task")) else {
        return;
    };
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let child = child.parse().unwrap();
            // It may end between any two of these.
            if let Some((status, processor)) = told(child) {
                add(seen, child, &status, processor);
            }
        }
    }
}

fn told(child: u32) -> Option<(String, Duration)> {
    let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
    // User and system time, in hundredths of a second, are the 14th and 15th word, of which the second may have spaces.
    let (_, words) = stat.rsplit_once(')')?;
    let ticks = words.split_whitespace().skip(11).take(2);
    let ticks = ticks.flat_map(str::parse::<u64>).sum::<u64>();
    (line(&status, "VmHWM") > 0).then_some((status, Duration::from_millis(ticks * 10)))
}

fn add(seen: &mut HashMap<u32, Seen>, child: u32, status: &str, processor: Duration) {
    let seen = seen.entry(child).or_insert(Seen {
        space_before: None,
        taken: Taken::default(),
    });
    // The filter is the last that it puts on itself.
    if seen.space_before.is_none() && line(status, "Seccomp") == 2 {
        seen.space_before = Some(line(status, "VmSize"));
    }
    let before = seen.space_before.unwrap_or_else(|| line(status, "VmPeak"));
    seen.taken = Taken {
        resident: line(status, "VmHWM"),
        space: line(status, "VmPeak").saturating_sub(before),
        processor,
    };
}

/// A number of `/proc/<pid>/status`.
fn line(status: &str, name: &str) -> u64 {
    let told = status.lines().find_map(|it| it.strip_prefix(name));
    told.and_then(|told| told.strip_prefix(':'))
        .and_then(|told| told.split_whitespace().next())
        .and_then(|told| told.parse().ok())
        .unwrap_or(0)
}
