//! Reads and writes files the way that programs of different makes do: `places MAKE HABIT [ARGS...]`; without
//! a habit it says its command line. Built for wasm32-wasip1 and wasm32-wasip2 by the test run.
//!
//! `libc` is wasi-libc, below Rust's own library. `go` is what Go's library does: it starts in PWD, makes paths absolute
//! and clean, and looks for the longest preopen. `zig` is what Zig's does without a libc: it starts in the first preopen.

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.len() < 3 {
        println!("{}", args.join(" "));
        return;
    }
    let paths = &args[3..];
    match args[2].as_str() {
        // What is in each file, or a dash, between bars.
        "read" => {
            let read = |path: &String| read(&args[1], path).unwrap_or_else(|| "-".to_owned());
            println!("{}", paths.iter().map(read).collect::<Vec<_>>().join("|"));
        }
        // Writes each path's own name into it, whether that works or not.
        "write" => {
            for path in paths {
                let done = std::fs::write(path, path).is_ok();
                println!("{path} {}", if done { "written" } else { "denied" });
            }
        }
        // Every way to change what is at a path, whether it works or not.
        "attack" => paths.iter().for_each(|path| attack(path)),
        other => panic!("no habit {other:?}"),
    }
}

fn attack(dir: &str) {
    let at = |name: &str| format!("{dir}/{name}");
    let done = [
        ("write", std::fs::write(at("new"), "new").is_ok()),
        ("overwrite", std::fs::write(at("same.txt"), "new").is_ok()),
        ("mkdir", std::fs::create_dir(at("made")).is_ok()),
        ("rename", std::fs::rename(at("same.txt"), at("moved")).is_ok()),
        ("link", std::fs::hard_link(at("same.txt"), at("link")).is_ok()),
        ("unlink", std::fs::remove_file(at("same.txt")).is_ok()),
        (
            "truncate",
            std::fs::OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(at("same.txt"))
                .is_ok(),
        ),
    ];
    for (what, _) in done.iter().filter(|(_, done)| *done) {
        println!("{what} in {dir}");
    }
}

fn read(make: &str, path: &str) -> Option<String> {
    match make {
        "libc" => std::fs::read_to_string(path).ok(),
        #[cfg(target_env = "p1")]
        "zig" => raw::read(3, path),
        #[cfg(target_env = "p1")]
        "go" => raw::read_as_go(path),
        other => panic!("no make {other:?}"),
    }
}

#[cfg(target_env = "p1")]
mod raw {
    use std::io::Read;
    use std::os::fd::FromRawFd;

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        fn path_open(
            fd: i32, lookup: i32, path: *const u8, len: usize, how: i32, base: i64, inheriting: i64, flags: i32,
            out: *mut i32,
        ) -> i32;
        fn fd_prestat_get(fd: i32, out: *mut [u32; 2]) -> i32;
        fn fd_prestat_dir_name(fd: i32, name: *mut u8, len: usize) -> i32;
    }

    pub fn read(dir: i32, path: &str) -> Option<String> {
        const READ: i64 = 1 << 1 | 1 << 2 | 1 << 5;
        let mut fd = -1;
        let errno = unsafe { path_open(dir, 1, path.as_ptr(), path.len(), 0, READ, 0, 0, &mut fd) };
        if errno != 0 {
            return None;
        }
        let mut text = String::new();
        let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
        file.read_to_string(&mut text).ok().map(|_| text)
    }

    fn preopens() -> Vec<(i32, String)> {
        let mut out = Vec::new();
        for fd in 3.. {
            let mut stat = [0; 2];
            if unsafe { fd_prestat_get(fd, &mut stat) } != 0 {
                break;
            }
            let mut name = vec![0; stat[1] as usize];
            assert_eq!(unsafe { fd_prestat_dir_name(fd, name.as_mut_ptr(), name.len()) }, 0);
            out.push((fd, String::from_utf8(name).unwrap()));
        }
        out
    }

    pub fn read_as_go(path: &str) -> Option<String> {
        let preopens = preopens();
        let first = preopens.first().map_or("", |(_, name)| name);
        let dir = std::env::var("PWD").unwrap_or_else(|_| first.to_owned());
        let mut parts = Vec::new();
        let from = if path.starts_with('/') { "" } else { &dir };
        for part in from.split('/').chain(path.split('/')) {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let path = format!("/{}", parts.join("/"));
        let (fd, name) = preopens
            .iter()
            .filter(|(_, name)| path.starts_with(name.as_str()))
            .max_by_key(|(_, name)| name.len())?;
        read(*fd, path[name.len()..].trim_start_matches('/'))
    }
}
