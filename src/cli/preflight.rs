//! Checks of what a host must allow before anything else is worth trying. Each returns an error
//! that names the cause, where the libraries would panic.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::SystemTime;

/// Stack size in bytes of a thread that is started only to show that it can be.
const SMALL_STACK: usize = 64 << 10;
/// The values in bytes that `RUST_MIN_STACK` may have: below them threads overflow, above them
/// there is no room for their stacks.
const STACKS: std::ops::RangeInclusive<u64> = 512 << 10..=64 << 20;

/// Checks the clock, the source of random numbers, and the environment.
///
/// # Errors
/// Returns what is wrong, and what is allowed.
pub(super) fn check() -> Result<(), String> {
    check_clock(SystemTime::now())?;
    check_random()?;
    check_stack(std::env::var_os("RUST_MIN_STACK").as_deref())
}

/// Checks that the clock is not before 1970: times are sent and compared as the time since then,
/// and certificates, tokens and ids have no others.
fn check_clock(now: SystemTime) -> Result<(), String> {
    match now.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => Ok(()),
        Err(before) => Err(format!(
            "this host's clock is set to {} s before 1970-01-01T00:00:00Z: set it to the current time",
            before.duration().as_secs()
        )),
    }
}

/// Checks that getrandom(2) works. Ids are random, TLS needs random numbers, and a confined daemon
/// has no other source.
fn check_random() -> Result<(), String> {
    let mut bytes = [0; 16];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    got.map(drop)
        .map_err(|error| format!("this host does not allow getrandom(2): {error}"))
}

/// Checks `RUST_MIN_STACK`, the one variable by which the standard library lets others choose the
/// stack size of all threads.
fn check_stack(said: Option<&std::ffi::OsStr>) -> Result<(), String> {
    let Some(said) = said else { return Ok(()) };
    // The standard library ignores a value that is no number.
    match said.to_str().and_then(|it| it.parse::<u64>().ok()) {
        Some(bytes) if !STACKS.contains(&bytes) => Err(format!(
            "the environment variable RUST_MIN_STACK is {bytes}: set it to a number of bytes from {} to {}, or unset it",
            STACKS.start(),
            STACKS.end()
        )),
        Some(_) | None => Ok(()),
    }
}

/// Checks that `count` more threads can be started, and that the socket pair that delivers signals
/// to them can be opened.
///
/// # Errors
/// Returns what the host refuses.
pub(super) fn check_threads(count: u64) -> Result<(), String> {
    let pair = UnixStream::pair();
    drop(pair.map_err(|error| format!("this host does not allow socketpair(2): {error}"))?);
    let mut held = Vec::new();
    for there in 0..count {
        let (sender, receiver) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().stack_size(SMALL_STACK);
        let started = thread.spawn(move || receiver.recv());
        let started = started.map_err(|error| no_thread(&error, there, count))?;
        held.push((sender, started));
    }
    // The threads have to be gone before the next ones are started.
    for (sender, thread) in held {
        drop(sender);
        let _ = thread.join();
    }
    Ok(())
}

fn no_thread(error: &io::Error, there: u64, count: u64) -> String {
    let cause = match error.raw_os_error() {
        Some(libc::EAGAIN) => {
            "allow more to this user (RLIMIT_NPROC, ulimit -u), to this cgroup (pids.max) or on this host, or more memory for their stacks (RLIMIT_AS, ulimit -v)"
        }
        Some(libc::EPERM) => {
            "something refuses clone3(2), such as an old seccomp profile of a container: it must allow the call, or answer ENOSYS"
        }
        Some(_) | None => "the host refuses them",
    };
    format!(
        "this host starts only {there} of the {count} threads that are needed: {error}: {cause}"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clock_before_1970_is_told() {
        let epoch = SystemTime::UNIX_EPOCH;
        check_clock(epoch).unwrap();
        check_clock(epoch + Duration::from_secs(1 << 32)).unwrap();
        let told = check_clock(epoch - Duration::from_secs(86_400)).unwrap_err();
        assert!(told.contains("86400 s before 1970"), "{told}");
    }

    #[test]
    fn stacks_that_no_thread_can_use_are_told() {
        let check = |said: &str| check_stack(Some(said.as_ref()));
        check_stack(None).unwrap();
        for fine in ["", "words", "1048576"] {
            check(fine).unwrap();
        }
        for bad in ["0", "1", "4611686018427387904"] {
            assert!(check(bad).unwrap_err().contains("RUST_MIN_STACK"), "{bad}");
        }
    }
}
