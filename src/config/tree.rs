//! A tree of settings as they were written, each with its origin. The trees are read, merged, and
//! quoted in errors where a setting is refused.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::Problem;

/// The character that some editors write as a byte order mark.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// The place where a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SettingOrigin {
    /// Nowhere: the setting has its default.
    Default,
    /// In a file, at a line and a column that both count from 1.
    File {
        name: Arc<str>,
        line: usize,
        column: usize,
    },
    /// In this environment variable.
    Variable(Arc<str>),
    /// In this flag, which may include a key, such as `--set server.instance`.
    Flag(Arc<str>),
    /// In no text at all: a command passes it as a value.
    Command,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::Command => f.write_str("the command itself"),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// The value of a setting, as far as its type is known from the way it was written.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Table(BTreeMap<String, Setting>),
    List(Vec<Setting>),
    /// A TOML string, without its quotes.
    Text(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    /// A date or a time, which no setting takes.
    Date(String),
    /// The text of a variable or a flag. It gets the type that its key takes, whatever it looks
    /// like.
    Untyped(String),
}

/// A setting or a table of settings, with its origin.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) content: Content,
    pub(super) origin: SettingOrigin,
}

/// Trims the spaces, line ends and invisible characters that editors, shells and secret files leave
/// around a text.
pub(crate) fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c.is_control() || c == BYTE_ORDER_MARK)
}

/// Parses a whole TOML document. `name` is the name of its file.
///
/// # Errors
/// Returns everything that keeps the text from being TOML.
pub(super) fn parse_document(name: &str, text: &str) -> Result<Setting, Vec<Problem>> {
    let name: Arc<str> = name.into();
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let written = |span: Range<usize>| origin_at(&name, text, span.start);
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Setting {
            origin: written(0..0),
            content: table_of(table.into_inner(), &written),
        });
    }
    let problems = errors.into_iter().map(|error| Problem {
        origin: Some(written(error.span().unwrap_or_default()).to_string()),
        key: String::new(),
        value: String::new(),
        // The library's own display quotes the line, which may hold a secret.
        allowed: format!("it is not TOML: {}", error.message()),
    });
    Err(problems.collect())
}

/// Parses one TOML value, as it may stand in a variable or a flag.
///
/// # Errors
/// Returns what keeps the text from being a value.
pub(super) fn parse_value(text: &str, written: &SettingOrigin) -> Result<Setting, String> {
    let value = DeValue::parse(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let at = before.unwrap_or_default().chars().count() + 1;
        format!("{} at character {at}", error.message())
    })?;
    Ok(setting(value, &|_| written.clone()))
}

/// Converts a byte offset to a line and a column.
fn origin_at(name: &Arc<str>, text: &str, byte: usize) -> SettingOrigin {
    let before = text.get(..byte).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    SettingOrigin::File {
        name: Arc::clone(name),
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
    }
}

fn setting(
    value: Spanned<DeValue<'_>>,
    written: &impl Fn(Range<usize>) -> SettingOrigin,
) -> Setting {
    let place = written(value.span());
    let content = match value.into_inner() {
        DeValue::String(text) => Content::Text(text.into_owned()),
        DeValue::Integer(number) => {
            let parsed = i128::from_str_radix(number.as_str(), number.radix());
            parsed.map_or_else(|_| Content::Text(number.to_string()), Content::Integer)
        }
        DeValue::Float(number) => {
            let parsed = number.as_str().parse();
            parsed.map_or_else(|_| Content::Text(number.to_string()), Content::Float)
        }
        DeValue::Boolean(value) => Content::Bool(value),
        DeValue::Datetime(date) => Content::Date(date.to_string()),
        DeValue::Array(values) => {
            let values = values.into_iter().map(|value| setting(value, written));
            Content::List(values.collect())
        }
        DeValue::Table(table) => table_of(table, written),
    };
    Setting {
        content,
        origin: place,
    }
}

fn table_of(table: DeTable<'_>, written: &impl Fn(Range<usize>) -> SettingOrigin) -> Content {
    let entries = table.into_iter().map(|(key, value)| {
        let place = written(key.span());
        let mut setting = setting(value, written);
        if matches!(setting.content, Content::Table(_)) {
            setting.origin = place;
        }
        (key.into_inner().into_owned(), setting)
    });
    Content::Table(entries.collect())
}

impl From<toml::Value> for Setting {
    /// Converts a value that a command passes.
    fn from(value: toml::Value) -> Self {
        let content = match value {
            toml::Value::String(text) => Content::Text(text),
            toml::Value::Integer(number) => Content::Integer(number.into()),
            toml::Value::Float(number) => Content::Float(number),
            toml::Value::Boolean(value) => Content::Bool(value),
            toml::Value::Datetime(date) => Content::Date(date.to_string()),
            toml::Value::Array(values) => {
                Content::List(values.into_iter().map(Self::from).collect())
            }
            toml::Value::Table(table) => {
                let entries = table.into_iter();
                Content::Table(entries.map(|(key, it)| (key, Self::from(it))).collect())
            }
        };
        Self {
            content,
            origin: SettingOrigin::Command,
        }
    }
}

impl Setting {
    /// Wraps a setting in the tables of its dotted key, as a tree without anything else.
    pub(super) fn under(key: &str, content: Content, written: &SettingOrigin) -> Self {
        let leaf = Self {
            content,
            origin: written.clone(),
        };
        key.rsplit('.').fold(leaf, |inner, part| Self {
            content: Content::Table([(part.to_owned(), inner)].into()),
            origin: written.clone(),
        })
    }

    /// Reports whether there is a table under a dotted key.
    pub(super) fn is_table(&self, key: &str) -> bool {
        let mut inner = Some(self);
        for part in key.split('.') {
            inner = inner.and_then(|it| it.table()?.get(part));
        }
        inner.is_some_and(|it| it.table().is_some())
    }

    /// Returns the deepest setting on the way to a dotted key such as "tenants[0].policy.max_fuel".
    pub(super) fn deepest_at(&self, key: &str) -> &Self {
        let mut found = self;
        for part in key.split(['.', '[']) {
            let next = match part.strip_suffix(']') {
                None => found.table().and_then(|table| table.get(part)),
                Some(index) => {
                    let index = index.parse::<usize>().ok();
                    found.list().zip(index).and_then(|(list, i)| list.get(i))
                }
            };
            match next {
                Some(next) => found = next,
                None => break,
            }
        }
        found
    }

    pub(super) fn table(&self) -> Option<&BTreeMap<String, Self>> {
        let Content::Table(table) = &self.content else {
            return None;
        };
        Some(table)
    }

    fn list(&self) -> Option<&[Self]> {
        let Content::List(list) = &self.content else {
            return None;
        };
        Some(list)
    }

    /// Returns the elements of a list, and none for anything else.
    pub(super) fn elements(&self) -> &[Self] {
        self.list().unwrap_or_default()
    }

    /// Removes the setting at `path`, and reports whether it was there.
    pub(super) fn prune(&mut self, path: &[String]) -> bool {
        let Content::Table(table) = &mut self.content else {
            return false;
        };
        match path {
            [] => false,
            [last] => table.remove(last).is_some(),
            [first, rest @ ..] => table.get_mut(first).is_some_and(|inner| inner.prune(rest)),
        }
    }

    /// Marks this setting and everything in it as a default.
    pub(super) fn clear_origins(&mut self) {
        self.origin = SettingOrigin::Default;
        match &mut self.content {
            Content::Table(table) => table.values_mut().for_each(Self::clear_origins),
            Content::List(list) => list.iter_mut().for_each(Self::clear_origins),
            Content::Text(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_)
            | Content::Untyped(_) => {}
        }
    }

    /// Returns the dotted keys of all settings and tables.
    pub(super) fn keys(&self) -> Vec<String> {
        let Content::Table(table) = &self.content else {
            return Vec::new();
        };
        let mut keys = Vec::new();
        for (key, setting) in table {
            keys.push(key.clone());
            keys.extend(setting.keys().iter().map(|inner| format!("{key}.{inner}")));
        }
        keys
    }
}

impl fmt::Display for Setting {
    /// Writes the value as an error message shows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.content {
            Content::Table(_) => f.write_str("a table"),
            Content::List(list) if list.is_empty() => f.write_str("[]"),
            Content::List(_) => f.write_str("a list"),
            Content::Text(text) => write!(f, "\"{text}\""),
            Content::Integer(number) => number.fmt(f),
            Content::Float(number) => number.fmt(f),
            Content::Bool(value) => value.fmt(f),
            Content::Date(text) | Content::Untyped(text) => f.write_str(text),
        }
    }
}
