//! Reads a file whole (or stdin), hashes it, and counts its lines in a map: what any Rust program's std does.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::time::Instant;

/// FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn main() -> std::io::Result<()> {
    let start = Instant::now();
    let bytes = match std::env::args().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes)?;
            bytes
        }
    };
    let mut lines: BTreeMap<&[u8], usize> = BTreeMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        *lines.entry(line).or_default() += 1;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} bytes, {} different lines, {:016x}", bytes.len(), lines.len(), hash(&bytes))?;
    // All of it back: a host that takes less than it is given loses nothing.
    if std::env::var("ECHO").is_ok() {
        out.write_all(&bytes)?;
    }
    assert!(start.elapsed().as_secs() < 3600);
    out.flush()
}
