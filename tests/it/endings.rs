//! Whatever happens at the same time, every stream of a run has exactly one terminal event, and all say the same.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    Cancel, CancelCause, CancelRunRequest, InteractRequest, Outcome, RunResult, RunSpec, StdinEof,
    StreamEvent,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::harness::{Daemon, Runs, SpecExt, by_digest};

/// What a guest does.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Exits,
    Writes(u32),
    Spins,
    Sleeps,
    /// Is talked to, and ends with its input.
    Listens,
}

/// What else happens to it.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Left,
    Cancelled,
    TimesOut,
    Detached,
    Alone,
}

#[derive(Clone, Debug)]
struct Plan {
    runs: Vec<(Guest, Fate, u64)>,
    drained_after: Option<u64>,
}

fn plans() -> impl Strategy<Value = Plan> {
    let guest = prop_oneof![
        Just(Guest::Exits),
        (0..400_000u32).prop_map(Guest::Writes),
        Just(Guest::Spins),
        Just(Guest::Sleeps),
        Just(Guest::Listens),
    ];
    let fate = prop_oneof![
        Just(Fate::Left),
        Just(Fate::Cancelled),
        Just(Fate::TimesOut),
        Just(Fate::Detached),
        Just(Fate::Alone),
    ];
    let runs = prop::collection::vec((guest, fate, 0..40u64), 1..8);
    (runs, prop::option::of(0..60u64)).prop_map(|(runs, drained_after)| Plan {
        runs,
        drained_after,
    })
}

/// Reads a stream on from event `next` to its end: its terminal event, or none where a drain broke the connection.
async fn ending(
    mut stream: Streaming<StreamEvent>,
    mut next: u64,
    drained: bool,
) -> Result<Option<RunResult>, String> {
    let mut ends = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(event)) => {
                if !ends.is_empty() {
                    return Err(format!("after the end: {event:?}"));
                }
                match event.event {
                    Some(Event::Lost(lost)) => next = lost.first_seq + lost.count,
                    Some(_) if event.seq != next => {
                        return Err(format!("event {} where {next} was due", event.seq));
                    }
                    Some(Event::Exit(result)) => ends.push(Some(*result)),
                    Some(Event::Error(_)) => ends.push(None),
                    Some(_) => next += 1,
                    None => return Err("an event of nothing".to_owned()),
                }
            }
            Ok(None) => {
                let end = ends.pop();
                return end.ok_or_else(|| "it closed without a terminal event".to_owned());
            }
            // The connection broke: that is the one excuse, where there is a reason for it.
            Err(_) if drained => return Ok(None),
            Err(status) => return Err(format!("it broke: {status:?}")),
        }
    }
}

fn spec(digest: &str, guest: Guest, fate: Fate, after: u64) -> RunSpec {
    let bytes = match guest {
        Guest::Writes(bytes) => bytes.to_string(),
        Guest::Exits | Guest::Spins | Guest::Sleeps | Guest::Listens => String::new(),
    };
    let args: &[&str] = match guest {
        Guest::Exits => &["kit", "hello"],
        Guest::Writes(_) => &["kit", "flood", &bytes],
        Guest::Spins => &["kit", "spin", "x"],
        Guest::Sleeps => &["kit", "sleep", "60000"],
        Guest::Listens => &["kit", "lines"],
    };
    let run = by_digest(digest).args(args);
    match fate {
        Fate::TimesOut => run.timeout(Duration::from_millis(1 + after)),
        Fate::Detached => run.detach().timeout(Duration::from_millis(200)),
        Fate::Left | Fate::Cancelled | Fate::Alone => run.timeout(Duration::from_millis(500)),
    }
}

type Said = mpsc::Sender<InteractRequest>;

/// Starts a run, one that listens with some input, and the end of it where it is left alone.
async fn start(
    daemon: &Daemon,
    mut runs: Runs,
    run: RunSpec,
    (guest, fate): (Guest, Fate),
) -> Result<(Streaming<StreamEvent>, Option<Said>), Status> {
    if !matches!(guest, Guest::Listens) {
        return Ok((daemon.stream(run).await?, None));
    }
    let (say, said) = mpsc::channel(8);
    let mut frames = vec![
        Frame::Start(Box::new(run)),
        Frame::Stdin(Bytes::from_static(b"a\nb\n")),
    ];
    match fate {
        Fate::Alone => frames.push(Frame::StdinEof(StdinEof {})),
        Fate::Cancelled => frames.push(Frame::Cancel(Cancel {})),
        Fate::Left | Fate::TimesOut | Fate::Detached => {}
    }
    for frame in frames {
        let message = InteractRequest { frame: Some(frame) };
        say.send(message).await.unwrap();
    }
    let answer = runs.interact(ReceiverStream::new(said)).await?;
    Ok((answer.into_inner(), Some(say)))
}

/// Lives through one run of a plan.
async fn one(
    daemon: &Daemon,
    mut runs: Runs,
    digest: &str,
    (guest, fate, after): (Guest, Fate, u64),
    drained: bool,
) -> Result<(), String> {
    let run = spec(digest, guest, fate, after);
    // Refused by a drain, before anything was sent, or cut by it: nothing else may keep it from its start.
    let unless_drained = |what: &str| match drained {
        true => Ok(()),
        false => Err(what.to_owned()),
    };
    let Ok((mut stream, said)) = start(daemon, runs.clone(), run, (guest, fate)).await else {
        return unless_drained("refused");
    };
    let Ok(Some(started)) = stream.message().await else {
        return unless_drained("no first event");
    };
    let run_id = started.run_id.clone();
    let request = ringfence::api::proto::AttachRunRequest {
        run_id: run_id.clone(),
        from_seq: 0,
    };
    let Ok(viewer) = runs.attach_run(request).await else {
        return unless_drained("not attached");
    };
    let viewer = tokio::spawn(ending(viewer.into_inner(), 0, drained));
    tokio::time::sleep(Duration::from_millis(after)).await;
    let caller = match fate {
        Fate::Left | Fate::Detached => {
            drop((stream, said));
            None
        }
        Fate::Cancelled => {
            let _ = runs.cancel_run(CancelRunRequest { run_id }).await;
            Some(stream)
        }
        Fate::TimesOut | Fate::Alone => Some(stream),
    };
    let seen = viewer.await.map_err(|error| error.to_string())??;
    let told = match caller {
        // The first event was read above.
        Some(caller) => ending(caller, 1, drained).await?,
        None => None,
    };
    if let (Some(told), Some(seen)) = (&told, &seen)
        && told != seen
    {
        return Err(format!("the caller was told {told:?}, a viewer {seen:?}"));
    }
    let Some(end) = seen.or(told) else {
        return Ok(());
    };
    let possible = match end.outcome() {
        Outcome::Exited => {
            matches!(guest, Guest::Exits | Guest::Writes(_) | Guest::Listens)
                && end.exit_code == Some(0)
        }
        Outcome::TimedOut => end.exit_code.is_none(),
        Outcome::Cancelled => match end.cancel_cause() {
            CancelCause::CancelRpc => matches!(fate, Fate::Cancelled),
            CancelCause::CallerGone => matches!(fate, Fate::Left),
            CancelCause::Draining => true,
            CancelCause::ReaderStalled | CancelCause::Unspecified => false,
        },
        Outcome::Unspecified
        | Outcome::Trapped
        | Outcome::MemoryExceeded
        | Outcome::FuelExhausted
        | Outcome::StackOverflow
        | Outcome::OutputExceeded => false,
    };
    if possible {
        Ok(())
    } else {
        Err(format!("{guest:?} with {fate:?}: {end:?}"))
    }
}

async fn live(plan: Plan) -> Result<(), String> {
    let mut daemon =
        Daemon::with(&[("server.drain_grace", "0s"), ("runs.log_bytes", "128KiB")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let runs = daemon.runs().await;
    let stop = daemon.take_stop();
    let (all, stop) = tokio::join!(
        futures_util::future::join_all(plan.runs.iter().map(|run| one(
            &daemon,
            runs.clone(),
            &digest,
            *run,
            plan.drained_after.is_some()
        ))),
        async {
            if let Some(after) = plan.drained_after {
                tokio::time::sleep(Duration::from_millis(after)).await;
                drop(stop);
                return None;
            }
            stop
        }
    );
    for result in all {
        result?;
    }
    drop(stop);
    daemon.ended().await.map_err(|error| error.to_string())
}

#[test]
fn every_stream_has_exactly_one_end_whatever_happens() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config {
        cases: 60,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..Config::default()
    });
    runner
        .run(&plans(), |plan| {
            runtime.block_on(live(plan)).map_err(TestCaseError::fail)
        })
        .unwrap();
}
