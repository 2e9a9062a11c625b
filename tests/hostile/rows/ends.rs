//! Guests that end in odd ways, under odd names.

use ringfence::api::proto::Outcome;
use tonic::Code;

use crate::harness::{Ran, SpecExt};
use crate::made::{command, exceptions_kept, exits};
use crate::row::{End, Row, row};

const INJECTION: &str = include_str!("../guests/injection.wat");
const EXCEPTIONS: &str = include_str!("../guests/exceptions.wat");

pub(crate) fn rows() -> Vec<Row> {
    [codes(), names(), exceptions()]
        .into_iter()
        .flatten()
        .collect()
}

fn codes() -> Vec<Row> {
    let import = "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (func $f (call $exit (i32.const 300)))";
    [
        0,
        1,
        125,
        126,
        127,
        128,
        134,
        137,
        255,
        256,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
    ]
    .into_iter()
    .map(|code| row(format!("exit {code}"), "It exits.", exits(code)).ends(&[End::Exits(code)]))
    .chain([
        row(
            "exit in a start function",
            "It exits before there is an instance.",
            command(&format!("{import} (start $f)"), "unreachable"),
        )
        .ends(&[End::Exits(300)]),
        row(
            "exit in _initialize",
            "Its reactor exits.",
            command(
                &format!("{import} (export \"_initialize\" (func $f)) (func (export \"go\"))"),
                "",
            ),
        )
        .entry("go", &[])
        .ends(&[End::Exits(300)]),
        row(
            "trap in a start function",
            "It traps before there is an instance.",
            command("(func $f unreachable) (start $f)", ""),
        )
        .ends(&[End::Traps("unreachable")]),
    ])
    .collect()
}

/// Names that would forge a line of a log. That no control character comes through holds for every row.
fn names() -> Vec<Row> {
    let traps = |name: &str| {
        row(name, "It traps in a function of a forged name.", INJECTION)
            .ends(&[End::Traps("unreachable")])
    };
    let named = |ran: &Ran| {
        let frames = ran.result.trap.iter().flat_map(|trap| &trap.backtrace);
        let mut names = frames.map(|frame| (&frame.func_name, &frame.module_name));
        names.any(|(func, module)| func.contains("ERROR forged") && module.contains("forged"))
    };
    let invalid = &[End::Refused(Code::InvalidArgument, "SPEC_INVALID")];
    let label = |name: &str, key: &'static str, value: &'static str| {
        row(name, "It is labelled to forge a line.", INJECTION)
            .given(move |spec, _| spec.label(key, value))
            .ends(invalid)
    };
    let forged = "x\n2026-01-01T00:00:00Z ERROR \u{1b}]0;forged\u{7}\u{202e}";
    vec![
        traps("forged function name").and("its names are told", named),
        traps("forged entry point").entry("entry\n\u{1b}[31m", &[]),
        row(
            "forged entry point that is not there",
            "It calls what is not there.",
            INJECTION,
        )
        .given(move |spec, _| spec.entry(forged))
        .ends(&[End::Refused(Code::InvalidArgument, "ENTRY_POINT_NOT_FOUND")]),
        row(
            "forged import",
            "It imports a forged name.",
            "(module (import \"a\\0a\\1b[2J\" \"b\\0d\\e2\\80\\ae\" (func)))",
        )
        .ends(&[End::Refused(Code::PermissionDenied, "IMPORT_NOT_ALLOWED")]),
        row(
            "forged text",
            "Its text has a forged word.",
            format!("(module ({forged}))"),
        )
        .ends(&[End::Refused(Code::InvalidArgument, "MODULE_INVALID")]),
        label(
            "forged label",
            "job",
            "a\n2026-01-01T00:00:00Z ERROR forged",
        ),
        label("forged label's key", "job\u{1b}[2J\nERROR", "a"),
        label("reserved label", "ringfence.\u{1b}", "a"),
        row(
            "forged working directory",
            "It starts where nothing is.",
            INJECTION,
        )
        .given(move |spec, _| spec.change(|spec| spec.working_dir = format!("/{forged}")))
        .ends(invalid),
        row("forged mount", "It is given what nobody grants.", INJECTION)
            .given(move |spec, _| spec.mount(format!("/{forged}"), &format!("/{forged}"), true))
            .ends(&[End::Refused(Code::PermissionDenied, "POLICY_DENIED")]),
        row("forged variable", "It gets a variable twice.", INJECTION)
            .given(move |spec, _| spec.env(&[&format!("{forged}=1"), &format!("{forged}=2")]))
            .ends(invalid),
        row(
            "forged host function",
            "It asks for what there is not.",
            INJECTION,
        )
        .given(move |spec, _| spec.security(|s| s.allowed_host_functions = vec![forged.to_owned()]))
        .ends(&[
            End::Refused(Code::PermissionDenied, "POLICY_DENIED"),
            invalid[0],
        ]),
        row("forged digest", "It is no digest.", INJECTION)
            .given(move |spec, _| {
                spec.change(|spec| {
                    let digest = forged.to_owned();
                    spec.module = Some(ringfence::api::proto::run_spec::Module::Digest(digest));
                })
            })
            .ends(invalid),
    ]
}

fn exceptions() -> Vec<Row> {
    let throws = |name: &str, does| row(name, does, EXCEPTIONS).with_proposals();
    vec![
        throws("uncaught exception", "It throws what nobody catches.")
            .ends(&[End::Traps("uncaught_exception")]),
        row(
            "uncaught exception, proposal off",
            "It throws where that is off.",
            EXCEPTIONS,
        )
        .ends(&[End::Refused(
            Code::FailedPrecondition,
            "FEATURE_NOT_ENABLED",
        )])
        .tells("feature", "exceptions"),
        throws(
            "flood of exceptions",
            "It catches what it throws, for ever.",
        )
        .entry("flood", &[])
        .pages(64)
        .times_out(),
        throws(
            "recursion that catches all",
            "It would catch its stack's end.",
        )
        .entry("deep", &[])
        .ends(&[End::Ends(Outcome::StackOverflow)]),
        row(
            "exceptions kept",
            "It keeps a kilobyte with each exception.",
            exceptions_kept(),
        )
        .with_proposals()
        .pages(16)
        .ends(&[
            End::Ends(Outcome::MemoryExceeded),
            End::Traps("allocation_too_large"),
        ]),
    ]
}
