//! The fuzzing corpus, and changed copies of it: what `tests/fuzz` does for hours, done for seconds on every change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

/// Changed copies of each file.
const COPIES: u64 = 150;

/// Bytes of one's own, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n.max(1) as u64).unwrap()
    }
}

/// Changes a copy in one of the ways in which fuzzers do.
fn changed(bytes: &[u8], noise: &mut Noise) -> Vec<u8> {
    let mut copy = bytes.to_vec();
    for _ in 0..=noise.below(4) {
        let at = noise.below(copy.len() + 1);
        let [byte, ..] = noise.next().to_le_bytes();
        match noise.below(5) {
            0 if at < copy.len() => copy[at] ^= 1 << (byte % 8),
            1 if at < copy.len() => copy[at] = byte,
            2 => copy.insert(at, byte),
            3 => copy.truncate(at),
            _ => {
                let from = noise.below(copy.len() + 1).min(at);
                let piece = copy[from..at].to_vec();
                copy.splice(at..at, piece);
            }
        }
    }
    copy
}

fn run(target: &str, function: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(target);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    for file in files {
        let bytes = std::fs::read(file).unwrap();
        function(&bytes);
        for _ in 0..COPIES {
            function(&changed(&bytes, &mut noise));
        }
    }
}

#[test]
fn messages() {
    run("message", ringfence::fuzz::message);
}

#[test]
fn modules() {
    run("module", ringfence::fuzz::module);
}

#[test]
fn configurations() {
    run("config", ringfence::fuzz::config);
}

#[test]
fn tokens() {
    run("token", ringfence::fuzz::token);
}

#[test]
fn authorizations() {
    run("authorization", ringfence::fuzz::authorization);
}

#[test]
fn artifacts() {
    run("artifact", ringfence::fuzz::artifact);
}

/// A target without a corpus, or a corpus without a target, is no test.
#[test]
fn every_target_has_its_corpus() {
    let names = |folder: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fuzz")
            .join(folder);
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| {
                entry
                    .unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("fuzz_targets"), names("corpus"));
}
