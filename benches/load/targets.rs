//! The rows of speed and memory of the targets, one after the other.

use super::ask::Targets;
use super::results::{self, Row};
use super::servers::greeters;
use super::{compute, counts, inside, memory, modules, runs};

/// Measures them all, or those whose part has `only` in its name.
pub(crate) async fn measure(asked: &Targets) {
    let mut rows = Vec::new();
    let wanted = |part: &str| asked.only.as_deref().is_none_or(|only| part.contains(only));
    let mut add = |new: Vec<Row>| {
        for row in &new {
            row.tell();
        }
        rows.extend(new);
    };
    if wanted("hello") {
        let greeters = greeters(&asked.how, &asked.beside).await;
        add(runs::hello(asked, &greeters).await);
    }
    if wanted("counts") {
        let mut rows = counts::rows(&asked.how).await;
        // What `counts` tells beside these, which needs the names of functions.
        rows.retain(|row| row.table == "targets");
        add(rows);
    }
    if wanted("inside") {
        add(vec![inside::row(asked)]);
    }
    if wanted("stream") {
        add(vec![runs::stream(asked).await]);
    }
    if wanted("first-line") {
        add(vec![runs::first_line(asked).await]);
    }
    if wanted("known") {
        add(vec![modules::known(asked).await]);
    }
    if wanted("cold") {
        add(vec![modules::cold(asked).await]);
    }
    if wanted("restart") {
        add(vec![match &asked.interpreter {
            Some(path) => modules::restart(asked, path).await,
            None => Row::new(
                "restart with a warm disk, first `Run` of a 25 MB interpreter",
                "a warm Run of it + 50 ms",
                Vec::new(),
            )
            .skipped("no --interpreter"),
        }]);
    }
    if wanted("compute") {
        add(compute::rows(asked).await);
    }
    if wanted("parked") {
        add(memory::parked(asked).await);
    }
    if wanted("grown") {
        add(vec![memory::grown(asked).await]);
    }
    results::keep(rows, asked.how.json.as_deref(), &super::command());
}
