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
        "sieve" => println!("{}", sieve(number(2))),
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

/// What ordinary programs do, rounds over: sorting, arithmetic on matrices, a map, text.
fn compute(rounds: u64) -> u64 {
    let mut seed = 88_172_645_463_325_252;
    (0..rounds)
        .map(|_| sort(&mut seed) ^ multiply(&mut seed) ^ look_up(&mut seed) ^ tell(&mut seed))
        .fold(0, u64::wrapping_add)
}

/// Xorshift, by Marsaglia.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

fn sort(seed: &mut u64) -> u64 {
    let mut numbers: Vec<u64> = (0..8_000).map(|_| next(seed)).collect();
    numbers.sort_unstable();
    numbers[numbers.len() / 2]
}

fn multiply(seed: &mut u64) -> u64 {
    const N: usize = 64;
    let mut matrix = || -> Vec<f64> { (0..N * N).map(|_| (next(seed) >> 40) as f64).collect() };
    let (a, b) = (matrix(), matrix());
    let mut product = vec![0.0; N * N];
    for (row, out) in a.chunks_exact(N).zip(product.chunks_exact_mut(N)) {
        for (x, others) in row.iter().zip(b.chunks_exact(N)) {
            for (sum, y) in out.iter_mut().zip(others) {
                *sum += x * y;
            }
        }
    }
    product.iter().sum::<f64>().to_bits()
}

fn look_up(seed: &mut u64) -> u64 {
    let mut counts = std::collections::HashMap::new();
    for _ in 0..4_000 {
        *counts.entry(next(seed) % 1_500).or_insert(0) += 1;
    }
    (0..2_000).filter_map(|key| counts.get(&key)).max().copied().unwrap_or(0)
}

fn tell(seed: &mut u64) -> u64 {
    let text: String = (0..1_000).map(|_| format!("{:x} ", next(seed))).collect();
    let numbers = text.split_whitespace().map(|it| u64::from_str_radix(it, 16).expect("one"));
    numbers.fold(0, |all, n| all ^ n.rotate_left(7))
}

/// Counts primes, rounds over: loops of two or three instructions, in which a look at epoch or fuel costs most.
fn sieve(rounds: u64) -> u64 {
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
