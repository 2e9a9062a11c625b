//! Volumes and secrets as Kubernetes, OpenShift and Docker mount them.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use ringfence::api::proto::RunRequest;
use ringfence::model::request::Digest;
use tempfile::TempDir;

use crate::harness::{Ran, by_digest, connect, load};
use crate::machine::{
    FS_GROUP, Machine, USER, is_root, open_folder, runs_hello, set, starts, until,
};
use crate::modules::saying;
use crate::process::{Served, ringfence};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o777
}

/// The daemon of the image, in a pod whose volumes have a group.
fn pod() -> Machine {
    Machine::default().user(USER, USER, &[FS_GROUP])
}

/// A secret as a kubelet mounts it: links to a folder that is swapped when the secret changes.
struct Secret(TempDir);

impl Secret {
    fn new(name: &str, bytes: &[u8], file_mode: u32, uid: u32, gid: u32) -> Self {
        let secret = Self(open_folder(0o755));
        secret.write(1, name, bytes, (file_mode, uid, gid));
        symlink(format!("..data/{name}"), secret.0.path().join(name)).unwrap();
        secret
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Changes it, by one rename.
    fn write(&self, version: u32, name: &str, bytes: &[u8], (mode, uid, gid): (u32, u32, u32)) {
        let folder = format!("..2026_{version}");
        let own = self.0.path().join(&folder);
        std::fs::create_dir(&own).unwrap();
        set(&own, 0o755, 0, 0);
        std::fs::write(own.join(name), bytes).unwrap();
        set(&own.join(name), mode, uid, gid);
        let next = self.0.path().join("..data_tmp");
        symlink(&folder, &next).unwrap();
        std::fs::rename(next, self.0.path().join("..data")).unwrap();
    }
}

fn artifacts(dir: &Path, key: &Path) -> [String; 4] {
    [
        "--set".to_owned(),
        format!("artifacts.dir={}", dir.display()),
        "--set".to_owned(),
        format!("artifacts.key_file={}", key.display()),
    ]
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn module() -> Vec<u8> {
    saying("kept", 0)
}

/// Loads a module, and says whether its code was there already.
async fn loads(daemon: &Served) -> bool {
    let mut client = connect(&daemon.addr).await;
    let answer = client.load_module(load(module())).await.unwrap();
    let answer = answer.into_inner();
    assert!(answer.module.is_some());
    answer.cached
}

/// The folder that is a daemon's own, in a volume or itself, once it has the code of two modules: that of the daemon's own
/// first run, and one that was loaded.
fn own_folder(volume: &Path) -> PathBuf {
    until("compiled code", || {
        let inside = volume.join(format!("ringfence-{USER}"));
        let own = if inside.is_dir() {
            inside
        } else {
            volume.to_owned()
        };
        let files = std::fs::read_dir(&own).unwrap().flatten();
        let files = files.filter(|it| it.file_type().is_ok_and(|kind| kind.is_file()));
        (files.count() >= 2).then_some(own)
    })
}

/// What a kubelet does to a volume with fsGroup each time that it mounts it.
fn give_to_group(path: &Path, gid: u32) {
    let there = std::fs::symlink_metadata(path).unwrap();
    let more = if there.is_dir() { 0o2770 } else { 0o660 };
    set(path, (there.mode() & 0o7777) | more, there.uid(), gid);
    if there.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give_to_group(&entry.unwrap().path(), gid);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compiled_code_is_kept_in_whatever_a_platform_mounts() {
    if !is_root() {
        return;
    }
    let volumes = [
        // An emptyDir, without fsGroup and with it; a claim with it.
        (0o777, 0, 0),
        (0o2777, 0, FS_GROUP),
        (0o2775, 0, FS_GROUP),
        // A folder of an image, which Docker gives to a new volume; one of OpenShift's, for any user in group 0.
        (0o755, USER, USER),
        (0o700, USER, USER),
        (0o2770, USER, FS_GROUP),
    ];
    for (mode_of_it, uid, gid) in volumes {
        let volume = open_folder(0o755);
        set(volume.path(), mode_of_it, uid, gid);
        let key = Secret::new("key", &[7; 32], 0o440, 0, FS_GROUP);
        let args = artifacts(volume.path(), &key.path("key"));
        let daemon = pod().serve(&strs(&args));
        assert!(!loads(&daemon).await, "{mode_of_it:o}");
        runs_hello(&daemon, &daemon.addr);
        let own = own_folder(volume.path());
        assert_eq!(mode(&own), 0o700, "{mode_of_it:o}");
        assert_eq!(daemon.end().0, 0);
        // The pod is started again.
        give_to_group(volume.path(), FS_GROUP);
        let daemon = pod().serve(&strs(&args));
        assert!(loads(&daemon).await, "{mode_of_it:o}");
        assert_eq!(mode(&own), 0o700, "{mode_of_it:o}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_daemon_made_in_a_volume_of_a_group_is_its_own_again() {
    if !is_root() {
        return;
    }
    let volume = open_folder(0o755);
    set(volume.path(), 0o2775, 0, FS_GROUP);
    let key = volume.path().join("secret/key");
    let args = artifacts(&volume.path().join("code"), &key);
    let daemon = pod().serve(&strs(&args));
    assert!(!loads(&daemon).await);
    own_folder(&volume.path().join("code"));
    assert_eq!(mode(&key), 0o600);
    assert_eq!(daemon.end().0, 0);
    give_to_group(volume.path(), FS_GROUP);
    assert_eq!(mode(&key), 0o660);
    let daemon = pod().serve(&strs(&args));
    assert!(loads(&daemon).await);
    assert_eq!(
        (mode(&key), mode(&volume.path().join("code"))),
        (0o600, 0o700)
    );
}

#[test]
fn a_key_is_taken_from_a_secret_and_refused_where_others_may_write_it() {
    if !is_root() {
        return;
    }
    let code = open_folder(0o777);
    let with = |file_mode, uid, gid| {
        let key = Secret::new("key", &[7; 32], file_mode, uid, gid);
        let args = artifacts(code.path(), &key.path("key"));
        (key, args)
    };
    // Told, where others than a group of the daemon may read it.
    for (file_mode, uid, gid, warns) in [
        (0o440, 0, FS_GROUP, false),
        (0o644, 0, 0, true),
        (0o644, 0, FS_GROUP, true),
        (0o400, USER, USER, false),
        (0o640, USER, FS_GROUP, false),
        (0o640, USER, 12_345, true),
    ] {
        let (_key, args) = with(file_mode, uid, gid);
        let mut command = pod().command();
        command
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(&args);
        let told = starts(command);
        let is_told = told.contains("artifacts.key_file can be read by others");
        assert_eq!(is_told, warns, "{file_mode:o} {uid}:{gid}: {told}");
    }
    for (file_mode, uid, gid, why) in [
        (0o666, 0, 0, "others may write it: it is 0:0 with mode 0666"),
        (0o660, 0, 12_345, "cannot read it"),
        (0o460, USER, 12_345, "others may write it"),
        (
            0o444,
            12_345,
            12_345,
            "it belongs to user 12345, and this daemon is user 65532",
        ),
        (
            0o400,
            0,
            0,
            "cannot read it: Permission denied (os error 13); it is 0:0 with mode 0400",
        ),
    ] {
        let (key, args) = with(file_mode, uid, gid);
        let told = pod().refuses(&strs(&args));
        assert!(told.contains(why), "{file_mode:o}: {told}");
        assert!(told.contains(key.path("key").to_str().unwrap()), "{told}");
    }
}

#[test]
fn a_folder_that_is_not_the_daemons_alone_and_cannot_be_made_so_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let key = Secret::new("key", &[7; 32], 0o440, 0, FS_GROUP);
    let refuses = |dir: &Path, why: &str| {
        let told = pod().refuses(&strs(&artifacts(dir, &key.path("key"))));
        assert!(told.contains(why), "{told}");
        assert!(told.contains(dir.to_str().unwrap()), "{told}");
    };
    let closed = open_folder(0o755);
    refuses(closed.path(), "cannot make a folder of its own in it");
    // What another user of the volume put in its place.
    let planted = open_folder(0o777);
    let own = planted.path().join(format!("ringfence-{USER}"));
    std::fs::create_dir(&own).unwrap();
    set(&own, 0o777, 12_345, 12_345);
    refuses(planted.path(), "is not a folder of this daemon");
    std::fs::remove_dir(&own).unwrap();
    let elsewhere = open_folder(0o700);
    set(elsewhere.path(), 0o700, USER, USER);
    symlink(elsewhere.path(), &own).unwrap();
    refuses(planted.path(), "is not a folder of this daemon");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

/// A token's line in a file of them.
fn line(token: &str) -> Vec<u8> {
    format!("default {}\n", Digest::of(token.as_bytes())).into_bytes()
}

fn takes(daemon: &Served, token: &str) -> bool {
    let shown = TempDir::new().unwrap();
    let shown_at = shown.path().join("token");
    std::fs::write(&shown_at, token).unwrap();
    let output = ringfence()
        .args(["ps", "--server", &daemon.addr, "--token-file"])
        .arg(&shown_at)
        .output();
    output.unwrap().status.success()
}

#[test]
fn tokens_come_from_a_secret_of_any_mode_and_are_followed_through_links_into_it() {
    if !is_root() {
        return;
    }
    // As it is mounted, and by a link of the operator's into it.
    for (file_mode, gid, linked) in [(0o440, FS_GROUP, false), (0o644, 0, true)] {
        let secret = Secret::new("tokens", &line("first"), file_mode, 0, gid);
        let own = open_folder(0o755);
        let link = own.path().join("tokens");
        symlink(secret.path("tokens"), &link).unwrap();
        let path = if linked { link } else { secret.path("tokens") };
        let set = [
            format!("auth.tokens_file={}", path.display()),
            // Beside which nothing else of the folder for temporary files is let in.
            "store.spool=/nowhere".to_owned(),
            "auth.open_health=true".to_owned(),
        ];
        let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
        let daemon = pod().serve(&args);
        assert!(takes(&daemon, "first"), "{}", path.display());
        secret.write(2, "tokens", &line("second"), (file_mode, 0, gid));
        until("the second token", || {
            takes(&daemon, "second").then_some(())
        });
        assert!(!takes(&daemon, "first"));
    }
    let secret = Secret::new("tokens", &line("first"), 0o400, 0, 0);
    let path = secret.path("tokens").display().to_string();
    let told = pod().refuses(&["--set", &format!("auth.tokens_file={path}")]);
    assert!(
        told.contains(&path) && told.contains("Permission denied"),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn modules_are_kept_in_whatever_a_platform_mounts() {
    if !is_root() {
        return;
    }
    for (mode_of_it, gid, below) in [
        (0o777, 0, ""),
        (0o2775, FS_GROUP, ""),
        (0o2775, FS_GROUP, "/a/b"),
    ] {
        let volume = open_folder(0o755);
        set(volume.path(), mode_of_it, 0, gid);
        let url = format!("store.url=file://{}{below}", volume.path().display());
        let daemon = pod().serve(&["--set", &url]);
        assert!(!loads(&daemon).await);
        assert_eq!(daemon.end().0, 0);
        give_to_group(volume.path(), gid);
        let daemon = pod().serve(&["--set", &url]);
        let spec = Some(by_digest(&Digest::of(&module()).to_string()));
        let mut client = connect(&daemon.addr).await;
        let answer = client.run(RunRequest { spec }).await.unwrap();
        let ran = Ran::new(answer.into_inner()).exited(0);
        assert_eq!(ran.out(), "kept");
    }
    let closed = open_folder(0o755);
    let told = pod().refuses(&[
        "--set",
        &format!("store.url=file://{}", closed.path().display()),
    ]);
    assert!(
        told.contains(closed.path().to_str().unwrap()) && told.contains("denied"),
        "{told}"
    );
}

#[test]
fn a_socket_lies_in_a_volume_of_any_mode() {
    if !is_root() {
        return;
    }
    for (mode_of_it, gid) in [(0o777, 0), (0o2777, FS_GROUP), (0o2775, FS_GROUP)] {
        let volume = open_folder(0o755);
        set(volume.path(), mode_of_it, 0, gid);
        let socket = format!("unix:{}/ringfence.sock", volume.path().display());
        let daemon = pod().serve_on(&[&socket], &[]);
        runs_hello(&daemon, &socket);
        let there = std::fs::metadata(volume.path().join("ringfence.sock")).unwrap();
        assert_eq!((there.mode() & 0o777, there.uid()), (0o660, USER));
    }
}
