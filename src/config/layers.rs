//! The defaults, and what is laid over them: a file, the environment, flags.

use serde::Deserialize;

use super::DEFAULTS;
use super::check::{self, Known, Problem, Problems};
use super::environment::Given;
use super::explain;
use super::reading::{PathStep, SettingReader, Unread};
use super::schema::Config;
use super::tree::{self, Setting, SettingOrigin};

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

    fn laid(&self) -> Setting {
        let mut tree = self.defaults.clone();
        if let Some(file) = &self.file {
            tree.lay(file.clone());
        }
        for Given {
            key,
            content,
            written,
        } in &self.given
        {
            tree.lay(Setting::under(key, content.clone(), written));
        }
        tree
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
