//! Compares the file system in memory with a real one: every answer to a random sequence of calls
//! is the same.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::tests::{MIB, OPEN, files, names};
use super::super::*;

/// A step of the comparison with a real file system.
#[derive(Clone, Debug)]
enum Step {
    MakeDirectory(String),
    RemoveDirectory(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String, bool),
    Symlink(String, String),
    ReadLink(String),
    Stat(String, bool),
    List(String),
    Open(String, [bool; 5]),
    Write(String, u32, Vec<u8>),
    Append(String, Vec<u8>),
    SetSize(String, u32),
    Read(String, u32, u16),
}

fn path() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["a", "b", "c", "."]);
    let names = prop::collection::vec(name(), 1..4);
    (names, prop::bool::weighted(0.15))
        .prop_map(|(names, slash)| names.join("/") + if slash { "/" } else { "" })
}

fn target() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c", "a/b", "a/./c", "."]).prop_map(str::to_owned)
}

fn step() -> impl Strategy<Value = Step> {
    let bytes = || prop::collection::vec(1_u8..=255, 0..300);
    let offset = || 0_u32..200_000;
    prop_oneof![
        4 => path().prop_map(Step::MakeDirectory),
        2 => path().prop_map(Step::RemoveDirectory),
        2 => path().prop_map(Step::Unlink),
        4 => (path(), path()).prop_map(|(a, b)| Step::Rename(a, b)),
        2 => (path(), path(), any::<bool>()).prop_map(|(a, b, follow)| Step::Link(a, b, follow)),
        2 => (target(), path()).prop_map(|(a, b)| Step::Symlink(a, b)),
        1 => path().prop_map(Step::ReadLink),
        3 => (path(), any::<bool>()).prop_map(|(a, follow)| Step::Stat(a, follow)),
        2 => path().prop_map(Step::List),
        4 => (path(), any::<[bool; 5]>()).prop_map(|(a, how)| Step::Open(a, how)),
        4 => (path(), offset(), bytes()).prop_map(|(a, at, b)| Step::Write(a, at, b)),
        2 => (path(), bytes()).prop_map(|(a, b)| Step::Append(a, b)),
        2 => (path(), offset()).prop_map(|(a, size)| Step::SetSize(a, size)),
        3 => (path(), offset(), any::<u16>()).prop_map(|(a, at, n)| Step::Read(a, at, n)),
    ]
}

/// What a step is answered, by both file systems.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Text(String),
    Bytes(Vec<u8>),
    Stat(NodeKind, u64, u32),
    Names(Vec<String>),
}

fn in_memory(files: &mut MemoryFs, step: &Step) -> Result<Answer, FileError> {
    let root = files.root();
    let done = |result: Result<(), FileError>| result.map(|()| Answer::Done);
    match step {
        Step::MakeDirectory(path) => done(files.create_directory_at(root, path)),
        Step::RemoveDirectory(path) => done(files.remove_directory_at(root, path)),
        Step::Unlink(path) => done(files.unlink_file_at(root, path)),
        Step::Rename(from, to) => done(files.rename_at((root, from), (root, to))),
        Step::Link(from, to, follow) => {
            let follow = FollowLast::when(*follow);
            done(files.link_at((root, from), follow, (root, to)))
        }
        Step::Symlink(target, path) => done(files.symlink_at(target, root, path)),
        Step::ReadLink(path) => {
            let target = files.read_link_at(root, path)?;
            Ok(Answer::Text(target.to_owned()))
        }
        Step::Stat(path, follow) => {
            let stat = files.stat_at(root, path, FollowLast::when(*follow))?;
            Ok(match stat.kind {
                NodeKind::Directory => Answer::Stat(stat.kind, 0, 0),
                NodeKind::File | NodeKind::Symlink => {
                    Answer::Stat(stat.kind, stat.size, stat.links)
                }
            })
        }
        Step::List(path) => {
            let how = OpenHow {
                directory: true,
                ..OPEN
            };
            let node = files.open_at(root, path, how)?;
            let names = names(files, node);
            files.release(node);
            Ok(Answer::Names(names))
        }
        Step::Open(path, [follow, create, exclusive, truncate, write]) => {
            let how = OpenHow {
                follow: FollowLast::when(*follow),
                create: *create,
                exclusive: *create && *exclusive,
                truncate: *write && *truncate,
                directory: false,
                write: *write,
            };
            let node = files.open_at(root, path, how)?;
            files.release(node);
            Ok(Answer::Done)
        }
        Step::Write(..) | Step::Append(..) | Step::SetSize(..) => {
            let (path, at, bytes, size) = match step {
                Step::Write(path, at, bytes) => {
                    (path, WritePosition::Offset((*at).into()), &**bytes, None)
                }
                Step::Append(path, bytes) => (path, WritePosition::End, &**bytes, None),
                Step::SetSize(path, size) => (path, WritePosition::End, &[][..], Some(*size)),
                Step::MakeDirectory(_)
                | Step::RemoveDirectory(_)
                | Step::Unlink(_)
                | Step::Rename(..)
                | Step::Link(..)
                | Step::Symlink(..)
                | Step::ReadLink(_)
                | Step::Stat(..)
                | Step::List(_)
                | Step::Open(..)
                | Step::Read(..) => unreachable!("one of these three"),
            };
            let how = OpenHow {
                write: true,
                ..OPEN
            };
            let node = files.open_at(root, path, how)?;
            let result = match size {
                Some(size) => files.set_size(node, size.into()),
                None if bytes.is_empty() => Ok(()),
                None => files.write(node, at, bytes).map(|_| ()),
            };
            files.release(node);
            done(result)
        }
        Step::Read(path, at, length) => {
            let node = files.open_at(root, path, OPEN)?;
            let mut bytes = vec![0; (*length).into()];
            let read = files.read(node, (*at).into(), &mut bytes);
            files.release(node);
            bytes.truncate(read?);
            Ok(Answer::Bytes(bytes))
        }
    }
}

fn opened(dir: &OwnedFd, path: &str, flags: OFlags) -> Result<File, Errno> {
    let mode = match flags.contains(OFlags::CREATE) {
        true => Mode::from_raw_mode(0o700),
        false => Mode::empty(),
    };
    let fd = rustix::fs::openat2(dir, path, flags, mode, ResolveFlags::BENEATH)?;
    Ok(File::from(fd))
}

fn error_of(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).expect("an error of the system")
}

fn on_disk(dir: &OwnedFd, step: &Step) -> Result<Answer, Errno> {
    let mode = Mode::from_raw_mode(0o700);
    let done = |result: Result<(), Errno>| result.map(|()| Answer::Done);
    match step {
        Step::MakeDirectory(path) => done(rustix::fs::mkdirat(dir, path, mode)),
        Step::RemoveDirectory(path) => done(rustix::fs::unlinkat(dir, path, AtFlags::REMOVEDIR)),
        Step::Unlink(path) => done(rustix::fs::unlinkat(dir, path, AtFlags::empty())),
        Step::Rename(from, to) => done(rustix::fs::renameat(dir, from, dir, to)),
        Step::Link(from, to, follow) => {
            let flags = match follow {
                true => AtFlags::SYMLINK_FOLLOW,
                false => AtFlags::empty(),
            };
            done(rustix::fs::linkat(dir, from, dir, to, flags))
        }
        Step::Symlink(target, path) => done(rustix::fs::symlinkat(target, dir, path)),
        Step::ReadLink(path) => {
            let target = rustix::fs::readlinkat(dir, path, Vec::new())?;
            Ok(Answer::Text(
                target.into_string().expect("a target of ours"),
            ))
        }
        Step::Stat(path, follow) => {
            let flags = match follow {
                true => AtFlags::empty(),
                false => AtFlags::SYMLINK_NOFOLLOW,
            };
            let stat = rustix::fs::statat(dir, path, flags)?;
            let size = stat.st_size.unsigned_abs();
            let links = u32::try_from(stat.st_nlink).expect("few");
            Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Answer::Stat(NodeKind::Directory, 0, 0),
                FileType::Symlink => Answer::Stat(NodeKind::Symlink, size, links),
                FileType::RegularFile => Answer::Stat(NodeKind::File, size, links),
                other @ (FileType::Fifo
                | FileType::Socket
                | FileType::CharacterDevice
                | FileType::BlockDevice
                | FileType::Unknown) => unreachable!("nobody made a {other:?}"),
            })
        }
        Step::List(path) => {
            let dir = opened(dir, path, OFlags::DIRECTORY)?;
            let entries = rustix::fs::Dir::read_from(dir.as_fd())?;
            let names = entries.map(|it| {
                it.expect("an entry")
                    .file_name()
                    .to_str()
                    .expect("a name of ours")
                    .to_owned()
            });
            let mut names: Vec<String> = names.filter(|it| it != "." && it != "..").collect();
            names.sort();
            Ok(Answer::Names(names))
        }
        Step::Open(path, [follow, create, exclusive, truncate, write]) => {
            let mut flags = if *write { OFlags::RDWR } else { OFlags::RDONLY };
            flags.set(OFlags::NOFOLLOW, !follow);
            flags.set(OFlags::CREATE, *create);
            flags.set(OFlags::EXCL, *create && *exclusive);
            flags.set(OFlags::TRUNC, *write && *truncate);
            opened(dir, path, flags).map(|_| Answer::Done)
        }
        Step::Write(path, at, bytes) => {
            let file = opened(dir, path, OFlags::RDWR)?;
            file.write_all_at(bytes, (*at).into()).map_err(error_of)?;
            Ok(Answer::Done)
        }
        Step::Append(path, bytes) => {
            let file = opened(dir, path, OFlags::RDWR)?;
            let end = file.metadata().map_err(error_of)?.len();
            file.write_all_at(bytes, end).map_err(error_of)?;
            Ok(Answer::Done)
        }
        Step::SetSize(path, size) => {
            let file = opened(dir, path, OFlags::RDWR)?;
            file.set_len((*size).into()).map_err(error_of)?;
            Ok(Answer::Done)
        }
        Step::Read(path, at, length) => {
            let file = opened(dir, path, OFlags::RDONLY)?;
            let mut bytes = vec![0; (*length).into()];
            let mut done = 0;
            loop {
                let read = file.read_at(&mut bytes[done..], u64::from(*at) + done as u64);
                match read.map_err(error_of)? {
                    0 => break,
                    read => done += read,
                }
            }
            bytes.truncate(done);
            Ok(Answer::Bytes(bytes))
        }
    }
}

/// Returns the number of an error on Linux.
fn errno(error: FileError) -> Errno {
    match error {
        FileError::BadDescriptor => Errno::BADF,
        FileError::Busy => Errno::BUSY,
        FileError::Exists => Errno::EXIST,
        FileError::Invalid => Errno::INVAL,
        FileError::IsDirectory => Errno::ISDIR,
        FileError::Loop => Errno::LOOP,
        FileError::NameTooLong => Errno::NAMETOOLONG,
        FileError::NoSpace => Errno::NOSPC,
        FileError::NotDirectory => Errno::NOTDIR,
        FileError::NotEmpty => Errno::NOTEMPTY,
        FileError::NotFound => Errno::NOENT,
        FileError::NotPermitted => Errno::PERM,
        FileError::ReadOnly => Errno::ROFS,
        FileError::TooLarge => Errno::FBIG,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_that_of_a_real_file_system(steps in prop::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().expect("a folder");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let dir = rustix::fs::open(folder.path(), flags, Mode::empty()).expect("it opens");
        let (mut files, account) = files(64 * MIB);
        for (i, step) in steps.iter().enumerate() {
            let real = on_disk(&dir, step);
            let ours = in_memory(&mut files, step).map_err(errno);
            prop_assert_eq!(ours, real, "step {} of {:?}", i, &steps[..=i]);
        }
        prop_assert!(!account.denied());
        while files.dismantle(7) {}
        prop_assert_eq!(account.held() > 0, false);
    }
}
