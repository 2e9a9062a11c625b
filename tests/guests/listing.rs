//! Lists directories in the ways that programs do: `listing HOW DIR [ARGS...]`. Built for
//! wasm32-wasip1 and wasm32-wasip2 by the test run.

use std::collections::BTreeSet;
use std::fs::ReadDir;
use std::process::exit;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize| args.get(i).map(String::as_str).unwrap_or_default();
    let number = |i: usize| arg(i).parse::<usize>().expect("a number");
    match arg(1) {
        "count" => count(arg(2)),
        "names" => names(arg(2)),
        "repeat" => repeat(arg(2), number(3)),
        "remove" => remove(arg(2)),
        "interleave" => interleave(arg(2)),
        "hold" => hold(arg(2), number(3)),
        "again" => again(arg(2), number(3)),
        #[cfg(target_env = "p2")]
        "streams" => component::streams(number(3)),
        #[cfg(target_env = "p1")]
        "cookies" => preview1::cookies(arg(2)),
        #[cfg(target_env = "p1")]
        "serials" => preview1::serials(arg(2)),
        #[cfg(target_env = "p1")]
        "descriptors" => preview1::descriptors(arg(2)),
        #[cfg(target_env = "p1")]
        "restart" => preview1::restart(arg(2), number(3)),
        other => {
            eprintln!("no way {other:?}");
            exit(64);
        }
    }
}

fn fail<T>(error: std::io::Error) -> T {
    eprintln!("{error}");
    exit(1);
}

fn open(dir: &str) -> ReadDir {
    std::fs::read_dir(dir).unwrap_or_else(fail)
}

fn name(entry: std::io::Result<std::fs::DirEntry>) -> String {
    let name = entry.unwrap_or_else(fail).file_name();
    name.into_string().expect("UTF-8")
}

/// All names of one listing, each once.
fn listed(dir: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in open(dir) {
        let name = name(entry);
        assert!(names.insert(name.clone()), "{name} is listed twice");
    }
    names
}

/// Counts files that are named "file-<i>.txt", each once.
fn count(dir: &str) {
    let mut seen = Vec::new();
    let mut count = 0;
    for entry in open(dir) {
        let name = name(entry);
        let number = name.strip_prefix("file-").and_then(|it| it.strip_suffix(".txt"));
        let number: usize = number.expect("a name of ours").parse().expect("a number");
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        assert!(!std::mem::replace(&mut seen[number], true), "{name} is listed twice");
        count += 1;
    }
    println!("{count}");
}

fn names(dir: &str) {
    for entry in open(dir) {
        let entry = entry.unwrap_or_else(fail);
        let kind = entry.file_type().unwrap_or_else(fail);
        let letter = match () {
            () if kind.is_dir() => 'd',
            () if kind.is_symlink() => 'l',
            () if kind.is_file() => 'f',
            () => '?',
        };
        println!("{letter} {}", entry.file_name().to_str().expect("UTF-8"));
    }
}

/// Tells how many names beginning with "stay" each of several listings had.
fn repeat(dir: &str, times: usize) {
    for _ in 0..times {
        let names = listed(dir);
        println!("{}", names.iter().filter(|name| name.starts_with("stay")).count());
    }
}

/// Removes each file when it is read.
fn remove(dir: &str) {
    let mut removed = 0;
    for entry in open(dir) {
        std::fs::remove_file(format!("{dir}/{}", name(entry))).unwrap_or_else(fail);
        removed += 1;
    }
    println!("{removed}");
}

/// Reads two listings of one directory by turns.
fn interleave(dir: &str) {
    let (mut one, mut two) = (open(dir), open(dir));
    let (mut first, mut second) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let (a, b) = (one.next(), two.next());
        if a.is_none() && b.is_none() {
            break;
        }
        first.extend(a.map(name));
        second.extend(b.map(name));
    }
    assert_eq!(first, second);
    println!("{}", first.len());
}

/// Begins listings and holds them until one fails, several times.
fn hold(dir: &str, times: usize) {
    for _ in 0..times {
        let mut held = Vec::new();
        let error = loop {
            match std::fs::read_dir(dir).and_then(|mut it| it.next().transpose().map(|_| it)) {
                Ok(listing) => held.push(listing),
                Err(error) => break error,
            }
        };
        println!("{} {:?}", held.len(), error.kind());
    }
}

/// Begins a listing, drops it, and so on.
fn again(dir: &str, times: usize) {
    for _ in 0..times {
        let first = open(dir).next().expect("an entry");
        name(first);
    }
    println!("{times}");
}

/// Preview 1 itself, which no library shows whole.
#[cfg(target_env = "p1")]
mod preview1 {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::fail;

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn fd_readdir(fd: i32, buffer: *mut u8, length: i32, cookie: i64, used: *mut i32) -> i32;
        fn fd_renumber(from: i32, to: i32) -> i32;
        fn fd_close(fd: i32) -> i32;
        fn fd_filestat_get(fd: i32, out: *mut u64) -> i32;
        fn path_filestat_get(fd: i32, flags: i32, path: *const u8, len: i32, out: *mut u64) -> i32;
        #[rustfmt::skip]
        fn path_open(
            fd: i32, lookup: i32, path: *const u8, len: i32, how: i32, base: i64, inheriting: i64, flags: i32,
            out: *mut i32,
        ) -> i32;
    }

    struct Entry {
        next: u64,
        serial: u64,
        kind: u8,
        name: String,
    }

    /// The bytes that one call gives, or its error.
    fn call(fd: i32, room: usize, cookie: u64) -> Result<Vec<u8>, i32> {
        let mut buffer = vec![0xaa; room];
        let mut used = -1;
        let errno = unsafe {
            fd_readdir(fd, buffer.as_mut_ptr(), room as i32, cookie as i64, &mut used)
        };
        if errno != 0 {
            return Err(errno);
        }
        buffer.truncate(used as usize);
        Ok(buffer)
    }

    /// The entries that are whole.
    fn parse(bytes: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut rest = bytes;
        while rest.len() >= 24 {
            let word = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().unwrap());
            let length = u32::from_le_bytes(rest[16..20].try_into().unwrap()) as usize;
            let Some(name) = rest.get(24..24 + length) else {
                break;
            };
            assert_eq!(&rest[21..24], [0; 3]);
            entries.push(Entry {
                next: word(0),
                serial: word(8),
                kind: rest[20],
                name: String::from_utf8(name.to_vec()).unwrap(),
            });
            rest = &rest[24 + length..];
        }
        entries
    }

    /// All entries from a cookie on, by a buffer of a size.
    fn all(fd: i32, room: usize, mut cookie: u64) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            let bytes = call(fd, room, cookie).expect("it is listed");
            let some = parse(&bytes);
            cookie = some.last().map_or(cookie, |entry| entry.next);
            let is_last = bytes.len() < room;
            assert!(is_last || !some.is_empty(), "an entry fits");
            entries.extend(some);
            if is_last {
                return entries;
            }
        }
    }

    fn names(entries: &[Entry]) -> Vec<&str> {
        entries.iter().map(|entry| entry.name.as_str()).collect()
    }

    /// Every size of buffer, and every cookie, tells the same.
    pub fn cookies(dir: &str) {
        let file = File::open(dir).unwrap_or_else(fail);
        let fd = file.as_raw_fd();
        let whole = all(fd, 1 << 20, 0);
        assert_eq!(names(&whole[..2]), [".", ".."]);
        assert_eq!((whole[0].kind, whole[1].kind), (3, 3));
        for room in [280, 281, 300, 511, 4096, 8192, 65_536] {
            assert_eq!(names(&all(fd, room, 0)), names(&whole), "{room}");
        }
        for (i, entry) in whole.iter().enumerate() {
            assert_eq!(entry.next, i as u64 + 1);
            // Backwards too.
            let cookie = whole.len() - i;
            assert_eq!(names(&all(fd, 4096, cookie as u64)), names(&whole[cookie..]));
        }
        // A last entry is cut off, its head as well.
        for room in 0..60 {
            let bytes = call(fd, room, 0).unwrap();
            assert_eq!(bytes, call(fd, 4096, 0).unwrap()[..room]);
        }
        for past in [whole.len() as u64, whole.len() as u64 + 1, u64::MAX] {
            assert_eq!(call(fd, 4096, past), Ok(Vec::new()), "{past}");
        }
        println!("{}", whole.len());
    }

    /// An entry has the serial number that a stat of it tells.
    pub fn serials(dir: &str) {
        let file = File::open(dir).unwrap_or_else(fail);
        let fd = file.as_raw_fd();
        let mut stat = [0; 8];
        assert_eq!(unsafe { fd_filestat_get(fd, stat.as_mut_ptr()) }, 0);
        let entries = all(fd, 4096, 0);
        for entry in &entries {
            if entry.name != "." && entry.name != ".." {
                let name = entry.name.as_bytes();
                let errno = unsafe {
                    path_filestat_get(fd, 0, name.as_ptr(), name.len() as i32, stat.as_mut_ptr())
                };
                assert_eq!(errno, 0);
                assert_eq!(u64::from(entry.kind), stat[2] & 0xff, "{}", entry.name);
            }
            assert_eq!(entry.serial, stat[1], "{}", entry.name);
        }
        println!("{}", entries.len());
    }

    fn opened(fd: i32, path: &str, rights: i64) -> i32 {
        let mut out = -1;
        let (path, length) = (path.as_ptr(), path.len() as i32);
        let errno = unsafe { path_open(fd, 0, path, length, 2, rights, 0, 0, &mut out) };
        assert_eq!(errno, 0);
        out
    }

    /// A listing belongs to a descriptor, and goes where it goes.
    pub fn descriptors(dir: &str) {
        const BADF: i32 = 8;
        let file = File::open(dir).unwrap_or_else(fail);
        let outer = file.as_raw_fd();
        for fd in [0, 1, 2, 99, -1] {
            assert_eq!(call(fd, 4096, 0), Err(BADF), "{fd}");
        }
        let plain = File::open(format!("{dir}/a")).unwrap_or_else(fail);
        assert_eq!(call(plain.as_raw_fd(), 4096, 0), Err(BADF));
        // Rights are hints: without any it can be listed, as by upstream.
        let fd = opened(outer, "sub", 0);
        assert_eq!(names(&all(fd, 4096, 0)), [".", "..", "inner"]);
        // The number of a descriptor that is closed says nothing about the next one that has it.
        assert_eq!(unsafe { fd_close(fd) }, 0);
        assert_eq!(call(fd, 4096, 2), Err(BADF));
        let other = opened(outer, "empty", 0);
        assert_eq!(other, fd);
        assert_eq!(names(&all(other, 4096, 1)), [".."]);
        // A listing moves with its descriptor.
        let moved = opened(outer, "sub", 0);
        all(moved, 4096, 0);
        std::fs::remove_file(format!("{dir}/sub/inner")).unwrap_or_else(fail);
        assert_eq!(unsafe { fd_renumber(moved, other) }, 0);
        assert_eq!(names(&all(other, 4096, 1)), ["..", "inner"]);
        assert_eq!(names(&all(other, 4096, 0)), [".", ".."]);
        assert_eq!(call(moved, 4096, 0), Err(BADF));
        // A directory that is gone has no names.
        std::fs::remove_dir(format!("{dir}/sub")).unwrap_or_else(fail);
        assert_eq!(names(&all(other, 4096, 0)), [".", ".."]);
        println!("done");
    }

    /// Lists one descriptor from the beginning again and again, with room for nothing.
    pub fn restart(dir: &str, times: usize) {
        let file = File::open(dir).unwrap_or_else(fail);
        for _ in 0..times {
            assert_eq!(call(file.as_raw_fd(), 0, 0), Ok(Vec::new()));
        }
        println!("{times}");
    }
}

/// The interface of components itself, in the version that the standard library imports.
#[cfg(target_env = "p2")]
mod component {
    #[link(wasm_import_module = "wasi:filesystem/types@0.2.0")]
    unsafe extern "C" {
        #[link_name = "[method]descriptor.read-directory"]
        fn read_directory(descriptor: i32, out: *mut u32);
        #[link_name = "[method]directory-entry-stream.read-directory-entry"]
        fn read_entry(stream: i32, out: *mut u32);
        #[link_name = "[resource-drop]directory-entry-stream"]
        fn drop_stream(stream: i32);
    }
    #[link(wasm_import_module = "wasi:filesystem/preopens@0.2.0")]
    unsafe extern "C" {
        #[link_name = "get-directories"]
        fn get_directories(out: *mut u32);
    }

    /// `insufficient-memory`
    const NO_MEMORY: u32 = 22;

    fn open(descriptor: i32) -> Result<i32, u32> {
        let mut out = [0; 2];
        unsafe { read_directory(descriptor, out.as_mut_ptr()) };
        if out[0] & 0xff == 0 { Ok(out[1] as i32) } else { Err(out[1] & 0xff) }
    }

    /// Holds as many streams of the first mount as there can be, twice.
    pub fn streams(at_least: usize) {
        let mut list = [0; 2];
        unsafe { get_directories(list.as_mut_ptr()) };
        let first = unsafe { *(list[0] as *const i32) };
        // Of one size throughout: it would not grow where nothing is left.
        let mut held = Vec::with_capacity(100_000);
        let mut counts = Vec::new();
        for _ in 0..2 {
            let error = loop {
                match open(first) {
                    Ok(stream) => held.push(stream),
                    Err(error) => break error,
                }
            };
            assert_eq!(error, NO_MEMORY);
            assert!(held.len() >= at_least, "{}", held.len());
            counts.push(held.len());
            for stream in held.drain(..) {
                let mut out = [0; 5];
                unsafe {
                    read_entry(stream, out.as_mut_ptr());
                    drop_stream(stream);
                }
                assert_eq!(out[0] & 0xff, 0, "an entry, or the end");
            }
        }
        assert_eq!(counts[0], counts[1]);
        println!("{}", counts[0]);
    }
}
