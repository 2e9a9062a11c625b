//! No guest, but a library of the host's: to whoever loads it the time is a day before 1970.

use std::ffi::{c_int, c_long};

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;
const REALTIME: c_int = 0;

/// # Safety
/// As that of the C library.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, to: *mut Timespec) -> c_int {
    // SAFETY: the arguments are the caller's.
    let done = unsafe { syscall(CLOCK_GETTIME, clock, to) } as c_int;
    if done == 0 && clock == REALTIME {
        // SAFETY: the kernel has just written there.
        unsafe { (*to).seconds = -86_400 };
    }
    done
}
