//! The audit has each decision and each end; nothing that a run was given or wrote is in any log.

use std::path::Path;
use std::time::{Duration, Instant};

use ringfence::api::proto::{Outcome, RunRequest, RunResponse, RunSpec, RunStreamRequest};
use serde_json::Value;
use tempfile::TempDir;
use tonic::Status;

use crate::guests::kit as kit_bytes;
use crate::harness::{Client, PATIENCE, SpecExt, by_digest, connect, load, read};
use crate::process::Served;

/// The lines of an audit, once there are as many.
pub(crate) async fn lines(path: &Path, count: usize) -> Vec<Value> {
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.lines().filter(|_| text.ends_with('\n'));
        let lines: Vec<Value> = whole
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|line: &Value| line["tenant"] != "(ringfence)")
            .collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(start.elapsed() < PATIENCE, "{} lines: {text}", lines.len());
        tokio::task::yield_now().await;
    }
}

async fn run(client: &mut Client, spec: RunSpec) -> Result<RunResponse, Status> {
    let answer = client.run(RunRequest { spec: Some(spec) }).await?;
    Ok(answer.into_inner())
}

#[tokio::test]
async fn each_decision_and_each_end_has_its_line() {
    let dir = TempDir::new().unwrap();
    let (path, data) = (dir.path().join("audit.log"), dir.path().join("data"));
    std::fs::create_dir(&data).unwrap();
    let file = format!("telemetry.audit_file={}", path.display());
    let mounts = format!("policy.mounts=[{{ host = {data:?}, access = \"write\" }}]");
    let daemon = Served::start(&["--set", &file, "--set", &mounts]);
    let mut client = connect(&daemon.addr).await;
    let loaded = client
        .load_module(load(kit_bytes()))
        .await
        .unwrap()
        .into_inner();
    let digest = loaded.module.unwrap().digest;
    let kit = |args: &[&str]| by_digest(&digest).args(&[&["kit"], args].concat());
    let exits = kit(&["exit", "7"])
        .mount(&data, "/data", true)
        .timeout(Duration::from_secs(9))
        .resources(|r| {
            r.memory_pages = Some(100);
            r.fuel_limit = Some(1 << 40);
        });
    let ran = run(&mut client, exits).await.unwrap().result.unwrap();
    let told = lines(&path, 2).await;
    let [admitted, ended] = &told[..] else {
        panic!("{told:?}");
    };
    for (key, value) in [
        ("event", "admission"),
        ("decision", "admitted"),
        ("run_id", &ran.run_id),
        ("tenant", "default"),
        ("method", "Run"),
        ("digest", &digest),
        ("host_functions", ""),
    ] {
        assert_eq!(admitted[key], value, "{key} of {admitted}");
    }
    assert_eq!(admitted["mounts"], format!("read:{}", data.display()));
    assert_eq!(admitted["memory_bytes"], 100 << 16);
    assert_eq!(admitted["fuel"], 1u64 << 40);
    assert_eq!(admitted["timeout_us"], 9_000_000);
    assert_eq!(
        (&admitted["network"], &admitted["wasi"]),
        (&false.into(), &true.into())
    );
    assert!(
        admitted["timestamp"].is_string()
            && admitted["caller"].as_str().unwrap().contains("127.0.0.1")
    );
    for (key, value) in [
        ("event", "end"),
        ("run_id", &ran.run_id),
        ("outcome", "exited"),
    ] {
        assert_eq!(ended[key], value, "{key} of {ended}");
    }
    assert_eq!(ended["exit_code"], 7);
    assert_eq!(ended["fuel"], ran.fuel_consumed.unwrap());
    // Refused: one line, which says why.
    let refused = kit(&["hello"]).timeout(Duration::from_secs(100_000));
    run(&mut client, refused).await.unwrap_err();
    let told = lines(&path, 3).await;
    assert_eq!(told[2]["decision"], "refused");
    assert_eq!(told[2]["reason"], "LIMIT_ABOVE_MAXIMUM");
    assert_eq!(told[2]["field"], "spec.timeout");
    // Cancelled by its caller.
    let spec = Some(kit(&["spin"]).timeout(Duration::from_secs(60)));
    let stream = client.run_stream(RunStreamRequest { spec }).await.unwrap();
    drop(stream);
    let told = lines(&path, 5).await;
    assert_eq!(
        (&told[4]["outcome"], &told[4]["cause"]),
        (&"cancelled".into(), &"caller_gone".into())
    );
    // Rotated: what comes next is in a file of the old name.
    std::fs::rename(&path, dir.path().join("audit.log.1")).unwrap();
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < PATIENCE, "it is never opened again");
        run(&mut client, kit(&["hello"])).await.unwrap();
    }
    // Nothing is lost on the way.
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
    let mut all = lines(&path, 0).await;
    all.extend(lines(&dir.path().join("audit.log.1"), 0).await);
    let count = |event: &str| {
        let of_it = all.iter().filter(|line| line["event"] == event);
        of_it.filter(|line| line["decision"] != "refused").count()
    };
    assert_eq!(count("admission"), count("end"));
}

/// Runs that are given a secret in every way that there is, and write it, and fail in many ways.
fn with_canary(digest: &str, canary: &str, i: usize) -> RunSpec {
    let kit = |args: &[&str]| {
        by_digest(digest)
            .args(&[&["kit"], args, &[canary]].concat())
            .env(&[&format!("SECRET={canary}")])
            .stdin(canary.to_owned())
            .timeout(Duration::from_secs(20))
    };
    match i % 10 {
        0 => kit(&["dump"]),
        1 => kit(&["echo"]),
        2 => kit(&["panic"]),
        3 => kit(&["exit", "9"]),
        4 => kit(&[canary]),
        5 => kit(&["dump"]).env(&[canary]),
        6 => kit(&["dump"]).env(&[&format!("{canary}=1"), &format!("{canary}=1")]),
        7 => kit(&["dump"]).resources(|r| r.output_limit = Some(10)),
        8 => kit(&["hello"]).entry("missing"),
        _ => kit(&["read", &format!("/{canary}")]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_run_is_given_and_what_it_writes_is_in_no_log() {
    const CANARY: &str = "canary-3f9a81c7";
    let dir = TempDir::new().unwrap();
    let audit = dir.path().join("audit.log");
    let tokens = dir.path().join("tokens");
    let hash = ringfence::model::request::Digest::of(CANARY.as_bytes());
    std::fs::write(&tokens, format!("default {hash}\n")).unwrap();
    let set = [
        "telemetry.log_level=debug,ringfence=trace,wasmtime_wasi=trace".to_owned(),
        format!("telemetry.audit_file={}", audit.display()),
        format!("auth.tokens_file={}", tokens.display()),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Served::with(&args, &[]);
    let log = daemon.drain_log();
    // The token is one too.
    let channel = crate::harness::channel(&daemon.addr).await;
    let tenant = crate::tenants::Tenant::of(channel, CANARY);
    let mut client = tenant.sandbox.clone();
    let loaded = client
        .load_module(load(kit_bytes()))
        .await
        .unwrap()
        .into_inner();
    let digest = loaded.module.unwrap().digest;
    let mut wrote = 0;
    for i in 0..1000 {
        let spec = Some(with_canary(&digest, CANARY, i));
        if i % 2 == 0 {
            let answer = client.run(RunRequest { spec }).await;
            let told = answer.map(|it| it.into_inner());
            wrote += usize::from(told.is_ok_and(|it| {
                assert_ne!(it.result.unwrap().outcome(), Outcome::Unspecified);
                [it.stdout, it.stderr]
                    .concat()
                    .windows(CANARY.len())
                    .any(|it| it == CANARY.as_bytes())
            }));
        } else if let Ok(stream) = client.run_stream(RunStreamRequest { spec }).await {
            let story = read(stream.into_inner()).await;
            let all = [story.stdout, story.stderr].concat();
            wrote += usize::from(all.windows(CANARY.len()).any(|it| it == CANARY.as_bytes()));
        }
    }
    // It was there to be told.
    assert!(wrote >= 200, "{wrote}");
    // A token that is refused is told to nobody either.
    let channel = crate::harness::channel(&daemon.addr).await;
    let stranger = crate::tenants::Tenant::of(channel, &format!("{CANARY}x"));
    let spec = Some(by_digest(&digest));
    stranger
        .sandbox
        .clone()
        .run(RunRequest { spec })
        .await
        .unwrap_err();
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
    let log = log.join().unwrap();
    let audit = std::fs::read_to_string(&audit).unwrap();
    assert!(log.lines().count() > 1000 && audit.lines().count() > 1500);
    for (name, text) in [("the log", log), ("the audit", audit)] {
        let found = text.lines().find(|line| line.contains(CANARY));
        assert_eq!(found, None, "{name}");
    }
}
