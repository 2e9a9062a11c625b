//! The imports of preview 1 that the guest misuses, and short ways to call them. Each returns an errno, 0 for success.

#[link(wasm_import_module = "wasi_snapshot_preview1")]
unsafe extern "C" {
    pub fn path_open(
        dir: i32,
        lookup: i32,
        path: *const u8,
        len: usize,
        oflags: i32,
        rights: i64,
        inheriting: i64,
        fdflags: i32,
        opened: *mut i32,
    ) -> i32;
    pub fn path_filestat_get(
        dir: i32,
        lookup: i32,
        path: *const u8,
        len: usize,
        stat: *mut u64,
    ) -> i32;
    pub fn path_filestat_set_times(
        dir: i32,
        lookup: i32,
        path: *const u8,
        len: usize,
        atime: i64,
        mtime: i64,
        flags: i32,
    ) -> i32;
    pub fn path_create_directory(dir: i32, path: *const u8, len: usize) -> i32;
    pub fn path_remove_directory(dir: i32, path: *const u8, len: usize) -> i32;
    pub fn path_unlink_file(dir: i32, path: *const u8, len: usize) -> i32;
    pub fn path_symlink(to: *const u8, to_len: usize, dir: i32, path: *const u8, len: usize)
    -> i32;
    pub fn path_readlink(
        dir: i32,
        path: *const u8,
        len: usize,
        buf: *mut u8,
        buf_len: usize,
        used: *mut usize,
    ) -> i32;
    pub fn path_link(
        dir: i32,
        lookup: i32,
        path: *const u8,
        len: usize,
        new_dir: i32,
        new: *const u8,
        new_len: usize,
    ) -> i32;
    pub fn path_rename(
        dir: i32,
        path: *const u8,
        len: usize,
        new_dir: i32,
        new: *const u8,
        new_len: usize,
    ) -> i32;
    pub fn fd_write(fd: i32, iovs: *const [usize; 2], n: usize, written: *mut usize) -> i32;
    pub fn fd_pwrite(
        fd: i32,
        iovs: *const [usize; 2],
        n: usize,
        at: i64,
        written: *mut usize,
    ) -> i32;
    pub fn fd_read(fd: i32, iovs: *const [usize; 2], n: usize, read: *mut usize) -> i32;
    pub fn fd_pread(fd: i32, iovs: *const [usize; 2], n: usize, at: i64, read: *mut usize) -> i32;
    pub fn fd_seek(fd: i32, by: i64, whence: i32, at: *mut u64) -> i32;
    pub fn fd_allocate(fd: i32, at: i64, len: i64) -> i32;
    pub fn fd_advise(fd: i32, at: i64, len: i64, advice: i32) -> i32;
    pub fn fd_filestat_set_size(fd: i32, size: i64) -> i32;
    pub fn fd_filestat_set_times(fd: i32, atime: i64, mtime: i64, flags: i32) -> i32;
    pub fn fd_readdir(fd: i32, buf: *mut u8, len: usize, cookie: i64, used: *mut usize) -> i32;
    pub fn fd_close(fd: i32) -> i32;
    pub fn sock_accept(fd: i32, flags: i32, opened: *mut i32) -> i32;
    pub fn sock_recv(
        fd: i32,
        iovs: *const [usize; 2],
        n: usize,
        flags: i32,
        read: *mut usize,
        told: *mut i32,
    ) -> i32;
    pub fn sock_send(
        fd: i32,
        iovs: *const [usize; 2],
        n: usize,
        flags: i32,
        sent: *mut usize,
    ) -> i32;
    pub fn sock_shutdown(fd: i32, how: i32) -> i32;
}

pub const FIRST: i32 = 3;
pub const SECOND: i32 = 4;
pub const FOLLOW: i32 = 1;
pub const CREATE: i32 = 1;
pub const DIRECTORY: i32 = 2;
pub const EXCLUSIVE: i32 = 4;
pub const TRUNCATE: i32 = 8;
pub const READ: i64 = 1 << 1;
pub const WRITE: i64 = 1 << 6;
pub const ALL: i64 = (1 << 29) - 1;
pub const APPEND: i32 = 1;

pub fn open(dir: i32, path: &str, lookup: i32, oflags: i32, rights: i64) -> Result<i32, i32> {
    let mut fd = -1;
    let (at, len) = (path.as_ptr(), path.len());
    match unsafe { path_open(dir, lookup, at, len, oflags, rights, ALL, 0, &mut fd) } {
        0 => Ok(fd),
        errno => Err(errno),
    }
}

pub fn close(fd: i32) {
    unsafe { fd_close(fd) };
}

/// Opens, and closes what it got.
pub fn try_open(dir: i32, path: &str, lookup: i32, oflags: i32, rights: i64) -> i32 {
    match open(dir, path, lookup, oflags, rights) {
        Ok(fd) => {
            close(fd);
            0
        }
        Err(errno) => errno,
    }
}

pub fn write(fd: i32) -> i32 {
    let (text, mut written) = (b"changed", 0);
    unsafe { fd_write(fd, &[text.as_ptr() as usize, text.len()], 1, &mut written) }
}

pub fn read(fd: i32) -> Result<Vec<u8>, i32> {
    let (mut buf, mut n) = (vec![0u8; 4096], 0);
    let iov = [buf.as_mut_ptr() as usize, buf.len()];
    match unsafe { fd_read(fd, &iov, 1, &mut n) } {
        0 => Ok(buf[..n].to_vec()),
        errno => Err(errno),
    }
}

pub fn stat(dir: i32, path: &str) -> i32 {
    let mut stat = [0u64; 8];
    unsafe { path_filestat_get(dir, FOLLOW, path.as_ptr(), path.len(), stat.as_mut_ptr()) }
}

pub fn make_directory(dir: i32, path: &str) -> i32 {
    unsafe { path_create_directory(dir, path.as_ptr(), path.len()) }
}

pub fn remove_directory(dir: i32, path: &str) -> i32 {
    unsafe { path_remove_directory(dir, path.as_ptr(), path.len()) }
}

pub fn unlink(dir: i32, path: &str) -> i32 {
    unsafe { path_unlink_file(dir, path.as_ptr(), path.len()) }
}

pub fn symlink(to: &str, dir: i32, path: &str) -> i32 {
    unsafe { path_symlink(to.as_ptr(), to.len(), dir, path.as_ptr(), path.len()) }
}

pub fn link(dir: i32, lookup: i32, path: &str, new_dir: i32, new: &str) -> i32 {
    let (at, len) = (path.as_ptr(), path.len());
    unsafe { path_link(dir, lookup, at, len, new_dir, new.as_ptr(), new.len()) }
}

pub fn rename(dir: i32, path: &str, new_dir: i32, new: &str) -> i32 {
    let (at, len) = (path.as_ptr(), path.len());
    unsafe { path_rename(dir, at, len, new_dir, new.as_ptr(), new.len()) }
}
