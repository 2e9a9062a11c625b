//! What callgrind writes down: instructions and calls, function by function.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Functions of the C library that allocate. Rust's own call these.
const ALLOCATES: [&str; 6] = [
    "malloc",
    "calloc",
    "realloc",
    "aligned_alloc",
    "memalign",
    "posix_memalign",
];
/// How other functions of the allocator begin, Rust's among them.
const ALLOCATOR: [&str; 10] = [
    "_int_",
    "_mid_memalign",
    "__rustc::__r",
    "__rust_",
    "cfree",
    "free",
    "malloc_",
    "sysmalloc",
    "systrim",
    "unlink_chunk",
];
/// How functions of the C library begin that copy, compare and fill.
const COPIES: [&str; 2] = ["__mem", "mem"];
/// Crates that are one part of what a call costs.
const PARTS: [(&str, &[&str]); 6] = [
    ("ringfence", &["ringfence"]),
    (
        "HTTP/2 (h2, hyper, http, bytes)",
        &[
            "h2",
            "hyper",
            "hyper_util",
            "http",
            "http_body",
            "bytes",
            "http_body_util",
            "httpdate",
        ],
    ),
    (
        "gRPC (tonic, prost, tower)",
        &[
            "tonic",
            "tonic_prost",
            "prost",
            "prost_types",
            "tower",
            "tower_layer",
            "tower_service",
        ],
    ),
    (
        "tokio",
        &[
            "tokio",
            "tokio_util",
            "tokio_stream",
            "futures_util",
            "futures_core",
            "mio",
            "parking_lot_core",
        ],
    ),
    (
        "wasmtime",
        &[
            "wasmtime",
            "wasmtime_wasi",
            "wasmtime_environ",
            "wasmtime_internal_fiber",
            "wiggle",
            "cranelift_bforest",
        ],
    ),
    (
        "tracing",
        &[
            "tracing",
            "tracing_core",
            "tracing_subscriber",
            "nu_ansi_term",
        ],
    ),
];
/// Crates in whose generic functions others' code is.
const STANDARD: [&str; 4] = ["core", "alloc", "std", "hashbrown"];

/// Of a process, or of a part of its life.
#[derive(Default)]
pub(crate) struct Profile {
    pub instructions: u64,
    pub allocations: u64,
    /// Instructions by whose code they are of.
    pub parts: BTreeMap<&'static str, u64>,
}

impl Profile {
    /// Reads a dump of callgrind's.
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read(path).unwrap();
        let mut profile = Self::default();
        let (mut objects, mut functions) = (HashMap::new(), HashMap::new());
        let (mut in_file, mut part) = (true, "");
        let (mut allocates, mut of_call) = (false, false);
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some(name) = line.strip_prefix("ob=") {
                in_file = named(&mut objects, name) != "???";
            } else if let Some(name) = line.strip_prefix("cob=") {
                named(&mut objects, name);
            } else if let Some(name) = line.strip_prefix("fn=") {
                let name = named(&mut functions, name);
                part = if in_file { part_of(name) } else { "the guest" };
            } else if let Some(name) = line.strip_prefix("cfn=") {
                allocates = ALLOCATES.contains(&plain(named(&mut functions, name)));
            } else if let Some(calls) = line.strip_prefix("calls=") {
                if allocates {
                    profile.allocations += nth(calls, 0);
                }
                of_call = true;
            } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
                // The line after a call has what was executed within it, which stands elsewhere
                // too.
                if !std::mem::take(&mut of_call) {
                    let count = nth(line, 1);
                    profile.instructions += count;
                    *profile.parts.entry(part).or_default() += count;
                }
            }
        }
        profile
    }
}

/// A number of a line of numbers.
fn nth(line: &str, at: usize) -> u64 {
    line.split_whitespace().nth(at).unwrap().parse().unwrap()
}

/// A name, which stands in full where it is first used, as "(17) name", and then as "(17)".
fn named<'a>(names: &'a mut HashMap<String, String>, told: &str) -> &'a str {
    let (id, name) = told.split_once(')').expect("names are compressed");
    if !name.trim().is_empty() {
        names.insert(id.to_owned(), name.trim().to_owned());
    }
    &names[id]
}

/// Without what tells recursive calls apart.
fn plain(name: &str) -> &str {
    name.split('\'').next().unwrap_or(name)
}

/// Whose code a function is.
fn part_of(name: &str) -> &'static str {
    let name = plain(name);
    let begins = |all: &[&str]| all.iter().any(|it| name.starts_with(it));
    if ALLOCATES.contains(&name) || begins(&ALLOCATOR) {
        return "allocation";
    }
    if begins(&COPIES) && !name.contains("::") {
        return "copying and comparing (C library)";
    }
    // Of `<core::pin::Pin<&mut h2::Stream> as Future>::poll` it is h2: the first crate that is not
    // a standard one.
    let words = name.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    let crates = words.filter_map(|word| Some(word.split_once("::")?.0));
    let mut crates = crates.filter(|it| !it.is_empty());
    let Some(first) = crates.clone().find(|it| !STANDARD.contains(it)) else {
        return match crates.next() {
            Some(_) => "standard library",
            None => "the rest",
        };
    };
    let found = PARTS.iter().find(|(_, crates)| crates.contains(&first));
    found.map_or("the rest", |(part, _)| part)
}
