//! Lists that are written by hand and have to be complete: of outcomes, of limits, of methods.

use crate::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// Returns the lines between `from` and the next line that is a lone brace.
fn block(text: &str, from: &str) -> Vec<String> {
    let lines = text.lines().skip_while(|line| !line.starts_with(from));
    let lines = lines.skip(1).take_while(|line| *line != "}");
    lines.map(|line| line.trim().to_owned()).collect()
}

/// Requires that `name` stands in each of `files`.
fn stands_in(name: &str, files: &[&str]) {
    for file in files {
        assert!(read(file).contains(name), "{file} says nothing of {name}");
    }
}

#[test]
fn every_outcome_is_explained_and_tested() {
    let mut outcomes = 0;
    for line in block(&read("proto/ringfence/v1/result.proto"), "enum Outcome {") {
        let Some(rest) = line.strip_prefix("OUTCOME_") else {
            continue;
        };
        let name = rest.split(' ').next().unwrap();
        if name == "UNSPECIFIED" {
            continue;
        }
        outcomes += 1;
        let words = name.split('_').map(|word| {
            let (first, rest) = word.split_at(1);
            format!("{first}{}", rest.to_lowercase())
        });
        let camel = format!("Outcome::{}", words.collect::<String>());
        stands_in(&format!("`{name}`"), &["docs/errors.md"]);
        let tests = ["tests/it/outcomes.rs", "tests/it/endings.rs"];
        stands_in(&camel, &tests);
        stands_in(&camel, &["src/cli/ending.rs", "src/api/encode.rs"]);
        stands_in(
            &format!("\"{}\"", name.to_lowercase()),
            &["tests/it/log_lines.rs"],
        );
    }
    assert!(outcomes >= 8, "{outcomes}");
}

#[test]
fn every_limit_of_a_run_is_asked_for_told_and_tested() {
    let mut limits = 0;
    for line in block(
        &read("proto/ringfence/v1/spec.proto"),
        "message Resources {",
    ) {
        let field = line.split(" = ").next().unwrap();
        let Some((_, name)) = field.rsplit_once(' ').filter(|_| line.ends_with(';')) else {
            continue;
        };
        if line.starts_with("//") {
            continue;
        }
        limits += 1;
        stands_in(name, &["src/cli/limit_args.rs", "src/cli/ending.rs"]);
        stands_in(name, &["tests/it/limits.rs"]);
        if line.starts_with("optional ") {
            let spoken = ["config/ringfence.toml", "tests/it/spec.rs"];
            stands_in(name, &spoken);
        }
    }
    assert!(limits >= 5, "{limits}");
}

/// Lists the methods of the services, as (service, method).
fn methods() -> Vec<(String, String)> {
    let mut methods = Vec::new();
    for folder in ["proto/ringfence/v1", "proto/grpc/health/v1"] {
        for entry in std::fs::read_dir(root().join(folder)).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
            let package = text.lines().find_map(|line| line.strip_prefix("package "));
            let package = package.unwrap().trim_end_matches(';').to_owned();
            let name = |rest: &str| rest.split([' ', '(']).next().unwrap().to_owned();
            let mut service = String::new();
            for line in text.lines().map(str::trim) {
                if let Some(rest) = line.strip_prefix("service ") {
                    service = format!("{package}.{}", name(rest));
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    methods.push((service.clone(), name(rest)));
                }
            }
        }
    }
    assert!(methods.len() >= 17, "{methods:?}");
    methods
}

#[test]
fn every_method_of_the_services_has_a_row() {
    for (service, method) in methods() {
        let service = service.rsplit('.').next().unwrap();
        let service = service.trim_end_matches("Service");
        stands_in(&format!("Self::{service}{method}"), &["src/api/methods.rs"]);
    }
}

#[test]
fn every_method_is_among_those_that_the_suites_ask() {
    for (service, method) in methods() {
        let path = format!("/{service}/{method}");
        stands_in(&path, &["tests/it/manners.rs"]);
        if service.starts_with("ringfence.") {
            let name = service.rsplit('.').next().unwrap();
            let name = name.trim_end_matches("Service").to_lowercase();
            stands_in(
                &format!("proto::{name}_service_server"),
                &["src/api/health.rs"],
            );
        }
    }
}
