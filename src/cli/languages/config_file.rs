//! The configuration file of `ringfence languages`, which is changed without touching what else is
//! in it.

use std::io::Write;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, value};

use super::recipes::Recipe;
use crate::cli::Failure;
use crate::model::refusal::printable;
use crate::{app, config};

/// The table of languages.
const TABLE: &str = "languages";

/// A configuration file, as it was written.
pub(super) struct LanguageFile {
    path: PathBuf,
    document: DocumentMut,
    is_new: bool,
}

/// What is written about a language.
pub(super) struct LanguageBlock<'a> {
    /// The name of the language.
    pub(super) name: &'a str,
    /// The path of its module.
    pub(super) module: &'a Path,
    /// The digest of its module.
    pub(super) digest: &'a str,
    /// The recipe by which the module was built, if there is one.
    pub(super) recipe: Option<&'a Recipe>,
}

impl LanguageFile {
    /// Reads the file at `path`; one that does not exist is empty.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |why: String| {
            let path = printable(&path.display().to_string());
            Failure::new(format!("cannot read {path}: {why}"))
        };
        let (text, is_new) = match std::fs::read_to_string(path) {
            Ok(text) => (text, false),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (String::new(), true),
            Err(error) => return Err(failed(error.to_string())),
        };
        let document = text.parse::<DocumentMut>();
        // The parser's own text quotes the line, which may hold a secret.
        let document = document.map_err(|error| failed(error.message().to_owned()))?;
        Ok(Self {
            path: path.to_owned(),
            document,
            is_new,
        })
    }

    /// Lists the names of its languages.
    pub(super) fn names(&self) -> Vec<String> {
        let table = self.document.get(TABLE).and_then(Item::as_table_like);
        let names = table.into_iter().flat_map(|table| table.iter());
        names.map(|(name, _)| name.to_owned()).collect()
    }

    /// Refuses a language that is in the file already.
    pub(super) fn require_absent(&self, name: &str) -> Result<(), Failure> {
        match self.names().iter().any(|there| there == name) {
            true => Err(Failure::new(format!(
                "{} has a language \"{name}\" already; `ringfence languages rm` removes it",
                printable(&self.path.display().to_string()),
                name = printable(name),
            ))),
            false => Ok(()),
        }
    }

    /// Adds a language. A file that is new also gets a folder for compiled code, beside the module,
    /// so that the interpreter is compiled only once.
    pub(super) fn add(&mut self, block: &LanguageBlock<'_>) -> Result<(), Failure> {
        let mut language = Table::new();
        language["module"] = value(block.module.display().to_string());
        language["digest"] = value(block.digest);
        if let Some(recipe) = block.recipe {
            language["file"] = value(recipe.file);
            language["version"] = value(recipe.version);
            language["aliases"] = value(recipe.aliases.iter().copied().collect::<Array>());
            let (pages, stack) = recipe.limits;
            let mut limits = InlineTable::new();
            limits.insert("memory_pages", i64::from(pages).into());
            if !stack.is_empty() {
                limits.insert("stack_size", stack.into());
            }
            language["limits"] = value(limits);
        }
        let languages = self.document.entry(TABLE).or_insert_with(|| {
            let mut table = Table::new();
            table.set_implicit(true);
            Item::Table(table)
        });
        let Some(languages) = languages.as_table_like_mut() else {
            return Err(Failure::new(format!(
                "`languages` is no table in {}",
                printable(&self.path.display().to_string())
            )));
        };
        languages.insert(block.name, Item::Table(language));
        if let (true, Some(folder)) = (self.is_new, block.module.parent()) {
            let mut artifacts = Table::new();
            let folder = |name: &str| folder.join(name).display().to_string();
            artifacts["dir"] = value(folder("compiled"));
            artifacts["key_file"] = value(folder("compiled.key"));
            artifacts.decor_mut().set_prefix(
                "# Compiled code is kept here, so that it need not be compiled again.\n",
            );
            self.document["artifacts"] = Item::Table(artifacts);
        }
        Ok(())
    }

    /// Removes a language from the file.
    pub(super) fn remove(&mut self, name: &str) -> Result<(), Failure> {
        let there = self.names().join(", ");
        let table = self
            .document
            .get_mut(TABLE)
            .and_then(Item::as_table_like_mut);
        match table.and_then(|table| table.remove(name)) {
            Some(_) => Ok(()),
            None => Err(Failure::new(format!(
                "{} has no language \"{}\"; it has: {}",
                printable(&self.path.display().to_string()),
                printable(name),
                if there.is_empty() { "none" } else { &there },
            ))),
        }
    }

    /// Writes the file if a daemon would take it, all of it at once: whoever reads it sees what was
    /// there, or all that is there now.
    pub(super) fn save(self) -> Result<(), Failure> {
        let failed = |error: &std::io::Error| {
            let path = printable(&self.path.display().to_string());
            Failure::new(format!("cannot write {path}: {error}"))
        };
        let text = self.document.to_string();
        config::read(&text, &app::known_names())
            .map_err(|problems| Failure::new(problems.to_string()))?;
        // Of a link, the file that it leads to is replaced.
        let path = match self.is_new {
            true => self.path.clone(),
            false => std::fs::canonicalize(&self.path).map_err(|error| failed(&error))?,
        };
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let mut written =
            tempfile::NamedTempFile::new_in(folder).map_err(|error| failed(&error))?;
        let kept = match std::fs::metadata(&path) {
            Ok(metadata) => Some(metadata.permissions()),
            Err(_) => None,
        };
        let write = written
            .write_all(text.as_bytes())
            .and_then(|()| match kept {
                Some(permissions) => written.as_file().set_permissions(permissions),
                None => Ok(()),
            })
            .and_then(|()| written.as_file().sync_all());
        write.map_err(|error| failed(&error))?;
        written
            .persist(&path)
            .map_err(|error| failed(&error.error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &'static str) -> LanguageBlock<'static> {
        LanguageBlock {
            name,
            module: Path::new("/data/x.wasm"),
            digest: concat!(
                "sha256:",
                "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            ),
            recipe: None,
        }
    }

    #[test]
    fn a_language_is_added_and_removed_and_the_rest_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringfence.toml");
        let before = "# mine\nlisten = [\"unix:/x\"] # here\n\n[policy]\nmax_code = 7000\n";
        std::fs::write(&path, before).unwrap();
        let mut file = LanguageFile::open(&path).unwrap();
        file.add(&block("lua")).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(before), "{text}");
        assert!(
            text.contains("[languages.lua]\nmodule = \"/data/x.wasm\"\n"),
            "{text}"
        );
        assert!(!text.contains("[artifacts]"), "{text}");
        let mut file = LanguageFile::open(&path).unwrap();
        assert_eq!(file.names(), ["lua"]);
        assert!(file.require_absent("lua").is_err() && file.require_absent("ruby").is_ok());
        assert!(file.remove("ruby").is_err());
        file.remove("lua").unwrap();
        file.save().unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap().trim_end(),
            before.trim_end()
        );
    }

    #[test]
    fn a_new_file_has_a_place_for_compiled_code() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new.toml");
        let mut file = LanguageFile::open(&path).unwrap();
        file.add(&block("lua")).unwrap();
        file.save().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("dir = \"/data/compiled\""), "{text}");
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_without_its_text() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.toml");
        std::fs::write(&path, "secret = = hunter2\n").unwrap();
        let refused = LanguageFile::open(&path).err().unwrap();
        assert!(!format!("{refused:?}").contains("hunter2"));
    }
}
