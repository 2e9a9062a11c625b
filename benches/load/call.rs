//! Hello by digest, of everything that answers it.

use std::time::Duration;

use super::ask::{Call, How};
use super::caller::Caller;
use super::drive::{self, Clients, Stats};
use super::guests;
use super::results::{self, Figure, Row, number};
use super::servers::{Greeter, Process, greeters};

/// How long each is asked before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);
const SMOKE: Duration = Duration::from_secs(1);

/// The figures of all rounds of a loop.
#[derive(Default)]
pub(crate) struct Rounds {
    rate: Vec<f64>,
    mean: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    /// Of the server's processor, where it is a process of ours.
    cpu: Vec<f64>,
}

impl Rounds {
    pub(crate) fn push(&mut self, who: &str, stats: &Stats) {
        if let Some(failure) = stats.first_failure() {
            panic!("{who}: {} calls failed: {failure}", stats.failed());
        }
        self.rate.push(stats.rate());
        self.mean.push(stats.mean());
        self.p50.push(stats.percentile(50.0));
        self.p99.push(stats.percentile(99.0));
        self.p999.push(stats.percentile(99.9));
    }

    /// Notes what the server spent on a loop.
    pub(crate) fn spent(&mut self, spent: Duration, stats: &Stats) {
        let calls = stats.answered() as f64;
        self.cpu.push(spent.as_secs_f64() * 1e6 / calls);
    }

    /// What one was asked, as figures.
    pub(crate) fn figures(self, who: &str) -> Vec<Figure> {
        let us = |what, rounds| Figure::new(who, what, "us", rounds);
        let mut all = vec![
            Figure::new(who, "throughput", "1/s", self.rate),
            us("mean", self.mean),
            us("p50", self.p50),
            us("p99", self.p99),
            us("p99.9", self.p999),
        ];
        if !self.cpu.is_empty() {
            all.push(us("processor time a call", self.cpu));
        }
        all
    }
}

/// Asks all, in turn, round by round.
pub(crate) async fn interleaved(greeters: &[Greeter], clients: Clients, how: &How) -> Vec<Figure> {
    let mut all: Vec<Rounds> = greeters.iter().map(|_| Rounds::default()).collect();
    for _ in 0..how.rounds {
        for (it, into) in greeters.iter().zip(&mut all) {
            let question = std::slice::from_ref(&it.question);
            drive::closed(&it.addr, clients, WARM_UP, question).await;
            let spent = || it.process.as_ref().map(Process::spent);
            let before = spent();
            let stats = drive::closed(&it.addr, clients, how.time, question).await;
            into.push(&it.name, &stats);
            if let (Some(before), Some(after)) = (before, spent()) {
                into.spent(after.saturating_sub(before), &stats);
            }
        }
    }
    let each = greeters.iter().zip(all);
    each.flat_map(|(it, rounds)| rounds.figures(&it.name))
        .collect()
}

/// Those of `who`, of `what`.
pub(crate) fn of<'a>(figures: &'a [Figure], who: &str, what: &str) -> &'a Figure {
    let found = figures.iter().find(|it| it.who == who && it.what == what);
    found.expect("it was measured")
}

/// Asks as it is told on the command line.
pub(crate) async fn measure(asked: &Call) {
    let (how, beside) = (&asked.how, &asked.beside);
    let greeters = greeters(how, beside).await;
    let mut rows = Vec::new();
    if let Some(rate) = asked.rate {
        rows.push(open(&greeters, rate, how.rounds, how.time).await);
    } else {
        for &clients in &asked.clients {
            let what = format!("hello by digest, {clients}");
            let figures = interleaved(&greeters, clients, how).await;
            let row = over_floor(Row::new(&what, "", figures));
            row.tell();
            rows.push(row);
        }
    }
    for row in &mut rows {
        "call".clone_into(&mut row.table);
    }
    results::keep(rows, how.json.as_deref(), &super::command());
}

/// How it stands to the floor.
pub(crate) fn over_floor(mut row: Row) -> Row {
    let ratio = |what| of(&row.figures, "ringfence", what).over(of(&row.figures, "floor", what));
    row.measured = format!(
        "{} x the floor's mean, {} x its throughput",
        number(ratio("mean")),
        number(ratio("throughput"))
    );
    row
}

async fn open(greeters: &[Greeter], rate: f64, rounds: usize, time: Duration) -> Row {
    let mut all: Vec<Rounds> = greeters.iter().map(|_| Rounds::default()).collect();
    for _ in 0..rounds {
        for (it, into) in greeters.iter().zip(&mut all) {
            let stats = drive::open(&it.addr, rate, time, &it.question).await;
            into.push(&it.name, &stats);
        }
    }
    let each = greeters.iter().zip(all);
    let figures = each.flat_map(|(it, rounds)| rounds.figures(&it.name));
    let what = format!("hello by digest, {rate} a second");
    let row = over_floor(Row::new(&what, "", figures.collect()));
    row.tell();
    row
}

/// A short round of each loop, of which only counts are judged.
pub(crate) async fn smoke(asked: &Call) {
    let Call { how, beside, .. } = asked;
    let greeters = greeters(how, beside).await;
    let mut passed = 0;
    for it in &greeters {
        for &clients in &asked.clients {
            let question = std::slice::from_ref(&it.question);
            let stats = drive::closed(&it.addr, clients, SMOKE, question).await;
            passed += answers(&it.name, &stats);
        }
        let stats = drive::open(&it.addr, 200.0, SMOKE, &it.question).await;
        assert_eq!(
            stats.answered() + stats.failed(),
            200,
            "{}: an open loop asks what is due",
            it.name
        );
        passed += answers(&it.name, &stats);
    }
    let daemon = Process::daemon(&how.daemon, &how.set);
    let (_, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let spec = guests::spec(&digest, &["work", "flood", "4194304", "65536"]);
    let mut caller = Caller::connect(&daemon.addr).await;
    let streamed = super::runs::flooded(&mut caller, &guests::stream(spec)).await;
    assert_eq!(streamed, 4 << 20, "a stream has all that was written");
    println!("{} passed, 0 failed", passed + 1);
}

fn answers(who: &str, stats: &Stats) -> u32 {
    assert_eq!(stats.first_failure(), None, "{who} answers each call");
    assert!(stats.answered() > 0, "{who} answers");
    println!("{who}: {} calls answered", stats.answered());
    1
}
