//! What a command shows to a daemon, and what it takes for the daemon: a bearer token, and certificates.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use super::Failure;
use super::address::ServerAddress;
use crate::refusal::quote;

/// What is shown to a daemon.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Credentials")]
pub(super) struct Credentials {
    /// Show the bearer token in this file
    #[arg(
        long,
        value_name = "FILE",
        env = "RINGFENCE_TOKEN_FILE",
        value_parser = file(),
        global = true
    )]
    token_file: Option<PathBuf>,
    /// Encrypt, and trust the authorities in this file (PEM) rather than those of the host; a `--server` that begins with
    /// "https://" encrypts too, and a unix socket is never encrypted
    #[arg(
        long,
        value_name = "FILE",
        env = "RINGFENCE_TLS_CA",
        value_parser = file(),
        global = true
    )]
    tls_ca: Option<PathBuf>,
    /// Encrypt, and expect the daemon's certificate to be for this name rather than for the host in `--server`; requests
    /// are addressed to it too
    #[arg(
        long,
        value_name = "NAME",
        env = "RINGFENCE_TLS_SERVER_NAME",
        global = true
    )]
    tls_server_name: Option<String>,
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

/// How a connection is encrypted.
#[derive(Clone)]
pub(super) struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    /// Whom the daemon's certificate has to be for.
    pub(super) name: ServerName<'static>,
    /// Where the authorities are from, for people.
    pub(super) trusted: String,
    /// Whether a certificate is shown.
    pub(super) shows_certificate: bool,
}

impl Credentials {
    /// The token, read now.
    pub(super) fn bearer(&self) -> Result<Bearer, Failure> {
        let Some(path) = &self.token_file else {
            return Ok(Bearer::default());
        };
        let token = String::from_utf8(read("--token-file", path)?);
        let header = token
            .ok()
            .and_then(|token| format!("Bearer {}", token.trim()).parse().ok());
        let mut header: MetadataValue<Ascii> =
            header.ok_or_else(|| Failure::new(format!("{} holds no token", path.display())))?;
        header.set_sensitive(true);
        Ok(Bearer(Some(header)))
    }

    /// The name that `--tls-server-name` gives.
    ///
    /// # Errors
    /// Where it is none that a certificate may have.
    pub(super) fn server_name(&self) -> Result<Option<String>, Failure> {
        let Some(name) = &self.tls_server_name else {
            return Ok(None);
        };
        let name = bare(name.trim());
        match ServerName::try_from(name) {
            Ok(_) => Ok(Some(name.to_owned())),
            Err(_) => Err(Failure::new(format!(
                "--tls-server-name (RINGFENCE_TLS_SERVER_NAME) is \"{}\"; allowed is a host's name or an address, \
                 without a port",
                quote(name)
            ))),
        }
    }

    /// How to encrypt, where that is asked for, here or by the address. A unix socket is this host's own.
    ///
    /// # Errors
    /// Files that cannot be used, and an address that asks for the contrary.
    pub(super) fn tls(&self, server: &ServerAddress) -> Result<Option<ClientTls>, Failure> {
        let ServerAddress::Tcp { host, tls, .. } = server else {
            return Ok(None);
        };
        let asked = [
            (self.tls_ca.is_some(), "--tls-ca (RINGFENCE_TLS_CA)"),
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
                    "--server (RINGFENCE_SERVER) is plaintext by its \"http://\", while {flag} asks for TLS: write \
                     \"https://{server}\", or leave the latter out"
                )));
            }
            (_, Some(true)) | (Some(_), None) => {}
        }
        let name = self.server_name()?;
        let name = name.unwrap_or_else(|| bare(host).to_owned());
        let name = ServerName::try_from(name).map_err(|_| {
            Failure::new(format!(
                "no certificate can be for \"{}\": --tls-server-name says whom it is for",
                quote(host)
            ))
        })?;
        let (roots, trusted) = self.roots()?;
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots);
        let mut config = match (&self.tls_cert, &self.tls_key) {
            (Some(cert), Some(key)) => {
                let chain = certificates("--tls-cert", cert)?;
                // What a key file holds is told to nobody.
                let pem = read("--tls-key", key)?;
                let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| {
                    let key = key.display();
                    Failure::new(format!("--tls-key {key} holds no private key in PEM"))
                })?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    Failure::new(format!(
                        "--tls-key is not the key of --tls-cert, or cannot be used: {error}"
                    ))
                })?
            }
            (_, _) => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Some(ClientTls {
            config: Arc::new(config),
            name,
            trusted,
            shows_certificate: self.tls_cert.is_some(),
        }))
    }

    /// Whom to trust, and where that is from.
    fn roots(&self) -> Result<(RootCertStore, String), Failure> {
        let mut roots = RootCertStore::empty();
        let Some(path) = &self.tls_ca else {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            if added == 0 {
                return Err(Failure::new(
                    "this host has no authorities to trust (SSL_CERT_FILE, /etc/ssl/certs): --tls-ca names a file with \
                     the daemon's",
                ));
            }
            return Ok((roots, "those of this host".to_owned()));
        };
        let (added, _) = roots.add_parsable_certificates(certificates("--tls-ca", path)?);
        if added == 0 {
            return Err(Failure::new(format!(
                "--tls-ca {} holds no certificate of an authority that can be read",
                path.display()
            )));
        }
        Ok((roots, format!("those in {}", path.display())))
    }
}

/// A host as a certificate has it: no brackets, no zone, no dot at its end.
fn bare(host: &str) -> &str {
    let host = host.trim_matches(['[', ']']);
    let host = host.split('%').next().unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let pem = read(flag, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(Failure::new(format!(
            "{flag} {} holds no certificate in PEM, or something else too",
            path.display()
        ))),
    }
}

fn unusable(error: rustls::Error) -> Failure {
    Failure::new(format!("the credentials cannot be used: {error}"))
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("{flag}: cannot read {}: {error}", path.display())))
}

/// The name of a file. A blank or a newline at its end came with the variable that it is from, unless there is a file of
/// that name.
fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(|given: OsString| {
        let given = PathBuf::from(given);
        match given.to_str() {
            Some(text) if !given.exists() => PathBuf::from(text.trim()),
            Some(_) | None => given,
        }
    })
}

/// `command`, where a variable of the environment that is empty, or blank, is as good as none.
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
