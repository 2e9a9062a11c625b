//! `overshoot`: how far past its timeout a hostile run gets, and that it leaves nothing behind.

use std::time::Duration;

use crate::ask::Scale;
use crate::daemon::{Besieged, ending, run, side_by_side};
use crate::figures::{Report, Tally, Times, ms};
use crate::harness::{Client, SpecExt};
use crate::hostile::{Hostile, that_never_end};

const AT_ONCE: usize = 32;
const P99: Duration = Duration::from_millis(250);
/// Threads for file system calls come and go; nothing else may.
const SLACK: usize = 2;

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let daemon = Besieged::start(&[]).await;
    let mut client = daemon.client().await;
    let kinds = that_never_end(&mut client, scale.pick(256, 2048)).await;
    let timeout = scale.pick(Duration::from_millis(100), Duration::from_secs(1));
    // Once around first: engines, threads and caches are made when they are first needed.
    rounds(&daemon, &kinds, AT_ONCE, Duration::from_millis(50)).await;
    let before = daemon.settled(|_| true).await;
    let found = rounds(&daemon, &kinds, scale.pick(100, 500), timeout).await;
    let after = daemon
        .settled(|held| {
            held.descriptors <= before.descriptors + SLACK && held.threads <= before.threads + SLACK
        })
        .await;

    let (mut all, mut endings) = (Times::default(), Tally::default());
    let mut worst = (Duration::ZERO, "");
    for (kind, ending, over) in found {
        endings.add(ending);
        all.push(over);
        worst = worst.max((over, kind));
    }
    report.told("hostile runs", all.len());
    all.told("over the timeout", report);
    all.p99("over the timeout", P99, report);
    report.told("the worst", format!("{} by {}", ms(worst.0), worst.1));
    report.told("endings", &endings);
    report.equal("not TIMED_OUT", endings.beside(&["TIMED_OUT"]), 0);
    for (what, before, after) in [
        ("descriptors", before.descriptors, after.descriptors),
        ("threads", before.threads, after.threads),
    ] {
        let at_most = format!("at most {before} + {SLACK}");
        report.count(what, after, at_most, after <= before + SLACK);
    }
    daemon.end(report).await;
}

/// So many runs, of each kind in turn; of each its kind, its ending, and how far past the timeout it got.
async fn rounds(
    daemon: &Besieged,
    kinds: &[Hostile],
    runs: usize,
    timeout: Duration,
) -> Vec<(&'static str, String, Duration)> {
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, mut client: Client| {
        let mine = (i..runs)
            .step_by(AT_ONCE)
            .map(|run| &kinds[run % kinds.len()]);
        let mine: Vec<Hostile> = mine.cloned().collect();
        async move {
            let mut found = Vec::new();
            for Hostile { name, spec, .. } in mine {
                let answer = run(&mut client, spec.timeout(timeout)).await;
                let took = answer
                    .as_ref()
                    .ok()
                    .and_then(|it| it.result.as_ref()?.duration);
                let took: Duration = took.unwrap_or_default().try_into().unwrap();
                found.push((name, ending(&answer), took.saturating_sub(timeout)));
            }
            found
        }
    });
    each.await.into_iter().flatten().collect()
}
