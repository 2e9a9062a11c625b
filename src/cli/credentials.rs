//! The credentials of a client command: the bearer token and certificate that it presents to a
//! daemon, and the authorities by which it verifies the daemon.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Failure;
use super::address::ServerAddress;
use crate::api::{ClientTls, TrustedAuthorities};
use crate::config;
use crate::model::refusal::quote;

/// The arguments for credentials, for the token and for TLS.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Credentials")]
pub(super) struct ClientCredentials {
    /// Present the bearer token in this file [env: RINGFENCE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", value_parser = some_path(), global = true)]
    token_file: Option<PathBuf>,
    /// Use TLS, and trust the authorities in this file (PEM) instead of those of the host. A
    /// `--server` that begins with "https://" uses TLS too. A unix socket is never encrypted
    /// [env: RINGFENCE_TLS_CA]
    #[arg(long, value_name = "FILE", value_parser = some_path(), global = true)]
    tls_ca: Option<PathBuf>,
    /// Use TLS, and expect the daemon's certificate to have this name instead of the host in
    /// `--server`. Requests are addressed to this name too
    #[arg(
        long,
        value_name = "NAME",
        env = "RINGFENCE_TLS_SERVER_NAME",
        global = true
    )]
    tls_server_name: Option<String>,
    /// Present the certificate in this file (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", global = true)]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate in --tls-cert (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert", global = true)]
    tls_key: Option<PathBuf>,
}

/// An interceptor that adds the bearer token to each call; without a token it adds nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct BearerInterceptor(Option<MetadataValue<Ascii>>);

impl Interceptor for BearerInterceptor {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl ClientCredentials {
    /// Reads the token file, and returns the interceptor that adds its token.
    pub(super) fn bearer(&self) -> Result<BearerInterceptor, Failure> {
        let Some(file) = named(
            "--token-file",
            self.token_file.as_ref(),
            "RINGFENCE_TOKEN_FILE",
        )?
        else {
            return Ok(BearerInterceptor::default());
        };
        let token = String::from_utf8(file.read()?).unwrap_or_default();
        let token = config::trimmed(&token);
        let is_one = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let header = is_one.then(|| format!("Bearer {token}").parse().ok());
        let mut header: MetadataValue<Ascii> = header.flatten().ok_or_else(|| {
            Failure::new(format!(
                "{file} holds no token; a token is one word of ASCII"
            ))
        })?;
        header.set_sensitive(true);
        Ok(BearerInterceptor(Some(header)))
    }

    /// Returns the name that `--tls-server-name` gives; `None` where it gives none.
    ///
    /// # Errors
    /// Fails where no certificate can have such a name.
    pub(super) fn server_name(&self) -> Result<Option<String>, Failure> {
        let Some(name) = &self.tls_server_name else {
            return Ok(None);
        };
        let name = bare(name.trim());
        match ClientTls::may_be_certified(name) {
            true => Ok(Some(name.to_owned())),
            false => Err(Failure::new(format!(
                "--tls-server-name (RINGFENCE_TLS_SERVER_NAME) is \"{}\"; it must be a host name or an IP \
                 address, without a port",
                quote(name)
            ))),
        }
    }

    /// Builds the TLS client where TLS is requested, by a flag or by the address. A unix socket
    /// never uses TLS, because it stays on this host.
    ///
    /// # Errors
    /// Fails where a file cannot be used, or where the address and the flags contradict each other.
    pub(super) fn tls(&self, server: &ServerAddress) -> Result<Option<ClientTls>, Failure> {
        let ServerAddress::Tcp { host, tls, .. } = server else {
            return Ok(None);
        };
        let authorities = named("--tls-ca", self.tls_ca.as_ref(), "RINGFENCE_TLS_CA")?;
        let asked = [
            (authorities.is_some(), "--tls-ca (RINGFENCE_TLS_CA)"),
            (
                self.tls_server_name.is_some(),
                "--tls-server-name (RINGFENCE_TLS_SERVER_NAME)",
            ),
            (self.tls_cert.is_some(), "--tls-cert"),
        ];
        let asked = asked.iter().find(|(is_there, _)| *is_there);
        match (asked, tls) {
            (None, None | Some(false)) => return Ok(None),
            (Some((_, flag)), Some(false)) => {
                return Err(Failure::new(format!(
                    "--server (RINGFENCE_SERVER) asks for plaintext by \"http://\", but {flag} asks for TLS: write \
                     \"https://{server}\", or leave out {flag}"
                )));
            }
            (_, Some(true)) | (Some(_), None) => {}
        }
        let name = self.server_name()?;
        let name = name.unwrap_or_else(|| bare(host).to_owned());
        if !ClientTls::may_be_certified(&name) {
            return Err(Failure::new(format!(
                "no certificate can be for the host \"{}\": give the name in the daemon's certificate with \
                 --tls-server-name (RINGFENCE_TLS_SERVER_NAME)",
                quote(host)
            )));
        }
        let authorities = match authorities {
            Some(file) => TrustedAuthorities::In {
                pem: file.read()?,
                path: file.path,
            },
            None => TrustedAuthorities::OfHost,
        };
        let shown = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => Some((read("--tls-cert", cert)?, read("--tls-key", key)?)),
            (_, _) => None,
        };
        let tls = ClientTls::new(&name, &authorities, shown);
        tls.map(Some)
            .map_err(|error| Failure::new(error.to_string()))
    }
}

/// Converts a host to the form that certificates have: without brackets, a zone or a dot at the
/// end.
fn bare(host: &str) -> &str {
    let host = host.trim_matches(['[', ']']);
    let host = host.split('%').next().unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("{flag}: cannot read {}: {error}", path.display())))
}

/// A file, with the flag or the variable that names it.
struct NamedFile {
    path: PathBuf,
    flag: &'static str,
    variable: Option<&'static str>,
}

impl fmt::Display for NamedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.variable {
            Some(variable) => write!(f, "{variable}={}", self.path.display()),
            None => self.path.display().fmt(f),
        }
    }
}

impl NamedFile {
    fn read(&self) -> Result<Vec<u8>, Failure> {
        match self.variable {
            None => read(self.flag, &self.path),
            Some(_) => std::fs::read(&self.path)
                .map_err(|error| Failure::new(format!("cannot read {self}: {error}"))),
        }
    }
}

/// Finds the file that a flag names, or else a variable. A variable that is set but empty names
/// none.
fn named(
    flag: &'static str,
    given: Option<&PathBuf>,
    variable: &'static str,
) -> Result<Option<NamedFile>, Failure> {
    if let Some(path) = given {
        return Ok(Some(NamedFile {
            path: path.clone(),
            flag,
            variable: None,
        }));
    }
    let value = config::variable(variable).map_err(|it| Failure::new(it.to_string()))?;
    Ok(value.map(|path| NamedFile {
        path: path.into(),
        flag,
        variable: Some(variable),
    }))
}

/// Creates a parser for a path that must not be empty.
fn some_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path: OsString| match path.is_empty() {
        true => Err("the path must not be empty"),
        false => Ok(PathBuf::from(path)),
    })
}

/// Changes `command` and its subcommands so that an environment variable that is empty or blank
/// counts as unset.
pub(super) fn without_blank_variables(command: clap::Command) -> clap::Command {
    let is_blank = |name: &std::ffi::OsStr| {
        std::env::var_os(name)
            .is_some_and(|value| value.to_str().is_some_and(|it| it.trim().is_empty()))
    };
    command
        .mut_args(|arg| match arg.get_env().is_some_and(is_blank) {
            true => arg.env(None::<&'static str>),
            false => arg,
        })
        .mut_subcommands(without_blank_variables)
}
