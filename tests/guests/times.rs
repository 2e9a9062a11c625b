//! Tells the times of files: `times DIR`, where the folder has a file "f" and a link "l" to it. A line
//! for each way to look at one, with the nanoseconds of its access, modification and change. Built for
//! wasm32-wasip1 and wasm32-wasip2 by the test run.

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::{File, Metadata, OpenOptions};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

unsafe extern "C" {
    /// Of wasi-libc: without times it sets both to now.
    fn utimensat(dir: c_int, path: *const c_char, times: *const c_void, flags: c_int) -> c_int;
}

fn main() {
    let dir = std::env::args().nth(1).expect("a folder");
    let path = |name: &str| format!("{dir}/{name}");
    let file = path("f");
    tell("path", std::fs::metadata(&file));
    tell("link", std::fs::symlink_metadata(path("l")));
    tell("followed", std::fs::metadata(path("l")));
    tell("file", File::open(&file).and_then(|it| it.metadata()));
    tell("folder", std::fs::metadata(&dir));
    let entry = std::fs::read_dir(&dir).expect("a listing").next();
    tell("entry", entry.expect("an entry").and_then(|it| it.metadata()));
    let mut written = OpenOptions::new().append(true).open(&file).expect("the file opens");
    written.write_all(b"more").expect("it is written");
    tell("written", written.metadata());
    drop(written);
    tell("made", File::create(path("new")).and_then(|it| it.metadata()));
    let name = CString::new(file.as_str()).expect("a path");
    const CURRENT: c_int = -2;
    assert_eq!(unsafe { utimensat(CURRENT, name.as_ptr(), std::ptr::null(), 0) }, 0);
    tell("touched", std::fs::metadata(&file));
}

fn tell(how: &str, metadata: std::io::Result<Metadata>) {
    let metadata = metadata.expect("it is there");
    let nanos = |time: std::io::Result<SystemTime>| {
        let time = time.expect("a time").duration_since(UNIX_EPOCH);
        time.expect("after the epoch").as_nanos()
    };
    let (accessed, modified) = (nanos(metadata.accessed()), nanos(metadata.modified()));
    println!("{how} {accessed} {modified} {}", nanos(metadata.created()));
}
