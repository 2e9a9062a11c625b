//! Signals that end a command which has something to end first: the first one ends its run, the second one the command
//! at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::{complain, exit};

/// How long the command may take to end by itself: it may be stuck in a write that nobody takes.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// What the first signal did, as messages say it.
const SIGNALS: [(SignalKind, &str); 3] = [
    (SignalKind::interrupt(), "interrupted"),
    (SignalKind::terminate(), "terminated"),
    (SignalKind::hangup(), "hung up"),
];

/// Listens for SIGINT, SIGTERM and SIGHUP from now on, as far as they are not ignored: `nohup` and shells that put a
/// command in the background have it ignore some. Resolves at the first one, with what it did.
pub(super) fn listen() -> impl Future<Output = &'static str> {
    let ignored = ignored();
    let is_ignored = |kind: SignalKind| ignored & 1 << (kind.as_raw_value() - 1) != 0;
    let listening = SIGNALS.into_iter().filter(|(kind, _)| !is_ignored(*kind));
    // One that cannot be listened for ends the command as ever.
    let mut signals: Vec<_> = listening
        .filter_map(|(kind, did)| Some((signal(kind).ok()?, kind, did)))
        .collect();
    let (tell, told) = oneshot::channel();
    #[expect(
        clippy::disallowed_methods,
        reason = "lives as long as the process, which it may end"
    )]
    tokio::spawn(async move {
        let (_, did) = next(&mut signals).await;
        // A command that is over needs no telling.
        let _ = tell.send(did);
        let code = tokio::select! {
            (kind, _) = next(&mut signals) => u8::try_from(128 + kind.as_raw_value()),
            () = tokio::time::sleep(LAST_WAIT) => {
                complain(did);
                Ok(exit::KILLED)
            }
        };
        std::process::exit(code.unwrap_or(exit::KILLED).into());
    });
    async {
        match told.await {
            Ok(did) => did,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The next of `signals`.
async fn next(signals: &mut [(Signal, SignalKind, &'static str)]) -> (SignalKind, &'static str) {
    std::future::poll_fn(|cx| {
        for (signal, kind, did) in signals.iter_mut() {
            if signal.poll_recv(cx).is_ready() {
                return std::task::Poll::Ready((*kind, *did));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The signals that this process ignores, a bit each; none where the host does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
