//! The question whether something that cannot be undone is to be done, asked on a terminal.

use std::io::{BufRead, IsTerminal, Read, Write};

use super::Failure;

/// The most bytes of an answer that are read.
const LONGEST_ANSWER: u64 = 1024;

/// Reports whether somebody can be asked: standard input and standard error are terminals.
pub(super) fn can_be_asked() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

/// Asks `question`, and reports whether the answer is yes.
///
/// # Errors
/// Fails where the question cannot be printed or the answer cannot be read.
pub(super) fn ask(question: &str) -> Result<bool, Failure> {
    let mut stderr = std::io::stderr();
    stderr.write_all(question.as_bytes())?;
    stderr.flush()?;
    let mut answer = Vec::new();
    std::io::stdin()
        .lock()
        .take(LONGEST_ANSWER)
        .read_until(b'\n', &mut answer)
        .map_err(|error| Failure::new(format!("cannot read the answer: {error}")))?;
    if !answer.ends_with(b"\n") {
        // What is said next would otherwise stand behind the question.
        stderr.write_all(b"\n")?;
        return Ok(false);
    }
    let answer = answer.trim_ascii();
    Ok(answer.eq_ignore_ascii_case(b"y") || answer.eq_ignore_ascii_case(b"yes"))
}
