//! One program with many habits: `kit HABIT [ARGS...]`. Built for wasm32-wasip1 and wasm32-wasip2 by the test run.

use std::io::{BufRead, Read, Write};
use std::process::exit;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let arg = |i: usize| args.get(i).map(String::as_str).unwrap_or_default();
    match arg(1) {
        "hello" => println!("hello"),
        "echo" => echo(),
        "lines" => lines(),
        "sip" => sip(arg(2).parse().expect("bytes")),
        "exit" => exit(arg(2).parse::<u32>().expect("a code") as i32),
        "dump" => dump(&args),
        "write" => std::fs::write(arg(2), arg(3)).unwrap_or_else(fail),
        "append" => append(arg(2), arg(3)),
        "read" => print!("{}", std::fs::read_to_string(arg(2)).unwrap_or_else(fail)),
        "later" => later(arg(2)),
        "list" => list(arg(2)),
        "hog" => hog(arg(2).parse().expect("MiB")),
        "spin" => spin(arg(2)),
        "recurse" => println!("{}", recurse(0)),
        "flood" => {
            flood(arg(2).parse().expect("bytes"));
            if arg(3) == "stay" {
                std::thread::sleep(Duration::from_secs(3600));
            }
        }
        "count" => count(arg(2).parse().expect("lines"), arg(3).parse().unwrap_or(0)),
        "drip" => drip(arg(2).parse().expect("KiB")),
        "both" => both(arg(2).parse().expect("lines")),
        "panic" => panic!("as asked"),
        "clock" => clock(),
        "sleep" => sleep(arg(2).parse().expect("ms")),
        "open" => open_many(arg(2)),
        "connect" => connect(arg(2)),
        "send" => send(arg(2)),
        other => {
            eprintln!("no habit {other:?}");
            exit(64);
        }
    }
}

fn fail<T>(error: std::io::Error) -> T {
    eprintln!("{error}");
    exit(1);
}

fn echo() {
    let mut input = Vec::new();
    std::io::stdin().read_to_end(&mut input).unwrap();
    std::io::stdout().write_all(&input).unwrap();
}

fn lines() {
    for line in std::io::stdin().lock().lines() {
        println!("<{}>", line.unwrap());
    }
}

/// Reads a little at a time, and says what it read.
fn sip(bytes: usize) {
    let mut piece = vec![0; bytes];
    let (mut total, mut sum) = (0u64, 0u64);
    loop {
        let n = std::io::stdin().read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        total += n as u64;
        sum += piece[..n].iter().map(|byte| u64::from(*byte)).sum::<u64>();
        std::thread::sleep(Duration::from_millis(1));
    }
    println!("{total} {sum}");
}

fn dump(args: &[String]) {
    for arg in args {
        println!("arg {arg}");
    }
    let mut env: Vec<_> = std::env::vars().collect();
    env.sort();
    for (key, value) in env {
        println!("env {key}={value}");
    }
}

fn append(path: &str, text: &str) {
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(fail);
    file.write_all(text.as_bytes()).unwrap_or_else(fail);
    println!("appended");
}

fn list(dir: &str) {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap_or_else(fail)
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    println!("{}", names.join(" "));
}

/// Says that it is there, and reads a file for each line of its input.
fn later(path: &str) {
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        println!("{line}: {}", std::fs::read_to_string(path).unwrap_or_else(fail));
    }
}

/// Sends a datagram.
fn send(addr: &str) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap_or_else(fail);
    socket.connect(addr).unwrap_or_else(fail);
    socket.send(b"sent").unwrap_or_else(fail);
}

fn hog(mib: usize) {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for i in 0..mib {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(1 << 20).is_err() {
            println!("denied after {i} MiB");
            exit(if std::env::var("COPE").is_ok() { 0 } else { 3 });
        }
        piece.resize(1 << 20, 1);
        held.push(piece);
    }
    println!("held {} MiB", held.len());
}

fn spin(first: &str) {
    if !first.is_empty() {
        println!("{first}");
    }
    let mut n = 0u64;
    loop {
        n = std::hint::black_box(n.wrapping_add(1));
    }
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    if depth == u64::MAX { 0 } else { recurse(depth + 1) + frame[7] }
}

fn flood(bytes: usize) {
    let piece = [b'x'; 4096];
    let mut left = bytes;
    let mut out = std::io::stdout().lock();
    while left > 0 {
        let n = left.min(piece.len());
        out.write_all(&piece[..n]).unwrap();
        left -= n;
    }
    out.flush().unwrap();
    eprint!("done");
}

/// Numbers its lines, each with blanks up to a width.
fn count(lines: usize, width: usize) {
    for i in 0..lines {
        println!("{:width$}", format_args!("line {i}").to_string());
    }
}

/// A KiB a millisecond.
fn drip(kib: usize) {
    for i in 0..kib {
        println!("{i:01023}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn both(lines: usize) {
    for i in 0..lines {
        println!("out {i}");
        eprintln!("err {i}");
    }
}

fn clock() {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let first = Instant::now();
    let second = Instant::now();
    std::thread::sleep(Duration::from_secs(3600));
    println!("{} {}", wall.as_millis(), (second - first).as_millis());
}

fn sleep(ms: u64) {
    println!("before");
    std::thread::sleep(Duration::from_millis(ms));
    println!("after");
}

fn open_many(dir: &str) {
    let mut held = Vec::new();
    loop {
        match std::fs::File::create(format!("{dir}/{}", held.len())) {
            Ok(file) => held.push(file),
            Err(error) => {
                println!("stopped at {}: {error}", held.len());
                return;
            }
        }
    }
}

#[cfg(target_env = "p2")]
fn connect(addr: &str) {
    match std::net::TcpStream::connect(addr) {
        Ok(mut stream) => {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            println!("got {text}");
        }
        Err(error) => {
            println!("refused: {:?}", error.kind());
            exit(2);
        }
    }
}

#[cfg(not(target_env = "p2"))]
fn connect(_: &str) {
    println!("refused: preview 1 has no sockets");
    exit(2);
}
