//! Guests that are after whoever reads them.

use ringfence::api::proto::{Outcome, OutputPolicy};

use crate::harness::{Ran, SpecExt};
use crate::row::{End, Row, SOON, row};

const OUTPUT: &str = include_str!("../guests/output.wat");

const LIMIT: usize = 10_000;
const EXCEEDED: &[End] = &[End::Ends(Outcome::OutputExceeded)];
const BAD_DESCRIPTOR: &[End] = &[End::Exits(8)];

pub(crate) fn rows() -> Vec<Row> {
    [floods(), descriptors()].into_iter().flatten().collect()
}

fn limited(row: Row, policy: OutputPolicy) -> Row {
    row.given(move |spec, _| {
        spec.resources(|r| {
            r.output_limit = Some(LIMIT as u64);
            r.output_policy = policy.into();
        })
    })
}

fn full(ran: &Ran) -> bool {
    let counts = (ran.stdout.len(), ran.stderr.len());
    matches!(counts, (LIMIT, 0) | (0, LIMIT))
}

fn floods() -> Vec<Row> {
    let mut rows = Vec::new();
    for (fd, stream) in [("1", "stdout"), ("2", "stderr")] {
        for (entry, does) in [
            ("flood", "It writes 64 KiB at a time, for ever."),
            ("drip", "It writes a byte at a time, for ever."),
        ] {
            let writes = |policy: &str| {
                row(format!("{entry} of {stream}, {policy}"), does, OUTPUT)
                    .given(move |spec, _| spec.entry(entry).args(&[fd]))
            };
            let stopped = limited(writes("stopped"), OutputPolicy::Stop);
            rows.push(
                stopped
                    .ends(EXCEEDED)
                    .and("what was written until then is there", full),
            );
            let truncated = limited(writes("truncated"), OutputPolicy::Truncate);
            rows.push(
                truncated
                    .times_out()
                    .and("no more than the limit is there", |ran| {
                        ran.stdout.len() + ran.stderr.len() <= LIMIT
                    }),
            );
        }
    }
    rows.extend([
        limited(
            row(
                "vectors of the same",
                "4,000 vectors that are one MiB each.",
                OUTPUT,
            ),
            OutputPolicy::Stop,
        )
        .entry("vectors_of_the_same", &[])
        .pages(160)
        .ends(EXCEEDED),
        row(
            "vectors of nothing",
            "A million vectors that are empty, for ever.",
            OUTPUT,
        )
        .entry("vectors_of_nothing", &[])
        .pages(160)
        .times_out(),
        row(
            "a vector of 4 GiB",
            "One vector that is longer than memory.",
            OUTPUT,
        )
        .entry("gulp", &["1"])
        .pages(160)
        .ends(&[End::Exits(48)]),
        row(
            "vectors beyond memory",
            "Its vectors stand where no memory is.",
            OUTPUT,
        )
        .entry("beyond", &["1"])
        .pages(160)
        .ends(&[End::Traps("host_pointer")]),
    ]);
    rows
}

/// Descriptors that are not what they were.
fn descriptors() -> Vec<Row> {
    let renumbered = |from: &'static str, to: &'static str| {
        let does = "It renumbers one descriptor over another, and writes a byte to that.";
        row(format!("renumber {from} to {to}"), does, OUTPUT).given(move |spec, folder| {
            let spec = spec.entry("renumbered").args(&[from, to]);
            spec.mount(folder.at("readonly"), "/d", true)
                .timeout(SOON * 100)
        })
    };
    let wrote = |row: Row, stdout: &'static str, stderr: &'static str| {
        row.ends(&[End::Exits(0)])
            .and("the byte is where it belongs", move |ran| {
                (ran.out(), ran.err()) == (stdout, stderr)
            })
    };
    vec![
        row(
            "stdout closed",
            "It closes stdout and writes to it.",
            OUTPUT,
        )
        .entry("closed", &["1"])
        .ends(BAD_DESCRIPTOR),
        row(
            "stderr closed",
            "It closes stderr and writes to it.",
            OUTPUT,
        )
        .entry("closed", &["2"])
        .ends(BAD_DESCRIPTOR),
        row(
            "a mount closed",
            "It closes its mount and writes to it.",
            OUTPUT,
        )
        .entry("closed", &["3"])
        .given(|spec, folder| spec.mount(folder.at("readonly"), "/d", true))
        .ends(BAD_DESCRIPTOR),
        wrote(renumbered("1", "1"), "x", ""),
        wrote(renumbered("2", "1"), "", "x"),
        wrote(renumbered("1", "2"), "x", ""),
        wrote(renumbered("1", "3"), "x", ""),
        wrote(renumbered("1", "0"), "x", ""),
        renumbered("3", "1").ends(BAD_DESCRIPTOR),
        renumbered("0", "1").ends(BAD_DESCRIPTOR),
        renumbered("1", "100").ends(BAD_DESCRIPTOR),
        renumbered("100", "1").ends(BAD_DESCRIPTOR),
        renumbered("-1", "1").ends(BAD_DESCRIPTOR),
    ]
}
