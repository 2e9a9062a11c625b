//! `vanish`: clients that are gone in the middle of a stream leave nothing behind.

use std::time::{Duration, Instant};

use prost::Message;
use ringfence::api::proto::RunStreamRequest;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::ask::Scale;
use crate::daemon::{Besieged, Held, loaded, side_by_side};
use crate::figures::{Report, mib, ms};
use crate::harness::{SpecExt, by_digest};
use crate::hostile::{BEFORE, lingering};
use crate::raw::{GOAWAY, RST_STREAM, call, frame, greeting, read_until};

const AT_ONCE: usize = 64;
const PATH: &str = "/ringfence.v1.SandboxService/RunStream";
/// Longer than this row: a run that ends, ends because its caller has gone.
const LONG: Duration = Duration::from_secs(300);
const CANCEL: [u8; 4] = [0, 0, 0, 8];
const SLACK: usize = 10;
/// How soon memory is given back.
const GIVES_BACK: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(20);

pub(crate) async fn row(scale: &Scale, report: &mut Report) {
    // What is remembered of runs that have ended is not what this is about.
    let daemon = Besieged::start(&["runs.history=100"]).await;
    let mut client = daemon.client().await;
    let mut calls = Vec::new();
    for wat in lingering() {
        let spec = by_digest(&loaded(&mut client, &wat).await).timeout(LONG);
        let request = RunStreamRequest { spec: Some(spec) };
        calls.push([greeting(), call(PATH, &request.encode_to_vec())].concat());
    }
    vanishing(&daemon, &calls, AT_ONCE * 4).await;
    // What those took is given back too before anything is compared with it.
    daemon.until_idle().await;
    tokio::time::sleep(GIVES_BACK).await;
    let before = daemon.settled(|_| true).await;
    let clients = scale.pick(500, 5_000);
    let start = Instant::now();
    let begun = vanishing(&daemon, &calls, clients).await;
    let (gone, took) = (Instant::now(), start.elapsed());
    daemon.until_idle().await;
    let idle = gone.elapsed();
    let most = daemon.held().resident;
    let near = |held: usize, before: usize| held.abs_diff(before) <= SLACK;
    let after = daemon
        .settled(|held| near(held.descriptors, before.descriptors))
        .await;
    let settled = gone.elapsed();
    // Not more than a tenth more, or what there is when the time is over.
    let little = |held: &Held| held.resident * 10 <= before.resident * 11;
    let resident = loop {
        let held = daemon.held();
        if little(&held) || gone.elapsed() > GIVES_BACK {
            break held;
        }
        tokio::time::sleep(LOOK).await;
    };
    let given_back = gone.elapsed();

    report.told(
        "clients, in all",
        format!("{clients} in {:.1} s", took.as_secs_f64()),
    );
    report.equal("of them in the middle of a stream", begun, clients);
    let health = daemon.health().await;
    report.equal("guests", health.runs_in_flight + health.runs_queued, 0);
    report.told("no guest was left after", ms(idle));
    let soon = settled <= Duration::from_secs(2);
    report.figure(
        "all was as before after",
        ms(settled),
        "at most 2000 ms",
        soon,
    );
    let (was, is) = (before.descriptors, after.descriptors);
    report.count(
        "descriptors",
        is,
        format!("{was} +- {SLACK}"),
        near(is, was),
    );
    report.told(
        "threads before and after",
        format!("{}, {}", before.threads, after.threads),
    );
    report.told("resident when the last had gone", mib(most));
    report.figure(
        "resident",
        mib(resident.resident),
        &format!("{} + 10 % within 2 s", mib(before.resident)),
        little(&resident),
    );
    report.told("looked at after", ms(given_back));
    daemon.end(report).await;
}

/// So many clients, each gone once its guest has written; returns how many got that far.
async fn vanishing(daemon: &Besieged, calls: &[Vec<u8>], clients: usize) -> usize {
    let addr = daemon.addr().to_owned();
    let each = side_by_side(daemon.addr(), AT_ONCE, |i, _| {
        let (addr, calls) = (addr.clone(), calls.to_vec());
        async move {
            let mut begun = 0;
            for client in (i..clients).step_by(AT_ONCE) {
                let guest = &calls[client % calls.len()];
                begun += usize::from(vanish(&addr, guest, client / calls.len()).await);
            }
            begun
        }
    });
    each.await.into_iter().sum()
}

/// Starts a stream and goes, in one of three ways; whether the guest had written by then.
async fn vanish(addr: &str, opening: &[u8], way: usize) -> bool {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(opening).await.unwrap();
    let begun = read_until(&mut stream, BEFORE.as_bytes()).await;
    match way % 3 {
        // As when the machine fails: the connection is reset.
        0 => rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap(),
        // The process ended: the kernel closes what it had open.
        1 => {}
        // With the good manners of a library.
        _ => {
            let reset = frame(RST_STREAM, 0, 1, &CANCEL);
            let leave = frame(GOAWAY, 0, 0, &[0; 8]);
            // The daemon may have closed it in the meantime, which `begun` tells.
            let _ = stream.write_all(&[reset, leave].concat()).await;
        }
    }
    begun
}
