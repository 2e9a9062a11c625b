//! `answers`, `connections`, `directories`, `files`, `compiles`, `modules`: what a tenant notices of an attack by another, or by
//! somebody who is no tenant. Its figures under the attack stand beside those that it has alone.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::{LoadModuleRequest, RunRequest, RunSpec, load_module_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::ask::Scale;
use crate::daemon::{Besieged, alone};
use crate::figures::{Report, Tally, Times, mib, ms};
use crate::harness::{Client, SpecExt, by_digest, connect, spec};
use crate::hostile::{BEFORE, bomb, guest, hello, hostile_run, work};
use crate::neighbour::{AGAIN, TENANTS, as_tenant, attack as attack_by_runs, taken, two_tenants};
use crate::raw::{PING, call_on, frame, greeting, greeting_with};

/// What the attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attack {
    /// It has large answers made, and takes none of them.
    Answers,
    /// It holds as many connections as it gets, and never says who it is.
    Connections,
    /// It lists a large directory over and over.
    Directories,
    /// It asks for and reads files over and over.
    Files,
    /// It has modules compiled that take as long as they may.
    Compiles,
    /// It runs one module after the other inline, each of them new.
    Modules,
}

const LISTS: &str = include_str!("../guests/lists.wat");
const ASKS: &str = include_str!("../guests/asks.wat");
/// Guests of the attacker at once, and its modules that wait for the compiler.
const AT_ONCE: usize = 16;
/// Its guests that use files.
const USE_FILES: usize = 48;
/// What the daemon may hold of compiled code where that is attacked: a few dozen of the attacker's modules.
const CACHE: &str = "engine.cache_budget=16MiB";
/// Answers of the attacker, each of as many bytes as one may have.
const ANSWERS: u32 = 40;
/// Connections that the daemon has places for.
const PLACES: usize = 256;
/// The directory that is listed, and whose files are read.
const FOLDER: &str = "files";
/// Files in it.
const MANY: usize = 10_000;
/// How long a hostile run may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Functions of a module of 700 KB.
const LARGE: usize = 3_200;
/// Iterations of a guest that takes about a millisecond.
const WORK: &str = "1000000";
/// What is slower than alone by less than this is not told apart from the noise of two cores.
const NOISE: Duration = Duration::from_millis(5);

const LOAD: &str = "its load of 30 bytes";
/// `compile.small_timeout`.
const SMALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the neighbour does each thing.
const HELLO_EACH: Duration = Duration::from_millis(20);
const WORK_EACH: Duration = Duration::from_millis(50);
const LOAD_EACH: Duration = Duration::from_millis(100);

pub(crate) async fn row(attack: Attack, scale: &Scale, report: &mut Report) {
    let files = tempfile::tempdir().unwrap();
    let daemon = prepared(attack, files.path()).await;
    let neighbour = Neighbour::of(&daemon, attack).await;
    let window = scale.pick(Duration::from_secs(3), Duration::from_secs(30));
    let mut before = neighbour.figures(&daemon, window, 0).await;
    let resident = daemon.held().resident;
    let mut attackers = begin(attack, &daemon, &files.path().join(FOLDER)).await;
    let mut under = neighbour.figures(&daemon, window, 1 << 20).await;
    let held = daemon.held().resident;
    attackers.shutdown().await;
    before.beside(&mut under, attack, report);
    report.told(
        "resident, before and under it",
        format!("{}, {}", mib(resident), mib(held)),
    );
    daemon.end(report).await;
}

/// A daemon with what the attack needs.
async fn prepared(attack: Attack, dir: &Path) -> Besieged {
    let mut tables = String::new();
    let mut set = Vec::new();
    match attack {
        Attack::Directories | Attack::Files => {
            let folder = dir.join(FOLDER);
            std::fs::create_dir(&folder).unwrap();
            for i in 0..MANY {
                std::fs::write(folder.join(format!("file-{i}")), b"").unwrap();
            }
            std::fs::write(folder.join("large"), vec![7; 1 << 20]).unwrap();
            tables = format!("[[policy.mounts]]\nhost = {folder:?}\naccess = \"read\"\n");
        }
        Attack::Connections => {
            set.push(format!("server.max_connections={PLACES}"));
            set.push(format!("server.max_connections_per_peer={PLACES}"));
        }
        Attack::Modules => set.push(CACHE.to_owned()),
        Attack::Answers | Attack::Compiles => {}
    }
    two_tenants(dir, &tables, &set).await
}

/// Begins the attack, which goes on until it is dropped.
async fn begin(attack: Attack, daemon: &Besieged, folder: &Path) -> JoinSet<()> {
    let mut client = daemon.client().await;
    let addr = daemon.addr().to_owned();
    let [(_, token), _] = TENANTS;
    let mut attackers = JoinSet::new();
    match attack {
        Attack::Answers => {
            let digest = taken(&mut client, token, &fills_its_output()).await;
            let spec = by_digest(&digest).resources(|it| it.output_limit = Some(16 << 20));
            attackers.spawn(take_no_answer(addr, spec));
        }
        Attack::Connections => {
            for i in 0..PLACES + 64 {
                attackers.spawn(hold_a_connection(addr.clone(), i));
            }
            // All places are taken when nobody comes in any more, or somebody else has to go.
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Attack::Directories | Attack::Files => {
            let wat = if attack == Attack::Directories {
                LISTS
            } else {
                ASKS
            };
            let digest = taken(&mut client, token, wat).await;
            let spec = hostile_run(&digest)
                .timeout(TIMEOUT)
                .mount(folder, "/", true);
            for _ in 0..USE_FILES {
                attackers.spawn(attack_by_runs(connect(&addr).await, spec.clone()));
            }
        }
        Attack::Compiles => {
            for i in 0..AT_ONCE {
                attackers.spawn(load_forever(connect(&addr).await, i));
            }
        }
        Attack::Modules => {
            for i in 0..AT_ONCE {
                attackers.spawn(run_new_forever(connect(&addr).await, i));
            }
        }
    }
    attackers
}

/// A guest that writes as much as it may, and ends well.
fn fills_its_output() -> String {
    guest(
        17,
        r#"(func (export "_start") (local i32)
          (i32.store (i32.const 64) (i32.const 256)) (i32.store (i32.const 68) (i32.const 1048576))
          (loop $again
            (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 60)))
            (local.set 0 (i32.add (local.get 0) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get 0) (i32.const 16)))))"#,
    )
}

async fn load_forever(mut client: Client, first: usize) {
    let [(_, token), _] = TENANTS;
    for seed in (first..).step_by(AT_ONCE) {
        let request = LoadModuleRequest {
            source: Some(load_module_request::Source::Wasm(bomb(seed))),
            ..LoadModuleRequest::default()
        };
        if client.load_module(as_tenant(request, token)).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn run_new_forever(mut client: Client, first: usize) {
    let [(_, token), _] = TENANTS;
    for seed in (first..).step_by(AT_ONCE) {
        let request = RunRequest {
            spec: Some(spec(large(seed, 300)).entry("work")),
        };
        if client.run(as_tenant(request, token)).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// A module of so many functions of 200 bytes, which is quick to compile for its size. Each `seed` makes another.
fn large(seed: usize, functions: usize) -> Bytes {
    let step = "(local.set 0 (i32.add (local.get 0) (i32.const 7)))".repeat(30);
    let function = format!("(func (param i32) (result i32) {step} (local.get 0))");
    let functions = function.repeat(functions);
    let text =
        format!(r#"(module (global i32 (i32.const {seed})) {functions} (func (export "work")))"#);
    wat::parse_str(text).unwrap().into()
}

/// Asks for many runs on a connection whose window is 0, again and again.
async fn take_no_answer(addr: String, spec: RunSpec) {
    const PATH: &str = "/ringfence.v1.SandboxService/Run";
    const NO_WINDOW: [u8; 6] = [0, 4, 0, 0, 0, 0];
    let [(_, token), _] = TENANTS;
    let message = RunRequest { spec: Some(spec) }.encode_to_vec();
    loop {
        let mut stream = TcpStream::connect(&addr).await.unwrap();
        let mut calls = greeting_with(&NO_WINDOW);
        for i in 0..ANSWERS {
            calls.extend(call_on(2 * i + 1, PATH, Some(token), &message));
        }
        // It may be closed meanwhile: then it comes again.
        if stream.write_all(&calls).await.is_ok() {
            answer_pings(stream).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Opens a connection from an address of its own, says no more than a client has to, and stays.
async fn hold_a_connection(addr: String, i: usize) {
    let own = format!("127.0.1.{}:0", 1 + i % 250);
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(own.parse().unwrap()).unwrap();
        if let Ok(mut stream) = socket.connect(addr.parse().unwrap()).await
            && stream.write_all(&greeting()).await.is_ok()
        {
            answer_pings(stream).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads frames and answers pings, until the connection ends.
async fn answer_pings(mut stream: TcpStream) {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if stream.read_exact(&mut payload).await.is_err() {
            return;
        }
        let is_asked = head[3] == PING && head[4] & 1 == 0;
        if is_asked
            && stream
                .write_all(&frame(PING, 1, 0, &payload))
                .await
                .is_err()
        {
            return;
        }
    }
}

/// The other tenant, and what it has loaded.
struct Neighbour {
    hello: RunSpec,
    work: RunSpec,
    /// Each call has a connection of its own.
    connects: bool,
    /// Whether it loads a large module too.
    loads_large: bool,
    /// A run of a large module that is loaded, and used by nothing else.
    rested: Option<RunSpec>,
}

/// What the neighbour sees: how long each thing takes, and how it ends.
#[derive(Default)]
struct Figures {
    hello: Times,
    work: Times,
    load: Times,
    large: Times,
    rested: Times,
    endings: Tally,
}

impl Neighbour {
    async fn of(daemon: &Besieged, attack: Attack) -> Self {
        let [_, (_, token)] = TENANTS;
        let mut client = daemon.client().await;
        let hello = by_digest(&taken(&mut client, token, &hello()).await);
        let mut work = by_digest(&taken(&mut client, token, &work()).await);
        work.entry_point = "work".to_owned();
        work.args = vec![WORK.to_owned()];
        let rested = if attack == Attack::Modules {
            let module = LoadModuleRequest {
                source: Some(load_module_request::Source::Wasm(large(0, LARGE))),
                ..LoadModuleRequest::default()
            };
            let loaded = client.load_module(as_tenant(module, token)).await;
            let digest = loaded.unwrap().into_inner().module.unwrap().digest;
            Some(by_digest(&digest).entry("work"))
        } else {
            None
        };
        Self {
            hello,
            work,
            rested,
            connects: attack == Attack::Connections,
            loads_large: attack == Attack::Compiles,
        }
    }

    /// Runs and loads at a steady pace for `window`; the modules that it loads are numbered from `seed` on.
    async fn figures(&self, daemon: &Besieged, window: Duration, seed: u32) -> Figures {
        let addr = daemon.addr().to_owned();
        let (hello, work, connects) = (self.hello.clone(), self.work.clone(), self.connects);
        let larges: Vec<Bytes> =
            std::iter::repeat_with(|| large(usize::try_from(seed).unwrap(), LARGE))
                .take(usize::from(self.loads_large))
                .collect();
        let rested = self.rested.clone();
        alone(move || async move {
            let caller = Caller {
                client: (!connects).then_some(connect(&addr).await),
                addr,
            };
            let start = Instant::now();
            let steady = |each| paces(start, each, window);
            let (hellos, works, loads, larges) = tokio::join!(
                each(steady(HELLO_EACH), |_, due| ran(
                    caller.clone(),
                    hello.clone(),
                    due
                )),
                each(steady(WORK_EACH), |_, due| ran(
                    caller.clone(),
                    work.clone(),
                    due
                )),
                each(steady(LOAD_EACH), |i, due| loaded(
                    caller.clone(),
                    small(seed + i),
                    due
                )),
                each(vec![start; larges.len()], |i, due| {
                    let module = larges[usize::try_from(i).unwrap()].clone();
                    loaded(caller.clone(), module, due)
                }),
            );
            let rested = match rested {
                Some(spec) => vec![ran(caller, spec, Instant::now()).await],
                None => Vec::new(),
            };
            let mut figures = Figures::default();
            for (name, of, into) in [
                ("hello", hellos, &mut figures.hello),
                ("work", works, &mut figures.work),
                ("load", loads, &mut figures.load),
                ("large load", larges, &mut figures.large),
                ("rested", rested, &mut figures.rested),
            ] {
                for (took, ending) in of {
                    into.push(took);
                    figures.endings.add(match ending.as_str() {
                        "well" => "well".to_owned(),
                        other => format!("{name}: {other}"),
                    });
                }
            }
            figures
        })
        .await
    }
}

/// When calls are due.
fn paces(start: Instant, each: Duration, window: Duration) -> Vec<Instant> {
    let calls = window.as_millis() / each.as_millis();
    let calls = u32::try_from(calls).unwrap();
    (0..calls).map(|i| start + each * i).collect()
}

/// Makes each call when it is due, whether or not the last one has ended.
async fn each<F>(due: Vec<Instant>, call: impl Fn(u32, Instant) -> F) -> Vec<(Duration, String)>
where
    F: Future<Output = (Duration, String)> + Send + 'static,
{
    let mut calls = JoinSet::new();
    for (i, due) in due.into_iter().enumerate() {
        tokio::time::sleep_until(due).await;
        calls.spawn(call(u32::try_from(i).unwrap(), due));
    }
    calls.join_all().await
}

/// Who calls: on one connection, or on one for each call.
#[derive(Clone)]
struct Caller {
    client: Option<Client>,
    addr: String,
}

impl Caller {
    async fn client(self) -> Client {
        match self.client {
            Some(client) => client,
            None => connect(&self.addr).await,
        }
    }
}

async fn ran(caller: Caller, spec: RunSpec, due: Instant) -> (Duration, String) {
    let [_, (_, token)] = TENANTS;
    let says = spec.entry_point.is_empty();
    let request = RunRequest { spec: Some(spec) };
    let answer = caller.client().await.run(as_tenant(request, token)).await;
    let answer = answer.map(tonic::Response::into_inner);
    let took = due.elapsed();
    let well = |ran: &ringfence::api::proto::RunResponse| !says || ran.stdout == BEFORE;
    let ending = match crate::daemon::ending(&answer) {
        ended if ended == "EXITED" && answer.as_ref().is_ok_and(well) => "well".to_owned(),
        ended => ended,
    };
    (took, ending)
}

/// A module of 30 bytes that nobody has loaded.
fn small(seed: u32) -> Bytes {
    let wat = format!("(module (global (export \"g\") i32 (i32.const {seed})))");
    wat::parse_str(wat).unwrap().into()
}

/// Loads a module.
async fn loaded(caller: Caller, module: Bytes, due: Instant) -> (Duration, String) {
    let [_, (_, token)] = TENANTS;
    let request = LoadModuleRequest {
        source: Some(load_module_request::Source::Wasm(module)),
        ..LoadModuleRequest::default()
    };
    let answer = caller
        .client()
        .await
        .load_module(as_tenant(request, token))
        .await;
    let ending = match &answer {
        Ok(_) => "well".to_owned(),
        Err(status) => crate::daemon::reason(status),
    };
    (due.elapsed(), ending)
}

impl Figures {
    /// Reports these, which are of the neighbour alone, beside those that it has under an attack.
    fn beside(&mut self, under: &mut Self, attack: Attack, report: &mut Report) {
        for (what, alone, under) in [
            ("a neighbour's hello", &mut self.hello, &mut under.hello),
            ("its run of a millisecond", &mut self.work, &mut under.work),
            (LOAD, &mut self.load, &mut under.load),
        ] {
            let [before, after] = [&mut *alone, &mut *under].map(|it| it.percentile(50));
            report.told(
                &format!("{what}, p50"),
                format!("{}, {}", ms(before), ms(after)),
            );
            let [before, after] = [alone, under].map(|it| it.percentile(99));
            let mut most = (before * 2).max(before + NOISE);
            if what == LOAD && attack == Attack::Modules {
                // The one small module that is being compiled goes on to its end.
                most += SMALL_TIMEOUT;
            }
            report.figure(
                &format!("{what}, p99"),
                format!("{}, {}", ms(before), ms(after)),
                &format!("at most {}", ms(most)),
                after <= most,
            );
        }
        if self.large.len() + under.large.len() > 0 {
            let [before, after] = [&mut self.large, &mut under.large].map(Times::max);
            // Whoever compiles goes on for a quantum.
            let most = before * 2 + Duration::from_secs(2);
            report.figure(
                "its load of 700 KB",
                format!("{}, {}", ms(before), ms(after)),
                &format!("at most {}", ms(most)),
                after <= most,
            );
        }
        if self.rested.len() > 0 {
            let [before, after] = [&mut self.rested, &mut under.rested].map(Times::max);
            let most = (before * 2).max(before + NOISE);
            report.figure(
                "its run of a module that rested",
                format!("{}, {}", ms(before), ms(after)),
                &format!("at most {}", ms(most)),
                after <= most,
            );
        }
        for (when, endings) in [("alone", &self.endings), ("under it", &under.endings)] {
            report.told(&format!("{when}, calls"), endings);
            report.some(&format!("{when}, calls that end well"), endings.of("well"));
            report.equal(&format!("{when}, other ends"), endings.beside(&["well"]), 0);
        }
    }
}
