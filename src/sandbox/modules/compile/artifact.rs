//! Native code that this daemon compiled, ready to be mapped into an engine. This is the one place
//! with unsafe code.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::store::SealedFile;

/// Artefacts of up to this many bytes are read into memory of their own rather than mapped. A
/// mapped artefact holds two descriptors for as long as it is loaded; one that was read holds one
/// at most, if its memory has initial contents.
const COPIED: u64 = 1 << 20;

/// Native code that this daemon compiled, in memory or in a sealed file.
pub(in crate::sandbox) struct Artifact {
    code: ArtifactCode,
    /// How long the compilation took; zero where the artefact existed already.
    pub(in crate::sandbox) compile_time: Duration,
}

enum ArtifactCode {
    Bytes(Vec<u8>),
    Sealed(SealedFile),
}

impl Artifact {
    /// Creates an artefact from bytes that an engine of this process made.
    pub(in crate::sandbox) fn from_bytes(bytes: Vec<u8>, took: Duration) -> Self {
        Self {
            code: ArtifactCode::Bytes(bytes),
            compile_time: took,
        }
    }

    /// Creates an artefact from a file that a compile child of this daemon wrote, or that a key of
    /// this daemon vouches for. Nobody can change the file any more. A small one is read into
    /// memory.
    ///
    /// # Errors
    /// A small file cannot be read.
    pub(in crate::sandbox) fn from_sealed(sealed: SealedFile, took: Duration) -> io::Result<Self> {
        let code = if sealed.len() <= COPIED {
            let mut bytes = Vec::new();
            sealed.reader().read_to_end(&mut bytes)?;
            ArtifactCode::Bytes(bytes)
        } else {
            ArtifactCode::Sealed(sealed)
        };
        Ok(Self {
            code,
            compile_time: took,
        })
    }

    /// Reports whether the artefact is a file, and so can be mapped more than once.
    pub(in crate::sandbox) fn is_mapped(&self) -> bool {
        matches!(self.code, ArtifactCode::Sealed(_))
    }

    /// Returns the size of the artefact in bytes.
    pub(in crate::sandbox) fn len(&self) -> u64 {
        match &self.code {
            ArtifactCode::Bytes(bytes) => bytes.len() as u64,
            ArtifactCode::Sealed(sealed) => sealed.len(),
        }
    }

    /// Writes the artefact's bytes to `to`.
    ///
    /// # Errors
    /// Those of `to`.
    pub(in crate::sandbox) fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        match &self.code {
            ArtifactCode::Bytes(bytes) => to.write_all(bytes),
            ArtifactCode::Sealed(sealed) => io::copy(&mut sealed.reader(), to).map(drop),
        }
    }

    /// Maps a core module into `engine`.
    ///
    /// # Errors
    /// The engine does not accept the artefact.
    pub(in crate::sandbox) fn module(&self, engine: &Engine) -> wasmtime::Result<wasmtime::Module> {
        // SAFETY: the field is private, and filled only with what wasmtime's compiler made: in this
        // process (`from_bytes`), or in a compile child, whether now or before (`from_sealed`).
        // Nobody can change it: the bytes are this process's own memory, and the file is sealed
        // against writing, growing and shrinking.
        #[expect(unsafe_code, reason = "native code that this daemon compiled itself")]
        let module = unsafe {
            match &self.code {
                ArtifactCode::Bytes(bytes) => wasmtime::Module::deserialize(engine, bytes),
                ArtifactCode::Sealed(sealed) => {
                    wasmtime::Module::deserialize_open_file(engine, sealed.file().try_clone()?)
                }
            }
        }?;
        module.initialize_copy_on_write_image()?;
        Ok(module)
    }

    /// Maps a component into `engine`.
    ///
    /// # Errors
    /// The engine does not accept the artefact.
    pub(in crate::sandbox) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: as in `module`.
        #[expect(unsafe_code, reason = "native code that this daemon compiled itself")]
        let component = unsafe {
            match &self.code {
                ArtifactCode::Bytes(bytes) => Component::deserialize(engine, bytes),
                ArtifactCode::Sealed(sealed) => {
                    Component::deserialize_file(engine, path(sealed.file()))
                }
            }
        }?;
        component.initialize_copy_on_write_image()?;
        Ok(component)
    }
}

/// Returns a path by which this process can open an open file once more, since components are
/// mapped by path only.
fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
