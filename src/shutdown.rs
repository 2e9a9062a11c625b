//! Signals: the first one drains, the second one ends the process at once.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Resolves at the first SIGTERM or SIGINT. From then on a second one ends the process.
///
/// # Errors
/// Where the signals cannot be listened for.
pub async fn requested() -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(
        signal = name,
        "draining; a second signal ends the daemon at once"
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "lives as long as the process, which it ends"
    )]
    tokio::spawn(async move {
        let code = tokio::select! {
            _ = terminate.recv() => 143,
            _ = interrupt.recv() => 130,
        };
        std::process::exit(code);
    });
    Ok(())
}
