//! A wait indicator for terminals: a line on standard error that says what a command waits for and
//! counts the seconds. It is removed before anything else is printed.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::refusal::printable;

/// How long a command waits before the line appears; most runs have ended by then.
const PATIENCE: Duration = Duration::from_millis(500);
/// The interval at which the line is redrawn.
const TICK: Duration = Duration::from_millis(200);

/// The text about what is waited for. It is `None`, so that nothing is drawn, where standard error
/// is no terminal.
#[derive(Debug)]
pub(super) struct WaitIndicator(Option<String>);

impl WaitIndicator {
    /// Creates an indicator with the line "ringfence: `what`, 3s ...".
    pub(super) fn new(what: impl AsRef<str>) -> Self {
        let attended = std::io::stderr().is_terminal();
        Self(attended.then(|| printable(what.as_ref())))
    }

    /// Creates an indicator that shows nothing, for output that programs read, and where there is
    /// nothing to wait for.
    pub(super) fn silent() -> Self {
        Self(None)
    }

    /// Awaits `work`, and shows the line while it takes long. The line is removed however the work
    /// ends.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        self.during_after(std::future::ready(()), work).await
    }

    /// Awaits `work` like [`Self::during`], but shows nothing before `begun` has finished.
    pub(super) async fn during_after<T>(
        &self,
        begun: impl Future<Output = ()>,
        work: impl Future<Output = T>,
    ) -> T {
        let Some(what) = &self.0 else {
            return work.await;
        };
        let patience = async {
            begun.await;
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = patience => {}
        }
        // The line is removed when this is dropped, also where the work is abandoned.
        let _line = StatusLine::draw(what);
        work.await
    }
}

/// The line on the terminal. Dropping it removes the line.
struct StatusLine(ProgressBar);

impl StatusLine {
    fn draw(what: &str) -> Self {
        let bar = ProgressBar::new_spinner()
            .with_elapsed(PATIENCE)
            .with_message(what.to_owned());
        let bar = match ProgressStyle::with_template("ringfence: {msg}, {elapsed} ...") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.enable_steady_tick(TICK);
        Self(bar)
    }
}

impl Drop for StatusLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Formats a file name and its size, shortened so that the line fits on most terminals.
pub(super) fn sized(name: &str, size: Option<u64>) -> String {
    let name = match name {
        "" | "-" => "standard input".to_owned(),
        name => shortened(name),
    };
    match size {
        Some(size) => format!("{name} ({})", bytesize::ByteSize(size).display().iec()),
        None => name,
    }
}

fn shortened(name: &str) -> String {
    const MOST: usize = 24;
    match name.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}
