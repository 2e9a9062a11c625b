//! Modules that take the compiler longer, or more memory, than it may have.

use std::fmt::Write;

use bytes::Bytes;

pub(crate) fn binary(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

/// A module with a command that does nothing, and with `function`.
pub(crate) fn with_start(function: &str) -> Bytes {
    binary(&format!(
        "(module (memory 1) (func (export \"_start\")) {function})"
    ))
}

/// Every loop's head has to carry every local.
pub(crate) fn nested_loops() -> Bytes {
    with_start(&loops())
}

/// The same as a function of text.
pub(crate) fn loops() -> String {
    const LOCALS: usize = 1000;
    const DEPTH: usize = 300;
    let mut body = "(loop ".repeat(DEPTH);
    for i in 0..LOCALS {
        let from = (i * 7 + 1) % LOCALS;
        write!(
            body,
            "(local.set {i} (i32.add (local.get {i}) (local.get {from})))"
        )
        .unwrap();
    }
    for i in 0..DEPTH {
        write!(body, "(br_if 0 (local.get {i})))").unwrap();
    }
    format!("(func (local {}) {body})", "i32 ".repeat(LOCALS))
}

/// One function with 300,000 statements.
pub(crate) fn giant_function() -> Bytes {
    let mut body = String::new();
    for i in 0..300_000 {
        let (to, a, b) = (1 + i % 4, 1 + (i * 3) % 4, (i * 5) % 5);
        write!(
            body,
            "(local.set {to} (i32.mul (i32.add (local.get {a}) (i32.const {i})) (i32.load (local.get {b}))))"
        )
        .unwrap();
    }
    with_start(&format!(
        "(func (param i32) (local i32 i32 i32 i32) {body})"
    ))
}

/// Tables of branches, each of which carries values to many blocks.
pub(crate) fn huge_br_tables() -> Bytes {
    const BLOCKS: usize = 400;
    const TARGETS: usize = 60_000;
    let targets: String = (0..TARGETS).map(|i| format!("{} ", i % BLOCKS)).collect();
    let mut functions = String::new();
    for _ in 0..160 {
        write!(
            functions,
            "(func (param i32) {} (br_table {targets} (local.get 0)) {})",
            "(block ".repeat(BLOCKS),
            ")".repeat(BLOCKS)
        )
        .unwrap();
    }
    with_start(&functions)
}

/// Functions of which so many take more memory than there is.
pub(crate) fn functions(count: usize) -> Bytes {
    with_start(&"(func)".repeat(count))
}

/// 200,000 conditions over 64 locals.
pub(crate) fn chain_of_ifs() -> Bytes {
    let mut body = String::new();
    for i in 0..200_000 {
        let (on, to, from) = (i % 65, (i * 7) % 65, (i * 3) % 65);
        write!(
            body,
            "(if (local.get {on}) (then (local.set {to} (i32.add (local.get {from}) (i32.const {i})))))"
        )
        .unwrap();
    }
    with_start(&format!(
        "(func (param i32) (local {}) {body})",
        "i32 ".repeat(64)
    ))
}

pub(crate) fn bombs() -> [(&'static str, Bytes); 5] {
    [
        ("nested loops", nested_loops()),
        ("giant function", giant_function()),
        ("br_tables", huge_br_tables()),
        ("functions", functions(100_000)),
        ("chain of ifs", chain_of_ifs()),
    ]
}
