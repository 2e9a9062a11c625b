//! Interact: live input with backpressure, end of file, cancelling, and callers that break the rules.

use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::run_info::End;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    Cancel, CancelCause, CancelRunRequest, InteractRequest, ListRunsRequest, Outcome, RunError,
    RunSpec, RunState, StdinEof, StreamEvent, TellStdinDemand,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{
    Daemon, Refused, SpecExt, Story, by_digest, kit, kit_component, read, read_on, spec, until_idle,
};

/// A caller that talks to its run.
struct Talk {
    say: Option<mpsc::Sender<InteractRequest>>,
    hear: Streaming<StreamEvent>,
    story: Story,
}

fn frame(frame: Frame) -> InteractRequest {
    InteractRequest { frame: Some(frame) }
}

impl Talk {
    async fn start(daemon: &Daemon, run: RunSpec) -> Self {
        Self::begin(daemon, frame(Frame::Start(Box::new(run))))
            .await
            .unwrap()
    }

    async fn begin(daemon: &Daemon, first: InteractRequest) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(1);
        say.send(first).await.unwrap();
        let answer = daemon
            .runs()
            .await
            .interact(ReceiverStream::new(said))
            .await?;
        Ok(Self {
            say: Some(say),
            hear: answer.into_inner(),
            story: Story::default(),
        })
    }

    async fn say(&self, what: Frame) {
        self.say.as_ref().unwrap().send(frame(what)).await.unwrap();
    }

    async fn line(&self, text: &str) {
        self.say(Frame::Stdin(Bytes::from(format!("{text}\n"))))
            .await;
    }

    /// Reads until all that was written to standard output is `expected`.
    async fn hears(&mut self, expected: &str) {
        while self.story.stdout != expected.as_bytes() {
            assert!(
                expected.as_bytes().starts_with(&self.story.stdout),
                "{:?}",
                self.story
            );
            let event = self.hear.message().await.unwrap().unwrap();
            self.story.add(event);
        }
    }

    async fn end(self) -> Story {
        read_on(self.hear, self.story).await
    }

    /// Reads on to the error that ends it.
    async fn error(mut self) -> RunError {
        loop {
            let event = self
                .hear
                .message()
                .await
                .unwrap()
                .expect("a terminal event");
            if let Some(Event::Error(error)) = event.event {
                assert!(self.hear.message().await.unwrap().is_none());
                return error;
            }
        }
    }
}

#[tokio::test]
async fn each_answer_comes_before_the_next_line_is_sent() {
    let daemon = Daemon::start().await;
    for run in [kit(&["lines"]), kit_component(&["lines"])] {
        let mut talk = Talk::start(&daemon, run).await;
        let mut expected = String::new();
        for i in 0..50 {
            talk.line(&format!("line {i}")).await;
            expected.push_str(&format!("<line {i}>\n"));
            talk.hears(&expected).await;
        }
        talk.say(Frame::StdinEof(StdinEof {})).await;
        let story = talk.end().await;
        assert_eq!(story.exit.unwrap().exit_code, Some(0));
        assert_eq!(story.stdout, expected.as_bytes());
    }
}

#[tokio::test]
async fn the_specs_input_comes_first_and_closing_is_the_end_of_file() {
    let daemon = Daemon::start().await;
    let mut talk = Talk::start(&daemon, kit(&["lines"]).stdin("first\n")).await;
    talk.hears("<first>\n").await;
    talk.line("second").await;
    talk.hears("<first>\n<second>\n").await;
    talk.say = None;
    let story = talk.end().await;
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn cpython_talks_line_by_line() {
    let Some(wasm) = crate::cpython::python() else {
        return;
    };
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(wasm).await;
    let run = by_digest(&digest)
        .args(&["python", "-i", "-q", "-u"])
        .timeout(Duration::from_secs(100));
    let mut talk = Talk::start(&daemon, run).await;
    let mut expected = String::new();
    for (line, answer) in [
        ("x = 6 * 7", ""),
        ("print(x)", "42\n"),
        ("sum(range(10))", "45\n"),
        ("import json; json.dumps([x])", "'[42]'\n"),
        ("1 / 0", ""),
        ("'still here'", "'still here'\n"),
    ] {
        talk.line(line).await;
        expected.push_str(answer);
        talk.hears(&expected).await;
    }
    talk.say(Frame::StdinEof(StdinEof {})).await;
    let story = talk.end().await;
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
    let stderr = String::from_utf8(story.stderr).unwrap();
    assert!(stderr.contains("ZeroDivisionError"), "{stderr}");
    assert!(stderr.contains(">>> "), "its prompt: {stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_mebibytes_to_a_slow_guest_stay_bounded() {
    let daemon = crate::process::Served::start(&["--set", "server.instance=test"]);
    let channel = crate::harness::channel(&daemon.addr).await;
    let mut runs = crate::harness::Runs::new(channel);
    let (say, said) = mpsc::channel(1);
    let run = kit(&["sip", "16384"]).timeout(Duration::from_secs(100));
    say.send(frame(Frame::Start(Box::new(run)))).await.unwrap();
    let stream = runs
        .interact(ReceiverStream::new(said))
        .await
        .unwrap()
        .into_inner();
    let before = daemon.memory("VmRSS");
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = (10 << 20) / CHUNK;
    let mut most = before;
    let mut sum = 0u64;
    for i in 0..CHUNKS {
        let piece = vec![u8::try_from(i % 251).unwrap(); CHUNK];
        sum += piece.iter().map(|byte| u64::from(*byte)).sum::<u64>();
        say.send(frame(Frame::Stdin(piece.into()))).await.unwrap();
        most = most.max(daemon.memory("VmRSS"));
    }
    say.send(frame(Frame::StdinEof(StdinEof {}))).await.unwrap();
    let story = read(stream).await;
    let told = format!("{} {sum}\n", 10 << 20);
    assert_eq!(String::from_utf8(story.stdout).unwrap(), told);
    // What the connection and the pipe hold, never the ten.
    assert!(
        most - before < 6 << 10,
        "{before} KiB before, {most} KiB at the most"
    );
}

#[tokio::test]
async fn cancel_ends_it() {
    let daemon = Daemon::start().await;
    let mut talk = Talk::start(&daemon, kit(&["lines"]).stdin("a\n")).await;
    talk.hears("<a>\n").await;
    talk.say(Frame::Cancel(Cancel {})).await;
    let story = talk.end().await;
    let exit = story.exit.unwrap();
    assert_eq!(exit.outcome(), Outcome::Cancelled);
    assert_eq!(exit.cancel_cause(), CancelCause::CancelRpc);
}

#[tokio::test]
async fn one_that_waits_for_input_can_be_cancelled_timed_out_and_left() {
    let daemon = Daemon::start().await;
    let waits = || {
        kit(&["lines"])
            .stdin("a\n")
            .timeout(Duration::from_secs(100))
    };

    let mut talk = Talk::start(&daemon, waits()).await;
    talk.hears("<a>\n").await;
    let run_id = talk.story.events[0].run_id.clone();
    let answer = daemon
        .runs()
        .await
        .cancel_run(CancelRunRequest { run_id })
        .await;
    assert!(answer.unwrap().into_inner().cancelled);
    assert_eq!(daemon.probe.pooled_instances(), 0);
    let exit = talk.end().await.exit.unwrap();
    assert_eq!(exit.cancel_cause(), CancelCause::CancelRpc);

    let short = waits().timeout(Duration::from_millis(300));
    let story = Talk::start(&daemon, short).await.end().await;
    assert_eq!(story.outcome(), Outcome::TimedOut);

    let mut talk = Talk::start(&daemon, waits()).await;
    talk.hears("<a>\n").await;
    let id = talk.story.events[0].run_id.clone();
    drop(talk);
    let ended = daemon
        .until_run(&id, |run| run.state() == RunState::Ended)
        .await;
    let Some(End::Result(result)) = ended.end else {
        panic!("{:?}", ended.end)
    };
    assert_eq!(result.cancel_cause(), CancelCause::CallerGone);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_detached_one_sees_the_end_of_file_when_its_caller_leaves() {
    let daemon = Daemon::start().await;
    let mut talk = Talk::start(&daemon, kit(&["lines"]).detach()).await;
    talk.line("a").await;
    talk.hears("<a>\n").await;
    let id = talk.story.events[0].run_id.clone();
    drop(talk);
    let story = read(daemon.attach(&id, 0).await).await;
    assert_eq!(story.stdout, b"<a>\n");
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn it_begins_with_a_start() {
    let daemon = Daemon::start().await;
    for first in [
        frame(Frame::Stdin(Bytes::from_static(b"x"))),
        frame(Frame::StdinEof(StdinEof {})),
        frame(Frame::Cancel(Cancel {})),
        InteractRequest { frame: None },
    ] {
        let status = Talk::begin(&daemon, first).await.err().expect("refused");
        Refused::new(&status).is(Code::InvalidArgument, "MALFORMED_REQUEST");
        assert!(status.metadata().contains_key("ringfence-run-id"));
    }
    let page = daemon.list(ListRunsRequest::default()).await;
    assert_eq!(page.runs.len(), 4, "a record each");
}

#[tokio::test]
async fn a_start_is_refused_by_the_names_that_it_has_here() {
    let daemon = Daemon::start().await;
    let begin = |run: RunSpec| async {
        let first = frame(Frame::Start(Box::new(run)));
        let status = Talk::begin(&daemon, first).await.err().expect("refused");
        Refused::new(&status)
    };
    for (run, reason, field) in [
        (
            kit(&["lines"]).key("k"),
            "SPEC_INVALID",
            "start.idempotency_key",
        ),
        (kit(&["lines"]).env(&["x"]), "SPEC_INVALID", "start.env[0]"),
        (
            spec("(module (func (export \"_start\")))").security(|s| s.enable_wasi = Some(false)),
            "SPEC_INVALID",
            "start.security.enable_wasi",
        ),
        (
            kit(&["lines"]).timeout(Duration::from_secs(9999)),
            "LIMIT_ABOVE_MAXIMUM",
            "start.timeout",
        ),
    ] {
        let refused = begin(run).await.is(Code::InvalidArgument, reason).at(field);
        assert!(refused.message.starts_with(field), "{}", refused.message);
    }
}

/// What happens to a run whose caller says `frames`, the last of which it may not say.
async fn a_broken_rule_ends_it(frames: Vec<Frame>, reason: &str, says: &str) {
    let daemon = Daemon::start().await;
    let mut talk = Talk::start(&daemon, kit(&["lines"]).stdin("a\n")).await;
    talk.hears("<a>\n").await;
    let id = talk.story.events[0].run_id.clone();
    let next = talk.story.events.len();
    for said in frames {
        talk.say(said).await;
    }
    let error = talk.error().await;
    assert_eq!(error.reason, reason);
    assert!(error.message.contains(says), "{}", error.message);
    // Its run ends as if it had left, for whoever else looks at it.
    let story = read(daemon.attach(&id, 0).await).await;
    assert!(story.events.len() >= next);
    assert_eq!(story.exit.unwrap().cancel_cause(), CancelCause::CallerGone);
}

cases!(a_broken_rule_ends_it:
    a_second_start(
        vec![Frame::Start(Box::default())],
        "MALFORMED_REQUEST",
        "one `start`",
    ),
    an_empty_piece(vec![Frame::Stdin(Bytes::new())], "SPEC_INVALID", "stdin: is empty"),
    a_piece_that_is_one_too_long(
        vec![Frame::Stdin(vec![0; (64 << 10) + 1].into())],
        "LIMIT_ABOVE_MAXIMUM",
        "above the maximum of 65536",
    ),
    a_message_that_is_far_too_long(
        vec![Frame::Stdin(vec![0; 128 << 10].into())],
        "MESSAGE_TOO_LARGE",
        "above the maximum",
    ),
);

#[tokio::test]
async fn input_after_its_end_is_a_broken_rule_too() {
    let daemon = Daemon::start().await;
    // It sleeps, and does not end by itself with its input.
    let talk = Talk::start(&daemon, kit(&["sleep", "60000"])).await;
    talk.say(Frame::StdinEof(StdinEof {})).await;
    talk.say(Frame::Stdin(Bytes::from_static(b"x"))).await;
    let error = talk.error().await;
    assert_eq!(error.reason, "MALFORMED_REQUEST");
    assert!(
        error.message.contains("after `stdin_eof`"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn pieces_of_the_largest_size_are_taken() {
    let daemon = Daemon::start().await;
    let talk = Talk::start(&daemon, kit(&["sip", "65536"])).await;
    for size in [(64 << 10) - 1, 64 << 10, 1] {
        talk.say(Frame::Stdin(vec![1; size].into())).await;
    }
    talk.say(Frame::StdinEof(StdinEof {})).await;
    let story = talk.end().await;
    assert_eq!(story.stdout, b"131072 131072\n");
}

#[tokio::test]
async fn silence_is_no_fault() {
    let daemon = Daemon::with(&[("server.request_stall", "1s")]).await;
    let mut talk = Talk::start(&daemon, kit(&["lines"])).await;
    // A guest that sleeps for longer than a request may stall tells when that is over.
    let story = read(daemon.stream(kit(&["sleep", "2500"])).await.unwrap()).await;
    assert_eq!(story.outcome(), Outcome::Exited);
    talk.line("still there").await;
    talk.hears("<still there>\n").await;
    talk.say = None;
    assert_eq!(talk.end().await.exit.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn cancel_is_seen_behind_input_that_nobody_reads() {
    let daemon = Daemon::start().await;
    let run = kit(&["sleep", "3600000"]).timeout(Duration::from_secs(100));
    let talk = Talk::start(&daemon, run).await;
    for _ in 0..2 {
        talk.say(Frame::Stdin(vec![0; 64 << 10].into())).await;
    }
    talk.say(Frame::Cancel(Cancel {})).await;
    let exit = talk.end().await.exit.unwrap();
    assert_eq!(exit.cancel_cause(), CancelCause::CancelRpc);
}

#[tokio::test]
async fn a_detached_one_whose_caller_leaves_before_its_start_has_no_input() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let (say, said) = mpsc::channel(1);
    let run = kit(&["lines"]).stdin("a\n").detach().label("who", "left");
    let run = run.timeout(Duration::from_secs(100));
    say.send(frame(Frame::Start(Box::new(run)))).await.unwrap();
    let mut runs = daemon.runs().await;
    let call = tokio::spawn(async move { runs.interact(ReceiverStream::new(said)).await });
    let id = crate::harness::leave_the_queue(&daemon, call, ("who", "left")).await;
    drop(spinner);
    let story = read(daemon.attach(&id, 0).await).await;
    assert_eq!(story.stdout, b"<a>\n");
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tiny_pieces_take_no_more_than_a_few_large_ones() {
    let daemon = crate::process::Served::start(&[]);
    let mut runs = crate::harness::runs(&daemon.addr).await;
    let (say, said) = mpsc::channel(1);
    let run = kit(&["sleep", "60000"]).timeout(Duration::from_secs(100));
    say.send(frame(Frame::Start(Box::new(run)))).await.unwrap();
    let stream = runs.interact(ReceiverStream::new(said)).await.unwrap();
    let before = daemon.memory("VmRSS");
    // As many as the guest may be behind.
    for _ in 0..64 << 10 {
        let piece = Bytes::from_static(b"x");
        say.send(frame(Frame::Stdin(piece))).await.unwrap();
    }
    let after = daemon.memory("VmRSS");
    assert!(
        after - before < 3 << 10,
        "{before} KiB before, {after} KiB after"
    );
    drop(stream);
}

/// How a stream whose start, or whose second message, has `length` bytes is answered.
async fn of_length(start: usize, second: Option<usize>) -> String {
    let daemon = Daemon::start().await;
    let fill = |mut message: InteractRequest, length: usize| {
        let bytes = |message: &mut InteractRequest, n: usize| match &mut message.frame {
            Some(Frame::Start(run)) => run.stdin = vec![b'x'; n].into(),
            Some(Frame::Stdin(stdin)) => *stdin = vec![b'x'; n].into(),
            other => panic!("{other:?}"),
        };
        let mut n = length;
        while message.encoded_len() != length {
            bytes(&mut message, n);
            n -= 1;
        }
        message
    };
    let first = frame(Frame::Start(Box::new(kit(&["sleep", "60000"]))));
    let first = match start {
        0 => first,
        length => fill(first, length),
    };
    match Talk::begin(&daemon, first).await {
        Err(status) => Refused::new(&status).reason,
        Ok(talk) => match second {
            None => "started".to_owned(),
            Some(length) => {
                let second = fill(frame(Frame::Stdin(Bytes::new())), length);
                talk.say(second.frame.unwrap()).await;
                talk.error().await.reason
            }
        },
    }
}

#[tokio::test]
async fn messages_are_capped_each_at_its_place() {
    const START: usize = 1 << 20;
    const LATER: usize = (64 << 10) + 1024;
    for (start, second, expected) in [
        (START - 1, None, "started"),
        (START, None, "started"),
        (START + 1, None, "MESSAGE_TOO_LARGE"),
        // The input in it is too long, the message is not.
        (0, Some(LATER), "LIMIT_ABOVE_MAXIMUM"),
        (0, Some(LATER + 1), "MESSAGE_TOO_LARGE"),
    ] {
        assert_eq!(
            of_length(start, second).await,
            expected,
            "{start} {second:?}"
        );
    }
}

#[tokio::test]
async fn what_it_may_hold_is_charged_before_it_starts() {
    // Room for three interactions, and for starts that are no larger.
    let daemon = Daemon::with(&[
        ("server.inflight_request_bytes", "2MiB"),
        ("server.max_message", "512KiB"),
        ("compile.max_module", "512KiB"),
        ("policy.max_stdin", "64KiB"),
        ("policy.max_args", "16KiB"),
        ("policy.max_env", "16KiB"),
    ])
    .await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = || by_digest(&digest).args(&["kit", "lines"]);
    let mut held = Vec::new();
    let refused = loop {
        match Talk::begin(&daemon, frame(Frame::Start(Box::new(run())))).await {
            Ok(talk) => held.push(talk),
            Err(status) => break Refused::new(&status),
        }
    };
    assert!(refused.is(Code::ResourceExhausted, "QUEUE_FULL").retry);
    assert_eq!(held.len(), 3, "half a MiB each, and their starts");
    // Those that go on are not disturbed.
    let mut talk = held.pop().unwrap();
    talk.line("a").await;
    talk.hears("<a>\n").await;
}

/// A mount is what was opened, whatever becomes of its name.
#[tokio::test]
async fn a_mount_that_is_swapped_while_the_guest_has_it_stays_what_it_was() {
    let dir = tempfile::TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, words) in [("data", "mine"), ("other", "another's")] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join("file"), words).unwrap();
    }
    let mounts = format!("[{{ host = {:?}, access = \"read\" }}]", at("data"));
    let daemon = Daemon::with(&[("policy.mounts", &mounts)]).await;
    for later in [kit, kit_component] {
        let run = later(&["later", "/data/file"]).mount(at("data"), "/data", true);
        let mut talk = Talk::start(&daemon, run.clone()).await;
        talk.hears("ready\n").await;
        // Another folder of that name, then a link of that name to one that is not granted.
        std::fs::rename(at("data"), at("gone")).unwrap();
        std::fs::rename(at("other"), at("data")).unwrap();
        talk.line("swapped").await;
        talk.hears("ready\nswapped: mine\n").await;
        std::fs::rename(at("data"), at("other")).unwrap();
        std::os::unix::fs::symlink(at("other"), at("data")).unwrap();
        talk.line("linked").await;
        talk.hears("ready\nswapped: mine\nlinked: mine\n").await;
        // Nor does one that starts now get there: a grant is the folder that was there when the daemon started.
        let ran = daemon.ran(later(&["read", "/data/file"]).mount(at("data"), "/data", true));
        assert_eq!(ran.await.exited(0).out(), "mine");
        talk.say(Frame::StdinEof(StdinEof {})).await;
        assert_eq!(talk.end().await.exit.unwrap().exit_code, Some(0));
        std::fs::remove_file(at("data")).unwrap();
        std::fs::rename(at("gone"), at("data")).unwrap();
    }
}

/// Reads on to the next time that the guest waits for input: how much it has read, and how much it would take.
async fn demand(talk: &mut Talk) -> (u64, u32) {
    loop {
        let event = talk.hear.message().await.unwrap().unwrap();
        let Some(Event::StdinDemand(demand)) = event.event else {
            talk.story.add(event);
            continue;
        };
        // It takes no number of its own.
        assert_eq!(event.seq + 1, talk.story.events.len() as u64);
        return (demand.read_bytes, demand.wanted_bytes);
    }
}

#[tokio::test]
async fn a_caller_that_asks_is_told_when_the_guest_waits() {
    let daemon = Daemon::start().await;
    for run in [kit(&["sip", "100"]), kit_component(&["sip", "100"])] {
        let mut talk = Talk::start(&daemon, run).await;
        talk.say(Frame::TellStdinDemand(TellStdinDemand {})).await;
        let (read, wanted) = demand(&mut talk).await;
        assert_eq!(read, 0);
        assert!(wanted >= 100, "{wanted}: as its library's buffer has it");
        // Once for each piece, however small.
        for read in 1..4 {
            talk.say(Frame::Stdin(Bytes::from_static(b"\x01"))).await;
            assert_eq!(demand(&mut talk).await.0, read);
        }
        talk.say(Frame::StdinEof(StdinEof {})).await;
        let story = talk.end().await;
        assert_eq!(story.stdout, b"3 3\n");
        assert_eq!(story.exit.unwrap().stdin_bytes, 3);
    }
}

#[tokio::test]
async fn what_was_written_before_the_guest_waits_comes_before_that() {
    let daemon = Daemon::start().await;
    let mut talk = Talk::start(&daemon, kit(&["lines"]).stdin("a\nb\n")).await;
    talk.say(Frame::TellStdinDemand(TellStdinDemand {})).await;
    assert_eq!(demand(&mut talk).await.0, 4);
    assert_eq!(talk.story.stdout, b"<a>\n<b>\n");
    talk.say = None;
    let exit = talk.end().await.exit.unwrap();
    assert_eq!((exit.exit_code, exit.stdin_bytes), (Some(0), 4));
}

#[tokio::test]
async fn input_that_is_left_is_not_counted_as_read() {
    let daemon = Daemon::start().await;
    let ran = daemon.ran(kit(&["hello"]).stdin("unread")).await;
    assert_eq!(ran.exited(0).result.stdin_bytes, 0);
    let ran = daemon.ran(kit(&["echo"]).stdin("read")).await;
    assert_eq!(ran.exited(0).result.stdin_bytes, 4);
}
