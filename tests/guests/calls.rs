//! One program with large habits: `calls HABIT [ARGS...]`, for what a single host call of each
//! interface takes. Built for wasm32-wasip1 and wasm32-wasip2 by the test run; calls of the
//! interface itself are made without the standard library.

use std::io::{Read, Write};
use std::process::exit;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize| args.get(i).map(String::as_str).unwrap_or_default();
    let number = |i: usize| arg(i).parse::<usize>().expect("a number");
    match arg(1) {
        "read" => tell(&std::fs::read(arg(2)).unwrap_or_else(fail)),
        "save" => {
            std::fs::write(arg(2), pattern(number(3))).unwrap_or_else(fail);
            println!("saved");
        }
        "input" => {
            let mut input = Vec::new();
            std::io::stdin().read_to_end(&mut input).unwrap_or_else(fail);
            tell(&input);
        }
        "gulp" => {
            let mut input = vec![0; number(2)];
            let read = std::io::stdin().read(&mut input).unwrap_or_else(fail);
            tell(&input[..read]);
        }
        "print" => print(arg(2) == "stderr", arg(3), number(4)),
        "random" => {
            for _ in 0..number(3) {
                raw::random(number(2));
            }
            println!("random");
        }
        "open" => open(arg(2), number(3)),
        "reopen" => {
            for _ in 0..number(3) {
                std::fs::read(arg(2)).unwrap_or_else(fail);
            }
            println!("{} times", number(3));
        }
        "path" => path(arg(2), number(3)),
        #[cfg(target_env = "p2")]
        "timers" => raw::timers(number(2)),
        #[cfg(target_env = "p2")]
        "insecure" => raw::insecure(number(2)),
        #[cfg(target_env = "p2")]
        "zeroes" => {
            for _ in 0..arg(3).parse().unwrap_or(1) {
                raw::zeroes(number(2));
            }
        }
        #[cfg(target_env = "p2")]
        "splice" => raw::splice(number(2)),
        #[cfg(target_env = "p1")]
        "poll" => raw::poll(number(2)),
        #[cfg(target_env = "p1")]
        "moved" => raw::moved(arg(2), number(3)),
        other => {
            eprintln!("no habit {other:?}");
            exit(64);
        }
    }
}

fn fail<T>(error: std::io::Error) -> T {
    eprintln!("{error}");
    exit(1);
}

/// Bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (i % 251) as u8;
    }
    bytes
}

/// Says how many bytes there are, and how many of them are not where they belong.
fn tell(bytes: &[u8]) {
    let wrong = bytes
        .iter()
        .enumerate()
        .filter(|(i, byte)| **byte != (*i % 251) as u8)
        .count();
    println!("{} {wrong}", bytes.len());
}

fn print(stderr: bool, how: &str, len: usize) {
    let bytes = pattern(len);
    if how == "loop" {
        let written = if stderr {
            std::io::stderr().write_all(&bytes)
        } else {
            std::io::stdout().write_all(&bytes)
        };
        written.unwrap_or_else(fail);
        std::io::stdout().flush().unwrap_or_else(fail);
    } else {
        raw::print(stderr, how, &bytes);
    }
}

/// Opens a file until that fails, then closes one and opens it again.
fn open(path: &str, most: usize) {
    let mut files = Vec::new();
    let error = loop {
        if files.len() == most {
            println!("{most} opened");
            return;
        }
        match std::fs::File::open(path) {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    println!("{} opened, then {}", files.len(), error.raw_os_error().unwrap_or_default());
    files.pop();
    files.push(std::fs::File::open(path).unwrap_or_else(fail));
    let full = std::fs::File::open(path).is_err();
    drop(files);
    let again = std::fs::read(path).is_ok();
    println!("full {full}, again {again}");
}

/// Uses a path that is too long in every way there is.
fn path(dir: &str, len: usize) {
    let long = format!("{dir}/{}", "a".repeat(len));
    let code = |result: std::io::Result<()>| match result {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(-1),
    };
    let codes = [
        code(std::fs::File::open(&long).map(drop)),
        code(std::fs::metadata(&long).map(drop)),
        code(std::fs::remove_file(&long)),
        code(std::fs::remove_dir(&long)),
        code(std::fs::create_dir(&long)),
        code(std::fs::rename(&long, format!("{dir}/b"))),
        code(std::fs::hard_link(&long, format!("{dir}/b"))),
        code(std::fs::read_link(&long).map(drop)),
    ];
    println!("{codes:?}");
}

#[cfg(target_env = "p1")]
mod raw {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn fd_write(fd: i32, iovs: *const Iovec, count: i32, written: *mut u32) -> i32;
        fn random_get(buf: *mut u8, len: usize) -> i32;
        fn poll_oneoff(subs: *const u8, events: *mut u8, count: i32, out: *mut u32) -> i32;
        fn fd_renumber(from: i32, to: i32) -> i32;
        fn fd_close(fd: i32) -> i32;
    }

    #[repr(C)]
    struct Iovec(*const u8, usize);

    /// One call for all, in one buffer or in three, the first of which is empty; whatever it says
    /// is ignored.
    pub fn print(stderr: bool, how: &str, bytes: &[u8]) {
        let fd = if stderr { 2 } else { 1 };
        let (first, rest) = bytes.split_at(bytes.len() / 3);
        let iovecs = match how {
            "once" => vec![Iovec(bytes.as_ptr(), bytes.len())],
            _ => vec![
                Iovec(bytes.as_ptr(), 0),
                Iovec(first.as_ptr(), first.len()),
                Iovec(rest.as_ptr(), rest.len()),
            ],
        };
        let mut written = 0;
        unsafe { fd_write(fd, iovecs.as_ptr(), iovecs.len() as i32, &mut written) };
    }

    pub fn random(len: usize) {
        let mut bytes = vec![0_u8; len];
        assert_eq!(unsafe { random_get(bytes.as_mut_ptr(), len) }, 0);
        super::check_random(&bytes);
    }

    /// Waits for many timers at once.
    pub fn poll(count: usize) {
        let mut subs = vec![0_u8; 48 * count];
        for sub in subs.chunks_mut(48) {
            sub[16] = 1;
            sub[24] = 1;
        }
        let mut events = vec![0_u8; 32 * count];
        let mut ready = 0;
        let errno =
            unsafe { poll_oneoff(subs.as_ptr(), events.as_mut_ptr(), count as i32, &mut ready) };
        println!("{errno} {}", ready > 0);
    }

    /// Makes a file standard output, prints to it, and closes both.
    pub fn moved(path: &str, len: usize) {
        use std::os::fd::IntoRawFd;
        let file = std::fs::File::create(path).unwrap_or_else(super::fail);
        assert_eq!(unsafe { fd_renumber(file.into_raw_fd(), 1) }, 0);
        print(false, "once", &super::pattern(len));
        assert_eq!(unsafe { fd_close(1) }, 0);
        eprintln!("moved");
    }
}

#[cfg(target_env = "p2")]
mod raw {
    #[link(wasm_import_module = "wasi:io/streams@0.2.4")]
    unsafe extern "C" {
        #[link_name = "[method]output-stream.check-write"]
        fn check_write(stream: u32, ret: *mut Answer);
        #[link_name = "[method]output-stream.write"]
        fn write(stream: u32, bytes: *const u8, len: usize, ret: *mut Answer);
        #[link_name = "[method]output-stream.blocking-write-and-flush"]
        fn write_and_flush(stream: u32, bytes: *const u8, len: usize, ret: *mut Answer);
        #[link_name = "[method]output-stream.blocking-write-zeroes-and-flush"]
        fn write_zeroes(stream: u32, len: u64, ret: *mut Answer);
        #[link_name = "[method]output-stream.blocking-splice"]
        fn blocking_splice(stream: u32, from: u32, len: u64, ret: *mut Answer);
    }
    #[link(wasm_import_module = "wasi:cli/stdin@0.2.4")]
    unsafe extern "C" {
        #[link_name = "get-stdin"]
        fn get_stdin() -> u32;
    }
    #[link(wasm_import_module = "wasi:cli/stdout@0.2.4")]
    unsafe extern "C" {
        #[link_name = "get-stdout"]
        fn get_stdout() -> u32;
    }
    #[link(wasm_import_module = "wasi:cli/stderr@0.2.4")]
    unsafe extern "C" {
        #[link_name = "get-stderr"]
        fn get_stderr() -> u32;
    }
    #[link(wasm_import_module = "wasi:random/random@0.2.4")]
    unsafe extern "C" {
        #[link_name = "get-random-bytes"]
        fn get_random(len: u64, ret: *mut List);
    }
    #[link(wasm_import_module = "wasi:random/insecure@0.2.4")]
    unsafe extern "C" {
        #[link_name = "get-insecure-random-bytes"]
        fn get_insecure(len: u64, ret: *mut List);
    }
    #[link(wasm_import_module = "wasi:clocks/monotonic-clock@0.2.4")]
    unsafe extern "C" {
        #[link_name = "subscribe-duration"]
        fn subscribe(nanoseconds: u64) -> u32;
    }
    #[link(wasm_import_module = "wasi:io/poll@0.2.4")]
    unsafe extern "C" {
        #[link_name = "poll"]
        fn poll(list: *const u32, len: usize, ret: *mut List);
    }

    #[repr(C, align(8))]
    struct Answer {
        error: u64,
        value: u64,
    }

    #[repr(C)]
    struct List(*const u8, usize);

    /// Writes once as much as may be written, and ignores whether that was all; or as the
    /// interface's own loop does.
    pub fn print(stderr: bool, how: &str, bytes: &[u8]) {
        let mut answer = Answer { error: 0, value: 0 };
        let stream = unsafe { if stderr { get_stderr() } else { get_stdout() } };
        match how {
            "once" => loop {
                unsafe { check_write(stream, &mut answer) };
                // As libc does, which waits then.
                if answer.error as u8 == 0 && answer.value > 0 {
                    let now = bytes.len().min(answer.value as usize);
                    unsafe { write(stream, bytes.as_ptr(), now, &mut answer) };
                    return;
                }
            },
            // More than the interface asks a host to take.
            "flush" => unsafe {
                write_and_flush(stream, bytes.as_ptr(), bytes.len(), &mut answer);
            },
            _ => {
                for piece in bytes.chunks(4096) {
                    unsafe { write_and_flush(stream, piece.as_ptr(), piece.len(), &mut answer) };
                }
            }
        }
    }

    pub fn zeroes(len: usize) {
        let mut answer = Answer { error: 0, value: 0 };
        unsafe { write_zeroes(get_stdout(), len as u64, &mut answer) };
    }

    /// Moves all input to the output.
    pub fn splice(most: usize) {
        let mut answer = Answer { error: 0, value: 0 };
        let (to, from) = unsafe { (get_stdout(), get_stdin()) };
        while answer.error as u8 == 0 {
            unsafe { blocking_splice(to, from, most as u64, &mut answer) };
        }
    }

    pub fn random(len: usize) {
        let mut list = List(std::ptr::null(), 0);
        unsafe { get_random(len as u64, &mut list) };
        check(&list, len);
    }

    pub fn insecure(len: usize) {
        let mut list = List(std::ptr::null(), 0);
        unsafe { get_insecure(len as u64, &mut list) };
        check(&list, len);
        println!("random");
    }

    fn check(list: &List, len: usize) {
        assert_eq!(list.1, len);
        if len > 0 {
            // What the host had allocated here.
            let bytes = unsafe { Vec::from_raw_parts(list.0.cast_mut(), len, len) };
            super::check_random(&bytes);
        }
    }

    /// Waits for many timers, one after the other as they come.
    pub fn timers(count: usize) {
        let mut timers: Vec<u32> = (0..count).map(|_| unsafe { subscribe(1_000_000) }).collect();
        let mut done = 0;
        while done < count {
            let mut list = List(std::ptr::null(), 0);
            unsafe { poll(timers.as_ptr(), timers.len(), &mut list) };
            assert!(list.1 > 0);
            done += list.1;
            timers.truncate(count - done.min(count));
        }
        println!("{count} timers");
    }
}

/// Whether there are no long runs of zeroes.
fn check_random(bytes: &[u8]) {
    for piece in bytes.chunks(64).filter(|piece| piece.len() == 64) {
        assert!(piece.iter().any(|byte| *byte != 0), "not random");
    }
}
