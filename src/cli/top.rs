//! The command `ringfence top`, which shows what the runs of a tenant come to.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::connect::{DaemonArgs, connect_stats, status_failure};
use super::stats_json::stats_json;
use super::stats_text::StatsText;
use super::stdout_reader::stdout_reader_gone;
use super::{Failure, print, print_json, runtime, value_parsers};
use crate::api::proto::{GetStatsRequest, Stats, WatchStatsRequest};

/// How far back the samples go that are asked for: as far as a daemon has any.
const HISTORY: Duration = Duration::from_secs(3600);

/// Show what the runs of a daemon come to: how many, how long, how it is loaded.
#[derive(Debug, Args)]
pub(super) struct TopCommand {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How often the figures are shown anew, 1s to 1m
    #[arg(long, default_value = "1s", value_parser = value_parsers::duration)]
    interval: Duration,
    /// Show the figures once, and end
    #[arg(long, conflicts_with = "interval")]
    once: bool,
    /// Print one JSON object per line, instead of text
    #[arg(long, value_name = "FORMAT")]
    output: Option<TopOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TopOutputFormat {
    /// Print one JSON object per line
    Json,
}

/// How the figures are shown.
enum TopView {
    /// As one line of JSON.
    Json,
    /// As blocks of text, one after the other.
    Blocks(StatsText),
    /// As one block that is drawn over the one before, of so many lines.
    Screen(StatsText, usize),
}

impl TopCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            match self.once {
                true => self.show_once().await,
                false => self.follow().await,
            }
        })
    }

    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    async fn show_once(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_stats(&self.daemon).await?;
        let history = HISTORY.try_into().ok();
        let answer = client.get_stats(GetStatsRequest { history }).await;
        let answer = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        let stats = answer.stats.unwrap_or_default();
        self.view(false).show(&stats)?;
        Ok(ExitCode::SUCCESS)
    }

    async fn follow(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_stats(&self.daemon).await?;
        let request = WatchStatsRequest {
            interval: self.interval.try_into().ok(),
            history: HISTORY.try_into().ok(),
        };
        let answer = client.watch_stats(request).await;
        let mut news = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        let mut view = self.view(std::io::stdout().is_terminal());
        let shown = async {
            while let Some(news) = news
                .message()
                .await
                .map_err(|status| status_failure(&status))?
            {
                view.show(&news.stats.unwrap_or_default())?;
            }
            Err(Failure::unreachable("the connection broke"))
        };
        tokio::select! {
            shown = shown => shown,
            () = stdout_reader_gone() => Err(Failure::broken_pipe()),
        }
    }

    fn view(&self, redraws: bool) -> TopView {
        let text = StatsText::new(&self.daemon);
        match (self.output, redraws) {
            (Some(TopOutputFormat::Json), _) => TopView::Json,
            (None, true) => TopView::Screen(text, 0),
            (None, false) => TopView::Blocks(text),
        }
    }
}

impl TopView {
    fn show(&mut self, stats: &Stats) -> Result<ExitCode, Failure> {
        match self {
            Self::Json => print_json(&stats_json(stats)),
            Self::Blocks(text) => {
                let gap = if text.is_first() { "" } else { "\n" };
                let lines = text.lines(stats);
                print(format!("{gap}{}\n", lines.join("\n")).as_bytes())
            }
            Self::Screen(text, drawn) => {
                let lines = text.lines(stats);
                let redrawn = redraw(&lines, *drawn);
                *drawn = lines.len();
                print(redrawn.as_bytes())
            }
        }
    }
}

/// Returns what draws `lines` over the `drawn` lines above the cursor. Lines are cut at the edge
/// of the terminal meanwhile, since one that is wrapped would be two. It is one piece of text, so
/// that whoever ends the command between two pieces leaves the terminal as it was.
fn redraw(lines: &[String], drawn: usize) -> String {
    let up = match drawn {
        0 => String::new(),
        lines => format!("\u{1b}[{lines}A"),
    };
    let mut text = format!("\u{1b}[?7l{up}");
    for line in lines {
        text.push_str(&format!("\r\u{1b}[2K{line}\n"));
    }
    text.push_str("\u{1b}[J\u{1b}[?7h");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_drawn_over_the_one_before() {
        let lines = ["a".to_owned(), "b".to_owned()];
        let first = redraw(&lines, 0);
        assert_eq!(
            first,
            "\u{1b}[?7l\r\u{1b}[2Ka\n\r\u{1b}[2Kb\n\u{1b}[J\u{1b}[?7h"
        );
        assert!(redraw(&lines, 2).starts_with("\u{1b}[?7l\u{1b}[2A\r"));
    }
}
