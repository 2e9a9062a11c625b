//! The arguments of a call of a tool. Each is taken by its name and checked, and what nobody took
//! is refused, so that nothing that an agent writes is ignored.

use std::ops::RangeInclusive;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use rmcp::model::JsonObject;
use serde_json::Value;

use crate::api::proto::File;
use crate::cli::Failure;
use crate::model::refusal::quote;

/// The largest whole number that every JSON writer can write.
const LARGEST_WHOLE: u64 = 1 << 53;

/// The arguments that have not been taken yet. `null` counts as absent.
pub(super) struct ToolArguments {
    given: JsonObject,
    known: Vec<&'static str>,
}

impl ToolArguments {
    /// Wraps the arguments as they were given.
    pub(super) fn new(given: Option<JsonObject>) -> Self {
        Self {
            given: given.unwrap_or_default(),
            known: Vec::new(),
        }
    }

    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.given.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text that may be absent.
    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Failure::bad_argument(name, &shown(&other), "a string")),
        }
    }

    /// Takes a text that is required.
    pub(super) fn required_text(&mut self, name: &'static str) -> Result<String, Failure> {
        let text = self.text(name)?;
        text.ok_or_else(|| Failure::bad_argument(name, "missing", "a string"))
    }

    /// Takes a list of texts, which is empty where it is absent.
    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>, Failure> {
        let allowed = "an array of strings";
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => return Err(Failure::bad_argument(name, &shown(&other), allowed)),
        };
        let text = |item| {
            if let Value::String(text) = item {
                return Ok(text);
            }
            let asked = format!("an array with {}", shown(&item));
            Err(Failure::bad_argument(name, &asked, allowed))
        };
        items.into_iter().map(text).collect()
    }

    /// Takes an object whose values are texts. A key is not empty, and has no equals sign.
    pub(super) fn pairs(&mut self, name: &'static str) -> Result<Vec<(String, String)>, Failure> {
        let fields = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                let allowed = "an object whose values are strings";
                return Err(Failure::bad_argument(name, &shown(&other), allowed));
            }
        };
        let pair = |(key, value): (String, Value)| {
            let field = format!("{name}.{}", quote(&key));
            if key.is_empty() || key.contains('=') {
                let allowed = "a name that is not empty and has no \"=\"";
                return Err(Failure::bad_argument(
                    &field,
                    "named as it cannot be",
                    allowed,
                ));
            }
            if let Value::String(value) = value {
                return Ok((key, value));
            }
            Err(Failure::bad_argument(&field, &shown(&value), "a string"))
        };
        fields.into_iter().map(pair).collect()
    }

    /// Takes a list of files, each an object of its path, and its contents as text or in base64.
    pub(super) fn files(&mut self, name: &'static str) -> Result<Vec<File>, Failure> {
        let items = match self.take(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(items)) => items,
            Some(other) => {
                let allowed = "an array of objects";
                return Err(Failure::bad_argument(name, &shown(&other), allowed));
            }
        };
        let items = items.into_iter().enumerate();
        items
            .map(|(at, item)| file(&format!("{name}[{at}]"), item))
            .collect()
    }

    /// Takes a whole number within `range` that may be absent.
    pub(super) fn whole(
        &mut self,
        name: &'static str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        // Some write a whole number with a fraction of zero.
        let number = value.as_u64().or_else(|| whole_of(value.as_f64()?));
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let allowed = format!("a whole number from {} to {}", range.start(), range.end());
                Err(Failure::bad_argument(name, &shown(&value), &allowed))
            }
        }
    }

    /// Takes a duration in seconds that may be absent, of at most `longest`.
    pub(super) fn seconds(
        &mut self,
        name: &'static str,
        longest: Option<Duration>,
    ) -> Result<Option<Duration>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let seconds = value.as_f64();
        let duration = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
        let is_allowed = |it: &Duration| !it.is_zero() && longest.is_none_or(|most| *it <= most);
        match duration.filter(is_allowed) {
            Some(duration) => Ok(Some(duration)),
            None => {
                let most =
                    longest.map(|it| format!(" and at most {} (--timeout)", it.as_secs_f64()));
                let most = most.unwrap_or_default();
                let allowed = format!("a number of seconds above 0{most}");
                Err(Failure::bad_argument(name, &shown(&value), &allowed))
            }
        }
    }

    /// Checks that every argument was taken.
    ///
    /// # Errors
    /// Refuses the first that nobody took, and names those that there are.
    pub(super) fn end(self) -> Result<(), Failure> {
        match self.given.into_iter().next() {
            None => Ok(()),
            Some((name, _)) => {
                let allowed = match self.known[..] {
                    [] => "left out, since this tool takes no arguments".to_owned(),
                    _ => format!("one of {}", self.known.join(", ")),
                };
                Err(Failure::bad_argument(&quote(&name), "unknown", &allowed))
            }
        }
    }
}

/// Reads the file that is an item of a list, whose place `field` names.
fn file(field: &str, item: Value) -> Result<File, Failure> {
    let Value::Object(mut given) = item else {
        let allowed = "an object with path, and with text or base64";
        return Err(Failure::bad_argument(field, &shown(&item), allowed));
    };
    let mut take = |name: &str| match given.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => {
            let field = format!("{field}.{name}");
            Err(Failure::bad_argument(&field, &shown(&other), "a string"))
        }
    };
    let (path, text, base64) = (take("path")?, take("text")?, take("base64")?);
    if let Some(name) = given.keys().next() {
        let field = format!("{field}.{}", quote(name));
        let allowed = "one of path, text, base64";
        return Err(Failure::bad_argument(&field, "unknown", allowed));
    }
    let path = path.ok_or_else(|| {
        Failure::bad_argument(&format!("{field}.path"), "missing", "an absolute path")
    })?;
    let data = match (text, base64) {
        (Some(text), None) => Bytes::from(text),
        (None, Some(encoded)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded);
            let decoded = decoded.map_err(|error| {
                let allowed = "base64 of the standard alphabet, with its padding";
                let asked = format!("no base64 ({})", error.to_string().trim_end_matches('.'));
                Failure::bad_argument(&format!("{field}.base64"), &asked, allowed)
            })?;
            decoded.into()
        }
        (None, None) => {
            let asked = "without contents";
            return Err(Failure::bad_argument(field, asked, "given text or base64"));
        }
        (Some(_), Some(_)) => {
            let allowed = "left out where text is given";
            let field = format!("{field}.base64");
            return Err(Failure::bad_argument(&field, "given too", allowed));
        }
    };
    Ok(File { path, data })
}

/// Converts a number without a fraction to an integer.
fn whole_of(number: f64) -> Option<u64> {
    let text =
        (number.fract() == 0.0 && number <= LARGEST_WHOLE as f64).then(|| number.to_string());
    text?.parse().ok()
}

/// Formats a value for a message, shortened.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) => format!("\"{}\"", quote(text)),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
