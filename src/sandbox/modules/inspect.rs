//! Inspects a module before anything is compiled: reads its kind, imports and exports from its
//! bytes, what it takes of a store, and which proposals it needs.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use wasmparser::{
    ComponentExternalKind, ComponentName, Encoding, ExternalKind, FuncType, KnownCustom, Name,
    Parser, Payload, TypeRef,
};
use wasmtime::Engine;

use super::footprint::{Footprint, footprint};
use super::inspection::{Inspection, Signature};
use super::validate::{Needs, invalid, unavailable, validate};
use crate::model::guest_limits::{INSTANCES, MEMORIES, TABLES};
use crate::model::module::{Exported, Imported, ModuleDescription};
use crate::model::refusal::{Reason, Refusal, quote};
use crate::sandbox::guest::imports::{HOST_FUNCTION_NAMES, core_import_names};
use crate::sandbox::guest::wasi::WASI_MODULES;

/// The most exports, and the most imports, that a listing names.
const LISTED: usize = 1000;
/// The interface that a component exports in order to be run.
const CLI_RUN: &str = "wasi:cli/run@0.2.";
/// The packages of WASI 0.2 that are offered to components.
const WASI_PACKAGES: [&str; 6] = [
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:random/",
    "wasi:sockets/",
];

/// The imports that are offered to modules.
#[derive(Debug)]
pub(in crate::sandbox) struct ImportRules {
    /// Functions that core modules may import, as (module, name).
    offered: HashSet<(String, String)>,
}

impl ImportRules {
    /// Collects the imports that a linker of `engine` offers.
    ///
    /// # Errors
    /// Those of the linker.
    pub(in crate::sandbox) fn of(engine: &Engine) -> wasmtime::Result<Self> {
        Ok(Self {
            offered: core_import_names(engine)?,
        })
    }
}

/// Reports whether a binary is a component rather than a core module.
pub(in crate::sandbox) fn is_component(wasm: &[u8]) -> bool {
    // The field for the layer stands behind the magic number and the version.
    wasm.get(6..8) == Some(&[1, 0])
}

/// Returns the binary form of `bytes`: the bytes themselves, or what they say as text.
///
/// # Errors
/// `MODULE_INVALID` where they are neither binary nor text.
pub(in crate::sandbox) fn binary(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if bytes.starts_with(b"\0asm") {
        return Ok(Cow::Borrowed(bytes));
    }
    if Engine::detect_precompiled(bytes).is_some() {
        return Err(invalid(
            "native code compiled elsewhere is not accepted",
            None,
        ));
    }
    wat::parse_bytes(bytes).map_err(|error| {
        let is_text = std::str::from_utf8(bytes).is_ok();
        // The first line says what is wrong. The others quote the source, which the caller has.
        let text = error.to_string();
        let what = text.lines().next().unwrap_or_default();
        if is_text {
            let at = text
                .lines()
                .find_map(|line| line.trim().strip_prefix("--> <anon>:"));
            let at = at
                .map(|at| format!(" at line:column {at}"))
                .unwrap_or_default();
            invalid(&format!("not WebAssembly text: {}{at}", quote(what)), None)
        } else {
            invalid("neither a WebAssembly binary nor text", Some(0))
        }
    })
}

/// Validates `wasm`, which has to be binary, and reads what it is.
///
/// # Errors
/// `MODULE_INVALID` with the offset, `FEATURE_NOT_ENABLED` with what no setting turns on,
/// `IMPORT_NOT_ALLOWED` with the imports that nothing here offers, `LIMIT_ABOVE_MAXIMUM` for what
/// no run's store could hold.
pub(in crate::sandbox) fn inspect(wasm: &[u8], rules: &ImportRules) -> Result<Inspection, Refusal> {
    let needs = validate(wasm)?;
    let mut reader = InspectionBuilder::default();
    reader
        .read(wasm)
        .map_err(|error| invalid(&quote(error.message()), Some(error.offset())))?;
    reader.finish(rules, needs, &footprint(wasm)?)
}

/// Collects what the sections of a module say, and builds the inspection from that.
#[derive(Default)]
struct InspectionBuilder {
    component: bool,
    depth: usize,
    name: String,
    types: Vec<Option<FuncType>>,
    functions: Vec<u32>,
    imports: Vec<(String, String, &'static str)>,
    exports: Vec<(String, &'static str, Option<u32>)>,
    shared_memory: bool,
}

impl InspectionBuilder {
    fn read(&mut self, wasm: &[u8]) -> wasmparser::Result<()> {
        for payload in Parser::new(0).parse_all(wasm) {
            #[expect(
                clippy::wildcard_enum_match_arm,
                reason = "sections that say nothing of interest"
            )]
            match payload? {
                Payload::Version { encoding, .. } => {
                    self.depth += 1;
                    self.component |= self.depth == 1 && encoding == Encoding::Component;
                }
                Payload::End(_) => self.depth -= 1,
                Payload::MemorySection(memories) => {
                    for memory in memories {
                        self.shared_memory |= memory?.shared;
                    }
                }
                payload => {
                    if self.depth == 1 {
                        self.read_outermost(payload)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn read_outermost(&mut self, payload: Payload<'_>) -> wasmparser::Result<()> {
        // Sections that say nothing about what the module is are passed over; validation has read
        // them.
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "sections that say nothing of interest"
        )]
        match payload {
            Payload::TypeSection(types) => {
                for group in types {
                    self.types.extend(group?.into_types().map(
                        |ty| match ty.composite_type.inner {
                            wasmparser::CompositeInnerType::Func(func) => Some(func),
                            _ => None,
                        },
                    ));
                }
            }
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    let import = import?;
                    self.import(import.module, import.name, import.ty);
                }
            }
            Payload::FunctionSection(functions) => {
                for ty in functions {
                    self.functions.push(ty?);
                }
            }
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    let index = matches!(export.kind, ExternalKind::Func | ExternalKind::FuncExact)
                        .then_some(export.index);
                    self.exports
                        .push((export.name.to_owned(), core_kind(export.kind), index));
                }
            }
            Payload::ComponentImportSection(imports) => {
                for import in imports {
                    let import = import?;
                    let kind = component_kind(import.ty.kind());
                    self.imports
                        .push((String::new(), import.name.name.to_owned(), kind));
                }
            }
            Payload::ComponentExportSection(exports) => {
                for export in exports {
                    let export = export?;
                    let kind = component_kind(export.kind);
                    self.exports.push((export.name.name.to_owned(), kind, None));
                }
            }
            Payload::CustomSection(custom) => self.read_name(custom.as_known()),
            _ => {}
        }
        Ok(())
    }

    /// Takes the module's name from its name section. That is free-form: one that cannot be read
    /// names nothing.
    fn read_name(&mut self, custom: KnownCustom<'_>) {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "other sections name no module"
        )]
        match custom {
            KnownCustom::Name(names) => {
                for name in names.into_iter().map_while(Result::ok) {
                    if let Name::Module { name, .. } = name {
                        self.name = quote(name);
                    }
                }
            }
            KnownCustom::ComponentName(names) => {
                for name in names.into_iter().map_while(Result::ok) {
                    if let ComponentName::Component { name, .. } = name {
                        self.name = quote(name);
                    }
                }
            }
            _ => {}
        }
    }

    fn import(&mut self, module: &str, name: &str, ty: TypeRef) {
        let kind = match ty {
            TypeRef::Func(index) | TypeRef::FuncExact(index) => {
                // Imported functions come first in the index space.
                self.functions.push(index);
                "func"
            }
            TypeRef::Table(_) => "table",
            TypeRef::Memory(memory) => {
                self.shared_memory |= memory.shared;
                "memory"
            }
            TypeRef::Global(_) => "global",
            TypeRef::Tag(_) => "tag",
        };
        self.imports
            .push((module.to_owned(), name.to_owned(), kind));
    }

    fn signature(&self, function: u32) -> Option<Signature> {
        let ty = *self.functions.get(function as usize)?;
        let func = self.types.get(ty as usize)?.as_ref()?;
        Some(Signature {
            params: func.params().iter().copied().map(Into::into).collect(),
            results: func.results().iter().copied().map(Into::into).collect(),
        })
    }

    fn finish(
        self,
        rules: &ImportRules,
        needs: Needs,
        footprint: &Footprint,
    ) -> Result<Inspection, Refusal> {
        let mut missing = needs.unavailable;
        if self.shared_memory {
            missing.push("shared-memory".to_owned());
        }
        let newer = self.component && self.imports.iter().any(|(_, name, _)| is_wasi_0_3(name));
        if newer && !missing.is_empty() {
            // The component proposals that it needs are needed for WASI 0.3.
            missing.push("wasi-0.3".to_owned());
        }
        if !missing.is_empty() {
            return Err(unavailable(&missing));
        }
        check_footprint(footprint)?;
        let refused: Vec<String> = self
            .imports
            .iter()
            .filter(|import| !self.is_offered(import, rules))
            .map(|(module, name, _)| dotted(module, name))
            .collect();
        if !refused.is_empty() {
            let offered = match newer {
                true => "offered by this daemon, which has WASI 0.2",
                false => "offered by this daemon",
            };
            return Err(import_not_allowed(&refused, offered));
        }
        let is_wasi = |(module, name, _): &&(String, String, &str)| {
            WASI_MODULES.contains(&module.as_str())
                || (module.is_empty() && name.starts_with("wasi:"))
        };
        let (signatures, functions) = self.exported_functions();
        Ok(Inspection {
            signatures,
            functions,
            others: self
                .exports
                .iter()
                .filter(|(_, _, index)| index.is_none())
                .map(|(name, ..)| name.clone())
                .collect(),
            imports_wasi: self
                .imports
                .iter()
                .filter(is_wasi)
                .take(LISTED)
                .map(|(module, name, _)| dotted(module, name))
                .collect(),
            imports_host: self
                .imports
                .iter()
                .map(|(module, name, _)| dotted(module, name))
                .filter(|name| HOST_FUNCTION_NAMES.contains(&name.as_str()))
                .collect(),
            runs: self
                .exports
                .iter()
                .any(|(name, ..)| name.starts_with(CLI_RUN)),
            proposals: needs.proposals,
            description: self.describe(footprint.pages),
        })
    }

    /// Returns the types of the exported functions, each once, and the functions by name with the
    /// position of their type.
    fn exported_functions(&self) -> (Vec<Signature>, HashMap<String, usize>) {
        let (mut signatures, mut functions) = (Vec::new(), HashMap::new());
        let mut places = HashMap::new();
        for (name, _, index) in &self.exports {
            let ty = index.and_then(|index| self.functions.get(index as usize));
            let (Some(ty), Some(signature)) = (ty, index.and_then(|index| self.signature(index)))
            else {
                continue;
            };
            let place = *places.entry(*ty).or_insert_with(|| {
                signatures.push(signature);
                signatures.len() - 1
            });
            functions.insert(name.clone(), place);
        }
        (signatures, functions)
    }

    /// Builds the description that listings show.
    fn describe(self, memory_minimum_pages: u64) -> ModuleDescription {
        let signature = |index: &Option<u32>| {
            index
                .and_then(|index| self.signature(index))
                .map(|signature| quote(&signature.to_string()))
                .unwrap_or_default()
        };
        ModuleDescription {
            component: self.component,
            memory_minimum_pages,
            exports: self
                .exports
                .iter()
                .take(LISTED)
                .map(|(name, kind, index)| Exported {
                    name: quote(name),
                    kind: (*kind).into(),
                    signature: signature(index),
                })
                .collect(),
            imports: self
                .imports
                .iter()
                .take(LISTED)
                .map(|(module, name, kind)| Imported {
                    module: quote(module),
                    name: quote(name),
                    kind: (*kind).into(),
                })
                .collect(),
            name: self.name,
        }
    }

    fn is_offered(
        &self,
        (module, name, kind): &(String, String, &str),
        rules: &ImportRules,
    ) -> bool {
        if self.component {
            // Types and resources come along with the interfaces that need them.
            return WASI_PACKAGES
                .iter()
                .any(|package| name.starts_with(package))
                && name.contains("@0.2.");
        }
        *kind == "func" && rules.offered.contains(&(module.clone(), name.clone()))
    }
}

/// Builds the refusal for imports that are not allowed. `what` ends its sentence "the module
/// imports what is not ...".
pub(in crate::sandbox) fn import_not_allowed(names: &[String], what: &str) -> Refusal {
    let sentence = format!("the module imports what is not {what}");
    Refusal::listing(Reason::ImportNotAllowed, &sentence, "imports", names).at_field("module")
}

/// Refuses a module that no run's store could hold.
///
/// # Errors
/// `LIMIT_ABOVE_MAXIMUM` with the first count that is over its limit.
fn check_footprint(footprint: &Footprint) -> Result<(), Refusal> {
    let Footprint {
        instances,
        memories,
        pages: _,
        tables,
    } = *footprint;
    let counts = [
        ("core instances", instances, INSTANCES),
        ("memories", memories, MEMORIES),
        ("tables", tables, TABLES),
    ];
    let counts = counts.map(|(what, asked, limit)| (what, asked, limit.number));
    let over = |(_, asked, allowed): &&(&str, u64, u64)| asked > allowed;
    match counts.iter().find(over) {
        Some((what, asked, allowed)) => Err(Refusal::new(
            Reason::LimitAboveMaximum,
            format!(
                "an instance of the module takes {asked} {what}; allowed are {allowed} for a run"
            ),
        )
        .at_field("module")
        .with("asked", asked)
        .with("allowed", allowed)),
        None => Ok(()),
    }
}

/// Reports whether a component imports WASI 0.3, the version after the one that is offered.
fn is_wasi_0_3(name: &str) -> bool {
    name.starts_with("wasi:") && name.contains("@0.3.")
}

fn dotted(module: &str, name: &str) -> String {
    if module.is_empty() {
        name.to_owned()
    } else {
        format!("{module}.{name}")
    }
}

fn core_kind(kind: ExternalKind) -> &'static str {
    match kind {
        ExternalKind::Func | ExternalKind::FuncExact => "func",
        ExternalKind::Table => "table",
        ExternalKind::Memory => "memory",
        ExternalKind::Global => "global",
        ExternalKind::Tag => "tag",
    }
}

fn component_kind(kind: ComponentExternalKind) -> &'static str {
    match kind {
        ComponentExternalKind::Module => "module",
        ComponentExternalKind::Func => "func",
        ComponentExternalKind::Value => "value",
        ComponentExternalKind::Type => "type",
        ComponentExternalKind::Instance => "instance",
        ComponentExternalKind::Component => "component",
    }
}
