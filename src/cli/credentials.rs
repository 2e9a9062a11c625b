//! What a command shows to a daemon: a bearer token, and certificates.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Request, Status};

use super::Failure;
use crate::config;

/// What is shown to a daemon.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Credentials")]
pub(super) struct Credentials {
    /// Show the bearer token in this file [env: RINGFENCE_TOKEN_FILE]
    #[arg(long, value_name = "FILE", value_parser = some_path(), global = true)]
    token_file: Option<PathBuf>,
    /// Encrypt, and trust the authorities in this file (PEM) rather than those of the host; a `--server` that begins with
    /// "https://" encrypts too [env: RINGFENCE_TLS_CA]
    #[arg(long, value_name = "FILE", value_parser = some_path(), global = true)]
    tls_ca: Option<PathBuf>,
    /// Show the certificate in this file (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_key", global = true)]
    tls_cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "tls_cert", global = true)]
    tls_key: Option<PathBuf>,
}

/// Adds the token to each call.
#[derive(Clone, Debug, Default)]
pub(super) struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.0 {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    /// The token, read now.
    pub(super) fn bearer(&self) -> Result<Bearer, Failure> {
        let Some(path) = named(&self.token_file, "RINGFENCE_TOKEN_FILE")? else {
            return Ok(Bearer::default());
        };
        let token = String::from_utf8(path.read()?).unwrap_or_default();
        let token = config::trimmed(&token);
        let is_one = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        let header = is_one.then(|| format!("Bearer {token}").parse().ok());
        let mut header: MetadataValue<Ascii> = header.flatten().ok_or_else(|| {
            Failure::new(format!("{path} holds no token, which is one word of ASCII"))
        })?;
        header.set_sensitive(true);
        Ok(Bearer(Some(header)))
    }

    /// How to encrypt, where that is asked for, here or by the address.
    pub(super) fn tls(&self, addr: &str) -> Result<Option<ClientTlsConfig>, Failure> {
        let authorities = named(&self.tls_ca, "RINGFENCE_TLS_CA")?;
        let asked = authorities.is_some() || self.tls_cert.is_some();
        if !asked && !addr.starts_with("https://") {
            return Ok(None);
        }
        let mut tls = ClientTlsConfig::new();
        tls = match &authorities {
            Some(path) => tls.ca_certificate(Certificate::from_pem(path.read()?)),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(Some(tls))
    }
}

/// A file, and the variable that names it where no flag does.
struct NamedFile {
    path: PathBuf,
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
        std::fs::read(&self.path)
            .map_err(|error| Failure::new(format!("cannot read {self}: {error}")))
    }
}

/// The file that a flag names, or else a variable. One that is set but empty names none.
fn named(flag: &Option<PathBuf>, variable: &'static str) -> Result<Option<NamedFile>, Failure> {
    if let Some(path) = flag {
        return Ok(Some(NamedFile {
            path: path.clone(),
            variable: None,
        }));
    }
    let value = config::variable(variable).map_err(|it| Failure::new(it.to_string()))?;
    Ok(value.map(|path| NamedFile {
        path: path.into(),
        variable: Some(variable),
    }))
}

/// Takes a path of a flag, which is not empty.
fn some_path() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|path: OsString| match path.is_empty() {
        true => Err("allowed is a path"),
        false => Ok(PathBuf::from(path)),
    })
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}
