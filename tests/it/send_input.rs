//! SendInput: standard input by calls of their own, repeated, out of turn, by several writers, and to a guest that does
//! not read.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CancelRunRequest, HealthRequest, InteractRequest, Outcome, RunSpec, RunState, RunStreamRequest,
    SendInputRequest, SendInputResponse, StdinEof, StreamEvent,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt;

use crate::harness::{
    Daemon, PATIENCE, Refused, Runs, SpecExt, Story, by_digest, channel, kit, kit_component,
    read_on, runs, spec, told_id, until_idle,
};
use crate::process::{Served, ringfence};

/// The most bytes of one call, and how many may wait for the guest.
const PIECE: usize = 64 << 10;

/// A run whose input stays open, long enough for any of these tests.
fn open(run: RunSpec) -> RunSpec {
    run.timeout(Duration::from_secs(100))
        .change(|spec| spec.open_stdin = true)
}

/// A caller that hears its run.
struct Heard {
    id: String,
    hear: Streaming<StreamEvent>,
    story: Story,
}

impl Heard {
    async fn start(daemon: &Daemon, run: RunSpec) -> Self {
        let request = RunStreamRequest { spec: Some(run) };
        let answer = daemon.client.clone().run_stream(request).await.unwrap();
        Self {
            id: told_id(answer.metadata()),
            hear: answer.into_inner(),
            story: Story::default(),
        }
    }

    /// Reads until all that was written to standard output is `expected`.
    async fn hears(&mut self, expected: &str) {
        while self.story.stdout != expected.as_bytes() {
            let so_far = &self.story.stdout;
            assert!(expected.as_bytes().starts_with(so_far), "{:?}", self.story);
            let event = self.hear.message().await.unwrap().unwrap();
            self.story.add(event);
        }
    }

    async fn end(self) -> Story {
        read_on(self.hear, self.story).await
    }

    /// Reads to its end, which is an exit with 0.
    async fn exits(self) -> Story {
        let story = self.end().await;
        assert_eq!(story.exit.as_ref().unwrap().exit_code, Some(0), "{story:?}");
        story
    }
}

/// A writer of a run's input, with a connection of its own.
#[derive(Clone)]
struct Writer {
    runs: Runs,
    id: String,
}

impl Writer {
    async fn to(addr: &str, id: &str) -> Self {
        Self {
            runs: runs(addr).await,
            id: id.to_owned(),
        }
    }

    async fn call(&self, offset: usize, data: &[u8], eof: bool) -> Result<Answer, Status> {
        let request = SendInputRequest {
            run_id: self.id.clone(),
            offset: offset as u64,
            data: Bytes::copy_from_slice(data),
            eof,
        };
        let answer = self.runs.clone().send_input(request).await?.into_inner();
        let SendInputResponse {
            accepted,
            next_offset,
            closed,
        } = answer;
        Ok((accepted, next_offset, closed))
    }

    /// A call that is not refused.
    #[track_caller]
    fn sends(&self, offset: usize, data: &[u8]) -> impl Future<Output = Answer> {
        let call = self.call(offset, data, false);
        async { call.await.expect("it is taken") }
    }

    /// A call that is refused.
    async fn refused(&self, offset: usize, data: &[u8], eof: bool) -> Refused {
        match self.call(offset, data, eof).await {
            Ok(answer) => panic!("not refused: {answer:?}"),
            Err(status) => Refused::new(&status),
        }
    }

    /// Asks where the next byte goes.
    async fn next(&self) -> usize {
        let (accepted, next, _) = self.call(0, b"", false).await.unwrap();
        assert_eq!(accepted, 0);
        usize::try_from(next).unwrap()
    }

    /// Closes the input.
    async fn close(&self) {
        let next = self.next().await;
        let answer = self.call(next, b"", true).await.unwrap();
        assert_eq!(answer, (0, next as u64, true));
    }

    /// Sends all of `data` from `offset` on, each byte again until it fits.
    async fn sends_all(&self, mut offset: usize, mut data: &[u8]) {
        while !data.is_empty() {
            let piece = &data[..data.len().min(PIECE)];
            match self.call(offset, piece, false).await {
                Ok((accepted, _, _)) => {
                    let accepted = usize::try_from(accepted).unwrap();
                    offset += accepted;
                    data = &data[accepted..];
                }
                Err(status) => {
                    let full = Refused::new(&status).is(Code::ResourceExhausted, "INPUT_FULL");
                    full.with("next_offset", offset);
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// How many bytes of a call the run has, where the next one goes, and whether the input is closed.
type Answer = (u64, u64, bool);

/// Bytes in which those near each other differ.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let byte = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(byte).collect()
}

/// What the kit's `sip` says at the end of this input.
fn sipped(input: &[u8]) -> String {
    let sum: u64 = input.iter().map(|byte| u64::from(*byte)).sum();
    format!("{} {sum}\n", input.len())
}

#[tokio::test]
async fn each_answer_comes_before_the_next_line_is_sent() {
    let daemon = Daemon::start().await;
    for run in [kit(&["lines"]), kit_component(&["lines"])] {
        // The spec's input comes first, and does not count.
        let mut run = Heard::start(&daemon, open(run.stdin("first\n"))).await;
        let writer = Writer::to(&daemon.addr, &run.id).await;
        let mut expected = "<first>\n".to_owned();
        run.hears(&expected).await;
        let mut sent = 0;
        for i in 0..50 {
            let line = format!("line {i}\n");
            let answer = writer.sends(sent, line.as_bytes()).await;
            sent += line.len();
            assert_eq!(answer, (line.len() as u64, sent as u64, false));
            expected.push_str(&format!("<line {i}>\n"));
            run.hears(&expected).await;
        }
        writer.close().await;
        let exit = run.exits().await.exit.unwrap();
        assert_eq!(exit.stdin_bytes, sent as u64 + 6);
    }
    until_idle(&daemon).await;
}

#[tokio::test]
async fn cpython_is_typed_to_by_calls() {
    let Some(wasm) = crate::cpython::python() else {
        return;
    };
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(wasm).await;
    let run = by_digest(&digest).args(&["python", "-i", "-q", "-u"]);
    let mut run = Heard::start(&daemon, open(run)).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    let (mut expected, mut sent) = (String::new(), 0);
    for (line, answer) in [
        ("x = 6 * 7", ""),
        ("print(x)", "42\n"),
        ("sum(range(10))", "45\n"),
        ("import json; json.dumps([x])", "'[42]'\n"),
        ("1 / 0", ""),
        ("'still here'", "'still here'\n"),
    ] {
        let line = format!("{line}\n");
        writer.sends(sent, line.as_bytes()).await;
        // A writer that does not know whether its call arrived makes it again.
        writer.sends(sent, line.as_bytes()).await;
        sent += line.len();
        expected.push_str(answer);
        run.hears(&expected).await;
    }
    writer.close().await;
    let stderr = String::from_utf8(run.exits().await.stderr).unwrap();
    assert!(stderr.contains("ZeroDivisionError"), "{stderr}");
    assert!(stderr.contains(">>> "), "its prompt: {stderr}");
}

#[tokio::test]
async fn repeated_and_overlapping_calls_append_nothing_twice() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["echo"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    assert_eq!(writer.sends(0, b"abc").await, (3, 3, false));
    assert_eq!(writer.sends(0, b"abc").await, (3, 3, false));
    assert_eq!(writer.sends(1, b"b").await, (1, 3, false));
    assert_eq!(writer.sends(2, b"cde").await, (3, 5, false));
    assert_eq!(writer.sends(0, b"abcdef").await, (6, 6, false));
    // Nothing, at any place that there is, asks.
    for offset in [0, 3, 6] {
        assert_eq!(writer.sends(offset, b"").await, (0, 6, false));
    }
    let last = writer.call(4, b"efg", true).await.unwrap();
    assert_eq!(last, (3, 7, true));
    assert_eq!(run.exits().await.stdout, b"abcdefg");
}

#[tokio::test]
async fn a_call_beyond_what_was_sent_is_refused_with_the_place_that_is_next() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["echo"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    let gap = async |offset: usize, next: usize| {
        for (data, eof) in [(&b"x"[..], false), (b"x", true), (b"", false), (b"", true)] {
            let refused = writer.refused(offset, data, eof).await;
            let refused = refused.is(Code::OutOfRange, "INPUT_GAP").at("offset");
            refused.with("asked", offset).with("expected", next);
        }
    };
    gap(1, 0).await;
    writer.sends(0, b"abc").await;
    gap(4, 3).await;
    gap(usize::MAX, 3).await;
    writer.close().await;
    assert_eq!(run.exits().await.stdout, b"abc");
}

#[tokio::test]
async fn other_bytes_for_the_same_place_are_a_conflict() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["echo"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    writer.sends(0, b"abc").await;
    for (offset, data, eof) in [
        (0, &b"abx"[..], false),
        (0, b"xbc", false),
        (2, b"xyz", true),
        // An end of file where input goes on.
        (0, b"ab", true),
        (2, b"", true),
    ] {
        let refused = writer.refused(offset, data, eof).await;
        let refused = refused.is(Code::Aborted, "INPUT_CONFLICT").at("offset");
        refused.with("expected", 3);
    }
    assert_eq!(writer.sends(0, b"abcd").await, (4, 4, false));
    writer.close().await;
    assert_eq!(run.exits().await.stdout, b"abcd");
}

#[tokio::test]
async fn after_the_end_of_file_nothing_new_is_taken() {
    let daemon = Daemon::start().await;
    // It sleeps, and does not end by itself with its input.
    let run = Heard::start(&daemon, open(kit(&["sleep", "60000"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    assert_eq!(writer.call(0, b"abc", true).await.unwrap(), (3, 3, true));
    // The same again is no fault, with its end and without.
    for (offset, data, eof) in [
        (0, &b"abc"[..], true),
        (0, b"abc", false),
        (2, b"c", true),
        (3, b"", true),
    ] {
        let answer = writer.call(offset, data, eof).await.unwrap();
        assert_eq!(answer, (data.len() as u64, 3, true));
    }
    for (offset, data, eof) in [(3, &b"d"[..], false), (0, b"abcd", true), (5, b"", false)] {
        let refused = writer.refused(offset, data, eof).await;
        let refused = refused.is(Code::FailedPrecondition, "INPUT_CLOSED");
        refused.with("next_offset", 3);
    }
    drop(run);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_run_that_has_ended_takes_nothing() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["lines"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    assert_eq!(writer.call(0, b"a\n", true).await.unwrap(), (2, 2, true));
    let id = run.id.clone();
    run.exits().await;
    daemon
        .until_run(&id, |run| run.state() == RunState::Ended)
        .await;
    // Not even what it took before.
    for (data, eof) in [(&b"a\n"[..], true), (b"", false), (b"", true)] {
        let refused = writer.refused(0, data, eof).await;
        let refused = refused.is(Code::FailedPrecondition, "RUN_ENDED");
        refused.with("run_id", &id);
    }
    // One whose input was never open has ended too.
    let ran = daemon.ran(kit(&["hello"])).await.result.run_id;
    let writer = Writer::to(&daemon.addr, &ran).await;
    let refused = writer.refused(0, b"a", false).await;
    refused.is(Code::FailedPrecondition, "RUN_ENDED");
}

#[tokio::test]
async fn a_run_without_open_input_and_one_that_is_not_there_take_nothing() {
    let daemon = Daemon::start().await;
    let run = kit(&["lines"]).stdin("a\n");
    let run = run.timeout(Duration::from_secs(100));
    // Its input is over, so that it is kept by its sleep.
    let sleeper = kit(&["sleep", "60000"]).timeout(Duration::from_secs(100));
    let sleeper = Heard::start(&daemon, sleeper).await;
    let writer = Writer::to(&daemon.addr, &sleeper.id).await;
    let refused = writer.refused(0, b"a", false).await;
    let refused = refused.is(Code::FailedPrecondition, "INPUT_CLOSED");
    assert!(
        refused.message.contains("open_stdin"),
        "{}",
        refused.message
    );
    assert_eq!(daemon.ran(run).await.exited(0).out(), "<a>\n");

    let nobodys = format!("{}.test", "0123456789abcdef".repeat(2));
    let elsewhere = format!("{}.other", "0123456789abcdef".repeat(2));
    for (id, code, reason) in [
        (nobodys.as_str(), Code::NotFound, "RUN_NOT_FOUND"),
        (&elsewhere, Code::FailedPrecondition, "RUN_ELSEWHERE"),
        ("", Code::InvalidArgument, "SPEC_INVALID"),
        ("x", Code::InvalidArgument, "SPEC_INVALID"),
    ] {
        let writer = Writer::to(&daemon.addr, id).await;
        let refused = writer.refused(0, b"a", false).await;
        refused.is(code, reason).at("run_id");
    }
    drop(sleeper);
}

#[tokio::test]
async fn a_run_of_another_tenant_is_not_there() {
    let (daemon, a, b, _dir) = crate::tenants::two("", "", &[]).await;
    let digest = a.loaded(crate::guests::kit()).await;
    let run = open(by_digest(&digest).args(&["kit", "echo"]));
    let (run_id, stream) = a.stream(run).await;
    let request = |offset, data: &'static [u8], eof| SendInputRequest {
        run_id: run_id.clone(),
        offset,
        data: data.into(),
        eof,
    };
    for (data, eof) in [(&b"theirs"[..], true), (b"", false)] {
        let answer = b.runs.clone().send_input(request(0, data, eof)).await;
        let refused = Refused::new(&answer.expect_err("it is another's"));
        refused.is(Code::NotFound, "RUN_NOT_FOUND").at("run_id");
    }
    let answer = a.runs.clone().send_input(request(0, b"mine", true)).await;
    assert_eq!(answer.unwrap().into_inner().accepted, 4);
    assert_eq!(crate::harness::read(stream).await.stdout, b"mine");
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_piece_has_64_kib_at_the_most() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["sip", "65536"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    let input = vec![1; 2 * PIECE];
    let refused = writer.refused(0, &input[..PIECE + 1], false).await;
    let refused = refused.is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM");
    refused
        .at("data")
        .with("asked", PIECE + 1)
        .with("allowed", PIECE);
    // The message around it has its own cap.
    let mut request = SendInputRequest {
        run_id: run.id.clone(),
        ..SendInputRequest::default()
    };
    for (length, code, reason) in [
        (PIECE + 1024, Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM"),
        (PIECE + 1025, Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
    ] {
        let mut data = length;
        while request.encoded_len() != length {
            request.data = input[..data].to_vec().into();
            data -= 1;
        }
        let answer = writer.runs.clone().send_input(request.clone()).await;
        Refused::new(&answer.expect_err("too large")).is(code, reason);
    }
    writer.sends_all(0, &input[..PIECE - 1]).await;
    writer.sends_all(PIECE - 1, &input[..PIECE]).await;
    writer.close().await;
    let told = sipped(&input[..2 * PIECE - 1]);
    assert_eq!(run.exits().await.stdout, told.as_bytes());
}

#[tokio::test]
async fn what_fits_is_taken_and_then_nothing_is() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["sleep", "60000"]))).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    let input = noise(2 * PIECE);
    let (most, all) = (PIECE as u64, &input[..]);
    let answer = writer.sends(0, &all[..PIECE - 1]).await;
    assert_eq!(answer, (most - 1, most - 1, false));
    // One byte fits, and the end has to wait for the others.
    let rest = &all[PIECE - 1..PIECE + 9];
    let answer = writer.call(PIECE - 1, rest, true).await.unwrap();
    assert_eq!(answer, (1, most, false));
    for (data, eof) in [(&all[PIECE..PIECE + 1], false), (&all[PIECE..], true)] {
        let status = writer.call(PIECE, data, eof).await.unwrap_err();
        let refused = Refused::new(&status);
        let refused = refused.is(Code::ResourceExhausted, "INPUT_FULL");
        refused.with("next_offset", PIECE);
        let retry = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_millis(100)));
    }
    // What it has already fits, and so does an end.
    assert_eq!(writer.sends(PIECE - 1, rest).await, (1, most, false));
    writer.close().await;
    drop(run);
    until_idle(&daemon).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_mebibytes_to_a_slow_guest_stay_bounded_and_arrive_once() {
    let daemon = Served::start(&["--set", "server.instance=test"]);
    let mut client = crate::harness::connect(&daemon.addr).await;
    let request = RunStreamRequest {
        spec: Some(open(kit(&["sip", "16384"]))),
    };
    let answer = client.run_stream(request).await.unwrap();
    let writer = Writer::to(&daemon.addr, &told_id(answer.metadata())).await;
    let input = noise(10 << 20);
    let before = daemon.memory("VmRSS");
    let mut most = before;
    for (i, piece) in input.chunks(PIECE).enumerate() {
        writer.sends_all(i * PIECE, piece).await;
        // As after an answer that was lost.
        let again = writer.call(i * PIECE, piece, false).await.unwrap();
        assert_eq!(again.0, piece.len() as u64);
        most = most.max(daemon.memory("VmRSS"));
    }
    writer.close().await;
    let story = crate::harness::read(answer.into_inner()).await;
    assert_eq!(String::from_utf8(story.stdout).unwrap(), sipped(&input));
    // What the connection and the run's 128 KiB hold, never the ten.
    assert!(
        most - before < 6 << 10,
        "{before} KiB before, {most} KiB at the most"
    );
}

#[tokio::test]
async fn input_that_is_open_is_reserved() {
    let daemon = Daemon::start().await;
    let reserved = async || {
        let mut client = daemon.client.clone();
        let health = client.health(HealthRequest {}).await.unwrap().into_inner();
        health.memory_reserved
    };
    // A call that has just ended may be reserved for a moment longer than it is seen.
    let comes_to = async |expected: u64| {
        let start = Instant::now();
        while let seen = reserved().await
            && seen != expected
        {
            let late = start.elapsed() > PATIENCE;
            assert!(!late, "{seen} bytes are reserved, not {expected}");
            tokio::task::yield_now().await;
        }
    };
    let sleeper = || kit(&["sleep", "60000"]).timeout(Duration::from_secs(100));
    let closed = Heard::start(&daemon, sleeper()).await;
    let without = reserved().await;
    let both = Heard::start(&daemon, open(sleeper())).await;
    comes_to(2 * without + (128 << 10)).await;
    drop(both);
    // What an interaction holds is charged to its request, unless the run may outlive that.
    for (run, more) in [(sleeper(), 0), (sleeper().detach(), 128 << 10)] {
        comes_to(without).await;
        let (_say, run) = interact(&daemon, run).await;
        comes_to(2 * without + more).await;
        let run_id = run.id.clone();
        let cancel = CancelRunRequest { run_id };
        daemon.runs().await.cancel_run(cancel).await.unwrap();
    }
    drop(closed);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_detached_run_is_typed_to_from_another_connection() {
    let daemon = Daemon::start().await;
    // The caller and its connection go away.
    let id = {
        let mut client = crate::harness::connect(&daemon.addr).await;
        let spec = Some(open(kit(&["lines"]).detach()));
        let answer = client.run_stream(RunStreamRequest { spec }).await.unwrap();
        told_id(answer.metadata())
    };
    let (mut expected, mut sent) = (String::new(), 0);
    let mut heard = Heard {
        hear: daemon.attach(&id, 0).await,
        id: id.clone(),
        story: Story::default(),
    };
    for i in 0..5 {
        // Each line by a connection of its own.
        let writer = Writer::to(&daemon.addr, &id).await;
        assert_eq!(writer.next().await, sent);
        let line = format!("{i}\n");
        sent += line.len();
        writer.sends(sent - line.len(), line.as_bytes()).await;
        expected.push_str(&format!("<{i}>\n"));
        heard.hears(&expected).await;
    }
    Writer::to(&daemon.addr, &id).await.close().await;
    heard.exits().await;
}

#[tokio::test]
async fn two_writers_in_turn_make_one_input() {
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["echo"]))).await;
    let writers = [
        Writer::to(&daemon.addr, &run.id).await,
        Writer::to(&daemon.addr, &run.id).await,
    ];
    let mut expected = String::new();
    for i in 0..40 {
        let (writer, other) = (&writers[i % 2], &writers[(i + 1) % 2]);
        let line = format!("{i} of {}\n", i % 2);
        let next = writer.next().await;
        assert_eq!(next, expected.len());
        writer.sends(next, line.as_bytes()).await;
        expected.push_str(&line);
        // The other one has not heard of it.
        let late = other.refused(next, b"late", false).await;
        let late = late.is(Code::Aborted, "INPUT_CONFLICT");
        late.with("expected", expected.len());
    }
    writers[0].close().await;
    assert_eq!(run.exits().await.stdout, expected.as_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_different_lines_at_once_lose_and_divide_none() {
    const WRITERS: usize = 4;
    const LINES: usize = 50;
    let daemon = Daemon::start().await;
    let run = Heard::start(&daemon, open(kit(&["echo"]))).await;
    let mut all = tokio::task::JoinSet::new();
    for name in 0..WRITERS {
        let writer = Writer::to(&daemon.addr, &run.id).await;
        all.spawn(async move {
            let mut refused = 0;
            for i in 0..LINES {
                // The first byte is this writer's own, so that another's is never taken for it.
                let line = format!("{name} says {i:03}\n");
                let mut next = writer.next().await;
                while let Err(status) = writer.call(next, line.as_bytes(), false).await {
                    let conflict = Refused::new(&status).is(Code::Aborted, "INPUT_CONFLICT");
                    next = conflict.metadata["expected"].parse().unwrap();
                    refused += 1;
                }
            }
            refused
        });
    }
    let refused: usize = all.join_all().await.into_iter().sum();
    Writer::to(&daemon.addr, &run.id).await.close().await;
    let output = String::from_utf8(run.exits().await.stdout).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines.len(), WRITERS * LINES, "{refused} were refused");
    for name in 0..WRITERS {
        let own = lines.iter().filter(|it| it.starts_with(&name.to_string()));
        let expected: Vec<String> = (0..LINES).map(|i| format!("{name} says {i:03}")).collect();
        assert_eq!(own.copied().collect::<Vec<_>>(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_of_the_same_text_at_once_make_it_once() {
    let daemon = Daemon::start().await;
    let text = noise(1 << 20);
    let limit = |run: RunSpec| run.resources(|r| r.memory_pages = Some(256));
    let run = Heard::start(&daemon, open(limit(kit(&["echo"])))).await;
    let mut all = tokio::task::JoinSet::new();
    for size in [1000, 4096, PIECE] {
        let (writer, text) = (Writer::to(&daemon.addr, &run.id).await, text.clone());
        all.spawn(async move {
            let mut offset = 0;
            while offset < text.len() {
                let end = (offset + size).min(text.len());
                let eof = end == text.len();
                match writer.call(offset, &text[offset..end], eof).await {
                    Ok((accepted, _, _)) => offset += usize::try_from(accepted).unwrap(),
                    // Another one is ahead by more than is kept of the input, or the guest has not
                    // read it yet.
                    Err(status) => match Refused::new(&status).reason.as_str() {
                        "INPUT_FULL" => tokio::task::yield_now().await,
                        "RUN_ENDED" => return,
                        other => panic!("{other}"),
                    },
                }
            }
        });
    }
    let story = run.exits().await;
    assert!(story.stdout == text, "{} bytes", story.stdout.len());
    all.join_all().await;
}

/// Starts an interaction, and returns the sender of its messages.
async fn interact(daemon: &Daemon, run: RunSpec) -> (mpsc::Sender<InteractRequest>, Heard) {
    let (say, said) = mpsc::channel(1);
    say.send(frame(Frame::Start(Box::new(run)))).await.unwrap();
    let mut runs = daemon.runs().await;
    let answer = runs.interact(ReceiverStream::new(said)).await.unwrap();
    let heard = Heard {
        id: told_id(answer.metadata()),
        hear: answer.into_inner(),
        story: Story::default(),
    };
    (say, heard)
}

fn frame(frame: Frame) -> InteractRequest {
    InteractRequest { frame: Some(frame) }
}

fn line(text: &'static str) -> InteractRequest {
    frame(Frame::Stdin(Bytes::from_static(text.as_bytes())))
}

#[tokio::test]
async fn calls_and_an_interaction_write_to_one_input() {
    let daemon = Daemon::start().await;
    let run = || kit(&["lines"]).timeout(Duration::from_secs(100));
    for run in [run(), open(run())] {
        let (say, mut run) = interact(&daemon, run).await;
        let writer = Writer::to(&daemon.addr, &run.id).await;
        say.send(line("said\n")).await.unwrap();
        run.hears("<said>\n").await;
        assert_eq!(writer.next().await, 5, "what was said counts");
        writer.sends(5, b"sent\n").await;
        run.hears("<said>\n<sent>\n").await;
        say.send(line("said\n")).await.unwrap();
        run.hears("<said>\n<sent>\n<said>\n").await;
        let late = writer.refused(10, b"sent\n", false).await;
        late.is(Code::Aborted, "INPUT_CONFLICT")
            .with("expected", 15);
        say.send(frame(Frame::StdinEof(StdinEof {}))).await.unwrap();
        run.exits().await;
    }
}

#[tokio::test]
async fn an_interaction_whose_input_another_closed_is_told_so() {
    let daemon = Daemon::start().await;
    let run = kit(&["sleep", "60000"]).timeout(Duration::from_secs(100));
    let (say, mut run) = interact(&daemon, run).await;
    Writer::to(&daemon.addr, &run.id).await.close().await;
    say.send(line("more\n")).await.unwrap();
    let error = loop {
        let event = run.hear.message().await.unwrap().expect("an error");
        if let Some(Event::Error(error)) = event.event {
            break error;
        }
    };
    assert_eq!(error.reason, "INPUT_CLOSED", "{}", error.message);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_caller_that_waits_for_room_hears_that_another_closed_the_input() {
    let daemon = Daemon::start().await;
    let run = kit(&["sleep", "60000"]).timeout(Duration::from_secs(100));
    let (say, mut run) = interact(&daemon, run).await;
    let writer = Writer::to(&daemon.addr, &run.id).await;
    for _ in 0..2 {
        let piece = Bytes::from(vec![0; PIECE]);
        say.send(frame(Frame::Stdin(piece))).await.unwrap();
    }
    while writer.next().await < PIECE {}
    writer.close().await;
    let error = loop {
        let event = run.hear.message().await.unwrap().expect("an error");
        if let Some(Event::Error(error)) = event.event {
            break error;
        }
    };
    assert_eq!(error.reason, "INPUT_CLOSED", "{}", error.message);
}

#[tokio::test]
async fn open_input_outlives_the_caller_of_an_interaction() {
    let daemon = Daemon::start().await;
    let run = || open(kit(&["lines"]).detach());
    // It leaves altogether, or only has no more to say.
    for leaves in [true, false] {
        let (say, mut run) = interact(&daemon, run()).await;
        say.send(line("said\n")).await.unwrap();
        run.hears("<said>\n").await;
        drop(say);
        let mut run = match leaves {
            false => run,
            true => {
                let id = run.id.clone();
                drop(run);
                Heard {
                    hear: daemon.attach(&id, 0).await,
                    id,
                    story: Story::default(),
                }
            }
        };
        let writer = Writer::to(&daemon.addr, &run.id).await;
        writer.sends(5, b"sent\n").await;
        run.hears("<said>\n<sent>\n").await;
        writer.close().await;
        run.exits().await;
    }
}

#[tokio::test]
async fn a_run_that_answers_at_its_end_is_found_by_its_label_and_typed_to() {
    let daemon = Daemon::start().await;
    let run = open(kit(&["lines"]).stdin("a\n").label("who", "typed"));
    let mut client = daemon.client.clone();
    let call = tokio::spawn(async move {
        let request = ringfence::api::proto::RunRequest { spec: Some(run) };
        client.run(request).await.unwrap().into_inner()
    });
    let id = loop {
        if let Some(run) = daemon.labelled("who", "typed").await.first() {
            break run.run_id.clone();
        }
    };
    let writer = Writer::to(&daemon.addr, &id).await;
    writer.sends_all(0, b"b\n").await;
    writer.close().await;
    let ran = crate::harness::Ran::new(call.await.unwrap()).exited(0);
    assert_eq!(ran.out(), "<a>\n<b>\n");
    assert_eq!(ran.result.stdin_bytes, 4);
}

#[tokio::test]
async fn nothing_fits_before_the_run_has_its_slot() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let run = open(kit(&["lines"]).stdin("a\n").detach().label("who", "waits"));
    let mut client = daemon.client.clone();
    let request = RunStreamRequest { spec: Some(run) };
    let call = tokio::spawn(async move { client.run_stream(request).await });
    crate::harness::until(&daemon, |_, queued| queued == 1).await;
    let id = daemon.labelled("who", "waits").await[0].run_id.clone();
    let writer = Writer::to(&daemon.addr, &id).await;
    let full = writer.refused(0, b"b\n", true).await;
    let full = full.is(Code::ResourceExhausted, "INPUT_FULL");
    assert!(full.with("next_offset", 0).retry);
    assert_eq!(writer.next().await, 0);
    drop(spinner);
    writer.sends_all(0, b"b\n").await;
    writer.close().await;
    let story = crate::harness::read(call.await.unwrap().unwrap().into_inner()).await;
    assert_eq!(story.stdout, b"<a>\n<b>\n");
}

#[tokio::test]
async fn a_guest_that_waits_for_open_input_ends_at_its_time_and_when_it_is_left_or_cancelled() {
    let daemon = Daemon::start().await;
    let short = open(kit(&["lines"])).timeout(Duration::from_millis(300));
    let story = Heard::start(&daemon, short.clone()).await.end().await;
    assert_eq!(story.outcome(), Outcome::TimedOut);
    daemon.ran(short).await.ended(Outcome::TimedOut);
    let run = Heard::start(&daemon, open(kit(&["lines"]))).await;
    let id = run.id.clone();
    drop(run);
    daemon
        .until_run(&id, |run| run.state() == RunState::Ended)
        .await;
    let run = Heard::start(&daemon, open(kit(&["lines"]).detach())).await;
    let request = CancelRunRequest {
        run_id: run.id.clone(),
    };
    let answer = daemon.runs().await.cancel_run(request).await.unwrap();
    assert!(answer.into_inner().cancelled);
    assert_eq!(run.end().await.outcome(), Outcome::Cancelled);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn open_input_needs_wasi() {
    let daemon = Daemon::start().await;
    let run = open(spec("(module (func (export \"_start\")))"))
        .security(|security| security.enable_wasi = Some(false));
    let refused = daemon.refused(run.clone()).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.open_stdin");
    let first = frame(Frame::Start(Box::new(run)));
    let mut runs = daemon.runs().await;
    let answer = runs.interact(tokio_stream::iter([first])).await;
    let refused = Refused::new(&answer.expect_err("it is refused"));
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("start.open_stdin");
}

// The command.

/// What `ringfence COMMAND --server ADDR ARGS` prints that has this standard input.
fn told(served: &Served, args: &[&str], input: &[u8]) -> Output {
    let mut command = ringfence();
    command
        .arg(args[0])
        .args(["--server", &served.addr])
        .args(&args[1..]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that is refused does not read it.
    let _ = stdin.write_all(input);
    drop(stdin);
    child.wait_with_output().unwrap()
}

#[track_caller]
fn prints(output: &Output, stdout: &str) {
    let told = (
        std::str::from_utf8(&output.stdout).unwrap(),
        std::str::from_utf8(&output.stderr).unwrap(),
        output.status.code(),
    );
    assert_eq!(told, (stdout, "", Some(0)));
}

#[track_caller]
fn is_refused(output: &Output, reason: &str) {
    let stderr = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(
        (&*output.stdout, output.status.code()),
        (&b""[..], Some(126))
    );
    let expected = format!("ringfence: refused: {reason}: ");
    assert!(stderr.starts_with(&expected), "{stderr}");
}

#[test]
fn a_run_is_started_and_typed_to_by_commands() {
    let served = Served::start(&[]);
    let kit = crate::cli::kit();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "of the file\n").unwrap();
    let file = file.path().to_str().unwrap();
    let started = told(
        &served,
        &[
            "run",
            "--detach",
            "--open-stdin",
            "--stdin",
            file,
            &kit,
            "lines",
        ],
        b"not for the guest",
    );
    let id = String::from_utf8(started.stdout).unwrap();
    let id = id.trim_end();
    assert_eq!(started.status.code(), Some(0), "{:?}", started.stderr);
    prints(&told(&served, &["send", id], b"a\n"), "2\n");
    prints(&told(&served, &["send", id], b""), "2\n");
    prints(
        &told(&served, &["send", id, "--offset", "0"], b"a\nb\n"),
        "4\n",
    );
    is_refused(
        &told(&served, &["send", id, "--offset", "2"], b"x\n"),
        "INPUT_CONFLICT",
    );
    is_refused(
        &told(&served, &["send", id, "--offset", "5"], b"x\n"),
        "INPUT_GAP",
    );
    prints(&told(&served, &["send", id, "--eof"], b"c"), "5\n");
    prints(
        &told(&served, &["attach", id], b""),
        "<of the file>\n<a>\n<b>\n<c>\n",
    );
    is_refused(&told(&served, &["send", id], b"x\n"), "RUN_ENDED");
    let nobodys = format!("{}.test", "0123456789abcdef".repeat(2));
    is_refused(&told(&served, &["send", &nobodys], b"x\n"), "RUN_ELSEWHERE");

    // One that is not detached prints its output, and reads none of its command's input.
    let mut command = ringfence();
    command.args(["run", "--server", &served.addr, "--open-stdin"]);
    command.args(["--label", "who=plain", &kit, "lines"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let kept = child.stdin.take();
    let id = loop {
        let listed = told(
            &served,
            &["ps", "--label", "who=plain", "--output", "json"],
            b"",
        );
        let listed = String::from_utf8(listed.stdout).unwrap();
        if let Some(run) = listed.lines().next() {
            let run: serde_json::Value = serde_json::from_str(run).unwrap();
            break run["run_id"].as_str().unwrap().to_owned();
        }
    };
    prints(&told(&served, &["send", "--eof", &id], b"typed\n"), "6\n");
    prints(&child.wait_with_output().unwrap(), "<typed>\n");
    drop(kept);
}

#[test]
fn a_run_whose_input_nobody_could_send_is_not_started() {
    let kit = crate::cli::kit();
    for args in [
        &["run", "--open-stdin", kit.as_str(), "lines"][..],
        &["run", "--server", "127.0.0.1:1", "--open-stdin", "-i", &kit],
    ] {
        let output = ringfence().args(args).output().unwrap();
        let stderr = std::str::from_utf8(&output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(stderr.contains("--open-stdin"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_killed_loses_and_repeats_nothing() {
    let served = Served::start(&["--set", "server.instance=test"]);
    let mut client = crate::harness::connect(&served.addr).await;
    let run = open(kit(&["sip", "1024"]).detach());
    let request = RunStreamRequest { spec: Some(run) };
    let answer = client.run_stream(request).await.unwrap();
    let id = told_id(answer.metadata());
    let writer = Writer::to(&served.addr, &id).await;
    let input = noise(2 << 20);
    let mut next = 0;
    // Of three writers, each is killed in the middle of what it sends.
    for killed in 1..4 {
        let mut command = ringfence();
        command.args(["send", "--server", &served.addr, &id, "--eof"]);
        command.args(["--offset", &next.to_string()]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let rest = input[next..].to_vec();
        // It ends with the command that reads it.
        let feeds = std::thread::spawn(move || stdin.write_all(&rest).is_err());
        let start = Instant::now();
        while writer.next().await < killed * 3 * PIECE {
            assert!(start.elapsed() < PATIENCE, "it sends nothing");
        }
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            feeds.join().unwrap(),
            "it was killed before it had read all"
        );
        next = writer.next().await;
        assert!(next < input.len(), "{next}");
    }
    let rest = &input[next - 100..];
    let again = (next - 100).to_string();
    let output = told(&served, &["send", &id, "--eof", "--offset", &again], rest);
    prints(&output, &format!("{}\n", input.len()));
    let mut runs = Runs::new(channel(&served.addr).await);
    let stream = crate::harness::attach(&mut runs, &id, 0).await;
    let story = crate::harness::read(stream).await;
    assert_eq!(String::from_utf8(story.stdout).unwrap(), sipped(&input));
}
