//! The form of the log where there is no valid configuration to say it.

use super::{LogFormat, Overrides};

const KEY: &str = "telemetry.log_format";
const VARIABLE: &str = "RINGFENCE_TELEMETRY__LOG_FORMAT";

/// What the log's form is as far as that can be known where the configuration is not valid, or not
/// read: by the flags, else the environment, else the file, else the default.
pub fn log_format(overrides: &Overrides) -> LogFormat {
    let flag = overrides.set.iter().rev().find(|(key, _)| key == KEY);
    let flag = flag.map(|(_, value)| value.clone());
    let said = flag.or_else(|| of_environment(overrides));
    let said = said.or_else(|| of_file(overrides));
    match said.as_deref().map(unquoted) {
        Some("json") => LogFormat::Json,
        Some(_) | None => LogFormat::Text,
    }
}

fn of_environment(overrides: &Overrides) -> Option<String> {
    if !overrides.environment {
        return None;
    }
    let mut all = std::env::vars_os();
    let (_, value) = all.find(|(key, _)| key.eq_ignore_ascii_case(VARIABLE))?;
    let value = value.into_string().ok()?;
    (!value.trim().is_empty()).then_some(value)
}

/// What a flag or a variable says, with or without the quotes of TOML.
fn unquoted(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}

/// Of a file whose other parts may be anything, as long as it can be read more than once.
fn of_file(overrides: &Overrides) -> Option<String> {
    let file = overrides.file.as_ref().filter(|file| file.is_file())?;
    let text = std::fs::read_to_string(file).ok()?;
    let of = |text: &str| {
        let table: toml::Table = toml::from_str(text).ok()?;
        let format = table.get("telemetry")?.get("log_format")?.as_str()?;
        Some(format.to_owned())
    };
    // One that is no TOML as a whole may still say it, in a line of its own.
    of(&text).or_else(|| {
        let mut lines = text.lines().skip_while(|it| it.trim() != "[telemetry]");
        lines.next()?;
        let own = lines.take_while(|it| !it.trim_start().starts_with('['));
        let mut own = own.filter(|it| it.trim_start().starts_with("log_format"));
        of(&format!("[telemetry]\n{}", own.next()?))
    })
}
