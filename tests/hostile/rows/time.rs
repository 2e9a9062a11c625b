//! Guests that are after the processor: in their own code, and in host calls.

use ringfence::api::proto::Outcome;

use crate::harness::SpecExt;
use crate::made;
use crate::row::{End, Row, row};

const SPIN: &str = include_str!("../guests/spin.wat");
const SPIN_START: &str = include_str!("../guests/spin-start.wat");
const SPIN_INITIALIZE: &str = include_str!("../guests/spin-initialize.wat");
const BULK: &str = include_str!("../guests/bulk.wat");
const CALLS: &str = include_str!("../guests/calls.wat");

/// Fuel for less than [`crate::row::SOON`].
const LITTLE: u64 = 1_000_000;
const NO_FUEL: &[End] = &[End::Ends(Outcome::FuelExhausted)];

/// An errno of preview 1, which the guest exits with.
const INVALID: &[End] = &[End::Exits(28)];

pub(crate) fn rows() -> Vec<Row> {
    [own_code(), bulk(), calls(), sleeps()]
        .into_iter()
        .flatten()
        .collect()
}

fn own_code() -> Vec<Row> {
    vec![
        row(
            "spin in a start function",
            "It spins before there is an instance.",
            SPIN_START,
        )
        .times_out(),
        row(
            "spin in a start function, little fuel",
            "It spins before there is an instance.",
            SPIN_START,
        )
        .times_out()
        .metered(LITTLE, NO_FUEL),
        row(
            "spin in _initialize",
            "A reactor that never comes to be.",
            SPIN_INITIALIZE,
        )
        .entry("go", &[])
        .times_out(),
        row(
            "spin in _initialize, little fuel",
            "A reactor that never comes to be.",
            SPIN_INITIALIZE,
        )
        .entry("go", &[])
        .times_out()
        .metered(LITTLE, NO_FUEL),
        row("spin in _start", "It loops over nothing.", SPIN).times_out(),
        row(
            "spin in _start, little fuel",
            "It loops over nothing.",
            SPIN,
        )
        .times_out()
        .metered(LITTLE, NO_FUEL),
        row("spin by a tail call", "It returns a call of itself.", SPIN)
            .entry("tail", &[])
            .times_out(),
        row(
            "spin by a tail call, little fuel",
            "It returns a call of itself.",
            SPIN,
        )
        .entry("tail", &[])
        .times_out()
        .metered(LITTLE, NO_FUEL),
        row(
            "spin by two tail calls",
            "Two functions of different types return calls of each other.",
            SPIN,
        )
        .entry("ping", &[])
        .times_out(),
        row(
            "spin by an indirect tail call",
            "It returns a call of itself by a table.",
            SPIN,
        )
        .entry("tail_indirect", &[])
        .times_out(),
        row(
            "spin by calls",
            "A tree of 2^60 calls without one loop.",
            SPIN,
        )
        .entry("calls", &["60"])
        .times_out(),
        row(
            "spin by calls, little fuel",
            "A tree of 2^60 calls without one loop.",
            SPIN,
        )
        .entry("calls", &["60"])
        .times_out()
        .metered(LITTLE, NO_FUEL),
        row(
            "spin over a table",
            "It calls nothing by a table, for ever.",
            SPIN,
        )
        .entry("table", &[])
        .times_out(),
        row(
            "spin over a switch",
            "Every branch of its table leads back.",
            SPIN,
        )
        .entry("switch", &["0"])
        .times_out(),
    ]
}

fn bulk() -> Vec<Row> {
    let does = "It does one bulk operation over all that it has, for ever.";
    [
        "fill",
        "copy",
        "init",
        "table_fill",
        "table_copy",
        "table_init",
    ]
    .into_iter()
    .map(|entry| {
        row(format!("bulk: {entry}"), does, BULK)
            .entry(entry, &[])
            .pages(128)
            .times_out()
    })
    .chain([
        row("bulk: fill, little fuel", does, BULK)
            .entry("fill", &[])
            .pages(128)
            .times_out()
            .metered(LITTLE, NO_FUEL),
        row("bulk: table_fill, little fuel", does, BULK)
            .entry("table_fill", &[])
            .pages(128)
            .times_out()
            .metered(10_000, NO_FUEL),
    ])
    .collect()
}

/// Host calls in a loop.
fn calls() -> Vec<Row> {
    let does = "It makes one host call, for ever.";
    let mut rows: Vec<Row> = [
        "random_pieces",
        "clock",
        "yield",
        "arguments",
        "environment",
        "accept",
    ]
    .into_iter()
    .map(|entry| {
        row(format!("calls: {entry}"), does, CALLS)
            .entry(entry, &[])
            .pages(320)
            .times_out()
    })
    .collect();
    rows.extend([
        row(
            "calls: in a straight line",
            "It makes host calls one after the other, where no loop turns.",
            made::straight_calls(40_000),
        )
        .times_out(),
        row(
            "calls: random_all",
            "It asks for 20 MiB of randomness at once.",
            CALLS,
        )
        .entry("random_all", &[])
        .pages(320)
        .times_out(),
        row(
            "calls: a million arguments' worth",
            "It copies 100 KiB of arguments, for ever.",
            CALLS,
        )
        .entry("arguments", &[])
        .pages(320)
        .times_out()
        .given(|spec, _| spec.args(&[&"x".repeat(100_000)])),
        row(
            "calls: read_on",
            "It reads on at the end, into a million vectors.",
            CALLS,
        )
        .entry("read_on", &[])
        .pages(320)
        .times_out()
        .given(|spec, _| spec.stdin(vec![b'x'; 64 << 10])),
    ]);
    rows
}

/// Waiting.
fn sleeps() -> Vec<Row> {
    let stepped = |row: Row| row.given(|spec, _| spec.security(|s| s.enable_clock = Some(false)));
    vec![
        row("sleep", "It sleeps for an hour.", CALLS)
            .entry("sleep", &[])
            .pages(320)
            .times_out(),
        row(
            "sleep a hundred times at once",
            "It polls a hundred clocks of an hour.",
            CALLS,
        )
        .entry("sleep_often", &[])
        .pages(320)
        .times_out(),
        row(
            "poll as many clocks as memory holds",
            "It polls 250,000 clocks.",
            CALLS,
        )
        .entry("poll_all", &[])
        .pages(320)
        .ends(INVALID),
        row(
            "poll more clocks than memory holds",
            "It polls 2^32 - 1 clocks.",
            CALLS,
        )
        .entry("poll_too_many", &[])
        .pages(320)
        .ends(INVALID),
        stepped(row(
            "deterministic clock: sleep",
            "It sleeps for an hour that takes no time.",
            CALLS,
        ))
        .entry("sleep", &[])
        .pages(320)
        .ends(&[End::Exits(0)]),
        stepped(row(
            "deterministic clock: poll 250,000",
            "It polls 250,000 clocks that are due.",
            CALLS,
        ))
        .entry("poll_all", &[])
        .pages(320)
        .ends(INVALID),
        stepped(row(
            "deterministic clock: poll for ever",
            "It does so for ever.",
            CALLS,
        ))
        .entry("poll_all_for_ever", &[])
        .pages(320)
        .times_out(),
        stepped(row(
            "deterministic clock: poll too many",
            "It polls 2^32 - 1 clocks.",
            CALLS,
        ))
        .entry("poll_too_many", &[])
        .pages(320)
        .ends(INVALID),
    ]
}
