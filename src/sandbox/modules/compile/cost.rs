//! Estimates what compiling a module costs, from its counts, before anything is spent on it.
//!
//! Bytes do not tell: a few kilobytes of loops over many locals take a compiler minutes, and a
//! quarter of a megabyte of ordinary code takes it less than a second. So the estimate counts what
//! a compiler works on: operators, locals, and the values that each loop, block and branch may have
//! to carry. It takes one pass over the bytes, and keeps nothing but a module's types and the
//! blocks that are open. An estimate only chooses where a module is compiled; what bounds the
//! compilation is the budget there.

use wasmparser::{
    BinaryReaderError, BlockType, CompositeInnerType, FunctionBody, Operator, Parser, Payload,
    TryTable, TypeRef,
};

/// What an operator costs. The unit here is about a microsecond of one thread.
const OPERATOR: u64 = 2;
/// What a function costs besides its body.
const FUNCTION: u64 = 30;
/// What each value costs that a call passes on the stack.
const PASSED: u64 = 3;
/// Parameters, and results, that a call passes in registers, which cost nothing.
const IN_REGISTERS: u64 = 4;
/// Number of locals that together cost one unit where they are declared.
const DECLARED: u64 = 8;
/// What each local costs for each loop, whose head may have to carry it.
const LOOP: u64 = 4;
/// Number of locals that together cost one unit for each loop and for each loop around it.
const NEST: u64 = 2;
/// Number of locals that together cost one unit for each block other than a loop, and for each
/// branch.
const BRANCH: u64 = 16;
/// What a function costs that crosses from one component into another: code is generated for it
/// from its types.
const CROSSING: u64 = 500;

/// The number of values that a function type takes and gives.
#[derive(Clone, Copy, Debug, Default)]
struct Arity {
    params: u64,
    results: u64,
}

/// The index spaces of a module, as far as they are needed to understand its operators.
#[derive(Default)]
struct Space {
    types: Vec<Arity>,
    /// The type of each function, those that are imported first.
    functions: Vec<u32>,
    /// How many of the functions have had their bodies, or have none because they are imported.
    bodies: usize,
}

impl Space {
    fn of_type(&self, index: u32) -> Arity {
        let found = self.types.get(index as usize);
        found.copied().unwrap_or_default()
    }

    fn of_function(&self, index: u32) -> Arity {
        let found = self.functions.get(index as usize);
        found.map_or_else(Arity::default, |index| self.of_type(*index))
    }

    fn of_block(&self, block: BlockType) -> Arity {
        match block {
            BlockType::Empty => Arity::default(),
            BlockType::Type(_) => Arity {
                params: 0,
                results: 1,
            },
            BlockType::FuncType(index) => self.of_type(index),
        }
    }
}

/// Estimates how many microseconds of one thread it takes to compile a binary. If the binary cannot
/// be read to its end, the cost is that of what was read: it is not going to be compiled.
///
/// What text stands for is not known before it is parsed, which is not done here. Text is taken to
/// cost a microsecond for each byte, more than most of it does, and is estimated again where it is
/// parsed.
pub(in crate::sandbox) fn estimate_compile_cost(wasm: &[u8]) -> u64 {
    if !wasm.starts_with(b"\0asm") {
        return wasm.len() as u64;
    }
    let mut cost = 0;
    // The error is for whoever validates the module to report.
    let _ = add_up(wasm, &mut cost);
    cost
}

fn add_up(wasm: &[u8], cost: &mut u64) -> Result<(), BinaryReaderError> {
    let mut open: Vec<Space> = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        if let Payload::Version { .. } = payload {
            open.push(Space::default());
            continue;
        }
        let Some(space) = open.last_mut() else {
            continue;
        };
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sections that cost a compiler no more than their bytes"
        )]
        match payload {
            Payload::End(_) => drop(open.pop()),
            Payload::TypeSection(types) => {
                for group in types {
                    for ty in group?.types() {
                        space.types.push(match &ty.composite_type.inner {
                            CompositeInnerType::Func(ty) => Arity {
                                params: ty.params().len() as u64,
                                results: ty.results().len() as u64,
                            },
                            _ => Arity::default(),
                        });
                    }
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    if let TypeRef::Func(index) = import?.ty {
                        space.functions.push(index);
                        space.bodies += 1;
                    }
                }
            }
            Payload::FunctionSection(functions) => {
                for index in functions {
                    space.functions.push(index?);
                }
            }
            Payload::CodeSectionEntry(body) => {
                let index = u32::try_from(space.bodies).unwrap_or(u32::MAX);
                space.bodies += 1;
                let own = space.of_function(index);
                *cost = cost.saturating_add(function(&body, own, space)?);
            }
            Payload::ComponentCanonicalSection(functions) => {
                *cost = cost.saturating_add(CROSSING * u64::from(functions.count()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The counts of one function that its cost is computed from.
#[derive(Default)]
struct FunctionCounts {
    operators: u64,
    locals: u64,
    loops: u64,
    /// For each loop, the number of loops around it and itself, added up.
    nest: u64,
    /// Number of blocks that are not loops, and of branches.
    branches: u64,
    /// Values that blocks and branches take and give by their types.
    carried: u64,
    /// Values that calls pass on the stack.
    passed: u64,
}

impl FunctionCounts {
    /// Computes the cost. The counts are bounded by the bytes of a module, and their products
    /// saturate.
    fn cost(&self) -> u64 {
        let loops = LOOP * self.loops + self.nest / NEST;
        FUNCTION
            .saturating_add(OPERATOR * self.operators)
            .saturating_add(self.locals / DECLARED)
            .saturating_add(loops.saturating_mul(self.locals))
            .saturating_add(self.branches.saturating_mul(self.locals) / BRANCH)
            .saturating_add(self.carried)
            .saturating_add(self.passed.saturating_mul(PASSED))
    }

    fn calls(&mut self, arity: Arity) {
        self.passed += arity.params.saturating_sub(IN_REGISTERS);
        self.passed += arity.results.saturating_sub(IN_REGISTERS);
    }
}

/// The blocks that are open in a function; the function itself is the first.
struct Open {
    /// For each open block, how many values a branch to it carries, and whether it is a loop.
    labels: Vec<(u64, bool)>,
    loops: u64,
}

impl Open {
    fn push(&mut self, carries: u64, is_loop: bool) {
        self.labels.push((carries, is_loop));
        self.loops += u64::from(is_loop);
    }

    fn pop(&mut self) {
        if let Some((_, true)) = self.labels.pop() {
            self.loops -= 1;
        }
    }

    fn carried_to(&self, depth: u32) -> u64 {
        // The innermost block is the last.
        let at = self.labels.len().checked_sub(1 + depth as usize);
        let label = at.and_then(|at| self.labels.get(at));
        label.map_or(0, |(carries, _)| *carries)
    }
}

fn function(body: &FunctionBody<'_>, own: Arity, space: &Space) -> Result<u64, BinaryReaderError> {
    let mut counted = FunctionCounts {
        locals: own.params,
        ..FunctionCounts::default()
    };
    for locals in body.get_locals_reader()? {
        counted.locals += u64::from(locals?.0);
    }
    let mut open = Open {
        labels: vec![(own.results, false)],
        loops: 0,
    };
    for operator in body.get_operators_reader()? {
        counted.operators += 1;
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "operators that cost about as much as any"
        )]
        match operator? {
            Operator::Block { blockty }
            | Operator::If { blockty }
            | Operator::TryTable {
                try_table: TryTable { ty: blockty, .. },
            } => {
                let arity = space.of_block(blockty);
                counted.branches += 1;
                counted.carried += arity.params + arity.results;
                open.push(arity.results, false);
            }
            Operator::Loop { blockty } => {
                let arity = space.of_block(blockty);
                counted.carried += arity.params + arity.results;
                open.push(arity.params, true);
                counted.loops += 1;
                counted.nest += open.loops;
            }
            Operator::End => open.pop(),
            Operator::Br { relative_depth }
            | Operator::BrIf { relative_depth }
            | Operator::BrOnNull { relative_depth }
            | Operator::BrOnNonNull { relative_depth } => {
                counted.branches += 1;
                counted.carried += open.carried_to(relative_depth);
            }
            Operator::BrTable { targets } => {
                for depth in targets.targets() {
                    counted.branches += 1;
                    counted.carried += 1 + open.carried_to(depth?);
                }
            }
            Operator::Call { function_index } | Operator::ReturnCall { function_index } => {
                counted.calls(space.of_function(function_index));
            }
            Operator::CallIndirect { type_index, .. }
            | Operator::ReturnCallIndirect { type_index, .. }
            | Operator::CallRef { type_index }
            | Operator::ReturnCallRef { type_index } => counted.calls(space.of_type(type_index)),
            _ => {}
        }
    }
    Ok(counted.cost())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(text: &str) -> u64 {
        estimate_compile_cost(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn a_module_costs_what_its_functions_cost() {
        assert_eq!(cost("(module)"), 0);
        // The function's only operator is its end.
        let one = FUNCTION + OPERATOR;
        assert_eq!(cost("(module (func))"), one);
        assert_eq!(
            cost("(module (import \"a\" \"b\" (func)) (func) (func))"),
            2 * one
        );
        assert_eq!(
            cost("(component (core module (func)) (core module (func)))"),
            2 * one
        );
    }

    #[test]
    fn text_costs_its_bytes_and_what_is_neither_costs_no_more() {
        assert_eq!(estimate_compile_cost(b"(module (func))"), 15);
        assert_eq!(estimate_compile_cost(b""), 0);
        let wasm = wat::parse_str("(module (func nop) (func nop))").unwrap();
        let whole = estimate_compile_cost(&wasm);
        for len in 8..wasm.len() {
            assert!(estimate_compile_cost(&wasm[..len]) <= whole, "{len}");
        }
    }

    /// Checks that things of which a few bytes hold many cost as much, however few the bytes are.
    #[test]
    fn what_a_compiler_has_to_carry_costs_more_than_its_bytes() {
        let locals = |n: usize| "i32 ".repeat(n);
        let nested = |open: &str, depth: usize, n: usize| {
            let (open, close) = (open.repeat(depth), ")".repeat(depth));
            format!("(module (func (local {}) {open}{close}))", locals(n))
        };
        let branches = "(br_if 0 (i32.const 0))".repeat(5000);
        let calls = "(drop (call $f))".repeat(100);
        let values = locals(500);
        let to_blocks = "0 ".repeat(60_000);
        for (name, text) in [
            (
                "many locals",
                nested("", 0, 50_000).replace("(func", "(func) (func"),
            ),
            ("loops in each other", nested("(loop ", 300, 1000)),
            ("few locals, deeper", nested("(loop ", 1000, 10)),
            (
                "many ways out of a block",
                format!(
                    "(module (func (local {}) (block {branches})))",
                    locals(1000)
                ),
            ),
            (
                "many results",
                format!(
                    "(module (func $f (result {values}) unreachable) (func (result {values}) {} unreachable))",
                    calls.replace("(drop (call $f))", "(call $f)")
                ),
            ),
            (
                "large tables of branches",
                format!("(module (func (block (br_table {to_blocks} (i32.const 0)))))"),
            ),
        ] {
            let wasm = wat::parse_str(&text).unwrap();
            let cost = estimate_compile_cost(&wasm);
            let least = OPERATOR * wasm.len() as u64;
            assert!(cost > 5000, "{name}: {cost}");
            assert!(cost > least / 4, "{name}: {cost} for {} bytes", wasm.len());
        }
        for deep in [nested("(loop ", 300, 1000), nested("(loop ", 1000, 10)] {
            let cost = cost(&deep);
            assert!(cost > 1_000_000, "{cost}");
        }
    }

    #[test]
    fn ordinary_code_costs_about_a_microsecond_a_byte() {
        let statement = "(local.set 0 (i32.mul (local.get 0) (i32.load (local.get 1))))";
        let function = format!("(func (param i32 i32) {})", statement.repeat(30));
        let wasm = wat::parse_str(format!("(module (memory 1) {})", function.repeat(500))).unwrap();
        let per_byte = estimate_compile_cost(&wasm) as f64 / wasm.len() as f64;
        assert!((0.5..1.5).contains(&per_byte), "{per_byte}");
    }
}
