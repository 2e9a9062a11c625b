//! The rows that are about runs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use ringfence::api::proto::StreamEvent;
use ringfence::api::proto::stream_event::Event;

use super::ask::Targets;
use super::call::{Rounds, interleaved, of};
use super::caller::{Caller, Question};
use super::drive;
use super::guests;
use super::results::{Figure, Row, number};
use super::servers::{Greeter, Process, Wasmtime};

const STREAMED: u64 = 128 << 20;
const FIRST_LINES: usize = 40;

/// Hello of one client, and of sixteen.
pub(crate) async fn hello(asked: &Targets, greeters: &[Greeter]) -> Vec<Row> {
    let how = &asked.how;
    let one = interleaved(greeters, 1, how.rounds, how.time).await;
    let ratio = of(&one, "ringfence", "mean").over(of(&one, "floor", "mean"));
    let row = Row::new(
        "Run hello by digest, 1 client, mean",
        "1.4 x the floor's mean",
        one,
    );
    let mut rows = vec![row.judged(format!("{} x", number(ratio)), ratio <= 1.4)];
    rows[0].tell();

    let mut many = interleaved(greeters, 16, how.rounds, how.time).await;
    let wasmtime = commands(asked).await;
    let rate = |figures: &[Figure], who: &str| {
        of(figures, "ringfence", "throughput").over(of(figures, who, "throughput"))
    };
    let ratio = rate(&many, "floor");
    let what = "Run hello by digest, 16 clients, throughput";
    let judged = |row: Row, ratio: f64, least: f64| {
        let row = row.judged(format!("{} x", number(ratio)), ratio >= least);
        row.tell();
        row
    };
    let target = "0.6 x floor with pagemap_scan, 0.5 without";
    let peers: Vec<_> = asked
        .beside
        .peer
        .iter()
        .chain(&asked.beside.http)
        .map(|(name, _)| name.clone())
        .collect();
    let mut others = Vec::new();
    for name in &peers {
        let ratio = rate(&many, name);
        let what = format!("Run against {name}, 16 clients");
        let (target, least) = if name.starts_with("wazero") {
            ("15 x its throughput on a 50 KB Rust hello", 15.0)
        } else {
            ("", 0.0)
        };
        others.push(judged(Row::new(&what, target, Vec::new()), ratio, least));
    }
    let against = Row::new(
        "Run against one `wasmtime run` process per call (precompiled), 16 clients",
        "50 x its throughput",
        Vec::new(),
    );
    others.push(match wasmtime {
        Some(figures) => {
            many.extend(figures);
            let ratio = rate(&many, "wasmtime run");
            judged(against, ratio, 50.0)
        }
        None => against.skipped("no wasmtime command here"),
    });
    rows.push(judged(Row::new(what, target, many), ratio, 0.6));
    rows.extend(others);
    rows
}

/// One process per call.
async fn commands(asked: &Targets) -> Option<Vec<Figure>> {
    let how = &asked.how;
    let (path, _) = guests::built("hello");
    let wasmtime = Wasmtime::compiled(&asked.beside.wasmtime, &path, &[])?;
    let mut rounds = Rounds::default();
    for _ in 0..how.rounds {
        let stats = drive::commands(16, how.time, || wasmtime.run(&[]), "hello\n").await;
        rounds.push("wasmtime run", &stats);
    }
    Some(rounds.figures("wasmtime run"))
}

/// Reads a stream to its end; bytes of its output.
pub(crate) async fn flooded(caller: &mut Caller, question: &Question) -> u64 {
    let mut stream = caller.stream(question).await;
    let mut bytes = 0;
    while let Some(message) = stream.message().await.unwrap() {
        if let Some(Event::Stdout(piece)) = StreamEvent::decode(message).unwrap().event {
            bytes += piece.len() as u64;
        }
    }
    bytes
}

/// 128 MiB of output.
pub(crate) async fn stream(asked: &Targets) -> Row {
    let how = &asked.how;
    let (daemon, floor) = (Process::daemon(&how.set), Process::floor(&[]));
    let (_, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let bytes = STREAMED.to_string();
    let question = guests::stream(guests::spec(&digest, &["work", "flood", &bytes, "65536"]));
    let mut who = vec![
        ("ringfence", daemon.addr.clone()),
        ("floor", floor.addr.clone()),
    ];
    let peers = asked
        .beside
        .peer
        .iter()
        .filter(|_| asked.beside.method.is_none());
    who.extend(peers.map(|(name, addr)| (name.as_str(), addr.clone())));
    let mut rates: Vec<Vec<f64>> = who.iter().map(|_| Vec::new()).collect();
    for _ in 0..how.rounds.max(3) {
        for ((_, addr), into) in who.iter().zip(&mut rates) {
            let mut caller = Caller::connect(addr).await;
            let start = Instant::now();
            assert_eq!(flooded(&mut caller, &question).await, STREAMED);
            into.push(STREAMED as f64 / 1e6 / start.elapsed().as_secs_f64());
        }
    }
    let figures = who.iter().zip(rates);
    let figures = figures.map(|((who, _), rates)| Figure::new(who, "output", "MB/s", rates));
    let figures: Vec<_> = figures.collect();
    let ratio = figures[0].over(&figures[1]);
    let mut measured = format!("{} x", number(ratio));
    let mut met = ratio >= 0.5;
    for peer in &figures[2..] {
        let times = figures[0].over(peer);
        measured += &format!("; {} x {}", number(times), peer.who);
        met &= times >= 5.0;
    }
    let target = "0.5 x the raw stream of the same chunks; 5 x wazero's server";
    Row::new("RunStream of 128 MiB", target, figures).judged(measured, met)
}

/// From when a guest writes its first line, and then sleeps, until its caller has it.
pub(crate) async fn first_line(asked: &Targets) -> Row {
    let how = &asked.how;
    let daemon = Process::daemon(&how.set);
    let (_, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let question = guests::stream(guests::spec(&digest, &["work", "stamp", "20"]));
    let mut caller = Caller::connect(&daemon.addr).await;
    let (mut p50, mut max) = (Vec::new(), Vec::new());
    for _ in 0..how.rounds {
        let mut times = Vec::new();
        for _ in 0..FIRST_LINES {
            let mut stream = caller.stream(&question).await;
            while let Some(message) = stream.message().await.unwrap() {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                if let Some(Event::Stdout(line)) = StreamEvent::decode(message).unwrap().event {
                    let written = std::str::from_utf8(&line).unwrap().trim();
                    let written = Duration::from_nanos(written.parse().unwrap());
                    times.push(now.saturating_sub(written).as_secs_f64() * 1e3);
                }
            }
        }
        assert_eq!(times.len(), FIRST_LINES);
        times.sort_by(f64::total_cmp);
        p50.push(times[FIRST_LINES / 2]);
        max.push(times[FIRST_LINES - 1]);
    }
    let figures = vec![
        Figure::new("ringfence", "p50", "ms", p50),
        Figure::new("ringfence", "max of 40", "ms", max),
    ];
    let (p50, max) = (figures[0].median, figures[1].median);
    let what = "first line of a guest that prints and then sleeps";
    Row::new(what, "1 ms after it was written", figures).judged(
        format!("{} ms, the latest of 40 {} ms", number(p50), number(max)),
        p50 <= 1.0,
    )
}
