//! From results to a document: tables between `<!-- TABLE -->` and `<!-- /TABLE -->`, and a picture beside the results.

use std::fmt::Write;
use std::fs;

use super::ask::Report;
use super::plot;
use super::results::{Figure, Results, Row, number};

/// Writes the tables of all results into the document.
pub(crate) fn write(asked: &Report) {
    let mut text = fs::read_to_string(&asked.into).expect("the document is there");
    for path in &asked.results {
        let results: Results = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let mut tables: Vec<&str> = results.rows.iter().map(|row| row.table.as_str()).collect();
        tables.dedup();
        for table in tables {
            let rows: Vec<&Row> = results
                .rows
                .iter()
                .filter(|row| row.table == table)
                .collect();
            let made = match table {
                table if table.starts_with("reliability") => judged(&rows),
                "targets" => judged(&rows) + &behind(&rows),
                _ => grown(table, &rows),
            };
            text = replaced(&text, table, &format!("{}\n{made}", about(&results)));
            if table == "clients" {
                plot::latency_by_clients(&rows, &path.with_file_name("clients.svg"));
            }
        }
    }
    fs::write(&asked.into, text).unwrap();
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

/// The document with another text between the marks of a table.
fn replaced(text: &str, table: &str, with: &str) -> String {
    let (open, close) = (format!("<!-- {table} -->"), format!("<!-- /{table} -->"));
    let told = format!("the document has the marks {open} and {close}");
    let (before, rest) = text.split_once(&open).expect(&told);
    let (_, after) = rest.split_once(&close).expect(&told);
    format!("{before}{open}\n{with}\n{close}{after}")
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
        writeln!(
            text,
            "| {} | {} | {} | {verdict} |",
            row.what, row.target, row.measured
        )
        .unwrap();
    }
    text
}

/// The figures behind such rows.
fn behind(rows: &[&Row]) -> String {
    let mut text = String::from("\nBehind them, medians of the rounds and the rounds:\n\n");
    text.push_str("| of | who | what | median | rounds |\n|---|---|---|---|---|\n");
    for row in rows {
        for Figure {
            who,
            what,
            unit,
            rounds,
            median,
        } in &row.figures
        {
            let rounds: Vec<_> = rounds.iter().map(|it| number(*it)).collect();
            let (of, median) = (&row.what, number(*median));
            writeln!(
                text,
                "| {of} | {who} | {what} | {median} {unit} | {} |",
                rounds.join(" ")
            )
            .unwrap();
        }
    }
    text
}

/// Rows of something that grows, with a column for each figure that says how it bends.
fn grown(table: &str, rows: &[&Row]) -> String {
    const SHOWN: [&str; 4] = ["throughput", "p50", "p99", "processor time a call"];
    let Some(first) = rows.first() else {
        return String::new();
    };
    let shown: Vec<&Figure> = first
        .figures
        .iter()
        .filter(|it| SHOWN.contains(&it.what.as_str()))
        .collect();
    let mut text = format!("| {table} |");
    for it in &shown {
        write!(text, " {}, {} ({}) |", it.who, it.what, it.unit).unwrap();
    }
    write!(text, "\n|---|{}\n", "---|".repeat(shown.len())).unwrap();
    for row in rows {
        write!(text, "| {} |", row.what).unwrap();
        for it in &shown {
            let found = row
                .figures
                .iter()
                .find(|own| own.who == it.who && own.what == it.what);
            let told = found.map(|own| number(own.median)).unwrap_or_default();
            write!(text, " {told} |").unwrap();
        }
        text.push('\n');
    }
    text
}
