//! Guests that are after memory: linear memories, tables, stacks, arguments.

use ringfence::api::proto::Outcome;
use tonic::Code;

use crate::harness::SpecExt;
use crate::made::{command, memories, recursion_by_frame, tables};
use crate::row::{End, Row, SOON, row};
use crate::{guest, habit};

const GROW: &str = include_str!("../guests/grow.wat");
const RECURSE: &str = include_str!("../guests/recurse.wat");
const RECURSE_START: &str = include_str!("../guests/recurse-start.wat");

const EXCEEDED: &[End] = &[End::Ends(Outcome::MemoryExceeded)];
const OVERFLOW: &[End] = &[End::Ends(Outcome::StackOverflow)];
const ABOVE: &[End] = &[End::Refused(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")];
const BELOW_MINIMUM: &[End] = &[End::Refused(
    Code::FailedPrecondition,
    "MEMORY_BELOW_MODULE_MINIMUM",
)];

pub(crate) fn rows() -> Vec<Row> {
    [pools(), declared(), grown(), stacks(), arguments()]
        .into_iter()
        .flatten()
        .collect()
}

/// All that a pool may keep of its slots for the next run, so that it is held from the first pass on.
fn pools() -> Vec<Row> {
    let fill = |memory: &str| {
        format!("(memory.fill {memory} (i32.const 0) (i32.const 1) (i32.const 0x200000))")
    };
    let text = command(
        "(memory $a 32) (memory $b 32)",
        &format!("{} {} (loop $again (br $again))", fill("$a"), fill("$b")),
    );
    let does = "It fills all the memories that a slot has, and stays.";
    let fills = |name| {
        row(name, does, text.clone())
            .times_out()
            .given(|spec, _| spec.timeout(SOON * 4))
            .crowd(32)
    };
    vec![
        fills("every slot filled"),
        fills("every slot filled, with proposals").with_proposals(),
    ]
}

/// What a module says that it needs.
fn declared() -> Vec<Row> {
    vec![
        row(
            "32 memories",
            "As many memories as there may be.",
            memories(32),
        )
        .ends(&[End::Exits(0)]),
        row(
            "33 memories",
            "One memory more than there may be.",
            memories(33),
        )
        .ends(ABOVE),
        row(
            "1,000 memories",
            "Far more memories than there may be.",
            memories(1000),
        )
        .ends(&[End::Refused(Code::InvalidArgument, "MODULE_INVALID")]),
        row("64 tables", "As many tables as there may be.", tables(64)).ends(&[End::Exits(0)]),
        row("65 tables", "One table more than there may be.", tables(65)).ends(ABOVE),
        row(
            "a memory of 65,536 pages",
            "It declares 4 GiB.",
            command("(memory 65536)", ""),
        )
        .ends(BELOW_MINIMUM),
        row(
            "32 memories of 2,048 pages",
            "They are 4 GiB together.",
            command(&"(memory 2048)".repeat(32), ""),
        )
        .ends(BELOW_MINIMUM),
        row(
            "a page more than asked for",
            "It declares more than the run asks for.",
            command("(memory 11)", ""),
        )
        .pages(10)
        .ends(BELOW_MINIMUM),
        row(
            "a table of 10 million",
            "It declares 10 million elements.",
            command("(table 10000000 funcref)", ""),
        )
        .ends(EXCEEDED),
        row(
            "a table of 4 billion",
            "It declares all the elements there are.",
            command("(table 0xffffffff funcref)", ""),
        )
        .ends(EXCEEDED),
        row(
            "64 tables of 20,000",
            "They are too many elements together.",
            command(&"(table 20000 funcref)".repeat(64), ""),
        )
        .ends(EXCEEDED),
        row(
            "data out of bounds",
            "Its data does not fit its memory.",
            command("(memory 1) (data (i32.const 65536) \"x\")", ""),
        )
        .ends(&[End::Traps("memory_out_of_bounds")]),
        row(
            "elements out of bounds",
            "Its elements do not fit its table.",
            command("(table 1 funcref) (func $f) (elem (i32.const 1) $f)", ""),
        )
        .ends(&[End::Traps("table_out_of_bounds")]),
    ]
}

fn grown() -> Vec<Row> {
    let does = "It grows what it has for as long as it is let.";
    let grows = |entry| {
        row(format!("grow: {entry}"), does, GROW)
            .entry(entry, &[])
            .pages(64)
    };
    let denied = |row: Row| row.and("it was denied memory", |ran| ran.result.memory_denied);
    vec![
        grows("memory_for_ever").times_out(),
        denied(grows("memory_and_cope").ends(&[End::Exits(0)]))
            .and("it had all it may have", |ran| {
                ran.result.memory_used == 64 << 16
            }),
        denied(grows("memory_or_trap").ends(EXCEEDED)),
        denied(grows("memory_at_once").ends(EXCEEDED)).and("it had what it had", |ran| {
            ran.result.memory_used == 1 << 16
        }),
        grows("table_for_ever").times_out(),
        denied(grows("table_and_cope").ends(&[End::Exits(0)])),
        denied(grows("table_at_once").ends(EXCEEDED)),
    ]
}

fn stacks() -> Vec<Row> {
    let mut rows = vec![
        row(
            "recursion in a start function",
            "It overflows before there is an instance.",
            RECURSE_START,
        )
        .ends(OVERFLOW),
        row(
            "recursion by a table",
            "It calls itself by a table.",
            RECURSE,
        )
        .entry("indirect", &[])
        .ends(OVERFLOW),
    ];
    for stack in [65_536, 524_288, 1 << 20, 4 << 20, 16 << 20] {
        let sized = move |row: Row| {
            row.given(move |spec, _| spec.resources(|r| r.stack_size = Some(stack)))
                .ends(OVERFLOW)
        };
        let deep = row(
            format!("deep recursion, {stack} bytes"),
            "Its frames are as small as can be.",
            RECURSE,
        );
        let wide = row(
            format!("wide recursion, {stack} bytes"),
            "Its frames hold 2,000 numbers each.",
            recursion_by_frame(2000),
        );
        rows.extend([sized(deep), sized(wide)]);
    }
    rows
}

/// Arguments and environment, at their caps and over.
fn arguments() -> Vec<Row> {
    const CAP: usize = 128 << 10;
    let long = |name: &str, bytes: usize| {
        row(name, "It gets one long argument.", guest())
            .given(move |spec, _| spec.args(&["guest", "count", &"x".repeat(bytes)]))
    };
    let fixed = "guest".len() + "count".len() + 3;
    let environment = |name: &str, bytes: usize| {
        habit(name, "It gets one long variable.", &["count"])
            .given(move |spec, _| spec.env(&[&format!("K={}", "x".repeat(bytes - 3))]))
    };
    vec![
        long("arguments at the cap", CAP - fixed).ends(&[End::Exits(0)]),
        long("arguments a byte over the cap", CAP - fixed + 1).ends(ABOVE),
        environment("environment at the cap", CAP).ends(&[End::Exits(0)]),
        environment("environment a byte over the cap", CAP + 1).ends(ABOVE),
        row(
            "100,000 empty arguments",
            "It counts its arguments.",
            guest(),
        )
        .given(|spec, _| spec.args(&[&["guest", "count"][..], &vec![""; 100_000]].concat()))
        .ends(&[End::Exits(0)])
        .and("all came", |ran| ran.out() == "100002 10\n"),
        row(
            "200,000 empty arguments",
            "They are over the cap with their ends.",
            guest(),
        )
        .given(|spec, _| spec.args(&vec![""; 200_000]))
        .ends(ABOVE),
        habit(
            "30,000 variables",
            "It gets more variables than anybody has.",
            &["count"],
        )
        .given(|spec, _| {
            spec.change(|spec| spec.env = (0..30_000).map(|i| format!("{i}=")).collect())
        })
        .ends(ABOVE),
        habit("10,000 variables", "It gets many variables.", &["count"])
            .given(|spec, _| {
                spec.change(|spec| spec.env = (0..10_000).map(|i| format!("{i}=")).collect())
            })
            .ends(&[End::Exits(0)]),
    ]
}
