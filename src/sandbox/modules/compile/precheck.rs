//! Checks what compiling a module takes at the least, before a compile child is spent on it.
//!
//! What costs a compiler memory before it has compiled anything is not bytes but things: 900,000
//! functions of four bytes take over 4 GiB, and as many bytes of ordinary code take a few
//! megabytes. So the daemon counts the things that were measured to cost, and refuses a module
//! whose counts alone go over the budget. Everything else a child finds out within its budget. Data
//! segments, imports, exports and globals cost no more than the bytes that declare them, and are
//! not counted: Go's linker makes 100,000 data segments.

use std::collections::HashSet;
use std::time::Duration;

use wasmparser::{ElementItems, ElementKind, ElementSectionReader, Parser, Payload};

use super::CompileBudget;
use crate::model::guest_limits::NESTING;
use crate::model::refusal::{Refusal, list, quote};
use crate::sandbox::modules::compile_limit::compile_limit;
use crate::sandbox::modules::validate::invalid;

/// What a compiler needs for one thing of a kind, measured with wasmtime 48.0.8 on two cores.
struct Cost {
    what: &'static str,
    /// Bytes of address space, a tenth below what was measured.
    bytes: u64,
    /// Microseconds of processor time, a quarter of what was measured, since machines differ.
    micros: u64,
}

/// Cost of an empty function: 4,255 bytes and 58 us were measured.
const FUNCTION: Cost = Cost::new("functions", 3_800, 14);
/// Cost of a function type that differs from all others: 4,507 bytes and 96 us were measured, for
/// its trampolines.
const TYPE: Cost = Cost::new("function types", 4_000, 24);
/// Cost of an element that the engine places when the module is instantiated: 3,652 bytes and 11 us
/// were measured. An element that stands in a table from the start takes 9 bytes.
const ELEMENT: Cost = Cost::new("passive table elements", 3_200, 2);
/// Cost of a core module, or of a component, in a component: 37,704 and 35,656 bytes resident, and
/// 58 us, were measured.
const NESTED: Cost = Cost::new("nested modules and components", 32_000, 14);

impl Cost {
    const fn new(what: &'static str, bytes: u64, micros: u64) -> Self {
        Self {
            what,
            bytes,
            micros,
        }
    }
}

#[derive(Default)]
struct Counts {
    functions: u64,
    types: u64,
    elements: u64,
    nested: u64,
}

impl Counts {
    fn each(&self) -> [(Cost, u64); 4] {
        [
            (FUNCTION, self.functions),
            (TYPE, self.types),
            (ELEMENT, self.elements),
            (NESTED, self.nested),
        ]
    }

    /// Refuses a module whose counts so far are over the budget already.
    fn check(&self, budget: &CompileBudget) -> Result<(), Refusal> {
        let sum = |of: fn(&Cost) -> u64| -> u64 {
            let costs = self.each().into_iter();
            costs.map(|(cost, count)| of(&cost) * count).sum()
        };
        let bytes = sum(|cost| cost.bytes);
        let time = Duration::from_micros(sum(|cost| cost.micros));
        if bytes > budget.memory {
            let size = |bytes| bytesize::ByteSize(bytes).display().iec();
            let message = format!(
                "the module has {}: compiling it takes at least {} of memory",
                self.told(),
                size(bytes)
            );
            let refusal = compile_limit("compile.memory", message, size(budget.memory));
            return Err(refusal.with("asked", size(bytes)));
        }
        if time > budget.timeout {
            let message = format!(
                "the module has {}: compiling it takes at least {} of processor time",
                self.told(),
                humantime::format_duration(time)
            );
            let allowed = humantime::format_duration(budget.timeout);
            let refusal = compile_limit("compile.timeout", message, allowed);
            return Err(refusal.with("asked", humantime::format_duration(time)));
        }
        Ok(())
    }

    fn told(&self) -> String {
        // One of a kind explains nothing.
        let counts = self.each().into_iter().filter(|(_, count)| *count > 1);
        list(counts.map(|(cost, count)| format!("{count} {}", cost.what)))
    }
}

/// Refuses a binary module that has more of something than the budget can compile. The counts of
/// everything in a component are added up.
///
/// # Errors
/// `COMPILE_LIMIT_EXCEEDED` with the counts and what is allowed; `MODULE_INVALID` with the offset
/// where the sections cannot be told apart.
pub(super) fn check(wasm: &[u8], budget: &CompileBudget) -> Result<(), Refusal> {
    let malformed = |error: wasmparser::BinaryReaderError| {
        invalid(&quote(error.message()), Some(error.offset()))
    };
    let (mut counts, mut depth) = (Counts::default(), 0);
    for payload in Parser::new(0).parse_all(wasm) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sections whose counts cost no more than their bytes"
        )]
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                depth += 1;
                counts.nested += 1;
                // The parser keeps something for each level.
                if depth > NESTING.number {
                    let message = "components are nested too deep".to_owned();
                    return Err(compile_limit("nesting", message, NESTING.number));
                }
            }
            Payload::End(_) => {
                depth = depth.saturating_sub(1);
                continue;
            }
            Payload::FunctionSection(functions) => counts.functions += u64::from(functions.count()),
            Payload::TypeSection(types) => {
                let most = budget.memory / TYPE.bytes;
                counts.types += distinct(types, most).map_err(malformed)?;
            }
            Payload::ElementSection(segments) => {
                counts.elements += placed_later(segments).map_err(malformed)?;
            }
            _ => continue,
        }
        // The counts are checked at each of these sections, so that what is kept of the module
        // meanwhile is bounded as the counts are.
        counts.check(budget)?;
    }
    Ok(())
}

/// Counts the types in groups that differ from all others of their section, until they are more
/// than `most`.
fn distinct(types: wasmparser::TypeSectionReader<'_>, most: u64) -> wasmparser::Result<u64> {
    let (mut seen, mut count) = (HashSet::new(), 0);
    for group in types {
        let group = group?;
        let size = group.types().len() as u64;
        if seen.insert(group) {
            count += size;
        }
        if count > most {
            break;
        }
    }
    Ok(count)
}

/// Counts the elements of passive segments, and of segments that are made of expressions.
fn placed_later(segments: ElementSectionReader<'_>) -> wasmparser::Result<u64> {
    let mut elements = 0;
    for segment in segments {
        let segment = segment?;
        let passive = matches!(segment.kind, ElementKind::Passive);
        elements += match segment.items {
            ElementItems::Functions(items) if passive => u64::from(items.count()),
            ElementItems::Functions(_) => 0,
            ElementItems::Expressions(_, items) => u64::from(items.count()),
        };
    }
    Ok(elements)
}
