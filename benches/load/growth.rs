//! What a call costs as things grow: a table for each.

use std::fmt::Write;
use std::time::Duration;

use bytes::Bytes;
use ringfence::model::request::Digest;
use tokio::task::JoinSet;

use super::ask::{Growth, How};
use super::call::Rounds;
use super::caller::{Caller, Question};
use super::drive::{self, Clients};
use super::guests;
use super::results::{self, Row, number};
use super::servers::Process;

const CLIENTS: Clients = Clients::on(16, 1);

/// Something that is asked, in turn with others.
struct Asked<'a> {
    who: &'a str,
    server: &'a Process,
    questions: Vec<Question>,
    clients: Clients,
}

/// Measures a row of a table.
async fn row(asked: &Growth, table: &str, what: &str, all: &[Asked<'_>]) -> Row {
    let mut rounds: Vec<Rounds> = all.iter().map(|_| Rounds::default()).collect();
    for _ in 0..asked.how.rounds {
        for (it, into) in all.iter().zip(&mut rounds) {
            let (addr, questions) = (&it.server.addr, &it.questions);
            drive::closed(addr, it.clients, Duration::from_millis(200), questions).await;
            let before = it.server.spent();
            let stats = drive::closed(addr, it.clients, asked.how.time, questions).await;
            into.push(it.who, &stats);
            into.spent(it.server.spent().saturating_sub(before), &stats);
        }
    }
    let each = all.iter().zip(rounds);
    let figures = each.flat_map(|(it, rounds)| rounds.figures(it.who));
    let mut row = Row::new(what, "", figures.collect());
    table.clone_into(&mut row.table);
    row.measured = format!("{} a second", number(row.figures[0].median));
    row.tell();
    row
}

/// One server beside the floor, which are asked the same.
fn beside<'a>(
    daemon: &'a Process,
    floor: &'a Process,
    question: &Question,
    clients: Clients,
) -> Vec<Asked<'a>> {
    let asked = |who, server| Asked {
        who,
        server,
        questions: vec![question.clone()],
        clients,
    };
    vec![asked("ringfence", daemon), asked("floor", floor)]
}

/// The daemon and the floor.
fn both(asked: &Growth) -> (Process, Process) {
    let How {
        daemon, floor, set, ..
    } = &asked.how;
    (Process::daemon(daemon, set), Process::floor(floor))
}

async fn hello(daemon: &Process) -> Question {
    let (_, wasm) = guests::built("hello");
    let digest = guests::loaded(&daemon.addr, wasm).await;
    guests::run(guests::spec(&digest, &["hello"]), "hello\n")
}

async fn concurrency(asked: &Growth) -> Vec<Row> {
    let (daemon, floor) = both(asked);
    let question = hello(&daemon).await;
    let mut rows = Vec::new();
    for clients in [1, 4, 16, 64, 256, 1000] {
        let all = beside(&daemon, &floor, &question, Clients::spread(clients));
        rows.push(row(asked, "clients", &clients.to_string(), &all).await);
    }
    rows
}

async fn cores(asked: &Growth) -> Vec<Row> {
    let mut rows = Vec::new();
    for (cores, behind) in [("1", &["taskset", "-c", "0"][..]), ("2", &[][..])] {
        let daemon = Process::daemon_behind(behind, &asked.how.daemon, &asked.how.set);
        let floor = Process::floor_behind(behind, &asked.how.floor);
        let question = hello(&daemon).await;
        let all = beside(&daemon, &floor, &question, CLIENTS);
        rows.push(row(asked, "cores", cores, &all).await);
    }
    rows
}

async fn module_size(asked: &Growth) -> Vec<Row> {
    let daemon = Process::daemon(&asked.how.daemon, &asked.how.set);
    let mut rows = Vec::new();
    for kib in [1, 50, 500, 4000] {
        let wasm = guests::module(1, kib);
        let what = format!("{} KiB", wasm.len() >> 10);
        let digest = guests::loaded(&daemon.addr, wasm).await;
        let all = [Asked {
            who: "ringfence",
            server: &daemon,
            questions: vec![guests::run(guests::spec(&digest, &[]), "")],
            clients: CLIENTS,
        }];
        rows.push(row(asked, "module size", &what, &all).await);
    }
    rows
}

async fn output_size(asked: &Growth) -> Vec<Row> {
    let (daemon, floor) = both(asked);
    let (_, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let mut rows = Vec::new();
    for bytes in [64, 4 << 10, 64 << 10, 1 << 20] {
        let args = ["work", "flood", &bytes.to_string(), "65536"];
        let question = guests::run(guests::spec(&digest, &args), "xxxx");
        let all = beside(&daemon, &floor, &question, CLIENTS);
        rows.push(row(asked, "output", &format!("{bytes} B"), &all).await);
    }
    rows
}

async fn cached_modules(asked: &Growth) -> Vec<Row> {
    const LOADERS: u64 = 4;
    let own = ["compile.mode=in-process", "engine.cache_budget=4GiB"].map(str::to_owned);
    let daemon = Process::daemon(&asked.how.daemon, &[&asked.how.set[..], &own].concat());
    let (mut questions, mut rows) = (Vec::new(), Vec::new());
    for count in [1, 100, 1000, 10_000] {
        let from = questions.len() as u64;
        let mut loading = JoinSet::new();
        for at in 0..LOADERS {
            let addr = daemon.addr.clone();
            loading.spawn(async move {
                let mut digests = Vec::new();
                for number in (from..count).filter(|it| it % LOADERS == at) {
                    digests.push(guests::loaded(&addr, guests::module(number, 0)).await);
                }
                digests
            });
        }
        for digest in loading.join_all().await.into_iter().flatten() {
            questions.push(guests::run(guests::spec(&digest, &[]), ""));
        }
        let all = [Asked {
            who: "ringfence",
            server: &daemon,
            questions: questions.clone(),
            clients: CLIENTS,
        }];
        rows.push(row(asked, "cached modules", &count.to_string(), &all).await);
    }
    rows
}

async fn tenants(asked: &Growth) -> Vec<Row> {
    let (_, wasm): (_, Bytes) = guests::built("hello");
    let mut rows = Vec::new();
    for count in [1, 10, 100, 1000] {
        let dir = tempfile::tempdir().unwrap();
        let (mut tokens, mut config) = (String::new(), String::new());
        let token =
            |i: usize| format!("a token of tenant {i}, which no other has").replace(' ', "-");
        for i in 0..count {
            writeln!(tokens, "t{i} {}", Digest::of(token(i).as_bytes())).unwrap();
            writeln!(config, "[[tenants]]\nname = \"t{i}\"").unwrap();
        }
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("tokens"), tokens).unwrap();
        std::fs::write(at("config.toml"), config).unwrap();
        // What a log needs at the least, for each.
        let set = [
            format!("auth.tokens_file={}", at("tokens")),
            format!("runs.log_budget={}MiB", count.max(64)),
        ];
        let set = [&asked.how.set[..], &set].concat();
        let daemon = Process::configured(&asked.how.daemon, &set, &at("config.toml"));
        let mut caller = Caller::connect(&daemon.addr).await;
        let digest = Digest::of(&wasm).to_string();
        let mut questions = Vec::new();
        for i in 0..count {
            let load = guests::load(wasm.clone()).by(&token(i));
            caller.ask(&load).await.expect("it is taken");
            let spec = guests::spec(&digest, &["hello"]);
            questions.push(guests::run(spec, "hello\n").by(&token(i)));
        }
        let all = [Asked {
            who: "ringfence",
            server: &daemon,
            questions,
            clients: CLIENTS,
        }];
        rows.push(row(asked, "tenants", &count.to_string(), &all).await);
    }
    rows
}

/// Measures them all, or those in whose name is `only`.
pub(crate) async fn measure(asked: &Growth) {
    let mut rows = Vec::new();
    let wanted = |table: &str| {
        asked
            .only
            .as_deref()
            .is_none_or(|only| table.contains(only))
    };
    if wanted("clients") {
        rows.extend(concurrency(asked).await);
    }
    if wanted("cores") {
        rows.extend(cores(asked).await);
    }
    if wanted("module size") {
        rows.extend(module_size(asked).await);
    }
    if wanted("output") {
        rows.extend(output_size(asked).await);
    }
    if wanted("cached modules") {
        rows.extend(cached_modules(asked).await);
    }
    if wanted("tenants") {
        rows.extend(tenants(asked).await);
    }
    results::keep(rows, asked.how.json.as_deref(), &super::command());
}
