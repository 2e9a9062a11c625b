//! The defaults, and what is laid over them: a file, the environment, flags.

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;

use super::DEFAULTS;
use super::check::{self, Known, Problem, Problems};
use super::environment::Given;
use super::explain;
use super::reading::{PathStep, SettingReader, Unread};
use super::schema::Config;
use super::tree::{self, Content, Setting, SettingOrigin};

/// Errors that are told at once, at the most.
const MAX_PROBLEMS: usize = 64;

/// What was written, by where.
pub(super) struct Layers {
    defaults: Setting,
    file: Option<Setting>,
    /// What variables and flags say, later ones over earlier ones.
    given: Vec<Given>,
    problems: Vec<Problem>,
}

impl Layers {
    /// Of a file's name and text, and of what variables and flags say. `problems` were found on the way.
    ///
    /// # Errors
    /// Where the file is no TOML, with `problems`.
    pub(super) fn new(
        file: Option<(String, String)>,
        given: Vec<Given>,
        mut problems: Vec<Problem>,
    ) -> Result<Self, Problems> {
        let mut defaults = tree::document("the defaults", DEFAULTS).map_err(Problems)?;
        defaults.forget_where();
        let file = file.map(|(name, text)| tree::document(&name, &text));
        let file = match file.transpose() {
            Ok(file) => file,
            Err(more) => {
                problems.extend(more);
                return Err(Problems(problems));
            }
        };
        Ok(Self {
            defaults,
            file,
            given,
            problems,
        })
    }

    /// The configuration that they come to.
    ///
    /// # Errors
    /// Everything that is refused.
    pub(super) fn read(mut self, known: &Known) -> Result<Config, Problems> {
        loop {
            let tree = self.laid();
            match Config::deserialize(SettingReader(&tree)) {
                Ok(config) if self.problems.is_empty() => {
                    return check::check(&config, known)
                        .map(|()| config)
                        .map_err(|problems| explain::where_written(problems, &tree));
                }
                Ok(_) => return Err(Problems(self.problems)),
                Err(unread) => {
                    let problem = explain::unread(&unread, &self.defaults, &self.given);
                    self.problems.push(problem);
                    // Without it the next one is found.
                    if self.problems.len() >= MAX_PROBLEMS || !self.leave_out(&unread) {
                        return Err(Problems(self.problems));
                    }
                }
            }
        }
    }

    /// Lays them over each other, tables key by key and all else as a whole.
    fn laid(&self) -> Setting {
        let given: Vec<Setting> = self.given.iter().map(|it| self.layer_of(it)).collect();
        let below = [&self.defaults].into_iter().chain(&self.file);
        let layers: Vec<Option<&Setting>> = below.chain(&given).map(Some).collect();
        let mut figment = Figment::new();
        for (number, says) in layers.iter().copied().flatten().enumerate() {
            figment = figment.merge(Layer { number, says });
        }
        let number_of = |value: &Value| {
            let metadata = figment.get_metadata(value.tag())?;
            metadata.name.parse::<usize>().ok()
        };
        let merged = figment.data().unwrap_or_default();
        let merged = merged.into_iter().next().map(|(_, dict)| dict);
        assemble(&merged.unwrap_or_default(), &layers, &number_of)
    }

    /// What a variable or a flag says, as a tree of its own. A table in one has keys that count, as those of a file do.
    fn layer_of(&self, given: &Given) -> Setting {
        let Given {
            key,
            content,
            written,
        } = given;
        let table = match content {
            Content::Untyped(text) if self.defaults.is_table(key) => {
                let value = tree::value(text, written).map(|value| value.content);
                value.ok().filter(|it| matches!(it, Content::Table(_)))
            }
            Content::Untyped(_)
            | Content::Table(_)
            | Content::List(_)
            | Content::Text(_)
            | Content::Integer(_)
            | Content::Float(_)
            | Content::Bool(_)
            | Content::Date(_) => None,
        };
        Setting::under(key, table.unwrap_or_else(|| content.clone()), written)
    }

    /// Takes away what was refused; false where that is not possible.
    fn leave_out(&mut self, unread: &Unread) -> bool {
        match &unread.written {
            Some(SettingOrigin::File { .. }) => {
                let names = unread.path.iter().map_while(|step| match step {
                    PathStep::Key(name) => Some(name.clone()),
                    PathStep::Index(_) => None,
                });
                let path: Vec<String> = names.collect();
                self.file.as_mut().is_some_and(|file| file.prune(&path))
            }
            Some(written @ (SettingOrigin::Variable(_) | SettingOrigin::Flag(_))) => {
                let before = self.given.len();
                self.given.retain(|given| !given.says(written));
                self.given.len() < before
            }
            Some(SettingOrigin::Default | SettingOrigin::Command) | None => false,
        }
    }
}

/// What one place says: the defaults, a file, a variable or a flag. Its name is its number, by which it is found again
/// for each value that is of it.
struct Layer<'a> {
    number: usize,
    says: &'a Setting,
}

impl Provider for Layer<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.number.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let tables = outline(self.says).into_dict().unwrap_or_default();
        Ok(Profile::default().collect(tables))
    }
}

/// The tables of a layer, and that there is something at each key: what it is, the layer itself knows better, with the place
/// where it was written.
fn outline(setting: &Setting) -> Value {
    match &setting.content {
        Content::Table(table) => {
            let entries = table.iter().map(|(key, it)| (key.clone(), outline(it)));
            Value::from(entries.collect::<Dict>())
        }
        Content::List(_)
        | Content::Text(_)
        | Content::Integer(_)
        | Content::Float(_)
        | Content::Bool(_)
        | Content::Date(_)
        | Content::Untyped(_) => Value::from(true),
    }
}

/// Puts the settings together that came out on top. `tables` are those of the layers at this place; of one that has none here
/// it is something else.
fn assemble(
    merged: &Dict,
    tables: &[Option<&Setting>],
    number_of: &impl Fn(&Value) -> Option<usize>,
) -> Setting {
    let mut table = std::collections::BTreeMap::new();
    for (key, value) in merged {
        let setting = match value {
            Value::Dict(_, inner) => {
                let below: Vec<_> = tables.iter().map(|layer| inside(*layer, key)).collect();
                Some(assemble(inner, &below, number_of))
            }
            Value::String(..)
            | Value::Char(..)
            | Value::Bool(..)
            | Value::Num(..)
            | Value::Empty(..)
            | Value::Array(..) => {
                let layer = number_of(value).and_then(|number| tables.get(number));
                layer.and_then(|layer| inside(*layer, key)).cloned()
            }
        };
        table.extend(setting.map(|setting| (key.clone(), setting)));
    }
    // A table that is there already has not been written where its keys are.
    let lowest = tables.iter().flatten().find(|it| it.table().is_some());
    let written = lowest.map(|it| it.written.clone());
    Setting {
        content: Content::Table(table),
        written: written.unwrap_or(SettingOrigin::Default),
    }
}

fn inside<'a>(layer: Option<&'a Setting>, key: &str) -> Option<&'a Setting> {
    layer?.table()?.get(key)
}
