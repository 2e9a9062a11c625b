//! Real interpreters, built from `languages/` by tools of PyPI and npm: what they do with programs is the tables,
//! and what no table can say is here. Where a registry cannot be reached, a language is loudly left out.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    reason = "a test ends its tasks with its runtime, fails by panicking, says what it saw, and needs part of the harness"
)]

mod baked;
#[path = "../programs/build.rs"]
mod build;
mod case;
mod equal;
#[path = "../programs/fetch.rs"]
mod fetch;
#[path = "../it/guests.rs"]
mod guests;
#[path = "../it/harness.rs"]
mod harness;
mod interpreters;
#[path = "../programs/packages.rs"]
mod packages;
#[path = "../programs/program.rs"]
mod program;
#[path = "../programs/quick.rs"]
mod quick;
mod sessions;
mod stock;
mod table;
mod tenants;
mod versions;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use bytes::Bytes;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, ExecutionSpec, HealthRequest, Outcome,
    RunRequest, SendInputRequest,
};
use tokio::task::JoinSet;
use tonic::transport::Channel;

use harness::{Daemon, PATIENCE};
use interpreters::Interpreters;

/// A client of the daemon that has the interpreters.
struct Executor {
    client: ExecutionServiceClient<Channel>,
    languages: Vec<&'static str>,
}

/// The address of one daemon for all tests, whose interpreters are compiled.
fn address() -> &'static str {
    static ADDRESS: OnceLock<String> = OnceLock::new();
    ADDRESS.get_or_init(|| {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                let interpreters = Interpreters::get();
                let config = interpreters.config();
                let config: Vec<_> = config.iter().map(|(k, v)| (*k, v.as_str())).collect();
                let daemon = Daemon::with(&config).await;
                for language in interpreters.names() {
                    // The first call waits for the interpreter to be compiled.
                    Executor::at(&daemon.addr)
                        .await
                        .executed(language, "")
                        .await;
                }
                tell.send(daemon.addr.clone()).unwrap();
                std::future::pending::<()>().await;
            });
        });
        told.recv().expect("the daemon starts")
    })
}

impl Executor {
    /// Connects to the daemon.
    async fn start() -> Self {
        Self::at(address()).await
    }

    async fn at(address: &str) -> Self {
        let channel = harness::channel(address).await;
        Self {
            client: ExecutionServiceClient::new(channel).max_decoding_message_size(usize::MAX),
            languages: Interpreters::get().names(),
        }
    }

    async fn execute(&self, spec: ExecutionSpec) -> ExecuteResponse {
        let request = ExecuteRequest { spec: Some(spec) };
        let answer = self.client.clone().execute(request).await;
        answer.expect("it is not refused").into_inner()
    }

    /// Executes a program, and returns its standard output.
    async fn executed(&self, language: &str, code: &str) -> String {
        let answer = self.execute(program(language, code)).await;
        let result = answer.result.as_ref().unwrap();
        assert_eq!(result.exit_code, Some(0), "{code}: {answer:?}");
        String::from_utf8(answer.stdout.to_vec()).unwrap()
    }
}

fn program(language: &str, code: &str) -> ExecutionSpec {
    ExecutionSpec {
        language: language.to_owned(),
        code: format!("{code}\n"),
        timeout: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..ExecutionSpec::default()
    }
}

#[tokio::test]
async fn programs_do_what_the_table_says() {
    let executor = Executor::start().await;
    let mut wrong = Vec::new();
    for case in case::all() {
        for language in &executor.languages {
            let row = case.row(language);
            let answer = executor.execute(row.spec(language)).await;
            if let Err(why) = row.check(&answer) {
                wrong.push(format!("{language}, {}: {why}", case.name));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

#[tokio::test]
async fn programs_of_one_language_do_what_its_table_says() {
    let executor = Executor::start().await;
    let mut wrong = Vec::new();
    for language in &executor.languages {
        let mut asked = 0;
        for row in table::of(language).iter().filter(|it| it.can_be_asked()) {
            let answer = executor.execute(row.spec(language)).await;
            asked += 1;
            if let Err(why) = row.check(&answer) {
                wrong.push(format!("{language}, {}: {why}", row.name));
            }
        }
        assert!(asked > 30, "{language}: {asked}");
    }
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// What draws a random number in each way that a language has, as one line.
fn draws(language: &str) -> &'static str {
    match language {
        "python" => {
            "import random, os, secrets, uuid, tempfile\nprint(random.random(), random.getrandbits(64), random.Random().random(), random.SystemRandom().random(), os.urandom(8).hex(), secrets.token_hex(8), uuid.uuid4(), uuid.uuid1(), next(tempfile._get_candidate_names()))"
        }
        _ => {
            "console.log([Math.random(), Math.random(), ...crypto.getRandomValues(new Uint32Array(2)), crypto.randomUUID()].join(' '))"
        }
    }
}

#[tokio::test]
async fn no_two_calls_draw_the_same_random_numbers() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let mut seen = BTreeSet::new();
        for _ in 0..20 {
            let line = executor.executed(language, draws(language)).await;
            for number in line.split_whitespace() {
                assert!(seen.insert(number.to_owned()), "{language}: {number} twice");
            }
        }
    }
}

#[tokio::test]
async fn the_time_is_that_of_the_call() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let code = match *language {
            "python" => "import time\nprint(time.time_ns() // 1_000_000)",
            _ => "console.log(Date.now())",
        };
        let before = std::time::SystemTime::now();
        let told: u64 = executor
            .executed(language, code)
            .await
            .trim()
            .parse()
            .unwrap();
        let since = |at: std::time::SystemTime| {
            at.duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_millis() as u64
        };
        let (from, to) = (since(before), since(std::time::SystemTime::now()));
        assert!(
            (from..=to).contains(&told),
            "{language}: {from} {told} {to}"
        );
    }
}

/// Leaves marks in all that a program can change, and another one looks for them.
fn poisons(language: &str) -> [&'static str; 2] {
    match language {
        "python" => [
            "import builtins, sys, os, json, random\nmark = 'POISON' + 'ED' * 3\nbuiltins.left = mark\nsys.modules['left'] = mark\nos.environ['LEFT'] = mark\njson.left = mark\nsys.path.append(mark)\nheld = [mark + str(i) for i in range(20000)]\nbuiltins.print = lambda *a, **k: None\n",
            "import builtins, sys, os, json, gc\nassert not hasattr(builtins, 'left') and 'left' not in sys.modules and 'LEFT' not in os.environ\nassert not hasattr(json, 'left')\nneedle = 'POISON' + 'EDED' + 'ED'\nfound = [o for o in gc.get_objects() if isinstance(o, (list, dict, tuple)) and o is not globals() and needle in repr(type(o))]\nassert not found and not any(needle in p for p in sys.path)\nscan = bytearray(1 << 22)\nassert needle.encode() not in scan\nprint('clean')",
        ],
        _ => [
            "const mark = 'POISON' + 'ED'.repeat(3); globalThis.left = mark; Array.prototype.left = mark; JSON.stringify = () => mark; Object.prototype.left = mark; process.env.LEFT = mark; globalThis.held = Array.from({length: 20000}, (_, i) => mark + i)",
            "if (globalThis.left || [].left || ({}).left || process.env.LEFT || JSON.stringify(1) !== '1') throw new Error('left')\nconst scan = new Uint8Array(1 << 22); if (scan.some((byte) => byte !== 0)) throw new Error('dirty')\nconsole.log('clean')",
        ],
    }
}

#[tokio::test]
async fn no_program_sees_anything_of_another() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let [poison, look] = poisons(language);
        for _ in 0..5 {
            executor.executed(language, poison).await;
            assert_eq!(executor.executed(language, look).await, "clean\n");
        }
        // Beside each other as well.
        let mut both = JoinSet::new();
        for turn in 0..16 {
            let (mut client, code) = (executor.client.clone(), [poison, look][turn % 2]);
            let spec = Some(program(language, code));
            both.spawn(async move {
                let answer = client
                    .execute(ExecuteRequest { spec })
                    .await
                    .unwrap()
                    .into_inner();
                (turn, answer)
            });
        }
        for (turn, answer) in both.join_all().await {
            let told = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert_eq!(answer.result.unwrap().exit_code, Some(0), "{turn}: {told}");
        }
    }
}

#[tokio::test]
async fn what_is_typed_reaches_a_program_that_waits_for_it() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let code = match *language {
            "python" => "name = input('name? ')\nprint('hello', name)",
            _ => "const name = readline('name? ')\nconsole.log('hello', name)",
        };
        let spec = Some(ExecutionSpec {
            open_stdin: true,
            ..program(language, code)
        });
        let request = ExecuteStreamRequest { spec };
        let answer = executor
            .client
            .clone()
            .execute_stream(request)
            .await
            .unwrap();
        let mut events = answer.into_inner();
        let mut asked = String::new();
        let run_id = loop {
            let event = events.message().await.unwrap().expect("it goes on");
            if let Some(Event::Stdout(bytes)) = &event.event {
                asked.push_str(std::str::from_utf8(bytes).unwrap());
            }
            if asked == "name? " {
                break event.run_id;
            }
        };
        let request = SendInputRequest {
            run_id,
            offset: 0,
            data: Bytes::from_static("Zoë\n".as_bytes()),
            eof: false,
        };
        harness::runs(address())
            .await
            .send_input(request)
            .await
            .unwrap();
        let (mut output, mut ended) = (String::new(), None);
        while let Some(event) = events.message().await.unwrap() {
            match event.event {
                Some(Event::Stdout(bytes)) => output.push_str(std::str::from_utf8(&bytes).unwrap()),
                Some(Event::Exit(result)) => ended = Some(result),
                _ => {}
            }
        }
        assert_eq!(output, "hello Zoë\n", "{language}");
        assert_eq!(ended.unwrap().exit_code, Some(0));
    }
}

#[tokio::test]
async fn many_programs_at_once_leave_health_and_short_runs_alone() {
    let executor = Executor::start().await;
    for language in &executor.languages {
        let code = match *language {
            "python" => "while True: pass",
            _ => "for (;;);",
        };
        let mut spinning = JoinSet::new();
        for _ in 0..16 {
            let mut client = executor.client.clone();
            let spec = Some(ExecutionSpec {
                timeout: Some(prost_types::Duration {
                    seconds: 3,
                    nanos: 0,
                }),
                ..program(language, code)
            });
            spinning.spawn(async move {
                client
                    .execute(ExecuteRequest { spec })
                    .await
                    .unwrap()
                    .into_inner()
            });
        }
        let mut asked = 0;
        let mut sandbox = harness::connect(address()).await;
        while spinning.try_join_next().is_none() {
            let health = sandbox.health(HealthRequest {});
            let health = tokio::time::timeout(PATIENCE, health).await;
            health.expect("in time").unwrap();
            let spec = Some(harness::spec("(module (func (export \"_start\")))"));
            let ran = sandbox.run(RunRequest { spec }).await.unwrap();
            assert_eq!(ran.into_inner().result.unwrap().exit_code, Some(0));
            asked += 1;
        }
        assert!(asked > 10, "{asked}");
        for answer in spinning.join_all().await {
            assert_eq!(answer.result.unwrap().outcome(), Outcome::TimedOut);
        }
    }
}
