//! Compiled modules on disk: what comes back after a restart, and what never does.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::guests;
use crate::harness::{Daemon, by_digest, kit, spec};
use crate::modules::saying;

/// A folder for modules, one for their code, and a key.
struct Disk(TempDir);

impl Disk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn code(&self) -> PathBuf {
        self.0.path().join("code")
    }

    async fn daemon(&self, more: &[(&str, &str)]) -> Daemon {
        let at = |name: &str| self.0.path().join(name).display().to_string();
        let url = format!("file://{}", at("store"));
        let (code, key) = (at("code"), at("key"));
        let ours = [
            ("store.url", url.as_str()),
            ("artifacts.dir", &code),
            ("artifacts.key_file", &key),
        ];
        Daemon::with(&[&ours, more].concat()).await
    }

    /// The files, once there are `count`: they are written behind whoever waits for a module.
    async fn files(&self, count: usize) -> Vec<PathBuf> {
        loop {
            let mut files: Vec<PathBuf> = std::fs::read_dir(self.code())
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.is_file())
                .collect();
            if files.len() >= count {
                files.sort();
                return files;
            }
            tokio::task::yield_now().await;
        }
    }
}

async fn stopped(mut daemon: Daemon) {
    daemon.drain();
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn after_a_restart_modules_run_without_being_compiled() {
    let disk = Disk::new();
    let daemon = disk.daemon(&[]).await;
    let digests = [
        daemon.loaded(guests::kit()).await,
        daemon.loaded(guests::kit_component()).await,
    ];
    // What the daemon runs to see that it works is among them.
    disk.files(3).await;
    stopped(daemon).await;

    let daemon = disk.daemon(&[]).await;
    for digest in &digests {
        let run = by_digest(digest);
        let run = crate::harness::SpecExt::args(run, &["kit", "hello"]);
        assert_eq!(daemon.ran(run).await.exited(0).out(), "hello\n");
    }
    assert!(daemon.load(guests::kit()).await.unwrap().cached);
    assert_eq!(daemon.ran(kit(&["hello"])).await.exited(0).out(), "hello\n");
    assert_eq!(
        (
            daemon.probe.compilations(),
            daemon.probe.rejected_artifacts()
        ),
        (0, 0)
    );
    let told = daemon.load(guests::kit()).await.unwrap().module.unwrap();
    assert_eq!(told.cached_in, ["memory", "disk"]);
}

#[tokio::test]
async fn the_folder_and_the_key_are_the_daemons_alone() {
    let disk = Disk::new();
    stopped(disk.daemon(&[]).await).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&disk.code()), 0o700);
    let key = disk.0.path().join("key");
    assert_eq!(mode(&key), 0o600);
    assert!(disk.files(1).await.iter().all(|file| mode(file) == 0o600));

    let refuses = |why: &'static str| {
        let (code, key) = (disk.code(), key.clone());
        async move {
            let mut overrides = ringfence::config::Overrides::default();
            let mut set = |key: &str, value: &Path| {
                let value = value.display().to_string();
                overrides.set.push((key.to_owned(), value));
            };
            set("artifacts.dir", &code);
            set("artifacts.key_file", &key);
            overrides
                .set
                .push(("listen".into(), "[\"127.0.0.1:0\"]".into()));
            let (config, _) = ringfence::app::load_config(&overrides).unwrap();
            let built = ringfence::app::build(&config, crate::harness::program()).await;
            let error = built.err().expect("it does not start").to_string();
            assert!(error.contains(why), "{error}");
        }
    };
    let chmod = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(&key, 0o666);
    refuses("others may write it: it is ").await;
    chmod(&key, 0o600);
    std::os::unix::fs::chown(&key, Some(12_345), None).unwrap_or_default();
    if std::fs::metadata(&key).unwrap().uid() == 12_345 {
        refuses("it belongs to user 12345").await;
        std::os::unix::fs::chown(&key, Some(0), None).unwrap();
    }
    std::fs::write(&key, [7; 31]).unwrap();
    refuses("31 bytes; a key has at least 32").await;
}

#[tokio::test]
async fn nothing_but_the_daemons_own_code_is_ever_executed() {
    const MODULES: usize = 200;
    let disk = Disk::new();
    let daemon = disk.daemon(&[]).await;
    let module = |i: usize| saying(&format!("module {i}"), 0);
    let mut digests = Vec::new();
    for i in 0..MODULES {
        digests.push(daemon.loaded(module(i)).await);
    }
    disk.files(MODULES + 1).await;
    stopped(daemon).await;

    // Code of another key, and of an engine whose code this one does not take.
    let (other_key, other_engine) = (Disk::new(), Disk::new());
    for (other, more) in [
        (&other_key, &[][..]),
        (&other_engine, &[("engine.features", "[\"threads\"]")]),
    ] {
        let daemon = other.daemon(more).await;
        for i in 0..MODULES {
            daemon.loaded(module(i)).await;
        }
        other.files(MODULES + 1).await;
        stopped(daemon).await;
    }
    let mut spoilt = 0;
    for (i, digest) in digests.iter().enumerate() {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let of = |disk: &Disk| {
            let entries = std::fs::read_dir(disk.code()).unwrap().flatten();
            let mut paths = entries.map(|entry| entry.path());
            let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
            paths.find(|path| name(path).starts_with(hex)).unwrap()
        };
        let path = of(&disk);
        let mut bytes = std::fs::read(&path).unwrap();
        match i % 5 {
            // One bit, anywhere.
            0 => {
                let at = i * 7919 % (bytes.len() * 8);
                bytes[at / 8] ^= 1 << (at % 8);
            }
            // The next module's code under this one's name: swapped where both are whole.
            1 => bytes = std::fs::read(of_next(&disk, &digests, i)).unwrap(),
            2 => bytes.truncate(i * 104_729 % bytes.len()),
            3 => bytes = std::fs::read(of(&other_engine)).unwrap(),
            _ => bytes = std::fs::read(of(&other_key)).unwrap(),
        }
        std::fs::write(&path, bytes).unwrap();
        spoilt += 1;
    }
    assert_eq!(spoilt, MODULES);

    let daemon = disk.daemon(&[]).await;
    for (i, digest) in digests.iter().enumerate() {
        let ran = daemon.ran(by_digest(digest)).await.exited(0);
        assert_eq!(ran.out(), format!("module {i}"));
    }
    assert_eq!(
        (
            daemon.probe.rejected_artifacts(),
            daemon.probe.compilations()
        ),
        (MODULES as u64, MODULES as u64)
    );
    // And what replaced them is taken.
    disk.files(MODULES + 1).await;
    stopped(daemon).await;
    let daemon = disk.daemon(&[]).await;
    for digest in &digests[..10] {
        daemon.ran(by_digest(digest)).await.exited(0);
    }
    assert_eq!(daemon.probe.compilations(), 0);
}

fn of_next(disk: &Disk, digests: &[String], i: usize) -> PathBuf {
    let next = &digests[(i + 4) % digests.len()];
    let hex = next.strip_prefix("sha256:").unwrap();
    let entries = std::fs::read_dir(disk.code()).unwrap().flatten();
    entries
        .map(|entry| entry.path())
        .find(|path| path.to_str().unwrap().contains(hex))
        .unwrap()
}

#[tokio::test]
async fn the_folder_stays_within_its_budget_and_the_oldest_go_first() {
    let disk = Disk::new();
    let daemon = disk.daemon(&[("artifacts.budget", "1MiB")]).await;
    let padded = |i: u32| {
        let data = "x".repeat(60_000);
        format!("(module (memory 2) (data (i32.const {i}) \"{data}\") (func (export \"_start\")))")
    };
    for i in 0..40 {
        daemon.ran(spec(padded(i))).await.exited(0);
        let bytes: u64 = std::fs::read_dir(disk.code())
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.len())
            .sum();
        assert!(bytes <= 1 << 20, "{bytes}");
    }
    let last = ringfence::model::request::Digest::of(padded(39).as_bytes()).hex();
    let is_last = |path: &PathBuf| path.to_str().unwrap().contains(&last);
    while !disk.files(1).await.iter().any(is_last) {
        tokio::task::yield_now().await;
    }
    stopped(daemon).await;
    let daemon = disk.daemon(&[("artifacts.budget", "1MiB")]).await;
    let compiled = daemon.probe.compilations();
    daemon.ran(spec(padded(39))).await.exited(0);
    assert_eq!(daemon.probe.compilations(), compiled);
    daemon.ran(spec(padded(0))).await.exited(0);
    assert_eq!(daemon.probe.compilations(), compiled + 1);
}
