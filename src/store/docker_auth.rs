//! Credentials for registries, read from a file in the format that Docker, Podman and similar tools
//! write.

use std::collections::HashMap;

use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

/// Names of Docker Hub that are treated as the same registry; the first is the canonical one.
const DOCKER_HUB: [&str; 4] = [
    "docker.io",
    "index.docker.io",
    "registry-1.docker.io",
    "registry.hub.docker.com",
];
/// Paths after a host that Docker's own tools write and that carry no meaning.
const NO_PATHS: [&str; 3] = ["", "v1", "v2"];
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The part of a Docker configuration that is about credentials. This daemon ignores the rest, such
/// as `HttpHeaders`.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct DockerConfig {
    auths: Option<HashMap<String, Option<DockerAuthEntry>>>,
    /// The name of the helper program that holds all credentials.
    creds_store: Option<String>,
    /// The names of helper programs that hold the credentials of single registries, by registry.
    cred_helpers: Option<HashMap<String, String>>,
}

/// The credentials of one registry or repository, under its key in `auths`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuthEntry {
    /// The value "user:password", encoded in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    /// A bearer token, which is sent to the registry as it is.
    #[serde(rename = "registrytoken")]
    registry_token: Option<String>,
    /// A refresh token for obtaining other tokens, which this daemon does not support.
    #[serde(rename = "identitytoken")]
    identity_token: Option<String>,
}

/// The credentials for a registry, which may be anonymous.
pub(super) struct RegistryCredential {
    pub(super) auth: RegistryAuth,
    /// Why there are no credentials, for the message if the registry refuses; `None` where there
    /// are some.
    pub(super) missing: Option<String>,
}

/// What is wrong with a file of credentials. It holds nothing secret, and no source, since the
/// messages of parsers may quote the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// The file is something other than JSON.
    #[error("it is no Docker configuration: line 1 begins no object of JSON")]
    NoObject,
    /// The file is malformed at this place.
    #[error("it is no Docker configuration: line {line}, column {column}")]
    Malformed {
        /// The line, counted from 1.
        line: usize,
        /// The column of the line.
        column: usize,
    },
    /// The credentials of one registry cannot be used.
    #[error("auths.\"{key}\": {source}")]
    Entry {
        /// The key of the registry in `auths`.
        key: String,
        /// What is wrong with them.
        source: DockerAuthError,
    },
}

/// What is wrong with the credentials of one registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerAuthError {
    /// The bearer token cannot be sent.
    #[error("its registrytoken is not one word of ASCII")]
    TokenNotAWord,
    /// There is only a refresh token.
    #[error(
        "it has an identitytoken, which is not taken here: give a user and a password, or a token in its place, as auth or as username and password"
    )]
    IdentityToken,
    /// The user has no password.
    #[error("its auth has no password")]
    NoPassword,
    /// A user or a password is missing.
    #[error("it has one of username and password only")]
    OnlyOne,
    /// The user and the password cannot be decoded.
    #[error("its auth is not base64")]
    NotBase64,
    /// The decoded user and password are binary.
    #[error("its auth is not text")]
    NotText,
    /// What was decoded is something else.
    #[error("its auth is not user:password in base64")]
    NotUserAndPassword,
}

/// Returns anonymous access, with the reason why there are no credentials.
pub(super) fn nothing(missing: impl Into<String>) -> RegistryCredential {
    RegistryCredential {
        auth: RegistryAuth::Anonymous,
        missing: Some(missing.into()),
    }
}

/// Finds the credentials in `text` for a repository of a registry. Of the entries that cover the
/// repository, the one with the longest path wins.
///
/// # Errors
/// Returns what is wrong with the file, without anything secret.
pub(super) fn find(
    text: &[u8],
    registry: &str,
    repository: &str,
) -> Result<RegistryCredential, DockerConfigError> {
    let DockerConfig {
        auths,
        creds_store,
        cred_helpers,
    } = parse(text)?;
    let registry = host(registry);
    let auths = auths.unwrap_or_default();
    let mut fitting: Vec<(usize, &String, &Option<DockerAuthEntry>)> = auths
        .iter()
        .filter_map(|(key, login)| Some((covers(key, &registry, repository)?, key, login)))
        .collect();
    // Entries of equal length are ordered by name, so that the choice is always the same.
    fitting.sort_by(|one, other| (other.0, one.1).cmp(&(one.0, other.1)));
    for (_, key, login) in &fitting {
        let auth = login.as_ref().map_or(Ok(None), |it| it.auth());
        match auth.map_err(|source| entry_error(key, source))? {
            Some(auth) => {
                return Ok(RegistryCredential {
                    auth,
                    missing: None,
                });
            }
            None => continue,
        }
    }
    let helpers = cred_helpers.unwrap_or_default();
    let helper = helpers.iter().find(|(key, _)| host(key) == registry);
    let helper = match (helper, &creds_store) {
        (Some((_, name)), _) => Some(("credHelpers", name)),
        (None, Some(name)) if !name.is_empty() => Some(("credsStore", name)),
        (None, Some(_) | None) => None,
    };
    Ok(nothing(match (helper, fitting.first()) {
        (Some((key, name)), _) => format!(
            "its credentials are with the helper \"{name}\" ({key}), which is not run here; write them to auths.\"{registry}\".auth, as user:password in base64"
        ),
        (None, Some((_, key, _))) => format!("auths.\"{key}\" is empty"),
        (None, None) => format!("auths has no entry for {registry}"),
    }))
}

/// Checks that a file is a readable Docker configuration, and that each of its entries is usable.
///
/// # Errors
/// Returns what is wrong, without anything secret.
pub fn check_credentials(text: &[u8]) -> Result<(), DockerConfigError> {
    for (key, login) in parse(text)?.auths.unwrap_or_default() {
        let auth = login.map_or(Ok(None), |it| it.auth());
        auth.map_err(|source| entry_error(&key, source))?;
    }
    Ok(())
}

fn entry_error(key: &str, source: DockerAuthError) -> DockerConfigError {
    let key = key.to_owned();
    DockerConfigError::Entry { key, source }
}

fn parse(text: &[u8]) -> Result<DockerConfig, DockerConfigError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    if text.trim_ascii().is_empty() {
        // The file looks like this before anybody has logged in.
        return Ok(DockerConfig::default());
    }
    if !text.trim_ascii_start().starts_with(b"{") {
        return Err(DockerConfigError::NoObject);
    }
    serde_json::from_slice(text).map_err(|error| DockerConfigError::Malformed {
        line: error.line(),
        column: error.column(),
    })
}

/// Returns the canonical host of a registry key, which may have a scheme, a path or the default
/// port 443.
fn host(text: &str) -> String {
    let (host, _) = split(text);
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(":443").unwrap_or(&host);
    match DOCKER_HUB.contains(&host) {
        true => DOCKER_HUB[0].to_owned(),
        false => host.to_owned(),
    }
}

/// Splits a key of `auths` into its host and its path.
fn split(key: &str) -> (&str, &str) {
    let key = key.trim();
    let bare = ["https://", "http://"]
        .iter()
        .find_map(|scheme| key.strip_prefix(scheme))
        .unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_matches('/');
    match NO_PATHS.contains(&path) {
        true => (host, ""),
        false => (host, path),
    }
}

/// Returns how many bytes of the repository's path the key covers; `None` where it does not stand
/// for the repository.
fn covers(key: &str, registry: &str, repository: &str) -> Option<usize> {
    if host(key) != registry {
        return None;
    }
    let (_, path) = split(key);
    let rest = repository.strip_prefix(path)?;
    let whole = path.is_empty() || rest.is_empty() || rest.starts_with('/');
    whole.then_some(path.len())
}

impl DockerAuthEntry {
    /// Returns the credentials of this entry; `None` where it is empty.
    fn auth(&self) -> Result<Option<RegistryAuth>, DockerAuthError> {
        let said = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            let text = text.trim_matches(['\n', '\r']).to_owned();
            Some(text).filter(|text| !text.is_empty())
        };
        if let Some(token) = said(&self.registry_token) {
            let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
            return match plain {
                true => Ok(Some(RegistryAuth::Bearer(token))),
                false => Err(DockerAuthError::TokenNotAWord),
            };
        }
        if let (Some(username), Some(password)) = (said(&self.username), said(&self.password)) {
            return Ok(Some(RegistryAuth::Basic(username, password)));
        }
        let from_auth = match said(&self.auth) {
            Some(auth) => Some(user_and_password(&auth)?),
            None => None,
        };
        match from_auth {
            Some((username, password)) if !password.is_empty() => {
                Ok(Some(RegistryAuth::Basic(username, password)))
            }
            _ if said(&self.identity_token).is_some() => Err(DockerAuthError::IdentityToken),
            Some(_) => Err(DockerAuthError::NoPassword),
            None if said(&self.username).is_some() || said(&self.password).is_some() => {
                Err(DockerAuthError::OnlyOne)
            }
            None => Ok(None),
        }
    }
}

/// Decodes "user:password" from base64, with or without padding and whatever lines it was broken
/// into.
fn user_and_password(text: &str) -> Result<(String, String), DockerAuthError> {
    const UNPADDED: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true);
    let text: String = text.split_whitespace().collect();
    let text = text.trim_end_matches('=');
    let decode = |alphabet| GeneralPurpose::new(alphabet, UNPADDED).decode(text);
    let bytes = decode(&STANDARD).or_else(|_| decode(&URL_SAFE));
    let bytes = bytes.map_err(|_| DockerAuthError::NotBase64)?;
    let decoded = String::from_utf8(bytes).map_err(|_| DockerAuthError::NotText)?;
    // `echo user:password | base64` leaves a newline at the end, and Docker's own files have NULs
    // there.
    let decoded = decoded.trim_end_matches(['\n', '\r', '\0']);
    let (username, password) = decoded
        .split_once(':')
        .ok_or(DockerAuthError::NotUserAndPassword)?;
    Ok((username.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use oci_client::secrets::RegistryAuth;

    use super::{check_credentials, find};

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.to_owned(), password.to_owned())
    }

    fn shown(file: &str, registry: &str, repository: &str) -> RegistryAuth {
        find(file.as_bytes(), registry, repository).unwrap().auth
    }

    fn missing(file: &str, registry: &str) -> String {
        let shown = find(file.as_bytes(), registry, "a/b").unwrap();
        assert!(shown.auth == RegistryAuth::Anonymous);
        shown.missing.unwrap()
    }

    /// The base64 of "ali:open sesame".
    const ALI: &str = "YWxpOm9wZW4gc2VzYW1l";

    #[test]
    fn a_key_stands_for_its_registry_however_it_is_written() {
        for (key, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("https://index.docker.io/v1", "docker.io"),
            ("index.docker.io", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry-1.docker.io", "docker.io"),
            ("https://registry-1.docker.io/v2/", "docker.io"),
            ("docker.io", "index.docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("https://ghcr.io", "ghcr.io"),
            ("https://ghcr.io/", "ghcr.io"),
            ("https://ghcr.io/v2/", "ghcr.io"),
            ("GHCR.io", "ghcr.io"),
            ("ghcr.io:443", "ghcr.io"),
            ("ghcr.io", "ghcr.io:443"),
            ("http://localhost:5000", "localhost:5000"),
            (" localhost:5000/v2/ ", "localhost:5000"),
        ] {
            let file = format!("{{\"auths\": {{\"{key}\": {{\"auth\": \"{ALI}\"}}}}}}");
            let auth = shown(&file, registry, "a/b");
            assert!(auth == basic("ali", "open sesame"), "{key} {registry}");
        }
        for (key, registry) in [
            ("ghcr.io", "evil-ghcr.io"),
            ("ghcr.io", "ghcr.io.evil"),
            ("localhost:5000", "localhost:5001"),
            ("localhost", "localhost:5000"),
        ] {
            let file = format!("{{\"auths\": {{\"{key}\": {{\"auth\": \"{ALI}\"}}}}}}");
            assert!(shown(&file, registry, "a") == RegistryAuth::Anonymous);
        }
    }

    #[test]
    fn the_entry_that_says_most_of_the_path_counts() {
        let entry = |user: &str| format!("{{\"username\": \"{user}\", \"password\": \"p\"}}");
        let file = format!(
            "{{\"auths\": {{\"quay.io\": {}, \"quay.io/org\": {}, \"quay.io/org/repo\": {}, \"quay.io/orga\": {}}}}}",
            entry("host"),
            entry("org"),
            entry("repo"),
            entry("orga"),
        );
        for (repository, user) in [
            ("org/repo", "repo"),
            ("org/repo/deeper", "repo"),
            ("org/repository", "org"),
            ("org", "org"),
            ("orgb/x", "host"),
            ("orga/x", "orga"),
        ] {
            assert!(
                shown(&file, "quay.io", repository) == basic(user, "p"),
                "{repository}"
            );
        }
    }

    #[test]
    fn what_an_entry_shows_is_read_as_it_was_meant() {
        for (login, auth) in [
            (
                "{\"auth\": \"YTpiOmM6ZA\", \"email\": \"x\"}",
                basic("a", "b:c:d"),
            ),
            ("{\"auth\": \"YTpiOmM6ZA==\"}", basic("a", "b:c:d")),
            ("{\"auth\": \"YTpi\\nOmM6\\nZA==\\n\"}", basic("a", "b:c:d")),
            ("{\"auth\": \" YTpiOmM6ZA== \"}", basic("a", "b:c:d")),
            // The text ends with the newline that `echo` adds.
            ("{\"auth\": \"YTpiCg==\"}", basic("a", "b")),
            // This is the URL-safe alphabet: "a:??>".
            ("{\"auth\": \"YTo_Pz4\"}", basic("a", "??>")),
            (
                "{\"username\": \"a\", \"password\": \"b:c\", \"auth\": \"\"}",
                basic("a", "b:c"),
            ),
            (
                "{\"registrytoken\": \"t0ken\\n\"}",
                RegistryAuth::Bearer("t0ken".to_owned()),
            ),
            ("{}", RegistryAuth::Anonymous),
            ("null", RegistryAuth::Anonymous),
        ] {
            let file =
                format!("{{\"auths\": {{\"r.io\": {login}}}, \"HttpHeaders\": {{\"A\": \"b\"}}}}");
            assert!(shown(&file, "r.io", "a") == auth, "{login}");
        }
        for (login, why) in [
            ("{\"auth\": \"*\"}", "not base64"),
            ("{\"auth\": \"YQ==\"}", "not user:password"),
            ("{\"auth\": \"YTo=\"}", "no password"),
            (
                "{\"auth\": \"YTo=\", \"identitytoken\": \"x\"}",
                "identitytoken",
            ),
            ("{\"identitytoken\": \"x\"}", "identitytoken"),
            ("{\"username\": \"a\"}", "one of username and password"),
            ("{\"registrytoken\": \"a\\nb\"}", "one word"),
        ] {
            let file = format!("{{\"auths\": {{\"r.io\": {login}}}}}");
            let error = find(file.as_bytes(), "r.io", "a").err().unwrap();
            let told = error.to_string();
            assert!(told.contains(why) && told.contains("r.io"), "{told}");
            assert_eq!(check_credentials(file.as_bytes()), Err(error));
        }
    }

    #[test]
    fn what_is_missing_is_told() {
        for (file, parts) in [
            ("{}", &["no entry for r.io"][..]),
            ("{\"auths\": {}}", &["no entry for r.io"]),
            ("{\"auths\": null}", &["no entry for r.io"]),
            ("{\"auths\": {\"r.io\": {}}}", &["r.io", "empty"]),
            (
                "{\"credsStore\": \"desktop\"}",
                &["\"desktop\"", "credsStore", "auths.\"r.io\".auth"],
            ),
            (
                "{\"auths\": {\"r.io\": {}}, \"credsStore\": \"osxkeychain\"}",
                &["osxkeychain"],
            ),
            (
                "{\"credHelpers\": {\"https://r.io\": \"ecr-login\"}}",
                &["ecr-login", "credHelpers"],
            ),
        ] {
            let told = missing(file, "r.io");
            for part in parts {
                assert!(told.contains(part), "{part} in {told}");
            }
        }
        assert_eq!(missing(" \n", "r.io"), missing("{}", "r.io"));
        for broken in ["no json s3cret", "[]", "{\"auths\": 3}", "{\"auths\""] {
            let told = check_credentials(broken.as_bytes()).unwrap_err();
            let told = told.to_string();
            assert!(
                told.contains("line") && !told.contains("s3cret"),
                "{broken}: {told}"
            );
        }
        assert_eq!(check_credentials(b"\xef\xbb\xbf{}\r\n"), Ok(()));
    }
}
