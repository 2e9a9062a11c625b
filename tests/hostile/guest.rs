//! What hostile programs do to the folders that they are given: `guest HABIT [ARGS...]`. Descriptor 3 is the first mount.
//! A habit exits 0 where all that it may not do was refused, 1 where something was not, and 2 where it could not try.

use std::process::exit;

#[path = "guests/preview1.rs"]
mod preview1;

use preview1::*;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize| args.get(i).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "escape" => escape(),
        "links" => links(),
        "ties" => ties(),
        "readonly" => read_only(),
        "special" => special(arg(2), arg(3)),
        "hoard" => hoard(arg(2)),
        "readdir" => read_directory(arg(2).parse().expect("bytes")),
        "dig" => dig(arg(2).parse().expect("levels")),
        "race" => race(arg(2).parse().expect("rounds")),
        "offsets" => offsets(),
        "whence" => println!("{}", unsafe { fd_seek(1, 0, 77, &mut 0) }),
        "sockets" => sockets(),
        "count" => println!(
            "{} {}",
            args.len(),
            args.iter().map(String::len).sum::<usize>()
        ),
        other => {
            eprintln!("no habit {other:?}");
            exit(64);
        }
    }
}

/// Counts what was refused, and names what was not.
#[derive(Default)]
struct Tally {
    refused: u32,
    allowed: Vec<String>,
}

impl Tally {
    fn refused(&mut self, what: impl Into<String>, errno: i32) {
        if errno == 0 {
            self.allowed.push(what.into());
        } else {
            self.refused += 1;
        }
    }

    fn end(self) -> ! {
        println!("refused {}", self.refused);
        if self.allowed.is_empty() {
            exit(0);
        }
        eprintln!("allowed: {}", self.allowed.join(", "));
        exit(1);
    }
}

/// What the habit rests on.
fn must(what: &str, errno: i32) {
    if errno != 0 {
        eprintln!("{what}: errno {errno}");
        exit(2);
    }
}

/// Everything that a path which leads out could be used for.
fn try_path(tally: &mut Tally, dir: i32, path: &str) {
    for (lookup, oflags, rights) in [
        (0, 0, READ),
        (0, CREATE, READ | WRITE),
        (FOLLOW, 0, READ),
        (FOLLOW, 0, READ | WRITE),
        (FOLLOW, DIRECTORY, READ),
        (FOLLOW, CREATE | TRUNCATE, READ | WRITE),
    ] {
        let errno = try_open(dir, path, lookup, oflags, rights);
        tally.refused(format!("open {path:?} {lookup} {oflags} {rights}"), errno);
    }
    tally.refused(format!("stat {path:?}"), stat(dir, path));
    // Links that the host made may be replaced and removed: they are the folder's own.
    if !path.starts_with("link") || path.contains('/') {
        tally.refused(format!("mkdir {path:?}"), make_directory(dir, path));
        tally.refused(format!("rmdir {path:?}"), remove_directory(dir, path));
        tally.refused(format!("unlink {path:?}"), unlink(dir, path));
        tally.refused(format!("symlink {path:?}"), symlink("x", dir, path));
        tally.refused(format!("rename {path:?} in"), rename(dir, path, dir, "x"));
        tally.refused(
            format!("rename out to {path:?}"),
            rename(dir, "file", dir, path),
        );
        tally.refused(format!("link {path:?} in"), link(dir, 0, path, dir, "x"));
        tally.refused(
            format!("link out to {path:?}"),
            link(dir, 0, "file", dir, path),
        );
        let (mut buf, mut used) = ([0u8; 256], 0);
        let errno = unsafe {
            path_readlink(
                dir,
                path.as_ptr(),
                path.len(),
                buf.as_mut_ptr(),
                buf.len(),
                &mut used,
            )
        };
        tally.refused(format!("readlink {path:?}"), errno);
    }
    let (at, len) = (path.as_ptr(), path.len());
    let errno = unsafe { path_filestat_set_times(dir, FOLLOW, at, len, 0, 0, 5) };
    tally.refused(format!("set times of {path:?}"), errno);
}

/// Paths out of a folder, over names and over links that the host made.
fn escape() {
    let mut tally = Tally::default();
    let inside = open(FIRST, "dir/../file", FOLLOW, 0, READ).map(read);
    if inside != Ok(Ok(b"inside\n".to_vec())) {
        must("reading what is inside", 99);
    }
    let long = format!("{}outside/secret", "dir/../".repeat(1000) + "../");
    let deep = format!("{}../outside/secret", "dir/../".repeat(100));
    for path in [
        "..",
        "../",
        "../.",
        "../outside",
        "../outside/secret",
        "./../outside/secret",
        "dir/../../outside/secret",
        "dir/./../.././outside/secret",
        "dir/..//..//outside/secret",
        "dir/../..",
        "dir/../../",
        "/",
        "//",
        "/etc/passwd",
        "//etc/passwd",
        "/..",
        "/proc/self/environ",
        "/proc/self/root/etc/passwd",
        "/dev/null",
        "file/",
        "file/..",
        "file/../../outside/secret",
        "link-relative",
        "link-absolute",
        "link-passwd",
        "link-environ",
        "link-out/secret",
        "link-out/",
        "link-out/../outside/secret",
        "link-out-absolute/secret",
        "link-up/outside/secret",
        "link-proc/self/environ",
        "link-chain/secret",
        "link-loop",
        "link-loop/x",
        "",
        "file\0",
        "../outside/secret\0",
        &deep,
        &long,
    ] {
        try_path(&mut tally, FIRST, path);
    }
    // From a folder that was opened below the mount, the mount is no less a border.
    let below = open(FIRST, "dir", FOLLOW, DIRECTORY, READ);
    let below = below.unwrap_or_else(|errno| exit(errno));
    for path in [
        "..",
        "../../outside/secret",
        "../link-out/secret",
        "../file",
        "/",
    ] {
        try_path(&mut tally, below, path);
    }
    tally.end();
}

/// Links that the guest makes itself, and what they would lead to.
fn links() {
    let mut tally = Tally::default();
    must("mkdir", make_directory(FIRST, "a"));
    must("mkdir", make_directory(FIRST, "a/b"));
    // Whether such a link can be made is the host's to say; that it leads nowhere is what counts.
    for (i, (place, to)) in [
        ("", ".."),
        ("", "../.."),
        ("", "../../outside"),
        ("", "../../outside/secret"),
        ("", "a/../../../outside/secret"),
        ("", "/"),
        ("", "/etc/passwd"),
        ("", "/proc/self/environ"),
        ("a/", "../.."),
        ("a/", "../../../outside/secret"),
        ("a/", "./b/../../../../outside"),
        ("a/", "/etc/passwd"),
        ("a/b/", "../../.."),
        ("a/b/", "../../../../outside"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{place}link{i}");
        if symlink(to, FIRST, &name) != 0 {
            tally.refused += 1;
            continue;
        }
        for beyond in [
            "",
            "/",
            "/secret",
            "/outside/secret",
            "/../outside/secret",
            "/etc/passwd",
        ] {
            let path = format!("{name}{beyond}");
            for lookup in [0, FOLLOW] {
                let errno = try_open(FIRST, &path, lookup, 0, READ);
                tally.refused(format!("open {path:?} -> {to:?}"), errno);
            }
            let errno = try_open(FIRST, &path, FOLLOW, CREATE, READ | WRITE);
            tally.refused(format!("create {path:?} -> {to:?}"), errno);
            tally.refused(format!("stat {path:?} -> {to:?}"), stat(FIRST, &path));
        }
    }
    must("symlink", symlink("b", FIRST, "a/good"));
    must("open", try_open(FIRST, "a/good", FOLLOW, DIRECTORY, READ));
    tally.end();
}

/// Hard links and renames between a folder of its own (the first mount) and one that it may only read (the second).
fn ties() {
    let mut tally = Tally::default();
    let mine = open(FIRST, "mine", 0, CREATE | EXCLUSIVE, READ | WRITE);
    close(mine.unwrap_or_else(|errno| exit(errno)));
    must("mkdir", make_directory(FIRST, "folder"));
    for lookup in [0, FOLLOW] {
        tally.refused(
            "link in from read-only",
            link(SECOND, lookup, "file", FIRST, "got"),
        );
        tally.refused(
            "link into read-only",
            link(FIRST, lookup, "mine", SECOND, "put"),
        );
        tally.refused(
            "link within read-only",
            link(SECOND, lookup, "file", SECOND, "twice"),
        );
        for path in ["../../outside/secret", "/etc/passwd", ".."] {
            tally.refused(
                format!("link of {path}"),
                link(FIRST, lookup, path, FIRST, "got"),
            );
            tally.refused(
                format!("link to {path}"),
                link(FIRST, lookup, "mine", FIRST, path),
            );
        }
    }
    tally.refused(
        "rename out of read-only",
        rename(SECOND, "file", FIRST, "got"),
    );
    tally.refused(
        "rename into read-only",
        rename(FIRST, "mine", SECOND, "put"),
    );
    tally.refused(
        "rename over read-only",
        rename(FIRST, "mine", SECOND, "file"),
    );
    tally.refused(
        "rename a folder into read-only",
        rename(FIRST, "folder", SECOND, "dir"),
    );
    tally.refused(
        "rename a folder out of read-only",
        rename(SECOND, "dir", FIRST, "got"),
    );
    for path in ["../mine", "../../outside/mine", "/tmp/mine", "..", "/"] {
        tally.refused(
            format!("rename to {path}"),
            rename(FIRST, "mine", FIRST, path),
        );
        tally.refused(
            format!("rename of {path}"),
            rename(FIRST, path, FIRST, "got"),
        );
    }
    tally.refused(
        "rename into itself",
        rename(FIRST, "folder", FIRST, "folder/below"),
    );
    must("rename", rename(FIRST, "mine", FIRST, "folder/mine"));
    must("link", link(FIRST, 0, "folder/mine", FIRST, "mine"));
    tally.end();
}

/// Every change that a folder of which only reading is granted must refuse, from its top and from a folder in it.
fn read_only() {
    let mut tally = Tally::default();
    let below = open(FIRST, "dir", FOLLOW, DIRECTORY, READ);
    let below = below.unwrap_or_else(|errno| exit(errno));
    for dir in [FIRST, below] {
        for oflags in [CREATE, CREATE | EXCLUSIVE, CREATE | TRUNCATE] {
            tally.refused("create", try_open(dir, "new", 0, oflags, READ | WRITE));
            tally.refused("create to read", try_open(dir, "new", 0, oflags, READ));
        }
        for rights in [READ, WRITE, READ | WRITE, ALL] {
            tally.refused("truncate", try_open(dir, "file", FOLLOW, TRUNCATE, rights));
        }
        for path in ["file", "./file", "link"] {
            tally.refused(
                "open to write",
                try_open(dir, path, FOLLOW, 0, READ | WRITE),
            );
            change_by_descriptor(&mut tally, dir, path);
        }
        tally.refused("mkdir", make_directory(dir, "new"));
        tally.refused("rmdir", remove_directory(dir, "empty"));
        tally.refused("unlink", unlink(dir, "file"));
        tally.refused("unlink a link", unlink(dir, "link"));
        tally.refused("symlink", symlink("file", dir, "new"));
        tally.refused("link", link(dir, 0, "file", dir, "new"));
        tally.refused("rename", rename(dir, "file", dir, "new"));
        tally.refused("rename a folder", rename(dir, "empty", dir, "new"));
        let (name, flags) = ("file", 4);
        let errno =
            unsafe { path_filestat_set_times(dir, FOLLOW, name.as_ptr(), name.len(), 0, 0, flags) };
        tally.refused("set times by path", errno);
    }
    let errno = unsafe { fd_filestat_set_times(FIRST, 0, 0, 4) };
    tally.refused("set times of the mount", errno);
    tally.end();
}

/// Changes a file over a descriptor that was opened for reading, by whatever rights it says it has.
fn change_by_descriptor(tally: &mut Tally, dir: i32, path: &str) {
    for (rights, fdflags) in [(READ, 0), (READ, APPEND), (ALL & !WRITE, 0), (0, 0)] {
        let mut fd = -1;
        let (at, len) = (path.as_ptr(), path.len());
        let errno = unsafe { path_open(dir, FOLLOW, at, len, 0, rights, ALL, fdflags, &mut fd) };
        must("open to read", errno);
        let (text, mut n) = (b"changed", 0);
        let iov = [text.as_ptr() as usize, text.len()];
        tally.refused("write", write(fd));
        tally.refused("write at", unsafe { fd_pwrite(fd, &iov, 1, 0, &mut n) });
        tally.refused("set the size", unsafe { fd_filestat_set_size(fd, 0) });
        tally.refused("allocate", unsafe { fd_allocate(fd, 0, 1 << 20) });
        tally.refused("set times", unsafe { fd_filestat_set_times(fd, 0, 0, 4) });
        close(fd);
    }
}

/// Opens what is neither a file nor a folder.
fn special(path: &str, how: &str) {
    let mut tally = Tally::default();
    let rights = match how {
        "read" => READ,
        "write" => WRITE,
        _ => READ | WRITE,
    };
    for lookup in [0, FOLLOW] {
        let errno = try_open(FIRST, path, lookup, 0, rights);
        tally.refused(format!("open {path:?} to {how}"), errno);
    }
    must("open", try_open(FIRST, "file", 0, 0, READ));
    tally.end();
}

/// Opens the same thing for as long as it is let.
fn hoard(path: &str) {
    for held in 0.. {
        if let Err(errno) = open(FIRST, path, 0, 0, READ) {
            println!("errno {errno} at {held}");
            return;
        }
    }
}

/// Lists the first mount with a buffer of `bytes`, and counts.
fn read_directory(bytes: usize) {
    let (mut buf, mut cookie, mut entries) = (vec![0u8; bytes], 0, 0);
    loop {
        let mut used = 0;
        must("readdir", unsafe {
            fd_readdir(FIRST, buf.as_mut_ptr(), bytes, cookie, &mut used)
        });
        let mut rest = &buf[..used];
        while rest.len() >= 24 {
            let name = u32::from_le_bytes(rest[16..20].try_into().expect("4 bytes")) as usize;
            if rest.len() < 24 + name {
                break;
            }
            cookie = i64::from_le_bytes(rest[..8].try_into().expect("8 bytes"));
            rest = &rest[24 + name..];
            entries += 1;
        }
        if used < bytes {
            println!("{entries} entries");
            return;
        }
    }
}

/// Makes a folder in a folder in a folder, some levels by one path before it goes down.
fn dig(levels: usize) {
    const BY_PATH: usize = 50;
    let mut at = FIRST;
    for stage in 0..levels.div_ceil(BY_PATH) {
        let mut path = String::new();
        for level in 0..BY_PATH.min(levels - stage * BY_PATH) {
            path.push_str(if level == 0 { "d" } else { "/d" });
            must(
                &format!("mkdir at {stage} {level}"),
                make_directory(at, &path),
            );
        }
        let below = open(at, &path, 0, DIRECTORY, READ);
        let below = below.unwrap_or_else(|errno| {
            eprintln!("open at {stage}: errno {errno}");
            exit(2);
        });
        if at != FIRST {
            close(at);
        }
        at = below;
    }
    println!("{levels} levels");
}

/// Swaps a folder and a link that leads out, as others do beside it, and looks through whichever is there.
fn race(rounds: usize) {
    let mut tally = Tally::default();
    let look = |tally: &mut Tally| {
        let errno = try_open(FIRST, "place/secret", FOLLOW, 0, READ);
        tally.refused("open through the link", errno);
        tally.refused("stat through the link", stat(FIRST, "place/secret"));
    };
    for _ in 0..rounds {
        let _ = rename(FIRST, "place", FIRST, "one");
        let _ = rename(FIRST, "two", FIRST, "place");
        look(&mut tally);
        let _ = rename(FIRST, "place", FIRST, "two");
        let _ = rename(FIRST, "one", FIRST, "place");
        look(&mut tally);
    }
    tally.end();
}

/// Offsets and sizes at the ends of what numbers can say.
fn offsets() {
    let mut tally = Tally::default();
    let file = open(FIRST, "file", 0, CREATE, READ | WRITE).unwrap_or_else(|errno| exit(errno));
    let (mut buf, mut n, mut at) = ([0u8; 8], 0, 0u64);
    let iov = [buf.as_mut_ptr() as usize, buf.len()];
    for far in [i64::MIN, i64::MIN + 1, -1, -8] {
        tally.refused("write far", unsafe {
            fd_pwrite(file, &iov, 1, far, &mut n)
        });
        tally.refused("size far", unsafe { fd_filestat_set_size(file, far) });
        // Reading there is the end of the file, or an error; neither may be the daemon's.
        unsafe { fd_pread(file, &iov, 1, far, &mut n) };
        unsafe { fd_advise(file, far, far, 0) };
        tally.refused("allocate far", unsafe { fd_allocate(file, far, far) });
        tally.refused("seek before the start", unsafe {
            fd_seek(file, far, 0, &mut at)
        });
    }
    for whence in 0..=2 {
        unsafe { fd_seek(file, i64::MAX, whence, &mut at) };
        unsafe { fd_seek(file, i64::MAX, whence, &mut at) };
    }
    // Wherever it stands now.
    let _ = write(file);
    tally.end();
}

/// Preview 1's sockets, on descriptors that are none.
fn sockets() {
    let mut tally = Tally::default();
    let (mut buf, mut n, mut told) = ([0u8; 8], 0, 0);
    let iov = [buf.as_mut_ptr() as usize, buf.len()];
    for fd in [0, 1, 2, 3, 5, 1000, -1, i32::MIN, i32::MAX] {
        tally.refused("accept", unsafe { sock_accept(fd, 0, &mut told) });
        tally.refused("recv", unsafe {
            sock_recv(fd, &iov, 1, 0, &mut n, &mut told)
        });
        tally.refused("send", unsafe { sock_send(fd, &iov, 1, 0, &mut n) });
        tally.refused("shutdown", unsafe { sock_shutdown(fd, 3) });
    }
    tally.end();
}
