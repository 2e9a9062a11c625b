//! The rows of `cases.toml`.

use std::collections::BTreeMap;

use bytes::Bytes;
use ringfence::api::proto::{ExecuteResponse, ExecutionSpec, Outcome, Resources};
use serde::Deserialize;

/// One case in all languages.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    #[serde(flatten)]
    common: Row,
    #[serde(flatten)]
    rows: BTreeMap<String, toml::Value>,
}

/// A program, what it is given, and what comes of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Row {
    program: String,
    args: Vec<String>,
    env: Vec<String>,
    stdin: String,
    profile: String,
    timeout: Option<i64>,
    memory_pages: Option<u32>,
    output_limit: Option<u64>,
    outcome: Option<String>,
    exit_code: Option<u32>,
    stdout: Option<String>,
    stdout_bytes: Option<usize>,
    stdout_has: Vec<String>,
    stderr_has: Vec<String>,
    stderr_lacks: Vec<String>,
    value: Option<String>,
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    #[derive(Deserialize)]
    struct Table {
        case: Vec<Case>,
    }
    let table: Table = toml::from_str(include_str!("cases.toml")).expect("the table is TOML");
    table.case
}

impl Case {
    /// The row of a language: what the case says, and what the row says over it.
    pub(crate) fn row(&self, language: &str) -> Row {
        let own = self.rows.get(language).cloned();
        let own = own.unwrap_or_else(|| panic!("{}: no row for {language}", self.name));
        let own: Row = own.try_into().expect("a row");
        let common = self.common.clone();
        let or = |own: Vec<String>, common: Vec<String>| if own.is_empty() { common } else { own };
        Row {
            program: own.program,
            args: or(own.args, common.args),
            env: or(own.env, common.env),
            stdin: if own.stdin.is_empty() {
                common.stdin
            } else {
                own.stdin
            },
            profile: if own.profile.is_empty() {
                common.profile
            } else {
                own.profile
            },
            timeout: own.timeout.or(common.timeout),
            memory_pages: own.memory_pages.or(common.memory_pages),
            output_limit: own.output_limit.or(common.output_limit),
            outcome: own.outcome.or(common.outcome),
            exit_code: own.exit_code.or(common.exit_code),
            stdout: own.stdout.or(common.stdout),
            stdout_bytes: own.stdout_bytes.or(common.stdout_bytes),
            stdout_has: or(own.stdout_has, common.stdout_has),
            stderr_has: or(own.stderr_has, common.stderr_has),
            stderr_lacks: [own.stderr_lacks, common.stderr_lacks].concat(),
            value: own.value.or(common.value),
        }
    }
}

impl Row {
    /// Whether the row allows any outcome, so that two interpreters may differ in it.
    pub(crate) fn leaves_the_end_open(&self) -> bool {
        self.outcome.as_deref() == Some("any")
    }

    pub(crate) fn spec(&self, language: &str) -> ExecutionSpec {
        ExecutionSpec {
            language: language.to_owned(),
            code: self.program.clone(),
            args: self.args.clone(),
            env: self.env.clone(),
            stdin: Bytes::from(self.stdin.clone()),
            profile: self.profile.clone(),
            timeout: Some(prost_types::Duration {
                seconds: self.timeout.unwrap_or(60),
                nanos: 0,
            }),
            resources: Some(Resources {
                memory_pages: self.memory_pages,
                output_limit: self.output_limit,
                ..Resources::default()
            }),
            ..ExecutionSpec::default()
        }
    }

    /// Says what is not as the row says.
    pub(crate) fn check(&self, answer: &ExecuteResponse) -> Result<(), String> {
        let result = answer.result.as_ref().expect("a result");
        let (stdout, stderr) = (
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr),
        );
        let clip = |text: &str| text.chars().take(1500).collect::<String>();
        let told = format!(
            "{:?} {:?}\n--- stdout\n{}\n--- stderr\n{}",
            result.outcome(),
            result.exit_code,
            clip(&stdout),
            clip(&stderr)
        );
        let require = |holds: bool, what: &str| match holds {
            true => Ok(()),
            false => Err(format!("{what}; it was {told}")),
        };
        let outcome = match self.outcome.as_deref().unwrap_or("exited") {
            "any" => None,
            "exited" => Some(Outcome::Exited),
            "timed_out" => Some(Outcome::TimedOut),
            "memory_exceeded" => Some(Outcome::MemoryExceeded),
            other => panic!("{other} is no outcome"),
        };
        if let Some(outcome) = outcome {
            require(
                result.outcome() == outcome,
                &format!("ends with {outcome:?}"),
            )?;
        }
        if outcome == Some(Outcome::Exited) {
            let code = Some(self.exit_code.unwrap_or(0));
            require(result.exit_code == code, &format!("exits with {code:?}"))?;
        }
        if let Some(expected) = &self.stdout {
            require(stdout == expected.as_str(), &format!("writes {expected:?}"))?;
        }
        if let Some(bytes) = self.stdout_bytes {
            let what = format!("writes {bytes} bytes, not {}", answer.stdout.len());
            require(answer.stdout.len() == bytes, &what)?;
        }
        for part in &self.stdout_has {
            require(stdout.contains(part.as_str()), &format!("writes {part:?}"))?;
        }
        for part in &self.stderr_has {
            require(stderr.contains(part.as_str()), &format!("says {part:?}"))?;
        }
        for part in &self.stderr_lacks {
            require(
                !stderr.contains(part.as_str()),
                &format!("does not say {part:?}"),
            )?;
        }
        if let Some(value) = &self.value {
            require(
                answer.value == *value,
                &format!("reports {value:?}, not {:?}", answer.value),
            )?;
        }
        Ok(())
    }
}
