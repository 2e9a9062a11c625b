//! The house rules that no lint keeps: layers, sizes, documented keys and reasons.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

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
    let homes: [(&str, &[&str]); 15] = [
        ("wasmtime::", &["sandbox"]),
        ("wasmtime_wasi::", &["sandbox"]),
        ("wasmparser::", &["sandbox"]),
        ("tonic::", &["api", "cli", "app"]),
        ("prost", &["api", "cli"]),
        ("std::env::", &["main.rs", "config", "cli"]),
        ("figment::", &["config"]),
        ("object_store::", &["store"]),
        ("oci_client::", &["store"]),
        ("landlock::", &["sandbox", "hardening"]),
        ("seccompiler::", &["sandbox", "hardening"]),
        ("rustls", &["api"]),
        ("jsonwebtoken::", &["auth"]),
        ("reqwest::", &["auth"]),
        ("indicatif::", &["cli"]),
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
fn dependencies_point_one_way() {
    // A room may use those after it, and everybody the shared ones.
    let order = ["cli", "app", "api", "auth", "run", "sandbox", "store"];
    let shared = [
        "guest_limits",
        "limits",
        "log",
        "module",
        "outcome",
        "policy",
        "refusal",
        "request",
    ];
    for (path, text) in sources() {
        let room = path
            .iter()
            .next()
            .unwrap()
            .to_str()
            .unwrap()
            .trim_end_matches(".rs")
            .to_owned();
        let level = order.iter().position(|name| *name == room);
        for (line, content) in code(&text) {
            let Some((_, used)) = content.split_once("crate::") else {
                continue;
            };
            let used = used
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next()
                .unwrap();
            let target = order.iter().position(|name| *name == used);
            let fine = match (level, target) {
                (Some(level), Some(target)) => level <= target,
                // Shared rooms use no others but their own kind; the configuration is read into the policy.
                (None, Some(_)) => !shared.contains(&room.as_str()),
                _ => true,
            };
            assert!(
                fine,
                "src/{}:{line}: {room} may not use {used}",
                path.display()
            );
        }
    }
}

#[test]
fn files_and_functions_stay_readable() {
    for (path, text) in sources() {
        let lines = text.lines().count();
        assert!(lines <= 550, "src/{} has {lines} lines", path.display());
        let mut start: Option<(usize, usize)> = None;
        for (line, content) in text.lines().enumerate() {
            let indent = content.len() - content.trim_start().len();
            let head = content.trim_start();
            let is_fn = [
                "fn ",
                "pub fn ",
                "pub(super) fn ",
                "async fn ",
                "pub async fn ",
                "pub(super) async fn ",
            ]
            .iter()
            .any(|prefix| head.starts_with(prefix));
            if is_fn {
                start = Some((line, indent));
            }
            if let Some((from, at)) = start
                && head == "}"
                && indent == at
            {
                let length = line - from;
                assert!(
                    length <= 80,
                    "src/{}:{}: {length} lines",
                    path.display(),
                    from + 1
                );
                start = None;
            }
        }
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
        // A comment right above it, or above the block of keys that it ends.
        let explained = lines[..i]
            .iter()
            .rev()
            .take_while(|l| !l.trim().is_empty())
            .any(|l| l.starts_with('#'))
            || lines[..i]
                .iter()
                .rev()
                .find(|l| l.starts_with('[') || l.starts_with('#'))
                .is_some();
        assert!(explained, "config/ringfence.toml:{}: {line}", i + 1);
    }
}

#[test]
fn every_reason_is_documented() {
    let text = std::fs::read_to_string(root().join("docs/errors.md")).unwrap();
    for reason in ringfence::refusal::Reason::ALL {
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
    for reason in ringfence::refusal::Reason::ALL {
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
    let document = ringfence::guest_limits::document(default);
    let path = root().join("docs/limits.md");
    if std::env::var_os("WRITE_DOCS").is_some() {
        std::fs::write(&path, &document).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document,
        "docs/limits.md is not what src/guest_limits.rs says: run `WRITE_DOCS=1 cargo test --release --test tidy`"
    );
}
