//! What is on disk and decides what is executed: the folder of compiled modules, which nobody but the daemon may write,
//! and the key that tells its own files from others.
//!
//! Platforms mount volumes that belong to root and that a group, or everybody, may write (Kubernetes: 2775 with
//! `fsGroup`, 0777 without), and secrets that the group or everybody may read (0440, 0644). So the daemon makes a folder
//! of its own inside such a volume. Who may *write* the key could choose what is executed and is kept out; who may only
//! read it still has no way into the folder, so that is told and not refused.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid, getgroups};

use super::backend::Mode;
use super::directory::write_whole;

/// Bytes of a key file at the least, and what a new one gets.
const KEY_BYTES: usize = 32;
/// Bytes of a key file that count.
const MAX_KEY_BYTES: u64 = 1 << 20;
/// What the key is for, in the terms of BLAKE3's key derivation.
const CONTEXT: &str = "ringfence 2026-11 authenticity of compiled modules on disk";
/// The modes of a folder and of a key that are the daemon's alone.
const PRIVATE_FOLDER: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;
/// The bits of a mode that let the group or others in, and of those the ones that let them write.
const NOT_OWNER: u32 = 0o077;
const GROUP_WRITES: u32 = 0o020;
const GROUP_READS: u32 = 0o040;
const OTHERS: u32 = 0o007;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_READ: u32 = 0o004;

/// A folder that nobody but the daemon's user can write, held open: what is done in it by [`Self::path`] is done in this
/// folder, whatever its name leads to by then.
#[derive(Debug)]
pub(super) struct PrivateFolder {
    folder: File,
}

impl PrivateFolder {
    /// Opens `dir`, which is made where it is missing; or, where it is there and not the daemon's alone, a folder inside it
    /// that is.
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

    /// Opens a folder of ours, and closes it to the group: platforms open all that is in a volume to one, at each start.
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

    /// By what name it is reached for as long as this is there.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.folder.as_raw_fd()))
    }
}

/// Whether a folder is the daemon's own, and nobody else but one of its groups may enter it.
fn is_ours_to_close(there: &Metadata) -> bool {
    let group_only = there.mode() & NOT_OWNER == 0 || is_own_group(there.gid());
    there.uid() == geteuid().as_raw() && there.mode() & OTHERS == 0 && group_only
}

fn is_own_group(gid: u32) -> bool {
    let groups = getgroups().unwrap_or_default();
    gid == getegid().as_raw() || groups.iter().any(|own| own.as_raw() == gid)
}

/// The key in a file, which is made where there is none.
pub(super) fn read_key(path: &Path) -> io::Result<[u8; 32]> {
    if !path.try_exists()? {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE_FOLDER).create(dir)?;
        // Another daemon may be faster: its key is then the key.
        write_whole(dir, path, Mode::Create, |file| {
            file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
            let mut key = [0; KEY_BYTES];
            rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty())?;
            file.write_all(&key)
        })?;
    }
    // Opening a FIFO would wait for whoever writes to it.
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

/// Tells whose a file is that this daemon is not allowed to read.
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

/// Refuses a key that others may write, and warns of one that others may read.
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
        // As a volume's group makes each of its files, ours included, at each start.
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

/// The owner and the mode, as `ls -n` has them.
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
