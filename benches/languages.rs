//! What a program in a language costs: one client that calls again and again, then sixteen at once,
//! on one daemon, and beside it other sandboxes that execute the same program.
//!
//! ```sh
//! cargo bench --bench languages -- --rounds 3 --stock python.wasm \
//!   --peer pyeryx=/tmp/language-peers/pyeryx --rate python=300 --rate javascript=1000
//! ```
//!
//! `benches/peers/languages/build.sh` makes the peers. `--stock` is CPython for preview 1, which
//! starts in each call. `--rate` is an open loop, which comes last in each round. `--only javascript`
//! measures one language, in a daemon that executes nothing else.
//!
//! Each takes its turn, program by program and round by round, and nothing else runs then. The
//! interpreters are those of `tests/languages`, and stock CPython, which is that of `tests/it`, is
//! a language of the same daemon.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a program that is looked at while it runs, and fails by panicking; its figures are for people"
)]

#[path = "languages/figures.rs"]
mod figures;
#[path = "../tests/it/guests.rs"]
mod guests;
#[path = "../tests/languages/interpreters.rs"]
mod interpreters;
#[path = "languages/peers.rs"]
mod peers;
#[path = "languages/rate.rs"]
mod rate;
mod served;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::{
    ExecuteRequest, ExecuteResponse, ExecutionSpec, ListLanguagesRequest, Outcome, Resources,
};
use tonic::transport::{Channel, Endpoint};

use figures::{Figures, Rows};
use interpreters::Interpreters;
use peers::Peer;
use rate::Rate;
use served::Served;

/// Calls of one client, after a few that are not counted.
const CALLS: usize = 400;
/// How long sixteen clients call.
const TOGETHER: Duration = Duration::from_secs(4);
/// Clients at once.
const CLIENTS: usize = 16;

/// A program that is measured.
struct Measured {
    language: &'static str,
    name: &'static str,
    code: &'static str,
}

static PROGRAMS: [Measured; 6] = [
    Measured {
        language: "python",
        name: "hello",
        code: "print('hello')\n",
    },
    Measured {
        language: "python",
        name: "json, re, math, datetime",
        code: LIBRARIES,
    },
    Measured {
        language: "python",
        name: "sum of 100,000",
        code: "print(sum(range(100_000)))\n",
    },
    Measured {
        language: "javascript",
        name: "hello",
        code: "console.log('hello')\n",
    },
    Measured {
        language: "javascript",
        name: "json, re, math, date",
        code: "console.log(JSON.stringify({a: [1, 2]}), 'a1b2'.replace(/\\d/g, ''), Math.sin(1), new Date(0).toISOString())\n",
    },
    Measured {
        language: "stock-python",
        name: "hello, cold",
        code: "print('hello')\n",
    },
];

const LIBRARIES: &str = "import json, re, math, datetime\nprint(json.dumps({'a': [1, 2]}), re.sub(r'\\d', '', 'a1b2'), math.sin(1), datetime.datetime.fromtimestamp(0, datetime.timezone.utc).isoformat())\n";

type Client = ExecutionServiceClient<Channel>;

async fn client(addr: &str) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    Client::new(endpoint.connect().await.unwrap())
}

fn spec(measured: &Measured) -> ExecutionSpec {
    ExecutionSpec {
        language: measured.language.to_owned(),
        code: measured.code.to_owned(),
        resources: Some(Resources::default()),
        ..ExecutionSpec::default()
    }
}

/// What came of an execution that was served.
struct Answered {
    took: Duration,
    /// Processor time of the run itself.
    spent: Duration,
    wrote: String,
}

/// Executes a program. What is refused, and a program that fails, are errors in words.
async fn try_execute(client: &mut Client, measured: &Measured) -> Result<Answered, String> {
    let spec = Some(spec(measured));
    let begun = Instant::now();
    let answer = client.execute(ExecuteRequest { spec }).await;
    let took = begun.elapsed();
    let answer = answer.map_err(|it| format!("{:?}: {}", it.code(), it.message()))?;
    let ExecuteResponse {
        result,
        stdout,
        stderr,
        ..
    } = answer.into_inner();
    let result = result.ok_or("an answer without a result")?;
    if result.outcome() != Outcome::Exited || result.exit_code != Some(0) {
        return Err(format!("{:?}: {stderr:?}", result.outcome()));
    }
    let spent = result.cpu_time.unwrap_or_default();
    Ok(Answered {
        took,
        spent: spent.try_into().unwrap_or_default(),
        wrote: String::from_utf8_lossy(&stdout).into_owned(),
    })
}

async fn execute(client: &mut Client, measured: &Measured) -> Answered {
    try_execute(client, measured).await.expect("it is executed")
}

/// What the command line asks for.
struct Options {
    /// Stock CPython, where an earlier test run has fetched it.
    stock: Option<PathBuf>,
    peers: Vec<Peer>,
    rates: Vec<Rate>,
    rounds: usize,
    /// The one language whose programs are measured; `None`: those of all.
    only: Option<String>,
}

impl Options {
    fn parse() -> Self {
        let mut options = Self {
            stock: None,
            peers: Vec::new(),
            rates: Vec::new(),
            rounds: 1,
            only: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            // Cargo adds it.
            if word == "--bench" {
                continue;
            }
            let value = words.next().unwrap_or_default();
            match word.as_str() {
                "--stock" => options.stock = Some(PathBuf::from(value)),
                "--peer" => options.peers.push(Peer::parse(&value)),
                "--rate" => options.rates.push(Rate::parse(&value)),
                "--rounds" => options.rounds = value.parse().expect("--rounds takes a number"),
                "--only" => options.only = Some(value),
                _ => panic!("{word} is none of --stock, --peer, --rate, --rounds and --only"),
            }
        }
        options
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn quantile(sorted: &[Duration], percent: usize) -> f64 {
    millis(sorted[(sorted.len() - 1) * percent / 100])
}

/// Measures a program by one client and then by sixteen; also returns what it wrote.
async fn measure(served: &Served, measured: &'static Measured) -> (Figures, String) {
    let mut client = client(&served.1).await;
    for _ in 0..20 {
        execute(&mut client, measured).await;
    }
    let calls = if measured.language == "stock-python" {
        CALLS / 10
    } else {
        CALLS
    };
    let (mut took, mut spent, mut wrote) = (Vec::new(), Duration::ZERO, String::new());
    let before = served.processor_time();
    for _ in 0..calls {
        let answered = execute(&mut client, measured).await;
        took.push(answered.took);
        spent += answered.spent;
        wrote = answered.wrote;
    }
    let processor_ms = millis(served.processor_time() - before) / calls as f64;
    let mean_ms = millis(took.iter().sum()) / calls as f64;
    took.sort();
    println!(
        "{:<13} {:<25} processor time of a run itself: {:.2} ms",
        measured.language,
        measured.name,
        millis(spent) / calls as f64,
    );
    let figures = Figures {
        p50_ms: quantile(&took, 50),
        mean_ms,
        p99_ms: quantile(&took, 99),
        per_second: together(&served.1, measured).await,
        processor_ms,
        calls,
    };
    (figures, wrote)
}

/// Returns how many executions a second end when sixteen clients call, from the first one's begin
/// to the last one's end.
async fn together(addr: &str, measured: &'static Measured) -> f64 {
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(client(addr).await);
    }
    let begun = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            let mut calls = 0_u32;
            while begun.elapsed() < TOGETHER {
                execute(&mut client, measured).await;
                calls += 1;
            }
            calls
        });
    }
    let calls: u32 = tasks.join_all().await.into_iter().sum();
    f64::from(calls) / begun.elapsed().as_secs_f64()
}

/// Starts a daemon that has the interpreters, and waits until it has compiled them. Also returns
/// the names of its languages.
async fn start(stock: Option<&Path>) -> (Served, Vec<&'static str>) {
    let interpreters = Interpreters::get();
    let mut names = interpreters.names();
    let mut config = interpreters.config();
    if let Some(stock) = stock {
        names.push("stock-python");
        let stock = format!(
            ", stock-python = {{ module = \"{}\", protocol = \"argument\", args = [\"python\", \"-c\", \"{{code}}\"] }} }}",
            stock.display()
        );
        for (key, value) in &mut config {
            if *key == "languages" {
                *value = value.trim_end_matches([' ', '}']).to_owned() + " }" + &stock;
            }
        }
    }
    let set: Vec<String> = config
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let served = Served::start(&set);
    let mut client = client(&served.1).await;
    loop {
        let listed = client.list_languages(ListLanguagesRequest {}).await;
        let languages = listed.unwrap().into_inner().languages;
        if languages.iter().all(|it| it.ready) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    (served, names)
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let (served, names) = start(options.stock.as_deref()).await;
    let programs: Vec<&Measured> = PROGRAMS
        .iter()
        .filter(|it| names.contains(&it.language))
        .filter(|it| options.only.as_ref().is_none_or(|only| only == it.language))
        .collect();
    let mut rows = Rows::default();
    for _ in 0..options.rounds {
        for &program in &programs {
            let (figures, wrote) = measure(&served, program).await;
            rows.note(program, "ringfence", figures);
            for peer in &options.peers {
                if let Some(figures) = peer.measure(program, &wrote) {
                    rows.note(program, &peer.name, figures);
                }
            }
        }
        for rate in &options.rates {
            let program = programs
                .iter()
                .copied()
                .find(|it| it.language == rate.language);
            let program = program.expect("--rate names a language that the daemon has");
            rate.measure(&served.1, program).await;
        }
    }
    rows.print_table();
}
