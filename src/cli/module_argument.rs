//! The module argument of `ringfence run`.

use std::ffi::OsStr;
use std::path::Path;

use bytes::Bytes;

use super::connect::{SandboxClient, status_failure};
use super::wait_indicator::sized;
use super::{Failure, read};
use crate::api::proto::{self, LoadModuleRequest};

/// The module to run: a digest, or the bytes of a file.
pub(super) enum ModuleArgument {
    Digest(String),
    Bytes { name: String, wasm: Bytes },
}

impl ModuleArgument {
    /// Reads the module's bytes, unless `given` is a digest.
    pub(super) fn read(given: &OsStr) -> Result<Self, Failure> {
        match given.to_str() {
            Some(digest) if digest.starts_with("sha256:") => Ok(Self::Digest(digest.to_owned())),
            _ => Ok(Self::Bytes {
                name: file_name(given),
                wasm: read(given)?.into(),
            }),
        }
    }

    /// Formats the module for a line on a terminal, with its size where that is wanted and known.
    pub(super) fn told(&self, with_size: bool) -> String {
        match self {
            Self::Digest(digest) => sized(digest, None),
            Self::Bytes { name, wasm } => sized(name, with_size.then_some(wasm.len() as u64)),
        }
    }

    /// Builds the module's reference for a run's spec. Up to `inline` bytes are part of the spec; a
    /// larger module is loaded first, and named by its digest.
    pub(super) async fn reference(
        self,
        client: &mut SandboxClient,
        inline: usize,
    ) -> Result<proto::run_spec::Module, Failure> {
        match self {
            Self::Digest(digest) => Ok(proto::run_spec::Module::Digest(digest)),
            Self::Bytes { wasm, .. } if wasm.len() <= inline => {
                Ok(proto::run_spec::Module::Wasm(wasm))
            }
            Self::Bytes { name, wasm } => {
                let request = LoadModuleRequest {
                    source: Some(proto::load_module_request::Source::Wasm(wasm)),
                    name,
                    ..LoadModuleRequest::default()
                };
                let answer = client.load_module(request).await;
                let answer = answer
                    .map_err(|status| status_failure(&status))?
                    .into_inner();
                let digest = answer
                    .module
                    .map(|module| module.digest)
                    .unwrap_or_default();
                Ok(proto::run_spec::Module::Digest(digest))
            }
        }
    }
}

/// Returns the last part of a path, as text.
pub(super) fn file_name(path: &OsStr) -> String {
    let name = Path::new(path).file_name().unwrap_or(path);
    name.to_string_lossy().into_owned()
}
