use super::contents::CHUNK_BYTES;
use super::*;

pub(super) const MIB: usize = 1 << 20;

pub(super) fn files(limit: usize) -> (MemoryFs, Arc<FileMemoryAccount>) {
    let account = FileMemoryAccount::new(limit, Arc::default());
    let files = MemoryFs::new(Arc::clone(&account), None).expect("there is room for a root");
    (files, account)
}

const CREATE: OpenHow = OpenHow {
    follow: FollowLast::Always,
    create: true,
    exclusive: false,
    truncate: false,
    directory: false,
    write: true,
};

pub(super) const OPEN: OpenHow = OpenHow {
    create: false,
    write: false,
    ..CREATE
};

fn write_file(files: &mut MemoryFs, path: &str, bytes: &[u8]) -> Result<(), FileError> {
    let node = files.open_at(files.root(), path, CREATE)?;
    let written = files.write(node, WritePosition::Offset(0), bytes);
    files.release(node);
    written.map(|_| ())
}

fn read_file(files: &mut MemoryFs, path: &str) -> Result<Vec<u8>, FileError> {
    let node = files.open_at(files.root(), path, OPEN)?;
    let size = files.stat(node)?.size;
    let mut bytes = vec![0; usize::try_from(size).expect("it is small")];
    let read = files.read(node, 0, &mut bytes);
    files.release(node);
    bytes.truncate(read?);
    Ok(bytes)
}

pub(super) fn names(files: &MemoryFs, dir: NodeId) -> Vec<String> {
    let mut names = Vec::new();
    let more = files.list(dir, None, |name, _, _| {
        names.push(name.to_owned());
        true
    });
    assert_eq!(more, Ok(false));
    names
}

#[test]
fn everything_charged_is_released_when_everything_is_removed() {
    let (mut files, account) = files(16 * MIB);
    let empty = account.held();
    let root = files.root();
    files.create_directory_at(root, "d").expect("made");
    for i in 0..100_usize {
        write_file(&mut files, &format!("d/{i}"), &vec![1; i * 2000]).expect("written");
        files
            .symlink_at("d", root, &format!("l{i}"))
            .expect("linked");
    }
    let node = files.open_at(root, "d/99", OPEN).expect("there");
    for i in 0..100 {
        files
            .unlink_file_at(root, &format!("d/{i}"))
            .expect("there");
        files.unlink_file_at(root, &format!("l{i}")).expect("there");
    }
    files.remove_directory_at(root, "d").expect("empty");
    // A file that was removed lives while it is open.
    let mut byte = [0];
    assert_eq!(files.read(node, 198_000 - 1, &mut byte), Ok(1));
    assert!(account.held() > empty + 198_000);
    files.release(node);
    while files.sweep(1) {}
    assert_eq!(account.held(), empty);
    assert!(!account.denied());
}

#[test]
fn what_is_dismantled_in_small_steps_is_gone_as_a_whole() {
    let (mut files, account) = files(16 * MIB);
    for i in 0..50_usize {
        files.make_directories(&format!("a/{i}/c")).expect("made");
        write_file(&mut files, &format!("a/{i}/f"), &vec![1; i * 5000]).expect("written");
    }
    let mut steps = 0;
    while files.dismantle(3) {
        steps += 1;
    }
    assert!(steps > 20, "{steps}");
    assert!(files.inodes.is_empty());
    assert_eq!(account.held(), 0, "{steps}");
}

#[test]
fn a_file_grows_to_the_limit_and_not_past_it() {
    let (mut files, account) = files(MIB);
    let node = files.open_at(files.root(), "f", CREATE).expect("made");
    let piece = vec![7; 10_000];
    let mut size = 0;
    loop {
        match files.write(node, WritePosition::End, &piece) {
            Ok((written, end)) => {
                size += written as u64;
                assert_eq!(end, size);
            }
            Err(error) => {
                assert_eq!(error, FileError::NoSpace);
                break;
            }
        }
        assert!(account.held() <= MIB);
    }
    assert!(account.denied());
    // No more than the last chunk's rest and what the file costs besides is missing.
    assert!(size > (MIB - 16 * 1024) as u64, "{size}");
    files.set_size(node, 0).expect("it shrinks");
    while files.sweep(10) {}
    assert_eq!(
        files.write(node, WritePosition::End, &piece),
        Ok((10_000, 10_000))
    );
}

#[test]
fn a_million_files_end_at_the_limit() {
    let (mut files, account) = files(4 * MIB);
    let made = (0..1_000_000).take_while(|i| write_file(&mut files, &i.to_string(), b"").is_ok());
    let made = made.count();
    assert!((5_000..20_000).contains(&made), "{made}");
    assert!(account.denied());
    assert!(account.held() <= 4 * MIB);
    assert_eq!(names(&files, files.root()).len(), made);
}

#[test]
fn linear_memory_and_files_share_one_limit() {
    let (mut files, account) = files(MIB);
    account.set_linear(MIB - 100_000);
    assert_eq!(write_file(&mut files, "a", &[1; 60_000]), Ok(()));
    assert_eq!(
        write_file(&mut files, "b", &[1; 60_000]),
        Err(FileError::NoSpace)
    );
    account.set_linear(0);
    assert_eq!(write_file(&mut files, "b", &[1; 60_000]), Ok(()));
    assert!(account.peak() <= MIB);
}

#[test]
fn sparse_files_cost_what_they_hold() {
    let (mut files, account) = files(MIB);
    let node = files.open_at(files.root(), "f", CREATE).expect("made");
    let before = account.held();
    for i in 1..10_u64 {
        assert!(
            files
                .write(node, WritePosition::Offset(i << 40), b"x")
                .is_ok()
        );
    }
    assert!(account.held() < before + 10_000, "{}", account.held());
    assert_eq!(files.stat(node).expect("there").size, (9 << 40) + 1);
    let mut bytes = [9; 3];
    assert_eq!(files.read(node, (3 << 40) - 1, &mut bytes), Ok(3));
    assert_eq!(bytes, [0, b'x', 0]);
    assert_eq!(
        files.write(node, WritePosition::Offset(u64::MAX - 1), b"xyz"),
        Err(FileError::TooLarge)
    );
    assert_eq!(files.set_size(node, 1 << 63), Err(FileError::TooLarge));
    files.set_size(node, 1 << 41).expect("it shrinks");
    while files.sweep(100) {}
    files.set_size(node, 1 << 42).expect("it grows");
    assert_eq!(files.read(node, 3 << 40, &mut bytes[..1]), Ok(1));
    assert_eq!(bytes[0], 0);
}

#[test]
fn given_bytes_are_shared_until_they_are_written_to() {
    let (mut files, account) = files(16 * MIB);
    let given = Bytes::from(vec![5; 3 * CHUNK_BYTES + 10]);
    files.put_file("dir/f", &given).expect("there is room");
    assert_eq!(files.put_file("dir/f", &given), Err(FileError::Exists));
    assert_eq!(
        files.put_file("dir/f/g", &given),
        Err(FileError::NotDirectory)
    );
    let (root, before) = (files.root(), account.held());
    assert!(
        before > given.len() && before < given.len() + 4096,
        "{before}"
    );
    let node = files.open_at(root, "dir/f", CREATE).expect("there");
    assert!(!given.is_unique(), "the file shares them");
    assert!(
        files
            .write(node, WritePosition::Offset(CHUNK_BYTES as u64 + 1), b"abc")
            .is_ok()
    );
    // What is returned holds no part of the request.
    let after = files.share(node).expect("a file");
    assert_ne!(after[0].as_ptr(), given.as_ptr());
    assert_eq!(&after[1][..5], b"\x05abc\x05");
    assert!(given.iter().all(|byte| *byte == 5));
    assert_eq!(after.concat().len(), given.len());
}

#[test]
fn a_shared_file_that_shrinks_holds_only_what_is_left() {
    let (mut files, account) = files(16 * MIB);
    for (size, length) in [
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES, 0),
        (CHUNK_BYTES, CHUNK_BYTES as u64 - 1),
        (3 * CHUNK_BYTES, 1),
    ] {
        let empty = account.held();
        let given = Bytes::from(vec![5; size]);
        files.put_file("f", &given).expect("there is room");
        let node = files.open_at(files.root(), "f", OPEN).expect("there");
        let before = account.held();
        files.set_size(node, length).expect("a file");
        while files.sweep(1) {}
        assert!(given.is_unique(), "{length} of {size} bytes");
        assert!(account.held() < before, "{length} of {size} bytes");
        files.release(node);
        let left = read_file(&mut files, "f").expect("there");
        assert_eq!(left, given[..left.len()]);
        assert_eq!(left.len() as u64, length);
        files.unlink_file_at(files.root(), "f").expect("there");
        while files.sweep(1) {}
        assert_eq!(account.held(), empty, "{length} of {size} bytes");
    }
}

#[test]
fn files_that_do_not_fit_leave_no_charge() {
    let (mut files, account) = files(MIB);
    let before = account.held();
    let given = Bytes::from(vec![5; MIB - 2000]);
    assert_eq!(files.put_file("f", &given), Err(FileError::NoSpace));
    assert_eq!(account.held(), before);
}

#[test]
fn no_path_leads_out() {
    let (mut files, _) = files(MIB);
    let root = files.root();
    files.make_directories("a/b").expect("made");
    write_file(&mut files, "secret", b"s").expect("written");
    let a = files.open_at(root, "a", OPEN).expect("there");
    files.symlink_at("..", a, "up").expect("made");
    files.symlink_at("b/../../secret", a, "out").expect("made");
    files.symlink_at("b/../b", a, "in").expect("made");
    for path in [
        "..",
        "/secret",
        "../secret",
        "b/../../secret",
        "up/secret",
        "out",
        "up",
    ] {
        let found = files.stat_at(a, path, FollowLast::Always);
        assert_eq!(
            found.map(|it| it.size),
            Err(FileError::NotPermitted),
            "{path}"
        );
    }
    assert!(files.stat_at(a, "in", FollowLast::Always).is_ok());
    assert_eq!(
        files.symlink_at("/secret", a, "x"),
        Err(FileError::NotPermitted)
    );
    // From above, the same links lead where they say.
    assert!(
        files
            .stat_at(root, "a/up/secret", FollowLast::Always)
            .is_ok()
    );
}

#[test]
fn links_that_go_in_circles_or_on_and_on_end() {
    let (mut files, _) = files(16 * MIB);
    let root = files.root();
    files.symlink_at("y", root, "x").expect("made");
    files.symlink_at("x", root, "y").expect("made");
    assert_eq!(
        files.find(root, "x", FollowLast::Always),
        Err(FileError::Loop)
    );
    let long = "./".repeat(2000) + "z";
    files.symlink_at(&long, root, "long").expect("made");
    assert_eq!(
        files.find(root, "long", FollowLast::Always),
        Err(FileError::NotFound)
    );
    for i in 0..10 {
        files
            .symlink_at(
                &("./".repeat(2000) + &format!("l{}", i + 1)),
                root,
                &format!("l{i}"),
            )
            .expect("made");
    }
    assert_eq!(
        files.find(root, "l0", FollowLast::Always),
        Err(FileError::Loop)
    );
    let deep = "a/".repeat(2049);
    assert_eq!(
        files.find(root, &deep, FollowLast::Always),
        Err(FileError::NameTooLong)
    );
    let name = "n".repeat(MAX_NAME + 1);
    assert_eq!(
        write_file(&mut files, &name, b""),
        Err(FileError::NameTooLong)
    );
    assert_eq!(write_file(&mut files, &name[1..], b""), Ok(()));
}

#[test]
fn mount_points_stay_empty_and_where_they_are() {
    let (mut files, _) = files(MIB);
    let root = files.root();
    files.make_mount_point("usr/lib").expect("made");
    assert_eq!(
        write_file(&mut files, "usr/lib/x", b""),
        Err(FileError::ReadOnly)
    );
    assert_eq!(
        files.create_directory_at(root, "usr/lib/x"),
        Err(FileError::ReadOnly)
    );
    assert_eq!(
        files.remove_directory_at(root, "usr/lib"),
        Err(FileError::Busy)
    );
    assert_eq!(
        files.rename_at((root, "usr/lib"), (root, "lib")),
        Err(FileError::Busy)
    );
    files.create_directory_at(root, "other").expect("made");
    assert_eq!(
        files.rename_at((root, "other"), (root, "usr/lib")),
        Err(FileError::Busy)
    );
    assert_eq!(write_file(&mut files, "usr/x", b""), Ok(()));
}

#[test]
fn a_rename_at_the_limit_needs_no_more_than_the_names_do() {
    let (mut files, account) = files(MIB);
    let root = files.root();
    write_file(&mut files, "long-name", b"1").expect("written");
    account.set_linear(MIB - account.held());
    assert_eq!(
        files.rename_at((root, "long-name"), (root, "short")),
        Ok(())
    );
    let longer = "n".repeat(200);
    let held = account.held();
    assert_eq!(
        files.rename_at((root, "short"), (root, &longer)),
        Err(FileError::NoSpace)
    );
    assert_eq!(account.held(), held);
    assert_eq!(read_file(&mut files, "short"), Ok(b"1".to_vec()));
}

#[test]
fn directories_nest_without_bound_and_go_without_recursion() {
    let (mut files, account) = files(64 * MIB);
    let mut here = files.root();
    for _ in 0..50_000 {
        files.create_directory_at(here, "d").expect("there is room");
        here = files.open_at(here, "d", OPEN).expect("there");
    }
    files.create_directory_at(here, "x").expect("made");
    assert_eq!(
        files.rename_at((here, "x"), (here, "y")),
        Err(FileError::NameTooLong)
    );
    while files.dismantle(100) {}
    assert_eq!(account.held(), 0);
}
