//! `drain`: what is in flight at SIGTERM finishes or is told that it is cancelled, and then the daemon is gone.

use std::time::{Duration, Instant};

use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::{
    CancelCause, InteractRequest, Outcome, RunSpec, RunStreamRequest, ServingStatus, StdinEof,
    StreamEvent,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::ask::Scale;
use crate::daemon::{Besieged, loaded};
use crate::figures::{Report, Tally, ms};
use crate::harness::{SpecExt, Story, by_digest, connect, runs};
use crate::hostile::{BEFORE, lingering, waits};

/// Runs that end by themselves once the daemon drains.
const SHORT: usize = 50;
/// Runs that end with the grace, half of them spinning, half asleep.
const LONG: usize = 50;
/// What the daemon has for its own end after the grace.
const BEYOND: Duration = Duration::from_secs(2);

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    let grace = scale.pick(Duration::from_secs(2), Duration::from_secs(10));
    let setting = format!("server.drain_grace={}s", grace.as_secs());
    let daemon = Besieged::start(&[&setting]).await;
    let mut client = daemon.client().await;
    let digest = loaded(&mut client, &waits()).await;
    let (drains, draining) = watch::channel(false);
    let (mut short, mut long) = (JoinSet::new(), JoinSet::new());
    for _ in 0..SHORT {
        let (story, stream, say) = short_one(&daemon, by_digest(&digest)).await;
        let mut draining = draining.clone();
        short.spawn(async move {
            draining.wait_for(|drains| *drains).await.unwrap();
            let eof = Frame::StdinEof(StdinEof {});
            say.send(InteractRequest { frame: Some(eof) })
                .await
                .unwrap();
            to_the_end(stream, story).await
        });
    }
    let [spins, sleeps, _] = lingering();
    for wat in [spins, sleeps] {
        let digest = loaded(&mut client, &wat).await;
        let spec = by_digest(&digest).timeout(grace * 10);
        for _ in 0..LONG / 2 {
            let (story, stream) = long_one(&daemon, spec.clone()).await;
            long.spawn(to_the_end(stream, story));
        }
    }
    report.equal(
        "runs in flight at SIGTERM",
        daemon.health().await.runs_in_flight,
        100,
    );
    let start = Instant::now();
    daemon.terminate();
    daemon
        .until(|health| health.status() == ServingStatus::Draining)
        .await;
    drains.send_replace(true);
    let finished = tally(short.join_all().await);
    let all_short = start.elapsed();
    let cancelled = tally(long.join_all().await);
    drop(client);
    daemon.ended(report).await;
    let took = start.elapsed();

    report.told("short ones were over after", ms(all_short));
    let target = format!("at most {} ms", (grace + BEYOND).as_millis());
    report.figure(
        "the daemon was gone after",
        ms(took),
        &target,
        took <= grace + BEYOND,
    );
    let whole = format!("{:?} {:?}", Outcome::Exited, "before\nafter\n");
    report.told("short ones", &finished);
    report.equal("short ones that finished", finished.of(&whole), SHORT);
    let told = format!(
        "{:?} by {:?} {BEFORE:?}",
        Outcome::Cancelled,
        CancelCause::Draining
    );
    report.told("long ones", &cancelled);
    report.equal(
        "long ones cancelled with their output",
        cancelled.of(&told),
        LONG,
    );
}

/// Reads the rest of a stream: how its run ended, and what it wrote.
async fn to_the_end(mut stream: Streaming<StreamEvent>, mut story: Story) -> String {
    loop {
        match stream.message().await {
            Ok(Some(event)) => story.add(event),
            Ok(None) => break,
            Err(status) => return format!("broke: {}", status.message()),
        }
    }
    let text = String::from_utf8_lossy(&story.stdout);
    let Some(exit) = story.exit else {
        return format!("closed without an end {text:?}");
    };
    match (exit.outcome(), exit.cancel_cause()) {
        (outcome, CancelCause::Unspecified) => format!("{outcome:?} {text:?}"),
        (outcome, cause) => format!("{outcome:?} by {cause:?} {text:?}"),
    }
}

fn tally(endings: Vec<String>) -> Tally {
    let mut tally = Tally::default();
    endings.into_iter().for_each(|ending| tally.add(ending));
    tally
}

/// A run that waits for the end of its input.
async fn short_one(
    daemon: &Besieged,
    spec: RunSpec,
) -> (Story, Streaming<StreamEvent>, mpsc::Sender<InteractRequest>) {
    let (say, said) = mpsc::channel(2);
    let start = Frame::Start(Box::new(spec));
    let start = InteractRequest { frame: Some(start) };
    say.send(start).await.unwrap();
    let mut runs = runs(daemon.addr()).await;
    let answer = runs.interact(ReceiverStream::new(said)).await;
    let (story, stream) = begun(answer.unwrap().into_inner()).await;
    (story, stream, say)
}

/// A run that does not end.
async fn long_one(daemon: &Besieged, spec: RunSpec) -> (Story, Streaming<StreamEvent>) {
    let request = RunStreamRequest { spec: Some(spec) };
    let answer = connect(daemon.addr()).await.run_stream(request).await;
    begun(answer.unwrap().into_inner()).await
}

/// Reads until the guest has written its first line.
async fn begun(mut stream: Streaming<StreamEvent>) -> (Story, Streaming<StreamEvent>) {
    let mut story = Story::default();
    while story.stdout.len() < BEFORE.len() {
        story.add(stream.message().await.unwrap().unwrap());
    }
    (story, stream)
}
