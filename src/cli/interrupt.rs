//! Signal handling for commands that have something to end first: the first signal ends the run,
//! and the second one ends the command at once.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::{exit, print_to_stderr};

/// How long the command may take to end by itself after the first signal, since it may be stuck in
/// a write that nobody reads.
const LAST_WAIT: Duration = Duration::from_secs(3);

/// The signals that are handled, each with the word by which messages say what it did.
const SIGNALS: [(SignalKind, &str); 3] = [
    (SignalKind::interrupt(), "interrupted"),
    (SignalKind::terminate(), "terminated"),
    (SignalKind::hangup(), "hung up"),
];

/// Listens for SIGINT, SIGTERM and SIGHUP from now on, except for those that are ignored: `nohup`,
/// and shells that put a command in the background, have some ignored. The future resolves at the
/// first signal, with what it did.
pub(super) fn first_signal() -> impl Future<Output = &'static str> {
    let ignored = ignored();
    let is_ignored = |kind: SignalKind| ignored & 1 << (kind.as_raw_value() - 1) != 0;
    let listening = SIGNALS.into_iter().filter(|(kind, _)| !is_ignored(*kind));
    // A signal that cannot be listened for ends the command by default.
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
        // The receiver is gone when the command is over.
        let _ = tell.send(did);
        let code = tokio::select! {
            (kind, _) = next(&mut signals) => u8::try_from(128 + kind.as_raw_value()),
            () = tokio::time::sleep(LAST_WAIT) => {
                print_to_stderr(did);
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

/// Waits for the next of `signals`.
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

/// Returns the mask of signals that this process ignores; it is empty where the host does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or_default()
}
