//! Variables of the environment: our own settings, and those that the provider of an object store has.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::check::{Problem, Problems};
use super::tree::{Content, SettingOrigin, trimmed};
use crate::store;

/// What the variables of our settings begin with.
const PREFIX: &str = "RINGFENCE_";
/// Variables with our prefix that are no settings, but say which daemon a command asks, and what it shows to it.
const CLIENTS: [&str; 4] = ["server", "token_file", "tls_ca", "tls_server_name"];
/// Parts of the names of a provider's variables whose values are told nowhere.
const SECRET: [&str; 8] = [
    "SECRET", "TOKEN", "KEY", "PASSWORD", "SAS", "PROXY", "HEADER", "MASTER",
];
/// Parts of the names of a provider's variables that hold paths.
const PATHS: [&str; 4] = ["_FILE", "_PATH", "CREDENTIALS", "SERVICE_ACCOUNT"];
/// Parts of the names of a provider's variables that hold URLs.
const URLS: [&str; 4] = ["ENDPOINT", "FULL_URI", "_PROXY_URL", "AUTHORITY_HOST"];

/// A setting that a variable or a flag says.
#[derive(Debug)]
pub(super) struct Given {
    /// Its dotted key.
    pub(super) key: String,
    pub(super) content: Content,
    pub(super) written: SettingOrigin,
}

impl Given {
    /// Whether it is what was written there. Each address of `--listen` is a part of one setting.
    pub(super) fn says(&self, written: &SettingOrigin) -> bool {
        let is_listen = |it: &SettingOrigin| matches!(it, SettingOrigin::Flag(name) if name.starts_with("--listen "));
        self.written == *written || (is_listen(&self.written) && is_listen(written))
    }
}

/// What the environment says.
#[derive(Debug, Default)]
pub(super) struct Environment {
    pub(super) settings: Vec<Given>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// A variable's value without what surrounds it; `None` where it is unset or nothing is left.
///
/// # Errors
/// Where it is no UTF-8.
pub fn variable(name: &str) -> Result<Option<String>, Problems> {
    match std::env::var_os(name) {
        None => Ok(None),
        Some(value) => text(name, &value).map_err(|problem| Problems(vec![problem])),
    }
}

fn text(name: &str, value: &OsStr) -> Result<Option<String>, Problem> {
    let text = value
        .to_str()
        .ok_or_else(|| refused(name, value, "UTF-8"))?;
    let text = trimmed(text);
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn refused(name: &str, value: &OsStr, allowed: &str) -> Problem {
    let shown = value.to_string_lossy();
    let value = match is_secret(name, &shown) {
        true => format!("(a value of {} bytes)", value.len()),
        false => shown.into_owned(),
    };
    Problem {
        written: None,
        key: name.to_owned(),
        value,
        allowed: allowed.to_owned(),
    }
}

/// Whether what a variable says is not to be told.
fn is_secret(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let is_path = PATHS.iter().any(|part| upper.contains(part));
    (SECRET.iter().any(|part| upper.contains(part)) && !is_path) || value.contains('@')
}

/// The settings in the environment, by their variables' names.
pub(super) fn settings() -> Environment {
    let mut environment = Environment::default();
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    for (name, value) in variables {
        let shown = name.to_string_lossy();
        let Some((prefix, key)) = shown.split_at_checked(PREFIX.len()) else {
            continue;
        };
        let key = key.to_lowercase();
        if !prefix.eq_ignore_ascii_case(PREFIX) || CLIENTS.contains(&key.as_str()) {
            continue;
        }
        if is_service_link(&shown.to_uppercase()) {
            // Kubernetes injects such variables for a Service whose name starts with "ringfence".
            environment.warnings.push(format!("environment variable {shown} looks like a Kubernetes service link and was skipped (set enableServiceLinks: false)"));
            continue;
        }
        match text(&shown, &value) {
            Ok(None) => {}
            Ok(Some(text)) => environment.settings.push(Given {
                key: key.replace("__", "."),
                content: Content::Untyped(text),
                written: SettingOrigin::Variable(shown.into()),
            }),
            Err(problem) => environment.problems.push(problem),
        }
    }
    environment
}

/// The variable that holds the setting of a dotted key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// The variables that the provider of an object store takes, by the scheme of its URL: without what surrounds their
/// values, and without those that are empty.
///
/// # Errors
/// Every one that could be sent nowhere, by its name. What is secret is not told.
pub fn provider(scheme: &str) -> Result<Vec<(String, String)>, Problems> {
    let (mut taken, mut problems) = (Vec::new(), Vec::new());
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| store::takes(scheme, name)) else {
            continue;
        };
        match text(name, &value) {
            Ok(None) => {}
            Ok(Some(text)) => match unsendable(name, &text) {
                None => taken.push((name.to_owned(), text)),
                Some(allowed) => problems.push(refused(name, &value, allowed)),
            },
            Err(problem) => problems.push(problem),
        }
    }
    let has = |name: &str| taken.iter().any(|(taken, _)| taken == name);
    let pair = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
    for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
        if has(one) && !has(other) && problems.is_empty() {
            problems.push(Problem {
                written: None,
                key: other.to_owned(),
                value: String::new(),
                allowed: format!("it is not set, and has to be where {one} is"),
            });
        }
    }
    match problems.is_empty() {
        true => Ok(taken),
        false => Err(Problems(problems)),
    }
}

/// Checks that the provider of the object store at `url` takes what its variables say.
///
/// # Errors
/// The variables that it does not take.
pub(super) fn check_provider(url: &url::Url) -> Result<(), Problems> {
    let variables = provider(url.scheme())?;
    store::check_variables(url, &variables).map_err(|(name, why)| {
        let said = variables.iter().find(|(it, _)| Some(it) == name.as_ref());
        Problems(vec![match said {
            // What the library says may have the value in it.
            Some((name, value)) => Problem {
                allowed: match is_secret(name, value) {
                    true => "something else".to_owned(),
                    false => format!("something else: {why}"),
                },
                ..refused(name, OsStr::new(value), "")
            },
            None => Problem {
                written: None,
                key: "store.url".to_owned(),
                value: url.to_string(),
                allowed: format!("what its provider takes: {why}"),
            },
        }])
    })
}

/// What a provider's variable has to be, where its value is something else.
fn unsendable(name: &str, value: &str) -> Option<&'static str> {
    let is = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if value.chars().any(char::is_control) {
        return Some("text without control characters, such as a line end in the middle");
    }
    if is(&PATHS) {
        return None;
    }
    if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Some("printable ASCII: it is sent in headers");
    }
    if name.starts_with("AWS_") && name.ends_with("REGION") {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let fits = value.bytes().all(plain);
        return (!fits).then_some("the name of a region, such as us-east-1");
    }
    if is(&URLS) {
        let url = url::Url::parse(value).ok();
        let fits =
            url.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        return (!fits).then_some("a URL that begins with http:// or https://");
    }
    let one_word = ["KEY_ID", "TOKEN", "SECRET", "ROLE_ARN", "ACCOUNT_NAME"];
    (is(&one_word) && value.contains(' ')).then_some("one word, without spaces")
}

/// Files that variables of the environment name as credentials for object stores.
pub fn credential_files() -> Vec<PathBuf> {
    const NAMES: [&str; 5] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SERVICE_ACCOUNT",
        "AZURE_FEDERATED_TOKEN_FILE",
    ];
    NAMES
        .iter()
        .filter_map(|name| {
            let value = std::env::var_os(name)?;
            // A path may be no UTF-8; then it stands as it is.
            Some(match value.to_str() {
                Some(text) => PathBuf::from(trimmed(text)),
                None => PathBuf::from(value),
            })
        })
        .filter(|path| path.is_absolute())
        .collect()
}

/// Whether a variable is one that Kubernetes makes of a Service: `X_SERVICE_HOST`, `X_PORT_80_TCP_ADDR` and the like.
fn is_service_link(key: &str) -> bool {
    if !key.starts_with(PREFIX) || key.contains("__") {
        return false;
    }
    let ends_with_port = |rest: &str| {
        rest.is_empty()
            || rest.strip_prefix('_').is_some_and(|rest| {
                let mut parts = rest.split('_');
                parts
                    .next()
                    .is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()))
                    && parts
                        .next()
                        .is_some_and(|p| matches!(p, "TCP" | "UDP" | "SCTP"))
                    && parts
                        .next()
                        .is_none_or(|p| matches!(p, "PROTO" | "PORT" | "ADDR"))
                    && parts.next().is_none()
            })
    };
    key.ends_with("_SERVICE_HOST")
        || key.contains("_SERVICE_PORT")
        || key
            .match_indices("_PORT")
            .any(|(at, found)| ends_with_port(&key[at + found.len()..]))
}
