//! The runner's protocol: what a runner reads on its standard input before the program's own.
//!
//! docs/languages.md describes it for whoever writes a runner.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;

use super::Program;
use crate::model::refusal::Refusal;

/// The version of the protocol.
const PROTOCOL: u32 = 1;
/// The bytes of the length before the header.
const LENGTH: usize = 4;

/// The header of a program.
#[derive(Serialize)]
struct RunnerHeader<'a> {
    protocol: u32,
    program: &'a str,
    file: &'a str,
    args: &'a [String],
    env: BTreeMap<&'a str, &'a str>,
    options: RunnerOptions,
}

/// What a runner may do in one way or another.
#[derive(Serialize)]
struct RunnerOptions {
    /// Whether output is written line by line.
    unbuffered: bool,
    /// Whether the clock is the deterministic one.
    deterministic: bool,
}

/// Returns the standard input of a runner: the header of `program`, whose file is called `file` and
/// whose environment comes over `language_env`, and the program's own input.
///
/// # Errors
/// `LIMIT_ABOVE_MAXIMUM` for a header over 4 GiB.
pub(super) fn standard_input(
    program: &Program,
    file: &str,
    language_env: &[(String, String)],
) -> Result<Bytes, Refusal> {
    let env = language_env.iter().chain(&program.env);
    let header = RunnerHeader {
        protocol: PROTOCOL,
        program: &program.code,
        file,
        args: &program.args,
        env: env
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect(),
        options: RunnerOptions {
            // What a program wrote before it was stopped must not be lost in a buffer of its own.
            unbuffered: true,
            deterministic: !program.clock,
        },
    };
    // Most programs need few escapes.
    let room = LENGTH + program.code.len() + program.code.len() / 8 + 512 + program.stdin.len();
    let mut input = BytesMut::with_capacity(room);
    input.put_u32_le(0);
    let mut writer = (&mut input).writer();
    serde_json::to_writer(&mut writer, &header).map_err(Refusal::internal)?;
    let header = input.len() - LENGTH;
    let length = u32::try_from(header)
        .map_err(|_| Refusal::above("spec.code", program.code.len(), u32::MAX / 8))?;
    input[..LENGTH].copy_from_slice(&length.to_le_bytes());
    input.extend_from_slice(&program.stdin);
    Ok(input.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_its_length_and_the_input_follows() {
        let program = Program {
            code: "print(\"ü\")\n".to_owned(),
            args: vec!["a b".to_owned()],
            env: vec![("K".to_owned(), "v=w".to_owned())],
            stdin: Bytes::from_static(b"\0rest"),
            is_input_open: false,
            max_args: 100,
            clock: false,
        };
        let language_env = [("A", "language's"), ("K", "language's")];
        let language_env = language_env.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let input = standard_input(&program, "main.py", &language_env).unwrap();
        let (length, rest) = input.split_at(LENGTH);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        let header: serde_json::Value = serde_json::from_slice(&rest[..length]).unwrap();
        assert_eq!(
            header,
            serde_json::json!({
                "protocol": 1,
                "program": "print(\"ü\")\n",
                "file": "main.py",
                "args": ["a b"],
                "env": {"A": "language's", "K": "v=w"},
                "options": {"unbuffered": true, "deterministic": true},
            })
        );
        assert_eq!(&rest[length..], b"\0rest");
    }
}
