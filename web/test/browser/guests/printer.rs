//! Does what its arguments say, one after the other: `out:TEXT` and `err:TEXT` write text (with \n, \r, \e, \0 and \xHH
//! as in Rust) and flush, `repeat:N:TEXT` writes it N times with {} as the number, `tick:N:MS:TEXT` does so every MS
//! milliseconds, `sleep:MS`, `read` (a line of its input, which it writes back in angle brackets), `cat` (all input),
//! `exit:N`, `trap`, `panic:TEXT`, `spin`, `hog` (memory until it is refused).

use std::io::{BufRead, Write};
use std::time::Duration;

fn main() {
    for step in std::env::args().skip(1) {
        let (verb, rest) = step.split_once(':').unwrap_or((&step, ""));
        match verb {
            "out" => write(&mut std::io::stdout(), &unescape(rest)),
            "err" => write(&mut std::io::stderr(), &unescape(rest)),
            "repeat" => {
                let (times, text) = rest.split_once(':').expect("repeat:N:TEXT");
                repeat(times, 0, text);
            }
            "tick" => {
                let mut parts = rest.splitn(3, ':');
                let mut next = || parts.next().expect("tick:N:MS:TEXT");
                let (times, pause, text) = (next(), next(), next());
                repeat(times, pause.parse().expect("milliseconds"), text);
            }
            "sleep" => std::thread::sleep(Duration::from_millis(rest.parse().expect("milliseconds"))),
            "read" => {
                let mut line = String::new();
                std::io::stdin().lock().read_line(&mut line).expect("a line");
                write(&mut std::io::stdout(), format!("<{}>\n", line.trim_end_matches('\n')).as_bytes());
            }
            "cat" => {
                std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).expect("input");
            }
            "exit" => std::process::exit(rest.parse().expect("a code")),
            "trap" => trap_in_a_function(rest.len()),
            "panic" => panic!("{rest}"),
            "spin" => loop {
                std::hint::black_box(0);
            },
            "hog" => hog(),
            _ => panic!("there is no step {step:?}"),
        }
    }
}

fn write(stream: &mut impl Write, bytes: &[u8]) {
    stream.write_all(bytes).expect("output");
    stream.flush().expect("output");
}

fn repeat(times: &str, pause_ms: u64, text: &str) {
    let mut out = std::io::BufWriter::new(std::io::stdout());
    for i in 0..times.parse::<u64>().expect("a number") {
        out.write_all(&unescape(&text.replace("{}", &i.to_string()))).expect("output");
        if pause_ms > 0 {
            out.flush().expect("output");
            std::thread::sleep(Duration::from_millis(pause_ms));
        }
    }
    out.flush().expect("output");
}

#[inline(never)]
fn trap_in_a_function(depth: usize) {
    if std::hint::black_box(depth) == usize::MAX {
        return;
    }
    core::arch::wasm32::unreachable()
}

fn hog() {
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut piece = Vec::new();
        if piece.try_reserve_exact(1 << 20).is_err() {
            std::process::exit(3);
        }
        piece.resize(1 << 20, 1);
        held.push(piece);
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escaped, after) = rest.split_first().expect("something after a backslash");
        rest = after;
        bytes.push(match escaped {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'e' => 0x1b,
            b'0' => 0,
            b'x' => {
                let (digits, after) = rest.split_at(2);
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).expect("digits"), 16).expect("digits")
            }
            other => other,
        });
    }
    bytes
}
