//! What compiling a module may cost, estimated from its counts before anything is spent on it.
//!
//! Bytes do not tell: a few kilobytes of loops over many locals take a compiler minutes, a quarter of a megabyte of
//! ordinary code takes it less than a second. So what is counted is what a compiler works on: operators, locals, the
//! values that each loop, block and branch may have to carry. One pass over the bytes, which keeps nothing but a
//! module's types and the blocks that are open. An estimate only chooses where a module is compiled; what bounds it is
//! the budget there.

use wasmparser::{
    BinaryReaderError, BlockType, CompositeInnerType, FunctionBody, Operator, Parser, Payload,
    TryTable, TypeRef,
};

/// What an operator costs, in about a microsecond of one thread.
const OPERATOR: u64 = 2;
/// What a function costs beside its body.
const FUNCTION: u64 = 30;
/// What a value costs that a call passes on the stack: so many are in registers.
const PASSED: u64 = 3;
const IN_REGISTERS: u64 = 4;
/// Locals that cost one where they are declared.
const DECLARED: u64 = 8;
/// What each local costs for each loop, the head of which may have to carry it.
const LOOP: u64 = 4;
/// Locals that cost one for each loop around another, and for each other block or branch.
const NEST: u64 = 2;
const BRANCH: u64 = 16;
/// What a function that crosses from one component into another costs: code is generated for it from its types.
const CROSSING: u64 = 500;

/// What a type of function takes and gives, in values.
#[derive(Clone, Copy, Debug, Default)]
struct Arity {
    params: u64,
    results: u64,
}

/// The index spaces of a module, as far as operators are understood by them.
#[derive(Default)]
struct Space {
    types: Vec<Arity>,
    /// The type of each function, those that are imported first.
    functions: Vec<u32>,
    /// How many of them have had their bodies, or have none.
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

/// About how many microseconds of one thread compiling a binary takes. What cannot be read costs what was read before:
/// it is not going to be compiled.
///
/// What text says is not known before it is read, which is not done here: it is taken to cost a microsecond for each
/// byte, more than most of it does, and is looked at again where it is read.
pub(in crate::sandbox) fn estimate(wasm: &[u8]) -> u64 {
    if !wasm.starts_with(b"\0asm") {
        return wasm.len() as u64;
    }
    let mut cost = 0;
    // The error is for whoever validates the module to tell.
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

/// What is counted in a function.
#[derive(Default)]
struct Body {
    operators: u64,
    locals: u64,
    loops: u64,
    /// For each loop, how many are around it and itself.
    nest: u64,
    /// Blocks that are no loops, and branches.
    branches: u64,
    /// Values that blocks and branches take and give by their types.
    carried: u64,
    /// Values that calls pass on the stack.
    passed: u64,
}

impl Body {
    /// Its counts are bounded by the bytes of a module, and their products saturate.
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
    /// For each, what a branch to it carries, and whether it is a loop.
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
        // Innermost last.
        let at = self.labels.len().checked_sub(1 + depth as usize);
        let label = at.and_then(|at| self.labels.get(at));
        label.map_or(0, |(carries, _)| *carries)
    }
}

fn function(body: &FunctionBody<'_>, own: Arity, space: &Space) -> Result<u64, BinaryReaderError> {
    let mut counted = Body {
        locals: own.params,
        ..Body::default()
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
        estimate(&wat::parse_str(text).unwrap())
    }

    #[test]
    fn a_module_costs_what_its_functions_cost() {
        assert_eq!(cost("(module)"), 0);
        // Its one operator is its end.
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
        assert_eq!(estimate(b"(module (func))"), 15);
        assert_eq!(estimate(b""), 0);
        let wasm = wat::parse_str("(module (func nop) (func nop))").unwrap();
        let whole = estimate(&wasm);
        for len in 8..wasm.len() {
            assert!(estimate(&wasm[..len]) <= whole, "{len}");
        }
    }

    /// What few bytes can have much of costs as much however few they are.
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
            let cost = estimate(&wasm);
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
        let per_byte = estimate(&wasm) as f64 / wasm.len() as f64;
        assert!((0.5..1.5).contains(&per_byte), "{per_byte}");
    }
}
