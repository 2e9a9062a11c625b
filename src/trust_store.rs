//! The location of the certificate authorities that the daemon's outgoing TLS connections are
//! checked with.

use std::path::PathBuf;

/// Files where distributions keep the authorities, in the order in which the TLS library looks for
/// them.
const FILES: [&str; 8] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/ssl/cert.pem",
    "/opt/etc/ssl/certs/ca-certificates.crt",
    "/etc/ssl/certs/cacert.pem",
];
/// Folders where distributions keep the authorities.
const FOLDERS: [&str; 3] = [
    "/etc/ssl/certs",
    "/etc/pki/tls/certs",
    "/etc/security/certificates",
];

/// Returns the files and folders of trusted certificates: those that `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` (several, separated by ":") name, or the host's where neither is set. They need
/// not exist.
pub fn trust_store() -> Vec<PathBuf> {
    let file = std::env::var_os("SSL_CERT_FILE").filter(|it| !it.is_empty());
    let folders = std::env::var_os("SSL_CERT_DIR").unwrap_or_default();
    let folders = std::env::split_paths(&folders).filter(|it| !it.as_os_str().is_empty());
    let named: Vec<PathBuf> = file.map(PathBuf::from).into_iter().chain(folders).collect();
    if !named.is_empty() {
        return named;
    }
    FILES.iter().chain(&FOLDERS).map(PathBuf::from).collect()
}

/// The error of a host without any certificate authorities. It says where they were looked for.
#[derive(Debug, thiserror::Error)]
#[error(
    "TLS needs the certificates of authorities, and there are none that can be read: looked for in {} (SSL_CERT_FILE or \
     SSL_CERT_DIR say where else)",
    listed(looked_in)
)]
pub struct NoTrustStore {
    looked_in: Vec<PathBuf>,
}

/// Creates the error of a host without any certificate authorities.
pub fn no_trust_store() -> NoTrustStore {
    NoTrustStore {
        looked_in: trust_store(),
    }
}

/// Joins paths for an error message.
fn listed(paths: &[PathBuf]) -> String {
    let shown: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    shown.join(", ")
}

/// Reports whether creating a client failed because no certificate authorities were found.
pub fn lacks_authorities(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // This is the TLS library's message; there is no error type for it.
        if error.to_string().contains("No CA certificates were loaded") {
            return true;
        }
        next = error.source();
    }
    false
}
