//! The layers of a configuration: the defaults, and over them a file, the environment and flags.

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Deserialize;

use super::DEFAULTS;
use super::check;
use super::deserialize::{PathStep, SettingDeserializer, SettingError};
use super::environment::SettingOverride;
use super::explain;
use super::problems::{KnownNames, Problem, Problems};
use super::schema::Config;
use super::tree::{self, Content, Setting, SettingOrigin};

/// Most errors that are reported at once.
const MAX_PROBLEMS: usize = 64;

/// The settings as written, kept apart by the layer that they come from.
pub(super) struct ConfigLayers {
    defaults: Setting,
    file: Option<Setting>,
    /// The settings from variables and flags; later ones override earlier ones.
    overrides: Vec<SettingOverride>,
    problems: Vec<Problem>,
}

impl ConfigLayers {
    /// Parses a file, given by name and text, and stacks the settings of variables and flags on it.
    /// `problems` were found on the way.
    ///
    /// # Errors
    /// Returns `problems` and the syntax errors where the file is not TOML.
    pub(super) fn new(
        file: Option<(String, String)>,
        given: Vec<SettingOverride>,
        mut problems: Vec<Problem>,
    ) -> Result<Self, Problems> {
        let mut defaults = tree::parse_document("the defaults", DEFAULTS).map_err(Problems)?;
        defaults.clear_origins();
        let file = file.map(|(name, text)| tree::parse_document(&name, &text));
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
            overrides: given,
            problems,
        })
    }

    /// Merges the layers, and reads and checks the configuration.
    ///
    /// # Errors
    /// Returns everything that is refused.
    pub(super) fn read(mut self, known: &KnownNames) -> Result<Config, Problems> {
        loop {
            let tree = self.merged();
            match Config::deserialize(SettingDeserializer(&tree)) {
                Ok(config) if self.problems.is_empty() => {
                    return check::check(&config, known)
                        .map(|()| config)
                        .map_err(|problems| explain::add_origins(problems, &tree));
                }
                Ok(_) => return Err(Problems(self.problems)),
                Err(unread) => {
                    let problem = explain::problem_of(&unread, &self.defaults, &self.overrides);
                    self.problems.push(problem);
                    // Reading again without this setting finds the next error.
                    if self.problems.len() >= MAX_PROBLEMS || !self.remove_refused(&unread) {
                        return Err(Problems(self.problems));
                    }
                }
            }
        }
    }

    /// Merges the layers: tables key by key, and everything else as a whole.
    fn merged(&self) -> Setting {
        let given: Vec<Setting> = self.overrides.iter().map(|it| self.layer_of(it)).collect();
        let below = [&self.defaults].into_iter().chain(&self.file);
        let layers: Vec<Option<&Setting>> = below.chain(&given).map(Some).collect();
        let mut figment = Figment::new();
        for (number, says) in layers.iter().copied().flatten().enumerate() {
            figment = figment.merge(LayerProvider { number, says });
        }
        let number_of = |value: &Value| {
            let metadata = figment.get_metadata(value.tag())?;
            metadata.name.parse::<usize>().ok()
        };
        let merged = figment.data().unwrap_or_default();
        let merged = merged.into_iter().next().map(|(_, dict)| dict);
        assemble(&merged.unwrap_or_default(), &layers, &number_of)
    }

    /// Builds the tree of one variable or flag. A table in it overrides key by key, as the tables
    /// of a file do.
    fn layer_of(&self, given: &SettingOverride) -> Setting {
        let SettingOverride {
            key,
            content,
            origin: written,
        } = given;
        let table = match content {
            Content::Untyped(text) if self.defaults.is_table(key) => {
                let value = tree::parse_value(text, written).map(|value| value.content);
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

    /// Removes the setting that was refused; returns false where that is not possible.
    fn remove_refused(&mut self, unread: &SettingError) -> bool {
        match &unread.origin {
            Some(SettingOrigin::File { .. }) => {
                let names = unread.path.iter().map_while(|step| match step {
                    PathStep::Key(name) => Some(name.clone()),
                    PathStep::Index(_) => None,
                });
                let path: Vec<String> = names.collect();
                self.file.as_mut().is_some_and(|file| file.prune(&path))
            }
            Some(written @ (SettingOrigin::Variable(_) | SettingOrigin::Flag(_))) => {
                let before = self.overrides.len();
                self.overrides.retain(|given| !given.has_origin(written));
                self.overrides.len() < before
            }
            Some(SettingOrigin::Default | SettingOrigin::Command) | None => false,
        }
    }
}

/// One layer as a Figment provider: the defaults, a file, a variable or a flag. Its name is its
/// number, by which the layer of each merged value is found again.
struct LayerProvider<'a> {
    number: usize,
    says: &'a Setting,
}

impl Provider for LayerProvider<'_> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.number.to_string())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let tables = outline(self.says).into_dict().unwrap_or_default();
        Ok(Profile::default().collect(tables))
    }
}

/// Reduces a layer to its tables, with a placeholder at each key. The value itself stays in the
/// layer, together with the place where it was written.
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

/// Assembles the settings that won the merge. `tables` are the layers' settings at this place,
/// which are absent or no tables in some of the layers.
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
    // The table gets its place from the lowest layer that has it, because it was there before the
    // keys that later layers add.
    let lowest = tables.iter().flatten().find(|it| it.table().is_some());
    let written = lowest.map(|it| it.origin.clone());
    Setting {
        content: Content::Table(table),
        origin: written.unwrap_or(SettingOrigin::Default),
    }
}

fn inside<'a>(layer: Option<&'a Setting>, key: &str) -> Option<&'a Setting> {
    layer?.table()?.get(key)
}
