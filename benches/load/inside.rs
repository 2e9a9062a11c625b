//! The row that is about a run in process, beside one by wasmtime alone: `benches/inside`, in a
//! process of its own.

#[path = "../inside/bare.rs"]
mod bare;
#[path = "../inside/guests.rs"]
mod guests;
#[path = "../inside/subject.rs"]
mod subject;

use std::process::Command;

use ringfence::bench::BenchDaemon;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use self::subject::{Compared, Subject};
use super::ask::Targets;
use super::results::{Figure, Row, number};

/// Microseconds of each round, and how many times as long ours took.
#[derive(Serialize, Deserialize)]
struct Told {
    ours: Vec<f64>,
    bare: Vec<f64>,
    ratio: f64,
}

impl Told {
    fn of(compared: Compared) -> Self {
        let ratio = compared.ratio();
        let Compared { ours, bare } = compared;
        Self { ours, bare, ratio }
    }

    fn figures(self, what: &str) -> [Figure; 2] {
        let figure = |who, rounds| Figure::new(who, what, "us", rounds);
        [
            figure("ringfence", self.ours),
            figure("wasmtime alone", self.bare),
        ]
    }
}

/// Measures, and tells in a line of JSON.
pub(crate) fn tell() {
    guests::build();
    let runtime = Runtime::new().unwrap();
    let _context = runtime.enter();
    let daemon = BenchDaemon::new(&[]);
    let measured = [guests::hello(), guests::noop()].map(|wasm| {
        let subject = Subject::new(&runtime, &daemon, wasm);
        Told::of(Compared::measure(&subject, &daemon))
    });
    println!("{}", serde_json::to_string(&measured).unwrap());
}

/// Has the floor's build of this program measure: it is of the profile that is asked about.
pub(crate) fn row(asked: &Targets) -> Row {
    let output = Command::new(&asked.how.floor).arg("inside").output();
    let output = output.unwrap();
    assert!(output.status.success(), "it measures");
    let [hello, noop]: [Told; 2] = serde_json::from_slice(&output.stdout).unwrap();
    let (ratio, empty) = (hello.ratio, noop.ratio);
    let figures = [
        hello.figures("a hello in process"),
        noop.figures("a run of nothing in process"),
    ]
    .concat();
    let what = format!(
        "a hello in process against wasmtime alone, `{}`",
        asked.how.profile()
    );
    Row::new(&what, "1.25 x", figures).judged(
        format!("{} x; {} x of nothing", number(ratio), number(empty)),
        ratio <= 1.25,
    )
}
