//! What `cpu_time` of a result counts: what a guest used of the processor, wherever it executed, and not what it waited
//! for.

use std::time::{Duration, Instant};

use ringfence::api::proto::{Outcome, RunSpec};

use crate::harness::{Daemon, Ran, SpecExt, kit, kit_component, spec};

/// What `cpu_time` may be over.
const RESOLUTION: Duration = Duration::from_micros(200);

/// The wall time and the processor time of a run, of which the latter is never more than the former.
fn times(ran: &Ran) -> (Duration, Duration) {
    let [wall, cpu] = [ran.result.duration, ran.result.cpu_time]
        .map(|time| Duration::try_from(time.expect("it is told")).unwrap());
    assert!(cpu <= wall, "{cpu:?} in {wall:?}");
    (wall, cpu)
}

/// Short ones begin, and end, on a thread that serves once their module is known for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn short_runs_have_used_something_and_no_more_than_their_wall_time() {
    let daemon = Daemon::start().await;
    let nothing = spec("(module (func (export \"_start\")))");
    for run in [kit(&["hello"]), kit_component(&["hello"]), nothing] {
        for _ in 0..8 {
            let ran = daemon.ran(run.clone()).await.exited(0);
            let (_, cpu) = times(&ran);
            assert!(cpu > Duration::ZERO);
        }
    }
}

async fn waiting_is_not_counted(run: RunSpec) {
    let daemon = Daemon::start().await;
    let ran = daemon.ran(run.clone()).await;
    let (wall, cpu) = times(&ran);
    assert!(wall >= Duration::from_millis(200), "{wall:?}");
    // Its beginning, and what follows, may have been in parts that another process had the processor for.
    assert!(cpu < wall / 2, "{cpu:?} in {wall:?}");
}

cases!(waiting_is_not_counted:
    of_a_sleep(kit(&["sleep", "200"])),
    of_a_sleep_in_a_component(kit_component(&["sleep", "200"])),
    of_one_that_times_out(kit(&["sleep", "3600000"]).timeout(Duration::from_millis(200))),
    of_one_that_is_metered(kit(&["sleep", "200"]).resources(|it| it.fuel_limit = Some(1 << 60))),
);

#[tokio::test(flavor = "multi_thread")]
async fn guests_that_share_a_thread_have_no_more_together_than_it_has() {
    let daemon = Daemon::with(&[("engine.guest_threads", "1")]).await;
    let spin = spec("(module (func (export \"_start\") (loop br 0)))");
    let metered = spin.clone().resources(|it| it.fuel_limit = Some(1 << 60));
    let start = Instant::now();
    let runs = [&spin, &metered, &spin, &metered].map(|run| {
        let run = run.clone().timeout(Duration::from_millis(300));
        daemon.ran(run)
    });
    let ran = futures_util::future::join_all(runs).await;
    let elapsed = start.elapsed();
    let mut together = Duration::ZERO;
    for ran in ran {
        let (wall, cpu) = times(&ran.ended(Outcome::TimedOut));
        assert!(cpu > RESOLUTION, "{cpu:?} in {wall:?}");
        together += cpu;
    }
    assert!(together <= elapsed, "{together:?} in {elapsed:?}");
}
