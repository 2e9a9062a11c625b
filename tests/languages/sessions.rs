//! Sessions of real interpreters: what stays from program to program, and what does not.

use bytes::Bytes;
use ringfence::api::proto::{
    CloseSessionRequest, ExecuteResponse, ExecutionSpec, File, Outcome, SessionState,
};

use crate::{Executor, Interpreters, program};

/// The programs of one session, with what each writes, in order.
type Script = &'static [(&'static str, &'static str)];

/// What stays in a language, by a script.
fn script(language: &str) -> Script {
    match language {
        "python" => &[
            ("x = 20\nimport json as j\ndef twice(n): return 2 * n", ""),
            ("x += 1\nprint(twice(x), j.dumps([x]))", "42 [21]\n"),
            ("import sys\nsys.exit(3)", ""),
            ("1 / 0", ""),
            ("print(x)", "21\n"),
            (
                "class A:\n  pass\na = A()\nprint(__name__, __file__)",
                "__main__ main.py\n",
            ),
            (
                "print(isinstance(a, A))\nopen('/tmp/kept', 'w').write('file')",
                "True\n",
            ),
            ("print(open('/tmp/kept').read())", "file\n"),
            ("import random\nrandom.seed(1)\ny = random.random()", ""),
            ("random.seed(1)\nprint(random.random() == y)", "True\n"),
        ],
        _ => &[
            ("var x = 20; function twice(n) { return 2 * n }", ""),
            ("x += 1; console.log(twice(x))", "42\n"),
            ("throw new Error('a')", ""),
            ("console.log(x); globalThis.y = [x]", "21\n"),
            (
                "console.log(y, require('path').join('a', 'b'))",
                "[ 21 ] a/b\n",
            ),
            ("require('fs').writeFileSync('/tmp/kept', 'file')", ""),
            (
                "console.log(require('fs').readFileSync('/tmp/kept', 'utf8'))",
                "file\n",
            ),
            ("setTimeout(() => { x = 'later' }, 10)", ""),
            ("console.log(x)", "later\n"),
            ("process.on('exit', () => console.log('end'))", "end\n"),
            ("console.log(process.listenerCount('exit'))", "0\n"),
            // What is written comes from memory that no program before may have released.
            ("console.error('x'.repeat(5000))", ""),
            ("console.error('x'.repeat(5000))", ""),
            ("console.error('x'.repeat(5000))", ""),
            ("console.error('x'.repeat(5000))", ""),
            ("console.log(twice(4))", "8\n"),
        ],
    }
}

/// A session with a name of its own, which ends with the test.
struct Notebook {
    executor: Executor,
    language: &'static str,
    name: String,
}

impl Notebook {
    async fn begin(language: &'static str, test: &str) -> Self {
        Self {
            executor: Executor::start().await,
            language,
            name: format!("{test}-{language}"),
        }
    }

    fn cell(&self, code: &str) -> ExecutionSpec {
        ExecutionSpec {
            session: self.name.clone(),
            ..program(self.language, code)
        }
    }

    async fn execute(&self, spec: ExecutionSpec) -> ExecuteResponse {
        self.executor.execute(spec).await
    }

    /// Executes a program, and returns what it wrote.
    async fn wrote(&self, code: &str) -> String {
        let answer = self.execute(self.cell(code)).await;
        String::from_utf8(answer.stdout.to_vec()).unwrap()
    }

    async fn close(self) {
        let request = CloseSessionRequest { name: self.name };
        let closed = self.executor.client.clone().close_session(request).await;
        closed.expect("it is there");
    }
}

#[tokio::test]
async fn variables_modules_and_files_stay() {
    for language in Interpreters::get().names() {
        let notebook = Notebook::begin(language, "stay").await;
        for (executions, (code, wrote)) in (1..).zip(script(language)) {
            let answer = notebook.execute(notebook.cell(code)).await;
            let told = String::from_utf8_lossy(&answer.stderr).into_owned();
            assert_eq!(answer.stdout, wrote.as_bytes(), "{code}: {told}");
            let state = SessionState {
                executions,
                ended: false,
            };
            assert_eq!(
                answer.result.unwrap().session,
                Some(state),
                "{code}: {told}"
            );
        }
        notebook.close().await;
    }
}

#[tokio::test]
async fn exit_codes_and_tracebacks_are_each_programs_own() {
    for language in Interpreters::get().names() {
        let notebook = Notebook::begin(language, "codes").await;
        let (fails, calls, name) = match language {
            "python" => (
                "def f():\n    raise ValueError('own')\n",
                "f()",
                "ValueError: own",
            ),
            _ => (
                "function f() { throw new RangeError('own') }",
                "f()",
                "RangeError: own",
            ),
        };
        assert_eq!(notebook.wrote(fails).await, "");
        let answer = notebook.execute(notebook.cell(calls)).await;
        let told = String::from_utf8(answer.stderr.to_vec()).unwrap();
        assert_eq!(answer.result.unwrap().exit_code, Some(1), "{told}");
        assert!(told.contains(name) && !told.contains("ringfence"), "{told}");
        if language == "python" {
            // The line of the program that defined it, and of the one that called it.
            assert!(told.contains("raise ValueError('own')"), "{told}");
            assert!(told.contains("\"main.py[2]\", line 1"), "{told}");
            let answer = notebook.execute(notebook.cell("raise SystemExit(7)")).await;
            assert_eq!(answer.result.unwrap().exit_code, Some(7));
        } else {
            // The place in the program that defined it, and in the one that called it.
            assert!(told.contains("at f (main.js:1:22)"), "{told}");
            assert!(told.contains("at main.js[2]:1:1"), "{told}");
        }
        let answer = notebook.execute(notebook.cell("(")).await;
        let told = String::from_utf8(answer.stderr.to_vec()).unwrap();
        assert!(told.contains("SyntaxError"), "{told}");
        notebook.close().await;
    }
}

#[tokio::test]
async fn input_arguments_and_files_are_each_programs_own() {
    for language in Interpreters::get().names() {
        let notebook = Notebook::begin(language, "own").await;
        let (line, argument, file) = match language {
            "python" => (
                "print(input())",
                "import sys, os; print(sys.argv[1:], os.environ.get('K'))",
                "print(open('/given').read())",
            ),
            _ => (
                "console.log(readline())",
                "console.log(process.argv.slice(2), process.env.K)",
                "console.log(require('fs').readFileSync('/given', 'utf8'))",
            ),
        };
        for text in ["first\nrest that is not read\n", "second\n"] {
            let spec = ExecutionSpec {
                stdin: Bytes::copy_from_slice(text.as_bytes()),
                ..notebook.cell(line)
            };
            let answer = notebook.execute(spec).await;
            let expected = format!("{}\n", text.lines().next().unwrap());
            assert_eq!(answer.stdout, expected.as_bytes(), "{:?}", answer.stderr);
        }
        for argument_text in ["a", "b"] {
            let spec = ExecutionSpec {
                args: vec![argument_text.to_owned()],
                env: vec![format!("K={argument_text}{argument_text}")],
                ..notebook.cell(argument)
            };
            let answer = notebook.execute(spec).await;
            let expected = match language {
                "python" => format!("['{argument_text}'] {argument_text}{argument_text}\n"),
                _ => format!("[ '{argument_text}' ] {argument_text}{argument_text}\n"),
            };
            assert_eq!(answer.stdout, expected.as_bytes(), "{:?}", answer.stderr);
        }
        for data in ["one", "two, and longer"] {
            let spec = ExecutionSpec {
                files: vec![File {
                    path: "/given".to_owned(),
                    data: Bytes::copy_from_slice(data.as_bytes()),
                }],
                collect: vec!["/given".to_owned()],
                ..notebook.cell(file)
            };
            let answer = notebook.execute(spec).await;
            assert_eq!(answer.stdout, format!("{data}\n").as_bytes());
            assert_eq!(answer.files[0].data, data.as_bytes());
        }
        notebook.close().await;
    }
}

/// Programs that take away what the next one would be read from or write to.
const TAKES_STREAMS: [&str; 5] = [
    "print(len(open(0).read()))",
    "import os\nos.close(0)\nprint(0)",
    "import os\nos.close(0)\ntaken = open('/tmp/taken', 'w+')\nprint(0)",
    "import os\nprint(0)\nos.close(1)",
    "import os\nprint(0)\nos.close(2)",
];

#[tokio::test]
async fn a_program_that_takes_the_standard_streams_ends_its_own_session() {
    if !Interpreters::get().names().contains(&"python") {
        return;
    }
    let notebook = Notebook::begin("python", "streams").await;
    let state = |executions, ended| Some(SessionState { executions, ended });
    for code in TAKES_STREAMS {
        let first = notebook.execute(notebook.cell("print('begins')")).await;
        assert_eq!(first.stdout, &b"begins\n"[..], "{code}");
        assert_eq!(first.result.unwrap().session, state(1, false), "{code}");
        let taking = notebook.execute(notebook.cell(code)).await;
        let told = String::from_utf8_lossy(&taking.stderr).into_owned();
        assert_eq!(taking.stdout, &b"0\n"[..], "{code}: {told}");
        let result = taking.result.unwrap();
        assert_eq!(result.outcome(), Outcome::Exited, "{code}: {told}");
        assert_eq!(result.session, state(2, true), "{code}: {told}");
    }
    // What takes nothing away ends nothing.
    let reads = "import sys\nwith open(0, closefd=False) as given:\n  given.read()\nsys.argv = sys.orig_argv = None";
    let result = notebook.execute(notebook.cell(reads)).await.result;
    assert_eq!(result.unwrap().session, state(1, false));
    let spec = ExecutionSpec {
        stdin: Bytes::from_static(b"own"),
        args: vec!["a".to_owned()],
        ..notebook.cell("print(sys.argv, sys.orig_argv, input())")
    };
    let answer = notebook.execute(spec).await;
    let wrote = "['main.py', 'a'] ['python3', 'main.py', 'a'] own\n";
    assert_eq!(answer.stdout, wrote.as_bytes());
    // What is taken away from the runner itself is told to the next program, which is not executed.
    let taking = "import os\nos.environ = None";
    let result = notebook.execute(notebook.cell(taking)).await.result;
    assert_eq!(result.unwrap().session, state(3, false));
    let answer = notebook.execute(notebook.cell("print('never')")).await;
    let told = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(told.contains("cannot begin this program"), "{told}");
    assert_eq!(answer.stdout, &b""[..]);
    let result = answer.result.unwrap();
    assert_eq!(
        (result.exit_code, result.session),
        (Some(70), state(4, true))
    );
}

#[tokio::test]
async fn a_frozen_process_leaves_its_session_to_later_programs() {
    if !Interpreters::get().names().contains(&"javascript") {
        return;
    }
    let notebook = Notebook::begin("javascript", "frozen").await;
    let freezes = "setTimeout(() => { throw new Error('mine') }, 1); Object.freeze(process)";
    let result = notebook.execute(notebook.cell(freezes)).await.result;
    assert_eq!(result.unwrap().exit_code, Some(1));
    let spec = ExecutionSpec {
        args: vec!["a".to_owned()],
        ..notebook.cell("setTimeout(() => console.log(process.argv.slice(2)), 1)")
    };
    let answer = notebook.execute(spec).await;
    assert_eq!(answer.stdout, &b"[ 'a' ]\n"[..]);
    let result = answer.result.unwrap();
    let state = SessionState {
        executions: 2,
        ended: false,
    };
    assert_eq!((result.exit_code, result.session), (Some(0), Some(state)));
    notebook.close().await;
}

#[tokio::test]
async fn a_program_that_is_stopped_takes_its_session_with_it() {
    for language in Interpreters::get().names() {
        let notebook = Notebook::begin(language, "stopped").await;
        let (sets, spins, leaves, asks) = match language {
            "python" => (
                "x = 1",
                "while True: pass",
                "import os; os._exit(9)",
                "print('x' in globals())",
            ),
            _ => (
                "var x = 1",
                "for (;;);",
                "process.exit(9)",
                "console.log(typeof x === 'number')",
            ),
        };
        let [yes, no] = match language {
            "python" => ["True\n", "False\n"],
            _ => ["true\n", "false\n"],
        };
        for (code, outcome) in [(spins, Outcome::TimedOut), (leaves, Outcome::Exited)] {
            notebook.wrote(sets).await;
            assert_eq!(notebook.wrote(asks).await, yes);
            let spec = ExecutionSpec {
                timeout: Some(prost_types::Duration {
                    seconds: 1,
                    nanos: 0,
                }),
                ..notebook.cell(code)
            };
            let result = notebook.execute(spec).await.result.unwrap();
            let state = SessionState {
                executions: 3,
                ended: true,
            };
            assert_eq!((result.outcome(), result.session), (outcome, Some(state)));
            assert_eq!(notebook.wrote(asks).await, no);
            let request = CloseSessionRequest {
                name: notebook.name.clone(),
            };
            let mut client = notebook.executor.client.clone();
            client.close_session(request).await.unwrap();
        }
    }
}
