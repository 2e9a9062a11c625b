//! The manifests of `deploy/`, with their own settings and in a memory cgroup of their own limit, against a caller that
//! has guests write as much as they may and takes none of it.
//!
//! Making a cgroup takes root; where there is none to be had these say so and test nothing.
//! `FLOODS_BINARY` names another daemon to be attacked, to compare with.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use prost::Message;
use ringfence::api::proto::{RunRequest, RunSpec};
use ringfence::model::request::Digest;
use tonic::Request;

use crate::attacker::Attacker;
use crate::guests;
use crate::harness::{Client, PATIENCE, SpecExt, by_digest, connect, load};
use crate::process::Served;
use crate::wire::{block, message, setting, stream};

/// Calls on one connection, which has room for so many.
const CALLS: usize = 100;
/// How often all of them are asked for, before the first that were given are let go.
const WAVES: usize = 3;
const RUN: &str = "/ringfence.v1.SandboxService/Run";
const TOKEN: &str = "a-token-that-nobody-guesses";
/// Writes 64 KiB at a time to standard output and to standard error until one of them has no room.
const FLOOD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 65536))
    (loop $more
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))
      (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 40)))
      (br $more))))"#;
pub(crate) const HELLO: &str = include_str!("../../examples/hello.wat");

/// A memory cgroup, of either version, until this is dropped.
pub(crate) struct Cgroup {
    path: PathBuf,
    files: &'static Files,
}

/// What the files of a version are called.
struct Files {
    root: &'static str,
    limit: &'static str,
    peak: &'static str,
    /// Lines of names and numbers, one of which is `oom_kill`.
    events: &'static str,
}

const V1: Files = Files {
    root: "/sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const V2: Files = Files {
    root: "/sys/fs/cgroup",
    limit: "memory.max",
    peak: "memory.peak",
    events: "memory.events",
};

impl Cgroup {
    /// Makes one that may use `limit` bytes; `None`, with a word about it, where that cannot be.
    pub(crate) fn new(name: &str, limit: u64) -> Option<Self> {
        let made = [&V1, &V2].into_iter().find_map(|files| {
            let root = Path::new(files.root);
            // The root of version 2 is a plain folder where version 1 is mounted below it.
            if !root.join("cgroup.procs").is_file() {
                return None;
            }
            let path = root.join(format!("ringfence-floods-{name}-{}", std::process::id()));
            // Where it is on already, or is not needed, this fails.
            let _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
            std::fs::create_dir(&path).ok()?;
            let cgroup = Self { path, files };
            let limited = std::fs::write(cgroup.path.join(files.limit), limit.to_string());
            limited.ok().map(|()| cgroup)
        });
        if made.is_none() {
            eprintln!(
                "SKIPPED: no memory cgroup can be made here, so deploy/{name} was not attacked"
            );
        }
        made
    }

    fn number(&self, file: &str) -> u64 {
        let text = std::fs::read_to_string(self.path.join(file)).unwrap();
        text.trim().parse().unwrap()
    }

    /// Bytes that were used at the most.
    pub(crate) fn peak(&self) -> u64 {
        self.number(self.files.peak)
    }

    /// Processes that the kernel killed for it.
    pub(crate) fn kills(&self) -> u64 {
        let text = std::fs::read_to_string(self.path.join(self.files.events)).unwrap();
        let told = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        told.unwrap().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// A manifest as it is shipped.
pub(crate) struct Manifest {
    name: &'static str,
    /// Bytes of each output stream, as its policy has it.
    output: u64,
    /// The container's memory limit.
    pub(crate) limit: u64,
    /// Whether its callers show tokens.
    tokens: bool,
}

/// The first size that `key` stands before in `text`, in bytes.
fn size(text: &str, key: &str) -> u64 {
    let told = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(key));
    let told = told
        .map(|value| value.trim_matches(['=', ' ', '"', ':']))
        .next();
    let told = told.unwrap();
    let digits = told.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &told[digits.len()..] {
        "Mi" | "MiB" => 1 << 20,
        "Gi" | "GiB" => 1 << 30,
        other => panic!("{key} of {other}"),
    };
    digits.parse::<u64>().unwrap() * unit
}

impl Manifest {
    pub(crate) fn read(name: &'static str) -> Self {
        let folder = guests::root().join("deploy").join(name);
        let settings = std::fs::read_to_string(folder.join("ringfence.toml")).unwrap();
        let pod = std::fs::read_to_string(folder.join("deployment.yaml")).unwrap();
        // The daemon's container stands first, with the same under `requests` and `limits`.
        Self {
            name,
            output: size(&settings, "max_output"),
            limit: size(&pod, "memory"),
            tokens: settings.contains("tokens_file"),
        }
    }

    /// Its daemon in `cgroup`, with nothing of its own but addresses, a file of tokens in `dir`, and `set`.
    pub(crate) fn serve(&self, cgroup: &Cgroup, dir: &Path, set: &[String]) -> Served {
        let settings = guests::root().join("deploy").join(self.name);
        let tokens = dir.join("tokens");
        let hash = Digest::of(TOKEN.as_bytes());
        std::fs::write(&tokens, format!("default {hash}\n")).unwrap();
        let daemon = std::env::var_os("FLOODS_BINARY")
            .map_or_else(|| crate::harness::program().to_owned(), PathBuf::from);
        let mut command = Command::new("sh");
        command
            .current_dir(guests::root())
            .stdin(Stdio::null())
            .args(["-c", "echo $$ >\"$CGROUP\" && exec \"$0\" \"$@\""])
            .arg(daemon)
            .env("CGROUP", cgroup.path.join("cgroup.procs"));
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("RINGFENCE_") {
                command.env_remove(key);
            }
        }
        let mut args = vec![
            "--config".to_owned(),
            settings.join("ringfence.toml").display().to_string(),
            "--set".to_owned(),
            "admin.listen=[\"127.0.0.1:0\"]".to_owned(),
        ];
        if self.tokens {
            args.push("--set".to_owned());
            args.push(format!("auth.tokens_file={}", tokens.display()));
        }
        args.extend(set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Served::of(command, &args)
    }

    /// Headers of a call of `Run`.
    fn call(&self) -> Vec<u8> {
        let bearer = format!("Bearer {TOKEN}");
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", RUN),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        if self.tokens {
            fields.push(("authorization", &bearer));
        }
        block(&fields)
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if self.tokens {
            let bearer = format!("Bearer {TOKEN}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
        }
        request
    }

    pub(crate) async fn load(&self, client: &mut Client, wasm: &'static str) -> String {
        let loaded = client.load_module(self.request(load(wasm))).await.unwrap();
        loaded.into_inner().module.unwrap().digest
    }

    /// Waits until somebody else is served, and tells how long that took.
    pub(crate) async fn serves(&self, client: &mut Client, digest: &str) -> std::time::Duration {
        let start = Instant::now();
        loop {
            let spec = Some(by_digest(digest));
            let answer = client.run(self.request(RunRequest { spec })).await;
            match answer {
                Ok(answer) => {
                    assert_eq!(answer.into_inner().stdout, "Hello from inside the fence.\n");
                    return start.elapsed();
                }
                // It may wait for a place as any other, not for ever.
                Err(status) => assert!(start.elapsed() < PATIENCE, "{status:?}"),
            }
        }
    }
}

/// As much output as the policy lets a run have, and little else.
fn flood(digest: &str, output: u64) -> RunSpec {
    by_digest(digest).resources(|r| {
        r.memory_pages = Some(2);
        r.output_limit = Some(output);
    })
}

/// Connections that ask for a run on each of their streams, and make room for `window` bytes of each answer.
async fn wave(
    addr: &str,
    connections: usize,
    window: u32,
    call: &[u8],
    body: &[u8],
) -> Vec<Attacker> {
    let mut attackers = Vec::new();
    for _ in 0..connections {
        let settings = [(setting::INITIAL_WINDOW_SIZE, window)];
        let mut attacker = Attacker::deaf(addr, &settings).await;
        attacker.listen();
        attacker
            .flood(0..CALLS, |frames, n| {
                frames.open(stream(n), call).finish(stream(n), body);
            })
            .await;
        attackers.push(attacker);
    }
    attackers
}

/// Has the daemon of `name` asked for half as many answers again as its limit has room for, on connections that make room
/// for `window` bytes of each; and again for as many, since what waits for long is refused.
async fn survives(name: &'static str, window: u32) {
    let manifest = Manifest::read(name);
    let dir = tempfile::TempDir::new().unwrap();
    let Some(cgroup) = Cgroup::new(&format!("{name}-{window}"), manifest.limit) else {
        return;
    };
    let mut served = manifest.serve(&cgroup, dir.path(), &[]);
    let log = served.drain_log();
    let mut client = connect(&served.addr).await;
    let hello = manifest.load(&mut client, HELLO).await;
    let digest = manifest.load(&mut client, FLOOD).await;
    manifest.serves(&mut client, &hello).await;
    let spec = Some(flood(&digest, manifest.output));
    let (call, body) = (
        manifest.call(),
        message(&RunRequest { spec }.encode_to_vec()),
    );
    let answers = 3 * manifest.limit / 2 / (2 * manifest.output);
    let connections = usize::try_from(answers).unwrap().div_ceil(CALLS);
    let mut attackers = Vec::new();
    let mut told = String::new();
    for _ in 0..WAVES {
        if cgroup.kills() > 0 {
            break;
        }
        let wave = wave(&served.addr, connections, window, &call, &body).await;
        for mut attacker in wave {
            let tally = attacker
                .until(|tally| tally.answers == CALLS || tally.closed)
                .await;
            let _ = write!(told, " {}", tally.answers - tally.ended);
            attackers.push(attacker);
        }
    }
    let (peak, kills) = (cgroup.peak(), cgroup.kills());
    let gone = served.child.try_wait().unwrap();
    eprintln!(
        "deploy/{name}, window {window}: {} MiB at the most of {}, {kills} OOM kills, given to each connection:{told}",
        peak >> 20,
        manifest.limit >> 20,
    );
    assert_eq!((gone, kills), (None, 0), "it lives");
    let waited = manifest.serves(&mut client, &hello).await;
    let (peak, kills) = (cgroup.peak(), cgroup.kills());
    eprintln!(
        "deploy/{name}: somebody else was served after {waited:?}, {} MiB at the most",
        peak >> 20
    );
    assert_eq!(kills, 0);
    assert!(peak < manifest.limit, "{peak} of {}", manifest.limit);
    drop(attackers);
    drop(client);
    drop(served);
    let log = log.join().unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_survives_answers_that_nobody_takes() {
    survives("sidecar", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_survives_answers_of_which_a_window_is_taken() {
    survives("sidecar", 65_535).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_survives_answers_that_nobody_takes() {
    survives("fleet", 0).await;
}
