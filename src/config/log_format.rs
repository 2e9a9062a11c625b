//! The format of the log while there is no valid configuration to choose it.

use super::{LogFormat, Overrides};

const KEY: &str = "telemetry.log_format";
const VARIABLE: &str = "RINGFENCE_TELEMETRY__LOG_FORMAT";

/// Finds the log format as far as it can be known while the configuration is invalid or not read
/// yet: from the flags, else from the environment, else from the file, else the default.
pub fn log_format_before_load(overrides: &Overrides) -> LogFormat {
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

/// Removes the quotes of TOML around a flag's or a variable's value, where there are any.
fn unquoted(value: &str) -> &str {
    value.trim().trim_matches(['"', '\''])
}

/// Reads the format from the file, whatever its other parts are. Only a regular file is read,
/// because the file is read again later.
fn of_file(overrides: &Overrides) -> Option<String> {
    let file = overrides.file.as_ref().filter(|file| file.is_file())?;
    let text = std::fs::read_to_string(file).ok()?;
    let of = |text: &str| {
        let table: toml::Table = toml::from_str(text).ok()?;
        let format = table.get("telemetry")?.get("log_format")?.as_str()?;
        Some(format.to_owned())
    };
    // A file that is not valid TOML as a whole may still have the key on a line of its own.
    of(&text).or_else(|| {
        let mut lines = text.lines().skip_while(|it| it.trim() != "[telemetry]");
        lines.next()?;
        let own = lines.take_while(|it| !it.trim_start().starts_with('['));
        let mut own = own.filter(|it| it.trim_start().starts_with("log_format"));
        of(&format!("[telemetry]\n{}", own.next()?))
    })
}
