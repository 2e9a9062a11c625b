//! What a call is counted to take, of the server alone: a connection with sixteen calls in flight,
//! each a hello by digest, of the daemon and of the floor.
//!
//! Instructions and allocations are callgrind's, which runs the server and writes down what it has
//! counted whenever vgdb asks it to: what lies between two dumps is that of the calls between them.
//! That takes fifty times as long, and one thread at a time: what depends on how threads take
//! turns, system calls and switches of context, is counted by the kernel while the server runs as
//! it does, from outside of it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::Command;

use super::ask::{Become, Counts, How};
use super::caller::{Caller, Question};
use super::drive::{self, Clients};
use super::guests;
use super::profile::Profile;
use super::results::{self, Figure, Row, number};
use super::servers::Process;
use super::syscalls::{self, Calls};

const CLIENTS: Clients = Clients::on(1, 16);
/// Calls of a round, and of one under valgrind; before the first of each as many are not counted.
const CALLS: u64 = 10_000;
const PROFILED: u64 = 500;
/// System calls that are told apart are made once in so many calls at the least.
const SELDOM: f64 = 0.02;
/// What the daemon needs under valgrind, which has room for few instances, keeps what starts
/// `/proc/self/exe` from starting it, knows no Landlock, and makes a guest take longer than the
/// time between two epochs.
const UNDER_VALGRIND: [&str; 4] = [
    "admission.slots=6",
    "compile.mode=in-process",
    "hardening.mode=off",
    "engine.epoch_interval=100ms",
];

/// Has the C library copy and fill by ordinary instructions. Valgrind counts one that repeats
/// itself as often as it does: a cleaned stack, which is one instruction to a processor, would be
/// 65,536.
const TUNABLES: &str =
    "glibc.cpu.x86_rep_movsb_threshold=0x40000000:glibc.cpu.x86_rep_stosb_threshold=0x40000000";

impl Become {
    /// Becomes the program, in surroundings that are fit for valgrind.
    pub(crate) fn exec(self) -> ! {
        use std::os::unix::process::CommandExt;
        super::auxv::hide();
        let error = Command::new(&self.program)
            .args(&self.args)
            .env("GLIBC_TUNABLES", TUNABLES)
            .exec();
        panic!("{} does not start: {error}", self.program.display());
    }
}

/// Who is counted.
#[derive(Clone, Copy)]
enum Server {
    Daemon,
    Floor,
}

impl Server {
    fn name(self) -> &'static str {
        match self {
            Self::Daemon => "ringfence",
            Self::Floor => "floor",
        }
    }

    fn start(self, how: &How, behind: &[OsString], set: &[&str]) -> Process {
        let set = set.iter().map(|&set| set.to_owned());
        let set: Vec<String> = set.chain(how.set.iter().cloned()).collect();
        match self {
            Self::Daemon => Process::daemon_behind(behind, &how.daemon, &set),
            Self::Floor => Process::floor_behind(behind, &how.floor),
        }
    }
}

/// The callers of a server, and what they ask.
struct Asking {
    callers: Vec<Caller>,
    question: Question,
}

impl Asking {
    async fn connect(server: &Process) -> Self {
        let (_, hello) = guests::built("hello");
        let digest = guests::loaded(&server.addr, hello).await;
        let question = guests::run(guests::spec(&digest, &["hello"]), "hello\n");
        let callers = Caller::several(&server.addr, CLIENTS, &question).await;
        Self { callers, question }
    }

    async fn ask(&self, calls: u64) {
        let stats = drive::counted(&self.callers, calls, &self.question).await;
        assert_eq!(stats.first_failure(), None);
        assert_eq!(stats.answered(), calls);
    }
}

/// What each round of one counted, a call.
#[derive(Default)]
struct Counted {
    profiles: Vec<Profile>,
    system_calls: Vec<Calls>,
    /// Given up, and taken away.
    switches: [Vec<f64>; 2],
    processor: Vec<f64>,
}

impl Counted {
    async fn measure(server: Server, how: &How) -> Self {
        let mut counted = Self::default();
        counted.profile(server, how).await;
        counted.run(server, how).await;
        counted
    }

    /// Under valgrind.
    async fn profile(&mut self, server: Server, how: &How) {
        let dir = tempfile::tempdir().unwrap();
        let at = |option: &str, name: &str| -> OsString {
            format!("{option}={}", dir.path().join(name).display()).into()
        };
        let prefix = at("--vgdb-prefix", "vgdb");
        let behind = [
            std::env::current_exe().unwrap().into_os_string(),
            "become".into(),
            "valgrind".into(),
            "--tool=callgrind".into(),
            at("--callgrind-out-file", "out"),
            at("--log-file", "log"),
            prefix.clone(),
        ];
        let process = server.start(how, &behind, &UNDER_VALGRIND);
        let asking = Asking::connect(&process).await;
        asking.ask(PROFILED).await;
        let dump = || {
            let output = Command::new("vgdb")
                .arg(&prefix)
                .arg(format!("--pid={}", process.id()))
                .arg("dump")
                .output();
            let output = output.expect("vgdb comes with valgrind");
            assert!(output.status.success(), "what was counted is dumped");
        };
        // The first dump is of what went before, so that the second is of the first round.
        dump();
        for round in 0..how.rounds {
            asking.ask(PROFILED).await;
            dump();
            let dump = dir.path().join(format!("out.{}", round + 2));
            self.profiles.push(Profile::read(&dump));
        }
        let seen = self.profiles.iter().all(|it| it.allocations > 0);
        assert!(
            seen,
            "allocations are known by the names of the C library's functions"
        );
    }

    /// As it is.
    async fn run(&mut self, server: Server, how: &How) {
        let process = server.start(how, &[], &[]);
        let asking = Asking::connect(&process).await;
        asking.ask(CALLS).await;
        let can_count = syscalls::can_count();
        for _ in 0..how.rounds {
            let (switches, spent) = (process.switches(), process.spent());
            if can_count {
                let calls = syscalls::count(process.id(), asking.ask(CALLS)).await;
                self.system_calls.push(calls);
            } else {
                asking.ask(CALLS).await;
            }
            let after = process.switches();
            for (at, into) in self.switches.iter_mut().enumerate() {
                into.push(after[at].saturating_sub(switches[at]) as f64 / CALLS as f64);
            }
            let spent = process.spent().saturating_sub(spent);
            self.processor
                .push(spent.as_secs_f64() * 1e6 / CALLS as f64);
        }
    }

    fn instructions(&self, who: &str) -> Figure {
        let each = self
            .profiles
            .iter()
            .map(|it| it.instructions as f64 / PROFILED as f64);
        Figure::new(who, "instructions", "a call", each.collect())
    }

    /// Of a part of the code.
    fn instructions_of(&self, who: &str, part: &str) -> Figure {
        let each = self.profiles.iter().map(|it| {
            let count = it.parts.get(part).copied().unwrap_or(0);
            count as f64 / PROFILED as f64
        });
        Figure::new(who, "instructions", "a call", each.collect())
    }

    fn allocations(&self, who: &str) -> Figure {
        let each = self
            .profiles
            .iter()
            .map(|it| it.allocations as f64 / PROFILED as f64);
        Figure::new(who, "allocations", "a call", each.collect())
    }

    /// Of one name, or, by none, of all.
    fn system_calls(&self, who: &str, name: &str) -> Figure {
        let each = self.system_calls.iter().map(|calls| {
            let count = calls.get(name).copied().unwrap_or(0);
            count as f64 / CALLS as f64
        });
        let what = match name {
            "" => "system calls".to_owned(),
            name => format!("{name} calls"),
        };
        Figure::new(who, &what, "a call", each.collect())
    }

    fn processor(&self, who: &str) -> Figure {
        Figure::new(who, "processor time", "us", self.processor.clone())
    }

    /// All, and those by which a thread gave up its processor.
    fn switches(&self, who: &str) -> Vec<Figure> {
        let [given, taken] = &self.switches;
        let all = given.iter().zip(taken).map(|(given, taken)| given + taken);
        let figure = |what, each| Figure::new(who, what, "a call", each);
        vec![
            figure("switches", all.collect()),
            figure("switches, voluntary", given.clone()),
        ]
    }
}

/// The rows about counts, where what counts is there.
pub(crate) async fn rows(how: &How) -> Vec<Row> {
    let profile = how.profile();
    let code = format!("instructions a call, {CLIENTS}, `{profile}`");
    let target = match profile.as_str() {
        "dist" => 90.0,
        _ => 105.0,
    };
    let turns = format!(
        "allocations, futex calls, switches of context, system calls a call, {CLIENTS}, `{profile}`"
    );
    let code = Row::new(&code, &format!("{target:.0}k"), Vec::new());
    let turns = Row::new(&turns, "60, 0.2, 0.2, 4", Vec::new());
    let valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    if !valgrind {
        let why = "needs valgrind";
        return vec![code.skipped(why), turns.skipped(why)];
    }
    if !syscalls::can_count() {
        eprintln!("SKIPPED: system calls, which perf cannot count here");
    }
    let daemon = Counted::measure(Server::Daemon, how).await;
    let floor = Counted::measure(Server::Floor, how).await;
    let both = [(Server::Daemon, &daemon), (Server::Floor, &floor)];
    let mut rows = vec![told_code(code, both, target), told_turns(turns, both)];
    rows.extend(costs(both));
    rows
}

type Both<'a> = [(Server, &'a Counted); 2];

fn told_code(mut row: Row, both: Both<'_>, target: f64) -> Row {
    row.figures = both
        .map(|(server, it)| it.instructions(server.name()))
        .into();
    let [ours, floor] = [0, 1].map(|at| row.figures[at].median / 1e3);
    let measured = format!("{ours:.0}k (floor {floor:.0}k)");
    row.judged(measured, ours <= target)
}

fn told_turns(mut row: Row, both: Both<'_>) -> Row {
    const TARGETS: [f64; 4] = [60.0, 0.2, 0.2, 4.0];
    let mut told = Vec::new();
    let mut met = false;
    for (server, it) in both {
        let who = server.name();
        let [all, given] = it.switches(who).try_into().ok().unwrap();
        let figures = [
            it.allocations(who),
            it.system_calls(who, "futex"),
            all,
            it.system_calls(who, ""),
        ];
        let medians = figures.each_ref().map(|it| it.median);
        told.push(medians.map(number).join(", "));
        if matches!(server, Server::Daemon) {
            let mut pairs = medians.iter().zip(TARGETS);
            met = pairs.all(|(it, target)| *it <= target);
        }
        let figures = figures.into_iter().chain([given]);
        row.figures.extend(figures.filter(is_counted));
    }
    let measured = format!("{} (floor {})", told[0], told[1]);
    row.judged(measured, met)
}

/// Whether it could be counted here.
fn is_counted(figure: &Figure) -> bool {
    !figure.rounds.is_empty()
}

/// What a call costs by part, the largest of each kind first.
fn costs(both: Both<'_>) -> Vec<Row> {
    let figures =
        |of: &dyn Fn(&Counted, &str) -> Figure| both.map(|(server, it)| of(it, server.name()));
    let instructions = figures(&Counted::instructions);
    let mut rows = vec![cost("instructions", instructions)];
    let mut parts = Vec::new();
    for part in names(both, |it| it.profiles.iter().flat_map(|it| it.parts.keys())) {
        let figures = figures(&|it, who| it.instructions_of(who, part));
        parts.push(cost(&format!("of them {part}"), figures));
    }
    rows.extend(largest_first(parts));
    rows.push(cost("allocations", figures(&Counted::allocations)));
    let all = figures(&|it, who| it.system_calls(who, ""));
    if all.iter().all(is_counted) {
        rows.push(cost("system calls", all));
    }
    let mut calls = Vec::new();
    for name in names(both, |it| it.system_calls.iter().flat_map(Calls::keys)) {
        let figures = figures(&|it, who| it.system_calls(who, name));
        if !name.is_empty() && figures.iter().any(|it| it.median >= SELDOM) {
            calls.push(cost(&format!("of them `{name}`"), figures));
        }
    }
    rows.extend(largest_first(calls));
    let switches = figures(&|it, who| it.switches(who).swap_remove(0));
    rows.push(cost("switches of context", switches));
    let processor = figures(&Counted::processor);
    rows.push(cost("processor time, us", processor));
    rows
}

fn cost(what: &str, figures: [Figure; 2]) -> Row {
    let mut row = Row::new(what, "", figures.into());
    "cost".clone_into(&mut row.table);
    row
}

/// Names that occur in either, each once.
fn names<'a, T: Ord, I: Iterator<Item = T>>(
    both: Both<'a>,
    of: impl Fn(&'a Counted) -> I,
) -> BTreeSet<T> {
    both.into_iter().flat_map(|(_, it)| of(it)).collect()
}

fn largest_first(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| b.figures[0].median.total_cmp(&a.figures[0].median));
    rows
}

/// Counts, and tells.
pub(crate) async fn measure(asked: &Counts) {
    let rows = rows(&asked.how).await;
    for row in &rows {
        row.tell();
    }
    results::keep(rows, asked.how.json.as_deref(), &super::command());
}
