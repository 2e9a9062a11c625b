//! Guests whose text is too long to write down.

use std::fmt::Write;

use bytes::Bytes;

/// `count` memories of one page.
pub(crate) fn memories(count: usize) -> String {
    let memories = "(memory 1)".repeat(count);
    format!("(module {memories} (func (export \"_start\")))")
}

/// `count` tables of one element.
pub(crate) fn tables(count: usize) -> String {
    let tables = "(table 1 funcref)".repeat(count);
    format!("(module {tables} (func (export \"_start\")))")
}

/// A module with `items`, and a command that does `body`.
pub(crate) fn command(items: &str, body: &str) -> String {
    format!("(module {items} (func (export \"_start\") {body}))")
}

/// Exits with `code`.
pub(crate) fn exits(code: u32) -> String {
    command(
        "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))",
        &format!("(call $exit (i32.const {code}))"),
    )
}

/// Calls itself with a frame that holds `locals` numbers over the call.
pub(crate) fn recursion_by_frame(locals: usize) -> String {
    let mut body = String::new();
    for i in 1..=locals {
        let odd = 2 * i + 1;
        write!(
            body,
            "(local.set {i} (i64.mul (local.get 0) (i64.const {odd})))"
        )
        .unwrap();
    }
    body.push_str("(call $f (i64.add (local.get 0) (i64.const 1)))");
    for i in 1..=locals {
        write!(
            body,
            "(global.set 0 (i64.xor (global.get 0) (local.get {i})))"
        )
        .unwrap();
    }
    let locals = "i64 ".repeat(locals);
    format!(
        "(module (global (mut i64) (i64.const 0))
           (func $f (param i64) (local {locals}) {body})
           (func (export \"_start\") (call $f (i64.const 1))))"
    )
}

/// Asks for 64 KiB of randomness so many times, one call after the other: no loop, and no function of its own.
pub(crate) fn straight_calls(count: usize) -> String {
    let call = "(drop (call $random (i32.const 0) (i32.const 0x10000)))";
    command(
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $random (param i32 i32) (result i32)))
         (memory (export \"memory\") 1)",
        &call.repeat(count),
    )
}

/// Overflows a set inside the compiler.
pub(crate) fn compiler_panic() -> Bytes {
    let globals = "(global (mut i32) (i32.const 0))".repeat(66_000);
    let reads: String = (0..66_000)
        .map(|i| format!("(drop (global.get {i}))"))
        .collect();
    let text = command(&format!("{globals} (func {reads})"), "");
    wat::parse_str(text).unwrap().into()
}

/// `depth` blocks in one another.
pub(crate) fn nested_blocks(depth: usize) -> Bytes {
    // By hand: the text format's parser has a depth of its own.
    let mut code =
        b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0".to_vec();
    let mut body = vec![0];
    body.extend([0x02, 0x40].repeat(depth));
    body.extend(vec![0x0b; depth + 1]);
    let mut function = leb128(body.len());
    function.extend(body);
    code.push(0x0a);
    code.extend(leb128(function.len() + 1));
    code.push(1);
    code.extend(function);
    code.into()
}

fn leb128(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        if n == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// Keeps every exception that it catches, each a kilobyte.
pub(crate) fn exceptions_kept() -> String {
    let values = "(i64.const 1)".repeat(128);
    format!(
        "(module (tag $t (param {}))
           (table $kept 0 exnref)
           (func (export \"_start\")
             (loop $again
               (block $caught (result exnref)
                 (try_table (catch_all_ref $caught) {values} (throw $t))
                 unreachable)
               i32.const 1
               table.grow $kept
               (br_if $again (i32.ne (i32.const -1))))
             unreachable))",
        "i64 ".repeat(128)
    )
}
