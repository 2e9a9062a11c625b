//! The module that `ringfence run` is given.

use std::ffi::OsStr;
use std::path::Path;

use bytes::Bytes;

use super::connect::{Client, failure};
use super::waiting::sized;
use super::{Failure, read};
use crate::api::proto::{self, LoadModuleRequest};

/// What to run.
pub(super) enum ModuleArgument {
    Digest(String),
    Bytes { name: String, wasm: Bytes },
}

impl ModuleArgument {
    /// Reads it, unless `given` is a digest.
    pub(super) fn read(given: &OsStr) -> Result<Self, Failure> {
        match given.to_str() {
            Some(digest) if digest.starts_with("sha256:") => Ok(Self::Digest(digest.to_owned())),
            _ => Ok(Self::Bytes {
                name: file_name(given),
                wasm: read(given)?.into(),
            }),
        }
    }

    /// As a line on a terminal names it, with its size where that is wanted and known.
    pub(super) fn told(&self, with_size: bool) -> String {
        match self {
            Self::Digest(digest) => sized(digest, None),
            Self::Bytes { name, wasm } => sized(name, with_size.then_some(wasm.len() as u64)),
        }
    }

    /// As a spec names it: by its bytes up to `inline` of them; one that is larger is loaded for that.
    pub(super) async fn reference(
        self,
        client: &mut Client,
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
                let answer = answer.map_err(|status| failure(&status))?.into_inner();
                let digest = answer
                    .module
                    .map(|module| module.digest)
                    .unwrap_or_default();
                Ok(proto::run_spec::Module::Digest(digest))
            }
        }
    }
}

/// The last part of a path, as text.
pub(super) fn file_name(path: &OsStr) -> String {
    let name = Path::new(path).file_name().unwrap_or(path);
    name.to_string_lossy().into_owned()
}
