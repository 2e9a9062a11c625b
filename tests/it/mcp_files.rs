//! Files of `ringfence mcp`: those that an agent gives a program, and those that it gets back.

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guests::memory_files;
use crate::mcp::{Agent, Told};
use crate::process::Served;

/// A daemon that has the language "kit", whose programs are the commands of
/// `tests/guests/memory_files.rs`.
struct Kit {
    folder: TempDir,
    daemon: Served,
}

impl Kit {
    fn start(set: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let module = folder.path().join("kit.wasm");
        std::fs::write(&module, memory_files()).unwrap();
        let config = folder.path().join("ringfence.toml");
        let text = format!(
            "[languages.kit]\nmodule = {module:?}\nprotocol = \"argument\"\nargs = [\"kit\", \"{{code}}\", \"{{args}}\"]\n"
        );
        std::fs::write(&config, text).unwrap();
        let settings: Vec<_> = set.iter().flat_map(|it| ["--set", it]).collect();
        let args = [&["--config", config.to_str().unwrap()], &settings[..]].concat();
        let daemon = Served::start(&args);
        Self { folder, daemon }
    }

    fn agent(&self, args: &[&str]) -> Agent {
        Agent::of(&self.daemon, args)
    }
}

/// The arguments of `run_code` that execute a command of the kit.
fn kit(command: &str, args: &[&str], files: Value, collect: &[&str]) -> Value {
    json!({ "language": "kit", "code": command, "args": args, "files": files, "collect": collect })
}

/// The paths of the files that a result has under `name`.
fn paths<'a>(told: &'a Told, name: &str) -> Vec<&'a str> {
    let files = told.facts[name].as_array().unwrap().iter();
    files.map(|file| file["path"].as_str().unwrap()).collect()
}

#[test]
fn a_program_finds_the_files_that_it_is_given() {
    let kit_daemon = Kit::start(&[]);
    let mut agent = kit_daemon.agent(&[]);
    let files = json!([{ "path": "/in/a.txt", "text": "grüße\n" }]);
    let told = agent.call("run_code", kit("cat", &["/in/a.txt"], files, &[]));
    assert_eq!(told.text("stdout"), "grüße\n");
    // Nothing was asked for, so nothing is said of files.
    assert!(told.facts["files"].is_null(), "{told:?}");
    let encoded = base64::prelude::BASE64_STANDARD.encode("in base64");
    let files = json!([{ "path": "/b", "base64": encoded, "text": null }]);
    let told = agent.call("run_code", kit("cat", &["/b"], files, &[]));
    assert_eq!(told.text("stdout"), "in base64");
    // The files of one run are not there for the next.
    let told = agent.call("run_code", kit("list", &["/"], Value::Null, &[]));
    assert_eq!(told.text("stdout"), "out tmp\n");

    // A module finds them too.
    let folder = kit_daemon.folder.path().to_str().unwrap();
    let mut agent = kit_daemon.agent(&["--module-dir", folder]);
    let arguments = json!({
        "path": "kit.wasm", "args": ["write", "/out/b", "12"], "collect": ["/out/*", "/in/a"],
        "files": [{ "path": "/in/a", "text": "given" }],
    });
    let told = agent.call("run_module", arguments);
    assert_eq!(paths(&told, "files"), ["/in/a", "/out/b"]);
    assert_eq!(told.facts["files"][0]["text"], "given");
    assert_eq!(told.facts["files"][1]["text"], "abcdefghijab");
}

#[test]
fn what_a_program_leaves_is_returned_as_text_or_in_base64() {
    let kit_daemon = Kit::start(&[]);
    let mut agent = kit_daemon.agent(&[]);
    let bytes = base64::prelude::BASE64_STANDARD.encode([255, 0, 1]);
    let given = json!([{ "path": "/in/x.bin", "base64": bytes }]);
    let written = ["/out/a.txt", "25", "/out/empty", "0", "/tmp/x", "1"];
    let collect = ["/out/**", "/in/x.bin", "/nothing"];
    let told = agent.call("run_code", kit("write", &written, given, &collect));
    assert_eq!(
        told.facts["files"],
        json!([
            { "path": "/in/x.bin", "content_type": "application/octet-stream", "size": 3, "base64": bytes },
            { "path": "/out/a.txt", "content_type": "text/plain", "size": 25, "text": "abcdefghijabcdefghijabcde" },
            { "path": "/out/empty", "content_type": "application/octet-stream", "size": 0, "text": "" },
        ])
    );
    assert_eq!(
        told.facts["files_left_out"],
        json!([{ "path": "/nothing", "size": 0, "why": "there is no such file" }])
    );
    assert_eq!(told.facts["files_left_out_total"], 1);
    let said = "\nThe file \"/nothing\" (0 bytes) is not here: there is no such file.";
    assert!(told.blocks[0].ends_with(said), "{told:?}");
    // Each has a block of its own, as all that a guest wrote.
    assert_eq!(
        told.blocks[1..],
        [
            format!("file /in/x.bin (3 bytes, application/octet-stream, in base64):\n{bytes}"),
            "file /out/a.txt (25 bytes, text/plain):\nabcdefghijabcdefghijabcde".to_owned(),
            "file /out/empty (0 bytes, application/octet-stream):\n".to_owned(),
        ]
    );

    let told = agent.call(
        "run_code",
        kit("list", &["/"], Value::Null, &["/out/*.png"]),
    );
    assert_eq!(
        (&told.facts["files"], &told.facts["files_left_out_total"]),
        (&json!([]), &json!(0))
    );
    let said = "\nIt left no file that was to be returned.";
    assert!(told.blocks[0].ends_with(said), "{told:?}");
}

#[test]
fn files_take_no_more_room_than_output_may_and_what_is_over_is_named() {
    let kit_daemon = Kit::start(&["policy.max_collect_files=25"]);
    let mut agent = kit_daemon.agent(&["--max-output", "1KiB"]);
    // Exactly as much as there is room for, paths included, and a smaller one after a larger.
    let written = ["/out/a", "600", "/out/b", "413", "/out/c", "412"];
    let told = agent.call("run_code", kit("write", &written, Value::Null, &["/out/*"]));
    assert_eq!(paths(&told, "files"), ["/out/a", "/out/c"]);
    let why = "the files of an answer have at most 1024 bytes together";
    assert_eq!(
        told.facts["files_left_out"],
        json!([{ "path": "/out/b", "size": 413, "why": why }])
    );
    assert!(told.blocks[0].contains(why), "{told:?}");
    assert_eq!(told.blocks.len(), 3, "{told:?}");
    // An agent asks for what it wants.
    let told = agent.call("run_code", kit("write", &written, Value::Null, &["/out/b"]));
    assert_eq!(paths(&told, "files"), ["/out/b"]);
    assert_eq!(told.facts["files_left_out_total"], 0);

    // The daemon returns 25 of 30, of which one fits, and names the five that it does not.
    let names: Vec<_> = (10..40).map(|at| format!("/out/{at}")).collect();
    let written: Vec<_> = names.iter().flat_map(|name| [name, "1000"]).collect();
    let told = agent.call("run_code", kit("write", &written, Value::Null, &["/out/*"]));
    assert_eq!(paths(&told, "files"), ["/out/10"]);
    let named = paths(&told, "files_left_out");
    assert_eq!(
        (named.len(), named[0], named[15]),
        (16, "/out/11", "/out/26")
    );
    assert_eq!(told.facts["files_left_out_total"], 29);
    let said = "\n13 more files are not here.";
    assert!(told.blocks[0].ends_with(said), "{told:?}");
}

#[test]
fn files_that_cannot_be_are_refused_by_their_field() {
    let kit_daemon = Kit::start(&[]);
    let mut agent = kit_daemon.agent(&[]);
    let own = "ARGUMENT_INVALID";
    for (files, collect, reason, field) in [
        (json!("x"), json!(null), own, "files"),
        (
            json!({ "path": "/a", "text": "" }),
            json!(null),
            own,
            "files",
        ),
        (json!(["/a"]), json!(null), own, "files[0]"),
        (json!([{ "text": "a" }]), json!(null), own, "files[0].path"),
        (
            json!([{ "path": "/a", "text": "" }, { "path": 1, "text": "" }]),
            json!(null),
            own,
            "files[1].path",
        ),
        (json!([{ "path": "/a" }]), json!(null), own, "files[0]"),
        (
            json!([{ "path": "/a", "text": 1 }]),
            json!(null),
            own,
            "files[0].text",
        ),
        (
            json!([{ "path": "/a", "text": "", "base64": "" }]),
            json!(null),
            own,
            "files[0].base64",
        ),
        (
            json!([{ "path": "/a", "base64": "a!" }]),
            json!(null),
            own,
            "files[0].base64",
        ),
        (
            json!([{ "path": "/a", "text": "", "mode": 7 }]),
            json!(null),
            own,
            "files[0].mode",
        ),
        (json!(null), json!("/out/*"), own, "collect"),
        (json!(null), json!([1]), own, "collect"),
        // What a path may be, the daemon says.
        (
            json!([{ "path": "a", "text": "" }]),
            json!(null),
            "SPEC_INVALID",
            "spec.files[0].path",
        ),
        (
            json!(null),
            json!(["out/*"]),
            "SPEC_INVALID",
            "spec.collect[0]",
        ),
    ] {
        let arguments = json!({
            "language": "kit", "code": "list", "args": ["/"], "files": files, "collect": collect,
        });
        agent.refused("run_code", arguments).is(reason, field);
    }
}
