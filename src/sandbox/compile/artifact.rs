//! Native code that this daemon compiled, ready to be mapped into an engine: the one place with unsafe code.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use wasmtime::Engine;
use wasmtime::component::Component;

use crate::store::Sealed;

/// Artefacts up to so many bytes are read into memory of their own rather than mapped: a mapped one holds two descriptors
/// for as long as it is loaded, and others one at the most, where they have memory to begin with.
const COPIED: u64 = 1 << 20;

/// Native code that this daemon compiled.
pub(in crate::sandbox) struct Artifact {
    code: Code,
    /// How long it took to compile; zero where it was there already.
    pub(in crate::sandbox) took: Duration,
}

enum Code {
    Bytes(Vec<u8>),
    Sealed(Sealed),
}

impl Artifact {
    /// Of bytes that an engine of this process made.
    pub(in crate::sandbox) fn own(bytes: Vec<u8>, took: Duration) -> Self {
        Self {
            code: Code::Bytes(bytes),
            took,
        }
    }

    /// Of a file that a compile child of this daemon wrote, or that a key of this daemon's vouches for; nobody can
    /// change it any more.
    ///
    /// # Errors
    /// Where a small one cannot be read.
    pub(in crate::sandbox) fn sealed(sealed: Sealed, took: Duration) -> io::Result<Self> {
        let code = if sealed.len() <= COPIED {
            let mut bytes = Vec::new();
            sealed.reader().read_to_end(&mut bytes)?;
            Code::Bytes(bytes)
        } else {
            Code::Sealed(sealed)
        };
        Ok(Self { code, took })
    }

    /// Whether it is a file, and so can be mapped more than once.
    pub(in crate::sandbox) fn is_mapped(&self) -> bool {
        matches!(self.code, Code::Sealed(_))
    }

    /// Bytes of it.
    pub(in crate::sandbox) fn len(&self) -> u64 {
        match &self.code {
            Code::Bytes(bytes) => bytes.len() as u64,
            Code::Sealed(sealed) => sealed.len(),
        }
    }

    /// Writes it out.
    ///
    /// # Errors
    /// Those of `to`.
    pub(in crate::sandbox) fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        match &self.code {
            Code::Bytes(bytes) => to.write_all(bytes),
            Code::Sealed(sealed) => io::copy(&mut sealed.reader(), to).map(drop),
        }
    }

    /// Maps a core module into `engine`.
    ///
    /// # Errors
    /// Where the engine does not take it.
    pub(in crate::sandbox) fn module(&self, engine: &Engine) -> wasmtime::Result<wasmtime::Module> {
        // SAFETY: the field is private, and filled only with what wasmtime's compiler made: in this process (`own`), or
        // in a compile child, whether now or before (`sealed`). Nobody can change it: the bytes are this process's own
        // memory, and the file is sealed against writing, growing and shrinking.
        #[expect(unsafe_code, reason = "native code that this daemon compiled itself")]
        let module = unsafe {
            match &self.code {
                Code::Bytes(bytes) => wasmtime::Module::deserialize(engine, bytes),
                Code::Sealed(sealed) => {
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
    /// Where the engine does not take it.
    pub(in crate::sandbox) fn component(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: as in `module`.
        #[expect(unsafe_code, reason = "native code that this daemon compiled itself")]
        let component = unsafe {
            match &self.code {
                Code::Bytes(bytes) => Component::deserialize(engine, bytes),
                Code::Sealed(sealed) => Component::deserialize_file(engine, path(sealed.file())),
            }
        }?;
        component.initialize_copy_on_write_image()?;
        Ok(component)
    }
}

/// The path by which this process opens again what it has open: components are mapped by path only.
fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}
