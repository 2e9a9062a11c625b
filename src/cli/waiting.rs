//! What a command waits for, told on a terminal: a line on standard error that counts the seconds, and is gone before
//! anything else is printed.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::refusal::printable;

/// How long a command waits before it says so: most runs have ended by then.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the line is drawn.
const TICK: Duration = Duration::from_millis(200);

/// A line about what is waited for. Nothing is drawn where standard error is no terminal.
#[derive(Debug)]
pub(super) struct Waiting(Option<String>);

impl Waiting {
    /// Creates the line "ringfence: `what`, 3s ...".
    pub(super) fn new(what: impl AsRef<str>) -> Self {
        let attended = std::io::stderr().is_terminal();
        Self(attended.then(|| printable(what.as_ref())))
    }

    /// Creates none, for what is printed for programs and for what need not be waited for.
    pub(super) fn silent() -> Self {
        Self(None)
    }

    /// Does `work`, with the line there while it takes long. However that ends, the line is gone then.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        self.during_after(std::future::ready(()), work).await
    }

    /// The same, but nothing is said before `begun` has come to its end.
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
        // Cleared when it is dropped, also where the work is given up.
        let _line = Line::draw(what);
        work.await
    }
}

/// The line while it is there.
struct Line(ProgressBar);

impl Line {
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

impl Drop for Line {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A file and its size, as a line names it: shortly, so that the line is one on most terminals.
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
