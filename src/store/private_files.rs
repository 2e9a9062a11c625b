//! The files that decide which code is executed: the folder of compiled modules, which only the
//! daemon may write, and the key that tells the daemon's own files from others.
//!
//! Platforms mount volumes that belong to root and that a group, or everybody, may write
//! (Kubernetes: 2775 with `fsGroup`, 0777 without), and secrets that the group or everybody may
//! read (0440, 0644). So the daemon makes a folder of its own inside such a volume. Anybody who can
//! *write* the key could choose what is executed, so such a key is refused. Somebody who can only
//! read it still has no way into the folder, so that is logged and not refused.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid, getgroups};

use super::backend::WriteMode;
use super::directory::write_atomically;

/// Shortest key file in bytes, and the length of one that the daemon creates.
const KEY_BYTES: usize = 32;
/// Most bytes of a key file that are read; the rest is ignored.
const MAX_KEY_BYTES: u64 = 1 << 20;
/// The context of BLAKE3's key derivation, which says what the key is for.
const CONTEXT: &str = "ringfence 2026-11 authenticity of compiled modules on disk";
/// Mode of a folder that only the daemon's user can enter.
const PRIVATE_FOLDER: u32 = 0o700;
/// Mode of a key file that only the daemon's user can read and write.
const PRIVATE_FILE: u32 = 0o600;
/// The mode bits that give the group or others any access.
const NOT_OWNER: u32 = 0o077;
/// The mode bit that lets the group write.
const GROUP_WRITES: u32 = 0o020;
/// The mode bit that lets the group read.
const GROUP_READS: u32 = 0o040;
/// The mode bits that give others any access.
const OTHERS: u32 = 0o007;
/// The mode bit that lets others write.
const OTHERS_WRITE: u32 = 0o002;
/// The mode bit that lets others read.
const OTHERS_READ: u32 = 0o004;

/// A folder that only the daemon's user can write, held open. Whatever is done through
/// [`Self::path`] is done in this folder, even if its name leads elsewhere by then.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    folder: File,
}

impl PrivateFolder {
    /// Opens `dir`, and creates it where it is missing. If others have access to it, a folder of
    /// the daemon's own inside it is used instead.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE_FOLDER).create(dir)?;
        let there = fs::metadata(dir)?;
        if is_ours_to_close(&there) {
            return Self::close(dir);
        }
        let own = dir.join(format!("ringfence-{}", geteuid().as_raw()));
        match DirBuilder::new().mode(PRIVATE_FOLDER).create(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io::Error::other(format!(
                    "it is {}, and {} cannot make a folder of its own in it: {error}",
                    described(&there),
                    myself()
                )));
            }
            Ok(()) | Err(_) => {}
        }
        // A link in its place could lead anywhere.
        let found = fs::symlink_metadata(&own)?;
        if !found.is_dir() || !is_ours_to_close(&found) {
            return Err(io::Error::other(format!(
                "what is there as {} is not a folder of {} alone: it is {}",
                own.display(),
                myself(),
                described(&found)
            )));
        }
        tracing::info!(
            dir = %own.display(),
            "compiled modules are kept in a folder inside artifacts.dir, which others may use too"
        );
        Self::close(&own)
    }

    /// Opens a folder of the daemon's own, and closes it to the group: platforms open everything in
    /// a volume to a group, at each start.
    fn close(dir: &Path) -> io::Result<Self> {
        let folder = File::open(dir)?;
        let there = folder.metadata()?;
        if !there.is_dir() || !is_ours_to_close(&there) {
            return Err(io::Error::other("it was replaced while it was opened"));
        }
        if there.mode() & NOT_OWNER != 0 {
            folder.set_permissions(Permissions::from_mode(PRIVATE_FOLDER))?;
            tracing::info!(dir = %dir.display(), was = %described(&there), "closed to others again");
        }
        Ok(Self { folder })
    }

    /// Returns a path that leads to the open folder for as long as this value lives.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }
}

/// Reports whether a folder is the daemon's own, and whether nobody else but one of the daemon's
/// groups may enter it.
fn is_ours_to_close(there: &Metadata) -> bool {
    let group_only = there.mode() & NOT_OWNER == 0 || is_own_group(there.gid());
    there.uid() == geteuid().as_raw() && there.mode() & OTHERS == 0 && group_only
}

fn is_own_group(gid: u32) -> bool {
    let groups = getgroups().unwrap_or_default();
    gid == getegid().as_raw() || groups.iter().any(|own| own.as_raw() == gid)
}

/// Reads the key in a file, and creates the file where there is none.
pub(super) fn read_key(path: &Path) -> io::Result<[u8; 32]> {
    if !path.try_exists()? {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE_FOLDER).create(dir)?;
        // Another daemon may be faster, and then its key is the key.
        write_atomically(dir, path, WriteMode::Create, |file| {
            file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
            let mut key = [0; KEY_BYTES];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
            file.write_all(&key)
        })?;
    }
    // Opening a FIFO would otherwise wait for a writer.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(i32::try_from(nonblocking).unwrap_or_default())
        .open(path)
        .map_err(|error| unreadable(path, error))?;
    check_key(path, &file)?;
    let mut material = Vec::new();
    file.take(MAX_KEY_BYTES).read_to_end(&mut material)?;
    if material.len() < KEY_BYTES {
        return Err(io::Error::other(format!(
            "it has {} bytes; a key has at least {KEY_BYTES}",
            material.len()
        )));
    }
    Ok(blake3::derive_key(CONTEXT, &material))
}

/// Adds to a permission error who owns the file that this daemon may not read.
fn unreadable(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    let whose = fs::metadata(path).map(|there| format!("; it is {}", described(&there)));
    io::Error::other(format!(
        "{} cannot read it: {error}{}",
        myself(),
        whose.unwrap_or_default()
    ))
}

/// Refuses a key file that others may write, and warns of one that others may read.
fn check_key(path: &Path, file: &File) -> io::Result<()> {
    let there = file.metadata()?;
    let refused = |why: &str| {
        Err(io::Error::other(format!(
            "{why}: it is {}; allowed is a file of {}, or of root, that nobody else but a group of it may write",
            described(&there),
            myself()
        )))
    };
    if !there.is_file() {
        return refused("it is no regular file");
    }
    let (mode, owner, own) = (there.mode(), there.uid(), geteuid().as_raw());
    if owner != own && owner != 0 {
        return refused(&format!(
            "it belongs to user {owner}, and this daemon is user {own}"
        ));
    }
    let own_group = is_own_group(there.gid());
    if mode & OTHERS_WRITE != 0 || (mode & GROUP_WRITES != 0 && !own_group) {
        return refused("others may write it");
    }
    if owner == own && mode & NOT_OWNER == GROUP_READS | GROUP_WRITES {
        // A volume's group gets this access to each of its files, including ours, at each start.
        if let Err(error) = file.set_permissions(Permissions::from_mode(PRIVATE_FILE)) {
            tracing::warn!(%error, "artifacts.key_file stays open to its group");
        }
        return Ok(());
    }
    if mode & OTHERS_READ != 0 || (mode & GROUP_READS != 0 && !own_group) {
        tracing::warn!(
            key_file = %path.display(),
            is = %described(&there),
            "artifacts.key_file can be read by others: only the folder's permissions are left to keep them from having \
             code executed. A Secret of Kubernetes takes defaultMode: 0440 with fsGroup"
        );
    }
    if mode & GROUP_WRITES != 0 {
        tracing::warn!(key_file = %path.display(), is = %described(&there), "artifacts.key_file can be written by its group");
    }
    Ok(())
}

/// Formats the owner and the mode, as `ls -n` prints them.
fn described(there: &Metadata) -> String {
    format!(
        "{}:{} with mode {:04o}",
        there.uid(),
        there.gid(),
        there.mode() & 0o7777
    )
}

fn myself() -> String {
    format!(
        "this daemon (user {}, group {})",
        geteuid().as_raw(),
        getegid().as_raw()
    )
}
