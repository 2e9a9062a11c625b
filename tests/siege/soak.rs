//! `soak`: runs upon runs, a fifth of them hostile, and the daemon holds no more at the end than it did early on.

use std::time::{Duration, Instant};

use ringfence::api::proto::RunSpec;

use crate::ask::Scale;
use crate::daemon::{Besieged, Held, ending, loaded, run, side_by_side};
use crate::figures::{Report, Tally, mib};
use crate::harness::{Client, SpecExt, by_digest};
use crate::hostile::{BEFORE, Hostile, hello, that_end_badly, that_never_end};

const AT_ONCE: usize = 32;
const ROUNDS: usize = 10;
/// Of hostile runs.
const CAP: Duration = Duration::from_millis(5);
/// Runs after which the history is full: before that it grows as it should.
const SETTLED: usize = 20_000;
/// What it may have grown by since, in KiB.
const GROWTH: u64 = 10 << 10;
const SLACK: usize = 2;

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let daemon = Besieged::start(&[]).await;
    let mut client = daemon.client().await;
    let hello = by_digest(&loaded(&mut client, &hello()).await);
    let mut kinds = that_never_end(&mut client, 256).await;
    kinds.extend(that_end_badly(&mut client).await);
    round(&daemon, &hello, &kinds, 1_000).await;
    let before = daemon.settled(|_| true).await;
    let (mut endings, mut held) = (Tally::default(), Vec::new());
    let start = Instant::now();
    for tenth in 1..=ROUNDS {
        endings.extend(round(&daemon, &hello, &kinds, scale.soak_runs / ROUNDS).await);
        let now = daemon.settled(|held| as_before(held, &before)).await;
        if scale.full {
            let (done, resident) = (tenth * scale.soak_runs / ROUNDS, mib(now.resident));
            let seconds = start.elapsed().as_secs();
            eprintln!(
                "{done} runs, {seconds} s, {resident}, {} descriptors",
                now.descriptors
            );
        }
        held.push(now);
    }
    let seconds = start.elapsed().as_secs_f64();

    let done = endings.total();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = done as f64 / seconds;
    report.told("runs", format!("{done}, {rate:.0} a second"));
    let hostile = done - endings.of("hello");
    report.told("of them hostile", hostile);
    report.told("endings", &endings);
    let astray = endings.total() - endings.of("hello") - endings.of("as it should");
    report.equal("that ended otherwise than they should", astray, 0);
    let [early, .., late] = held[..] else {
        panic!("ten rounds");
    };
    let target = format!("at most {} + {}", mib(early.resident), mib(GROWTH));
    let held_on = late.resident <= early.resident + GROWTH;
    if scale.full && scale.soak_runs / ROUNDS >= SETTLED {
        report.count("resident at the end", mib(late.resident), target, held_on);
    } else {
        report.figure("resident at the end", mib(late.resident), &target, held_on);
    }
    let (was, is) = (before.descriptors, late.descriptors);
    let near = is.abs_diff(was) <= SLACK;
    report.count("descriptors", is, format!("{was} +- {SLACK}"), near);
    report.told(
        "threads before and after",
        format!("{}, {}", before.threads, late.threads),
    );
    daemon.end(report).await;
}

fn as_before(held: &Held, before: &Held) -> bool {
    held.descriptors.abs_diff(before.descriptors) <= SLACK
}

/// So many runs, every fifth hostile, each hostile kind in turn.
async fn round(daemon: &Besieged, hello: &RunSpec, kinds: &[Hostile], runs: usize) -> Tally {
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, client| {
        caller(client, hello.clone(), kinds.to_vec(), i, runs)
    });
    let mut all = Tally::default();
    each.await.into_iter().for_each(|one| all.extend(one));
    all
}

async fn caller(
    mut client: Client,
    hello: RunSpec,
    kinds: Vec<Hostile>,
    first: usize,
    runs: usize,
) -> Tally {
    let mut endings = Tally::default();
    for n in (first..runs).step_by(AT_ONCE) {
        if n % 5 != 0 {
            let answer = run(&mut client, hello.clone()).await;
            let well = answer.as_ref().is_ok_and(|ran| ran.stdout == BEFORE);
            endings.add(match ending(&answer) {
                ended if ended == "EXITED" && well => "hello".to_owned(),
                ended => format!("hello {ended}"),
            });
            continue;
        }
        let Hostile { name, spec, ends } = &kinds[n / 5 % kinds.len()];
        let ended = ending(&run(&mut client, spec.clone().timeout(CAP)).await);
        // Whatever else it would do, its time may be over before.
        endings.add(if ended == *ends || ended == "TIMED_OUT" {
            "as it should".to_owned()
        } else {
            format!("{name} {ended}")
        });
    }
    endings
}
