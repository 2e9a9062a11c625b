//! The table of every limit that a guest, or its module, can meet: its number, the setting that
//! changes it, and what is seen at it. `docs/limits.md` is this table, written by
//! `tests/tidy/main.rs`.
//!
//! A limit that no setting changes is a constant here, and the code that enforces it reads the
//! number from it.

use std::fmt::Write;

use super::request::MAX_SESSION_NAME;

/// A limit that no setting changes, with its row of the table.
#[derive(Clone, Copy, Debug)]
pub struct FixedLimit {
    /// The number that the guest may not exceed.
    pub number: u64,
    row: Row,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    topic: Topic,
    /// What is limited, in words.
    what: &'static str,
    bound: LimitBound,
    /// What the guest, or whoever runs it, sees at the limit.
    seen: &'static str,
}

/// What a limit is about. The table is ordered by topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Module,
    Memory,
    Time,
    Streams,
    Files,
    Start,
}

/// How large a limit is.
#[derive(Clone, Copy, Debug)]
enum LimitBound {
    /// A count of things.
    Count(u64),
    /// A size in bytes.
    Bytes(u64),
    /// The value of the operator's setting.
    Setting(&'static str),
    /// The value of one setting and, where a run does not ask, of another.
    CeilingAndDefault(&'static str, &'static str),
    /// The value of a setting, so many times.
    Times(u64, &'static str),
    /// There is no such limit.
    None,
}

impl FixedLimit {
    const fn count(topic: Topic, what: &'static str, number: u64, seen: &'static str) -> Self {
        Self {
            number,
            row: Row::new(topic, what, LimitBound::Count(number), seen),
        }
    }

    const fn bytes(topic: Topic, what: &'static str, number: u64, seen: &'static str) -> Self {
        Self {
            number,
            row: Row::new(topic, what, LimitBound::Bytes(number), seen),
        }
    }

    /// Returns the number as a size in memory. Every one of them fits 32 bits.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a usize has 64 bits on every host that wasmtime compiles for"
    )]
    pub const fn size(&self) -> usize {
        self.number as usize
    }
}

impl Row {
    const fn new(topic: Topic, what: &'static str, bound: LimitBound, seen: &'static str) -> Self {
        Self {
            topic,
            what,
            bound,
            seen,
        }
    }
}

/// The most bytes of one piece of live input: of a message of an interaction, and of one call that
/// sends input.
pub const INPUT_PIECE: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "bytes of one piece of live input: `stdin` of a message of `Interact`, `data` of a `SendInput`",
    64 << 10,
    "`LIMIT_ABOVE_MAXIMUM`",
);
/// How many bytes of live input may wait for the guest before no more are taken.
pub const INPUT_WAITING: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "live input that waits for the guest; nothing that `SendInput` sends fits before the run has its slot",
    64 << 10,
    "`SendInput` takes what fits and says how much that was, and where nothing fits it is `INPUT_FULL`, to be tried again; `Interact` reads one message ahead, and a piece that begins under the limit is taken whole",
);
/// How many of the bytes of live input that were sent last are kept, so that a call that is
/// repeated can be told from one that conflicts.
pub const INPUT_KEPT: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "live input that is kept to be compared with what is sent for the same place again",
    64 << 10,
    "what differs from it is `INPUT_CONFLICT`; what is sent for a place before it is taken for a repetition, unseen",
);
/// The most bytes that a run holds of its live input. A run with `open_stdin`, and a detached one
/// of an interaction, reserves them.
pub const INPUT_HELD: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "live input that the daemon holds of one run, whether it waits or is kept",
    INPUT_WAITING.number + INPUT_PIECE.number,
    "no guest or caller meets it: the two limits above bound it. A run with `open_stdin`, and a detached one of `Interact`, reserves as much with its memory",
);

const AT_LOAD: &str = "the module is refused when it is loaded, or run: `LIMIT_ABOVE_MAXIMUM`";
const COMPILE: &str = "`COMPILE_LIMIT_EXCEEDED`, whose `limit` names the setting";

/// The most core instances of a run.
pub const INSTANCES: FixedLimit =
    FixedLimit::count(Topic::Module, "core instances of one run", 200, AT_LOAD);
/// The most linear memories of a run.
pub const MEMORIES: FixedLimit =
    FixedLimit::count(Topic::Module, "linear memories of one run", 32, AT_LOAD);
/// The most tables of a run.
pub const TABLES: FixedLimit = FixedLimit::count(Topic::Module, "tables of one run", 64, AT_LOAD);
/// The most elements of all tables of a run: 8 MiB of the host's memory.
pub const TABLE_ELEMENTS: FixedLimit = FixedLimit::count(
    Topic::Module,
    "elements of all tables of one run together",
    1 << 20,
    "a module that begins with more: `MEMORY_EXCEEDED`, before its first instruction; `table.grow` beyond it returns -1, and a run that then traps or exits other than with 0 is `MEMORY_EXCEEDED`",
);
/// How deep components may be nested in their binary.
pub const NESTING: FixedLimit = FixedLimit::count(
    Topic::Module,
    "levels of components in components",
    100,
    "`COMPILE_LIMIT_EXCEEDED` with the limit `nesting`",
);
/// How deep instantiations may be nested in each other.
pub const NESTED_INSTANCES: FixedLimit = FixedLimit::count(
    Topic::Module,
    "levels of instances that instantiate others",
    1_000,
    "`COMPILE_LIMIT_EXCEEDED` with the limit `nested instances`",
);
/// The most steps that instantiating a component may take; an instance that is named many times
/// counts each time.
pub const INSTANTIATION_STEPS: FixedLimit = FixedLimit::count(
    Topic::Module,
    "steps of instantiating a component (definitions, as often as they are reached)",
    1_000_000,
    "`COMPILE_LIMIT_EXCEEDED` with the limit `instantiation steps`",
);
/// The most bytes that the exports and imports of a module take when the compile child reports
/// them.
pub const INTERFACE_BYTES: FixedLimit = FixedLimit::bytes(
    Topic::Module,
    "names and types of exports and imports",
    4 << 20,
    "`COMPILE_LIMIT_EXCEEDED` with the limit `exports`",
);
/// The most bytes of text in one `ringfence.log`, which the host copies.
pub const LOG_LINE: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "one line of `ringfence.log`",
    64 << 10,
    "the call traps (`host_call`)",
);
/// The most bytes of a line of output in one log record.
pub const EXPORTED_LINE: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "bytes of one line of output that is exported (`telemetry.export_output`)",
    16 << 10,
    "the line is several log records; the guest meets nothing",
);
/// The most bytes of a path that the host looks at.
pub const PATH: FixedLimit = FixedLimit::bytes(
    Topic::Files,
    "one path that a guest passes; Linux itself takes 4 KiB",
    64 << 10,
    "ENAMETOOLONG (37); `name-too-long` of components",
);
/// The most random bytes of one call of a component, which gets them as one list that the host has
/// to hold.
pub const RANDOM_LIST: FixedLimit = FixedLimit::bytes(
    Topic::Streams,
    "one call of `get-random-bytes`, or `get-insecure-random-bytes`, of a component",
    16 << 20,
    "the call traps (`host_call`)",
);
/// Entries of a run's resource table for each handle that it may have. Timers and other pollables,
/// streams and errors take memory only, and a timer takes two entries.
pub const ENTRIES_PER_HANDLE: u64 = 4;
/// The most frames of a backtrace.
pub const BACKTRACE_FRAMES: FixedLimit = FixedLimit::count(
    Topic::Memory,
    "frames of a trap's backtrace",
    20,
    "the innermost are told",
);

const fn setting(topic: Topic, what: &'static str, key: &'static str, seen: &'static str) -> Row {
    Row::new(topic, what, LimitBound::Setting(key), seen)
}

const fn ceiling(
    topic: Topic,
    what: &'static str,
    (most, default): (&'static str, &'static str),
    seen: &'static str,
) -> Row {
    Row::new(
        topic,
        what,
        LimitBound::CeilingAndDefault(most, default),
        seen,
    )
}

/// Every limit in the order of the table, by topic.
pub const GUEST_LIMITS: [Row; 62] = [
    setting(
        Topic::Module,
        "bytes of a module, as received",
        "compile.max_module",
        "`MODULE_TOO_LARGE`",
    ),
    setting(
        Topic::Module,
        "processor time of compiling a module",
        "compile.timeout",
        COMPILE,
    ),
    setting(
        Topic::Module,
        "memory of compiling a module; functions (3,800 bytes each), types that differ (4,000), passive elements (3,200) and nested modules (32,000) are counted before",
        "compile.memory",
        COMPILE,
    ),
    setting(
        Topic::Module,
        "compiled code",
        "compile.max_artifact",
        COMPILE,
    ),
    setting(
        Topic::Module,
        "bytes of a module that is compiled beside large ones",
        "compile.small_module",
        "nothing: a larger one waits its turn",
    ),
    Row::new(
        Topic::Module,
        "data segments, and element segments, each",
        LimitBound::Count(100_000),
        "`MODULE_INVALID`: the WebAssembly parser's own limit, which other engines have too",
    ),
    Row::new(
        Topic::Module,
        "bytes of one function; locals of one are 50,000",
        LimitBound::Count(7_654_321),
        "`MODULE_INVALID`: the WebAssembly parser's own limit",
    ),
    Row::new(
        Topic::Module,
        "WebAssembly proposals beyond those that are always on",
        LimitBound::Setting("policy.features"),
        "`FEATURE_NOT_ENABLED`, whose `rule` names the setting where there is one",
    ),
    INSTANCES.row,
    MEMORIES.row,
    TABLES.row,
    TABLE_ELEMENTS.row,
    NESTING.row,
    NESTED_INSTANCES.row,
    INSTANTIATION_STEPS.row,
    INTERFACE_BYTES.row,
    ceiling(
        Topic::Memory,
        "pages of 64 KiB of all memories of a run together, with its directory listings and its files in memory; the default comes on top of what the module declares",
        ("policy.max_memory_pages", "defaults.memory_pages"),
        "an ask over it: `LIMIT_ABOVE_MAXIMUM`; a module that begins with more: `MEMORY_BELOW_MODULE_MINIMUM`; `memory.grow` beyond the grant returns -1, `memory_denied` says so, and a run that then traps or exits other than with 0 is `MEMORY_EXCEEDED`",
    ),
    ceiling(
        Topic::Memory,
        "bytes of the call stack, rounded up to a class",
        ("policy.max_stack_size", "defaults.stack_size"),
        "an ask over it: `LIMIT_ABOVE_MAXIMUM`; a guest that goes deeper: `STACK_OVERFLOW`",
    ),
    BACKTRACE_FRAMES.row,
    ceiling(
        Topic::Time,
        "wall time of a run, in guest code and in host calls",
        ("policy.max_timeout", "defaults.timeout"),
        "an ask over it: `LIMIT_ABOVE_MAXIMUM`; `TIMED_OUT`, at most 250 ms late",
    ),
    Row::new(
        Topic::Time,
        "the caller's gRPC deadline, less the smaller of 250 ms and a fifth of it",
        LimitBound::None,
        "`TIMED_OUT`; before the first instruction `NOT_STARTED`",
    ),
    setting(
        Topic::Time,
        "fuel (0: no ceiling); a run that asks for none is not metered unless `policy.require_fuel` says so",
        "policy.max_fuel",
        "an ask over it: `LIMIT_ABOVE_MAXIMUM`; `FUEL_EXHAUSTED`",
    ),
    ceiling(
        Topic::Streams,
        "bytes of stdout, and of stderr, each, of a `Run`",
        ("policy.max_output", "defaults.output_limit"),
        "an ask over it: `LIMIT_ABOVE_MAXIMUM`; at it `OUTPUT_EXCEEDED`, or under TRUNCATE the rest is dropped, and `stdout_truncated` says so",
    ),
    setting(
        Topic::Streams,
        "the same of a stream (0: none)",
        "policy.max_stream_output",
        "as above",
    ),
    Row::new(
        Topic::Streams,
        "one answer that a client of gRPC takes by default (grpcio, grpc-go, grpc-java, tonic and others)",
        LimitBound::Bytes(4 << 20),
        "the client, not the daemon, fails a `Run` whose outputs together are larger, once the run is over (`RESOURCE_EXHAUSTED`, of tonic `OUT_OF_RANGE`): raise it there (`max_receive_message_length`, `MaxCallRecvMsgSize`, `maxInboundMessageSize`, `max_decoding_message_size`) to twice the output limit and 1 MiB, or call `RunStream`, whose messages hold 64 KiB of output at the most; `ringfence run` takes any size",
    ),
    Row::new(
        Topic::Streams,
        "one write to stdout or stderr",
        LimitBound::None,
        "all of it is written: the call waits for the reader",
    ),
    setting(
        Topic::Streams,
        "output that a stream's caller has not read",
        "runs.log_bytes",
        "the guest waits; after `runs.stall_timeout` it is CANCELLED, `READER_STALLED`",
    ),
    setting(
        Topic::Streams,
        "bytes of standard input in the request",
        "policy.max_stdin",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    INPUT_PIECE.row,
    INPUT_WAITING.row,
    INPUT_KEPT.row,
    INPUT_HELD.row,
    Row::new(
        Topic::Streams,
        "one read of a file or of stdin by a core module",
        LimitBound::None,
        "files: until the buffer is full or the file ends; stdin: what is there",
    ),
    Row::new(
        Topic::Streams,
        "one read of a component's stream",
        LimitBound::Bytes(256 << 10),
        "a short count (64 KiB of files and sockets)",
    ),
    Row::new(
        Topic::Streams,
        "one `random_get` of a core module",
        LimitBound::None,
        "the whole buffer is filled",
    ),
    RANDOM_LIST.row,
    LOG_LINE.row,
    EXPORTED_LINE.row,
    setting(
        Topic::Files,
        "open files, directories, sockets and streams of files of a run; its mounts count",
        "policy.max_handles",
        "EMFILE (33); `insufficient-memory` of components, `new-socket-limit` of sockets",
    ),
    Row::new(
        Topic::Files,
        "the same of all runs together: three eighths of what the process may have open (`ulimit -n`), of which half is shared out over the slots, up to 16 for each",
        LimitBound::None,
        "ENFILE (41); components as above; a run whose mounts find none left: `QUEUE_FULL`, to be tried again",
    ),
    Row::new(
        Topic::Files,
        "entries of a run's resource table: handles, streams, pollables; a timer takes two",
        LimitBound::Times(ENTRIES_PER_HANDLE, "policy.max_handles"),
        "the call traps (`handle_limit`)",
    ),
    setting(
        Topic::Files,
        "subscriptions of one `poll_oneoff`",
        "policy.max_handles",
        "EINVAL (28)",
    ),
    Row::new(
        Topic::Files,
        "pollables of one `poll` of a component",
        LimitBound::Times(ENTRIES_PER_HANDLE, "policy.max_handles"),
        "the call traps (`handle_limit`)",
    ),
    PATH.row,
    Row::new(
        Topic::Files,
        "one path and one name of the run's files in memory: bytes; symbolic links that are followed for one path: 40",
        LimitBound::Bytes(4096),
        "ENAMETOOLONG (37), `name-too-long` (names have 255 bytes); ELOOP (32), `loop`",
    ),
    Row::new(
        Topic::Files,
        "files in memory: all bytes, names and a fixed cost for each (docs/files.md)",
        LimitBound::CeilingAndDefault("policy.max_memory_pages", "defaults.memory_pages"),
        "ENOSPC (51), `insufficient-space`, and `memory_denied`; at the start: `LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Files,
        "files that a run returns (`collect`)",
        "policy.max_collect_files",
        "`uncollected` names what is over",
    ),
    setting(
        Topic::Files,
        "bytes of contents and paths of the files that a run returns",
        "policy.max_collect_bytes",
        "`uncollected` names what is over",
    ),
    Row::new(
        Topic::Files,
        "time for which files to return are searched for, in seconds",
        LimitBound::Count(2),
        "`uncollected` names the directory in which the search ended",
    ),
    Row::new(
        Topic::Files,
        "entries of one directory listing",
        LimitBound::None,
        "one snapshot, in the run's own memory; one that does not fit there: ENOMEM (48), `insufficient-memory`, and `memory_denied`",
    ),
    setting(
        Topic::Start,
        "files in memory that a run begins with",
        "policy.max_files",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Start,
        "bytes of the files that a run begins with",
        "policy.max_file_bytes",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    Row::new(
        Topic::Start,
        "patterns of files to return; bytes of one are 1,024",
        LimitBound::Count(16),
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    Row::new(
        Topic::Start,
        "names in the path of such a file or in a pattern; wildcards in a pattern are 32",
        LimitBound::Count(64),
        "`SPEC_INVALID`",
    ),
    setting(
        Topic::Start,
        "bytes of the source code of a program",
        "policy.max_code",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Start,
        "sessions of a tenant at once (of all tenants: `sessions.max`)",
        "policy.max_sessions",
        "`SESSION_LIMIT`",
    ),
    Row::new(
        Topic::Start,
        "bytes of the name of a session",
        LimitBound::Count(MAX_SESSION_NAME as u64),
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Start,
        "bytes of all arguments, each with its terminator",
        "policy.max_args",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Start,
        "bytes of the environment, each entry with its terminator",
        "policy.max_env",
        "`LIMIT_ABOVE_MAXIMUM`",
    ),
    setting(
        Topic::Start,
        "host functions beyond WASI",
        "policy.host_functions",
        "`POLICY_DENIED`, `IMPORT_NOT_ALLOWED`",
    ),
    setting(
        Topic::Start,
        "runs at once",
        "admission.slots",
        "the run waits; then `WAIT_EXPIRED`, or `QUEUE_FULL`",
    ),
    setting(
        Topic::Start,
        "memory, stack and captured output of all runs together, as a share of the host's memory",
        "admission.memory_share",
        "the run waits; one that could never fit: `CAPACITY_EXCEEDED`",
    ),
];

impl Topic {
    const ALL: [Self; 6] = [
        Self::Module,
        Self::Memory,
        Self::Time,
        Self::Streams,
        Self::Files,
        Self::Start,
    ];

    const fn title(self) -> &'static str {
        match self {
            Self::Module => "Modules",
            Self::Memory => "Memory and stack",
            Self::Time => "Time and fuel",
            Self::Streams => "Input, output, randomness",
            Self::Files => "Files, sockets, timers",
            Self::Start => "What a run begins with",
        }
    }
}

/// Returns the text of `docs/limits.md`. `default` returns the default value of a setting.
pub fn document(default: impl Fn(&str) -> String) -> String {
    let mut text = "# Limits\n\nEvery limit that a guest, or its module, can meet: the number by default, the setting that moves it, and what is seen at it. A setting under `policy` is the operator's ceiling, which a tenant may have of its own (`[[tenants]]`); the default next to it is what a run gets that does not ask. Where no setting is named, the number is fixed.\n\nThis page is written from the table that the code uses (`src/model/guest_limits.rs`), by `WRITE_DOCS=1 cargo test --release --test tidy`.\n".to_owned();
    for topic in Topic::ALL {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n## {}\n\n| what | number | setting | what is seen |\n|---|---|---|---|\n",
            topic.title()
        );
        for row in GUEST_LIMITS.iter().filter(|row| row.topic == topic) {
            let (number, setting) = row.bound.told(&default);
            let _ = writeln!(
                text,
                "| {} | {number} | {setting} | {} |",
                row.what, row.seen
            );
        }
    }
    text
}

impl LimitBound {
    /// Returns the number, and the settings that change it, as the table shows them.
    fn told(self, default: impl Fn(&str) -> String) -> (String, String) {
        match self {
            Self::Count(number) => (grouped(number), "-".to_owned()),
            Self::Bytes(number) => {
                let size = bytesize::ByteSize(number).display().iec().to_string();
                (size.replace(".0 ", " "), "-".to_owned())
            }
            Self::Setting(key) => (default(key), format!("`{key}`")),
            Self::CeilingAndDefault(most, asked) => (
                format!("{}; {} by default", default(most), default(asked)),
                format!("`{most}`; `{asked}`"),
            ),
            Self::Times(times, key) => (format!("{times} x {}", default(key)), format!("`{key}`")),
            Self::None => ("none".to_owned(), "-".to_owned()),
        }
    }
}

/// Formats a number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
