//! Many tenants that execute programs at once: what Health and short runs of another notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::{ExecuteRequest, ExecutionSpec, HealthRequest, RunRequest};
use ringfence::model::request::Digest;
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::harness::{self, Daemon, PATIENCE, channel};
use crate::{Interpreters, program};

/// How many tenants execute programs.
const TENANTS: usize = 16;
/// How long they do.
const TIME: Duration = Duration::from_secs(6);

type Link = InterceptedService<Channel, Bearer>;

/// Adds a credential to each call.
#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", self.0.clone());
        Ok(request)
    }
}

fn name(number: usize) -> String {
    format!("tenant{number}")
}

fn token(number: usize) -> String {
    format!("token-of-{}-which-nobody-guesses", name(number))
}

async fn link(addr: &str, number: usize) -> Link {
    let bearer = Bearer(format!("Bearer {}", token(number)).parse().unwrap());
    InterceptedService::new(channel(addr).await, bearer)
}

/// A daemon with the interpreters, and one tenant more than execute programs.
async fn daemon(folder: &std::path::Path) -> Daemon {
    let lines = (0..=TENANTS).map(|number| {
        let hash = Digest::of(token(number).as_bytes());
        format!("{} {hash}\n", name(number))
    });
    let tokens = folder.join("tokens");
    std::fs::write(&tokens, lines.collect::<String>()).unwrap();
    let tenants: Vec<String> = (0..=TENANTS)
        .map(|number| format!("{{ name = \"{}\" }}", name(number)))
        .collect();
    let mut config = Interpreters::get().config();
    config.push(("tenants", format!("[{}]", tenants.join(", "))));
    config.push(("auth.tokens_file", tokens.display().to_string()));
    config.push(("auth.open_health", "true".to_owned()));
    let config: Vec<_> = config.iter().map(|(k, v)| (*k, v.as_str())).collect();
    Daemon::with(&config).await
}

/// What one tenant executes, in turns.
fn programs(language: &str) -> [&'static str; 4] {
    match language {
        "python" => [
            "print('hello')",
            "while True: pass",
            "x = bytearray(20 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1",
            "import json, re\nprint(len(json.dumps(list(range(20000)))), re.sub('a+', 'b', 'caat'))",
        ],
        _ => [
            "console.log('hello')",
            "for (;;);",
            "new Uint8Array(20 << 20).fill(1)",
            "console.log(JSON.stringify(Array.from({length: 20000}, (_, i) => i)).length)",
        ],
    }
}

/// Executes programs until it is told to stop, and counts them.
async fn execute_on(
    link: Link,
    language: &'static str,
    (over, executed): (Arc<AtomicBool>, Arc<AtomicU64>),
) {
    let mut client = ExecutionServiceClient::new(link).max_decoding_message_size(usize::MAX);
    for code in programs(language).into_iter().cycle() {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let spec = Some(ExecutionSpec {
            timeout: Some(prost_types::Duration {
                seconds: 0,
                nanos: 400_000_000,
            }),
            ..program(language, code)
        });
        // Where all wait, some are refused, and come again.
        if client.execute(ExecuteRequest { spec }).await.is_ok() {
            executed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The largest, and that which all but one in a hundred stay below.
fn worst(mut times: Vec<Duration>) -> (usize, Duration, Duration) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    (times.len(), at(99), at(100))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_tenants_that_execute_leave_health_and_short_runs_alone() {
    let languages = Interpreters::get().names();
    if languages.is_empty() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let daemon = daemon(folder.path()).await;
    let (over, executed) = (Arc::new(AtomicBool::new(false)), Arc::default());
    let mut busy = JoinSet::new();
    for number in 0..TENANTS {
        let link = link(&daemon.addr, number).await;
        let told = (Arc::clone(&over), Arc::clone(&executed));
        busy.spawn(execute_on(link, languages[number % languages.len()], told));
    }
    let mut health = SandboxServiceClient::new(channel(&daemon.addr).await);
    let mut runs = SandboxServiceClient::new(link(&daemon.addr, TENANTS).await);
    let (mut asked, mut ran) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < TIME {
        let begun = Instant::now();
        let answer = tokio::time::timeout(PATIENCE, health.health(HealthRequest {})).await;
        answer.expect("in time").expect("it is healthy");
        asked.push(begun.elapsed());
        let begun = Instant::now();
        let spec = Some(harness::spec("(module (func (export \"_start\")))"));
        let ended = tokio::time::timeout(PATIENCE, runs.run(RunRequest { spec })).await;
        let ended = ended.expect("in time").expect("it is not refused");
        assert_eq!(ended.into_inner().result.unwrap().exit_code, Some(0));
        ran.push(begun.elapsed());
    }
    over.store(true, Ordering::Relaxed);
    while let Some(done) = busy.join_next().await {
        done.unwrap();
    }
    let executed: u64 = AtomicU64::load(&executed, Ordering::Relaxed);
    let ((count, health, longest), (_, run, longest_run)) = (worst(asked), worst(ran));
    eprintln!(
        "{executed} executions of {TENANTS} tenants; {count} of Health: p99 {health:?}, max {longest:?}; short runs: \
         p99 {run:?}, max {longest_run:?}"
    );
    // Half of the programs end by themselves at once, and the others take their 400 ms in turns.
    assert!(executed > 32 && count > 60, "{executed}, {count}");
}
