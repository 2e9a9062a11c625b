//! What operators watch the daemon with: Prometheus, its rules and its dashboards, by the programs that read them; and
//! that nothing of a caller's gets there.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use prost::Message;
use ringfence::api::proto::stats_service_client::StatsServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    DeleteModuleRequest, GetStatsRequest, RunRequest, Stats, WatchStatsRequest,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::admin::{ask, value};
use crate::collector::{Collector, Received, told as attributes_of};
use crate::guests;
use crate::harness::{Daemon, PATIENCE, SpecExt, by_digest, kit};
use crate::interop::{npm, output, succeeded};
use crate::process::{Served, interruptible};

const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");

fn deploy(file: &str) -> String {
    let path = guests::root().join("deploy").join(file);
    path.to_str().unwrap().to_owned()
}

/// Whether Prometheus is on this machine; says so loudly where it is not.
fn has_prometheus() -> bool {
    let there = Command::new("promtool").arg("--version").output().is_ok();
    if !there {
        eprintln!("\n*** SKIPPED: there is no Prometheus on this machine (Debian: prometheus)\n");
    }
    there
}

/// A daemon that has all metrics: it archives runs in a folder, and sends traces and output to a collector.
async fn daemon_with_all(collector: &Collector, folder: &TempDir) -> Daemon {
    let archive = format!("file://{}/archive", folder.path().display());
    let url = collector.url();
    let set = [
        ADMIN,
        ("runs.archive", archive.as_str()),
        ("telemetry.otlp_endpoint", &url),
        ("telemetry.export_output", "true"),
    ];
    Daemon::with(&set).await
}

async fn metrics(daemon: &Daemon) -> String {
    ask(&daemon.admin, "GET", "/metrics", &[]).await.body
}

#[tokio::test]
async fn promtool_finds_no_fault_with_metrics_and_rules() {
    if !has_prometheus() {
        return;
    }
    let folder = TempDir::new().unwrap();
    let collector = Collector::start().await;
    let daemon = daemon_with_all(&collector, &folder).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let path = folder.path().join("metrics");
    std::fs::write(&path, metrics(&daemon).await).unwrap();
    let mut check = Command::new("promtool");
    check.args(["check", "metrics"]);
    check.stdin(std::fs::File::open(path).unwrap());
    let checked = output(check).await;
    succeeded(&checked, "promtool check metrics");
    assert_eq!(String::from_utf8_lossy(&checked.stderr), "");
    let rules = deploy("prometheus/rules.yaml");
    let tests = deploy("prometheus/rules_test.yaml");
    for args in [["check", "rules", &rules], ["test", "rules", &tests]] {
        let mut tool = Command::new("promtool");
        tool.args(args);
        succeeded(&output(tool).await, "promtool");
    }
}

/// The names of series that the metrics of a daemon may have, whether or not there are any yet.
fn series(metrics: &str) -> BTreeSet<String> {
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let names = types.flat_map(|line| {
        let (name, kind) = line.split_once(' ').unwrap();
        match kind {
            "histogram" => ["_bucket", "_sum", "_count"]
                .map(|part| format!("{name}{part}"))
                .to_vec(),
            _ => vec![name.to_owned()],
        }
    });
    names.collect()
}

/// What the expressions of rules and dashboards select, by the parsers of those who read them; `None` where those cannot
/// be had.
async fn selections(files: &[&str]) -> Option<Vec<Value>> {
    let packages = [
        "@prometheus-io/lezer-promql@0.315.0",
        "@grafana/lezer-logql@0.4.2",
        "@grafana/lezer-traceql@1.0.0",
        "@lezer/common@1.5.5",
        "@lezer/highlight@1.2.5",
        "@lezer/lr@1.4.10",
        "yaml@2.9.1",
    ];
    let there = npm("queries", "@grafana/lezer-traceql", &packages).await?;
    let mut node = Command::new("node");
    node.env("NODE_PATH", there.parent().unwrap().parent().unwrap())
        .arg(guests::root().join("tests/interop/promql.js"))
        .args(files.iter().map(|file| deploy(file)));
    let told = succeeded(&output(node).await, "promql.js");
    let lines = told.lines().filter(|line| line.starts_with('{'));
    Some(
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect(),
    )
}

#[tokio::test]
async fn rules_and_panels_select_metrics_that_there_are() {
    let files = [
        "prometheus/rules.yaml",
        "grafana/ringfence.json",
        "grafana/runs.json",
    ];
    let Some(selections) = selections(&files).await else {
        return;
    };
    let page = std::fs::read_to_string(guests::root().join("docs/metrics.md")).unwrap();
    let folder = TempDir::new().unwrap();
    let collector = Collector::start().await;
    let daemon = daemon_with_all(&collector, &folder).await;
    let mut there = series(&metrics(&daemon).await);
    // Prometheus' own.
    there.insert("up".to_owned());
    // It is there with TLS only, which a test of the listener has.
    there.insert("ringfence_tls_certificate_not_after_timestamp_seconds".to_owned());
    let rules = std::fs::read_to_string(deploy("prometheus/rules.yaml")).unwrap();
    let recorded = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    there.extend(recorded.map(str::to_owned));
    let mut count = 0;
    for selected in &selections {
        let Some(metric) = selected["metric"].as_str() else {
            continue;
        };
        assert!(there.contains(metric), "{metric} is no metric");
        count += 1;
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|part| metric.strip_suffix(part))
            .unwrap_or(metric);
        let row = page
            .lines()
            .find(|line| line.starts_with(&format!("| `{family}` |")));
        for label in selected["labels"].as_array().unwrap() {
            let label = label.as_str().unwrap();
            let known = ["job", "instance"].contains(&label)
                || row.is_some_and(|row| row.contains(&format!("`{label}`")));
            assert!(known, "{metric} has no label {label}");
        }
    }
    assert!(count > 80, "{selections:?}");
}

/// Names that a dashboard has for fields of its tables.
fn fields(dashboard: &Value) -> Vec<&str> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let overrides = panels.filter_map(|panel| panel["fieldConfig"]["overrides"].as_array());
    overrides
        .flatten()
        .map(|it| it["matcher"]["options"].as_str().unwrap())
        .collect()
}

#[tokio::test]
async fn panels_of_output_and_traces_select_what_is_exported() {
    let Some(selections) = selections(&["grafana/runs.json"]).await else {
        return;
    };
    let folder = TempDir::new().unwrap();
    let collector = Collector::start().await;
    let daemon = daemon_with_all(&collector, &folder).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let mut refused = kit(&["hello"]);
    refused.entry_point = "nowhere".to_owned();
    let request = RunRequest {
        spec: Some(refused),
    };
    daemon.client.clone().run(request).await.unwrap_err();
    let has = |received: &Received, key: &str| {
        let mut spans = received.spans.iter();
        spans.any(|span| attributes_of(&span.attributes).contains_key(key))
    };
    collector
        .until(|it| has(it, "ringfence.reason") && has(it, "ringfence.outcome"))
        .await;
    collector.until(|it| !it.logs.is_empty()).await;
    let received = collector.received();
    let resource = received.resource.keys();
    let spans = received.spans.iter();
    let spans = spans.flat_map(|span| attributes_of(&span.attributes).into_keys());
    let spans: BTreeSet<String> = spans
        .map(|key| format!("span.{key}"))
        .chain(resource.clone().map(|key| format!("resource.{key}")))
        .collect();
    let logs = received.logs.iter();
    let logs = logs.flat_map(|record| attributes_of(&record.attributes).into_keys());
    // A test of `otlp` has the first, and the second is Loki's name for the trace of a record. Loki writes "_" for all
    // that labels of Prometheus cannot have.
    let more = ["ringfence.output.dropped_bytes", "trace_id"].map(str::to_owned);
    let logs: BTreeSet<String> = logs
        .chain(resource.cloned())
        .chain(more)
        .map(|key| key.replace('.', "_"))
        .collect();
    for (kind, sent) in [("spans", &spans), ("logs", &logs)] {
        let selected = selections.iter().filter_map(|it| it[kind].as_array());
        let selected: Vec<&str> = selected.flatten().filter_map(Value::as_str).collect();
        assert!(selected.len() > 5, "{selected:?}");
        for name in selected {
            assert!(sent.contains(name), "{name} is not among {sent:?}");
        }
    }
    let dashboard = std::fs::read_to_string(deploy("grafana/runs.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    for name in fields(&dashboard) {
        let is_sent = logs.contains(name) || spans.contains(&format!("span.{name}"));
        assert!(is_sent || !name.starts_with("ringfence"), "{name}");
    }
}

#[test]
fn links_of_dashboards_lead_to_dashboards_and_choose_by_their_variables() {
    let read = |file: &str| -> Value {
        let text = std::fs::read_to_string(deploy(&format!("grafana/{file}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let dashboards = [read("ringfence"), read("runs")];
    let mut links = 0;
    for dashboard in &dashboards {
        let text = dashboard.to_string();
        for link in text.split("\"/d/").skip(1) {
            links += 1;
            let link = link.split('"').next().unwrap();
            let (uid, chosen) = link.split_once('?').unwrap_or((link, ""));
            let target = dashboards.iter().find(|it| it["uid"] == uid);
            let target = target.unwrap_or_else(|| panic!("{link}"));
            let variables = target["templating"]["list"].as_array().unwrap();
            let is_variable = |name: &str| variables.iter().any(|it| it["name"] == name);
            for part in chosen.split('&').filter(|part| !part.is_empty()) {
                let name = match part.strip_prefix("var-") {
                    Some(choice) => choice.split('=').next().unwrap(),
                    None => part
                        .trim_matches(['$', '{', '}'])
                        .split(':')
                        .next()
                        .unwrap(),
                };
                assert!(is_variable(name) || name == "__url_time_range", "{link}");
            }
        }
    }
    assert!(links > 6, "{links}");
}

/// A port that is free, for a program that cannot choose one by itself.
pub(crate) fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// A process that ends with its test.
pub(crate) struct Ended(pub(crate) std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn prometheus_scrapes_a_loaded_daemon() {
    if !has_prometheus() {
        return;
    }
    let daemon = Daemon::with(&[ADMIN]).await;
    let folder = TempDir::new().unwrap();
    let config = folder.path().join("prometheus.yaml");
    let (admin, rules) = (&daemon.admin, deploy("prometheus/rules.yaml"));
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules}]\nscrape_configs: \
             [{{job_name: ringfence, static_configs: [{{targets: ['{admin}']}}]}}]\n"
        ),
    )
    .unwrap();
    let port = free_port();
    let at = format!("127.0.0.1:{port}");
    let server = interruptible("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            folder.path().join("data").display()
        ))
        .arg(format!("--web.listen-address={at}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _server = Ended(server);
    let http = reqwest::Client::new();
    let query = async |query: &str| -> Option<f64> {
        let asked = http
            .get(format!("http://{at}/api/v1/query"))
            .query(&[("query", query)]);
        let told = asked.send().await.ok()?.text().await.ok()?;
        let told: Value = serde_json::from_str(&told).ok()?;
        told["data"]["result"][0]["value"][1].as_str()?.parse().ok()
    };
    let begun = Instant::now();
    let mut runs = 0.0;
    // It runs guests all the while.
    while query("sum(ringfence_runs_total{job=\"ringfence\",outcome=\"exited\"})").await
        < Some(50.0)
    {
        assert!(begun.elapsed() < PATIENCE, "it is not scraped");
        for _ in 0..20 {
            daemon.ran(kit(&["hello"])).await.exited(0);
            runs += 1.0;
        }
    }
    assert!(query("sum(ringfence_runs_total)").await <= Some(runs));
    assert_eq!(query("up{job=\"ringfence\"}").await, Some(1.0));
    let rate = "sum(rate(ringfence_run_seconds_count[1m]))";
    while query(rate).await.is_none_or(|rate| rate <= 0.0) {
        assert!(begun.elapsed() < PATIENCE, "there is no rate");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let p99 = query("histogram_quantile(0.99, sum by (le) (ringfence_run_seconds_bucket))").await;
    assert!(p99.is_some_and(|p99| p99 > 0.0 && p99 < 60.0), "{p99:?}");
}

/// Waits until series have these values.
async fn until_measured(daemon: &Daemon, expected: &[(&str, f64)]) {
    let begun = Instant::now();
    loop {
        let metrics = metrics(daemon).await;
        let is_wrong = |&&(series, wanted): &&(&str, f64)| value(&metrics, series) != wanted;
        let Some((series, wanted)) = expected.iter().find(is_wrong) else {
            return;
        };
        let told = value(&metrics, series);
        assert!(begun.elapsed() < PATIENCE, "{series}: {told}, not {wanted}");
    }
}

#[tokio::test]
async fn what_is_kept_for_tenants_is_measured() {
    const KEYS: &str = "ringfence_idempotency_keys{tenant=\"default\"}";
    const MODULES: &str = "ringfence_store_modules{tenant=\"default\"}";
    const BYTES: &str = "ringfence_store_bytes{tenant=\"default\"}";
    const LOST: &str = "ringfence_event_log_lost_events_total";
    let set = [
        ADMIN,
        ("runs.idempotency_keys", "7"),
        ("runs.log_bytes", "128KiB"),
        ("store.budget", "64MiB"),
    ];
    let daemon = Daemon::with(&set).await;
    let nothing = [(KEYS, 0.0), (MODULES, 0.0), (BYTES, 0.0), (LOST, 0.0)];
    until_measured(&daemon, &nothing).await;
    let bounds = [
        ("ringfence_idempotency_keys_capacity", 7.0),
        ("ringfence_store_capacity_bytes", f64::from(64 << 20)),
    ];
    until_measured(&daemon, &bounds).await;

    for key in ["one", "two", "one"] {
        daemon.ran(kit(&["hello"]).key(key)).await.exited(0);
    }
    let wasm = guests::kit();
    let digest = daemon.loaded(wasm.clone()).await;
    until_measured(&daemon, &[(KEYS, 2.0), (MODULES, 1.0)]).await;
    let bytes = value(&metrics(&daemon).await, BYTES);
    let size = wasm.len() as f64;
    assert!(bytes > size && bytes < size + 16_384.0, "{bytes}");

    // A viewer that comes too late is told how much it missed.
    let flood = by_digest(&digest).args(&["kit", "flood", "1000000"]);
    let mut stream = daemon.stream(flood.detach()).await.unwrap();
    let run_id = stream.message().await.unwrap().unwrap().run_id;
    drop(stream);
    crate::harness::until_idle(&daemon).await;
    let mut viewer = daemon.attach(&run_id, 0).await;
    let mut lost = 0;
    while let Some(event) = viewer.message().await.unwrap() {
        if let Some(Event::Lost(told)) = event.event {
            lost += told.count;
        }
    }
    assert!(lost > 0);
    until_measured(&daemon, &[(LOST, lost as f64)]).await;

    let request = DeleteModuleRequest { digest };
    let mut modules = daemon.modules().await;
    modules.delete_module(request).await.unwrap();
    until_measured(&daemon, &[(MODULES, 0.0), (BYTES, 0.0)]).await;
}

/// All that StatsService says of a daemon where so many runs ended, and as many were refused: with the last hour, as a
/// call tells it and as a watch does.
async fn figures(addr: &str, runs: u64) -> String {
    let history = Some(prost_types::Duration {
        seconds: 3600,
        nanos: 0,
    });
    let mut client = StatsServiceClient::new(crate::harness::channel(addr).await);
    let request = WatchStatsRequest {
        interval: None,
        history,
    };
    let mut watch = client.watch_stats(request).await.unwrap().into_inner();
    let has_sample = |stats: &Stats| stats.history.iter().any(|it| !it.outcomes.is_empty());
    let watched = loop {
        let message = tokio::time::timeout(PATIENCE, watch.message()).await;
        let stats = message.expect("it hangs").unwrap().unwrap().stats.unwrap();
        if has_sample(&stats) {
            break stats;
        }
    };
    let answer = client.get_stats(GetStatsRequest { history }).await;
    let told = answer.unwrap().into_inner().stats.unwrap();
    assert!(has_sample(&told));
    let mut text = String::new();
    for stats in [told, watched] {
        let ended: u64 = stats.outcomes.iter().map(|it| it.runs).sum();
        let refused: u64 = stats.refusals.iter().map(|it| it.runs).sum();
        assert_eq!([ended, refused], [runs; 2]);
        text.push_str(&String::from_utf8_lossy(&stats.encode_to_vec()));
    }
    text
}

#[tokio::test]
async fn a_thousand_canaries_are_in_no_metric_no_page_and_no_line() {
    const CANARIES: usize = 1000;
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("admin");
    let listen = format!("admin.listen=[\"unix:{}\"]", socket.display());
    let level = ["--set", "telemetry.log_level=debug"];
    let mut served = Served::start(&["--set", &listen, level[0], level[1]]);
    let log = served.drain_log();
    let client = crate::harness::connect(&served.addr).await;
    let canary =
        |i: usize, kind: &str| format!("canary-{kind}-{i}-{:08x}", i * 2_654_435_761 % 0xffff_ffff);
    for i in 0..CANARIES / 5 {
        let mut spec = kit(&["echo", &canary(i, "arg")]).label("canary", &canary(i, "label"));
        spec.env.push(format!("CANARY={}", canary(i, "env")));
        spec.stdin = canary(i, "stdin-and-output").into();
        let request = RunRequest { spec: Some(spec) };
        let answer = client.clone().run(request).await.unwrap().into_inner();
        assert_eq!(answer.stdout, canary(i, "stdin-and-output"));
        // And what is refused, with a name that is not taken.
        let mut refused = kit(&["hello"]);
        refused.entry_point = canary(i, "entry");
        let request = RunRequest {
            spec: Some(refused),
        };
        client.clone().run(request).await.unwrap_err();
    }
    let at = format!("unix:{}", socket.display());
    let mut seen = String::new();
    for (path, accept) in [
        ("/metrics", "text/plain"),
        ("/metrics", "application/openmetrics-text"),
        ("/debug/config", "*/*"),
        ("/readyz", "*/*"),
        ("/livez", "*/*"),
    ] {
        let answer = ask(&at, "GET", path, &[("host", "x"), ("accept", accept)]).await;
        assert_eq!(answer.status, 200, "{path}");
        seen.push_str(&answer.body);
    }
    let ended = "ringfence_runs_total{tenant=\"default\",outcome=\"exited\"}";
    assert_eq!(value(&seen, ended), (CANARIES / 5) as f64);
    seen.push_str(&figures(&served.addr, CANARIES as u64 / 5).await);
    served.signal("-TERM");
    served.child.wait().unwrap();
    let log = log.join().unwrap();
    assert!(log.contains("run ended"), "{log}");
    for (what, text) in [("the log", &log), ("what is shown", &seen)] {
        let found = text.lines().find(|line| {
            ["arg", "label", "env", "stdin"]
                .iter()
                .any(|kind| line.contains(&format!("canary-{kind}")))
        });
        assert_eq!(found, None, "in {what}");
    }
    let found = seen.lines().find(|line| line.contains("canary"));
    assert_eq!(found, None);
}
