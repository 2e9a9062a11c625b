//! What a command shows to a daemon: a bearer token, and certificates.

use std::path::PathBuf;

use clap::Args;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use tonic::{Request, Status};

use super::Failure;

/// What is shown to a daemon.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Credentials")]
pub(super) struct Credentials {
    /// Show the bearer token in this file
    #[arg(long, value_name = "FILE", env = "RINGFENCE_TOKEN_FILE", global = true)]
    token_file: Option<PathBuf>,
    /// Encrypt, and trust the authorities in this file (PEM) rather than those of the host; a `--server` that begins with
    /// "https://" encrypts too
    #[arg(long, value_name = "FILE", env = "RINGFENCE_TLS_CA", global = true)]
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
        let Some(path) = &self.token_file else {
            return Ok(Bearer::default());
        };
        let token = String::from_utf8(read(path)?);
        let header = token
            .ok()
            .and_then(|token| format!("Bearer {}", token.trim()).parse().ok());
        let mut header: MetadataValue<Ascii> =
            header.ok_or_else(|| Failure::new(format!("{} holds no token", path.display())))?;
        header.set_sensitive(true);
        Ok(Bearer(Some(header)))
    }

    /// How to encrypt, where that is asked for, here or by the address.
    pub(super) fn tls(&self, addr: &str) -> Result<Option<ClientTlsConfig>, Failure> {
        let asked = self.tls_ca.is_some() || self.tls_cert.is_some();
        if !asked && !addr.starts_with("https://") {
            return Ok(None);
        }
        let mut tls = ClientTlsConfig::new();
        tls = match &self.tls_ca {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read(path)?)),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            tls = tls.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        Ok(Some(tls))
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, Failure> {
    std::fs::read(path)
        .map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))
}
