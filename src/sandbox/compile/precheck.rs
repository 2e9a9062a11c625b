//! Counts that a module may have for its size, looked at before anything is validated or a compile child is spent.
//!
//! What costs a compiler most is not bytes but things: 900,000 functions of four bytes take over 4 GiB, as many bytes
//! of ordinary code a few megabytes. Real programs have tens to hundreds of bytes for each of their functions, types
//! and table elements, so what is allowed grows with the module. What passes here is still bounded by the budget.

use wasmparser::{ElementItems, Parser, Payload};

use super::compile_limit;
use crate::refusal::{Refusal, quote};
use crate::sandbox::validate::invalid;

/// How many of a thing a module may have.
struct Rule {
    /// Its name.
    what: &'static str,
    /// In any module.
    base: u64,
    /// Bytes of module for each one more.
    bytes_each: u64,
}

const FUNCTIONS: Rule = Rule {
    what: "functions",
    base: 16_384,
    bytes_each: 64,
};
const TYPES: Rule = Rule {
    what: "types",
    base: 16_384,
    bytes_each: 256,
};
const ELEMENTS: Rule = Rule {
    what: "table elements",
    base: 65_536,
    bytes_each: 64,
};
const SEGMENTS: Rule = Rule {
    what: "data and element segments",
    base: 16_384,
    bytes_each: 256,
};

#[derive(Default)]
struct Counts {
    functions: u64,
    types: u64,
    elements: u64,
    segments: u64,
}

/// Refuses a binary module with more of something than its size explains. The counts of everything in a component are
/// added up.
///
/// # Errors
/// `COMPILE_LIMIT_EXCEEDED` with the count and what is allowed; `MODULE_INVALID` with the offset where the sections
/// cannot be told apart.
pub(super) fn check(wasm: &[u8]) -> Result<(), Refusal> {
    let counts =
        count(wasm).map_err(|error| invalid(&quote(error.message()), Some(error.offset())))?;
    let size = wasm.len() as u64;
    let counted = [
        (FUNCTIONS, counts.functions),
        (TYPES, counts.types),
        (ELEMENTS, counts.elements),
        (SEGMENTS, counts.segments),
    ];
    for (rule, count) in counted {
        let allowed = rule.base + size / rule.bytes_each;
        if count > allowed {
            let message = format!("the module has {count} {} in {size} bytes", rule.what);
            return Err(compile_limit(rule.what, message, allowed).with("asked", count));
        }
    }
    Ok(())
}

fn count(wasm: &[u8]) -> wasmparser::Result<Counts> {
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(wasm) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sections whose counts cost no more than their bytes"
        )]
        match payload? {
            Payload::FunctionSection(functions) => counts.functions += u64::from(functions.count()),
            Payload::TypeSection(types) => counts.types += u64::from(types.count()),
            Payload::ComponentTypeSection(types) => counts.types += u64::from(types.count()),
            Payload::CoreTypeSection(types) => counts.types += u64::from(types.count()),
            Payload::DataSection(segments) => counts.segments += u64::from(segments.count()),
            Payload::ElementSection(segments) => {
                counts.segments += u64::from(segments.count());
                for segment in segments {
                    counts.elements += match segment?.items {
                        ElementItems::Functions(items) => u64::from(items.count()),
                        ElementItems::Expressions(_, items) => u64::from(items.count()),
                    };
                }
            }
            _ => {}
        }
    }
    Ok(counts)
}
