//! Stock interpreters, by the files of `examples/languages`: three programs in each.

use std::path::Path;

use bytes::Bytes;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::{ExecuteRequest, ExecutionSpec};

use crate::build::Recipe;
use crate::fetch::Unreachable;
use crate::harness::{Daemon, channel};
use crate::packages::RUNNO;
use crate::{guests, quick};

/// A program in a language, and what comes of it.
struct Row {
    code: &'static str,
    stdin: &'static str,
    stdout: &'static str,
    exit_code: u32,
}

/// Executes the rows in the language of an example file, with a module that a recipe makes.
async fn executed(name: &str, recipe: Recipe, rows: &[Row]) {
    let module = match recipe.module(name) {
        Ok(module) => module,
        Err(Unreachable(why)) => {
            eprintln!("\n*** SKIPPED: {why}\n*** {name} was NOT tested.\n");
            return;
        }
    };
    let example = guests::root().join(format!("examples/languages/{name}.toml"));
    let text = std::fs::read_to_string(example).unwrap();
    let stands = format!("/usr/lib/ringfence/{name}.wasm");
    assert!(text.contains(&stands), "{text}");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("config.toml");
    std::fs::write(&config, text.replace(&stands, module.to_str().unwrap())).unwrap();
    let daemon = Daemon::configured(&config).await;
    let mut client = ExecutionServiceClient::new(channel(&daemon.addr).await);
    for row in rows {
        let spec = Some(ExecutionSpec {
            language: name.to_owned(),
            code: row.code.to_owned(),
            stdin: Bytes::from_static(row.stdin.as_bytes()),
            ..ExecutionSpec::default()
        });
        let answer = client.execute(ExecuteRequest { spec }).await.unwrap();
        let answer = answer.into_inner();
        let told = (answer.result.unwrap().exit_code, &*answer.stdout);
        let expected = (Some(row.exit_code), row.stdout.as_bytes());
        assert_eq!(told, expected, "{}: {:?}", row.code, answer.stderr);
    }
}

#[tokio::test]
async fn lua_executes_programs() {
    let rows = [
        Row {
            code: "print(('abba'):gsub('b+', '-'))",
            stdin: "",
            stdout: "a-a\t1\n",
            exit_code: 0,
        },
        Row {
            code: "for line in io.lines() do print(#line) end",
            stdin: "one\nfour\n",
            stdout: "3\n4\n",
            exit_code: 0,
        },
        Row {
            code: "print(pcall(error, 'no')) error('oh', 0)",
            stdin: "",
            stdout: "false\tno\n",
            exit_code: 1,
        },
    ];
    executed("lua", quick::lua(), &rows).await;
}

#[tokio::test]
async fn ruby_executes_programs() {
    let recipe = Recipe::Ready(RUNNO, "package/dist/langs/ruby-3.2.0.wasm");
    let rows = [
        Row {
            code: "puts (1..10).map { |n| n * n }.sum",
            stdin: "",
            stdout: "385\n",
            exit_code: 0,
        },
        Row {
            code: "puts STDIN.read.upcase",
            stdin: "text",
            stdout: "TEXT\n",
            exit_code: 0,
        },
        Row {
            code: "File.write('/out/a', 'x'); puts File.read('/out/a'); exit 7",
            stdin: "",
            stdout: "x\n",
            exit_code: 7,
        },
    ];
    executed("ruby", recipe, &rows).await;
}

#[tokio::test]
async fn php_executes_programs() {
    let recipe = Recipe::Ready(RUNNO, "package/dist/langs/php-cgi-8.2.0.wasm");
    let rows = [
        Row {
            code: "<?php echo array_sum(range(1, 10)), \"\\n\";",
            stdin: "",
            stdout: "55\n",
            exit_code: 0,
        },
        Row {
            code: "<?php echo json_encode(['a' => preg_replace('/b+/', '-', 'abba')]);",
            stdin: "",
            stdout: "{\"a\":\"a-a\"}",
            exit_code: 0,
        },
        Row {
            code: "<?php echo 'before'; exit(7);",
            stdin: "",
            stdout: "before",
            exit_code: 7,
        },
    ];
    executed("php", recipe, &rows).await;
}

/// Whether every example has its test here.
#[test]
fn every_example_is_executed() {
    let folder = guests::root().join("examples/languages");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "toml") {
            let name = Path::new(path.file_stem().unwrap()).display().to_string();
            let source = include_str!("stock.rs");
            assert!(source.contains(&format!("executed(\"{name}\"")), "{name}");
        }
    }
}
