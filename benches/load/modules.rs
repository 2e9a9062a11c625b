//! The rows that are about loading modules.

use std::path::Path;
use std::time::{Duration, Instant};

use ringfence::api::proto::{LoadModuleResponse, RunResponse};
use sha2::{Digest, Sha256};

use super::ask::{How, Targets};
use super::caller::Caller;
use super::guests;
use super::results::{Figure, Row, median, number};
use super::servers::Process;

const KNOWN: usize = 15;
const COLD: u64 = 15;
const RESTARTS: usize = 5;
const WARM: usize = 5;

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// A module that is there already.
pub(crate) async fn known(asked: &Targets) -> Row {
    let How {
        daemon, floor, set, ..
    } = &asked.how;
    let (daemon, floor) = (Process::daemon(daemon, set), Process::floor(floor));
    // Large beside what a call takes: about a MiB.
    let wasm = guests::module(1, 1024);
    let question = guests::load(wasm.clone());
    guests::loaded(&daemon.addr, wasm.clone()).await;
    let mut callers = [
        Caller::connect(&daemon.addr).await,
        Caller::connect(&floor.addr).await,
    ];
    let mut rounds = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..asked.how.rounds {
        let mut times = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..KNOWN {
            for (caller, into) in callers.iter_mut().zip(&mut times) {
                let (took, _) = caller.timed::<LoadModuleResponse>(&question).await;
                into.push(ms(took));
            }
            let start = Instant::now();
            std::hint::black_box(Sha256::digest(&wasm));
            times[2].push(ms(start.elapsed()));
        }
        for (times, into) in times.iter().zip(&mut rounds) {
            into.push(median(times));
        }
    }
    let [ours, floor, hash] = rounds;
    let beyond: Vec<_> = (0..ours.len())
        .map(|i| ours[i] - floor[i] - hash[i])
        .collect();
    let figures = vec![
        Figure::new("ringfence", "LoadModule of 1 MiB, known", "ms", ours),
        Figure::new("floor", "LoadModule of 1 MiB", "ms", floor),
        Figure::new("this program", "SHA-256 of it", "ms", hash),
        Figure::new("ringfence", "beyond transfer and hash", "ms", beyond),
    ];
    let beyond = figures[3].median;
    Row::new(
        "`LoadModule` of a known digest",
        "transfer floor + hash + 1 ms",
        figures,
    )
    .judged(
        format!("floor + hash + {} ms", number(beyond)),
        beyond <= 1.0,
    )
}

/// Modules that are new, compiled in a child and in process.
pub(crate) async fn cold(asked: &Targets) -> Row {
    let in_process = [
        asked.how.set.clone(),
        vec!["compile.mode=in-process".to_owned()],
    ]
    .concat();
    let daemons = [
        Process::daemon(&asked.how.daemon, &asked.how.set),
        Process::daemon(&asked.how.daemon, &in_process),
    ];
    let mut callers = [
        Caller::connect(&daemons[0].addr).await,
        Caller::connect(&daemons[1].addr).await,
    ];
    let (mut whole, mut compiling) = ([vec![], vec![]], [vec![], vec![]]);
    let mut size = 0;
    for round in 0..asked.how.rounds as u64 {
        let (mut loads, mut compiles) = ([vec![], vec![]], [vec![], vec![]]);
        for i in 0..COLD {
            let wasm = guests::module(round * COLD + i, 50);
            size = wasm.len();
            let question = guests::load(wasm);
            for (at, caller) in callers.iter_mut().enumerate() {
                let (took, answer) = caller.timed::<LoadModuleResponse>(&question).await;
                assert!(!answer.cached);
                loads[at].push(ms(took));
                compiles[at].push(ms(answer.compile_duration.unwrap().try_into().unwrap()));
            }
        }
        for at in 0..2 {
            whole[at].push(median(&loads[at]));
            compiling[at].push(median(&compiles[at]));
        }
    }
    let [child, here] = whole;
    let [in_child, in_process] = compiling;
    let figures = vec![
        Figure::new(
            "in a child",
            &format!("LoadModule of {size} new bytes"),
            "ms",
            child,
        ),
        Figure::new("in a child", "of that compiling", "ms", in_child),
        Figure::new("in process", "LoadModule", "ms", here),
        Figure::new("in process", "of that compiling", "ms", in_process),
    ];
    let (took, ratio) = (figures[0].median, figures[1].over(&figures[3]));
    let target = "60 ms, compile time itself within 1.1 x in-process";
    Row::new(
        "cold `LoadModule` of a 50 KB module, child process included",
        target,
        figures,
    )
    .judged(
        format!("{} ms, {} x", number(took), number(ratio)),
        took <= 60.0 && ratio <= 1.1,
    )
}

/// The first run of an interpreter after a restart.
pub(crate) async fn restart(asked: &Targets, interpreter: &Path) -> Row {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut set = asked.how.set.clone();
    set.extend([
        format!("store.url=file://{}", at("store")),
        format!("artifacts.dir={}", at("code")),
        format!("artifacts.key_file={}", at("key")),
    ]);
    let wasm = std::fs::read(interpreter).expect("--interpreter is readable");
    let size = wasm.len();
    let start = Instant::now();
    let digest = {
        let daemon = Process::daemon(&asked.how.daemon, &set);
        let digest = guests::loaded(&daemon.addr, wasm.into()).await;
        // Its code is written behind the answer: the daemon's own first module, and this one.
        while std::fs::read_dir(at("code")).unwrap().count() < 3 {
            tokio::task::yield_now().await;
        }
        digest
    };
    let loaded = start.elapsed().as_secs_f64();
    let question = guests::run(guests::spec(&digest, &["python", "-c", "print(1)"]), "1\n");
    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..asked.how.rounds {
        let (mut first, mut warm) = (Vec::new(), Vec::new());
        for _ in 0..RESTARTS {
            let daemon = Process::daemon(&asked.how.daemon, &set);
            let mut caller = Caller::connect(&daemon.addr).await;
            first.push(ms(caller.timed::<RunResponse>(&question).await.0));
            for _ in 0..WARM {
                warm.push(ms(caller.timed::<RunResponse>(&question).await.0));
            }
        }
        rounds[0].push(median(&first));
        rounds[1].push(median(&warm));
    }
    let [first, warm] = rounds;
    let beyond: Vec<_> = first
        .iter()
        .zip(&warm)
        .map(|(first, warm)| first - warm)
        .collect();
    let figures = vec![
        Figure::new(
            "ringfence",
            &format!("first load of {size} bytes"),
            "s",
            vec![loaded],
        ),
        Figure::new("ringfence", "first run", "ms", first),
        Figure::new("ringfence", "warm run", "ms", warm),
        Figure::new("ringfence", "difference", "ms", beyond),
    ];
    let beyond = figures[3].median;
    let what = "restart with a warm disk, first `Run` of a 25 MB interpreter";
    Row::new(what, "a warm Run of it + 50 ms", figures).judged(
        format!("a warm Run + {} ms", number(beyond)),
        beyond <= 50.0,
    )
}
