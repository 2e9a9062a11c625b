//! What is measured beyond a hello: `work HABIT [ARGS...]`.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| args[i].parse::<u64>().expect("a number");
    match args[1].as_str() {
        "flood" => flood(number(2), number(3)),
        "stamp" => stamp(number(2)),
        "compute" => println!("{}", compute(number(2))),
        "sleep" => std::thread::sleep(Duration::from_millis(number(2))),
        other => panic!("no habit {other}"),
    }
}

/// Writes `bytes`, in pieces.
fn flood(bytes: u64, piece: u64) {
    let piece = vec![b'x'; piece as usize];
    let mut left = bytes as usize;
    let mut out = std::io::stdout().lock();
    while left > 0 {
        let n = left.min(piece.len());
        out.write_all(&piece[..n]).expect("it is taken");
        left -= n;
    }
    out.flush().expect("it is taken");
}

/// Tells when it writes, and then sleeps.
fn stamp(ms: u64) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
    println!("{}", now.as_nanos());
    std::thread::sleep(Duration::from_millis(ms));
}

/// Counts primes, rounds over: branches, loads and stores in a working set of 64 KiB, and divisions.
fn compute(rounds: u64) -> u64 {
    const SIZE: usize = 1 << 16;
    let mut found = 0;
    for round in 0..rounds {
        let mut sieve = vec![true; SIZE];
        let start = 2 + (round & 1) as usize;
        for i in start..SIZE {
            if sieve[i] {
                found += (i as u64) % (round + 3);
                let mut j = i * i;
                while j < SIZE {
                    sieve[j] = false;
                    j += i;
                }
            }
        }
    }
    found
}
