//! `health`: the daemon answers while every guest and every compiler does its worst.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringfence::api::proto::{HealthRequest, ServingStatus};
use tokio::task::JoinSet;

use crate::ask::Scale;
use crate::daemon::{Besieged, alone, loaded, reason, run, side_by_side};
use crate::figures::{Report, Tally, Times};
use crate::harness::{Client, SpecExt, by_digest, load};
use crate::hostile::{bomb, draws, fills, spins};

const SPINNING: usize = 64;
const FILLING: usize = 16;
const DRAWING: usize = 16;
const GUESTS: usize = SPINNING + FILLING + DRAWING;
const BOMBS: usize = 2;
/// Longer than the window.
const LONG: Duration = Duration::from_secs(300);
/// Between one question and the next.
const PACE: Duration = Duration::from_millis(10);
const P99: Duration = Duration::from_millis(20);
const MAX: Duration = Duration::from_millis(250);

/// What asking for health found.
#[derive(Default)]
struct Asked {
    times: Times,
    failures: usize,
    /// The fewest runs in flight that an answer told.
    fewest: usize,
}

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let patience = scale.pick("compile.timeout=1s", "compile.timeout=10s");
    let bombs_side_by_side = format!("compile.concurrency={BOMBS}");
    let daemon = Besieged::start(&[
        "admission.slots=128",
        "compile.memory=512MiB",
        &bombs_side_by_side,
        patience,
    ])
    .await;
    // The most memory that one run may have, where there is time to fill it.
    let pages = scale.pick(256, 4096);
    let mut client = daemon.client().await;
    let mut assault = JoinSet::new();
    for (guests, pages, wat) in [
        (SPINNING, 1, spins()),
        (DRAWING, 2, draws()),
        (FILLING, pages, fills(pages)),
    ] {
        let digest = loaded(&mut client, &wat).await;
        let spec = by_digest(&digest)
            .timeout(LONG)
            .resources(|asked| asked.memory_pages = Some(pages));
        let addr = daemon.addr().to_owned();
        assault.spawn(async move {
            let call = |_, mut client: Client| {
                let spec = spec.clone();
                async move { run(&mut client, spec).await.map(|_| ()) }
            };
            side_by_side(&addr, guests, call).await;
        });
    }
    daemon
        .until(|health| health.runs_in_flight as usize == GUESTS)
        .await;
    let exploded = Arc::new(Explosions::default());
    for i in 0..BOMBS {
        assault.spawn(explode(client.clone(), i, Arc::clone(&exploded)));
    }
    let window = scale.pick(Duration::from_secs(5), Duration::from_secs(60));
    let (addr, bombs) = (daemon.addr().to_owned(), Arc::clone(&exploded));
    let mut asked = alone(move || ask(addr, window, bombs)).await;
    drop(assault);
    daemon.until_idle().await;

    let answers = asked.times.len();
    report.told("Health calls against 96 guests", answers);
    asked.times.told("Health", report);
    asked.times.p99("Health", P99, report);
    let max = asked.times.max();
    let at_most = format!("at most {} ms", MAX.as_millis());
    report.figure("Health, max", crate::figures::ms(max), &at_most, max <= MAX);
    report.equal("calls that failed", asked.failures, 0);
    report.equal("fewest guests at it during a call", asked.fewest, GUESTS);
    report.some("bombs that the compiler gave up", exploded.so_far());
    let otherwise = exploded.otherwise.lock().unwrap().to_string();
    let none = otherwise.is_empty();
    let otherwise = if none { "none" } else { &otherwise };
    report.count("bombs that ended otherwise", otherwise, "none", none);
    daemon.end(report).await;
}

/// How bombs ended.
#[derive(Default)]
struct Explosions {
    given_up: AtomicUsize,
    otherwise: std::sync::Mutex<Tally>,
}

impl Explosions {
    fn so_far(&self) -> usize {
        self.given_up.load(Ordering::Relaxed)
    }
}

/// Loads one bomb after the other.
async fn explode(mut client: Client, first: usize, explosions: Arc<Explosions>) {
    for seed in (first..).step_by(BOMBS) {
        match client.load_module(load(bomb(seed))).await {
            Err(status) if reason(&status) == "COMPILE_LIMIT_EXCEEDED" => {
                explosions.given_up.fetch_add(1, Ordering::Relaxed);
            }
            Err(status) => explosions.otherwise.lock().unwrap().add(reason(&status)),
            Ok(_) => explosions.otherwise.lock().unwrap().add("compiled"),
        }
    }
}

/// Asks for health at a steady pace for as long as `window`, and until as many bombs as there are at once are over. Each
/// time counts from when the question was due, so that one long answer does not hide those that it held up.
async fn ask(addr: String, window: Duration, bombs: Arc<Explosions>) -> Asked {
    let mut client = crate::harness::connect(&addr).await;
    let mut asked = Asked {
        fewest: usize::MAX,
        ..Asked::default()
    };
    let mut pace = tokio::time::interval(PACE);
    let start = Instant::now();
    while start.elapsed() < window || bombs.so_far() < BOMBS {
        let due = pace.tick().await;
        match client.health(HealthRequest {}).await {
            Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => {
                asked.times.push(due.elapsed());
                asked.fewest = asked.fewest.min(answer.get_ref().runs_in_flight as usize);
            }
            Ok(_) | Err(_) => asked.failures += 1,
        }
    }
    asked
}
