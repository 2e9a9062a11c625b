//! What inspecting a module finds: what listings tell, and what a run of it must know before it starts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use wasmparser::ValType;

use super::features::Proposals;
use crate::module::Description;

/// What a module is.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// As listings tell it.
    pub description: Description,
    /// The types of functions that it exports, each once.
    pub(super) signatures: Vec<Signature>,
    /// Functions that it exports, by name, with the places of their types; a component's are not among them.
    pub(super) functions: HashMap<String, usize>,
    /// Names of exports that are no functions.
    pub(super) others: HashSet<String>,
    /// What it imports of WASI, at most 1,000.
    pub imports_wasi: Vec<String>,
    /// Host functions that it imports.
    pub imports_host: BTreeSet<String>,
    /// A component: whether it exports `wasi:cli/run`.
    pub runs: bool,
    /// The proposals that it needs beyond those that are always on.
    pub proposals: Proposals,
}

/// A function's type.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// Parameters.
    pub params: Vec<ValueType>,
    /// Results.
    pub results: Vec<ValueType>,
}

/// A value's type, as far as an entry point can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueType {
    /// i32
    I32,
    /// i64
    I64,
    /// f32
    F32,
    /// f64
    F64,
    /// A vector or a reference, which no entry point can use.
    Other(String),
}

/// What stands behind an export's name.
pub enum Export<'a> {
    /// A function.
    Function(&'a Signature),
    /// Something else.
    Other,
    /// Nothing.
    Missing,
}

impl Inspection {
    /// About how many bytes this takes, and what a runtime keeps of the same things.
    pub(super) fn weight(&self) -> usize {
        const ENTRY: usize = 256;
        let functions = self.functions.keys().map(String::len);
        let signatures = self
            .signatures
            .iter()
            .map(|signature| 32 * (signature.params.len() + signature.results.len()));
        let names = self
            .others
            .iter()
            .chain(&self.imports_wasi)
            .chain(&self.imports_host)
            .map(String::len);
        let entries = functions.chain(signatures).chain(names);
        entries.map(|bytes| bytes + ENTRY).sum::<usize>() + self.description.weight() + 4 * ENTRY
    }

    /// What the module exports under `name`.
    pub fn export(&self, name: &str) -> Export<'_> {
        let signature = |place: &usize| self.signatures.get(*place);
        match self.functions.get(name).and_then(signature) {
            Some(signature) => Export::Function(signature),
            None if self.others.contains(name) => Export::Other,
            None => Export::Missing,
        }
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |types: &[ValueType]| {
            let types: Vec<String> = types.iter().map(ToString::to_string).collect();
            types.join(", ")
        };
        write!(f, "({}) -> ({})", list(&self.params), list(&self.results))
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Other(name) => name,
        })
    }
}

impl From<ValType> for ValueType {
    fn from(ty: ValType) -> Self {
        match ty {
            ValType::I32 => Self::I32,
            ValType::I64 => Self::I64,
            ValType::F32 => Self::F32,
            ValType::F64 => Self::F64,
            ValType::V128 | ValType::Ref(_) => Self::Other(ty.to_string()),
        }
    }
}
