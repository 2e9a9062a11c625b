//! Environment variables: the daemon's own settings, and the variables of an object store's
//! provider.

use std::ffi::OsStr;
use std::path::PathBuf;

use super::problems::{Problem, Problems};
use super::tree::{Content, SettingOrigin, trimmed};
use crate::store;

/// The prefix of the variables that hold settings of the daemon.
const PREFIX: &str = "RINGFENCE_";
/// Variables with the prefix that are no settings. They tell a client command which daemon to call,
/// and with which credentials.
const CLIENTS: [&str; 4] = ["server", "token_file", "tls_ca", "tls_server_name"];
/// Parts of provider variables' names by which a value counts as secret and is never shown.
const SECRET: [&str; 8] = [
    "SECRET", "TOKEN", "KEY", "PASSWORD", "SAS", "PROXY", "HEADER", "MASTER",
];
/// Parts of the names of a provider's variables that hold paths.
const PATHS: [&str; 4] = ["_FILE", "_PATH", "CREDENTIALS", "SERVICE_ACCOUNT"];
/// Parts of the names of a provider's variables that hold URLs.
const URLS: [&str; 4] = ["ENDPOINT", "FULL_URI", "_PROXY_URL", "AUTHORITY_HOST"];

/// The keys whose lists of addresses have a flag of their own, which is repeated for each address.
pub(super) const LISTEN_FLAGS: [(&str, &str); 2] =
    [("listen", "--listen"), ("admin.listen", "--admin-listen")];

/// A setting from a variable or a flag, which overrides the configuration file.
#[derive(Debug)]
pub(super) struct SettingOverride {
    /// The dotted key of the setting.
    pub(super) key: String,
    pub(super) content: Content,
    pub(super) origin: SettingOrigin,
}

impl SettingOverride {
    /// Reports whether this setting was written at `written`. All addresses given by one of
    /// [`LISTEN_FLAGS`] are parts of one setting.
    pub(super) fn has_origin(&self, written: &SettingOrigin) -> bool {
        let is_of = |flag: &str, it: &SettingOrigin| matches!(it, SettingOrigin::Flag(name) if name.split(' ').next() == Some(flag));
        self.origin == *written
            || LISTEN_FLAGS
                .iter()
                .any(|(_, flag)| is_of(flag, &self.origin) && is_of(flag, written))
    }
}

/// What was found in the environment: settings, problems and warnings.
#[derive(Debug, Default)]
pub(super) struct EnvironmentSettings {
    pub(super) settings: Vec<SettingOverride>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// Returns a variable's trimmed value; `None` where it is unset or nothing is left.
///
/// # Errors
/// Fails where the value is not UTF-8.
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
        origin: None,
        key: name.to_owned(),
        value,
        allowed: allowed.to_owned(),
    }
}

/// Reports whether the value of a variable must not be shown.
fn is_secret(name: &str, value: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    let is_path = PATHS.iter().any(|part| upper.contains(part));
    (SECRET.iter().any(|part| upper.contains(part)) && !is_path) || value.contains('@')
}

/// Collects the daemon's settings from the environment, ordered by the names of their variables.
pub(super) fn settings() -> EnvironmentSettings {
    let mut environment = EnvironmentSettings::default();
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
            environment.warnings.push(format!("the environment variable {shown} looks like a Kubernetes service link, and is ignored (set enableServiceLinks: false in the pod)"));
            continue;
        }
        match text(&shown, &value) {
            Ok(None) => {}
            Ok(Some(text)) => environment.settings.push(SettingOverride {
                key: key.replace("__", "."),
                content: Content::Untyped(text),
                origin: SettingOrigin::Variable(shown.into()),
            }),
            Err(problem) => environment.problems.push(problem),
        }
    }
    environment
}

/// Returns the name of the variable that holds the setting of a dotted key.
pub(super) fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

/// Collects the variables that the provider of an object store accepts, by the scheme of its URL.
/// Values are trimmed, and empty ones are left out.
///
/// # Errors
/// Returns every variable whose value could not be sent, by name. Secret values are not shown.
pub fn provider_variables(scheme: &str) -> Result<Vec<(String, String)>, Problems> {
    let (mut taken, mut problems) = (Vec::new(), Vec::new());
    let mut variables: Vec<_> = std::env::vars_os().collect();
    variables.sort();
    for (name, value) in variables {
        let Some(name) = name
            .to_str()
            .filter(|name| store::accepts_variable(scheme, name))
        else {
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
                origin: None,
                key: other.to_owned(),
                value: String::new(),
                allowed: format!("must be set, because {one} is set"),
            });
        }
    }
    match problems.is_empty() {
        true => Ok(taken),
        false => Err(Problems(problems)),
    }
}

/// Checks that the provider of the object store at `url` accepts the values of its variables.
///
/// # Errors
/// Returns the variables that the provider does not accept.
pub(super) fn check_provider_variables(key: &str, url: &url::Url) -> Result<(), Problems> {
    let variables = provider_variables(url.scheme())?;
    store::check_variables(url, &variables).map_err(|(name, why)| {
        let said = variables.iter().find(|(it, _)| Some(it) == name.as_ref());
        Problems(vec![match said {
            // The library's message may contain the value.
            Some((name, value)) => Problem {
                allowed: match is_secret(name, value) {
                    true => "a value that the provider accepts".to_owned(),
                    false => format!("a value that the provider accepts: {why}"),
                },
                ..refused(name, OsStr::new(value), "")
            },
            None => Problem {
                origin: None,
                key: key.to_owned(),
                value: url.to_string(),
                allowed: format!("a URL that its provider accepts: {why}"),
            },
        }])
    })
}

/// Describes what a provider's variable has to be; `None` where its value is acceptable.
fn unsendable(name: &str, value: &str) -> Option<&'static str> {
    let is = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
    if value.chars().any(char::is_control) {
        return Some("text without control characters, such as a line end in the middle");
    }
    if is(&PATHS) {
        return None;
    }
    if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Some("printable ASCII, because it is sent in headers");
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

/// Returns the files that environment variables name as credentials for object stores.
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
            // A path need not be UTF-8, and is then taken as it is.
            Some(match value.to_str() {
                Some(text) => PathBuf::from(trimmed(text)),
                None => PathBuf::from(value),
            })
        })
        .filter(|path| path.is_absolute())
        .collect()
}

/// Reports whether Kubernetes injects such a variable for a Service: `X_SERVICE_HOST`,
/// `X_PORT_80_TCP_ADDR` and the like.
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
