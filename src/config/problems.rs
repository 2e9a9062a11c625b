//! What is wrong with a configuration, and the collector of it that all checks share.

use std::fmt;
use std::time::Duration;

use super::schema::HumanDuration;

/// One violation in a configuration, with what would be allowed.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Where the setting was written: a variable, a flag, or a place in a file. `None` where the
    /// key says so itself, or where the value is a default.
    pub origin: Option<String>,
    /// The dotted key of the setting.
    pub key: String,
    /// The value as written; empty where it is not shown.
    pub value: String,
    /// A description of the values that are allowed.
    pub allowed: String,
}

/// All violations that were found; there is at least one.
#[derive(Clone, Debug)]
pub struct Problems(pub Vec<Problem>);

/// Names that are defined elsewhere in the daemon and that a configuration may refer to.
#[derive(Clone, Copy, Debug)]
pub struct KnownNames {
    /// WebAssembly proposals that can be turned on.
    pub features: &'static [&'static str],
    /// Host functions that can be granted.
    pub host_functions: &'static [&'static str],
}

impl Problems {
    pub(super) fn one(
        key: impl fmt::Display,
        value: impl fmt::Display,
        allowed: impl fmt::Display,
    ) -> Self {
        // A value that is left out of a problem is empty, so an empty one is shown in quotes.
        let value = match value.to_string() {
            value if value.is_empty() => "\"\"".to_owned(),
            value => value,
        };
        Self(vec![Problem {
            origin: None,
            key: key.to_string(),
            value,
            allowed: allowed.to_string(),
        }])
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            origin: written,
            key,
            value,
            allowed,
        } = self;
        if let Some(written) = written {
            write!(f, "{}: ", plain(written))?;
        }
        match (key.as_str(), value.as_str()) {
            ("", "") => f.write_str(allowed),
            (_, "") => write!(f, "{}: {}", plain(key), plain(allowed)),
            (_, _) => write!(
                f,
                "{} = {}: must be {}",
                plain(key),
                plain(value),
                plain(allowed)
            ),
        }
    }
}

/// Escapes the control characters of a text, so that they do no harm where it is shown.
fn plain(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(shown).collect()
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not valid")?;
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems; each of its methods checks one kind of rule.
#[derive(Default)]
pub(super) struct Checker(pub(super) Vec<Problem>);

impl Checker {
    pub(super) fn require(
        &mut self,
        holds: bool,
        key: impl fmt::Display,
        value: impl fmt::Display,
        allowed: impl fmt::Display,
    ) {
        if !holds {
            self.0.extend(Problems::one(key, value, allowed).0);
        }
    }

    pub(super) fn between<T: PartialOrd + fmt::Display>(
        &mut self,
        key: &str,
        value: T,
        low: T,
        high: T,
    ) {
        let holds = low <= value && value <= high;
        self.require(holds, key, &value, format!("from {low} to {high}"));
    }

    /// Checks a range as [`Self::between`] does, where the upper bound is the value of another key.
    pub(super) fn up_to<T: PartialOrd + fmt::Display>(
        &mut self,
        key: &str,
        value: T,
        low: T,
        (high, other): (T, &str),
    ) {
        let holds = low <= value && value <= high;
        let allowed = format!("from {low} to {high}, which is {other}");
        self.require(holds, key, &value, allowed);
    }

    pub(super) fn all_known(&mut self, key: &str, names: &[String], known: &[&str]) {
        for name in names {
            let holds = known.contains(&name.as_str());
            self.require(holds, key, name, format!("one of {}", known.join(", ")));
        }
    }
}

pub(super) fn minutes(n: u64) -> HumanDuration {
    HumanDuration(Duration::from_secs(60 * n))
}

pub(super) fn millis(n: u64) -> HumanDuration {
    HumanDuration(Duration::from_millis(n))
}
