//! `neighbour`: what one tenant does is nothing that another one notices.

use std::fmt::Write;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use ringfence::api::proto::{HealthRequest, LoadModuleRequest, RunRequest, RunSpec};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::{Request, Status};

use crate::ask::Scale;
use crate::daemon::{Besieged, alone, ending, side_by_side};
use crate::figures::{Report, Tally, Times};
use crate::harness::{Client, SpecExt, by_digest, load};
use crate::hostile::{BEFORE, hello, hostile_run, never_ending};

const SLOTS: usize = 32;
const QUEUE: usize = 64;
/// Five runs a second.
const PACE: Duration = Duration::from_millis(200);
/// Of hostile runs.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How soon a hostile caller that was refused comes again.
pub(crate) const AGAIN: Duration = Duration::from_millis(20);
const P99: Duration = Duration::from_millis(100);

/// A token of each tenant.
pub(crate) const TENANTS: [(&str, &str); 2] = [
    ("hostile", "siege-hostile-0123456789abcdef0123456789abcdef"),
    ("good", "siege-good-0123456789abcdef0123456789abcdef"),
];

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let settings = tempfile::tempdir().unwrap();
    let limits = [
        format!("admission.slots={SLOTS}"),
        format!("admission.queue={QUEUE}"),
    ];
    let daemon = two_tenants(settings.path(), "", &limits).await;
    let [hostile, good] = TENANTS.map(|(_, token)| token);
    let mut client = daemon.client().await;
    let mut kinds = Vec::new();
    for (_, wat) in never_ending(256) {
        let digest = taken(&mut client, hostile, &wat).await;
        kinds.push(hostile_run(&digest).timeout(TIMEOUT));
    }
    // Which may begin where they are received, before all that waits.
    let short = by_digest(&taken(&mut client, hostile, &hello()).await);
    let hello = by_digest(&taken(&mut client, good, &hello()).await);
    let window = scale.pick(Duration::from_secs(5), Duration::from_secs(60));
    for (what, kinds) in [
        ("a neighbour's hello", kinds),
        ("a neighbour's hello beside short runs", vec![short]),
    ] {
        let (mut times, endings) = beside(&daemon, kinds, hello.clone(), window).await;
        times.told(what, report);
        times.p99(what, P99, report);
        report.told(&format!("{what}, endings"), &endings);
        report.some(&format!("{what}, runs"), endings.total());
        report.equal(
            &format!("{what}, did not succeed"),
            endings.beside(&["hello"]),
            0,
        );
    }
    daemon.end(report).await;
}

/// The neighbour's runs while the other tenant's callers ask for `kinds`, as many as it may have and more.
async fn beside(
    daemon: &Besieged,
    kinds: Vec<RunSpec>,
    hello: RunSpec,
    window: Duration,
) -> (Times, Tally) {
    let [_, (_, good)] = TENANTS;
    let mut flood = JoinSet::new();
    let addr = daemon.addr().to_owned();
    flood.spawn(async move {
        let call = |i: usize, client: Client| attack(client, kinds[i % kinds.len()].clone());
        side_by_side(&addr, SLOTS + QUEUE, call).await;
    });
    let mut looks = daemon.client().await;
    loop {
        let question = as_tenant(HealthRequest {}, good);
        let health = looks.health(question).await.unwrap().into_inner();
        // What one tenant may hold is the daemon's to say: some slots, and more callers than those.
        if health.runs_in_flight > 1 {
            break;
        }
    }
    let addr = daemon.addr().to_owned();
    alone(move || neighbour(addr, hello, window)).await
}

/// A daemon that knows two tenants by their tokens, with `tables` in its config file and `set` over that.
pub(crate) async fn two_tenants(dir: &Path, tables: &str, set: &[String]) -> Besieged {
    let mut lines = String::new();
    for (name, token) in TENANTS {
        let hash = Sha256::digest(token.as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(lines, "{name} sha256:{hex}").unwrap();
    }
    let tokens = dir.join("tokens");
    std::fs::write(&tokens, lines).unwrap();
    std::fs::set_permissions(&tokens, Permissions::from_mode(0o600)).unwrap();
    let config = dir.join("ringfence.toml");
    let tenants: String = TENANTS
        .iter()
        .map(|(name, _)| format!("[[tenants]]\nname = {name:?}\n"))
        .collect();
    std::fs::write(
        &config,
        format!("[auth]\ntokens_file = {tokens:?}\n{tenants}{tables}"),
    )
    .unwrap();
    let mut args = vec!["--config", config.to_str().unwrap()];
    args.extend(set.iter().flat_map(|set| ["--set", set]));
    Besieged::with(&args).await
}

/// `message` with a tenant's token.
pub(crate) fn as_tenant<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// Loads a module of the tenant's own.
pub(crate) async fn taken(client: &mut Client, token: &str, wat: &str) -> String {
    let request: LoadModuleRequest = load(wat.to_owned());
    let answer = client.load_module(as_tenant(request, token)).await;
    let answer = answer.expect("the module is taken").into_inner();
    answer.module.expect("the module is described").digest
}

/// Has a guest of the hostile tenant run over and over.
pub(crate) async fn attack(mut client: Client, spec: RunSpec) {
    let [(_, token), _] = TENANTS;
    loop {
        let request = RunRequest {
            spec: Some(spec.clone()),
        };
        if client.run(as_tenant(request, token)).await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Runs `hello` at a steady pace, whether or not the last one has ended, each time from when it was due; the second value
/// is how each run ended.
async fn neighbour(addr: String, hello: RunSpec, window: Duration) -> (Times, Tally) {
    let client = crate::harness::connect(&addr).await;
    let mut calls = JoinSet::new();
    let mut pace = tokio::time::interval(PACE);
    let start = Instant::now();
    while start.elapsed() < window {
        let due = pace.tick().await;
        calls.spawn(greet(client.clone(), hello.clone(), due));
    }
    let (mut times, mut endings) = (Times::default(), Tally::default());
    for (took, ending) in calls.join_all().await {
        times.push(took);
        endings.add(ending);
    }
    (times, endings)
}

/// One run of `hello`: how long after it was due it ended, and how.
async fn greet(mut client: Client, hello: RunSpec, due: Instant) -> (Duration, String) {
    let [_, (_, token)] = TENANTS;
    let request = RunRequest { spec: Some(hello) };
    let answer = client.run(as_tenant(request, token)).await;
    let took = due.elapsed();
    let answer: Result<_, Status> = answer.map(tonic::Response::into_inner);
    let said = answer.as_ref().is_ok_and(|ran| ran.stdout == BEFORE);
    match ending(&answer) {
        ended if ended == "EXITED" && said => (took, "hello".to_owned()),
        ended => (took, ended),
    }
}
