//! Where guests are: the working directory as programs of each make find it, mounts in mounts, and what a program is
//! called that nobody gave a name.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ringfence::api::proto::{LoadModuleRequest, RunSpec};
use tonic::Code;

use crate::guests::{places, places_component};
use crate::harness::{Daemon, SpecExt, by_digest, kit, kit_component, load, spec};

const INVALID: Code = Code::InvalidArgument;
const DENIED: Code = Code::PermissionDenied;

/// Folders that tell where one is: each has a `same.txt` with the folder's own name in it.
struct Folders {
    daemon: Daemon,
    dir: tempfile::TempDir,
}

impl Folders {
    /// With `folders`, in a folder that is granted to write.
    async fn with(folders: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in folders {
            fill(&dir.path().join(folder), folder);
        }
        let grants = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
        let daemon = Daemon::with(&[("policy.mounts", &grants)]).await;
        Self { daemon, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `run` with mounts, as (folder, guest path, whether it is read-only), and a working directory.
    fn placed(&self, run: RunSpec, mounts: &[(&str, &str, bool)], dir: &str) -> RunSpec {
        let run = mounts.iter().fold(run, |run, (host, guest, read_only)| {
            run.mount(self.at(host), guest, *read_only)
        });
        run.change(|spec| spec.working_dir = dir.to_owned())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap()
    }
}

fn fill(folder: &Path, text: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("same.txt"), text).unwrap();
}

fn program(component: bool, args: &[&str]) -> RunSpec {
    let wasm = if component {
        places_component()
    } else {
        places()
    };
    spec(wasm).args(&[&["places"], args].concat())
}

/// What finds a working directory in a way of its own: name, whether it is a component.
const MAKES: [(&str, bool); 4] = [
    ("libc", false),
    ("libc", true),
    ("go", false),
    ("zig", false),
];

const TREE: [&str; 11] = [
    "root",
    "root/sub",
    "root/sub/deep",
    "d",
    "d/x",
    "d/x/y",
    "e",
    "e/x",
    "s",
    "s/x",
    "empty",
];

/// Mounts, and a path with what is to be found there.
type Mounts = &'static [(&'static str, &'static str, bool)];
type Found = (&'static str, &'static str);

cases!(each_make_finds_its_working_dir:
    at_the_root(&[("root", "/", false)], &["", "/"],
        &[("same.txt", "root"), ("sub/same.txt", "root/sub"), ("/same.txt", "root"), ("/sub/same.txt", "root/sub")],
        &["d/same.txt", "/sub/x/same.txt"]),
    at_the_root_which_is_listed_last(&[("d", "/data", false), ("root", "/", true)], &["", "/"],
        &[("same.txt", "root"), ("/same.txt", "root"), ("sub/same.txt", "root/sub"), ("/data/same.txt", "d")],
        &["x/same.txt"]),
    at_a_mount(&[("d", "/data", false)], &["/data", "/data/"],
        &[("same.txt", "d"), ("./same.txt", "d"), ("x/same.txt", "d/x"), ("x/../same.txt", "d"),
            ("/data/same.txt", "d"), ("/data/x/same.txt", "d/x")],
        &["sub/same.txt", "/data/data/same.txt"]),
    at_a_read_only_mount(&[("d", "/data", true)], &["/data"],
        &[("same.txt", "d"), ("x/same.txt", "d/x"), ("/data/same.txt", "d")], &["none"]),
    deep_in_a_mount(&[("d", "/data", false)], &["/data/x"],
        &[("same.txt", "d/x"), ("y/same.txt", "d/x/y"), ("../same.txt", "d"), ("/data/same.txt", "d"),
            ("/data/x/same.txt", "d/x")],
        &["x/same.txt"]),
    deeper_in_a_mount(&[("d", "/data/of/mine", false)], &["/data/of/mine/x/y"],
        &[("same.txt", "d/x/y"), ("../same.txt", "d/x"), ("../../same.txt", "d"), ("/data/of/mine/same.txt", "d")],
        &["y/same.txt", "../../../same.txt"]),
    around_a_nested_mount(&[("d", "/data", false), ("s", "/data/sub", false)], &["/data"],
        &[("same.txt", "d"), ("x/same.txt", "d/x"), ("sub/same.txt", "s"), ("sub/x/same.txt", "s/x"),
            ("/data/sub/same.txt", "s"), ("/data/same.txt", "d")],
        &["sub/y/same.txt"]),
    around_a_nested_mount_that_is_listed_first(&[("s", "/data/sub", false), ("d", "/data", false)], &["/data"],
        &[("same.txt", "d"), ("sub/same.txt", "s"), ("/data/sub/same.txt", "s"), ("/data/same.txt", "d")],
        &["sub/y/same.txt"]),
    at_a_nested_mount(&[("d", "/data", true), ("s", "/data/sub", false)], &["/data/sub"],
        &[("same.txt", "s"), ("x/same.txt", "s/x"), ("../same.txt", "d"), ("/data/same.txt", "d"),
            ("/data/sub/same.txt", "s")],
        &["sub/same.txt"]),
    deep_in_a_nested_mount(&[("d", "/data", false), ("s", "/data/sub", false)], &["/data/sub/x"],
        &[("same.txt", "s/x"), ("../same.txt", "s"), ("../../same.txt", "d"), ("/data/sub/same.txt", "s")],
        &["x/same.txt"]),
    at_the_first_of_two(&[("d", "/a", false), ("e", "/b", false)], &["/a"],
        &[("same.txt", "d"), ("/a/same.txt", "d"), ("/b/same.txt", "e"), ("../b/same.txt", "e")],
        &["b/x/y/same.txt"]),
    at_the_second_of_two(&[("d", "/a", false), ("e", "/b", false)], &["/b"],
        &[("same.txt", "e"), ("x/same.txt", "e/x"), ("/a/same.txt", "d"), ("/b/same.txt", "e")],
        &["y/same.txt"]),
    deep_in_the_first_of_two(&[("d", "/a", false), ("e", "/b", false)], &["/a/x"],
        &[("same.txt", "d/x"), ("y/same.txt", "d/x/y"), ("/b/x/same.txt", "e/x"), ("../same.txt", "d")],
        &["x/same.txt"]),
    at_one_of_two_that_is_listed_last(&[("e", "/b", false), ("d", "/a", false)], &["/a"],
        &[("same.txt", "d"), ("/b/same.txt", "e"), ("/a/same.txt", "d")], &["none"]),
    at_the_root_above_two(&[("d", "/a", false), ("e", "/b", false)], &["/"],
        &[("a/same.txt", "d"), ("/a/same.txt", "d"), ("b/same.txt", "e"), ("b/x/same.txt", "e/x")],
        &["same.txt", "/same.txt", "x/same.txt", "./same.txt"]),
    at_the_root_of_nothing(&[], &["", "/"], &[], &["same.txt", "/same.txt", "/"]),
);
async fn each_make_finds_its_working_dir(
    mounts: Mounts,
    dirs: &[&str],
    found: &[Found],
    missing: &[&str],
) {
    let folders = Folders::with(&TREE).await;
    let nested = |path: &str| {
        mounts.iter().any(|(_, guest, _)| {
            dirs.iter().any(|dir| {
                guest.starts_with(&format!(
                    "{}/{}",
                    dir.trim_end_matches('/'),
                    path.split('/').next().unwrap()
                ))
            })
        })
    };
    for dir in dirs {
        for (make, component) in MAKES {
            let paths = found
                .iter()
                .map(|(path, _)| *path)
                .chain(missing.iter().copied());
            let args: Vec<&str> = [make, "read"].into_iter().chain(paths.clone()).collect();
            let run = folders.placed(program(component, &args), mounts, dir);
            let ran = folders.daemon.ran(run).await.exited(0);
            let read: Vec<&str> = ran.out().trim_end().split('|').collect();
            assert_eq!(read.len(), found.len() + missing.len(), "{ran:?}");
            for (i, (path, text)) in found.iter().enumerate() {
                // What a make cannot reach is an error, never another file.
                let unreachable = match make {
                    "zig" => path.starts_with(['/']) || path.starts_with("..") || nested(path),
                    "libc" => path.starts_with(".."),
                    _ => false,
                };
                if unreachable {
                    assert!(
                        read[i] == *text || read[i] == "-",
                        "{make} {component} {dir} {path}: {read:?}"
                    );
                } else {
                    assert_eq!(read[i], *text, "{make} {component} {dir} {path}: {read:?}");
                }
            }
            for (path, read) in missing.iter().zip(&read[found.len()..]) {
                assert_eq!(*read, "-", "{make} {component} {dir} {path}");
            }
        }
    }
}

/// Where nobody asks, what is mounted first stays first.
#[tokio::test]
async fn a_run_that_says_nothing_starts_at_the_root() {
    let folders = Folders::with(&TREE).await;
    let mounts = [("d", "/data", false), ("e", "/b", false)];
    for (make, component, expected) in [
        ("libc", false, "-|d|d"),
        ("libc", true, "-|d|d"),
        ("go", false, "-|d|d"),
        ("zig", false, "d|-|-"),
    ] {
        let args = [make, "read", "same.txt", "data/same.txt", "/data/same.txt"];
        let run = folders.placed(program(component, &args), &mounts, "");
        let ran = folders.daemon.ran(run).await.exited(0);
        assert_eq!(ran.out().trim_end(), expected, "{make} {component}");
    }
}

/// Mounts, working directory, and what the message has to say.
type Refusing = (Mounts, &'static str, &'static str);

#[tokio::test]
async fn what_a_library_would_misread_is_refused() {
    let folders = Folders::with(&TREE).await;
    fill(&folders.at("e/data"), "e/data");
    std::fs::write(folders.at("e/x/b"), "a file").unwrap();
    symlink("nowhere", folders.at("s/x/c")).unwrap();
    fill(&folders.at("d/of/mine"), "d/of/mine");
    let refusing: [Refusing; 13] = [
        // "." and "/" are one.
        (&[("root", "/", false)], "/sub", "mount at \"/\""),
        (&[("root", "/", true)], "/sub/deep", "mount at \"/\""),
        (
            &[("root", "/", false), ("s", "/sub", false)],
            "/sub",
            "mount at \"/\"",
        ),
        (
            &[("s", "/sub", false), ("root", "/", false)],
            "/sub",
            "mount at \"/\"",
        ),
        (
            &[("d", "/data", false), ("root", "/", false)],
            "/data/x",
            "mount at \"/\"",
        ),
        // "data/x" and "/data/x" are one.
        (&[("e", "/data", false)], "/data", "has \"data\" in it"),
        (
            &[("d", "/a", false), ("e", "/b", false)],
            "/b/x",
            "has \"b\" in it",
        ),
        (&[("s", "/c", true)], "/c/x", "has \"c\" in it"),
        (
            &[("d", "/a", false), ("e", "/of/mine", false)],
            "/a",
            "has \"of/mine\" in it",
        ),
        // So are mounts by such names.
        (
            &[("d", "/data", false), ("s", "/data/data", false)],
            "/data",
            "the mount at \"/data/data\"",
        ),
        (
            &[
                ("d", "/a", false),
                ("s", "/a/b/c", false),
                ("e", "/b", false),
            ],
            "/a",
            "the mount at \"/a/b/c\"",
        ),
        (&[("d", "/a", false)], "/b", "not under a mount"),
        (&[], "/a", "not under a mount"),
    ];
    for (mounts, dir, why) in refusing {
        for component in [false, true] {
            let run = folders.placed(
                program(component, &["libc", "read", "same.txt"]),
                mounts,
                dir,
            );
            let refused = folders.daemon.refused(run).await;
            let refused = refused.is(INVALID, "SPEC_INVALID").at("spec.working_dir");
            assert!(
                refused.message.contains(why),
                "{mounts:?} {dir}: {}",
                refused.message
            );
        }
    }
}

#[tokio::test]
async fn pwd_is_set_where_there_is_something_to_find() {
    let folders = Folders::with(&TREE).await;
    let mounts = [("d", "/data", false)];
    for (env, mounts, dir, expected) in [
        (&[][..], &mounts[..], "/data/x/", "env PWD=/data/x\n"),
        (&[], &mounts, "/", "env PWD=/\n"),
        (&[], &mounts, "", "env PWD=/\n"),
        (&[], &[], "/", "env PWD=/\n"),
        (&[], &[], "", ""),
        (&["A=1"], &mounts, "/data", "env A=1\nenv PWD=/data\n"),
        // The caller's own, where it is no other; and where nothing else was said.
        (
            &["PWD=/data/./x"],
            &mounts,
            "/data/x",
            "env PWD=/data/./x\n",
        ),
        (&["PWD=/data"], &mounts, "", "env PWD=/data\n"),
        (&["PWD=anything"], &[], "", "env PWD=anything\n"),
    ] {
        for habit in [kit, kit_component] {
            let run = folders.placed(habit(&["dump"]).env(env), mounts, dir);
            let ran = folders.daemon.ran(run).await.exited(0);
            assert_eq!(
                ran.out().replace("arg kit\narg dump\n", ""),
                expected,
                "{dir} {env:?}"
            );
        }
    }
    for pwd in ["PWD=/data", "PWD=/", "PWD=", "PWD=data/x", "PWD=/data/x/.."] {
        let run = folders.placed(kit(&["dump"]).env(&["A=1", pwd]), &mounts, "/data/x");
        let refused = folders.daemon.refused(run).await;
        let refused = refused.is(INVALID, "SPEC_INVALID").at("spec.env[1]");
        assert!(!refused.message.contains("/data"), "{}", refused.message);
    }
}

/// Spellings of a place in `outer` that is called `name`.
fn spellings(outer: &str, name: &str) -> Vec<String> {
    let outer = outer.trim_end_matches('/');
    let plain = format!("{outer}/{name}");
    vec![
        format!("{outer}/./{name}"),
        format!("{outer}//{name}"),
        format!("/.{plain}"),
        format!("/{plain}"),
        format!("/.{outer}/./{name}/."),
        format!("{outer}/x/../{name}"),
        format!("{outer}/{name}/x/.."),
        format!("{outer}/link"),
        plain,
    ]
}

cases!(a_read_only_mount_in_a_writable_one_is_refused:
    locked_in_data(&[("d", "/data", false), ("d/x", "/data/locked", true)], 1, "/data/locked"),
    listed_the_other_way(&[("d/x", "/data/locked", true), ("d", "/data", false)], 0, "/data/locked"),
    below_a_writable_root(&[("root", "/", false), ("s", "/lib", true)], 1, "/lib"),
    of_a_folder_from_elsewhere(&[("d", "/data", false), ("s", "/data/deep/down", true)], 1, "/data/deep/down"),
    with_a_writable_one_two_levels_up(
        &[("d", "/a", false), ("e", "/a/b", false), ("s", "/a/b/c", true)], 2, "/a/b/c"),
    at_the_very_place_of_the_folder(&[("d", "/data", false), ("d/x", "/data/x", true)], 1, "/data/x"),
);
async fn a_read_only_mount_in_a_writable_one_is_refused(mounts: Mounts, index: usize, named: &str) {
    let folders = Folders::with(&TREE).await;
    for component in [false, true] {
        let run = folders.placed(
            program(component, &["libc", "write", "/data/./locked/b"]),
            mounts,
            "",
        );
        let refused = folders.daemon.refused(run).await;
        let field = format!("spec.mounts[{index}].guest_path");
        let refused = refused.is(INVALID, "SPEC_INVALID").at(&field);
        assert!(refused.message.contains(named), "{}", refused.message);
    }
}

/// However a path is spelt, a mount to read is not written, and nothing is written but what is mounted to be.
#[tokio::test]
async fn a_nested_mount_keeps_its_mode_however_it_is_spelt() {
    let mounts: [(Mounts, &str, &[&str]); 4] = [
        (
            &[("d", "/data", true), ("s", "/data/in", true)],
            "/data",
            &["d", "s"],
        ),
        (
            &[("d", "/data", true), ("d/x", "/data/in", true)],
            "/data",
            &["d", "s"],
        ),
        (
            &[("d", "/data", true), ("s", "/data/in", false)],
            "/data",
            &["d"],
        ),
        (
            &[("root", "/", true), ("s", "/in", false)],
            "/",
            &["root", "d"],
        ),
    ];
    for (mounts, outer, kept) in mounts {
        for component in [false, true] {
            let folders = Folders::with(&TREE).await;
            symlink("in", folders.at("d/link")).unwrap();
            symlink("in", folders.at("root/link")).unwrap();
            symlink("../d", folders.at("s/out")).unwrap();
            let before: Vec<_> = kept.iter().map(|name| listing(&folders.at(name))).collect();
            let spelt = spellings(outer, "in");
            let mut args = vec!["libc", "attack", outer];
            args.extend(spelt.iter().map(String::as_str));
            let dir = if outer == "/" { "" } else { outer };
            let run = folders.placed(program(component, &args), mounts, dir);
            let ran = folders.daemon.ran(run).await.exited(0);
            let after: Vec<_> = kept.iter().map(|name| listing(&folders.at(name))).collect();
            assert_eq!(after, before, "{mounts:?}: {}", ran.out());
            let writable = mounts.iter().any(|(_, _, read_only)| !read_only);
            assert_eq!(folders.at("s/new").exists(), writable, "{}", ran.out());
        }
    }
}

/// Every path below `dir`, with what is in its file.
fn listing(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            out.extend(listing(&path));
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        out.push((path, text));
    }
    out.sort();
    out
}

#[tokio::test]
async fn a_mount_in_another_wants_its_place_empty() {
    let folders = Folders::with(&TREE).await;
    std::fs::remove_file(folders.at("empty/same.txt")).unwrap();
    for name in ["d/place", "d/up"] {
        std::fs::create_dir_all(folders.at(name)).unwrap();
    }
    symlink("x", folders.at("d/to-x")).unwrap();
    symlink("../s", folders.at("d/out")).unwrap();
    let read = |path: &str| program(false, &["libc", "read", path]);
    // Nothing there, an empty directory, the very directory, a link to it, one that leads out and so nowhere.
    for (host, guest) in [
        ("s", "/data/none"),
        ("s", "/data/place"),
        ("s", "/data/place/deeper"),
        ("d/x", "/data/x"),
        ("d/x", "/data/to-x"),
        ("s", "/data/out"),
    ] {
        for read_only in [false, true] {
            let mounts = [("d", "/data", read_only), (host, guest, read_only)];
            let run = folders.placed(read(&format!("{guest}/same.txt")), &mounts, "");
            let ran = folders.daemon.ran(run).await.exited(0);
            assert_eq!(ran.out().trim_end(), host, "{guest}");
        }
    }
    // Other files, a file, a link to other files.
    for (host, guest) in [
        ("s", "/data/x"),
        ("s", "/data/same.txt"),
        ("s", "/data/to-x"),
        ("d", "/data/x"),
        ("d/x/y", "/data/x"),
    ] {
        for read_only in [false, true] {
            let mounts = [(host, guest, read_only), ("d", "/data", read_only)];
            let refused = folders
                .daemon
                .refused(folders.placed(read("x"), &mounts, ""))
                .await;
            let refused = refused
                .is(INVALID, "SPEC_INVALID")
                .at("spec.mounts[0].guest_path");
            assert!(
                refused.message.contains("something else"),
                "{}",
                refused.message
            );
        }
    }
    // Side by side in the host's folder, apart in the guest: what the caller asks for by both.
    let mounts = [("d", "/a", false), ("d/x", "/b", true)];
    let args = ["libc", "write", "/a/x/new", "/b/new"];
    let ran = folders
        .daemon
        .ran(folders.placed(program(false, &args), &mounts, ""))
        .await;
    assert_eq!(ran.exited(0).out(), "/a/x/new written\n/b/new denied\n");
    assert_eq!(folders.read("d/x/new"), "/a/x/new");
}

#[tokio::test]
async fn a_grant_to_read_is_not_written_through_one_around_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["w/locked/sub", "w/open", "w/locked/out/deep", "other"] {
        fill(&at(folder), folder);
    }
    symlink("locked", at("w/link")).unwrap();
    let grant =
        |name: &str, access: &str| format!("{{ host = {:?}, access = {access:?} }}", at(name));
    let grants = [
        grant("w", "write"),
        grant("w/locked", "read"),
        grant("w/locked/out", "write"),
        grant("other", "read"),
    ];
    let daemon = Daemon::with(&[("policy.mounts", &format!("[{}]", grants.join(", ")))]).await;
    let list = |name: &str, read_only| kit(&["list", "/m"]).mount(at(name), "/m", read_only);
    for (name, read_only) in [
        ("w", true),
        ("w/open", false),
        ("w/locked", true),
        ("w/link", true),
        ("w/locked/sub", true),
        ("w/locked/out", false),
        ("w/locked/out/deep", false),
        ("other", true),
    ] {
        daemon.ran(list(name, read_only)).await.exited(0);
    }
    let denied = [
        "w",
        "w/locked",
        "w/link",
        "w/locked/sub",
        "w/link/sub",
        "other",
    ];
    for name in denied {
        let refused = daemon.refused(list(name, false)).await;
        let refused = refused
            .is(DENIED, "POLICY_DENIED")
            .at("spec.mounts[0].read_only");
        refused.with("rule", "policy.mounts");
    }
    // By another name it is the same directory.
    std::fs::rename(at("w/locked"), at("w/open/moved")).unwrap();
    for name in ["w/open", "w/open/moved", "w/open/moved/sub"] {
        let refused = daemon.refused(list(name, false)).await;
        refused
            .is(DENIED, "POLICY_DENIED")
            .at("spec.mounts[0].read_only");
    }
}

/// Tells its command line: how many arguments, and their bytes.
fn telling(interface: &str, name: &str, how: &str) -> String {
    format!(
        "(module {name}
          (import \"{interface}\" \"args_sizes_get\" (func $sizes (param i32 i32) (result i32)))
          (import \"{interface}\" \"args_get\" (func $args (param i32 i32) (result i32)))
          (import \"{interface}\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export \"memory\") 1)
          (func (export \"_start\") (call $tell))
          (func (export \"plain\") (call $tell))
          (func (export \"double\") (param i32) (result i32)
            (call $tell)
            (i32.mul (local.get 0) (i32.const 2)))
          (func $tell
            (drop (call $sizes (i32.const 0) (i32.const 4)))
            (drop (call $args (i32.const 64) (i32.const 512)))
            (i32.store8 (i32.const 511) (i32.add (i32.const 48) (i32.load (i32.const 0))))
            (i32.store (i32.const 16) (i32.const 511))
            (i32.store (i32.const 20) (i32.add (i32.const 1) (i32.load (i32.const 4))))
            (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24))))
          {how})"
    )
}

const PREVIEW_1: &str = "wasi_snapshot_preview1";

#[tokio::test]
async fn a_program_is_never_without_its_name() {
    let daemon = Daemon::start().await;
    for interface in [PREVIEW_1, "wasi_unstable"] {
        let nameless = telling(interface, "", "");
        let named = telling(interface, "$own", "");
        let loaded = loaded_as(&daemon, "the loaded", telling(interface, "$other", "")).await;
        let unnamed = daemon.loaded(telling(interface, "$kept", "")).await;
        for (run, expected) in [
            (spec(nameless.clone()), "1main\0"),
            (spec(named.clone()), "1own\0"),
            (by_digest(&loaded), "1the loaded\0"),
            (by_digest(&unnamed), "1kept\0"),
            (spec(telling(interface, "$other", "")), "1other\0"),
            (spec(named.clone()).entry("plain"), "1own\0"),
            (spec(named.clone()).args(&["a", "b"]), "2a\0b\0"),
            (spec(named.clone()).args(&[""]), "1\0"),
            (spec(named.clone()).entry("plain").args(&["a"]), "1a\0"),
            // Its parameters are no command line.
            (spec(named.clone()).entry("double").args(&["21"]), "1own\0"),
            (
                spec(nameless.clone()).entry("double").args(&["21"]),
                "1main\0",
            ),
        ] {
            assert_eq!(
                daemon.ran(run).await.exited(0).out(),
                expected,
                "{interface}"
            );
        }
    }
}

/// A module's own name is a guest's text.
#[tokio::test]
async fn a_name_that_a_guest_made_up_is_text_without_controls() {
    let daemon = Daemon::start().await;
    let names = |name: &[u8]| {
        let mut wasm = wat::parse_str(telling(PREVIEW_1, "", "")).unwrap();
        let mut section = b"\x04name\0".to_vec();
        section.push(u8::try_from(name.len() + 1).unwrap());
        section.push(u8::try_from(name.len()).unwrap());
        section.extend(name);
        wasm.push(0);
        wasm.push(u8::try_from(section.len()).unwrap());
        wasm.extend(section);
        wasm
    };
    for (name, expected) in [
        (&b"a\0b"[..], "1a\\u{0}b\0"),
        (b"a\nb\x1b[2J", "1a\\nb\\u{1b}[2J\0"),
        (b"", "1main\0"),
        // No text: it names nothing.
        (b"\xff\xfe", "1main\0"),
    ] {
        let ran = daemon.ran(spec(names(name))).await.exited(0);
        assert_eq!(ran.out(), expected);
    }
}

#[tokio::test]
async fn a_component_is_never_without_its_name() {
    let daemon = Daemon::start().await;
    let named = |name: &str| {
        // "component-name": what the component itself is called.
        let size = u8::try_from(name.len()).unwrap();
        let mut section = b"\x0ecomponent-name\0".to_vec();
        section.extend([size + 1, size]);
        section.extend(name.as_bytes());
        let mut wasm = places_component().to_vec();
        wasm.extend([0, u8::try_from(section.len()).unwrap()]);
        wasm.extend(section);
        wasm
    };
    let loaded = loaded_as(&daemon, "as loaded", named("own")).await;
    for (run, expected) in [
        (spec(named("own")), "own\n"),
        (spec(named("")), "main\n"),
        (spec(named("a\0b")), "a\\u{0}b\n"),
        (by_digest(&loaded), "as loaded\n"),
        (by_digest(&loaded).args(&["given"]), "given\n"),
    ] {
        assert_eq!(daemon.ran(run).await.exited(0).out(), expected);
    }
}

/// Loads a module under a name.
async fn loaded_as(daemon: &Daemon, name: &str, wasm: impl Into<bytes::Bytes>) -> String {
    let request = LoadModuleRequest {
        name: name.to_owned(),
        ..load(wasm)
    };
    let answer = daemon.client.clone().load_module(request).await;
    answer.unwrap().into_inner().module.unwrap().digest
}

/// The command line's own daemon grants what its flags say, and no flag takes away from another.
#[tokio::test]
async fn the_command_line_mounts_a_folder_and_what_is_in_it() {
    let folders = Folders::with(&TREE).await;
    symlink("x", folders.at("d/link")).unwrap();
    let wasm = folders.at("places.wasm");
    std::fs::write(&wasm, places()).unwrap();
    let mount = |host: &str, guest: &str| format!("{}:{guest}", folders.at(host).display());
    for inner in ["d/x", "d/link", "d"] {
        let output = crate::process::ringfence()
            .args(["run", "--mount", &mount("d", "/a")])
            .args(["--mount", &format!("{}:ro", mount(inner, "/b"))])
            .arg(&wasm)
            .args(["libc", "write", "/a/new", "/b/new"])
            .output()
            .unwrap();
        let told = String::from_utf8(output.stdout).unwrap();
        assert_eq!(told, "/a/new written\n/b/new denied\n", "{inner}");
    }
}
