//! Programs that are quick to come by and to compile.

use crate::build::{OfCrate, Recipe};
use crate::packages::{GO, RUNNO};
use crate::program::Content::{Counting, Text};
use crate::program::Expected::{Has, Hashes, Is};
use crate::program::{CALL, Call, PROGRAM, Program, Put};

/// More than any one host call copies.
const LARGE: Put = Put {
    at: "large.bin",
    content: Counting(20 << 20),
};

/// A file, and another by the same name in a folder beside it.
const SAME: &[Put] = &[
    Put {
        at: "same.txt",
        content: Text("outer"),
    },
    Put {
        at: "sub/same.txt",
        content: Text("inner"),
    },
];

pub(crate) const QUICK: [Program; 18] = [
    Program {
        name: "go-hello",
        what: "Go: fmt",
        recipe: Recipe::Go(GO, "go/hello.go"),
        calls: &[Call {
            asks: "print a line",
            args: &["hello"],
            stdout: Is("hello from Go\n"),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "go-words",
        what: "Go: encoding/json, regexp",
        recipe: Recipe::Go(GO, "go/words.go"),
        calls: &[
            Call {
                asks: "count what a pattern matches in a JSON document",
                args: &["words"],
                stdin: r#"{"pattern": "\\b\\w+ing\\b", "texts": ["running and jumping", "a running thing"]}"#,
                stdout: Is(
                    "[{\"match\":\"jumping\",\"times\":1},{\"match\":\"running\",\"times\":2},{\"match\":\"thing\",\"times\":1}]\n",
                ),
                ..CALL
            },
            Call {
                asks: "refuse a broken one with exit code 2",
                args: &["words"],
                stdin: "{",
                exit: 2,
                stderr: Has(&["no document: unexpected EOF"]),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "go-crypto",
        what: "Go: crypto/rand, sha256, ed25519, aes",
        recipe: Recipe::Go(GO, "go/crypto.go"),
        calls: &[Call {
            asks: "draw 1 MiB of randomness in one call, hash, sign, encrypt",
            args: &["crypto"],
            stdin: "abc",
            stdout: Is(
                "sha256 ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\nrandom 1048576 256\nsigned true\nsealed true\n",
            ),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "go-client",
        what: "Go: net/http, which has no network to use",
        recipe: Recipe::Go(GO, "go/client.go"),
        calls: &[Call {
            asks: "dial, say that it cannot, and exit with 3",
            args: &["client"],
            exit: 3,
            stdout: Has(&["no answer: Get \"http://127.0.0.1:9/\": dial tcp 127.0.0.1:9: "]),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "go-files",
        what: "Go: flag, os.ReadDir, os.ReadFile",
        recipe: Recipe::Go(GO, "go/files.go"),
        pages: Some(1024),
        folder: &[
            LARGE,
            Put {
                at: "small.txt",
                content: Text("small\n"),
            },
        ],
        calls: &[
            Call {
                asks: "list a folder, read and hash a file of 20 MiB",
                args: &["files", "-folder", "/data", "-file", "large.bin"],
                stdout: Is(
                    "entry large.bin false\nentry small.txt false\nread 20971520 99254018a4506cae413a471f8b9d968a1ab1771565f3247b6e1c3f927e9a572f\n",
                ),
                ..CALL
            },
            Call {
                asks: "say that a file is not there",
                args: &["files", "-folder=/data", "-file=none"],
                exit: 1,
                stderr: Has(&["/data/none: No such file or directory"]),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "go-cwd",
        what: "Go: os.Getwd, relative and absolute paths",
        recipe: Recipe::Go(GO, "go/cwd.go"),
        folder: SAME,
        calls: &[Call {
            asks: "read files from a working directory",
            args: &["cwd", "same.txt", "/data/same.txt", "../same.txt"],
            working_dir: "/data/sub",
            stdout: Is(
                "name=cwd cwd=/data/sub PWD=/data/sub\nsame.txt: inner\n/data/same.txt: outer\n../same.txt: outer\n",
            ),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "c-cwd",
        what: "C: fopen, relative and absolute paths",
        recipe: Recipe::Zig("cc", "c/cwd.c", &[], None),
        folder: SAME,
        calls: &[Call {
            asks: "read files from a working directory",
            args: &["cwd", "same.txt", "./same.txt", "/data/same.txt"],
            working_dir: "/data/sub",
            // wasi-libc has no working directory of its own: it calls where it starts "/".
            stdout: Is(
                "name=cwd cwd=/ PWD=/data/sub\nsame.txt: inner\n./same.txt: inner\n/data/same.txt: outer\n",
            ),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "zig-cwd",
        what: "Zig: std.Io.Dir.cwd",
        recipe: Recipe::Zig(
            "build-exe",
            "zig/cwd.zig",
            &["-O", "ReleaseSmall", "-fstrip"],
            None,
        ),
        folder: SAME,
        calls: &[Call {
            asks: "read a file from a working directory",
            args: &["cwd", "same.txt"],
            working_dir: "/data/sub",
            stdout: Is("same.txt: inner\n"),
            ..CALL
        }],
        ..PROGRAM
    },
    rust("rust-p1", "Rust's std for preview 1", "wasm32-wasip1"),
    rust("rust-p2", "the same as a component", "wasm32-wasip2"),
    Program {
        name: "c-sort",
        what: "C: stdio, qsort, libm",
        recipe: Recipe::Zig("cc", "c/sort.c", &["-lm"], None),
        // Zig's malloc takes the next power of two.
        pages: Some(1024),
        folder: &[LARGE],
        calls: &[
            Call {
                asks: "sort numbers",
                args: &["sort"],
                stdin: "3 1 2.5 7e3 11",
                stdout: Is("1\n2.5\n3\n11\n7000\nmean 1403.500 of 5, root 83.771\n"),
                ..CALL
            },
            Call {
                asks: "fread a file of 20 MiB at once",
                args: &["sort", "/data/large.bin"],
                stdin: "4",
                stdout: Is(
                    "4\nmean 4.000 of 1, root 2.000\nread 20971520, check 653992944, whole\n",
                ),
                ..CALL
            },
            Call {
                asks: "say that a file is not there",
                args: &["sort", "/data/none"],
                stdin: "4",
                exit: 3,
                stderr: Is("/data/none: No such file or directory\n"),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "cpp-words",
        what: "C++20: iostreams, containers, virtual functions",
        recipe: Recipe::Zig(
            "c++",
            "c/words.cpp",
            &["-std=c++20", "-fno-exceptions"],
            None,
        ),
        calls: &[Call {
            asks: "count words",
            args: &["words"],
            stdin: "a b a c a b",
            stdout: Is("a 3\nb 2\nc 1\n"),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "zig-primes",
        what: "Zig: std.Io, std.crypto",
        recipe: Recipe::Zig(
            "build-exe",
            "zig/primes.zig",
            &["-O", "ReleaseSmall", "-fstrip"],
            None,
        ),
        pages: Some(2048),
        folder: &[LARGE],
        calls: &[
            Call {
                asks: "sieve a million",
                args: &["primes", "1000000"],
                stdout: Is("78498 primes, the last is 999983\n"),
                ..CALL
            },
            Call {
                asks: "read and hash a file of 20 MiB",
                // Zig takes the first folder that it is given for the current one, and no absolute paths.
                args: &["primes", "10", "large.bin"],
                stdout: Is(
                    "4 primes, the last is 7\nread 20971520 99254018a4506cae413a471f8b9d968a1ab1771565f3247b6e1c3f927e9a572f\n",
                ),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "assemblyscript",
        what: "AssemblyScript with its WASI shim",
        recipe: Recipe::AssemblyScript("as/mandelbrot.ts"),
        calls: &[Call {
            asks: "draw the Mandelbrot set",
            args: &["mandelbrot"],
            stdout: Hashes(
                1500,
                "a6eaa7c64b13104f99deeb0d83b01cd7b9a26b275b133ce1f02e8440e884e4a7",
            ),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "quickjs",
        what: "QuickJS, a JavaScript interpreter in C",
        recipe: Recipe::Zig(
            "cc",
            "c/quickjs.c",
            &[
                "-std=c11",
                "-D_GNU_SOURCE",
                "-D_WASI_EMULATED_SIGNAL",
                "-D_WASI_EMULATED_PROCESS_CLOCKS",
                "-Wl,-z,stack-size=1048576",
                "-lwasi-emulated-signal",
                "-lwasi-emulated-process-clocks",
                "-lm",
            ],
            Some(QUICKJS),
        ),
        calls: &[
            Call {
                asks: "evaluate JavaScript with promises, BigInt, regular expressions",
                args: &[
                    "quickjs",
                    "Promise.resolve(7).then(print); print([3, 1, 2].sort(), 2n ** 70n, 'abba'.replace(/b+/u, '-'))",
                ],
                stdout: Is("1,2,3 1180591620717411303424 a-a\n7\n"),
                ..CALL
            },
            Call {
                asks: "fail by an exception",
                args: &["quickjs", "null.f()"],
                exit: 1,
                stderr: Has(&["quickjs: TypeError: "]),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "lua",
        what: "Lua 5.4, whose errors are exceptions",
        recipe: LUA_RECIPE,
        refused: Some("FEATURE_NOT_ENABLED"),
        settings: &[("engine.features", "[\"exceptions\"]")],
        calls: &[
            Call {
                asks: "catch an error, match strings, run a coroutine",
                args: &[
                    "lua",
                    "print(pcall(error, 'no')) print(('abba'):gsub('b+', '-')) for n in coroutine.wrap(function() coroutine.yield(1) coroutine.yield(2) end) do print(n) end",
                ],
                stdout: Is("false\tno\na-a\t1\n1\n2\n"),
                ..CALL
            },
            Call {
                asks: "fail by an error",
                args: &["lua", "error('no', 0)"],
                exit: 1,
                stderr: Is("lua: no\n"),
                ..CALL
            },
        ],
        ..PROGRAM
    },
    Program {
        name: "sqlite",
        what: "SQLite 3.26 shell, for `wasi_unstable`",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/sqlite.wasm"),
        calls: &[Call {
            asks: "make a table, index it, query it",
            args: &["sqlite", "-batch"],
            stdin: "create table t(a, b); create index i on t(b);\nwith recursive n(x) as (select 1 union all select x + 1 from n where x < 1000) insert into t select x, x % 7 from n;\nselect sqlite_version(), count(*), sum(a) from t where b = 3;\n",
            stdout: Is("3.26.0|143|71500\n"),
            ..CALL
        }],
        ..PROGRAM
    },
    Program {
        name: "wasmedge-quickjs",
        what: "QuickJS for another host, with sockets of its own",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/wasmedge_quickjs.wasm"),
        refused: Some("IMPORT_NOT_ALLOWED"),
        ..PROGRAM
    },
];

const fn rust(name: &'static str, what: &'static str, target: &'static str) -> Program {
    Program {
        name,
        what,
        recipe: Recipe::Rust(target, "rust/digest.rs"),
        pages: Some(1024),
        folder: &[
            LARGE,
            Put {
                at: "twelve.bin",
                content: Counting(12 << 20),
            },
        ],
        calls: &[
            Call {
                asks: "read stdin to its end",
                args: &["digest"],
                stdin: "one\ntwo\none",
                stdout: Is("11 bytes, 2 different lines, 99b2efde176e4fb5\n"),
                ..CALL
            },
            Call {
                asks: "fs::read a file of 20 MiB",
                args: &["digest", "/data/large.bin"],
                stdout: Is("20971520 bytes, 3 different lines, 8101af380d7d93a5\n"),
                ..CALL
            },
            Call {
                asks: "write 12 MiB to stdout at once",
                args: &["digest", "/data/twelve.bin"],
                env: &["ECHO=1"],
                stdout: Hashes(
                    12_582_964,
                    "0dfcd465dba36db51fbd7250635d2ba08db1975231b7f6bac9091d4ad148c75c",
                ),
                ..CALL
            },
            Call {
                asks: "fail where a file is not there",
                args: &["digest", "/data/none"],
                exit: 1,
                stderr: Has(&["NotFound"]),
                ..CALL
            },
        ],
        ..PROGRAM
    }
}

const QUICKJS: OfCrate = OfCrate {
    spec: "rquickjs-sys@0.14.0",
    folder: "rquickjs-sys/quickjs",
    names: &["libregexp", "libunicode", "quickjs", "dtoa"],
};

const LUA_RECIPE: Recipe = Recipe::Zig(
    "cc",
    "c/lua.c",
    &[
        "-mcpu=generic+exception_handling",
        "-mllvm",
        "-wasm-enable-sjlj",
        "-mllvm",
        "-wasm-use-legacy-eh=false",
        "-D_WASI_EMULATED_SIGNAL",
        "-D_WASI_EMULATED_PROCESS_CLOCKS",
        "-lwasi-emulated-signal",
        "-lwasi-emulated-process-clocks",
        "-lm",
    ],
    Some(LUA),
);

/// How Lua is built.
pub(crate) fn lua() -> Recipe {
    LUA_RECIPE
}

const LUA: OfCrate = OfCrate {
    spec: "lua-src@551.1.0",
    folder: "lua-src/lua-5.4.9",
    names: &[
        "lapi", "lauxlib", "lbaselib", "lcode", "lcorolib", "lctype", "ldblib", "ldebug", "ldo",
        "ldump", "lfunc", "lgc", "linit", "liolib", "llex", "lmathlib", "lmem", "loadlib",
        "lobject", "lopcodes", "loslib", "lparser", "lstate", "lstring", "lstrlib", "ltable",
        "ltablib", "ltm", "lundump", "lutf8lib", "lvm", "lzio",
    ],
};
