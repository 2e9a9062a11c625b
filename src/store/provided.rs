//! Modules that the operator provides in files, such as the interpreters of languages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::blob::{Spool, UploadSlot};
use super::oci::{OciPuller, Pulled};
use super::sealed::create_sealable;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::Digest;

/// The slot of a module that is pulled when the daemon starts, of which there is no limited number.
#[derive(Debug)]
struct StartSlot;

impl UploadSlot for StartSlot {}

/// A module in a file of the operator's. The file stays open, so that it can be read again
/// whatever the daemon can reach by then.
#[derive(Debug)]
pub struct ProvidedModule {
    digest: Digest,
    size: u64,
    file: File,
}

/// Why a module of the operator's cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProvidedModuleError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The path of the file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// The file is larger than a module may be.
    #[error("{}: the file has {size} bytes, and a module may have {allowed} (compile.max_module)", path.display())]
    TooLarge {
        /// The path of the file.
        path: PathBuf,
        /// The size of the file in bytes.
        size: u64,
        /// The most bytes of a module.
        allowed: u64,
    },
    /// The registry does not give the module.
    #[error("{reference}: {refusal}")]
    NotPulled {
        /// The reference to the module.
        reference: String,
        /// What the registry says, or why it is not asked.
        refusal: Refusal,
    },
    /// The file is not the one that the configuration names by its digest.
    #[error("{}: it has the digest {actual}, and the configuration says {expected}", path.display())]
    OtherDigest {
        /// The path of the file.
        path: PathBuf,
        /// The digest of the file.
        actual: Digest,
        /// The digest that the configuration gives.
        expected: Digest,
    },
}

impl ProvidedModule {
    /// Opens the file at `path`, of at most `allowed` bytes, and hashes it.
    ///
    /// # Errors
    /// The file cannot be read, is too large, or has another digest than the one that is expected.
    pub fn open(
        path: &Path,
        allowed: u64,
        expected: Option<Digest>,
    ) -> Result<Arc<Self>, ProvidedModuleError> {
        let unreadable = |source| ProvidedModuleError::Unreadable {
            path: path.to_owned(),
            source,
        };
        // A pipe would be waited for without end.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(unreadable(io::Error::other("it is no regular file")));
        }
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        if size > allowed {
            return Err(ProvidedModuleError::TooLarge {
                path: path.to_owned(),
                size,
                allowed,
            });
        }
        let bytes = read_whole(&file, size).map_err(unreadable)?;
        Self::check(path, &bytes, file, expected)
    }

    /// Pulls a module of at most `allowed` bytes from a registry, and holds it in memory.
    ///
    /// # Errors
    /// The registry is not allowed or does not give the module, the host has no memory for it, or
    /// it has another digest than the one that is expected.
    pub async fn pull(
        puller: &OciPuller,
        spool: &Spool,
        (reference, allowed): (&str, u64),
        expected: Option<Digest>,
    ) -> Result<Arc<Self>, ProvidedModuleError> {
        let assembly = spool.assemble("languages", allowed, StartSlot);
        let Pulled { wasm, .. } = puller.pull(reference, assembly).await.map_err(|refusal| {
            ProvidedModuleError::NotPulled {
                reference: reference.to_owned(),
                refusal,
            }
        })?;
        let path = PathBuf::from(reference);
        let held = tokio::task::spawn_blocking(move || {
            let unreadable = |source| ProvidedModuleError::Unreadable {
                path: path.clone(),
                source,
            };
            let bytes = wasm.read().map_err(unreadable)?;
            let file = create_sealable("ringfence-language").map_err(unreadable)?;
            file.write_all_at(&bytes, 0).map_err(unreadable)?;
            Self::check(&path, &bytes, file, expected)
        });
        held.await.unwrap_or_else(|error| {
            Err(ProvidedModuleError::Unreadable {
                path: PathBuf::from(reference),
                source: io::Error::other(error),
            })
        })
    }

    /// Checks the bytes of the module at `path`, which `file` holds.
    fn check(
        path: &Path,
        bytes: &[u8],
        file: File,
        expected: Option<Digest>,
    ) -> Result<Arc<Self>, ProvidedModuleError> {
        // Binary, or text.
        if !bytes.starts_with(b"\0asm")
            && std::str::from_utf8(bytes).is_ok_and(|it| !it.contains('('))
        {
            return Err(ProvidedModuleError::Unreadable {
                path: path.to_owned(),
                source: io::Error::other("it is no WebAssembly module"),
            });
        }
        let actual = Digest::of(bytes);
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(ProvidedModuleError::OtherDigest {
                path: path.to_owned(),
                actual,
                expected,
            });
        }
        Ok(Arc::new(Self {
            digest: actual,
            size: bytes.len() as u64,
            file,
        }))
    }

    /// Returns the digest of the module.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Returns the size of the module in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads the bytes of the module from its file.
    ///
    /// # Errors
    /// `RUNTIME_UNAVAILABLE` where the file cannot be read, or was changed since it was opened.
    pub async fn read(self: &Arc<Self>) -> Result<Bytes, Refusal> {
        let module = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let bytes = read_whole(&module.file, module.size)?;
            match Digest::of(&bytes) == module.digest {
                true => Ok(Bytes::from(bytes)),
                false => Err(io::Error::other("it was changed since the daemon started")),
            }
        });
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(digest = %self.digest, %error, "the file of a language's module cannot be used");
            let message = "the interpreter of the language cannot be read any more; the daemon's log says why";
            Refusal::new(Reason::RuntimeUnavailable, message).at_field("spec.language")
        };
        match read.await {
            Ok(read) => read.map_err(|error| failed(&error)),
            Err(error) => Err(failed(&error)),
        }
    }
}

/// Reads all `size` bytes of a file.
fn read_whole(file: &File, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file, and returns its folder with its path.
    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("module.wasm");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[tokio::test]
    async fn a_file_is_read_whole_and_checked_each_time() {
        let (_folder, path) = file(b"(module)");
        let module = ProvidedModule::open(&path, 8, Some(Digest::of(b"(module)"))).unwrap();
        assert_eq!(
            (module.size(), module.digest()),
            (8, Digest::of(b"(module)"))
        );
        assert_eq!(&*module.read().await.unwrap(), b"(module)");
        // Replaced by another file of the same name, it is still the one that was opened.
        std::fs::rename(&path, path.with_extension("old")).unwrap();
        std::fs::write(&path, b"(second)").unwrap();
        assert_eq!(&*module.read().await.unwrap(), b"(module)");
        std::fs::write(path.with_extension("old"), b"(forger)").unwrap();
        let refused = module.read().await.unwrap_err();
        assert_eq!(refused.reason(), Reason::RuntimeUnavailable);
    }

    #[test]
    fn what_is_absent_too_large_or_another_is_refused_by_name() {
        let (folder, path) = file(b"(module )");
        let absent = ProvidedModule::open(&folder.path().join("no"), 9, None).unwrap_err();
        assert!(
            matches!(absent, ProvidedModuleError::Unreadable { .. }),
            "{absent}"
        );
        assert!(ProvidedModule::open(&path, 9, None).is_ok());
        assert!(ProvidedModule::open(folder.path(), 9, None).is_err());
        std::fs::write(folder.path().join("empty"), b"").unwrap();
        assert!(ProvidedModule::open(&folder.path().join("empty"), 9, None).is_err());
        let large = ProvidedModule::open(&path, 8, None)
            .unwrap_err()
            .to_string();
        assert!(
            large.contains("has 9 bytes") && large.contains("may have 8"),
            "{large}"
        );
        let other = ProvidedModule::open(&path, 9, Some(Digest::of(b"x"))).unwrap_err();
        assert!(
            matches!(other, ProvidedModuleError::OtherDigest { .. }),
            "{other}"
        );
    }
}
