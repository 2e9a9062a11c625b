//! From results to a document: what stands between `<!-- NAME -->` and `<!-- /NAME -->` is
//! replaced, and pictures are put beside the results. A document has the marks of what it wants.

use std::fmt::Write;
use std::fs;

use super::ask::Report;
use super::results::{Figure, Results, Row, number};
use super::{bars, plot};

/// Writes everything that the document has marks for.
pub(crate) fn write(asked: &Report) {
    let mut text = fs::read_to_string(&asked.into).expect("the document is there");
    let all: Vec<Results> = asked
        .results
        .iter()
        .map(|path| serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        .collect();
    let mut found = false;
    for (name, made) in parts(&all) {
        let (open, close) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
        let Some((before, rest)) = text.split_once(&open) else {
            continue;
        };
        let told = format!("after {open} there is {close}");
        let (_, after) = rest.split_once(&close).expect(&told);
        text = format!("{before}{open}\n{made}\n{close}{after}");
        found = true;
    }
    assert!(found, "the document has marks of what there are results of");
    fs::write(&asked.into, text).unwrap();
    let folder = asked.results[0].parent().unwrap();
    let rows = || all.iter().flat_map(|it| &it.rows);
    let clients: Vec<&Row> = rows().filter(|row| row.table == "clients").collect();
    if !clients.is_empty() {
        plot::latency_by_clients(&clients, &folder.join("clients.svg"));
    }
    let many: Vec<&Row> = rows()
        .filter(|row| row.table == "targets" && row.what.contains("throughput"))
        .filter(|row| row.figures.iter().any(|it| it.what == "throughput"))
        .collect();
    if !many.is_empty() {
        bars::throughput(&many, &folder.join("throughput.svg"));
    }
}

/// What there can be in a document, by its name: tables of one or of several.
fn parts(all: &[Results]) -> Vec<(String, String)> {
    let mut parts = Vec::new();
    let mut add = |name: &str, tables: String| {
        if !tables.is_empty() {
            parts.push((name.to_owned(), tables));
        }
    };
    add("targets", targets(all));
    add(
        "cost",
        each(all, |table| table == "cost", |_, rows| costs(rows)),
    );
    add("growth", each(all, is_growth, grown));
    for results in all {
        let table = &results.rows.first().map_or("", |row| &row.table);
        if table.starts_with("reliability") {
            let rows: Vec<&Row> = results.rows.iter().collect();
            add(table, format!("{}\n{}", about(results), judged(&rows)));
            let rows: Vec<&Row> = rows.into_iter().filter(|row| is_figure(row)).collect();
            let name = format!("{table}, in short");
            add(&name, format!("{}\n{}", about(results), judged(&rows)));
        }
    }
    parts
}

fn is_growth(table: &str) -> bool {
    !["targets", "cost", "call"].contains(&table) && !table.starts_with("reliability")
}

/// Whether the target is a figure, and not a count.
fn is_figure(row: &Row) -> bool {
    row.met.is_some()
        && ["ms", "MiB", "ratio"]
            .iter()
            .any(|it| row.target.contains(it))
}

/// Memory after clients that vanished is measured by the siege.
fn is_of_siege(row: &Row) -> bool {
    row.table == "reliability" && row.what == "vanish: resident"
}

fn targets(all: &[Results]) -> String {
    let mut text = String::new();
    for results in all {
        let of_targets = results.rows.iter().filter(|row| row.table == "targets");
        if of_targets.count() > 0 {
            writeln!(text, "{}", about(results)).unwrap();
        }
    }
    let rows: Vec<&Row> = all
        .iter()
        .flat_map(|it| &it.rows)
        .filter(|row| row.table == "targets" || is_of_siege(row))
        .collect();
    if text.is_empty() {
        text
    } else {
        text + &judged(&rows)
    }
}

/// The tables of those names, one after the other, by `made`; what is of one file has its origin
/// told once.
fn each(
    all: &[Results],
    wanted: impl Fn(&str) -> bool,
    made: impl Fn(&str, &[&Row]) -> String,
) -> String {
    let mut text = String::new();
    for results in all {
        let rows: Vec<&Row> = results
            .rows
            .iter()
            .filter(|row| wanted(&row.table))
            .collect();
        let tables = rows.chunk_by(|one, other| one.table == other.table);
        for (at, rows) in tables.enumerate() {
            if at == 0 {
                writeln!(text, "{}", about(results)).unwrap();
            }
            writeln!(text, "{}", made(&rows[0].table, rows)).unwrap();
        }
    }
    text.trim_end().to_owned()
}

fn about(results: &Results) -> String {
    let Results {
        machine,
        commit,
        date,
        command,
        ..
    } = results;
    format!("`{command}`, {date}, commit {commit}, {machine}.\n")
}

/// Rows with a target each.
fn judged(rows: &[&Row]) -> String {
    let mut text = String::from("| what | target | measured | |\n|---|---|---|---|\n");
    for row in rows {
        let verdict = match row.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "",
        };
        let Row {
            what,
            target,
            measured,
            ..
        } = row;
        writeln!(text, "| {what} | {target} | {measured} | {verdict} |").unwrap();
    }
    text
}

/// Rows that are parts of a whole, of the daemon and of the floor.
fn costs(rows: &[&Row]) -> String {
    let mut text = String::from("| a call | ringfence | floor |\n|---|---|---|\n");
    for Row { what, figures, .. } in rows {
        let of = |who| figures.iter().find(|it| it.who == who);
        let told = |who| of(who).map(|it| number(it.median)).unwrap_or_default();
        writeln!(
            text,
            "| {what} | {} | {} |",
            told("ringfence"),
            told("floor")
        )
        .unwrap();
    }
    text
}

/// Rows of something that grows, with a column for each figure that says how it bends.
fn grown(table: &str, rows: &[&Row]) -> String {
    const SHOWN: [(&str, &str); 4] = [
        ("ringfence", "throughput"),
        ("ringfence", "p99"),
        ("ringfence", "processor time a call"),
        ("floor", "throughput"),
    ];
    let find = |row: &Row, (who, what): (&str, &str)| -> Option<Figure> {
        let mut figures = row.figures.iter();
        figures.find(|it| it.who == who && it.what == what).cloned()
    };
    let shown = SHOWN.iter().filter_map(|it| find(rows[0], *it));
    let mut text = format!("| {table} |");
    for it in shown.clone() {
        write!(text, " {}, {} ({}) |", it.who, it.what, it.unit).unwrap();
    }
    write!(text, "\n|---|{}\n", "---|".repeat(shown.clone().count())).unwrap();
    for row in rows {
        write!(text, "| {} |", row.what).unwrap();
        for it in shown.clone() {
            let told = find(row, (&it.who, &it.what)).map(|it| number(it.median));
            write!(text, " {} |", told.unwrap_or_default()).unwrap();
        }
        text.push('\n');
    }
    text
}
