//! The rows that are about memory.

use std::time::Duration;

use ringfence::api::proto::{HealthRequest, HealthResponse, Resources, RunSpec};
use tokio::task::JoinSet;

use super::ask::Targets;
use super::caller::{Caller, Question};
use super::drive::{self, Clients};
use super::guests;
use super::results::{Figure, Row, number};
use super::servers::Process;

const PARKED: usize = 1000;
const MIB: f64 = (1 << 20) as f64;

async fn running(caller: &mut Caller) -> u32 {
    let question = Question::new("/ringfence.v1.SandboxService/Health", &HealthRequest {}, "");
    let (_, health) = caller.timed::<HealthResponse>(&question).await;
    health.runs_in_flight
}

/// Idle, and with a thousand runs that sleep.
pub(crate) async fn parked(asked: &Targets) -> Vec<Row> {
    let set = [
        &asked.how.set[..],
        &[
            format!("admission.slots={PARKED}"),
            // More than all of them reserve, whatever this machine has.
            "admission.memory=16GiB".to_owned(),
        ],
    ]
    .concat();
    let (_, work) = guests::built("work");
    let (mut idle, mut each) = (Vec::new(), Vec::new());
    for _ in 0..asked.how.rounds {
        let plain = Process::daemon(&asked.how.daemon, &asked.how.set);
        idle.push(plain.resident() as f64 / MIB);
        let daemon = Process::daemon(&asked.how.daemon, &set);
        let digest = guests::loaded(&daemon.addr, work.clone()).await;
        let spec = RunSpec {
            resources: Some(Resources {
                memory_pages: Some(32),
                ..Resources::default()
            }),
            ..guests::spec(&digest, &["work", "sleep", "20000"])
        };
        let question = guests::run(spec, "");
        let mut looks = Caller::connect(&daemon.addr).await;
        let before = daemon.resident();
        let mut all = JoinSet::new();
        for mut caller in Caller::several(&daemon.addr, Clients::spread(PARKED), &question).await {
            let question = question.clone();
            all.spawn(async move { caller.ask(&question).await.map(|_| ()) });
        }
        while running(&mut looks).await < u32::try_from(PARKED).unwrap() {
            assert!(all.try_join_next().is_none(), "none ends yet");
        }
        let grown = daemon.resident().saturating_sub(before);
        each.push(grown as f64 / 1024.0 / PARKED as f64);
    }
    let idle = Figure::new("ringfence", "RSS", "MiB", idle);
    let each = Figure::new("ringfence", "RSS a run", "KiB", each);
    let (mib, kib) = (idle.median, each.median);
    vec![
        Row::new("idle daemon RSS", "40 MiB", vec![idle])
            .judged(format!("{} MiB", number(mib)), mib <= 40.0),
        Row::new(
            "1,000 runs parked in a sleep (memory_pages 32)",
            "256 KiB RSS each",
            vec![each],
        )
        .judged(format!("{} KiB", number(kib)), kib <= 256.0),
    ]
}

/// After many runs, against after a tenth of them.
pub(crate) async fn grown(asked: &Targets) -> Row {
    let daemon = Process::daemon(&asked.how.daemon, &asked.how.set);
    let (_, hello) = guests::built("hello");
    let digest = guests::loaded(&daemon.addr, hello).await;
    let question = [guests::run(guests::spec(&digest, &["hello"]), "hello\n")];
    let (mut done, mut tenth) = (0, None);
    while done < asked.runs {
        let stats = drive::closed(
            &daemon.addr,
            Clients::on(16, 1),
            Duration::from_secs(1),
            &question,
        )
        .await;
        assert_eq!(stats.first_failure(), None);
        done += stats.answered();
        if done >= asked.runs / 10 {
            tenth.get_or_insert_with(|| daemon.resident());
        }
    }
    let (tenth, end) = (tenth.unwrap() as f64 / MIB, daemon.resident() as f64 / MIB);
    let figures = vec![
        Figure::new("ringfence", "RSS after a tenth", "MiB", vec![tenth]),
        Figure::new("ringfence", "RSS at the end", "MiB", vec![end]),
    ];
    Row::new(
        &format!("RSS after {} runs of a hello", asked.runs),
        "that after a tenth of them + 10 MiB",
        figures,
    )
    .judged(
        format!("{} MiB, {} after a tenth", number(end), number(tenth)),
        end <= tenth + 10.0,
    )
}
