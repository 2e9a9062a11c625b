//! The house rules that no lint keeps: layers, sizes, documented keys and reasons.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod house;
mod lists;
mod verbs;

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file, relative to `src`, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, out);
            } else {
                out.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut paths = Vec::new();
    walk(&src, &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&src).unwrap().to_owned(), text)
        })
        .collect()
}

/// Code lines: comments may mention anything.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line))
}

fn is_in(path: &Path, rooms: &[&str]) -> bool {
    rooms.iter().any(|room| path.starts_with(room))
}

#[test]
fn each_library_stays_in_its_room() {
    let homes: [(&str, &[&str]); 20] = [
        ("wasmtime::", &["sandbox"]),
        ("wasmtime_wasi::", &["sandbox"]),
        ("wasmparser::", &["sandbox"]),
        ("tonic::", &["api", "admin", "cli", "app", "otlp"]),
        ("opentelemetry", &["otlp"]),
        ("axum::", &["admin"]),
        ("prometheus_client::", &["metrics"]),
        ("prost", &["api", "cli", "archive"]),
        (
            "std::env::",
            &["main.rs", "config", "cli", "trust_store.rs"],
        ),
        ("toml::", &["config", "cli", "fuzz.rs"]),
        ("object_store::", &["store", "archive"]),
        ("oci_client::", &["store"]),
        ("landlock::", &["sandbox", "hardening"]),
        ("seccompiler::", &["sandbox", "hardening"]),
        ("rustls", &["api"]),
        ("jsonwebtoken::", &["auth"]),
        ("reqwest::", &["auth"]),
        ("indicatif::", &["cli"]),
        ("rmcp::", &["cli"]),
        ("signal_hook::", &["signals.rs"]),
    ];
    for (path, text) in sources() {
        for (library, rooms) in homes {
            for (line, content) in code(&text) {
                assert!(
                    !content.contains(library) || is_in(&path, rooms),
                    "src/{}:{line}: {library} belongs to {rooms:?}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn files_stay_readable() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 600, "src/{} has {lines} lines", path.display());
    }
}

#[test]
fn every_key_of_the_configuration_is_explained_where_it_stands() {
    let text = std::fs::read_to_string(root().join("config/ringfence.toml")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    for (i, line) in lines.iter().enumerate() {
        if line.starts_with('#') || line.trim().is_empty() || line.starts_with('[') {
            continue;
        }
        // By a comment above it, with nothing but other keys of the same block between.
        let explained = lines[..i]
            .iter()
            .rev()
            .find(|l| l.starts_with('#') || l.starts_with('[') || l.trim().is_empty())
            .is_some_and(|l| l.starts_with('#'));
        assert!(explained, "config/ringfence.toml:{}: {line}", i + 1);
    }
}

#[test]
fn every_reason_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    for reason in ringfence::model::refusal::Reason::ALL {
        assert!(
            text.contains(&format!("`{}`", reason.as_str())),
            "{}",
            reason.as_str()
        );
    }
}

#[test]
fn every_reason_has_a_test() {
    let mut tests = String::new();
    for entry in std::fs::read_dir(root().join("tests/it")).unwrap() {
        tests.push_str(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    for reason in ringfence::model::refusal::Reason::ALL {
        let name = format!("\"{}\"", reason.as_str());
        assert!(tests.contains(&name), "no test expects {name}");
    }
}

#[test]
fn nothing_is_left_unfinished() {
    for (path, text) in sources() {
        for (line, content) in text.lines().enumerate() {
            for mark in ["TODO", "FIXME", "XXX", "HACK"] {
                assert!(
                    !content.contains(mark),
                    "src/{}:{}: {mark}",
                    path.display(),
                    line + 1
                );
            }
        }
    }
}

/// `docs/limits.md` is the table that the code uses; `WRITE_DOCS=1` in the environment writes it.
#[test]
fn the_document_of_limits_is_the_table_of_limits() {
    let text = std::fs::read_to_string(root().join("config/ringfence.toml")).unwrap();
    let defaults: toml::Table = text.parse().unwrap();
    let default = |key: &str| {
        let (table, name) = key.split_once('.').unwrap();
        let value = defaults.get(table).and_then(|table| table.get(name));
        match value.unwrap_or_else(|| panic!("{key} is no setting")) {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(values) if values.is_empty() => "none".to_owned(),
            toml::Value::Array(values) => values.len().to_string(),
            value @ (toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Table(_)) => value.to_string(),
        }
    };
    let document = ringfence::model::guest_limits::document(default);
    let path = root().join("docs/limits.md");
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document,
        "docs/limits.md is not what src/model/guest_limits.rs says: run `WRITE_DOCS=1 cargo test --release --test tidy`"
    );
}

/// The names of all tests in a file, also of those that `cases!` makes, and of what it makes them of.
fn tests_of(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let (mut is_test, mut in_cases) = (false, false);
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line
            .strip_prefix("cases!(")
            .or_else(|| line.strip_prefix("cases! { "))
        {
            names.push(rest.split(':').next().unwrap_or(rest));
            in_cases = true;
        } else if let Some(rest) = line
            .strip_prefix("async ")
            .unwrap_or(line)
            .strip_prefix("fn ")
        {
            names.extend(is_test.then(|| rest.split('(').next().unwrap_or(rest)));
            (is_test, in_cases) = (false, false);
        } else if in_cases && let Some((name, _)) = line.split_once('(') {
            names.push(name);
        }
    }
    names
}

/// Whether `pattern`, in which "*" stands for anything, is all of `name`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && matches(after, &rest[at..]))
        }),
    }
}

/// Whether a test that is named so in `docs/security.md` is there.
fn is_there(name: &str) -> bool {
    let tests = root().join("tests");
    if let Some(row) = name.strip_prefix("siege ") {
        let rows = std::fs::read_to_string(tests.join("siege/ask.rs")).unwrap_or_default();
        return rows.contains(&format!("    \"{row}\",\n"));
    }
    let Some((file, test)) = name.split_once("::") else {
        let path = tests.join(name);
        return match name.strip_suffix('/') {
            Some(_) => path.is_dir(),
            None => path.is_file(),
        };
    };
    let paths = [
        tests.join(format!("it/{file}.rs")),
        tests.join(format!("{file}.rs")),
        tests.join(format!("{file}/main.rs")),
    ];
    paths.iter().any(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        tests_of(&text).iter().any(|name| matches(test, name))
    })
}

#[test]
fn every_promise_names_code_and_a_test_that_there_are() {
    let text = std::fs::read_to_string(root().join("docs/security.md")).unwrap();
    let quoted = |cell: &str| -> Vec<String> {
        let parts = cell.split('`').skip(1).step_by(2);
        parts.map(str::to_owned).collect()
    };
    let promises = text.split("## Promises").nth(1).unwrap();
    let promises = promises
        .split("## What each proposal opens")
        .next()
        .unwrap();
    let mut rows = 0;
    for row in promises.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        assert_eq!(cells.len(), 3, "{row}");
        if cells[2].trim() == "test" {
            continue;
        }
        rows += 1;
        for code in quoted(cells[1]) {
            let path = root().join("src").join(code.trim_end_matches('/'));
            let there = path.is_dir() || path.with_extension("rs").is_file();
            assert!(there, "src/{code} is not there: {row}");
        }
        let tests = quoted(cells[2]);
        assert!(!tests.is_empty(), "no test is named: {row}");
        for test in tests {
            assert!(is_there(&test), "`{test}` is not there: {row}");
        }
    }
    assert!(rows > 30, "only {rows} promises were found");
    // What is not defended says what to do about it.
    let undefended = text.split("## What is not defended").nth(1).unwrap();
    let undefended = undefended.split("\n## ").next().unwrap();
    for bullet in undefended.lines().filter(|line| line.starts_with("- ")) {
        assert!(bullet.contains("*Do this:*"), "{bullet}");
    }
    // And other names of tests in the document are true too.
    for name in quoted(&text).iter().filter(|it| it.contains("::")) {
        let named = name.replace("file::test", "tidy::nothing_is_left_unfinished");
        assert!(is_there(&named), "`{name}` is not there");
    }
}
