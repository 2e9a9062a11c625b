//! Modules that are refused for what they are, or take the compiler with them.

use tonic::Code;

use crate::harness::SpecExt;
use crate::made::{command, compiler_panic, nested_blocks};
use crate::row::{End, Row, row};

const NOT_ALLOWED: &[End] = &[End::Refused(Code::PermissionDenied, "IMPORT_NOT_ALLOWED")];
const NOT_ENABLED: &[End] = &[End::Refused(
    Code::FailedPrecondition,
    "FEATURE_NOT_ENABLED",
)];
const INVALID: &[End] = &[End::Refused(Code::InvalidArgument, "MODULE_INVALID")];
const NO_ENTRY: &[End] = &[End::Refused(Code::InvalidArgument, "ENTRY_POINT_NOT_FOUND")];
const BAD_ENTRY: &[End] = &[End::Refused(Code::InvalidArgument, "ENTRY_POINT_SIGNATURE")];

pub(crate) fn rows() -> Vec<Row> {
    [imports(), features(), shapes(), entries()]
        .into_iter()
        .flatten()
        .collect()
}

fn imports() -> Vec<Row> {
    const P1: &str = "wasi_snapshot_preview1";
    let import = |module: &str, name: &str, ty: &str| {
        let text = command(&format!("(import {module:?} {name:?} ({ty}))"), "");
        row(
            format!("import of {module}.{name} as {ty}"),
            "It imports what nobody offers.",
            text,
        )
        .ends(NOT_ALLOWED)
    };
    vec![
        import("env", "f", "func").tells("imports", "env.f"),
        import("env", "memory", "memory 1").tells("imports", "env.memory"),
        import("env", "table", "table 1 funcref").tells("imports", "env.table"),
        import("env", "global", "global (mut i32)").tells("imports", "env.global"),
        import("env", "tag", "tag")
            .with_proposals()
            .tells("imports", "env.tag"),
        import("", "", "func"),
        import(P1, "fd_write", "func").tells("imports", "wasi_snapshot_preview1.fd_write"),
        import(P1, "fd_write", "func (param i64 i32 i32 i32) (result i32)"),
        import(P1, "proc_exit", "func (param i32) (result i32)"),
        import(P1, "fd_write", "memory 1"),
        import(P1, "fd_write", "global i32"),
        import(P1, "sock_open", "func (param i32 i32 i32) (result i32)")
            .tells("imports", "sock_open"),
        import(
            "wasi_snapshot_preview2",
            "fd_write",
            "func (param i32 i32 i32 i32) (result i32)",
        ),
        import("ringfence", "log", "func (param i32 i32 i32)").tells("imports", "ringfence.log"),
        import(P1, "sched_yield", "func (result i32)")
            .given(|spec, _| spec.security(|s| s.enable_wasi = Some(false))),
        row(
            "10,000 imports",
            "It imports so much that a refusal cannot name it all.",
            command(
                &(0..10_000)
                    .map(|i| format!("(import \"env\" \"{i}\" (func))"))
                    .collect::<String>(),
                "",
            ),
        )
        .ends(NOT_ALLOWED),
    ]
}

fn features() -> Vec<Row> {
    let needs = |feature: &'static str, items: &str| {
        row(
            format!("needs {feature}"),
            "It uses a proposal that is off.",
            command(items, ""),
        )
        .ends(NOT_ENABLED)
        .tells("feature", feature)
    };
    vec![
        needs("shared-memory", "(memory 1 2 shared)"),
        needs("shared-memory", "(memory 1 2 shared)").with_proposals(),
        row(
            "imports a shared memory",
            "It wants a memory that others have.",
            command("(import \"env\" \"m\" (memory 1 2 shared))", ""),
        )
        .ends(&[NOT_ENABLED[0], NOT_ALLOWED[0]]),
        needs("memory64", "(memory i64 1)"),
        needs("memory64", "(table i64 1 funcref)"),
        needs("gc", "(type (struct (field i32)))"),
        needs("gc", "(type (array (mut i8)))"),
        needs("gc", "(func (param i31ref))"),
        needs(
            "function-references",
            "(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))",
        ),
        needs("exceptions", "(tag)"),
        needs(
            "threads",
            "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
        ),
        needs("custom-page-sizes", "(memory 1 (pagesize 1))"),
        needs(
            "wide-arithmetic",
            "(func (param i64 i64 i64 i64) (result i64 i64)
               (i64.add128 (local.get 0) (local.get 1) (local.get 2) (local.get 3)))",
        ),
    ]
}

fn shapes() -> Vec<Row> {
    let hello = wat::parse_str(include_str!("../guests/hello.wat")).unwrap();
    let cut = hello[..hello.len() - 3].to_vec();
    let does = "It is no module.";
    vec![
        row(
            "nothing but a header",
            "It is a module without anything.",
            b"\0asm\x01\0\0\0".to_vec(),
        )
        .ends(NO_ENTRY),
        row("a module cut short", does, cut).ends(INVALID),
        row(
            "a header of another version",
            does,
            b"\0asm\x02\0\0\0".to_vec(),
        )
        .ends(INVALID),
        row(
            "native code",
            does,
            b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        )
        .ends(INVALID),
        row("noise", does, vec![0xff; 100_000]).ends(INVALID),
        row("a million parentheses", does, "(".repeat(1_000_000)).ends(INVALID),
        row("a comment without an end", does, "(;".repeat(500_000)).ends(INVALID),
        row(
            "10,000 blocks deep",
            "It is valid, and deeper than a program is.",
            nested_blocks(10_000),
        )
        .ends(&[End::Exits(0)]),
        row(
            "200,000 blocks deep",
            "It is valid, and far deeper than a program is.",
            nested_blocks(200_000),
        )
        .ends(&[
            End::Exits(0),
            End::Refused(Code::InvalidArgument, "COMPILATION_FAILED"),
            End::Refused(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED"),
        ]),
        row(
            "a compiler panic",
            "It reads 66,000 globals, which the compiler does not survive.",
            compiler_panic(),
        )
        .ends(&[End::Refused(Code::InvalidArgument, "COMPILATION_FAILED")]),
    ]
}

/// Entry points that are none, or are the host's.
fn entries() -> Vec<Row> {
    const RE: &str = include_str!("../guests/exports-imports.wat");
    // Memory is found by the caller's exports, and the caller is the host.
    const NO_MEMORY: &[End] = &[End::Traps("host_call")];
    let host = |entry, args| {
        row(
            format!("host function as entry point: {entry}"),
            "It exports what it imports.",
            RE,
        )
        .entry(entry, args)
    };
    vec![
        row(
            "_start is a memory",
            "It exports something else as its command.",
            "(module (memory (export \"_start\") 1))",
        )
        .ends(NO_ENTRY),
        row(
            "_start takes a parameter",
            "Its command is none.",
            "(module (func (export \"_start\") (param i32)))",
        )
        .ends(BAD_ENTRY),
        row(
            "_start takes a reference",
            "Its command is none.",
            "(module (func (export \"_start\") (param externref)))",
        )
        .ends(&[BAD_ENTRY[0], NOT_ENABLED[0]]),
        row(
            "_initialize takes a parameter",
            "Its reactor is none.",
            "(module (func (export \"_initialize\") (param i32)) (func (export \"go\")))",
        )
        .entry("go", &[])
        .ends(BAD_ENTRY),
        host("exit", &["7"]).ends(&[End::Exits(7)]),
        host("exit", &["-1"]).ends(&[End::Exits(u32::MAX)]),
        host("yield", &[]).ends(NO_MEMORY),
        host("write", &["1", "0", "1", "0"]).ends(NO_MEMORY),
        host("poll", &["0", "0", "1", "0"]).ends(NO_MEMORY),
    ]
}
