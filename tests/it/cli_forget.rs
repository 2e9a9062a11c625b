//! `ringfence logs`, `ringfence rm`, times of `ringfence ps`, and `--no-keep-output`.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::cli::kit;
use crate::cli_runs::{detached, lines, on_a_terminal, text, told, told_until};
use crate::process::Served;

#[track_caller]
pub(crate) fn is(output: &Output, code: i32, out: &str, err: &str) {
    let said = (text(&output.stdout), text(&output.stderr));
    assert_eq!((said, output.status.code()), ((out, err), Some(code)));
}

/// Runs the kit to its end, and returns the id of the run.
pub(crate) fn ended(addr: &str, args: &[&str]) -> String {
    let id = detached(addr, args);
    told(addr, &["attach", &id]);
    id
}

/// The ids of runs that `ps` lists, the newest first.
pub(crate) fn listed(addr: &str, args: &[&str]) -> Vec<String> {
    let output = told(addr, &[&["ps", "--output", "json"], args].concat());
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        ("", Some(0)),
        "{args:?}"
    );
    let runs = lines(&output);
    let ids = runs
        .iter()
        .map(|run| run["run_id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[test]
fn logs_print_what_there_is_and_do_not_follow() {
    let served = Served::start(&["--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    let kit = kit();
    let both = ended(addr, &[&kit, "both", "2"]);
    is(
        &told(addr, &["logs", &both]),
        0,
        "out 0\nout 1\n",
        "err 0\nerr 1\n",
    );
    let seven = ended(addr, &[&kit, "exit", "7"]);
    is(&told(addr, &["logs", &seven]), 7, "", "");
    is(&told(addr, &["logs", "--from", "1", &seven]), 7, "", "");

    let going = detached(addr, &["--timeout", "100s", &kit, "spin", "going"]);
    let next_seq = || -> Value {
        let output = told(addr, &["inspect", &going]);
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        run["next_seq"].clone()
    };
    // Its start, and its one line.
    while next_seq() != 2 {}
    let goes_on = format!("ringfence: the run {going} goes on; `ringfence attach` follows it\n");
    is(&told(addr, &["logs", &going]), 0, "going\n", &goes_on);
    is(
        &told(addr, &["logs", "--from", "2", &going]),
        0,
        "",
        &goes_on,
    );
    let output = told(addr, &["logs", "--from", "9", &going]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("from_seq"), "{output:?}");
    told(addr, &["kill", &going]);
    is(
        &told(addr, &["logs", &going]),
        137,
        "going\n",
        "ringfence: cancelled: by a call\n",
    );
    let unknown = format!("{}.here", "0".repeat(32));
    let output = told(addr, &["logs", &unknown]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("RUN_NOT_FOUND"), "{output:?}");
}

#[test]
fn output_that_is_not_kept_is_in_no_logs() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let kit = kit();
    for how in [
        &["--no-keep-output"][..],
        &["--no-keep-output", "--no-stream"],
    ] {
        let args = [&["run"], how, &["--label", "job=x", &kit, "hello"]].concat();
        is(&told(addr, &args), 0, "hello\n", "");
    }
    let code = "(module (func (export \"_start\")))";
    let args = [
        "exec",
        "--no-keep-output",
        "--label",
        "job=x",
        "wat",
        "-c",
        code,
    ];
    is(&told(addr, &args), 0, "", "");
    let ids = listed(addr, &["--all", "--label", "job=x"]);
    assert_eq!(ids.len(), 3);
    for id in &ids[1..] {
        let output = told(addr, &["logs", id]);
        assert_eq!((text(&output.stdout), output.status.code()), ("", Some(0)));
        let said = text(&output.stderr);
        assert!(said.contains("no longer keeps 1 events"), "{said}");
    }
}

#[test]
fn runs_are_deleted_by_id() {
    let served = Served::start(&["--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    let kit = kit();
    let [first, second] = ["1", "2"].map(|code| ended(addr, &[&kit, "exit", code]));
    let going = detached(addr, &["--timeout", "100s", &kit, "spin"]);
    let unknown = format!("{}.here", "0".repeat(32));

    is(
        &told(addr, &["rm", "--dry-run", &first]),
        0,
        &format!("{first}\n"),
        "",
    );
    assert_eq!(listed(addr, &["--all"]).len(), 3);
    let output = told(addr, &["rm", &first, &unknown]);
    let absent = format!("ringfence: the run {unknown} was not deleted: it is not there\n");
    is(&output, 0, &format!("{first}\n"), &absent);
    let output = told(addr, &["rm", &going]);
    let why = "it has not ended; `ringfence kill` ends it";
    is(
        &output,
        126,
        "",
        &format!("ringfence: the run {going} was not deleted: {why}\n"),
    );
    let output = told(addr, &["rm", "--output", "json", &second, &going]);
    assert_eq!(output.status.code(), Some(126));
    let expected = json!({ "deleted": 1, "run_ids": [second], "unfinished": 1, "dry_run": false });
    assert_eq!(lines(&output), [expected]);
    assert_eq!(listed(addr, &["--all"]), [going.as_str()]);
    // One that is malformed is refused, with all others.
    let output = told(addr, &["rm", &going, "x"]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("run_ids[1]"), "{output:?}");
    for args in [
        &["rm"][..],
        &["rm", "--since", "1h", "--yes"],
        &["rm", "--label", "job=x", &going],
        &["rm", "--until", "1h", &going],
        &["rm", "--yes", &going],
        &["rm", "--label", "job=x"],
        &["rm", "--until", "soon", "--yes"],
    ] {
        let output = told(addr, args);
        assert_eq!(output.status.code(), Some(125), "{args:?} {output:?}");
    }
}

#[test]
fn runs_are_deleted_by_label_and_time() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let kit = kit();
    let run = |label: &str| ended(addr, &["--label", label, &kit, "hello"]);
    let [first, second, third] = ["job=x", "job=y", "job=x"].map(run);
    let going = detached(
        addr,
        &["--label", "job=x", "--timeout", "100s", &kit, "spin"],
    );

    let args = ["rm", "--label", "job=x", "--dry-run"];
    let unfinished = "ringfence: 1 run matches and has not ended, and is not deleted\n";
    let both = format!("{third}\n{first}\n");
    let would = format!("ringfence: 2 runs would be deleted\n{unfinished}");
    is(&told(addr, &args), 0, &both, &would);
    // Nothing is that old.
    let args = ["rm", "--label", "job=x", "--until", "1h", "--yes"];
    is(
        &told(addr, &args),
        0,
        "",
        "ringfence: no ended run matches\n",
    );
    let args = ["rm", "--label", "job=x", "--since", "1h", "--yes"];
    is(&told(addr, &args), 0, &both, unfinished);
    assert_eq!(listed(addr, &["--all"]), [going.as_str(), second.as_str()]);
    let args = ["rm", "--until", "0s", "--yes", "--output", "json"];
    let output = told(addr, &args);
    let expected = json!({ "deleted": 1, "run_ids": [second], "unfinished": 1, "dry_run": false });
    assert_eq!(
        (lines(&output), output.status.code()),
        (vec![expected], Some(0))
    );
    assert_eq!(listed(addr, &["--all"]), [going.as_str()]);
}

#[test]
fn on_a_terminal_it_asks_before_it_deletes() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let id = ended(addr, &["--label", "job=x", &kit(), "hello"]);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    for (answer, code, left) in [("n\n", 1, 1), ("\n", 1, 1), ("y\n", 0, 0)] {
        let mut child = on_a_terminal(&["rm", "--server", addr, "--label", "job=x"], &out)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut terminal = child.stdout.take().unwrap();
        let mut said = told_until(&mut terminal, "[y/N] ");
        assert!(said.contains(&id), "{said}");
        assert!(
            said.contains("Delete 1 run, with what was written?"),
            "{said}"
        );
        // Held until the command has ended: the end of its keys is none of this terminal's input.
        let mut keys = child.stdin.take().unwrap();
        keys.write_all(answer.as_bytes()).unwrap();
        keys.flush().unwrap();
        terminal.read_to_string(&mut said).unwrap();
        drop(keys);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(listed(addr, &["--all"]).len(), left, "{answer:?}");
    }
}

#[test]
fn runs_are_listed_by_time_up_to_a_limit() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let kit = kit();
    let mut ids: Vec<String> = (0..3).map(|_| ended(addr, &[&kit, "hello"])).collect();
    ids.reverse();
    let asked = |id: &str| -> String {
        let output = told(addr, &["inspect", id]);
        let run: Value = serde_json::from_slice(&output.stdout).unwrap();
        run["asked"].as_str().unwrap().to_owned()
    };
    let middle = asked(&ids[1]);
    assert_eq!(listed(addr, &[]), Vec::<String>::new(), "they have ended");
    assert_eq!(listed(addr, &["--since", "1h"]), ids);
    assert_eq!(listed(addr, &["--since", &middle]), ids[..2]);
    assert_eq!(listed(addr, &["--until", &middle]), ids[2..]);
    assert_eq!(listed(addr, &["--until", "1h"]), Vec::<String>::new());
    assert_eq!(
        listed(addr, &["--since", "1h", "--state", "running"]),
        Vec::<String>::new()
    );
    assert_eq!(listed(addr, &["--since", "1h", "--limit", "2"]), ids[..2]);
    assert_eq!(listed(addr, &["--all", "--limit", "1"]), ids[..1]);
    assert_eq!(listed(addr, &["--all", "--limit", "5000"]), ids);
    let output = told(addr, &["ps", "--since", "1h", "--until", "2h"]);
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("until"), "{output:?}");
    for args in [
        &["ps", "--since", "yesterday"][..],
        &["ps", "--limit", "0"],
        &["ps", "--watch", "--since", "1h"],
        &["ps", "--watch", "--limit", "1"],
    ] {
        let output = told(addr, args);
        assert_eq!(output.status.code(), Some(125), "{args:?} {output:?}");
    }
}
