//! The API's files as other languages want them: what protoc makes of each, without a flag, and answers of any size.

use std::path::{Path, PathBuf};
use std::process::Command;

use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{Resources, RunRequest, RunSpec, RunStreamRequest};
use tonic::Code;

use crate::cli::kit;
use crate::guests;
use crate::harness::{Daemon, channel};
use crate::process::{Served, ringfence};

const OPTIONS: [&str; 7] = [
    "option csharp_namespace = \"Ringfence.V1\";",
    "option go_package = \"ringfence/v1;ringfencev1\";",
    "option java_multiple_files = true;",
    "option java_package = \"com.ringfence.v1\";",
    "option objc_class_prefix = \"RFN\";",
    "option php_namespace = \"Ringfence\\\\V1\";",
    "option ruby_package = \"Ringfence::V1\";",
];

/// The files, and their folder.
fn files() -> Vec<PathBuf> {
    let folder = guests::root().join("proto/ringfence/v1");
    let files = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = files.map(|it| it.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    files
}

#[test]
fn every_file_says_where_each_language_has_it() {
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let options: Vec<_> = text
            .lines()
            .filter(|it| it.starts_with("option "))
            .collect();
        assert_eq!(options, OPTIONS, "{}", file.display());
    }
}

/// What `protoc` makes of all files for a language, without a flag; none where this machine cannot.
fn generated(protoc: &[&str], language: &str) -> Option<tempfile::TempDir> {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(protoc[0]);
    let output = command
        .args(&protoc[1..])
        .arg("-Iproto")
        .arg(format!("--{language}_out={}", out.path().display()))
        .args(
            files()
                .iter()
                .map(|it| it.strip_prefix(guests::root()).unwrap()),
        )
        .current_dir(guests::root())
        .output();
    let Ok(output) = output else {
        eprintln!("\n*** SKIPPED: there is no {} on this machine\n", protoc[0]);
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("program not found") {
        eprintln!("\n*** SKIPPED: there is no protoc-gen-{language} on this machine\n");
        return None;
    }
    assert!(output.status.success(), "{language}: {said}");
    // A warning is a flag that somebody has to find.
    assert_eq!(said, "", "{language}");
    Some(out)
}

#[track_caller]
fn holds(out: &Path, file: &str, text: &str) {
    let path = out.join(file);
    let written = std::fs::read(&path);
    let written = written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Descriptors in PHP are no UTF-8.
    let written = String::from_utf8_lossy(&written);
    assert!(written.contains(text), "{file} has no {text:?}");
}

#[test]
fn protoc_makes_code_of_them_for_every_language_without_a_flag() {
    let cases: [(&str, &[(&str, &str)]); 8] = [
        (
            "go",
            &[
                (
                    "ringfence/v1/sandbox_service.pb.go",
                    "package ringfencev1\n",
                ),
                ("ringfence/v1/spec.pb.go", "type RunSpec struct"),
            ],
        ),
        (
            "java",
            &[
                ("com/ringfence/v1/RunSpec.java", "package com.ringfence.v1;"),
                ("com/ringfence/v1/StreamEvent.java", "class StreamEvent "),
            ],
        ),
        (
            "kotlin",
            &[("com/ringfence/v1/RunSpecKt.kt", "com.ringfence.v1.RunSpec")],
        ),
        (
            "csharp",
            &[
                ("SandboxService.cs", "namespace Ringfence.V1 {"),
                ("Spec.cs", "public sealed partial class RunSpec"),
            ],
        ),
        (
            "ruby",
            &[(
                "ringfence/v1/spec_pb.rb",
                "module Ringfence\n  module V1\n    RunSpec",
            )],
        ),
        (
            "php",
            &[
                ("Ringfence/V1/RunSpec.php", "namespace Ringfence\\V1;"),
                (
                    "GPBMetadata/Ringfence/V1/Spec.php",
                    "namespace GPBMetadata\\Ringfence\\V1;",
                ),
            ],
        ),
        (
            "objc",
            &[("ringfence/v1/Spec.pbobjc.h", "@interface RFNRunSpec")],
        ),
        (
            "cpp",
            &[(
                "ringfence/v1/spec.pb.h",
                "namespace ringfence {\nnamespace v1 {",
            )],
        ),
    ];
    for (language, expected) in cases {
        let Some(out) = generated(&["protoc"], language) else {
            continue;
        };
        for (file, text) in expected {
            holds(out.path(), file, text);
        }
    }
}

#[tokio::test]
async fn python_makes_code_of_all_files_without_a_flag() {
    let Some(python) = crate::interop::python().await else {
        return;
    };
    let python = python.to_str().unwrap().to_owned();
    for language in ["python", "grpc_python", "pyi"] {
        let made = generated(&[&python, "-m", "grpc_tools.protoc"], language).unwrap();
        let (file, text) = match language {
            "python" => ("ringfence/v1/spec_pb2.py", "RunSpec"),
            "pyi" => ("ringfence/v1/spec_pb2.pyi", "class RunSpec"),
            _ => (
                "ringfence/v1/sandbox_service_pb2_grpc.py",
                "class SandboxServiceStub",
            ),
        };
        holds(made.path(), file, text);
    }
}

/// Bytes of output that no client takes by default.
const BYTES: &str = "6000000";

fn flooding() -> RunSpec {
    RunSpec {
        resources: Some(Resources {
            output_limit: Some(12 << 20),
            ..Resources::default()
        }),
        ..crate::harness::kit(&["flood", BYTES])
    }
}

#[tokio::test]
async fn what_is_larger_than_a_client_takes_by_default_comes_in_a_stream() {
    let daemon = Daemon::start().await;
    let mut client = SandboxServiceClient::new(channel(&daemon.addr).await);
    // As docs/limits.md has it: the client refuses, once the run is over.
    let spec = Some(flooding());
    let refused = client.run(RunRequest { spec: spec.clone() }).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    let mut events = client
        .run_stream(RunStreamRequest { spec: spec.clone() })
        .await
        .unwrap()
        .into_inner();
    let (mut bytes, mut largest, mut exited) = (0, 0, false);
    while let Some(event) = events.message().await.unwrap() {
        largest = largest.max(prost::Message::encoded_len(&event));
        match event.event {
            Some(Event::Stdout(piece)) => bytes += piece.len(),
            Some(Event::Exit(_)) => exited = true,
            Some(Event::Error(error)) => panic!("{error:?}"),
            _ => {}
        }
    }
    assert!(exited && bytes.to_string() == BYTES, "{bytes}");
    assert!(largest < (64 << 10) + 256, "{largest}");
    // Twice the limit and 1 MiB is enough.
    let mut client = client.max_decoding_message_size(25 << 20);
    let answer = client.run(RunRequest { spec }).await.unwrap().into_inner();
    assert_eq!(answer.stdout.len(), bytes);
}

#[test]
fn the_command_line_shows_answers_of_any_size() {
    let kit = kit();
    let served = Served::start(&[]);
    let mut sizes = Vec::new();
    for server in [&[][..], &["--server", &served.addr]] {
        for how in [&["--no-stream"][..], &["--stream"], &["--output", "json"]] {
            let mut command = ringfence();
            command.arg("run").args(server).args(how);
            command.args(["--output-limit", "12MiB", &kit, "flood", BYTES]);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{server:?} {how:?}: {said}");
            let size = match how[0] {
                "--output" => {
                    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                    told["stdout"].as_str().unwrap().len()
                }
                _ => output.stdout.len(),
            };
            sizes.push(size);
        }
    }
    assert!(sizes.iter().all(|it| it.to_string() == BYTES), "{sizes:?}");
}
