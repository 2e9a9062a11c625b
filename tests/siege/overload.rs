//! `overload`: five times as many callers as there is room for cost those that are served nothing.

use std::time::{Duration, Instant};

use ringfence::api::proto::RunSpec;
use tonic_types::StatusExt;

use crate::ask::Scale;
use crate::daemon::{Besieged, ending, loaded, run, side_by_side};
use crate::figures::{Report, Tally, Times};
use crate::harness::{Client, SpecExt, by_digest};
use crate::hostile::work;

const SLOTS: usize = 8;
const QUEUE: usize = 8;
const OVER: usize = 5;
/// How long one run works, alone.
const WORK: Duration = Duration::from_millis(20);
/// Why a run may be refused here.
const REFUSALS: [&str; 3] = ["QUEUE_FULL", "WAIT_EXPIRED", "TENANT_QUOTA"];
const REFUSED_WITHIN: Duration = Duration::from_millis(50);

/// What callers found.
#[derive(Default)]
struct Found {
    endings: Tally,
    /// Runs that ended within the window.
    done: usize,
    runs: Times,
    refusals: Times,
    without_retry: usize,
}

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let (slots, queue) = (
        format!("admission.slots={SLOTS}"),
        format!("admission.queue={QUEUE}"),
    );
    let daemon = Besieged::start(&[&slots, &queue]).await;
    let spec = calibrated(&daemon).await;
    let window = scale.pick(Duration::from_secs(3), Duration::from_secs(20));
    let mut alone = callers(&daemon, SLOTS, &spec, window, WORK).await;
    // A refused caller comes again when it would have been served: so each offers as much as one that is.
    let again = alone.runs.percentile(50);
    let mut over = callers(&daemon, SLOTS * OVER, &spec, window, again).await;

    let seconds = window.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |done: usize| done as f64 / seconds;
    let (capacity, goodput) = (rate(alone.done), rate(over.done));
    report.told("capacity, runs a second", format!("{capacity:.1}"));
    alone.runs.told("a run within capacity", report);
    let ratio = goodput / capacity;
    report.figure(
        "goodput at 5 x capacity",
        format!("{goodput:.1}/s, ratio {ratio:.3}"),
        "ratio of at least 0.9",
        ratio >= 0.9,
    );
    over.runs.told("a run that was served", report);
    over.refusals.told("a refusal", report);
    over.refusals.p99("a refusal", REFUSED_WITHIN, report);
    report.told("endings at 5 x capacity", &over.endings);
    report.equal(
        "within capacity, not EXITED",
        alone.endings.beside(&["EXITED"]),
        0,
    );
    report.some("runs that were served", over.endings.of("EXITED"));
    report.some("refusals", over.refusals.len());
    let known = [&["EXITED"][..], &REFUSALS].concat();
    report.equal("other endings", over.endings.beside(&known), 0);
    report.equal("refusals without RetryInfo", over.without_retry, 0);
    daemon.until_idle().await;
    daemon.end(report).await;
}

/// A run that works for [`WORK`] where it has a core to itself.
async fn calibrated(daemon: &Besieged) -> RunSpec {
    const TRIAL: u128 = 5_000_000;
    let mut client = daemon.client().await;
    let digest = loaded(&mut client, &work()).await;
    let counting = |n: u128| by_digest(&digest).entry("work").args(&[&n.to_string()]);
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let answer = run(&mut client, counting(TRIAL)).await.unwrap();
        let took = answer.result.unwrap().duration.unwrap();
        fastest = fastest.min(took.try_into().unwrap());
    }
    counting(TRIAL * WORK.as_nanos() / fastest.as_nanos())
}

/// So many callers, each of whom asks again as soon as it is answered, or `again` after a refusal.
async fn callers(
    daemon: &Besieged,
    callers: usize,
    spec: &RunSpec,
    window: Duration,
    again: Duration,
) -> Found {
    let until = Instant::now() + window;
    let each = side_by_side(daemon.addr(), callers, |_, client| {
        caller(client, spec.clone(), until, again)
    });
    let mut all = Found::default();
    for found in each.await {
        all.endings.extend(found.endings);
        all.done += found.done;
        all.runs.extend(found.runs);
        all.refusals.extend(found.refusals);
        all.without_retry += found.without_retry;
    }
    all
}

async fn caller(mut client: Client, spec: RunSpec, until: Instant, again: Duration) -> Found {
    let mut found = Found::default();
    while Instant::now() < until {
        let start = Instant::now();
        let answer = run(&mut client, spec.clone()).await;
        let took = start.elapsed();
        found.endings.add(ending(&answer));
        match answer {
            Ok(_) => {
                found.done += usize::from(Instant::now() < until);
                found.runs.push(took);
            }
            Err(status) => {
                found.refusals.push(took);
                let retry = status.get_error_details().retry_info().is_some();
                found.without_retry += usize::from(!retry);
                tokio::time::sleep(again).await;
            }
        }
    }
    found
}
