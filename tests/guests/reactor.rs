//! A reactor: no `_start`; `_initialize` runs first, then whichever export is called.

use std::sync::atomic::{AtomicI32, Ordering};

static CALLS: AtomicI32 = AtomicI32::new(0);

#[unsafe(no_mangle)]
pub extern "C" fn answer() -> i32 {
    println!("asked");
    CALLS.fetch_add(42, Ordering::Relaxed) + 42
}

#[unsafe(no_mangle)]
pub extern "C" fn add(a: i32, b: i64, c: f32, d: f64) -> f64 {
    f64::from(a) + b as f64 + f64::from(c) + d
}
