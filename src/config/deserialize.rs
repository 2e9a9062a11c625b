//! A serde deserializer from settings as they were written to the types of their keys. The value of
//! a variable or a flag gets the type that its key takes: `007` is text where text is taken, and a
//! number where a number is.

use std::fmt;

use serde::de::{self, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::tree::{self, Content, Setting, SettingOrigin};

/// A setting that could not be read, with the place where it was written.
#[derive(Debug)]
pub(super) struct SettingError {
    /// The path to the setting.
    pub(super) path: Vec<PathStep>,
    /// Where the setting was written; `None` until that is known.
    pub(super) origin: Option<SettingOrigin>,
    /// The value as written; empty where it is not shown.
    pub(super) value: String,
    pub(super) cause: SettingErrorKind,
}

/// One step of a path through tables and lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathStep {
    Key(String),
    Index(usize),
}

/// The reason why a setting was refused.
#[derive(Debug)]
pub(super) enum SettingErrorKind {
    /// The value is not allowed; the text describes what is.
    NotAllowed(String),
    /// There is no such key; these are the keys that exist.
    NoSuchKey(&'static [&'static str]),
    /// Any other reason, as a sentence.
    Other(String),
}

impl SettingError {
    fn of(cause: SettingErrorKind, value: String) -> Self {
        Self {
            path: Vec::new(),
            origin: None,
            value,
            cause,
        }
    }

    /// Prepends a step to the path, as the error passes through the table or the list around the
    /// setting.
    fn within(mut self, step: PathStep, setting: &Setting) -> Self {
        self.path.insert(0, step);
        self.origin.get_or_insert_with(|| setting.origin.clone());
        self
    }

    /// Formats the path as a dotted key.
    pub(super) fn key(&self) -> String {
        let mut key = String::new();
        for step in &self.path {
            match step {
                PathStep::Key(name) if key.is_empty() => key.push_str(name),
                PathStep::Key(name) => key = format!("{key}.{name}"),
                PathStep::Index(index) => key = format!("{key}[{index}]"),
            }
        }
        key
    }
}

impl fmt::Display for SettingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            SettingErrorKind::NotAllowed(allowed) => write!(f, "must be {allowed}"),
            SettingErrorKind::NoSuchKey(_) => f.write_str("there is no such key"),
            SettingErrorKind::Other(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for SettingError {}

/// Formats the value that was found, without the words that serde would put around it.
fn shown_value(unexpected: &de::Unexpected<'_>) -> String {
    match unexpected {
        de::Unexpected::Str(text) => format!("\"{text}\""),
        de::Unexpected::Bool(value) => value.to_string(),
        de::Unexpected::Unsigned(number) => number.to_string(),
        de::Unexpected::Signed(number) => number.to_string(),
        de::Unexpected::Float(number) => number.to_string(),
        de::Unexpected::Seq => "a list".to_owned(),
        de::Unexpected::Map => "a table".to_owned(),
        de::Unexpected::Char(_)
        | de::Unexpected::Bytes(_)
        | de::Unexpected::Unit
        | de::Unexpected::Option
        | de::Unexpected::NewtypeStruct
        | de::Unexpected::Enum
        | de::Unexpected::UnitVariant
        | de::Unexpected::NewtypeVariant
        | de::Unexpected::TupleVariant
        | de::Unexpected::StructVariant
        | de::Unexpected::Other(_) => unexpected.to_string(),
    }
}

impl de::Error for SettingError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::of(SettingErrorKind::Other(message.to_string()), String::new())
    }

    fn invalid_type(unexpected: de::Unexpected<'_>, allowed: &dyn de::Expected) -> Self {
        Self::invalid_value(unexpected, allowed)
    }

    fn invalid_value(unexpected: de::Unexpected<'_>, allowed: &dyn de::Expected) -> Self {
        Self::of(
            SettingErrorKind::NotAllowed(allowed.to_string()),
            shown_value(&unexpected),
        )
    }

    fn unknown_variant(variant: &str, allowed: &'static [&'static str]) -> Self {
        let names: Vec<String> = allowed.iter().map(|it| format!("\"{it}\"")).collect();
        let value = format!("\"{variant}\"");
        Self::of(SettingErrorKind::NotAllowed(names.join(" or ")), value)
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let mut unread = Self::of(SettingErrorKind::NoSuchKey(known), String::new());
        unread.path.push(PathStep::Key(field.to_owned()));
        unread
    }

    fn missing_field(field: &'static str) -> Self {
        Self::custom(format_args!("`{field}` is missing"))
    }
}

/// A deserializer that reads one setting.
#[derive(Clone, Copy)]
pub(super) struct SettingDeserializer<'a>(pub(super) &'a Setting);

impl SettingDeserializer<'_> {
    fn refuse(self, allowed: &str) -> SettingError {
        SettingError::of(
            SettingErrorKind::NotAllowed(allowed.to_owned()),
            self.0.to_string(),
        )
    }

    /// Reads a text, and refuses one with control characters, which could end a line or do worse
    /// where the text is used.
    fn text(self) -> Result<String, SettingError> {
        let text = match &self.0.content {
            Content::Text(text) => text.clone(),
            Content::Untyped(text) => unquoted(text, &self.0.origin),
            Content::Table(_)
            | Content::List(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_) => return Err(self.refuse("text, in quotes")),
        };
        let was_text = self.0.origin != SettingOrigin::Command;
        if was_text && text.chars().any(char::is_control) {
            return Err(self.refuse("text without control characters, such as line ends"));
        }
        Ok(text)
    }

    fn integer(self, least: i128, most: i128) -> Result<i128, SettingError> {
        let allowed = || format!("a whole number from {least} to {most}");
        let number = match &self.0.content {
            Content::Integer(number) => Some(*number),
            Content::Untyped(text) => whole_number(text),
            Content::Table(_)
            | Content::List(_)
            | Content::Text(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_) => None,
        };
        let fits = number.filter(|number| (least..=most).contains(number));
        fits.ok_or_else(|| self.refuse(&allowed()))
    }

    /// Reads the elements of a list. A variable or a flag may have them as TOML, or plainly with
    /// commas between them.
    fn list(self) -> Result<Vec<Setting>, SettingError> {
        const ALLOWED: &str = "a list, such as [\"a\", \"b\"]";
        match &self.0.content {
            Content::List(list) => Ok(list.clone()),
            Content::Untyped(text) => {
                plain_list(text, &self.0.origin).map_err(|why| match why.as_str() {
                    "" => self.refuse(ALLOWED),
                    why => self.refuse(&format!("{ALLOWED}: {why}")),
                })
            }
            Content::Table(_)
            | Content::Text(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_) => Err(self.refuse(ALLOWED)),
        }
    }

    fn read_table<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        const ALLOWED: &str = "a table, such as { key = \"value\" }";
        let parsed;
        let table = match &self.0.content {
            Content::Table(table) => table,
            Content::Untyped(text) => {
                let value = tree::parse_value(text, &self.0.origin)
                    .map_err(|why| self.refuse(&format!("{ALLOWED}: {why}")))?;
                parsed = value;
                let Content::Table(table) = &parsed.content else {
                    return Err(self.refuse(ALLOWED));
                };
                table
            }
            Content::List(_)
            | Content::Text(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_) => return Err(self.refuse(ALLOWED)),
        };
        let read = visitor.visit_map(TableEntries {
            rest: table.iter(),
            next: None,
        });
        read.map_err(|mut unread: SettingError| {
            if let (None, [PathStep::Key(key)]) = (&unread.origin, unread.path.as_slice()) {
                // The key does not exist, so the error is about an entry of this table.
                unread.origin = table.get(key).map(|setting| setting.origin.clone());
            }
            unread
        })
    }
}

/// The entries of a table. An error in one of them is reported with its key.
struct TableEntries<'a> {
    rest: std::collections::btree_map::Iter<'a, String, Setting>,
    next: Option<(&'a str, &'a Setting)>,
}

impl<'de> de::MapAccess<'de> for TableEntries<'_> {
    type Error = SettingError;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, SettingError> {
        self.next = self.rest.next().map(|(key, it)| (key.as_str(), it));
        let key = self
            .next
            .map(|(key, _)| seed.deserialize(key.into_deserializer()));
        key.transpose()
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, SettingError> {
        let Some((key, setting)) = self.next.take() else {
            return Err(de::Error::custom("a value comes after its key"));
        };
        let read = seed.deserialize(SettingDeserializer(setting));
        read.map_err(|unread| unread.within(PathStep::Key(key.to_owned()), setting))
    }
}

/// The elements of a list. An error in one of them is reported with its index.
struct ListElements<'a>(std::iter::Enumerate<std::slice::Iter<'a, Setting>>);

impl<'de> de::SeqAccess<'de> for ListElements<'_> {
    type Error = SettingError;

    fn next_element_seed<T: de::DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, SettingError> {
        let Some((index, setting)) = self.0.next() else {
            return Ok(None);
        };
        let read = seed.deserialize(SettingDeserializer(setting));
        let read = read.map_err(|unread| unread.within(PathStep::Index(index), setting));
        read.map(Some)
    }
}

macro_rules! whole_numbers {
    ($($method:ident => $visit:ident: $type:ty),* $(,)?) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
            let (least, most) = (i128::from(<$type>::MIN), i128::from(<$type>::MAX));
            let number = self.integer(least, most)?;
            visitor.$visit(<$type>::try_from(number).map_err(de::Error::custom)?)
        })*
    };
}

impl<'de> Deserializer<'de> for SettingDeserializer<'_> {
    type Error = SettingError;

    whole_numbers! {
        deserialize_i8 => visit_i8: i8, deserialize_i16 => visit_i16: i16, deserialize_i32 => visit_i32: i32,
        deserialize_i64 => visit_i64: i64, deserialize_u8 => visit_u8: u8, deserialize_u16 => visit_u16: u16,
        deserialize_u32 => visit_u32: u32, deserialize_u64 => visit_u64: u64,
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        match &self.0.content {
            Content::Table(_) => self.read_table(visitor),
            Content::List(_) => self.deserialize_seq(visitor),
            Content::Text(_) | Content::Untyped(_) => visitor.visit_string(self.text()?),
            Content::Integer(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                (Err(_), Err(_)) => Err(self.refuse("a number of at most 64 bits")),
            },
            Content::Float(number) => visitor.visit_f64(*number),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Date(_) => Err(self.refuse("text, in quotes, or a number")),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        let value = match &self.0.content {
            Content::Bool(value) => Some(*value),
            Content::Untyped(text) => text.parse().ok(),
            Content::Table(_)
            | Content::List(_)
            | Content::Text(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Date(_) => None,
        };
        visitor.visit_bool(value.ok_or_else(|| self.refuse("true or false"))?)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        let number = match &self.0.content {
            Content::Float(number) => Some(*number),
            // An integer that does not fit exactly is far from what any key takes.
            Content::Integer(number) => number.to_string().parse().ok(),
            Content::Untyped(text) => text.replace('_', "").parse().ok(),
            Content::Table(_)
            | Content::List(_)
            | Content::Text(_)
            | Content::Bool(_)
            | Content::Date(_) => None,
        };
        let finite = number.filter(|number: &f64| number.is_finite());
        visitor.visit_f64(finite.ok_or_else(|| self.refuse("a number"))?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        visitor.visit_string(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        visitor.visit_string(self.text()?)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, SettingError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        let list = self.list()?;
        visitor.visit_seq(ListElements(list.iter().enumerate()))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, SettingError> {
        self.read_table(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingError> {
        self.read_table(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SettingError> {
        let text = self.text().map_err(|_| {
            let unknown: SettingError = de::Error::unknown_variant("", variants);
            SettingError {
                value: self.0.to_string(),
                ..unknown
            }
        })?;
        visitor.visit_enum(text.into_deserializer())
    }

    forward_to_deserialize_any! {
        f32 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

/// Removes the quotes that TOML would have around the text of a variable or a flag.
fn unquoted(text: &str, written: &SettingOrigin) -> String {
    let quoted = |quote: char| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote);
    let is_quoted = quoted('"') || quoted('\'');
    match tree::parse_value(text, written).map(|value| value.content) {
        Ok(Content::Text(inner)) if is_quoted => inner,
        Ok(_) | Err(_) => text.to_owned(),
    }
}

/// Parses a whole number as people write it, or as TOML does.
fn whole_number(text: &str) -> Option<i128> {
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let Content::Integer(number) = tree::parse_value(text, &SettingOrigin::Default)
        .ok()?
        .content
    else {
        return None;
    };
    Some(number)
}

/// Splits the list in a variable or a flag into its elements. The error is empty where there is
/// nothing more to say.
fn plain_list(text: &str, written: &SettingOrigin) -> Result<Vec<Setting>, String> {
    let bracketed = text.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    let plain = match bracketed {
        None => text,
        Some(inner) => match tree::parse_value(text, written) {
            Ok(Setting {
                content: Content::List(list),
                ..
            }) => return Ok(list),
            // A list without quotes, such as [a, b], is not TOML, but its meaning is clear.
            Err(_) if !inner.contains(['"', '\'', '{', '[', '\n']) => inner,
            Ok(_) => return Err(String::new()),
            Err(why) => return Err(why),
        },
    };
    let elements = plain.split(',').map(tree::trimmed);
    let elements = elements.filter(|element| !element.is_empty());
    Ok(elements
        .map(|element| Setting {
            content: Content::Untyped(element.to_owned()),
            origin: written.clone(),
        })
        .collect())
}
