//! Decides how a run ended: classifies what the guest returned, or the error that ended it, into an
//! outcome and a trap. The causes are checked in a fixed order, so that none hides behind another.

use std::fmt;

use wasmtime::{Error, ThrownException, Trap as Code, WasmBacktrace};
use wasmtime_wasi::{I32Exit, ResourceTableError};

use super::stdio::OutputExceeded;
use super::stop_signal::{StopReason, Stopped};
use crate::model::outcome::{Frame, Outcome, Trap};
use crate::model::refusal::quote;

/// Classifies `error` as an outcome and a trap. `stop` is the reason for which the run was asked to
/// stop, if it was, and `denied` tells whether the run was denied memory.
pub(in crate::sandbox) fn classify(
    error: &Error,
    stop: Option<StopReason>,
    denied: bool,
) -> (Outcome, Option<Trap>) {
    if let Some(reason) = stop
        && error.is::<Stopped>()
    {
        return (stop_outcome(reason), None);
    }
    if error.is::<OutputExceeded>() {
        return (
            Outcome::OutputExceeded,
            Some(describe(error, "output_limit")),
        );
    }
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return (exit_outcome(code.cast_unsigned(), denied), None);
    }
    let (outcome, code) = match error.downcast_ref::<Code>() {
        Some(Code::OutOfFuel) => (Outcome::FuelExhausted, "out_of_fuel"),
        Some(Code::StackOverflow) => (Outcome::StackOverflow, "stack_overflow"),
        trap => {
            let code = trap.map_or_else(|| host_code(error), |trap| trap_code(*trap));
            let outcome = if denied {
                Outcome::MemoryExceeded(None)
            } else {
                Outcome::Trapped
            };
            (outcome, code)
        }
    };
    (outcome, Some(describe(error, code)))
}

/// A marker for an error of instantiation that no guest code can have caused.
#[derive(Debug)]
struct HostFailure;

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the host cannot provide an instance")
    }
}

/// Marks `error` as the host's failure to provide an instance (memory, a slot), unless it comes
/// from the guest's start functions.
pub(in crate::sandbox) fn mark_host_failure(error: Error) -> Error {
    // An error that guest code raised carries the guest's stack, or is one of these.
    let guests = error.is::<WasmBacktrace>()
        || error.is::<Code>()
        || error.is::<Stopped>()
        || error.is::<OutputExceeded>()
        || error.is::<I32Exit>()
        || error.is::<ThrownException>();
    if guests {
        error
    } else {
        error.context(HostFailure)
    }
}

/// Reports whether an error was marked as the host's failure, and is not the guest's.
pub(in crate::sandbox) fn is_host_failure(error: &Error) -> bool {
    error.is::<HostFailure>()
}

/// Returns the outcome of a run that ended because of a stop request.
pub(in crate::sandbox) fn stop_outcome(reason: StopReason) -> Outcome {
    match reason {
        StopReason::TimedOut => Outcome::TimedOut,
        StopReason::Cancelled(cause) => Outcome::Cancelled(cause),
    }
}

/// Returns the outcome of an exit with `code`. A non-zero code after the run was denied memory
/// counts as exceeding the memory limit.
pub(in crate::sandbox) fn exit_outcome(code: u32, denied: bool) -> Outcome {
    if denied && code != 0 {
        Outcome::MemoryExceeded(Some(code))
    } else {
        Outcome::Exited(code)
    }
}

/// Returns the code for a fault that the WebAssembly specification has no trap for: what a guest
/// did to a host call.
fn host_code(error: &Error) -> &'static str {
    if error.is::<ThrownException>() {
        "uncaught_exception"
    } else if matches!(error.downcast_ref(), Some(ResourceTableError::Full)) {
        "handle_limit"
    } else if error.is::<wiggle::GuestError>() {
        "host_pointer"
    } else {
        "host_call"
    }
}

fn trap_code(trap: Code) -> &'static str {
    // wasmtime's enum is not exhaustive, so a new trap is "other" until it gets a row here.
    #[expect(clippy::wildcard_enum_match_arm, reason = "not exhaustive upstream")]
    match trap {
        Code::UnreachableCodeReached => "unreachable",
        Code::MemoryOutOfBounds => "memory_out_of_bounds",
        Code::TableOutOfBounds => "table_out_of_bounds",
        Code::IndirectCallToNull => "indirect_call_to_null",
        Code::BadSignature => "bad_signature",
        Code::HeapMisaligned => "heap_misaligned",
        Code::IntegerOverflow => "integer_overflow",
        Code::IntegerDivisionByZero => "integer_divide_by_zero",
        Code::BadConversionToInteger => "bad_conversion_to_integer",
        Code::StackOverflow => "stack_overflow",
        Code::OutOfFuel => "out_of_fuel",
        Code::NullReference => "null_reference",
        Code::ArrayOutOfBounds => "array_out_of_bounds",
        Code::AllocationTooLarge => "allocation_too_large",
        Code::CastFailure => "cast_failure",
        Code::AtomicWaitNonSharedMemory => "atomic_wait_non_shared",
        Code::CannotEnterComponent
        | Code::CannotLeaveComponent
        | Code::CannotBlockSyncTask
        | Code::InvalidChar
        | Code::StringOutOfBounds
        | Code::ListOutOfBounds
        | Code::InvalidDiscriminant
        | Code::UnalignedPointer => "component",
        _ => "other",
    }
}

fn describe(error: &Error, code: &'static str) -> Trap {
    let message = match error.downcast_ref::<Code>() {
        Some(trap) => trap.to_string(),
        None => quote(&error.root_cause().to_string()),
    };
    let frames = error
        .downcast_ref::<WasmBacktrace>()
        .map(WasmBacktrace::frames)
        .unwrap_or_default();
    Trap {
        code,
        message,
        backtrace: frames
            .iter()
            .map(|frame| Frame {
                func_index: frame.func_index(),
                func_name: frame.func_name().map(quote).unwrap_or_default(),
                module_name: frame.module().name().map(quote).unwrap_or_default(),
                module_offset: frame.module_offset().map(|offset| offset as u64),
            })
            .collect(),
    }
}
