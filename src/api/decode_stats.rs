//! Decodes requests for the figures of a tenant.

use std::time::Duration;

use prost_types::Duration as ProtoDuration;

use super::decode::duration;
use super::proto;
use crate::model::refusal::Refusal;
use crate::run::{STATS_HISTORY, StatsHistory};

/// Decodes how far back the samples go that are asked for.
///
/// # Errors
/// `SPEC_INVALID` for what is no duration; `LIMIT_ABOVE_MAXIMUM` for more than is kept.
pub(super) fn stats_history(asked: Option<ProtoDuration>) -> Result<StatsHistory, Refusal> {
    const FIELD: &str = "history";
    match duration(FIELD, asked.unwrap_or_default())? {
        Duration::ZERO => Ok(StatsHistory::None),
        span if span <= STATS_HISTORY => Ok(StatsHistory::Within(span)),
        span => Err(above_duration(FIELD, span, STATS_HISTORY)),
    }
}

/// Decodes how often the figures are to be told, and how far back the samples of the first go.
///
/// # Errors
/// Those of [`stats_history`]; `SPEC_INVALID` or `LIMIT_ABOVE_MAXIMUM` for the interval.
pub(super) fn stats_watch(
    message: proto::WatchStatsRequest,
) -> Result<(Duration, StatsHistory), Refusal> {
    const FIELD: &str = "interval";
    const LEAST: Duration = Duration::from_secs(1);
    const MOST: Duration = Duration::from_secs(60);
    let proto::WatchStatsRequest { interval, history } = message;
    let interval = match duration(FIELD, interval.unwrap_or_default())? {
        Duration::ZERO => LEAST,
        asked if asked < LEAST => {
            let [asked, least] = [asked, LEAST].map(humantime::format_duration);
            let message = format!("{asked} is under the minimum of {least}");
            return Err(Refusal::invalid(FIELD, message)
                .with("asked", asked)
                .with("allowed", least));
        }
        asked if asked > MOST => return Err(above_duration(FIELD, asked, MOST)),
        asked => asked,
    };
    Ok((interval, stats_history(history)?))
}

fn above_duration(field: &str, asked: Duration, allowed: Duration) -> Refusal {
    let [asked, allowed] = [asked, allowed].map(humantime::format_duration);
    Refusal::above(field, asked, allowed)
}
