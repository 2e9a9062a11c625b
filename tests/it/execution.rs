//! Source code in, output out: the languages of a daemon, and what becomes of their programs. The
//! interpreters here are small guests of ours; `tests/languages` has the real ones.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, ExecutionSpec, File, InteractRequest,
    ListLanguagesRequest, Outcome, OutputPolicy, Resources, RunResponse, RunState,
    SendInputRequest, StdinEof,
};
use ringfence::app;
use ringfence::config::Overrides;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::guests;
use crate::harness::{Daemon, Ran, Refused, channel, program, read};

/// A runner that writes what it reads: the header and the program's own input.
pub(crate) const CAT: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func (export "_start")
        (loop $more
            (i32.store (i32.const 0) (i32.const 1024))
            (i32.store (i32.const 4) (i32.const 65536))
            (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
            (i32.store (i32.const 4) (i32.load (i32.const 8)))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))
            (br_if $more (i32.load (i32.const 8))))))"#;
/// A module that writes a value.
pub(crate) const VALUE: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "hello\n__OUT__:{\"a\": 1.50}\nbye\n")
    (func (export "_start")
        (i32.store (i32.const 0) (i32.const 16))
        (i32.store (i32.const 4) (i32.const 30))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

/// A daemon with languages whose interpreters are guests of ours.
struct Executor {
    daemon: Daemon,
    client: ExecutionServiceClient<Channel>,
    _folder: tempfile::TempDir,
}

/// Writes a module to a folder, and returns its path.
fn module(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

impl Executor {
    /// With the languages "cat" (a runner), "dump" (its program is an argument) and "echo" (its
    /// program is its input).
    async fn start(set: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cat = module(folder.path(), "cat.wat", CAT);
        let kit = module(folder.path(), "kit.wasm", guests::kit());
        let (cat, kit) = (cat.display(), kit.display());
        let languages = format!(
            r#"{{
                cat = {{ module = "{cat}", file = "main.cat", version = "1.2.3", aliases = ["kitten"], env = ["A=1", "B=2"] }},
                dump = {{ module = "{kit}", protocol = "argument", args = ["kit", "dump", "{{code}}", "{{args}}", "end"], env = ["A=1", "B=2"], limits = {{ memory_pages = 300, stack_size = "1MiB", timeout = "20s", output_limit = "2KiB" }} }},
                echo = {{ module = "{kit}", protocol = "stdin", args = ["kit", "echo"] }},
            }}"#
        );
        let languages = languages.replace('\n', " ");
        let all = [&[("languages", languages.as_str())], set].concat();
        let daemon = Daemon::with(&all).await;
        let client = ExecutionServiceClient::new(channel(&daemon.addr).await);
        Self {
            daemon,
            client,
            _folder: folder,
        }
    }

    async fn execute(&self, spec: ExecutionSpec) -> Result<ExecuteResponse, Status> {
        let request = ExecuteRequest { spec: Some(spec) };
        Ok(self.client.clone().execute(request).await?.into_inner())
    }

    /// Executes `spec`, which is not refused. The second value is the one that it reported.
    async fn executed(&self, spec: ExecutionSpec) -> (Ran, String) {
        let answer = self.execute(spec).await.expect("it is not refused");
        let ran = Ran::new(RunResponse {
            result: answer.result,
            stdout: answer.stdout,
            stderr: answer.stderr,
            files: answer.files,
        });
        (ran, answer.value)
    }

    async fn refused(&self, spec: ExecutionSpec) -> Refused {
        let refused = self.execute(spec).await.expect_err("it is refused");
        Refused::new(&refused)
    }
}

fn program_of(language: &str, code: &str) -> ExecutionSpec {
    ExecutionSpec {
        language: language.to_owned(),
        code: code.to_owned(),
        ..ExecutionSpec::default()
    }
}

/// Splits what the runner read into its header and the rest.
fn header(read: &[u8]) -> (serde_json::Value, &[u8]) {
    let (length, rest) = read.split_first_chunk().unwrap();
    let (header, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), rest)
}

#[tokio::test]
async fn a_runner_reads_the_header_and_then_the_programs_own_input() {
    let executor = Executor::start(&[]).await;
    let spec = ExecutionSpec {
        args: vec!["a b".to_owned(), "ü".to_owned()],
        env: vec!["K=v=w".to_owned(), "B=own".to_owned()],
        stdin: Bytes::from_static(b"\0own"),
        ..program_of("cat", "the \"code\"\n")
    };
    let (ran, value) = executor.executed(spec).await;
    let ran = ran.exited(0);
    let (header, own) = header(&ran.stdout);
    assert_eq!(
        header,
        serde_json::json!({
            "protocol": 1,
            "program": "the \"code\"\n",
            "file": "main.cat",
            "args": ["a b", "ü"],
            "env": {"A": "1", "B": "own", "K": "v=w"},
            "options": {"unbuffered": true, "deterministic": false},
        })
    );
    assert_eq!((own, value.as_str()), (&b"\0own"[..], ""));
    assert_eq!(
        ran.result.stdin_bytes, 4,
        "what the runner read for itself does not count"
    );
    let run = executor.daemon.get(&ran.result.run_id).await;
    assert_eq!(
        (run.method.as_str(), run.state()),
        ("Execute", RunState::Ended)
    );
}

#[tokio::test]
async fn an_interpreter_that_is_no_runner_gets_its_program_as_it_takes_it() {
    let executor = Executor::start(&[]).await;
    let spec = ExecutionSpec {
        args: vec!["x".to_owned()],
        env: vec!["B=own".to_owned(), "C=3".to_owned()],
        ..program_of("dump", "code here")
    };
    let (ran, _) = executor.executed(spec).await;
    let ran = ran.exited(0);
    let told = "arg kit\narg dump\narg code here\narg x\narg end\nenv A=1\nenv B=own\nenv C=3\nenv PWD=/\n";
    assert_eq!(ran.out(), told);
    let (ran, _) = executor.executed(program_of("echo", "all of it")).await;
    let ran = ran.exited(0);
    assert_eq!((ran.out(), ran.result.stdin_bytes), ("all of it", 0));
    let live = ExecutionSpec {
        open_stdin: true,
        ..program_of("echo", "code")
    };
    let refused = executor.refused(live).await;
    assert_eq!(refused.field.as_deref(), Some("spec.open_stdin"));
    let spec = ExecutionSpec {
        stdin: Bytes::from_static(b"x"),
        ..program_of("echo", "code")
    };
    let refused = executor.refused(spec).await;
    assert_eq!(
        (refused.reason.as_str(), refused.field.as_deref()),
        ("SPEC_INVALID", Some("spec.stdin"))
    );
}

#[tokio::test]
async fn a_program_that_is_a_module_runs_as_text_and_as_metadata() {
    let executor = Executor::start(&[]).await;
    let (ran, value) = executor.executed(program_of("wat", VALUE)).await;
    assert_eq!(
        (ran.exited(0).out(), value.as_str()),
        ("hello\n__OUT__:{\"a\": 1.50}\nbye\n", "{\"a\": 1.50}")
    );
    let binary = wat::parse_str(VALUE).unwrap();
    let base64 = base64_of(&binary);
    for (key, bytes) in [
        ("wasm_module", Bytes::from(binary.clone())),
        ("wasm_module", Bytes::from_static(VALUE.as_bytes())),
        ("wasm_module_b64", Bytes::from(base64.clone())),
    ] {
        let spec = ExecutionSpec {
            metadata: [(key.to_owned(), bytes)].into(),
            ..program_of("WASM", "")
        };
        let (ran, value) = executor.executed(spec).await;
        assert_eq!(
            (ran.exited(0).result.outcome(), value.as_str()),
            (Outcome::Exited, "{\"a\": 1.50}")
        );
    }
    let with = |metadata: &[(&str, &[u8])], code: &str, language: &str| {
        let metadata = metadata.iter();
        let metadata = metadata.map(|(key, value)| ((*key).to_owned(), value.to_vec().into()));
        ExecutionSpec {
            metadata: metadata.collect(),
            ..program_of(language, code)
        }
    };
    for (spec, field, reason) in [
        (
            with(&[("other", b"x")], "", "wasm"),
            "spec.metadata[\"other\"]",
            "SPEC_INVALID",
        ),
        (
            with(&[("wasm_module", &binary)], VALUE, "wasm"),
            "spec.metadata[\"wasm_module\"]",
            "SPEC_INVALID",
        ),
        (
            with(&[("wasm_module", &binary)], "", "wat"),
            "spec.metadata[\"wasm_module\"]",
            "SPEC_INVALID",
        ),
        (
            with(&[("wasm_module", &binary)], "x", "cat"),
            "spec.metadata[\"wasm_module\"]",
            "SPEC_INVALID",
        ),
        (
            with(&[("wasm_module_b64", b"?")], "", "wasm"),
            "spec.metadata[\"wasm_module_b64\"]",
            "SPEC_INVALID",
        ),
        (
            with(
                &[
                    ("wasm_module", &binary),
                    ("wasm_module_b64", base64.as_bytes()),
                ],
                "",
                "wasm",
            ),
            "spec.metadata[\"wasm_module_b64\"]",
            "SPEC_INVALID",
        ),
        (
            with(&[("wasm_module", b"")], "", "wasm"),
            "spec.metadata[\"wasm_module\"]",
            "SPEC_INVALID",
        ),
        (with(&[], "", "wasm"), "spec.code", "SPEC_INVALID"),
    ] {
        let refused = executor.refused(spec).await;
        assert_eq!(
            (refused.field.as_deref(), refused.reason.as_str()),
            (Some(field), reason),
            "{refused:?}"
        );
    }
    let refused = executor.refused(program_of("wat", "(module")).await;
    assert_eq!(refused.reason, "MODULE_INVALID");
}

#[tokio::test]
async fn output_that_is_cut_off_reports_no_value() {
    let executor = Executor::start(&[]).await;
    // The line of the value is "__OUT__:1234567", and the one after it reports another.
    let code = VALUE.replace(
        r#"hello\n__OUT__:{\"a\": 1.50}\nbye\n"#,
        r"__OUT__:1234567\n__OUT__:12345\n",
    );
    let bytes = 30;
    for (output_limit, policy, reported) in [
        (bytes, OutputPolicy::Truncate, "12345"),
        (10, OutputPolicy::Truncate, ""),
        (10, OutputPolicy::Stop, ""),
        // What is cut off right after a line may report another value.
        (16, OutputPolicy::Truncate, ""),
    ] {
        let resources = Resources {
            output_limit: Some(output_limit),
            output_policy: policy.into(),
            ..Resources::default()
        };
        let spec = ExecutionSpec {
            resources: Some(resources),
            ..program_of("wat", &code)
        };
        let (ran, value) = executor.executed(spec).await;
        assert_eq!(ran.stdout.len() as u64, output_limit);
        assert_eq!(ran.result.stdout_truncated, output_limit < bytes);
        assert_eq!(value, reported, "{output_limit} {policy:?}");
    }
}

/// Encodes bytes in base64.
fn base64_of(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[tokio::test]
async fn a_language_that_is_not_there_is_refused_with_those_that_are() {
    let executor = Executor::start(&[]).await;
    let refused = executor.refused(program_of("perl", "1")).await;
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::Unimplemented, "UNSUPPORTED_LANGUAGE")
    );
    assert_eq!(refused.metadata["allowed"], "cat, dump, echo, wasm, wat");
    assert_eq!(refused.field.as_deref(), Some("spec.language"));
    let refused = executor.refused(program_of("", "1")).await;
    assert_eq!(
        (refused.reason.as_str(), refused.field.as_deref()),
        ("SPEC_INVALID", Some("spec.language"))
    );
    let version = |version: &str| ExecutionSpec {
        version: version.to_owned(),
        ..program_of("Kitten", "x")
    };
    for right in ["", "1", "1.2", "1.2.3"] {
        executor.executed(version(right)).await.0.exited(0);
    }
    for wrong in ["2", "1.", "1.2.3.4", "1.20"] {
        let refused = executor.refused(version(wrong)).await;
        assert_eq!(
            (refused.reason.as_str(), refused.field.as_deref()),
            ("UNSUPPORTED_LANGUAGE", Some("spec.version"))
        );
    }
}

#[tokio::test]
async fn malformed_fields_are_refused_by_name_and_recorded() {
    let executor = Executor::start(&[
        ("policy.max_args", "8B"),
        ("policy.max_stdin", "4B"),
        ("policy.max_code", "1KiB"),
    ])
    .await;
    let spec = || program_of("cat", "x");
    let texts = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    let cases = [
        (
            ExecutionSpec {
                code: String::new(),
                ..spec()
            },
            "spec.code",
        ),
        (
            ExecutionSpec {
                code: "a\0b".to_owned(),
                ..spec()
            },
            "spec.code",
        ),
        (
            ExecutionSpec {
                args: texts(&["12345678"]),
                ..spec()
            },
            "spec.args",
        ),
        (
            ExecutionSpec {
                args: texts(&["a\0"]),
                ..spec()
            },
            "spec.args[0]",
        ),
        (
            ExecutionSpec {
                env: texts(&["x"]),
                ..spec()
            },
            "spec.env[0]",
        ),
        (
            ExecutionSpec {
                stdin: Bytes::from_static(b"12345"),
                ..spec()
            },
            "spec.stdin",
        ),
        (
            ExecutionSpec {
                profile: "soft".to_owned(),
                ..spec()
            },
            "spec.profile",
        ),
        (
            ExecutionSpec {
                idempotency_key: "\n".to_owned(),
                ..spec()
            },
            "spec.idempotency_key",
        ),
        (
            ExecutionSpec {
                labels: [("ringfence.x".to_owned(), String::new())].into(),
                ..spec()
            },
            "spec.labels",
        ),
        (
            ExecutionSpec {
                timeout: Some(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                }),
                ..spec()
            },
            "spec.timeout",
        ),
    ];
    for (spec, field) in cases {
        let refused = executor.refused(spec).await;
        assert_eq!(refused.field.as_deref(), Some(field), "{refused:?}");
    }
    let long = ExecutionSpec {
        code: "x".repeat(1025),
        ..spec()
    };
    let refused = executor.refused(long).await;
    assert_eq!(
        (refused.field.as_deref(), refused.metadata["limit"].as_str()),
        (Some("spec.code"), "policy.max_code")
    );
    // At the limit.
    let spec = ExecutionSpec {
        code: "x".repeat(1024),
        args: texts(&["1234567"]),
        stdin: Bytes::from_static(b"1234"),
        ..spec()
    };
    executor.executed(spec).await.0.exited(0);
    let none = executor
        .client
        .clone()
        .execute(ExecuteRequest { spec: None })
        .await;
    assert_eq!(
        Refused::new(&none.unwrap_err()).field.as_deref(),
        Some("spec")
    );
}

#[tokio::test]
async fn limits_come_from_the_request_the_profile_the_language_and_the_defaults() {
    let profiles =
        r#"{ standard = { clock = true }, small = { limits = { memory_pages = 200 } } }"#;
    let set = [("profiles", profiles), ("policy.max_stack_size", "1MiB")];
    let executor = Executor::start(&set).await;
    let granted = async |spec: ExecutionSpec| {
        let (ran, _) = executor.executed(spec).await;
        ran.result.granted.unwrap()
    };
    let by_language = granted(program_of("dump", "x")).await;
    assert_eq!(by_language.memory_pages, Some(300));
    assert_eq!(by_language.output_limit, Some(2048));
    assert_eq!(by_language.stack_size, Some(1 << 20));
    let by_profile = granted(ExecutionSpec {
        profile: "small".to_owned(),
        ..program_of("dump", "x")
    });
    assert_eq!(by_profile.await.memory_pages, Some(200));
    let mut asked = program_of("dump", "x");
    asked.profile = "small".to_owned();
    asked.resources.get_or_insert_default().memory_pages = Some(250);
    assert_eq!(granted(asked).await.memory_pages, Some(250));
    let mut above = program_of("dump", "x");
    above.resources.get_or_insert_default().stack_size = Some((1 << 20) + 1);
    let refused = executor.refused(above).await;
    assert_eq!(refused.reason, "LIMIT_ABOVE_MAXIMUM");
}

#[tokio::test]
async fn the_hardened_profile_has_no_clock_and_says_so_to_the_runner() {
    let executor = Executor::start(&[]).await;
    let spec = ExecutionSpec {
        profile: "hardened".to_owned(),
        ..program_of("cat", "x")
    };
    let (ran, _) = executor.executed(spec).await;
    assert_eq!(header(&ran.stdout).0["options"]["deterministic"], true);
    // In "dev", the network is there only where the policy grants any: it is not asked for here.
    let spec = ExecutionSpec {
        profile: "dev".to_owned(),
        ..program_of("cat", "x")
    };
    executor.executed(spec).await.0.exited(0);
}

#[tokio::test]
async fn a_stream_takes_input_by_another_call_and_is_a_run_as_any_other() {
    let executor = Executor::start(&[]).await;
    let spec = ExecutionSpec {
        stdin: Bytes::from_static(b"first "),
        open_stdin: true,
        labels: [("who".to_owned(), "me".to_owned())].into(),
        ..program_of("cat", "x")
    };
    let request = ExecuteStreamRequest { spec: Some(spec) };
    let events = executor
        .client
        .clone()
        .execute_stream(request)
        .await
        .unwrap();
    let listed = executor.daemon.labelled("who", "me").await;
    assert_eq!(listed[0].method, "ExecuteStream");
    let mut runs = executor.daemon.runs().await;
    let request = SendInputRequest {
        run_id: listed[0].run_id.clone(),
        offset: 0,
        data: Bytes::from_static(b"second"),
        eof: true,
    };
    runs.send_input(request).await.unwrap();
    let story = read(events.into_inner()).await;
    let (header, own) = header(&story.stdout);
    assert_eq!(header["options"]["unbuffered"], true);
    assert_eq!(own, b"first second");
    let result = story.exit.unwrap();
    assert_eq!((result.stdin_bytes, result.exit_code), (12, Some(0)));
}

#[tokio::test]
async fn an_interaction_can_execute_a_program() {
    let executor = Executor::start(&[]).await;
    let frames = [
        Frame::Execute(Box::new(program_of("cat", "x"))),
        Frame::Stdin(Bytes::from_static(b"live")),
        Frame::StdinEof(StdinEof {}),
    ];
    let messages = frames.map(|frame| InteractRequest { frame: Some(frame) });
    let mut runs = executor.daemon.runs().await;
    let events = runs.interact(tokio_stream::iter(messages)).await.unwrap();
    let story = read(events.into_inner()).await;
    let (header, own) = header(&story.stdout);
    assert_eq!((header["program"].as_str(), own), (Some("x"), &b"live"[..]));
    // A refusal names the field in the message that had it.
    let wrong = InteractRequest {
        frame: Some(Frame::Execute(Box::new(program_of("cat", "")))),
    };
    let refused = runs.interact(tokio_stream::iter([wrong])).await;
    let refused = Refused::new(&refused.unwrap_err());
    assert_eq!(refused.field.as_deref(), Some("execute.code"));
}

#[tokio::test]
async fn without_wasi_there_are_no_interpreters() {
    let executor = Executor::start(&[("policy.wasi", "false")]).await;
    let refused = executor.refused(program_of("cat", "x")).await;
    assert_eq!(
        (refused.reason.as_str(), refused.field.as_deref()),
        ("POLICY_DENIED", Some("spec.language"))
    );
    let plain = program_of("wat", "(module (func (export \"_start\")))");
    executor.executed(plain).await.0.exited(0);
}

#[tokio::test]
async fn the_same_key_executes_once() {
    let executor = Executor::start(&[]).await;
    let spec = |code: &str| ExecutionSpec {
        idempotency_key: "once".to_owned(),
        ..program_of("cat", code)
    };
    let (first, _) = executor.executed(spec("a")).await;
    let (second, _) = executor.executed(spec("a")).await;
    assert_eq!(first.result.run_id, second.result.run_id);
    assert_eq!(first.stdout, second.stdout);
    assert_eq!(
        executor.refused(spec("b")).await.reason,
        "IDEMPOTENCY_CONFLICT"
    );
}

#[tokio::test]
async fn languages_are_listed_and_become_ready() {
    let executor = Executor::start(&[("policy.languages", "[\"cat\", \"wat\"]")]).await;
    let mut client = executor.client.clone();
    let listed = loop {
        let listed = client.list_languages(ListLanguagesRequest {}).await;
        let listed = listed.unwrap().into_inner();
        if listed.languages.iter().all(|it| it.ready) {
            break listed;
        }
        tokio::task::yield_now().await;
    };
    let names: Vec<_> = listed.languages.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["cat", "wat"]);
    let cat = &listed.languages[0];
    assert_eq!(
        (cat.version.as_str(), cat.aliases.as_slice()),
        ("1.2.3", &["kitten".to_owned()][..])
    );
    assert!(cat.module_digest.starts_with("sha256:"));
    assert_eq!(listed.profiles, ["dev", "hardened", "standard"]);
    let refused = executor.refused(program_of("echo", "x")).await;
    assert_eq!(refused.metadata["allowed"], "cat, wat");
    // The interpreter is the operator's: nobody can run it by its digest who has not loaded it.
    let refused = executor
        .daemon
        .refused(crate::harness::by_digest(&cat.module_digest))
        .await;
    assert_eq!(refused.reason, "MODULE_NOT_FOUND");
}

#[tokio::test]
async fn a_language_that_cannot_be_is_refused_when_the_daemon_starts() {
    let folder = tempfile::tempdir().unwrap();
    let cat = module(folder.path(), "cat.wat", CAT);
    let cat = cat.display();
    let other = format!("sha256:{}", "0".repeat(64));
    let started = async |languages: String| {
        let mut overrides = Overrides::default();
        overrides
            .set
            .push(("listen".into(), "[\"127.0.0.1:0\"]".into()));
        overrides.set.push(("languages".into(), languages));
        match app::load_config(&overrides) {
            Err(problems) => problems.to_string(),
            Ok((config, _)) => match app::build(&config, program()).await {
                Err(error) => error.to_string(),
                Ok(_) => String::new(),
            },
        }
    };
    assert_eq!(
        started(format!("{{ x = {{ module = \"{cat}\" }} }}")).await,
        ""
    );
    for (language, told) in [
        (
            r#"module = "/nowhere/x.wasm""#.to_owned(),
            "/nowhere/x.wasm",
        ),
        (
            format!(r#"module = "{cat}", digest = "{other}""#),
            "has the digest sha256:",
        ),
        (
            format!(r#"module = "{cat}", digest = "md5:0""#),
            "languages.x.digest",
        ),
        (
            format!(r#"module = "{cat}", args = ["x"]"#),
            "languages.x.args",
        ),
        (
            format!(r#"module = "{cat}", protocol = "argument", args = ["x"]"#),
            "languages.x.args",
        ),
        (
            format!(r#"module = "{cat}", protocol = "stdin""#),
            "languages.x.args",
        ),
        (
            format!(r#"module = "{cat}", protocol = "telepathy""#),
            "languages.x.protocol",
        ),
        (
            format!(r#"module = "{cat}", env = ["x"]"#),
            "languages.x.env",
        ),
        (
            format!(r#"module = "{cat}", env = ["A=1", "B=2", "A=3"]"#),
            "each variable once",
        ),
        (
            format!(r#"module = "{cat}", env = ["A=\u0000"]"#),
            "languages.x.env",
        ),
        (
            format!(r#"module = "{cat}", protocol = "stdin", args = ["a\u0000"]"#),
            "languages.x.args[0]",
        ),
        (
            format!(r#"module = "{cat}", protocol = "stdin", args = ["{{file}}"]"#),
            "languages.x.args",
        ),
        (
            format!(r#"module = "{cat}", protocol = "argument", args = ["{{code}}", "{{file}}"]"#),
            "languages.x.args",
        ),
        (
            r#"module = "oci://registry.example/x:1""#.to_owned(),
            "oci.registries",
        ),
        (r#"module = "oci://registry""#.to_owned(), "oci://registry"),
        (
            format!(r#"module = "{cat}", file = "a/b""#),
            "languages.x.file",
        ),
        (
            format!(r#"module = "{cat}", aliases = ["X"]"#),
            "languages.x.aliases",
        ),
        (
            format!(r#"module = "{cat}", limits = {{ memory_pages = 5000 }}"#),
            "policy.max_memory_pages",
        ),
        (r#"module = """#.to_owned(), "languages.x.module"),
        (
            format!(r#"module = "{cat}", aliases = ["wat"]"#),
            "every daemon has this language",
        ),
        (
            format!(r#"module = "{cat}", file = "tmp""#),
            "languages.x.file",
        ),
        (r#"module = "/""#.to_owned(), "it is no regular file"),
        (
            r#"module = "/etc/hostname""#.to_owned(),
            "it is no WebAssembly module",
        ),
    ] {
        let error = started(format!("{{ x = {{ {language} }} }}")).await;
        assert!(error.contains(told), "{language}: {error}");
    }
    let twice = format!(
        "{{ x = {{ module = \"{cat}\" }}, y = {{ module = \"{cat}\", aliases = [\"x\"] }} }}"
    );
    assert!(started(twice).await.contains("the name \"x\""));
}

#[tokio::test]
async fn two_programs_do_not_see_each_other() {
    // The interpreter counts in its memory; each program starts it anew.
    const COUNTER: &str = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 7)))
            (call $exit (i32.load (i32.const 64)))))"#;
    let folder = tempfile::tempdir().unwrap();
    let counter = module(folder.path(), "counter.wat", COUNTER);
    let languages = format!("{{ counter = {{ module = \"{}\" }} }}", counter.display());
    let executor = Executor::start(&[("languages", &languages)]).await;
    for _ in 0..20 {
        executor
            .executed(program_of("counter", "x"))
            .await
            .0
            .exited(7);
    }
}

#[tokio::test]
async fn a_stream_of_events_begins_and_ends_as_a_run_does() {
    let executor = Executor::start(&[]).await;
    let spec = Some(program_of("wat", VALUE));
    let request = ExecuteStreamRequest { spec };
    let mut events = executor
        .client
        .clone()
        .execute_stream(request)
        .await
        .unwrap()
        .into_inner();
    let mut kinds = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        kinds.push(match event.event.unwrap() {
            Event::Started(_) => "started",
            Event::Stdout(_) => "stdout",
            Event::Exit(_) => "exit",
            other @ (Event::Stderr(_)
            | Event::Lost(_)
            | Event::Error(_)
            | Event::StdinDemand(_)
            | Event::File(_)) => panic!("{other:?}"),
        });
    }
    assert_eq!(kinds, ["started", "stdout", "exit"]);
}

#[tokio::test]
async fn a_program_has_files_and_leaves_some() {
    // The kit as the interpreter of a language: its program is a path, which it reads or writes.
    let folder = tempfile::tempdir().unwrap();
    let kit = module(folder.path(), "kit.wasm", guests::kit());
    let languages = format!(
        r#"{{ reads = {{ module = "{0}", protocol = "argument", args = ["kit", "read", "{{code}}"] }}, writes = {{ module = "{0}", protocol = "argument", args = ["kit", "write", "{{code}}", "text"] }}, lists = {{ module = "{0}", protocol = "argument", args = ["kit", "list", "{{code}}"] }}, shows = {{ module = "{0}", protocol = "file", file = "main.x", args = ["kit", "read", "{{file}}"] }} }}"#,
        kit.display()
    );
    let executor = Executor::start(&[("languages", &languages)]).await;
    let given = ExecutionSpec {
        files: vec![File {
            path: "/work/a.txt".to_owned(),
            data: Bytes::from_static(b"given"),
        }],
        ..program_of("reads", "/work/a.txt")
    };
    assert_eq!(executor.executed(given).await.0.exited(0).out(), "given");
    let left = ExecutionSpec {
        collect: vec!["/out/*.txt".to_owned(), "/nothing".to_owned()],
        ..program_of("writes", "/out/b.txt")
    };
    let answer = executor.execute(left).await.unwrap();
    let result = answer.result.unwrap();
    assert_eq!(result.exit_code, Some(0));
    assert_eq!(
        (answer.files.len(), answer.files[0].path.as_str()),
        (1, "/out/b.txt")
    );
    assert_eq!(
        (
            &*answer.files[0].data,
            answer.files[0].content_type.as_str()
        ),
        (&b"text"[..], "text/plain")
    );
    assert_eq!(
        (
            result.uncollected.len(),
            result.uncollected[0].path.as_str()
        ),
        (1, "/nothing")
    );
    // Every program begins with these directories, empty, whoever wrote there before.
    for (directory, names) in [("/", "out tmp\n"), ("/out", "\n"), ("/tmp", "\n")] {
        let (ran, _) = executor.executed(program_of("lists", directory)).await;
        assert_eq!(ran.exited(0).out(), names);
    }
    // The program is a file itself where its language says so.
    let (ran, _) = executor.executed(program_of("shows", "its own text")).await;
    assert_eq!(ran.exited(0).out(), "its own text");
    let twice = ExecutionSpec {
        files: vec![File {
            path: "/main.x".to_owned(),
            data: Bytes::new(),
        }],
        ..program_of("shows", "x")
    };
    let refused = executor.refused(twice).await;
    assert_eq!(
        refused.field.as_deref(),
        Some("spec.files[0].path"),
        "{refused:?}"
    );
    let wrong = ExecutionSpec {
        files: vec![File {
            path: "relative".to_owned(),
            data: Bytes::new(),
        }],
        ..program_of("reads", "x")
    };
    let refused = executor.refused(wrong).await;
    assert_eq!(
        refused.field.as_deref(),
        Some("spec.files[0].path"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn languages_come_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let cat = module(folder.path(), "cat.wat", CAT);
    let text = format!("[languages.cat]\nmodule = \"{}\"\n", cat.display());
    let config = folder.path().join("config.toml");
    std::fs::write(&config, text).unwrap();
    let daemon = Daemon::configured(&config).await;
    let mut client = ExecutionServiceClient::new(channel(&daemon.addr).await);
    let spec = Some(program_of("cat", "x"));
    let answer = client.execute(ExecuteRequest { spec }).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(answer.result.unwrap().exit_code, Some(0));
    assert_eq!(header(&answer.stdout).0["file"], "main");
}
