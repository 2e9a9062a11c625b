//! Folders of the host for guests that misuse them, what must not change in them, and how what a guest left is removed.

use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, makedev, mknodat, open, openat, statat, unlinkat,
};
use rustix::io::Errno;

/// Entries of the folder that is tedious to list.
pub(crate) const MANY: usize = 10_000;

/// The folders: `outside` no guest may reach, `inside` and `readonly` stay as they are, `special` has what is no file,
/// `race` is shared, and below `scratch` each run gets its own.
pub(crate) struct Folder {
    base: PathBuf,
    runs: AtomicUsize,
    /// Whether this machine lets a device be made.
    pub devices: bool,
    _socket: UnixListener,
}

/// One entry of a tree: its path, kind, size, links, time of change, and content or target.
#[derive(Debug, PartialEq)]
pub(crate) struct Entry(PathBuf, u32, u64, u64, (i64, i64), Vec<u8>);

impl Folder {
    pub(crate) fn new() -> Self {
        let base = tempfile::tempdir().unwrap().keep();
        for dir in [
            "outside",
            "inside/dir",
            "readonly/dir/empty",
            "readonly/empty",
        ] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        for dir in ["special", "race/place", "scratch", "many"] {
            fs::create_dir_all(base.join(dir)).unwrap();
        }
        fs::write(base.join("outside/secret"), "secret\n").unwrap();
        fs::write(base.join("inside/file"), "inside\n").unwrap();
        for (link, to) in [
            ("link-relative", "../outside/secret"),
            ("link-passwd", "/etc/passwd"),
            ("link-environ", "/proc/self/environ"),
            ("link-proc", "/proc"),
            ("link-out", "../outside"),
            ("link-up", ".."),
            ("link-chain", "dir/../link-out"),
            ("link-loop", "link-loop"),
        ] {
            symlink(to, base.join("inside").join(link)).unwrap();
        }
        symlink(
            base.join("outside/secret"),
            base.join("inside/link-absolute"),
        )
        .unwrap();
        symlink(base.join("outside"), base.join("inside/link-out-absolute")).unwrap();
        for dir in ["readonly", "readonly/dir"] {
            fs::write(base.join(dir).join("file"), "unchanged\n").unwrap();
            symlink("file", base.join(dir).join("link")).unwrap();
        }
        symlink("../outside", base.join("race/two")).unwrap();
        for i in 0..MANY {
            fs::write(base.join(format!("many/{i}")), "").unwrap();
        }
        let special = base.join("special");
        fs::write(special.join("file"), "").unwrap();
        let make = |name: &str, kind, device| {
            mknodat(
                CWD,
                special.join(name),
                kind,
                Mode::from_raw_mode(0o666),
                device,
            )
        };
        make("fifo", FileType::Fifo, 0).unwrap();
        symlink("fifo", special.join("link-fifo")).unwrap();
        let made = make("null", FileType::CharacterDevice, makedev(1, 3));
        assert!(matches!(made, Ok(()) | Err(Errno::PERM)), "{made:?}");
        Self {
            devices: made.is_ok(),
            _socket: UnixListener::bind(special.join("socket")).unwrap(),
            base,
            runs: AtomicUsize::new(0),
        }
    }

    /// One of them.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// A fresh one.
    pub(crate) fn scratch(&self) -> PathBuf {
        let n = self.runs.fetch_add(1, Ordering::Relaxed);
        let path = self.base.join(format!("scratch/{n}"));
        fs::create_dir(&path).unwrap();
        path
    }

    /// Configuration that grants them.
    pub(crate) fn grant(&self) -> String {
        format!("[{{ host = {:?}, access = \"write\" }}]", self.base)
    }

    /// What guests must not change.
    pub(crate) fn kept(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        for name in ["outside", "inside", "readonly"] {
            look(&self.base.join(name), &mut entries);
        }
        entries
    }

    /// Lets go whoever waits for another end of the FIFO, and whoever will.
    pub(crate) fn release(&self) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        open(self.base.join("special/fifo"), flags, Mode::empty()).unwrap()
    }

    /// Removes what runs left in folders of their own.
    pub(crate) fn clear(&self) {
        empty(&directory(CWD, self.base.join("scratch")));
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        empty(&directory(CWD, &self.base));
        fs::remove_dir(&self.base).unwrap();
    }
}

fn look(path: &Path, entries: &mut Vec<Entry>) {
    let about = fs::symlink_metadata(path).unwrap();
    let content = if about.is_symlink() {
        let target = fs::read_link(path).unwrap();
        target.into_os_string().into_encoded_bytes()
    } else if about.is_file() {
        fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    entries.push(Entry(
        path.to_owned(),
        about.mode(),
        about.size(),
        about.nlink(),
        (about.mtime(), about.mtime_nsec()),
        content,
    ));
    if about.is_dir() {
        let mut below: Vec<_> = fs::read_dir(path).unwrap().map(Result::unwrap).collect();
        below.sort_by_key(fs::DirEntry::file_name);
        for entry in below {
            look(&entry.path(), entries);
        }
    }
}

fn directory(at: impl std::os::fd::AsFd, path: impl rustix::path::Arg) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, path, flags, Mode::empty()).unwrap()
}

/// Removes all that is in a folder, the deepest first. Only names are kept on the way down, and ".." leads up: paths of
/// any depth take neither stack nor descriptors.
fn empty(top: &OwnedFd) {
    let mut at = directory(top, ".");
    let mut way: Vec<CString> = Vec::new();
    loop {
        let (below, others): (Vec<_>, Vec<_>) = names(&at)
            .into_iter()
            .partition(|name| is_directory(&at, name));
        for name in others {
            unlinkat(&at, &name, AtFlags::empty()).unwrap();
        }
        if let Some(name) = below.into_iter().next() {
            at = directory(&at, &name);
            way.push(name);
        } else if let Some(name) = way.pop() {
            at = directory(&at, "..");
            unlinkat(&at, &name, AtFlags::REMOVEDIR).unwrap();
        } else {
            return;
        }
    }
}

fn names(dir: &OwnedFd) -> Vec<CString> {
    let entries = Dir::read_from(dir).unwrap().map(Result::unwrap);
    let names = entries.map(|entry| entry.file_name().to_owned());
    names
        .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
        .collect()
}

fn is_directory(dir: &OwnedFd, name: &CString) -> bool {
    let about = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    FileType::from_raw_mode(about.st_mode) == FileType::Directory
}
