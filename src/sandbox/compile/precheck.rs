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

const FUNCTIONS: Rule = Rule::new("functions", 16_384, 64);
const TYPES: Rule = Rule::new("types", 16_384, 256);
const ELEMENTS: Rule = Rule::new("table elements", 65_536, 64);
const SEGMENTS: Rule = Rule::new("data and element segments", 16_384, 256);
const EXPORTS: Rule = Rule::new("exports", 16_384, 256);
const IMPORTS: Rule = Rule::new("imports", 16_384, 256);
/// Modules and components in a component.
const NESTED: Rule = Rule::new("nested modules", 1000, 4096);
/// How deep they may be nested.
const DEPTH: u64 = 32;

#[derive(Default)]
struct Counts {
    exports: u64,
    imports: u64,
    nested: u64,
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
    let size = wasm.len() as u64;
    let counts = count(wasm)?;
    let counted = [
        (FUNCTIONS, counts.functions),
        (TYPES, counts.types),
        (ELEMENTS, counts.elements),
        (SEGMENTS, counts.segments),
        (EXPORTS, counts.exports),
        (IMPORTS, counts.imports),
    ];
    counted
        .into_iter()
        .try_for_each(|(rule, count)| rule.check(count, size))
}

impl Rule {
    const fn new(what: &'static str, base: u64, bytes_each: u64) -> Self {
        Self {
            what,
            base,
            bytes_each,
        }
    }

    fn check(&self, count: u64, size: u64) -> Result<(), Refusal> {
        let allowed = self.base + size / self.bytes_each;
        if count <= allowed {
            return Ok(());
        }
        let message = format!("the module has {count} {} in {size} bytes", self.what);
        Err(compile_limit(self.what, message, allowed).with("asked", count))
    }
}

fn count(wasm: &[u8]) -> Result<Counts, Refusal> {
    let (mut counts, mut depth) = (Counts::default(), 0);
    let malformed = |error: wasmparser::BinaryReaderError| {
        invalid(&quote(error.message()), Some(error.offset()))
    };
    for payload in Parser::new(0).parse_all(wasm) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sections whose counts cost no more than their bytes"
        )]
        match payload.map_err(malformed)? {
            // The parser keeps something for each level: these are checked as they come.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                counts.nested += 1;
                NESTED.check(counts.nested, wasm.len() as u64)?;
                if depth > DEPTH {
                    let message = "components are nested too deep".to_owned();
                    return Err(compile_limit("nesting", message, DEPTH));
                }
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ExportSection(exports) => counts.exports += u64::from(exports.count()),
            Payload::ImportSection(imports) => counts.imports += u64::from(imports.count()),
            Payload::ComponentExportSection(exports) => {
                counts.exports += u64::from(exports.count());
            }
            Payload::ComponentImportSection(imports) => {
                counts.imports += u64::from(imports.count());
            }
            Payload::FunctionSection(functions) => counts.functions += u64::from(functions.count()),
            Payload::TypeSection(types) => counts.types += u64::from(types.count()),
            Payload::ComponentTypeSection(types) => counts.types += u64::from(types.count()),
            Payload::CoreTypeSection(types) => counts.types += u64::from(types.count()),
            Payload::DataSection(segments) => counts.segments += u64::from(segments.count()),
            Payload::ElementSection(segments) => {
                counts.segments += u64::from(segments.count());
                for segment in segments {
                    counts.elements += match segment.map_err(malformed)?.items {
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
