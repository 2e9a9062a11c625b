//! Standard input of `ringfence run`: as it comes, and no more of it than the guest reads.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::kit;
use crate::process::{Served, ringfence};

/// Prints a line of its input, which it reads a byte at a time, as a shell's `read` does.
const LINE: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 0) "\10\00\00\00\01\00\00\00")
    (func (export "_start") (loop $more
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
        (if (i32.eqz (i32.load (i32.const 8))) (then (return)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br_if $more (i32.ne (i32.load8_u (i32.const 16)) (i32.const 10))))))"#;

/// Copies its input to its output, in pieces of at most 32 KiB.
const CAT: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (func (export "_start") (loop $more
        (i32.store (i32.const 0) (i32.const 64))
        (i32.store (i32.const 4) (i32.const 32768))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
        (if (i32.eqz (i32.load (i32.const 4))) (then (return)))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $more))))"#;

/// Asks whether there is input, waits until there is, and ends without reading it.
const POLLS: &str = r#"(module
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\01")
    (func (export "_start")
        (drop (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"#;

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A folder with the guests in it, and files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, module) in [("line.wat", LINE), ("cat.wat", CAT), ("polls.wat", POLLS)] {
            folder.write(name, module.as_bytes());
        }
        folder
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// What a shell prints that runs `script` here, with `$run` for the command and `$kit` for the kit.
    #[track_caller]
    fn shell(&self, flags: &str, script: &str) -> Output {
        let output = self.script(flags, script).output().unwrap();
        assert_eq!(text(&output.stderr), "", "{flags} {script}");
        output
    }

    fn script(&self, flags: &str, script: &str) -> Command {
        let program = ringfence();
        let mut shell = Command::new("bash");
        shell
            .current_dir(self.0.path())
            .env("run", program.get_program())
            .env("kit", kit())
            .stdin(Stdio::null())
            .args([
                "-c",
                &format!("run() {{ \"$run\" run {flags} \"$@\"; }}\n{script}"),
            ]);
        shell
    }
}

/// The flags of a daemon of its own, and of one elsewhere.
fn servers(served: &Served) -> [String; 2] {
    [String::new(), format!("--server {}", served.addr)]
}

#[test]
fn a_loop_keeps_its_input_where_the_guest_reads_none() {
    let (folder, served) = (Folder::new(), Served::start(&[]));
    folder.write("list", b"a\nb\nc\n");
    let once = "while read -r f; do run $kit hello; echo \"$f\"; done";
    for flags in servers(&served) {
        for script in [
            format!("{once} < list"),
            format!("cat list | {once}"),
            format!("{once} <<< $'a\\nb\\nc'"),
            format!("{once} < <(cat list)"),
        ] {
            let output = folder.shell(&flags, &script);
            assert_eq!(
                text(&output.stdout),
                "hello\na\nhello\nb\nhello\nc\n",
                "{flags} {script}"
            );
        }
        let json = folder.shell(&format!("{flags} --output json"), &format!("{once} < list"));
        let (told, names): (Vec<&str>, Vec<&str>) = text(&json.stdout)
            .lines()
            .partition(|line| line.starts_with('{'));
        assert_eq!((told.len(), names), (3, vec!["a", "b", "c"]), "{flags}");
    }
    // One in the background reads nothing of it either.
    let flags = format!("--detach --server {}", served.addr);
    let detached = folder.shell(&flags, &format!("{once} < list"));
    assert_eq!(text(&detached.stdout).lines().count(), 6);
}

#[test]
fn what_a_guest_leaves_is_for_the_next() {
    let (folder, served) = (Folder::new(), Served::start(&[]));
    folder.write("list", b"first\nsecond\nthird\n");
    for flags in servers(&served) {
        for from in ["(cat list) |", ""] {
            let to = if from.is_empty() { "< list" } else { "" };
            for later in ["", "--no-stream"] {
                let script = format!("{from} (run {later} line.wat; run line.wat; cat) {to}");
                let output = folder.shell(&flags, &script);
                assert_eq!(
                    text(&output.stdout),
                    "first\nsecond\nthird\n",
                    "{flags} {script}"
                );
            }
        }
    }
    // Far more than the guest read was there.
    let mut large = b"first\n".to_vec();
    large.resize(3 << 20, b'x');
    folder.write("large", &large);
    let output = folder.shell("", "(run line.wat; cat) < large");
    assert!(output.stdout == large, "{} bytes", output.stdout.len());
    // One that only asks whether there is something takes a byte at the most, and of a file none.
    let output = folder.shell("", "(run polls.wat; cat) < list");
    assert_eq!(text(&output.stdout), "first\nsecond\nthird\n");
}

/// A run whose input stays open.
struct Open {
    child: Child,
    input: ChildStdin,
}

fn open(args: &[&str]) -> Open {
    let mut child = ringfence()
        .arg("run")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = child.stdin.take().unwrap();
    Open { child, input }
}

#[test]
fn the_guest_starts_while_its_input_is_open() {
    let (kit, served) = (kit(), Served::start(&[]));
    let server = ["--server", &served.addr];
    for flags in [
        &[][..],
        &["--stdin", "-"],
        &["-i"],
        &["-n"],
        &["--no-stream"],
        &["--output", "json"],
        &server,
        &[&server[..], &["--detach"]].concat(),
        &[&server[..], &["--idempotency-key", "k", "-n"]].concat(),
    ] {
        let Open { child, input } = open(&[flags, &[&kit, "exit", "3"]].concat());
        let output = child.wait_with_output().unwrap();
        let code = if flags.contains(&"--detach") { 0 } else { 3 };
        assert_eq!(output.status.code(), Some(code), "{flags:?} {output:?}");
        drop(input);
    }
    // Waiting for input is part of its time.
    for flags in [&[][..], &["--output", "json"], &server] {
        let flags = [flags, &["--timeout", "100ms", &kit, "echo"]].concat();
        let Open { child, input } = open(&flags);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(124), "{flags:?} {output:?}");
        drop(input);
    }
}

#[test]
fn input_reaches_the_guest_as_it_comes_and_then_ends() {
    let (kit, served) = (kit(), Served::start(&[]));
    for server in [&["--server", served.addr.as_str()][..], &[]] {
        let Open {
            mut child,
            mut input,
        } = open(&[server, &[&kit, "lines"]].concat());
        let mut out = BufReader::new(child.stdout.take().unwrap());
        for i in 0..5 {
            writeln!(input, "line {i}").unwrap();
            let mut answer = String::new();
            out.read_line(&mut answer).unwrap();
            assert_eq!(answer, format!("<line {i}>\n"));
        }
        drop(input);
        assert_eq!(child.wait().unwrap().code(), Some(0));
        for flags in [&["--no-stream"][..], &["--output", "json"]] {
            let Open { child, mut input } = open(&[server, flags, &[&kit, "lines"]].concat());
            input.write_all(b"one\ntwo").unwrap();
            drop(input);
            let output = child.wait_with_output().unwrap();
            let told = "<one>\n<two>\n";
            match flags {
                ["--no-stream"] => assert_eq!(text(&output.stdout), told),
                _ => {
                    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
                    assert_eq!(
                        (&json["stdout"], &json["stdin_bytes"]),
                        (&told.into(), &7.into())
                    );
                }
            }
        }
    }
}

#[test]
fn much_input_arrives_byte_for_byte_in_little_memory() {
    let folder = Folder::new();
    let cat = folder.0.path().join("cat.wat");
    let cat = cat.to_str().unwrap();
    const BYTES: usize = 24 << 20;
    let byte = |i: usize| u8::try_from((i ^ i >> 8 ^ i >> 16) & 0xff).unwrap();
    let Open {
        mut child,
        mut input,
    } = open(&["--timeout", "100s", cat]);
    let status = format!("/proc/{}/status", child.id());
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..BYTES).map(byte).collect();
        for piece in bytes.chunks(100_003) {
            input.write_all(piece).unwrap();
        }
    });
    let mut out = child.stdout.take().unwrap();
    let mut piece = vec![0; 1 << 16];
    let (mut at, mut peak) = (0, 0);
    loop {
        let n = out.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        assert!(piece[..n].iter().zip(at..).all(|(it, i)| *it == byte(i)));
        at += n;
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let rss = rss.and_then(|it| it.trim().strip_suffix(" kB")?.parse().ok());
        peak = rss.unwrap_or(0).max(peak);
    }
    writer.join().unwrap();
    assert_eq!((at, child.wait().unwrap().code()), (BYTES, Some(0)));
    assert!((1..64 << 10).contains(&peak), "{peak} KiB");
    // A guest that has enough ends it, however much there is.
    let output = folder.shell("", "yes | run line.wat; echo ${PIPESTATUS[1]}");
    assert_eq!(text(&output.stdout), "y\n0\n");
}

#[test]
fn no_input_is_the_end_of_file() {
    let (folder, served) = (Folder::new(), Served::start(&[]));
    for flags in servers(&served) {
        for script in [
            "run $kit echo < /dev/null",
            "run $kit echo <&-",
            "run $kit echo <<< ''",
            "true | run $kit echo",
            "echo unread | run -n $kit echo",
            "echo unread | run --no-stdin --output json $kit hello > /dev/null",
        ] {
            let output = folder.shell(&flags, &format!("{script}; echo $?"));
            assert_eq!(text(&output.stdout).trim_start(), "0\n", "{flags} {script}");
        }
    }
}

#[test]
fn input_that_cannot_be_read_is_told_where_it_is_wanted() {
    let (folder, served) = (Folder::new(), Served::start(&[]));
    for flags in servers(&served) {
        for (args, code, says) in [
            (
                "$kit echo",
                125,
                "ringfence: cannot read standard input: Is a directory (os error 21)\n",
            ),
            (
                "--output json $kit echo",
                125,
                "ringfence: cannot read standard input: Is a directory (os error 21)\n",
            ),
            ("$kit hello", 0, ""),
            (
                "--stdin nowhere $kit echo",
                125,
                "ringfence: cannot read nowhere: No such file or directory (os error 2)\n",
            ),
            (
                "--stdin . $kit hello",
                125,
                "ringfence: cannot read .: is a directory\n",
            ),
        ] {
            let output = folder.script(&flags, &format!("run {args} < ."));
            let output = { output }.output().unwrap();
            assert_eq!(
                (output.status.code(), text(&output.stderr)),
                (Some(code), says),
                "{flags} {args}"
            );
        }
    }
}

#[test]
fn a_terminal_is_read_line_by_line_to_its_end_of_file() {
    let program = ringfence();
    let line = format!(
        "exec '{}' run '{}' lines",
        program.get_program().to_str().unwrap(),
        kit()
    );
    let mut script = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = script.stdin.take().unwrap();
    let mut terminal = BufReader::new(script.stdout.take().unwrap());
    for i in 0..3 {
        writeln!(input, "line {i}").unwrap();
        let mut said = String::new();
        while !said.ends_with(&format!("<line {i}>\r\n")) {
            assert!(terminal.read_line(&mut said).unwrap() > 0, "{said:?}");
        }
    }
    input.write_all(b"\x04").unwrap();
    let mut rest = String::new();
    terminal.read_to_string(&mut rest).unwrap();
    assert_eq!(script.wait().unwrap().code(), Some(0), "{rest:?}");
}

#[test]
fn input_that_goes_as_it_comes_has_no_limit_and_the_other_tells_its_own() {
    let served = Served::start(&["--set", "policy.max_stdin=64KiB"]);
    let folder = Folder::new();
    let large = folder.write("large", &vec![b'x'; 300_000]);
    let cat = folder.0.path().join("cat.wat");
    let run = |flags: &[&str]| {
        let mut command = ringfence();
        command.args(["run", "--server", &served.addr, "--stdin"]);
        command.arg(&large).args(flags).arg(Path::new(&cat));
        command.output().unwrap()
    };
    let output = run(&[]);
    assert_eq!(
        (output.stdout.len(), output.status.code()),
        (300_000, Some(0))
    );
    for flags in [&["--idempotency-key", "k"][..], &["--detach"]] {
        let output = run(flags);
        assert_eq!(output.status.code(), Some(126), "{flags:?}");
        let told = text(&output.stderr);
        assert!(
            told.contains("LIMIT_ABOVE_MAXIMUM")
                && told.contains("spec.stdin")
                && told.contains("300000"),
            "{told}"
        );
    }
}

#[test]
fn a_key_has_the_whole_input() {
    let served = Served::start(&[]);
    let kit = kit();
    let keyed = |input: &[u8]| {
        let args = [
            "--server",
            &served.addr,
            "--idempotency-key",
            "k",
            &kit,
            "echo",
        ];
        let Open {
            child,
            input: mut to,
        } = open(&args);
        to.write_all(input).unwrap();
        drop(to);
        child.wait_with_output().unwrap()
    };
    assert_eq!(keyed(b"the same").stdout, b"the same");
    assert_eq!(keyed(b"the same").stdout, b"the same");
    let other = keyed(b"another");
    assert!(
        text(&other.stderr).contains("IDEMPOTENCY_CONFLICT"),
        "{other:?}"
    );
}

#[test]
fn modules_of_any_size_run_with_live_input() {
    let (folder, served) = (Folder::new(), Served::start(&[]));
    for size in [(1 << 20) - 300, (1 << 20) - 50, 1 << 20, (1 << 20) + 1] {
        let module = format!("{CAT}{}", " ".repeat(size - CAT.len()));
        folder.write("large.wat", module.as_bytes());
        let flags = format!("--server {}", served.addr);
        let output = folder.shell(&flags, "echo some | run large.wat");
        assert_eq!(text(&output.stdout), "some\n", "{size}");
    }
}
