//! The result of inspecting a module: what listings show of it, and what a run of it must know
//! before it starts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use wasmparser::ValType;

use crate::model::module::ModuleDescription;
use crate::sandbox::engine::features::ProposalSet;

/// What an inspection finds out about a module.
#[derive(Debug, Serialize, Deserialize)]
pub struct Inspection {
    /// The description that listings show.
    pub description: ModuleDescription,
    /// The types of the functions that the module exports, each once.
    pub(in crate::sandbox) signatures: Vec<Signature>,
    /// The functions that the module exports, by name, with the positions of their types in
    /// `signatures`. A component's functions are not among them.
    pub(in crate::sandbox) functions: HashMap<String, usize>,
    /// Names of the exports that are not functions.
    pub(in crate::sandbox) others: HashSet<String>,
    /// The first 1,000 of the module's imports from WASI.
    pub imports_wasi: Vec<String>,
    /// Host functions that the module imports.
    pub imports_host: BTreeSet<String>,
    /// Whether the module is a component that exports `wasi:cli/run`.
    pub runs: bool,
    /// The proposals that the module needs beyond those that are always on.
    pub proposals: ProposalSet,
}

/// The type of an exported function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Signature {
    /// The types of the parameters, in order.
    pub params: Vec<ValueType>,
    /// The types of the results, in order.
    pub results: Vec<ValueType>,
}

/// The type of a value, as far as an entry point can use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueType {
    /// A 32-bit integer, `i32`.
    I32,
    /// A 64-bit integer, `i64`.
    I64,
    /// A 32-bit float, `f32`.
    F32,
    /// A 64-bit float, `f64`.
    F64,
    /// A vector or a reference, which no entry point can use.
    Other(String),
}

/// What a module exports under a name.
pub enum ExportLookup<'a> {
    /// A function of this type.
    Function(&'a Signature),
    /// An export that is not a function.
    Other,
    /// There is no export of that name.
    Missing,
}

impl Inspection {
    /// Estimates how many bytes the inspection takes, with what the runtime keeps of the same
    /// things.
    pub(in crate::sandbox) fn weight(&self) -> usize {
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

    /// Looks up what the module exports under `name`.
    pub fn export(&self, name: &str) -> ExportLookup<'_> {
        let signature = |place: &usize| self.signatures.get(*place);
        match self.functions.get(name).and_then(signature) {
            Some(signature) => ExportLookup::Function(signature),
            None if self.others.contains(name) => ExportLookup::Other,
            None => ExportLookup::Missing,
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
