//! `ringfence mcp`: agents that speak the Model Context Protocol, by hand-written messages and by
//! the client of the protocol's own SDK.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use base64::Engine as _;
use serde_json::{Value, json};

use crate::cli::kit;
use crate::cli_runs::{lines, text, told};
use crate::guests;
use crate::harness::PATIENCE;
use crate::interop;
use crate::process::{Served, ringfence};
use crate::tenants::{token, tokens_file};

/// The tools, in the order in which they are listed.
const TOOLS: [&str; 6] = [
    "run_code",
    "run_module",
    "read_output",
    "list_runs",
    "kill_run",
    "list_languages",
];
/// A program that goes on until it is ended.
const SPIN: &str = "(module (func (export \"_start\") (loop $on (br $on))))";

/// A program that writes `piece`, as WebAssembly text has it in a string, `times` times to `fd`.
fn writes(fd: u8, piece: &str, bytes: usize, times: usize) -> String {
    program(piece, &write(fd, bytes, times))
}

/// A program whose memory has `data` at 16, and that does `code`.
fn program(data: &str, code: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 4)
            (data (i32.const 16) "{data}")
            (func (export "_start") (local $left i32) {code}))"#
    )
}

/// Code that writes `bytes` bytes of the memory from 16 on to `fd`, `times` times.
fn write(fd: u8, bytes: usize, times: usize) -> String {
    format!(
        "(local.set $left (i32.const {times}))
        (loop $more
            (i32.store (i32.const 0) (i32.const 16))
            (i32.store (i32.const 4) (i32.const {bytes}))
            (drop (call $write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))"
    )
}

/// An agent and its `ringfence mcp`.
pub(crate) struct Agent {
    child: Child,
    stdin: Option<ChildStdin>,
    /// The lines of standard output, each of which is a message.
    messages: Receiver<Value>,
    /// Messages that came while another was waited for.
    early: Vec<Value>,
    requests: u64,
}

impl Agent {
    /// Starts the command, without any message.
    fn silent(mut command: Command, args: &[&str]) -> Self {
        let mut child = command
            .arg("mcp")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, messages) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines() {
                let line = line.unwrap();
                let message: Value = serde_json::from_str(&line).unwrap_or_else(
                    |error| json!({ "not a message": line, "since": error.to_string() }),
                );
                if tell.send(message).is_err() {
                    return;
                }
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            messages,
            early: Vec::new(),
            requests: 0,
        }
    }

    /// Starts the command and shakes hands.
    fn start(args: &[&str]) -> Self {
        let mut agent = Self::silent(ringfence(), args);
        let answer = agent.initialize();
        assert_eq!(answer["result"]["serverInfo"]["name"], "ringfence");
        agent
    }

    /// An agent of `daemon`.
    pub(crate) fn of(daemon: &Served, args: &[&str]) -> Self {
        Self::start(&[&["--server", &daemon.addr], args].concat())
    }

    fn initialize(&mut self) -> Value {
        let answer = self.request(
            "initialize",
            json!({
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": { "name": "test", "version": "1" },
            }),
        );
        self.send(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }));
        answer
    }

    fn send(&mut self, message: &Value) {
        self.line(&message.to_string());
    }

    fn line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The next message that `is_it`.
    #[track_caller]
    fn message(&mut self, is_it: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.early.iter().position(&is_it) {
            return self.early.remove(at);
        }
        loop {
            let message = self.messages.recv_timeout(PATIENCE);
            let message = message.expect("it answers");
            assert_eq!(message["jsonrpc"], "2.0", "{message}");
            if is_it(&message) {
                return message;
            }
            self.early.push(message);
        }
    }

    /// Sends a request, and returns its id.
    fn ask(&mut self, method: &str, params: Value) -> u64 {
        self.requests += 1;
        let id = self.requests;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        id
    }

    #[track_caller]
    fn answer(&mut self, id: u64) -> Value {
        self.message(|message| message["id"] == id)
    }

    #[track_caller]
    fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params);
        self.answer(id)
    }

    fn ask_tool(&mut self, tool: &str, arguments: Value) -> u64 {
        self.ask(
            "tools/call",
            json!({ "name": tool, "arguments": arguments }),
        )
    }

    /// What a tool answers, which does what it is called for.
    #[track_caller]
    pub(crate) fn call(&mut self, tool: &str, arguments: Value) -> Told {
        let id = self.ask_tool(tool, arguments);
        self.told(id)
    }

    #[track_caller]
    fn told(&mut self, id: u64) -> Told {
        let told = Told::new(&self.answer(id));
        assert!(!told.is_error, "{told:?}");
        told
    }

    /// What a tool answers that fails.
    #[track_caller]
    pub(crate) fn refused(&mut self, tool: &str, arguments: Value) -> Told {
        let id = self.ask_tool(tool, arguments);
        let told = Told::new(&self.answer(id));
        assert!(told.is_error, "{told:?}");
        let message = told.facts["error"]["message"].as_str().unwrap();
        assert!(told.blocks[0].contains(message), "{told:?}");
        told
    }

    /// Executes a program of WebAssembly text.
    #[track_caller]
    fn wat(&mut self, code: &str) -> Told {
        self.call("run_code", json!({ "language": "wat", "code": code }))
    }

    /// The id of the one run that executes, once there is one.
    fn running(&mut self) -> String {
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it does not run");
            let listed = self.call("list_runs", json!({ "states": ["running"] }));
            let runs = listed.facts["runs"].as_array().unwrap();
            if let [run] = &runs[..] {
                return run["run_id"].as_str().unwrap().to_owned();
            }
        }
    }

    /// Closes standard input, and waits for the end of the command. What it said on standard error
    /// is the second value.
    fn close(mut self) -> (ExitStatus, String) {
        drop(self.stdin.take());
        self.ended()
    }

    fn ended(&mut self) -> (ExitStatus, String) {
        let mut said = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        stderr.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The result of a call of a tool.
#[derive(Debug)]
pub(crate) struct Told {
    is_error: bool,
    /// The structured content.
    pub(crate) facts: Value,
    /// The blocks of text.
    pub(crate) blocks: Vec<String>,
}

impl Told {
    #[track_caller]
    fn new(answer: &Value) -> Self {
        let result = &answer["result"];
        assert!(result.is_object(), "{answer}");
        let blocks = result["content"].as_array().unwrap().iter();
        let blocks = blocks.map(|block| {
            assert_eq!(block["type"], "text");
            block["text"].as_str().unwrap().to_owned()
        });
        Self {
            is_error: result["isError"] == true,
            facts: result["structuredContent"].clone(),
            blocks: blocks.collect(),
        }
    }

    #[track_caller]
    pub(crate) fn text(&self, name: &str) -> &str {
        let value = self.facts[name].as_str();
        value.unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    /// Its error is of `reason` and names `field`.
    #[track_caller]
    pub(crate) fn is(&self, reason: &str, field: &str) {
        let error = &self.facts["error"];
        assert_eq!(
            (error["reason"].as_str(), error["field"].as_str()),
            (Some(reason), Some(field)),
            "{self:?}"
        );
        assert!(self.blocks[0].contains(reason), "{self:?}");
        assert!(self.blocks[0].contains(field), "{self:?}");
    }
}

/// What the daemon at `addr` knows of a run.
fn inspected(addr: &str, run_id: &str) -> Value {
    lines(&told(addr, &["inspect", run_id])).remove(0)
}

/// Waits until a run has ended because its caller left.
#[track_caller]
fn left(addr: &str, run_id: &str) {
    let start = Instant::now();
    loop {
        let run = inspected(addr, run_id);
        if run["state"] == "ended" {
            let cause = &run["result"]["cancel_cause"];
            assert_eq!(cause, "CANCEL_CAUSE_CALLER_GONE", "{run}");
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{run}");
    }
}

#[test]
fn it_says_what_it_is_and_which_tools_it_has() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::silent(ringfence(), &["--server", &daemon.addr, "--timeout", "7s"]);
    let hello = agent.initialize();
    let hello = &hello["result"];
    assert_eq!(hello["protocolVersion"], "2025-06-18");
    assert!(hello["capabilities"]["tools"].is_object(), "{hello}");
    assert!(hello["instructions"].as_str().unwrap().contains("sandbox"));
    assert!(agent.request("ping", json!({}))["result"].is_object());

    let listed = agent.request("tools/list", json!({}));
    let tools = listed["result"]["tools"].as_array().unwrap();
    let names: Vec<_> = tools
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, TOOLS);
    for tool in tools {
        let input = &tool["inputSchema"];
        assert_eq!(input["type"], "object", "{tool}");
        assert_eq!(input["additionalProperties"], false, "{tool}");
        assert_eq!(tool["outputSchema"]["type"], "object", "{tool}");
        assert!(
            tool["description"].as_str().unwrap().ends_with('.'),
            "{tool}"
        );
        for schema in [input, &tool["outputSchema"]] {
            for (name, property) in schema["properties"].as_object().unwrap() {
                let told = property["description"].as_str().unwrap_or_default();
                assert!(told.ends_with('.'), "{name}: {property}");
            }
        }
    }
    let [run_code, run_module] = [&tools[0], &tools[1]].map(|tool| &tool["inputSchema"]);
    assert_eq!(run_code["required"], json!(["language", "code"]));
    assert_eq!(run_code["properties"]["timeout_seconds"]["maximum"], 7.0);
    // What the operator does not allow is not offered.
    assert!(run_module["properties"]["path"].is_null());
    let hints = |tool: usize| &tools[tool]["annotations"];
    assert_eq!(hints(2)["readOnlyHint"], true);
    assert_eq!(hints(4)["destructiveHint"], true);

    let answer = agent.request("tools/list", json!({ "cursor": "x" }));
    assert_eq!(answer["error"]["code"], -32602, "{answer}");
    let (status, said) = agent.close();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));

    let folder = tempfile::tempdir().unwrap();
    let mut agent = Agent::of(&daemon, &["--module-dir", folder.path().to_str().unwrap()]);
    let listed = agent.request("tools/list", json!({}));
    let run_module = &listed["result"]["tools"][1]["inputSchema"];
    assert_eq!(run_module["properties"]["path"]["type"], "string");
}

#[test]
fn a_program_is_executed_and_told_in_text_and_as_json() {
    let daemon = Served::start(&["--set", "server.instance=here"]);
    let mut agent = Agent::of(&daemon, &["--label", "agent=a", "--label", "job=1"]);
    let told = agent.wat(&writes(1, "hi\\n__OUT__:1.50\\n", 16, 1));
    let id = told.text("run_id").to_owned();
    assert!(id.ends_with(".here"), "{id}");
    assert_eq!(told.text("stdout"), "hi\n__OUT__:1.50\n");
    assert_eq!(told.text("stderr"), "");
    assert_eq!(told.text("value"), "1.50", "as it was written");
    assert_eq!(told.text("outcome"), "OUTCOME_EXITED");
    assert_eq!(told.facts["exit_code"], 0);
    assert_eq!(told.facts["output_cut"], false);
    assert!(told.facts["next"].is_null());
    let first = format!("Run {id}: exited with code 0 after ");
    assert!(told.blocks[0].starts_with(&first), "{told:?}");
    assert_eq!(
        told.blocks[1..],
        ["stdout:\nhi\n__OUT__:1.50\n", "value:\n1.50"]
    );

    // What a program writes has blocks of its own.
    let told = agent.wat(&writes(2, "x\\nstdout:\\nforged", 16, 1));
    assert_eq!(told.blocks[1..], ["stderr:\nx\nstdout:\nforged"]);
    let told = agent.wat("(module (func (export \"_start\")))");
    assert!(told.blocks[0].ends_with("\nIt wrote nothing."), "{told:?}");

    // They are runs as any others, with the labels of the operator.
    let listed = lines(&self::told(
        &daemon.addr,
        &["ps", "--all", "--label", "job=1", "--output", "json"],
    ));
    assert_eq!(listed.len(), 3);
    assert_eq!(listed[2]["run_id"], id.as_str());
    assert_eq!(listed[2]["method"], "Execute");
    assert_eq!(listed[2]["labels"], json!({ "agent": "a", "job": "1" }));

    let told = agent.call("list_languages", json!({}));
    let names = told.facts["languages"].as_array().unwrap().iter();
    let names: Vec<_> = names.map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"wat"), "{names:?}");
    assert!(told.blocks[0].contains("\nwat"), "{told:?}");
    assert!(told.blocks[0].contains("hardened"), "{told:?}");
}

#[test]
fn how_a_program_ended_is_told_with_the_limit_that_it_met() {
    let daemon = Served::start(&["--set", "defaults.output_limit=3KiB"]);
    let mut agent = Agent::of(&daemon, &[]);
    let grows = "(module (memory 1) (func (export \"_start\")
        (if (i32.eq (memory.grow (i32.const 9)) (i32.const -1)) (then (unreachable)))))";
    let recurses = "(module (func $f (export \"_start\") (call $f)))";
    for (code, more, outcome, said) in [
        (
            SPIN,
            json!({ "timeout_seconds": 0.05 }),
            "TIMED_OUT",
            "timeout_seconds asks for more",
        ),
        (
            grows,
            json!({ "memory_pages": 4.0 }),
            "MEMORY_EXCEEDED",
            "it had 4 pages of memory",
        ),
        (recurses, json!({}), "STACK_OVERFLOW", "bytes of stack"),
        (
            "(module (func (export \"_start\") unreachable))",
            json!({ "profile": "hardened", "args": null }),
            "TRAPPED",
            "the guest trapped: ",
        ),
        (
            writes(1, "x", 1024, 4).as_str(),
            json!({ "version": "" }),
            "OUTPUT_EXCEEDED",
            "it had 3072 bytes for each stream",
        ),
    ] {
        let mut arguments = json!({ "language": "wat", "code": code });
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let told = agent.call("run_code", arguments);
        assert_eq!(told.text("outcome"), format!("OUTCOME_{outcome}"));
        assert!(told.facts["exit_code"].is_null(), "{told:?}");
        assert!(told.blocks[0].contains(said), "{told:?}");
    }
    let exits = "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (memory (export \"memory\") 1) (func (export \"_start\") (call $exit (i32.const 7))))";
    let told = agent.wat(exits);
    assert_eq!(told.facts["exit_code"], 7);
    assert!(told.blocks[0].contains("exited with code 7"), "{told:?}");
}

#[test]
fn a_module_is_run_by_its_file_and_then_by_its_digest() {
    let daemon = Served::start(&[]);
    let kit = kit();
    let folder = Path::new(&kit).parent().unwrap().to_str().unwrap();
    let mut agent = Agent::of(&daemon, &["--module-dir", folder, "--label", "k=v"]);
    let told = agent.call(
        "run_module",
        json!({
            "path": "cli-kit.wasm", "args": ["dump", "a b", ""],
            "env": { "A": "1=2", "B": "" }, "timeout_seconds": 20, "memory_pages": 300,
            "fuel_limit": 1_000_000_000_000_u64, "stack_size": 262_144, "output_limit": 65_536,
        }),
    );
    assert_eq!(
        told.text("stdout"),
        "arg cli-kit.wasm\narg dump\narg a b\narg \nenv A=1=2\nenv B=\n"
    );
    let granted = &told.facts["granted"];
    assert_eq!(granted["memory_pages"], 300);
    assert_eq!(granted["fuel_limit"], 1_000_000_000_000_u64);
    assert_eq!(
        (&granted["stack_size"], &granted["output_limit"]),
        (&json!(262_144), &json!(65_536))
    );
    let run = inspected(&daemon.addr, told.text("run_id"));
    assert_eq!(
        (&run["labels"]["k"], &run["method"]),
        (&json!("v"), &json!("Run"))
    );

    // By its digest, which needs no file, and by the whole path.
    let digest = told.text("module_digest").to_owned();
    let arguments = json!({ "digest": digest, "args": ["echo"], "stdin": "ü\n" });
    assert_eq!(agent.call("run_module", arguments).text("stdout"), "ü\n");
    let arguments = json!({ "path": kit, "args": ["exit", "3"] });
    let told = agent.call("run_module", arguments);
    assert_eq!(
        (&told.facts["exit_code"], told.text("module_digest")),
        (&json!(3), digest.as_str())
    );
    // An agent that may name no files runs it too.
    let mut agent = Agent::of(&daemon, &[]);
    let told = agent.call("run_module", json!({ "digest": digest, "args": ["dump"] }));
    assert_eq!(told.text("stdout"), "arg main\narg dump\n");
    let told = agent.call("run_module", json!({ "digest": digest }));
    assert_eq!(told.facts["exit_code"], 64, "without arguments: {told:?}");

    // A function, whose arguments are numbers.
    let add = "(module (func (export \"add\") (param i32 i64) (result i64)
        (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1))))";
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("add.wat"), add).unwrap();
    let mut agent = Agent::of(&daemon, &["--module-dir", dir.path().to_str().unwrap()]);
    let arguments = json!({ "path": "add.wat", "entry_point": "add", "args": ["2", "0x28"] });
    assert_eq!(
        agent.call("run_module", arguments).facts["values"],
        json!(["42"])
    );
}

#[test]
fn no_file_is_read_but_those_of_the_folder() {
    let daemon = Served::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("modules");
    let secret = dir.path().join("secret.wat");
    std::fs::create_dir_all(folder.join("below")).unwrap();
    let module = "(module (func (export \"_start\")))";
    std::fs::write(&secret, module).unwrap();
    std::fs::write(folder.join("below/a.wat"), module).unwrap();
    std::os::unix::fs::symlink("below/a.wat", folder.join("inside")).unwrap();
    std::os::unix::fs::symlink(&secret, folder.join("absolute")).unwrap();
    std::os::unix::fs::symlink("../secret.wat", folder.join("relative")).unwrap();
    std::os::unix::fs::symlink("..", folder.join("up")).unwrap();
    let made = Command::new("mkfifo").arg(folder.join("pipe")).status();
    assert!(made.unwrap().success());

    let mut agent = Agent::of(&daemon, &["--module-dir", folder.to_str().unwrap()]);
    for path in ["below/a.wat", "./below/../below/a.wat", "inside"] {
        let told = agent.call("run_module", json!({ "path": path }));
        assert_eq!(told.facts["exit_code"], 0, "{path}");
    }
    for path in [
        "../secret.wat",
        "below/../../secret.wat",
        secret.to_str().unwrap(),
        &format!("{}/../secret.wat", folder.display()),
        "absolute",
        "relative",
        "up/secret.wat",
        "/proc/self/environ",
        "pipe",
        "below",
        "",
        "none",
        "a\0b",
    ] {
        agent
            .refused("run_module", json!({ "path": path }))
            .is("ARGUMENT_INVALID", "path");
    }
    // Without the flag, no file at all.
    let mut agent = Agent::of(&daemon, &[]);
    let told = agent.refused("run_module", json!({ "path": secret }));
    told.is("ARGUMENT_INVALID", "path");
    assert!(told.blocks[0].contains("--module-dir"), "{told:?}");
}

#[test]
fn what_is_refused_names_the_field_what_was_given_and_what_is_allowed() {
    let daemon = Served::start(&["--set", "server.instance=here"]);
    let folder = guests::root().join("examples");
    let args = ["--module-dir", folder.to_str().unwrap(), "--timeout", "60s"];
    let mut agent = Agent::of(&daemon, &args);
    let unknown = format!("{}.here", "0".repeat(32));
    let ran = agent.wat("(module (func (export \"_start\")))");
    let ran = ran.text("run_id");
    let code = |more: Value| {
        let mut arguments = json!({ "language": "wat", "code": "(module)" });
        arguments
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        ("run_code", arguments)
    };
    let own = "ARGUMENT_INVALID";
    for ((tool, arguments), reason, field) in [
        (("run_code", json!({})), own, "language"),
        (("run_code", json!({ "language": "wat" })), own, "code"),
        (
            ("run_code", json!({ "language": 7, "code": "" })),
            own,
            "language",
        ),
        (code(json!({ "code": null })), own, "code"),
        (code(json!({ "stdin": ["x"] })), own, "stdin"),
        (code(json!({ "args": "x" })), own, "args"),
        (code(json!({ "args": ["x", 1] })), own, "args"),
        (code(json!({ "env": ["A=1"] })), own, "env"),
        (code(json!({ "env": { "A": 1 } })), own, "env.A"),
        (code(json!({ "env": { "A=B": "1" } })), own, "env.A=B"),
        (code(json!({ "env": { "": "1" } })), own, "env."),
        (code(json!({ "memory_pages": 0 })), own, "memory_pages"),
        (code(json!({ "memory_pages": 1.5 })), own, "memory_pages"),
        (code(json!({ "memory_pages": -1 })), own, "memory_pages"),
        (code(json!({ "memory_pages": "64" })), own, "memory_pages"),
        (
            code(json!({ "memory_pages": 5_000_000_000_u64 })),
            own,
            "memory_pages",
        ),
        (
            code(json!({ "timeout_seconds": 0 })),
            own,
            "timeout_seconds",
        ),
        (
            code(json!({ "timeout_seconds": -1 })),
            own,
            "timeout_seconds",
        ),
        (
            code(json!({ "timeout_seconds": 60.5 })),
            own,
            "timeout_seconds",
        ),
        (
            code(json!({ "timeout_seconds": 1e300 })),
            own,
            "timeout_seconds",
        ),
        (code(json!({ "timeout": 1 })), own, "timeout"),
        (("run_module", json!({})), own, "digest"),
        (
            (
                "run_module",
                json!({ "digest": unknown, "path": "hello.wat" }),
            ),
            own,
            "digest",
        ),
        (
            (
                "run_module",
                json!({ "path": "hello.wat", "fuel_limit": 0 }),
            ),
            own,
            "fuel_limit",
        ),
        (
            ("run_module", json!({ "path": "hello.wat", "code": "" })),
            own,
            "code",
        ),
        (("read_output", json!({})), own, "run_id"),
        (
            ("read_output", json!({ "run_id": ran, "from_seq": -1 })),
            own,
            "from_seq",
        ),
        (
            ("read_output", json!({ "run_id": ran, "max_bytes": 0 })),
            own,
            "max_bytes",
        ),
        (
            ("read_output", json!({ "run_id": ran, "max_bytes": 32_769 })),
            own,
            "max_bytes",
        ),
        (
            ("read_output", json!({ "run_id": ran, "from_byte": 1 })),
            own,
            "from_byte",
        ),
        (
            (
                "read_output",
                json!({ "run_id": ran, "from_seq": 1, "from_byte": 1 }),
            ),
            own,
            "from_byte",
        ),
        (
            (
                "read_output",
                json!({ "run_id": ran, "from_seq": 2, "from_byte": 1 }),
            ),
            own,
            "from_byte",
        ),
        (
            ("list_runs", json!({ "states": ["asleep"] })),
            own,
            "states",
        ),
        (
            ("list_runs", json!({ "states": ["ended", "ended"] })),
            own,
            "states",
        ),
        (
            ("list_runs", json!({ "labels": { "a": true } })),
            own,
            "labels.a",
        ),
        (("list_runs", json!({ "limit": 0 })), own, "limit"),
        (("list_runs", json!({ "limit": 1001 })), own, "limit"),
        (("kill_run", json!({ "run_id": 1 })), own, "run_id"),
        (("list_languages", json!({ "x": 1 })), own, "x"),
        // By the daemon.
        (
            ("run_code", json!({ "language": "cobol", "code": "" })),
            "UNSUPPORTED_LANGUAGE",
            "spec.language",
        ),
        (
            code(json!({ "version": "9" })),
            "UNSUPPORTED_LANGUAGE",
            "spec.version",
        ),
        (
            code(json!({ "profile": "none" })),
            "SPEC_INVALID",
            "spec.profile",
        ),
        (
            code(json!({ "session": "not kept" })),
            "SPEC_INVALID",
            "spec.session",
        ),
        (
            code(json!({ "args": ["\0"] })),
            "SPEC_INVALID",
            "spec.args[0]",
        ),
        (
            code(json!({ "memory_pages": 70_000 })),
            "LIMIT_ABOVE_MAXIMUM",
            "spec.resources.memory_pages",
        ),
        (
            ("run_module", json!({ "digest": "sha256:x" })),
            "SPEC_INVALID",
            "spec.digest",
        ),
        (
            ("read_output", json!({ "run_id": "x" })),
            "SPEC_INVALID",
            "run_id",
        ),
        (
            ("read_output", json!({ "run_id": ran, "from_seq": 3 })),
            "SPEC_INVALID",
            "from_seq",
        ),
        (
            ("kill_run", json!({ "run_id": "x" })),
            "SPEC_INVALID",
            "run_id",
        ),
    ] {
        let told = agent.refused(tool, arguments);
        told.is(reason, field);
        if reason == own {
            let metadata = &told.facts["error"]["metadata"];
            for key in ["asked", "allowed"] {
                assert!(
                    told.blocks[0].contains(metadata[key].as_str().unwrap()),
                    "{told:?}"
                );
            }
        }
    }
    for tool in ["read_output", "kill_run"] {
        let told = agent.refused(tool, json!({ "run_id": unknown }));
        assert_eq!(told.facts["error"]["reason"], "RUN_NOT_FOUND");
    }
    let limit = agent.refused("run_code", code(json!({ "memory_pages": 70_000 })).1);
    for part in ["70000", "4096", "policy.max_memory_pages"] {
        assert!(limit.blocks[0].contains(part), "{limit:?}");
    }
    let told = agent.refused("run_code", code(json!({ "code": "(module" })).1);
    assert_eq!(told.facts["error"]["reason"], "MODULE_INVALID", "{told:?}");
    // And it goes on.
    agent.wat("(module (func (export \"_start\")))");
}

#[test]
fn what_breaks_the_protocol_is_answered_and_the_next_message_is_served() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::of(&daemon, &[]);
    let no_id = |message: &Value| message.get("id").is_none_or(Value::is_null);
    for (line, code, said) in [
        ("{\"jsonrpc\": \"2.0\",", -32700, "not JSON"),
        ("run the code, please", -32700, "not JSON"),
        ("\u{0}\u{1}", -32700, "not JSON"),
        (
            "[{\"jsonrpc\":\"2.0\",\"id\":900,\"method\":\"ping\"}]",
            -32600,
            "batches",
        ),
        ("\"ping\"", -32600, "object"),
        (
            "{\"id\":1.5,\"jsonrpc\":\"2.0\",\"method\":\"ping\"}",
            -32600,
            "\"id\"",
        ),
    ] {
        agent.line(line);
        let answer = agent.message(no_id);
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(said),
            "{answer}"
        );
    }
    for (line, said) in [
        ("{\"id\":901,\"method\":\"ping\"}", "\"jsonrpc\""),
        (
            "{\"id\":901,\"jsonrpc\":\"1.0\",\"method\":\"ping\"}",
            "\"jsonrpc\"",
        ),
        (
            "{\"id\":901,\"jsonrpc\":\"2.0\",\"method\":5}",
            "\"method\"",
        ),
        ("{\"id\":901,\"jsonrpc\":\"2.0\"}", "no request"),
    ] {
        agent.line(line);
        let answer = agent.answer(901);
        assert_eq!(answer["error"]["code"], -32600, "{line}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(said),
            "{answer}"
        );
    }
    for (method, params, code, said) in [
        ("tools/run", json!({}), -32601, "tools/run"),
        ("tools/call", json!({ "name": "rm" }), -32602, "run_code"),
        ("tools/call", json!({ "arguments": {} }), -32602, "\"name\""),
        (
            "tools/call",
            json!({ "name": "list_runs", "arguments": [] }),
            -32602,
            "\"arguments\"",
        ),
        ("tools/call", json!("list_runs"), -32600, "\"params\""),
        ("prompts/get", json!({ "name": "x" }), -32601, ""),
    ] {
        let answer = agent.request(method, params);
        assert_eq!(answer["error"]["code"], code, "{method}: {answer}");
        assert!(
            answer["error"]["message"].as_str().unwrap().contains(said),
            "{answer}"
        );
    }
    // An empty line is nothing, and an answer that nobody asked for is ignored.
    agent.line("");
    agent.line("{\"jsonrpc\":\"2.0\",\"id\":77,\"result\":{}}");
    // A line that is too long is dropped while it comes.
    agent.line(&format!("\"{}\"", "x".repeat(17 << 20)));
    let answer = agent.message(no_id);
    assert_eq!(answer["error"]["code"], -32600, "{answer}");
    assert!(
        answer["error"]["message"]
            .as_str()
            .unwrap()
            .contains("16777216"),
        "{answer}"
    );
    assert!(agent.request("ping", json!({}))["result"].is_object());
    assert_eq!(agent.early, [] as [Value; 0]);

    // The first message shakes hands, or there is nobody to talk to.
    let mut rude = Agent::silent(ringfence(), &["--server", &daemon.addr]);
    rude.line("{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}");
    let (status, said) = rude.ended();
    assert_eq!(status.code(), Some(125), "{said}");
    assert!(said.contains("\"initialize\""), "{said}");
}

/// Reads the output of a run from `next` on, and returns what it wrote.
fn read_all(agent: &mut Agent, run_id: &str, mut next: Value, max_bytes: usize) -> [String; 2] {
    let mut all = [String::new(), String::new()];
    loop {
        let read = agent.call(
            "read_output",
            json!({
                "run_id": run_id, "max_bytes": max_bytes,
                "from_seq": next["from_seq"], "from_byte": next["from_byte"],
            }),
        );
        let parts = ["stdout", "stderr"].map(|name| read.text(name).to_owned());
        let bytes = parts[0].len() + parts[1].len();
        assert!(bytes <= max_bytes, "{bytes}");
        for (all, part) in all.iter_mut().zip(parts) {
            all.push_str(&part);
        }
        if read.facts["ended"] == true {
            assert_eq!(read.facts["more"], false);
            assert!(read.blocks[0].contains("\nThat is all: "), "{read:?}");
            return all;
        }
        assert_eq!(read.facts["more"], true);
        assert!(bytes > 0, "it gets on: {read:?}");
        next = read.facts["next"].clone();
        let call = format!("from_seq {}", next["from_seq"]);
        assert!(read.blocks[0].contains(&call), "{read:?}");
    }
}

#[test]
fn long_output_is_cut_and_read_on_where_it_was_cut() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::of(&daemon, &["--max-output", "4KiB"]);
    // Characters of two bytes, which an odd limit cuts in two.
    let piece = "äb".repeat(13_333);
    let code = format!("{} {}", write(1, piece.len(), 5), write(2, 6, 1));
    let told = agent.wat(&program(&piece, &code));
    let id = told.text("run_id").to_owned();
    assert_eq!(told.facts["output_cut"], true);
    let shown = told.text("stdout");
    assert!(shown.len() <= 3072 && shown.len() > 3068, "{}", shown.len());
    assert!(shown.starts_with("äbäb"));
    // Why it failed stands at the end, and is shown.
    assert_eq!((told.text("stderr"), told.text("stderr_end")), ("", "äbäb"));
    assert!(
        told.blocks[0].contains(" of 199995 bytes of stdout"),
        "{}",
        told.blocks[0]
    );
    let next = &told.facts["next"];
    let call = format!(
        "read_output with run_id {id} and from_seq {} and from_byte {} reads on",
        next["from_seq"], next["from_byte"]
    );
    assert!(told.blocks[0].contains(&call), "{}", told.blocks[0]);
    for max_bytes in [4095, 1001] {
        let [stdout, stderr] = read_all(&mut agent, &id, next.clone(), max_bytes);
        assert_eq!(stderr, "äbäb");
        assert!(format!("{shown}{stdout}") == piece.repeat(5), "{max_bytes}");
    }
    // In all, an answer takes little more than what may be shown.
    let id = agent.ask_tool(
        "run_code",
        json!({ "language": "wat", "code": writes(1, &"x".repeat(60_000), 60_000, 10) }),
    );
    let answer = agent.answer(id).to_string();
    assert!(answer.len() < 16_384, "{}", answer.len());
}

#[test]
fn what_the_daemon_keeps_no_longer_is_told() {
    let daemon = Served::start(&["--set", "runs.log_bytes=128KiB"]);
    let mut agent = Agent::of(&daemon, &["--max-output", "8KiB"]);
    let told = agent.wat(&writes(1, "abc", 50_000, 6));
    assert!(
        told.text("stdout").starts_with("abc\0"),
        "{}",
        told.blocks[0]
    );
    assert!(
        told.blocks[0].contains("reads what the daemon still has of it"),
        "{}",
        told.blocks[0]
    );
    let read = agent.call("read_output", json!({ "run_id": told.text("run_id") }));
    assert!(read.facts["lost_events"].as_u64().unwrap() > 0);
    assert!(
        read.blocks[0].contains("no longer has"),
        "{}",
        read.blocks[0]
    );
    assert!(!read.text("stdout").is_empty());
}

#[test]
fn output_that_is_no_text_is_base64_and_said_to_be() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::of(&daemon, &[]);
    let told = agent.wat(&writes(1, "\\ff\\00\\01", 3, 1));
    let encoded = base64::prelude::BASE64_STANDARD.encode([255, 0, 1]);
    assert_eq!(told.text("stdout_base64"), encoded);
    assert!(told.facts["stdout"].is_null());
    assert_eq!(told.text("stderr"), "", "of one stream, not of the other");
    assert!(
        told.blocks[1].starts_with("stdout, which is not text"),
        "{told:?}"
    );
    assert!(told.blocks[1].contains("base64"), "{told:?}");
    let read = agent.call("read_output", json!({ "run_id": told.text("run_id") }));
    assert_eq!(read.text("stdout_base64"), encoded);
    // A part of a character is no text either, but the run of it has ended: nothing more comes.
    let told = agent.wat(&writes(2, "a\\c3", 2, 1));
    assert_eq!(
        told.text("stderr_base64"),
        base64::prelude::BASE64_STANDARD.encode(b"a\xc3")
    );
    // A slice of a character alone gets on.
    let told = agent.wat(&writes(1, "ä", 2, 1));
    let arguments = json!({ "run_id": told.text("run_id"), "max_bytes": 1 });
    let read = agent.call("read_output", arguments);
    assert_eq!(
        read.text("stdout_base64"),
        base64::prelude::BASE64_STANDARD.encode(b"\xc3")
    );
    assert_eq!(read.facts["next"]["from_byte"], 1);
}

#[test]
fn a_run_is_read_while_it_goes_on_listed_and_killed() {
    let daemon = Served::start(&[]);
    let folder = Path::new(&kit()).parent().unwrap().to_owned();
    let args = [
        "--module-dir",
        folder.to_str().unwrap(),
        "--label",
        "job=spin",
    ];
    let mut agent = Agent::of(&daemon, &args);
    let call = agent.ask_tool(
        "run_module",
        json!({ "path": "cli-kit.wasm", "args": ["spin", "going"], "timeout_seconds": 100 }),
    );
    let id = agent.running();
    let start = Instant::now();
    let read = loop {
        assert!(start.elapsed() < PATIENCE, "it writes nothing");
        let read = agent.call("read_output", json!({ "run_id": id }));
        assert_eq!(
            (&read.facts["ended"], &read.facts["more"]),
            (&json!(false), &json!(false))
        );
        assert_eq!(read.text("state"), "running");
        if read.text("stdout") == "going\n" {
            break read;
        }
    };
    assert!(
        read.blocks[0].contains("the run goes on (running)"),
        "{read:?}"
    );
    // After that there is nothing, which is told at once.
    let next = &read.facts["next"];
    let again = agent.call(
        "read_output",
        json!({ "run_id": id, "from_seq": next["from_seq"] }),
    );
    assert_eq!((again.text("stdout"), &again.facts["next"]), ("", next));
    let told = agent.refused(
        "read_output",
        json!({ "run_id": id, "from_seq": next["from_seq"], "from_byte": 1 }),
    );
    told.is("ARGUMENT_INVALID", "from_byte");

    let done = agent.wat("(module (func (export \"_start\")))");
    let listed = agent.call("list_runs", json!({}));
    let ids: Vec<_> = listed.facts["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["run_id"].clone())
        .collect();
    assert_eq!(ids, [done.facts["run_id"].clone(), json!(id)]);
    assert!(
        listed.blocks[0].contains(&format!("{id} running job=spin")),
        "{listed:?}"
    );
    assert!(
        listed.blocks[0].contains(" ended (exited 0) job=spin"),
        "{listed:?}"
    );
    for (arguments, count, more) in [
        (json!({ "limit": 1 }), 1, true),
        (json!({ "limit": 2 }), 2, false),
        (json!({ "states": ["ended", "queued"] }), 1, false),
        (json!({ "labels": { "job": "spin" } }), 2, false),
        (json!({ "labels": { "job": "other" } }), 0, false),
    ] {
        let listed = agent.call("list_runs", arguments.clone());
        let runs = listed.facts["runs"].as_array().unwrap().len();
        assert_eq!(
            (runs, &listed.facts["more"]),
            (count, &json!(more)),
            "{arguments}"
        );
    }

    let killed = agent.call("kill_run", json!({ "run_id": id }));
    assert_eq!(
        (killed.text("found"), &killed.facts["cancelled"]),
        ("running", &json!(true))
    );
    assert_eq!(
        killed.blocks,
        [format!("Run {id} was running, and has been ended.")]
    );
    let told = agent.told(call);
    assert_eq!(
        (told.text("run_id"), told.text("outcome")),
        (id.as_str(), "OUTCOME_CANCELLED")
    );
    assert_eq!(told.text("stdout"), "going\n");
    let killed = agent.call("kill_run", json!({ "run_id": id }));
    assert_eq!(
        (killed.text("found"), &killed.facts["cancelled"]),
        ("ended", &json!(false))
    );
    let read = agent.call(
        "read_output",
        json!({ "run_id": id, "from_seq": next["from_seq"] }),
    );
    assert_eq!(
        (&read.facts["ended"], read.text("state")),
        (&json!(true), "ended")
    );
    assert_eq!(
        read.facts["result"]["cancel_cause"],
        "CANCEL_CAUSE_CANCEL_RPC"
    );
    // Once more, after its last event.
    let last = next["from_seq"].as_u64().unwrap() + 1;
    let read = agent.call("read_output", json!({ "run_id": id, "from_seq": last }));
    assert_eq!(
        (&read.facts["ended"], read.text("stdout")),
        (&json!(true), "")
    );
    // A run that was refused has been a run.
    agent.refused(
        "run_code",
        json!({ "language": "wat", "code": "(module (func (export \"f\")))" }),
    );
    let listed = agent.call("list_runs", json!({ "limit": 1 }));
    let refused = &listed.facts["runs"][0];
    assert_eq!(refused["error"]["reason"], "ENTRY_POINT_NOT_FOUND");
    let read = agent.call("read_output", json!({ "run_id": refused["run_id"] }));
    assert_eq!(read.facts["run_error"]["reason"], "ENTRY_POINT_NOT_FOUND");
    assert!(read.blocks[0].contains("ENTRY_POINT_NOT_FOUND"), "{read:?}");
}

#[test]
fn a_listing_takes_no_more_room_than_it_may() {
    let daemon = Served::start(&[]);
    let label = format!("long={}", "x".repeat(128));
    let mut agent = Agent::of(&daemon, &["--max-output", "4KiB", "--label", &label]);
    for _ in 0..8 {
        agent.wat("(module (func (export \"_start\")))");
    }
    let listed = agent.call("list_runs", json!({}));
    let runs = listed.facts["runs"].as_array().unwrap();
    assert!(!runs.is_empty() && runs.len() < 8, "{}", runs.len());
    assert_eq!(listed.facts["more"], true);
    assert!(listed.blocks[0].contains("there are more"), "{listed:?}");
}

#[test]
fn a_call_that_is_cancelled_ends_its_run_and_is_not_answered() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::of(&daemon, &[]);
    let spin = json!({ "language": "wat", "code": SPIN, "timeout_seconds": 100 });
    let call = agent.ask_tool("run_code", spin);
    let id = agent.running();
    let cancelled = json!({ "requestId": call, "reason": "it takes too long" });
    agent.send(
        &json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled }),
    );
    left(&daemon.addr, &id);
    // It serves on, and no answer to the call came before that of another.
    agent.wat("(module (func (export \"_start\")))");
    assert!(
        agent.early.iter().all(|message| message["id"] != call),
        "{:?}",
        agent.early
    );
}

#[test]
fn the_end_of_its_input_ends_it_and_its_running_calls() {
    let daemon = Served::start(&[]);
    let mut agent = Agent::of(&daemon, &[]);
    let spin = json!({ "language": "wat", "code": SPIN, "timeout_seconds": 100 });
    let call = agent.ask_tool("run_code", spin.clone());
    let id = agent.running();
    drop(agent.stdin.take());
    let told = Told::new(&agent.answer(call));
    assert!(
        told.is_error && told.blocks[0].contains("standard input was closed"),
        "{told:?}"
    );
    let (status, said) = agent.ended();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    left(&daemon.addr, &id);
    // Before anything was said, and of a daemon inside it that executes a program.
    let (status, said) = Agent::silent(ringfence(), &["--server", &daemon.addr]).close();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    let mut agent = Agent::start(&[]);
    agent.ask_tool("run_code", spin);
    agent.running();
    let (status, said) = agent.close();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
    // A last line needs no end, and what is asked before the end is answered.
    let mut agent = Agent::of(&daemon, &[]);
    let stdin = agent.stdin.as_mut().unwrap();
    stdin
        .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":902,\"method\":\"tools/list\"}")
        .unwrap();
    drop(agent.stdin.take());
    assert!(agent.answer(902)["result"]["tools"].is_array());
}

#[test]
fn a_signal_and_a_reader_that_is_gone_end_it_and_its_runs() {
    let daemon = Served::start(&[]);
    let spin = json!({ "language": "wat", "code": SPIN, "timeout_seconds": 100 });
    let mut agent = Agent::of(&daemon, &[]);
    agent.ask_tool("run_code", spin.clone());
    let id = agent.running();
    let pid = agent.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let (status, said) = agent.ended();
    assert_eq!(
        (status.code(), said.as_str()),
        (Some(137), "ringfence: cancelled: terminated\n")
    );
    left(&daemon.addr, &id);

    // Its input stays open, but nobody reads what it says.
    let mut command = ringfence();
    let mut child = command
        .args(["mcp", "--server", &daemon.addr])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        ("", Some(141))
    );
    drop(stdin);
}

#[test]
fn a_daemon_that_is_away_is_told_in_each_call_and_used_when_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let addr = format!("unix:{}/s", dir.path().display());
    let start = || {
        let mut daemon = Served::as_told(ringfence(), &["serve", "--listen", &addr]);
        daemon.addr.clone_from(&addr);
        daemon
    };
    let nothing = json!({ "language": "wat", "code": "(module (func (export \"_start\")))" });
    let mut agent = Agent::start(&["--server", &addr]);
    for _ in 0..2 {
        let told = agent.refused("run_code", nothing.clone());
        assert_eq!(told.facts["error"]["code"], "UNAVAILABLE");
        assert!(
            told.blocks[0].contains("cannot reach the daemon"),
            "{told:?}"
        );
    }
    // What does not need it works, and a bad argument is told all the same.
    assert!(agent.request("tools/list", json!({}))["result"].is_object());
    agent
        .refused("kill_run", json!({}))
        .is("ARGUMENT_INVALID", "run_id");
    for _ in 0..2 {
        let daemon = start();
        let start = Instant::now();
        // The connection may break once more before it is seen to be broken.
        loop {
            let id = agent.ask_tool("run_code", nothing.clone());
            let told = Told::new(&agent.answer(id));
            if !told.is_error {
                assert_eq!(told.facts["exit_code"], 0);
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{told:?}");
        }
        let (code, _) = daemon.end();
        assert_eq!(code, 0);
        let told = agent.refused("run_code", nothing.clone());
        assert_eq!(told.facts["error"]["code"], "UNAVAILABLE", "{told:?}");
    }
}

#[test]
fn it_calls_as_its_tenant_with_the_token_that_its_file_has_now() {
    let dir = tempfile::TempDir::new().unwrap();
    let tokens = tokens_file(&dir, &["a", "b"]);
    let daemon = Served::start(&[
        "--set",
        "tenants=[{ name = \"a\" }, { name = \"b\" }]",
        "--set",
        &format!("auth.tokens_file={}", tokens.display()),
    ]);
    let own = dir.path().join("own");
    std::fs::write(&own, "wrong-token-of-nobody").unwrap();
    let args = ["--token-file", own.to_str().unwrap()];
    let mut agent = Agent::of(&daemon, &args);
    let nothing = "(module (func (export \"_start\")))";
    let told = agent.refused("run_code", json!({ "language": "wat", "code": nothing }));
    assert_eq!(told.facts["error"]["reason"], "CREDENTIALS_INVALID");
    std::fs::write(&own, token("a")).unwrap();
    let id = agent.wat(nothing).text("run_id").to_owned();
    assert_eq!(
        agent.call("list_runs", json!({})).facts["runs"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // Another tenant's agent sees nothing of it.
    let other = dir.path().join("other");
    std::fs::write(&other, token("b")).unwrap();
    let mut other = Agent::of(&daemon, &["--token-file", other.to_str().unwrap()]);
    assert_eq!(other.call("list_runs", json!({})).facts["runs"], json!([]));
    for tool in ["read_output", "kill_run"] {
        let told = other.refused(tool, json!({ "run_id": id }));
        assert_eq!(told.facts["error"]["reason"], "RUN_NOT_FOUND");
    }
}

#[test]
fn without_a_server_it_has_a_daemon_inside_by_its_own_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[server]\ninstance = \"inside\"\n").unwrap();
    let config = config.to_str().unwrap();
    let args = ["--config", config, "--set", "policy.max_memory_pages=300"];
    let mut agent = Agent::start(&args);
    let told = agent.wat(&writes(1, "hi", 2, 1));
    assert!(told.text("run_id").ends_with(".inside"), "{told:?}");
    assert_eq!(told.text("stdout"), "hi");
    let arguments = json!({ "language": "wat", "code": "(module)", "memory_pages": 301 });
    agent
        .refused("run_code", arguments)
        .is("LIMIT_ABOVE_MAXIMUM", "spec.resources.memory_pages");
    let (status, said) = agent.close();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));

    for (args, said) in [
        (&["--server", "127.0.0.1:1", "--set", "a=b"][..], "--server"),
        (&["--set", "policy.no_such=1"], "no_such"),
        (&["--server", "x:y:z"], "--server"),
        (
            &["--server", "127.0.0.1:1", "--token-file", "/none"],
            "/none",
        ),
        (&["--max-output", "1023"], "1024"),
        (&["--max-output", "much"], "--max-output"),
        (&["--timeout", "0s"], "--timeout"),
        (&["--module-dir", "/none"], "/none"),
        (&["--label", "a=1", "--label", "a=2"], "--label"),
        (&["--label", "a"], "KEY=VALUE"),
    ] {
        let output = ringfence().arg("mcp").args(args).output().unwrap();
        assert_eq!(
            (text(&output.stdout), output.status.code()),
            ("", Some(125)),
            "{args:?}"
        );
        assert!(
            text(&output.stderr).contains(said),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
}

/// Drives it by the SDK, whose major versions shake hands in different ways.
async fn driven_by(version: &str) {
    let requirement = format!("mcp=={version}");
    let Some(python) = interop::venv(&format!("mcp-{version}"), &["--", &requirement]).await else {
        return;
    };
    let daemon = Served::start(&[]);
    let mut client = Command::new(python);
    client
        .arg(guests::root().join("tests/interop/agent.py"))
        .arg(ringfence().get_program())
        .arg(&daemon.addr);
    let output = interop::output(client).await;
    let told = interop::succeeded(&output, "agent.py");
    assert!(told.ends_with("interop ok\n"), "{told}");
}

cases!(driven_by:
    the_first_version_of_the_sdk_uses_every_tool("1.30.0"),
    the_second_version_of_the_sdk_uses_every_tool("2.3.0"),
);
