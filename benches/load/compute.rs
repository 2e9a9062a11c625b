//! The rows that are about guests that compute.

use std::time::Instant;

use ringfence::api::proto::{Resources, RunResponse, RunSpec};

use super::ask::Targets;
use super::caller::{Caller, Question};
use super::guests;
use super::results::{Figure, Row, number};
use super::servers::{Process, Wasmtime};

/// About a second of it.
const ROUNDS: &str = "3000";

/// How long a run took by its own account.
async fn executed(caller: &mut Caller, question: &Question) -> f64 {
    let (_, answer) = caller.timed::<RunResponse>(question).await;
    let result = answer.result.unwrap();
    assert_eq!(result.exit_code, Some(0));
    let took: std::time::Duration = result.duration.unwrap().try_into().unwrap();
    took.as_secs_f64() * 1e3
}

/// How long a command took beyond the same that computes nothing.
fn commanded(wasmtime: &Wasmtime) -> f64 {
    let mut took = Vec::new();
    for rounds in ["0", ROUNDS] {
        let start = Instant::now();
        let output = wasmtime.run(&["compute", rounds]).output().unwrap();
        assert!(output.status.success());
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took[1] - took[0]
}

/// Unmetered against the command line, and metered against unmetered.
pub(crate) async fn rows(asked: &Targets) -> Vec<Row> {
    let daemon = Process::daemon(&[&asked.how.set[..], &[]].concat());
    let (path, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let spec = |fuel| RunSpec {
        resources: Some(Resources {
            fuel_limit: fuel,
            ..Resources::default()
        }),
        ..guests::spec(&digest, &["work", "compute", ROUNDS])
    };
    let plain = guests::run(spec(None), "");
    let metered = guests::run(spec(Some(1 << 50)), "");
    let program = &asked.beside.wasmtime;
    let bare = Wasmtime::compiled(program, &path, &[]);
    let timed = Wasmtime::compiled(program, &path, &["-W", "timeout=60s"]);
    let mut caller = Caller::connect(&daemon.addr).await;
    for question in [&plain, &metered] {
        executed(&mut caller, question).await;
    }
    let mut rounds: [Vec<f64>; 4] = Default::default();
    for _ in 0..asked.how.rounds.max(5) {
        rounds[0].push(executed(&mut caller, &plain).await);
        rounds[1].push(executed(&mut caller, &metered).await);
        if let (Some(bare), Some(timed)) = (&bare, &timed) {
            rounds[2].push(commanded(timed));
            rounds[3].push(commanded(bare));
        }
    }
    let [plain, metered, timed, bare] = rounds;
    let plain = Figure::new("ringfence", "unmetered", "ms", plain);
    let metered = Figure::new("ringfence", "metered", "ms", metered);
    let cost = metered.over(&plain);
    let with_fuel = Row::new(
        "compute-bound guest, metered",
        "1.25 x unmetered",
        vec![metered],
    );
    let with_fuel = with_fuel.judged(format!("{} x", number(cost)), cost <= 1.25);
    let what = "compute-bound guest, unmetered";
    let target = "1.03 x `wasmtime run -W timeout=...`; 1.15 x without";
    if bare.is_empty() {
        let without = Row::new(what, target, vec![plain]);
        return vec![without.skipped("no wasmtime command here"), with_fuel];
    }
    let timed = Figure::new(
        "wasmtime run -W timeout=60s",
        "beyond its start",
        "ms",
        timed,
    );
    let bare = Figure::new("wasmtime run", "beyond its start", "ms", bare);
    let (to_timed, to_bare) = (plain.over(&timed), plain.over(&bare));
    let without = Row::new(what, target, vec![plain, timed, bare]);
    let measured = format!("{to_timed:.3} x; {to_bare:.3} x without");
    vec![
        without.judged(measured, to_timed <= 1.03 && to_bare <= 1.15),
        with_fuel,
    ]
}
