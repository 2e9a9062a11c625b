//! The tables of one language each: `python.toml` and `javascript.toml`, and beside them those of
//! hostile programs. The keys are explained in `python.toml`.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringfence::api::proto::{ExecuteResponse, ExecutionSpec, File, Outcome, Resources};
use serde::Deserialize;

/// A row: a program, and what must come of it.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Program {
    pub(crate) name: String,
    program: String,
    /// Where the program lies, for runners that are started by hand: the daemon names the file itself.
    file: Option<String>,
    no_program: bool,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    stdin: String,
    options: BTreeMap<String, bool>,
    files: BTreeMap<String, String>,
    clock: Option<bool>,
    limits: Limits,
    exit_code: Option<u32>,
    outcome: Option<String>,
    outcome_in: Vec<String>,
    stdout: Option<String>,
    stdout_bytes: Option<usize>,
    stdout_contains: Vec<String>,
    stderr: Option<String>,
    stderr_contains: Vec<String>,
    stderr_excludes: Vec<String>,
    collected: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    memory_pages: Option<u32>,
    timeout_ms: Option<u32>,
    stack_size: Option<u32>,
    output_limit: Option<u64>,
}

/// The rows of a language.
pub(crate) fn of(language: &str) -> Vec<Program> {
    #[derive(Deserialize)]
    struct Table {
        case: Vec<Program>,
    }
    let texts = match language {
        "python" => [
            include_str!("python.toml"),
            include_str!("python_hostile.toml"),
        ],
        _ => [
            include_str!("javascript.toml"),
            include_str!("javascript_hostile.toml"),
        ],
    };
    let tables = texts.map(|text| toml::from_str::<Table>(text).expect("the table is TOML"));
    tables.into_iter().flat_map(|table| table.case).collect()
}

impl Program {
    /// Whether the daemon can be asked for this: it chooses the name of the file and the options itself.
    pub(crate) fn can_be_asked(&self) -> bool {
        self.file.is_none() && !self.no_program && self.options.is_empty()
    }

    /// Whether the row allows more than one outcome, so that two interpreters may differ in it.
    pub(crate) fn leaves_the_end_open(&self) -> bool {
        !self.outcome_in.is_empty()
    }

    pub(crate) fn spec(&self, language: &str) -> ExecutionSpec {
        let timeout = self.limits.timeout_ms.unwrap_or(60_000);
        let env = self.env.iter().map(|(key, value)| format!("{key}={value}"));
        let profile = match self.clock {
            Some(false) => "hardened",
            Some(true) | None => "",
        };
        ExecutionSpec {
            language: language.to_owned(),
            code: self.program.clone(),
            args: self.args.clone(),
            env: env.collect(),
            stdin: Bytes::from(self.stdin.clone()),
            profile: profile.to_owned(),
            timeout: Some(prost_types::Duration {
                seconds: i64::from(timeout / 1000),
                nanos: i32::try_from(timeout % 1000 * 1_000_000).unwrap(),
            }),
            resources: Some(Resources {
                memory_pages: self.limits.memory_pages,
                stack_size: self.limits.stack_size,
                output_limit: self.limits.output_limit,
                ..Resources::default()
            }),
            files: self
                .files
                .iter()
                .map(|(path, text)| File {
                    path: path.clone(),
                    data: Bytes::from(text.clone()),
                })
                .collect(),
            collect: self.collected.keys().cloned().collect(),
            ..ExecutionSpec::default()
        }
    }

    /// Says what is not as the row says.
    pub(crate) fn check(&self, answer: &ExecuteResponse) -> Result<(), String> {
        let result = answer.result.as_ref().expect("a result");
        let stdout = String::from_utf8_lossy(&answer.stdout);
        let stderr = String::from_utf8_lossy(&answer.stderr);
        let clip = |text: &str| text.chars().take(1500).collect::<String>();
        let told = format!(
            "{:?} {:?}\n--- stdout\n{}\n--- stderr\n{}",
            result.outcome(),
            result.exit_code,
            clip(&stdout),
            clip(&stderr)
        );
        let require = |holds: bool, what: String| match holds {
            true => Ok(()),
            false => Err(format!("{what}; it was {told}")),
        };
        let outcome = result
            .outcome()
            .as_str_name()
            .trim_start_matches("OUTCOME_");
        let expected = match &self.outcome {
            Some(outcome) => vec![outcome.clone()],
            None if self.outcome_in.is_empty() => vec!["EXITED".to_owned()],
            None => self.outcome_in.clone(),
        };
        require(
            expected.iter().any(|it| it == outcome),
            format!("ends with {expected:?}"),
        )?;
        if result.outcome() == Outcome::Exited && self.outcome_in.is_empty() {
            let code = Some(self.exit_code.unwrap_or(0));
            require(result.exit_code == code, format!("exits with {code:?}"))?;
        }
        if let Some(expected) = &self.stdout {
            require(stdout == expected.as_str(), format!("writes {expected:?}"))?;
        }
        if let Some(bytes) = self.stdout_bytes {
            let length = answer.stdout.len();
            require(
                length == bytes,
                format!("writes {bytes} bytes, not {length}"),
            )?;
        }
        for (path, text) in &self.collected {
            let file = answer.files.iter().find(|file| file.path == *path);
            let data = file.map(|file| String::from_utf8_lossy(&file.data));
            let what = format!("leaves {text:?} in {path}, not {data:?}");
            require(data.as_deref() == Some(text), what)?;
        }
        for part in &self.stdout_contains {
            require(stdout.contains(part.as_str()), format!("writes {part:?}"))?;
        }
        for part in &self.stderr_contains {
            require(stderr.contains(part.as_str()), format!("says {part:?}"))?;
        }
        for part in &self.stderr_excludes {
            require(
                !stderr.contains(part.as_str()),
                format!("does not say {part:?}"),
            )?;
        }
        match &self.stderr {
            Some(expected) => require(stderr == expected.as_str(), format!("says {expected:?}")),
            None if self.stderr_contains.is_empty() && self.stderr_excludes.is_empty() => {
                let ended_by_itself = result.outcome() == Outcome::Exited;
                require(
                    stderr.is_empty() || !ended_by_itself,
                    "says nothing".to_owned(),
                )
            }
            None => Ok(()),
        }
    }
}
