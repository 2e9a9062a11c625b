//! What there is to say of a program: the terms of the list.

use crate::build::Recipe;
use crate::fetch::Package;

/// A real program.
pub(crate) struct Program {
    pub name: &'static str,
    /// What it is, for people.
    pub what: &'static str,
    pub recipe: Recipe,
    /// Over ten seconds to compile, or slow to come by: only in the long form.
    pub long: bool,
    /// With which reason it is refused by a daemon with the defaults, where it is.
    pub refused: Option<&'static str>,
    /// Settings over the daemon's defaults that it needs.
    pub settings: &'static [(&'static str, &'static str)],
    /// Pages that its runs ask for, where the default is not enough.
    pub pages: Option<u32>,
    /// Call stack that its runs ask for, where the default is not enough.
    pub stack: Option<u32>,
    /// What is in the folder that its runs see, and where they see it.
    pub folder: &'static [Put],
    pub guest_path: &'static str,
    pub calls: &'static [Call],
    /// What it leaves in the folder for programs after it.
    pub keeps: &'static [&'static str],
}

/// Something in the folder of a program.
pub(crate) struct Put {
    pub at: &'static str,
    pub content: Content,
}

pub(crate) enum Content {
    /// A file of `src/`.
    Source(&'static str),
    Text(&'static str),
    /// That many bytes, counting from 0 to 250 again and again.
    Counting(usize),
    /// A file or folder of a package.
    Of(Package, &'static str),
    /// What a package has in an archive.
    Unpacked(Package, &'static str),
    /// What a program before it left.
    Kept(&'static str),
    /// An empty folder.
    Empty,
}

/// One run.
pub(crate) struct Call {
    /// What it is asked to do, for people.
    pub asks: &'static str,
    /// With the program's own name.
    pub args: &'static [&'static str],
    pub env: &'static [&'static str],
    pub stdin: &'static str,
    /// Where its relative paths start from; empty: "/".
    pub working_dir: &'static str,
    pub exit: u32,
    pub stdout: Expected,
    pub stderr: Expected,
}

/// What a stream has to be.
#[derive(Debug)]
pub(crate) enum Expected {
    Is(&'static str),
    /// All of these are somewhere in it.
    Has(&'static [&'static str]),
    /// By its length and SHA-256.
    Hashes(usize, &'static str),
    Anything,
}

pub(crate) const PROGRAM: Program = Program {
    name: "",
    what: "",
    recipe: Recipe::Kept(""),
    long: false,
    refused: None,
    settings: &[],
    pages: None,
    stack: None,
    folder: &[],
    guest_path: "/data",
    calls: &[],
    keeps: &[],
};

/// For the long form.
pub(crate) const LONG: Program = Program {
    long: true,
    ..PROGRAM
};

pub(crate) const CALL: Call = Call {
    asks: "",
    args: &[],
    env: &[],
    stdin: "",
    working_dir: "",
    exit: 0,
    stdout: Expected::Anything,
    stderr: Expected::Is(""),
};

impl Expected {
    /// What is wrong with `stream`.
    pub(crate) fn judge(&self, stream: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(stream);
        let right = match self {
            Self::Is(expected) => text == *expected,
            Self::Has(parts) => parts.iter().all(|part| text.contains(part)),
            Self::Hashes(length, sum) => {
                stream.len() == *length && crate::fetch::hex(stream) == *sum
            }
            Self::Anything => true,
        };
        if right {
            return Ok(());
        }
        let shown: String = text.chars().take(1000).collect();
        Err(format!("{} bytes, {shown:?}, not {self:?}", stream.len()))
    }
}
