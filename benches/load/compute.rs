//! The rows that are about guests that compute.

use std::time::Instant;

use ringfence::api::proto::{Resources, RunResponse, RunSpec};

use super::ask::Targets;
use super::caller::{Caller, Question};
use super::guests;
use super::results::{Figure, Row, number};
use super::servers::{Process, Wasmtime};

/// An ordinary program, and about a second of it.
const ORDINARY: [&str; 2] = ["compute", "400"];
/// Loops so small that looking at epochs costs most.
const SMALL_LOOPS: [&str; 2] = ["sieve", "2000"];

/// How long a run took by its own account.
async fn executed(caller: &mut Caller, question: &Question) -> f64 {
    let (_, answer) = caller.timed::<RunResponse>(question).await;
    let result = answer.result.unwrap();
    assert_eq!(result.exit_code, Some(0));
    let took: std::time::Duration = result.duration.unwrap().try_into().unwrap();
    took.as_secs_f64() * 1e3
}

/// How long a command took beyond the same that computes nothing.
fn commanded(wasmtime: &Wasmtime, [habit, rounds]: [&str; 2]) -> f64 {
    let mut took = Vec::new();
    for rounds in ["0", rounds] {
        let start = Instant::now();
        let output = wasmtime.run(&[habit, rounds]).output().unwrap();
        assert!(output.status.success());
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took[1] - took[0]
}

/// What one habit took: unmetered, metered, by the command line with a timeout, and without.
struct Took {
    habit: &'static str,
    plain: Figure,
    metered: Figure,
    commands: Option<[Figure; 2]>,
}

impl Took {
    /// Metered against unmetered.
    fn fuel(&self) -> f64 {
        self.metered.over(&self.plain)
    }

    /// Against the command line with a timeout, and without.
    fn epochs(&self) -> Option<[f64; 2]> {
        let [timed, bare] = self.commands.as_ref()?;
        Some([self.plain.over(timed), self.plain.over(bare)])
    }
}

/// Unmetered against the command line, and metered against unmetered.
pub(crate) async fn rows(asked: &Targets) -> Vec<Row> {
    let daemon = Process::daemon(&asked.how.daemon, &asked.how.set);
    let (path, work) = guests::built("work");
    let digest = guests::loaded(&daemon.addr, work).await;
    let program = &asked.beside.wasmtime;
    let commands = [
        Wasmtime::compiled(program, &path, &["-W", "timeout=60s"]),
        Wasmtime::compiled(program, &path, &[]),
    ];
    let mut caller = Caller::connect(&daemon.addr).await;
    let mut took = Vec::new();
    for [habit, amount] in [ORDINARY, SMALL_LOOPS] {
        let question = |fuel| {
            let resources = Resources {
                fuel_limit: fuel,
                ..Resources::default()
            };
            let spec = RunSpec {
                resources: Some(resources),
                ..guests::spec(&digest, &["work", habit, amount])
            };
            guests::run(spec, "")
        };
        let (plain, metered) = (question(None), question(Some(1 << 50)));
        for question in [&plain, &metered] {
            executed(&mut caller, question).await;
        }
        let mut rounds: [Vec<f64>; 4] = Default::default();
        for _ in 0..asked.how.rounds.max(5) {
            rounds[0].push(executed(&mut caller, &plain).await);
            rounds[1].push(executed(&mut caller, &metered).await);
            if let [Some(timed), Some(bare)] = &commands {
                rounds[2].push(commanded(timed, [habit, amount]));
                rounds[3].push(commanded(bare, [habit, amount]));
            }
        }
        let figure = |who: &str, what: &str, rounds| {
            Figure::new(who, &format!("{habit}, {what}"), "ms", rounds)
        };
        let [plain, metered, timed, bare] = rounds;
        took.push(Took {
            habit,
            plain: figure("ringfence", "unmetered", plain),
            metered: figure("ringfence", "metered", metered),
            commands: (!bare.is_empty()).then(|| {
                [
                    figure("wasmtime run -W timeout=60s", "beyond its start", timed),
                    figure("wasmtime run", "beyond its start", bare),
                ]
            }),
        });
    }
    [unmetered(&took), with_fuel(&took)].into()
}

fn unmetered(took: &[Took]) -> Row {
    let figures = took.iter().flat_map(|it| {
        let commands = it.commands.iter().flatten();
        std::iter::once(&it.plain).chain(commands).cloned()
    });
    let row = Row::new(
        "compute-bound guest, unmetered",
        "1.03 x `wasmtime run -W timeout=...`",
        figures.collect(),
    );
    let Some([to_timed, _]) = took[0].epochs() else {
        return row.skipped("no wasmtime command here");
    };
    let ratios = took.iter().filter_map(|it| {
        let [to_timed, to_bare] = it.epochs()?;
        let habit = it.habit;
        Some(format!("{habit} {to_timed:.3} x; {to_bare:.3} x without"))
    });
    let measured = ratios.collect::<Vec<_>>().join(" (") + ")";
    row.judged(measured, to_timed <= 1.03)
}

fn with_fuel(took: &[Took]) -> Row {
    let figures = took.iter().map(|it| it.metered.clone());
    let row = Row::new(
        "compute-bound guest, metered",
        "1.15 x unmetered",
        figures.collect(),
    );
    let ratios = took
        .iter()
        .map(|it| format!("{} {} x", it.habit, number(it.fuel())));
    let measured = ratios.collect::<Vec<_>>().join(" (") + ")";
    row.judged(measured, took[0].fuel() <= 1.15)
}
