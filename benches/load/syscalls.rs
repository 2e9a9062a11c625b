//! System calls of a process while something happens, by perf: the kernel counts them as it goes,
//! and nobody is slowed down. Under strace threads stop so often that they take turns in another
//! way, and make twice as many.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Those that a server makes, by name.
const NAMES: [&str; 18] = [
    "clock_gettime",
    "clock_nanosleep",
    "epoll_pwait",
    "epoll_wait",
    "futex",
    "getrandom",
    "getrusage",
    "ioctl",
    "madvise",
    "mprotect",
    "munmap",
    "read",
    "recvfrom",
    "sched_yield",
    "sendmsg",
    "sendto",
    "write",
    "writev",
];
const ALL: &str = "raw_syscalls:sys_enter";
const ONE: &str = "syscalls:sys_enter_";

/// How often each system call was made, and by no name how often one was.
pub(crate) type Calls = BTreeMap<String, u64>;

fn perf() -> Command {
    let mut command = Command::new("perf");
    let ones = NAMES.iter().map(|name| format!(",{ONE}{name}"));
    let events = ALL.to_owned() + &ones.collect::<String>();
    command.args(["stat", "--field-separator=,", "--event", &events]);
    command
}

/// Whether the kernel counts them for this user.
pub(crate) fn can_count() -> bool {
    let told = perf().arg("true").output();
    told.is_ok_and(|it| {
        let text = String::from_utf8_lossy(&it.stderr);
        it.status.success() && !text.contains("<not supported>")
    })
}

/// Counts the system calls that all threads of a process make until `during` is over.
pub(crate) async fn count(process: u32, during: impl Future<Output = ()>) -> Calls {
    let into = tempfile::NamedTempFile::new().unwrap();
    // It counts for as long as the command runs that it starts: once that echoes something, it
    // does.
    let mut perf = perf()
        .arg("--output")
        .arg(into.path())
        .arg(format!("--pid={process}"))
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = perf.stdin.take().unwrap();
    stdin.write_all(b"?").unwrap();
    let mut echoed = [0];
    let stdout = perf.stdout.as_mut().unwrap();
    stdout.read_exact(&mut echoed).expect("perf counts");
    during.await;
    drop(stdin);
    assert!(perf.wait().unwrap().success(), "perf tells what it counted");
    let told = std::fs::read_to_string(into.path()).unwrap();
    told.lines().filter_map(counted).collect()
}

/// A line of what perf tells: the count, a unit that there is none of, the event, and more.
fn counted(line: &str) -> Option<(String, u64)> {
    let mut fields = line.split(',');
    let count = fields.next()?.parse().ok()?;
    let event = fields.nth(1)?;
    let name = match event {
        ALL => "",
        one => one.strip_prefix(ONE)?,
    };
    Some((name.to_owned(), count))
}
