//! How many bytes a run reserves while it goes on.

use super::origin::RunMethod;
use super::response_reservation;
use crate::model::limits::{MAX_VALUE_BYTES, OutputMode, StackClass, WASM_PAGE_BYTES};
use crate::model::policy::Policy;
use crate::model::request::RunSpec;
use crate::sandbox::{self, MAX_LIVE_INPUT};

/// Returns the most bytes of the value that a program may report in `output` bytes of output, where
/// the answer of `method` has one.
pub(super) fn value_bytes(method: RunMethod, output: u64) -> u64 {
    match method {
        RunMethod::Execute => output.min(MAX_VALUE_BYTES as u64),
        RunMethod::Run
        | RunMethod::RunStream
        | RunMethod::Interact
        | RunMethod::InteractExecute
        | RunMethod::ExecuteStream => 0,
    }
}

/// Returns how many bytes a run reserves: for its memories, its stack, the output kept of it while
/// it goes on, its answer, and the live input that others may send or that outlives its caller.
/// What an interaction sends is charged to its request, for as long as its caller is there.
pub(super) fn reserved(
    spec: &RunSpec,
    method: RunMethod,
    delivery: OutputMode,
    has_live_input: bool,
    memory_pages: u32,
) -> u64 {
    let limits = &spec.limits;
    let output = match delivery {
        OutputMode::Captured => limits.output.unwrap_or_default(),
        OutputMode::Streamed => 0,
    };
    let input = match has_live_input && (spec.open_stdin || spec.detach) {
        true => MAX_LIVE_INPUT,
        false => 0,
    };
    reservation(memory_pages, limits.stack, output)
        .saturating_add(input)
        .saturating_add(value_bytes(method, output))
        .saturating_add(collect_reservation(spec))
}

/// Returns the bytes that the run of `spec` reserves for the files that it returns.
pub(super) fn collect_reservation(spec: &RunSpec) -> u64 {
    let files = spec.files.as_ref();
    let files = files.filter(|files| !files.collect.is_empty());
    files.map_or(0, |files| {
        largest_collect(files.caps.max_files, files.caps.max_bytes)
    })
}

/// Returns the most bytes that an answer has for so many files of so many bytes, paths included.
fn largest_collect(max_files: usize, max_bytes: u64) -> u64 {
    let around = response_reservation::FILE_REST.saturating_mul(max_files as u64);
    max_bytes.saturating_add(around)
}

/// Returns the most bytes that a run within `policy` reserves.
pub fn largest_reservation(policy: &Policy) -> u64 {
    let ceilings = &policy.ceilings;
    let stack = StackClass::at_least(ceilings.max_stack).unwrap_or(StackClass::M16);
    let largest = reservation(ceilings.max_memory_pages, stack, ceilings.max_output);
    largest
        .saturating_add(MAX_LIVE_INPUT)
        .saturating_add(value_bytes(RunMethod::Execute, ceilings.max_output))
        .saturating_add(largest_collect(
            policy.max_collect_files as usize,
            policy.max_collect_bytes,
        ))
}

/// Sums up the reservation of a run in bytes, with `output` bytes for each of its two output
/// streams.
fn reservation(memory_pages: u32, stack: StackClass, output: u64) -> u64 {
    let stack = u64::from(stack.bytes()) + sandbox::HOST_STACK_BYTES as u64;
    let own =
        u64::from(memory_pages) * WASM_PAGE_BYTES + stack + response_reservation::STREAMED_BYTES;
    own.saturating_add(output.saturating_mul(2))
}
