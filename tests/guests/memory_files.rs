//! Uses the run's memory file system: `memory_files WHAT ...`. Built for wasm32-wasip1 and wasm32-wasip2
//! by the test run.

use std::ffi::{CString, c_char, c_int};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, SystemTime};

// Errors, by their numbers in WASI, which the standard library does not name all.
const EXIST: i32 = 20;
const INVAL: i32 = 28;
const NOENT: i32 = 44;
const NOTDIR: i32 = 54;
const NOTEMPTY: i32 = 55;

// Links of the C library, which the standard library has for no stable toolchain.
unsafe extern "C" {
    fn symlink(target: *const c_char, path: *const c_char) -> c_int;
}

fn link_to(target: &str, path: &str) -> std::io::Result<()> {
    let (target, path) = (CString::new(target)?, CString::new(path)?);
    // SAFETY: both are strings that end with NUL.
    match unsafe { symlink(target.as_ptr(), path.as_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let rest: Vec<&str> = args.iter().skip(2).map(String::as_str).collect();
    match args[1].as_str() {
        "tour" => tour(),
        "fill" => fill(rest[0]),
        "grow" => grow(rest[0].parse().expect("an exit code")),
        "write" => rest.chunks(2).for_each(|it| write(it[0], it[1].parse().expect("a size"))),
        "cat" => print!("{}", fs::read_to_string(rest[0]).expect("it is there")),
        "list" => println!("{}", names(rest[0]).join(" ")),
        "count" => println!("{}", fs::read_dir(rest[0]).expect("it is there").count()),
        "rename" => println!("{:?}", fs::rename(rest[0], rest[1]).map_err(|it| it.kind())),
        "make" => println!("{:?}", fs::write(rest[0], "x").map_err(|it| it.kind())),
        "spin" => {
            write(rest[0], 3);
            loop {
                std::hint::spin_loop();
            }
        }
        "trap" => {
            write(rest[0], 3);
            panic!("as asked");
        }
        "time" => {
            let modified = |path| fs::metadata(path).and_then(|it| it.modified()).expect("a time");
            write("/new", 1);
            let file = File::options().write(true).open("/new").expect("it is there");
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(77)).expect("it is set");
            for path in [rest[0], "/new"] {
                let since = modified(path).duration_since(SystemTime::UNIX_EPOCH).expect("later");
                println!("{}", since.as_secs());
            }
        }
        "handles" => {
            let open = |_: &usize| File::open("/given").is_ok();
            let mut files = Vec::new();
            while let Ok(file) = File::open("/given") {
                files.push(file);
            }
            let most = files.len();
            drop(files.pop());
            assert_eq!([0, 1].iter().map(open).collect::<Vec<_>>(), [true, true]);
            println!("{most}");
        }
        "large" => large(rest[0].parse().expect("a size")),
        other => panic!("nothing called {other}"),
    }
}

fn write(path: &str, size: usize) {
    fs::write(path, "abcdefghij".repeat(size / 10 + 1).get(..size).expect("long enough"))
        .expect("it is written");
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("it is there");
    let name = |it: std::io::Result<fs::DirEntry>| it.expect("an entry").file_name();
    let mut names: Vec<String> =
        entries.map(|it| name(it).into_string().expect("it is text")).collect();
    names.sort();
    names
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("it fails").raw_os_error().expect("a number")
}

fn tour() {
    given();
    contents();
    directories();
    links();
    #[cfg(target_env = "p1")]
    poll();
    fs::create_dir_all("/out/deep/er").expect("it is made");
    fs::write("/out/result.txt", "result").expect("it is written");
    fs::write("/out/deep/data.json", "{}").expect("it is written");
    fs::write("/out/deep/er/empty.txt", "").expect("it is written");
    fs::write("/out/skipped.tmp", "tmp").expect("it is written");
    link_to("result.txt", "/out/link.txt").expect("it is made");
    println!("ok");
}

/// Files that were given can be read and written to.
fn given() {
    assert_eq!(fs::read_to_string("/in/a.txt").expect("it was given"), "alpha");
    let mut bytes = fs::read("/in/deep/b.bin").expect("it was given");
    assert_eq!(bytes.len(), 200_000);
    assert!(bytes.iter().all(|byte| *byte == 7));
    let mut file = OpenOptions::new().read(true).write(true).open("/in/deep/b.bin").expect("there");
    file.seek(SeekFrom::Start(70_000)).expect("it can be sought");
    file.write_all(b"xyz").expect("it takes them");
    file.rewind().expect("it can be sought");
    file.read_exact(&mut bytes).expect("it is as long");
    assert_eq!(&bytes[69_999..70_004], b"\x07xyz\x07");
    assert_eq!(errno(fs::read("/in/c.txt")), NOENT);
}

fn contents() {
    let path = "/work.txt";
    let mut file = File::create_new(path).expect("it is made");
    assert_eq!(errno(File::create_new(path)), EXIST);
    file.write_all(b"hello").expect("it takes them");
    OpenOptions::new().append(true).open(path).expect("there").write_all(b" world").expect("takes");
    assert_eq!(fs::read_to_string(path).expect("there"), "hello world");
    file.set_len(4).expect("it is cut");
    assert_eq!(fs::read_to_string(path).expect("there"), "hell");
    file.set_len(6).expect("it grows");
    assert_eq!(fs::read(path).expect("there"), b"hell\0\0");
    assert_eq!(file.stream_position().expect("a position"), 5);
    assert_eq!(file.seek(SeekFrom::End(-2)).expect("it can be sought"), 4);
    file.seek(SeekFrom::Current(-5)).expect_err("it is before the beginning");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    file.set_modified(time).expect("it is set");
    assert_eq!(file.metadata().expect("there").modified().expect("a time"), time);
    file.sync_all().expect("nothing to do");
    assert_eq!(fs::copy(path, "/copy.txt").expect("it is copied"), 6);
    // A file lives on while it is open.
    fs::remove_file(path).expect("it is there");
    assert_eq!(errno(fs::metadata(path)), NOENT);
    file.rewind().expect("it can be sought");
    let mut text = [0; 4];
    file.read_exact(&mut text).expect("it lives on");
    assert_eq!(&text, b"hell");
    let mut file = File::create(path).expect("it is made");
    file.read_exact(&mut text).expect_err("it was opened for writing only");
    let mut file = File::open(path).expect("there");
    file.write_all(b"x").expect_err("it was opened for reading only");
    fs::write(path, "another").expect("it is written");
    // Sparse.
    let mut file = OpenOptions::new().read(true).write(true).open(path).expect("there");
    file.seek(SeekFrom::Start(3 << 30)).expect("it can be sought");
    file.write_all(b"end").expect("it takes them");
    assert_eq!(file.metadata().expect("there").len(), (3 << 30) + 3);
    file.seek(SeekFrom::Start((3 << 30) - 1)).expect("it can be sought");
    file.read_exact(&mut text).expect("it is as long");
    assert_eq!(&text, b"\0end");
    fs::remove_file(path).expect("it is there");
}

fn directories() {
    fs::create_dir_all("/work/x/y").expect("it is made");
    assert_eq!(errno(fs::create_dir("/work")), EXIST);
    fs::write("/work/x/one", "1").expect("it is written");
    fs::write("/work/x/two", "2").expect("it is written");
    assert_eq!(names("/work/x"), ["one", "two", "y"]);
    assert_eq!(errno(fs::remove_dir("/work/x")), NOTEMPTY);
    assert_eq!(errno(fs::rename("/work/x", "/work/x/y/z")), INVAL);
    fs::rename("/work/x/one", "/work/x/two").expect("it is renamed over another");
    assert_eq!(fs::read_to_string("/work/x/two").expect("there"), "1");
    fs::rename("/work/x", "/moved").expect("it is renamed");
    assert_eq!(names("/moved"), ["two", "y"]);
    assert!(names("/work").is_empty());
    assert!(names("/").contains(&"moved".to_owned()));
    assert!(fs::metadata("/moved/y").expect("there").is_dir());
    assert_eq!(errno(fs::read_dir("/moved/two")), NOTDIR);
    fs::remove_dir_all("/moved").expect("it is removed");
    assert_eq!(errno(fs::read_dir("/moved")), NOENT);
    // Listings go on while the directory is emptied.
    for i in 0..500 {
        fs::write(format!("/work/{i}"), "").expect("it is written");
    }
    let mut removed = 0;
    for entry in fs::read_dir("/work").expect("there") {
        fs::remove_file(entry.expect("an entry").path()).expect("it is there");
        removed += 1;
    }
    assert_eq!(removed, 500);
}

fn links() {
    fs::create_dir("/links").expect("it is made");
    fs::write("/links/file", "linked").expect("it is written");
    fs::hard_link("/links/file", "/links/hard").expect("it is linked");
    fs::remove_file("/links/file").expect("it is there");
    assert_eq!(fs::read_to_string("/links/hard").expect("there"), "linked");
    link_to("hard", "/links/soft").expect("it is made");
    assert_eq!(fs::read_to_string("/links/soft").expect("it leads there"), "linked");
    assert_eq!(fs::read_link("/links/soft").expect("a link").to_str(), Some("hard"));
    assert!(fs::symlink_metadata("/links/soft").expect("there").is_symlink());
    link_to("round", "/links/round").expect("it is made");
    fs::read("/links/round").expect_err("it leads nowhere");
    link_to("../in", "/links/up").expect("it is made");
    assert_eq!(fs::read_to_string("/links/up/a.txt").expect("it leads there"), "alpha");
    link_to("/in", "/links/absolute").expect_err("no such links");
    link_to("../../../etc/passwd", "/links/out").expect("it is made");
    fs::read("/links/out").expect_err("it leads out");
}

/// A file in memory is ready to be read and written at once, beside a timer that is not over.
#[cfg(target_env = "p1")]
fn poll() {
    use std::os::fd::AsRawFd;
    #[repr(C)]
    struct Poll {
        fd: c_int,
        events: i16,
        revents: i16,
    }
    unsafe extern "C" {
        fn poll(fds: *mut Poll, count: usize, timeout: c_int) -> c_int;
    }
    let (read, write) = (1, 2);
    let file = OpenOptions::new().read(true).write(true).open("/in/a.txt").expect("there");
    let mut polls = [Poll { fd: file.as_raw_fd(), events: read | write, revents: 0 }];
    // SAFETY: the array has as many entries as are passed.
    assert_eq!(unsafe { poll(polls.as_mut_ptr(), 1, 60_000) }, 1);
    assert_eq!(polls[0].revents & (read | write), read | write);
}

/// Makes empty files until that fails.
fn fill(dir: &str) {
    let mut made = 0;
    let error = loop {
        match File::create(format!("{dir}/{made}")) {
            Ok(_) => made += 1,
            Err(error) => break error.raw_os_error().expect("a number"),
        }
    };
    println!("{made} {error}");
    assert_eq!(fs::read(format!("{dir}/0")).expect("there"), b"");
}

/// Appends to a file until that fails, and then exits with `code`.
fn grow(code: i32) {
    let mut file = File::create("/grown").expect("it is made");
    let piece = [1; 10_000];
    let error = loop {
        if let Err(error) = file.write_all(&piece) {
            break error.raw_os_error().expect("a number");
        }
    };
    let size = file.metadata().expect("there").len();
    // What was removed can be used again.
    fs::remove_file("/grown").expect("it is there");
    drop(file);
    fs::write("/again", [2; 100_000]).expect("there is room again");
    println!("{size} {error}");
    std::process::exit(code);
}

/// Writes and reads so many bytes in one call each.
fn large(size: usize) {
    let mut bytes = vec![3; size];
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open("/large")
        .expect("it is made");
    file.write_all(&bytes).expect("it takes them");
    file.rewind().expect("it can be sought");
    bytes.fill(0);
    file.read_exact(&mut bytes).expect("it is as long");
    assert!(bytes.iter().all(|byte| *byte == 3));
    println!("{}", file.metadata().expect("there").len());
}
