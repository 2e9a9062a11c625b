//! Makes one file system call over and over: `file_calls HOW PATH TIMES`. Built for wasm32-wasip1 and
//! wasm32-wasip2 by the test run.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

const PIECE: usize = 64 << 10;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, how, path, times] = &args[..] else {
        panic!("HOW PATH TIMES");
    };
    let times: u32 = times.parse().expect("a number");
    match how.as_str() {
        "stat" => {
            for _ in 0..times {
                fs::metadata(path).expect("it is there");
            }
        }
        "open" => {
            for _ in 0..times {
                File::open(path).expect("it is there");
            }
        }
        "read" => {
            let mut file = File::open(path).expect("it is there");
            let mut bytes = vec![0; PIECE];
            for _ in 0..times {
                file.seek(SeekFrom::Start(0)).expect("it can be sought");
                file.read_exact(&mut bytes).expect("it is as long");
            }
        }
        "write" => {
            let mut file = OpenOptions::new().write(true).open(path).expect("it is there");
            let bytes = vec![7; PIECE];
            for _ in 0..times {
                file.seek(SeekFrom::Start(0)).expect("it can be sought");
                file.write_all(&bytes).expect("it takes them");
            }
        }
        // Without a flush: what was written has to be there all the same.
        "append" => {
            let mut file = OpenOptions::new().append(true).open(path).expect("it is there");
            for i in 0..times {
                writeln!(file, "{i}").expect("it takes them");
            }
        }
        "list" => {
            for _ in 0..times {
                assert!(fs::read_dir(path).expect("it is there").count() > 0);
            }
        }
        other => panic!("no way {other}"),
    }
    println!("done");
}
