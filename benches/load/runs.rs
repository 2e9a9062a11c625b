//! The rows that are about runs.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use ringfence::api::proto::StreamEvent;
use ringfence::api::proto::stream_event::Event;

use super::ask::{How, Targets};
use super::call::{Rounds, interleaved, of};
use super::caller::{Caller, Question};
use super::drive::{self, Clients};
use super::guests;
use super::results::{Figure, Row, number};
use super::servers::{Greeter, Process, Wasmtime, floor_of};

const STREAMED: u64 = 128 << 20;
const FIRST_LINES: usize = 40;

/// Clients whose throughput has a target.
const MANY: [Clients; 3] = [Clients::on(16, 1), Clients::on(1, 16), Clients::on(1, 64)];
/// What the throughput of peers is to be multiplied by.
const TIMES_PEERS: f64 = 2.0;

/// What part of its floor's throughput a build is to have.
fn part_of_floor(profile: &str) -> f64 {
    match profile {
        "dist" => 0.60,
        _ => 0.50,
    }
}

/// Hello of one client, and of many.
pub(crate) async fn hello(asked: &Targets, greeters: &[Greeter]) -> Vec<Row> {
    let how = &asked.how;
    let profile = how.profile();
    let mut rows = Vec::new();
    for clients in MANY {
        let mut figures = interleaved(greeters, clients, how).await;
        if rows.is_empty() {
            figures.extend(commands(asked, clients).await);
        }
        let others: Vec<_> = asked
            .beside
            .beside
            .iter()
            .filter(|it| it.floor.is_some())
            .map(|it| beside_floor(&it.name, clients, &figures))
            .collect();
        rows.push(beside_all(asked, &profile, clients, figures));
        rows.extend(others);
    }
    let one = interleaved(greeters, Clients::on(1, 1), how).await;
    let ratio = of(&one, "ringfence", "mean").over(of(&one, "floor", "mean"));
    let what = format!("`Run` hello by digest, 1 x 1, mean, `{profile}`");
    let row = Row::new(&what, "1.6 x the floor's", one);
    rows.push(row.judged(format!("{} x", number(ratio)), ratio <= 1.6));
    rows
}

fn throughput(profile: &str, clients: Clients, target: &str, figures: Vec<Figure>) -> Row {
    let what = format!("`Run` hello by digest, {clients}, throughput, `{profile}`");
    Row::new(&what, target, figures)
}

/// How many times the throughput of another one has.
fn times(figures: &[Figure], who: &str, other: &str) -> f64 {
    of(figures, who, "throughput").over(of(figures, other, "throughput"))
}

/// Another build of the daemon, beside its own floor.
fn beside_floor(name: &str, clients: Clients, figures: &[Figure]) -> Row {
    let part = part_of_floor(name);
    let floor = floor_of(name);
    let ratio = times(figures, name, &floor);
    // Their figures stand in the row of all.
    let row = throughput(
        name,
        clients,
        &format!("{part:.2} of its floor"),
        Vec::new(),
    );
    row.judged(number(ratio), ratio >= part)
}

/// The daemon beside its floor and all peers, of which those that it is measured by have a target.
fn beside_all(asked: &Targets, profile: &str, clients: Clients, figures: Vec<Figure>) -> Row {
    let part = part_of_floor(profile);
    let ratio = times(&figures, "ringfence", "floor");
    let (mut measured, mut met) = (format!("{} of the floor", number(ratio)), ratio >= part);
    let mut target = format!("{part:.2} of the floor");
    let peers = asked.beside.peer.iter().chain(&asked.beside.http);
    for (name, _) in peers {
        let ratio = times(&figures, "ringfence", name);
        measured += &format!("; {} x {name}", number(ratio));
        if profile == "dist" {
            target += &format!("; {TIMES_PEERS:.1} x {name}");
            met &= ratio >= TIMES_PEERS;
        }
    }
    if figures.iter().any(|it| it.who == COMMANDS) {
        let ratio = times(&figures, "ringfence", COMMANDS);
        measured += &format!("; {} x {COMMANDS}", number(ratio));
    }
    throughput(profile, clients, &target, figures).judged(measured, met)
}

/// One process per call, of code that was compiled before.
const COMMANDS: &str = "one `wasmtime run` a call";

async fn commands(asked: &Targets, clients: Clients) -> Vec<Figure> {
    let how = &asked.how;
    let (path, _) = guests::built("hello");
    let Some(wasmtime) = Wasmtime::compiled(&asked.beside.wasmtime, &path, &[]) else {
        return Vec::new();
    };
    let mut rounds = Rounds::default();
    for _ in 0..how.rounds {
        let command = || wasmtime.run(&[]);
        let stats = drive::commands(clients.callers, how.time, command, "hello\n").await;
        rounds.push(COMMANDS, &stats);
    }
    rounds.figures(COMMANDS)
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
    let How {
        daemon, floor, set, ..
    } = &asked.how;
    let (daemon, floor) = (Process::daemon(daemon, set), Process::floor(floor));
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
    for _ in 0..asked.how.rounds {
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
    let mut measured = format!("{} of the floor", number(ratio));
    for peer in &figures[2..] {
        let times = figures[0].over(peer);
        measured += &format!("; {} x {}", number(times), peer.who);
    }
    let what = format!("`RunStream` of 128 MiB, `{}`", asked.how.profile());
    let target = "0.85 of the floor's stream of the same chunks";
    Row::new(&what, target, figures).judged(measured, ratio >= 0.85)
}

/// From when a guest writes its first line, and then sleeps, until its caller has it.
pub(crate) async fn first_line(asked: &Targets) -> Row {
    let how = &asked.how;
    let daemon = Process::daemon(&how.daemon, &how.set);
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
