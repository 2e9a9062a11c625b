//! The manifests of `deploy/`, with their own settings and in a memory cgroup of their own limit, under work that is meant
//! to be too much: guests that list and read, modules that take the compiler all it has, and connections without number.

use std::path::Path;
use std::time::Duration;

use ringfence::api::proto::{Outcome, OutputPolicy, RunRequest};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tonic::Code;

use crate::bombs::{chain_of_ifs, functions, giant_function, nested_loops};
use crate::harness::{Client, SpecExt, by_digest, connect, load};
use crate::manifests::{Cgroup, HELLO, Manifest};
use crate::wire::{Frames, PREFACE};

const LISTS: &str = include_str!("../guests/lists.wat");
const ASKS: &str = include_str!("../guests/asks.wat");
/// Guests that list and read, more than any manifest has slots.
const GUESTS: usize = 32;
/// Files in the directory that they list.
const FILES: usize = 10_000;
/// How long each of them goes on.
const LASTS: Duration = Duration::from_secs(2);
/// How long modules are compiled, of which each would take longer.
const COMPILES: Duration = Duration::from_secs(15);
/// Connections that say nothing, more than there are places.
const CONNECTIONS: usize = 1_200;

/// What attackers have the daemon do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Burden {
    Files,
    Compiles,
    Connections,
}

/// Has the daemon of `name` bear it, and looks whether it lives, within its limit, and serves somebody else afterwards.
async fn bears(name: &'static str, burden: Burden) {
    let manifest = Manifest::read(name);
    let dir = tempfile::TempDir::new().unwrap();
    let Some(cgroup) = Cgroup::new(&format!("{name}-{burden:?}"), manifest.limit) else {
        return;
    };
    let mut set = Vec::new();
    if burden == Burden::Files {
        fill(dir.path());
        // No manifest grants a mount; who adds one has this.
        set.push(format!(
            "policy.mounts=[{{ host = {:?}, access = \"read\" }}]",
            dir.path()
        ));
    }
    let mut served = manifest.serve(&cgroup, dir.path(), &set);
    let log = served.drain_log();
    let mut client = connect(&served.addr).await;
    let hello = manifest.load(&mut client, HELLO).await;
    let held = match burden {
        Burden::Files => {
            list_and_read(&manifest, &client, dir.path()).await;
            Vec::new()
        }
        Burden::Compiles => {
            compile(&manifest, &client).await;
            Vec::new()
        }
        Burden::Connections => be_many(&served.addr).await,
    };
    // On a connection of its own.
    let mut other = connect(&served.addr).await;
    let waited = manifest.serves(&mut other, &hello).await;
    let (peak, kills) = (cgroup.peak(), cgroup.kills());
    let gone = served.child.try_wait().unwrap();
    eprintln!(
        "deploy/{name}, {burden:?}: {} MiB at the most of {}, {kills} OOM kills, somebody else was served after {waited:?}",
        peak >> 20,
        manifest.limit >> 20,
    );
    assert_eq!((gone, kills), (None, 0), "it lives");
    assert!(peak < manifest.limit, "{peak} of {}", manifest.limit);
    drop(held);
    drop((client, other, served));
    let log = log.join().unwrap();
    assert!(!log.contains("panicked"), "{log}");
}

fn fill(dir: &Path) {
    for i in 0..FILES {
        std::fs::write(dir.join(format!("file-{i}")), b"").unwrap();
    }
    std::fs::write(dir.join("large"), vec![7; 1 << 20]).unwrap();
}

/// Has guests list and read until their time is over.
async fn list_and_read(manifest: &Manifest, client: &Client, dir: &Path) {
    let mut guests = JoinSet::new();
    let mut digests = Vec::new();
    for wat in [LISTS, ASKS] {
        digests.push(manifest.load(&mut client.clone(), wat).await);
    }
    for i in 0..GUESTS {
        let spec = by_digest(&digests[i % digests.len()])
            .timeout(LASTS)
            .resources(|asked| asked.set_output_policy(OutputPolicy::Truncate))
            .mount(dir, "/", true);
        let request = manifest.request(RunRequest { spec: Some(spec) });
        let mut client = client.clone();
        guests.spawn(async move { client.run(request).await });
    }
    let mut ended = 0;
    for answer in guests.join_all().await {
        match answer {
            Ok(answer) => {
                let result = answer.into_inner().result.unwrap();
                assert_eq!(result.outcome(), Outcome::TimedOut);
                ended += 1;
            }
            // It waited for a slot for too long.
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}"),
        }
    }
    assert!(ended >= 4, "only {ended} ran");
}

async fn compile(manifest: &Manifest, client: &Client) {
    let mut loads = JoinSet::new();
    for bomb in [
        nested_loops(),
        giant_function(),
        chain_of_ifs(),
        functions(100_000),
    ] {
        let request = manifest.request(load(bomb));
        let mut client = client.clone();
        loads.spawn(async move { client.load_module(request).await.map(drop) });
    }
    // Those that go on are left to the daemon.
    let _ = tokio::time::timeout(COMPILES, async {
        while loads.join_next().await.is_some() {}
    })
    .await;
    loads.shutdown().await;
}

/// Opens connections from as many addresses as it takes, and says on each what HTTP/2 begins with.
async fn be_many(addr: &str) -> Vec<TcpStream> {
    let mut opening = Frames(PREFACE.to_vec());
    opening.settings(&[]);
    let mut held = Vec::new();
    for i in 0..CONNECTIONS {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("127.0.2.{}:0", 1 + i % 200).parse().unwrap())
            .unwrap();
        // The daemon may close it: whoever comes later takes its place.
        let mut stream = socket.connect(addr.parse().unwrap()).await.unwrap();
        let _ = stream.write_all(&opening.0).await;
        held.push(stream);
    }
    held
}

macro_rules! burdens {
    ($($test:ident($name:literal, $burden:ident),)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            bears($name, Burden::$burden).await;
        }
    )*};
}

burdens! {
    the_sidecar_bears_guests_that_list_and_read("sidecar", Files),
    the_sidecar_bears_modules_that_are_slow_to_compile("sidecar", Compiles),
    the_sidecar_bears_connections_without_number("sidecar", Connections),
    the_fleet_bears_guests_that_list_and_read("fleet", Files),
    the_fleet_bears_modules_that_are_slow_to_compile("fleet", Compiles),
    the_fleet_bears_connections_without_number("fleet", Connections),
}
