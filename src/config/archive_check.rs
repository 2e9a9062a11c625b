//! Checks of the archive of `[runs]`.

use super::problems::{Checker, millis, minutes};
use super::schema::{Config, HumanDuration, RunsConfig, Size, StoreUrl};

/// Checks where ended runs are archived, which of them, and how long they stay.
pub(super) fn check(c: &mut Checker, config: &Config) {
    let RunsConfig {
        archive,
        archive_what: _,
        archive_ratio,
        archive_queue,
        archive_interval,
        archive_spool,
        archive_age,
        archive_bytes,
        ..
    } = &config.runs;
    c.between("runs.archive_ratio", *archive_ratio, 0.0, 1.0);
    // A run that has filled its log has to fit, where it is archived at all.
    let least = match archive.0 {
        Some(_) => Size(config.runs.log_bytes.0.saturating_mul(2)),
        None => Size(0),
    };
    let queue = (least, Size(1 << 40));
    c.between("runs.archive_queue", *archive_queue, queue.0, queue.1);
    let interval = (millis(100), minutes(10));
    c.between(
        "runs.archive_interval",
        *archive_interval,
        interval.0,
        interval.1,
    );
    let is_kept = archive_age.0.is_zero() || *archive_age >= minutes(60);
    let allowed = "at least 1h, or 0s for ever";
    c.require(
        is_kept,
        "runs.archive_age",
        HumanDuration(archive_age.0),
        allowed,
    );
    let is_room = archive_bytes.0 == 0 || archive_bytes.0 >= 1 << 20;
    let allowed = "at least 1MiB, or 0B for any number";
    c.require(is_room, "runs.archive_bytes", *archive_bytes, allowed);
    let spool = archive_spool.display();
    if archive_spool.as_os_str().is_empty() {
        return;
    }
    c.require(
        archive_spool.is_absolute(),
        "runs.archive_spool",
        spool.to_string(),
        "an absolute path to a folder, or \"\"",
    );
    let is_used = matches!(archive.0, Some(StoreUrl::Objects(_)));
    c.require(
        is_used,
        "runs.archive_spool",
        spool,
        "\"\" unless runs.archive is an object store",
    );
}
