//! Counts what instantiating a module or a component takes of a store: core instances, memories,
//! pages and tables.
//!
//! A component says how its parts are put together, and a core module in it may be instantiated
//! many times, once, or never. So the instantiation is walked through as an engine would do it:
//! each component that is instantiated gets a scope with its index spaces, and each core module
//! that is instantiated adds its own footprint. The walk is abstract interpretation: nothing is
//! executed, and functions, types and values are passed over. A few kilobytes of nested components
//! can name two to the power of thirty instances, so the number of steps of the walk is bounded.

use std::collections::HashMap;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use wasmparser::{
    ComponentAlias, ComponentExternalKind, ComponentInstance, ComponentOuterAliasKind, Encoding,
    Instance, Parser, Payload,
};

use super::compile_limit::compile_limit;
use super::validate::invalid;
use crate::model::guest_limits::{INSTANTIATION_STEPS, NESTED_INSTANCES};
use crate::model::limits::WASM_PAGE_BYTES;
use crate::model::refusal::{Refusal, quote};

/// What an instance takes of a store, together with all the instances that it brings along.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::sandbox) struct Footprint {
    /// Number of core instances.
    pub instances: u64,
    /// Number of linear memories.
    pub memories: u64,
    /// Pages of 64 KiB that the memories begin with.
    pub pages: u64,
    /// Number of tables in all instances.
    pub tables: u64,
}

impl Footprint {
    fn add(&mut self, other: &Self) {
        let Self {
            instances,
            memories,
            pages,
            tables,
        } = other;
        self.instances = self.instances.saturating_add(*instances);
        self.memories = self.memories.saturating_add(*memories);
        self.pages = self.pages.saturating_add(*pages);
        self.tables = self.tables.saturating_add(*tables);
    }
}

/// Computes the footprint of a binary module or component, which has to be valid.
///
/// # Errors
/// `COMPILE_LIMIT_EXCEEDED` for a component whose instantiation takes too many steps to tell.
pub(in crate::sandbox) fn footprint(wasm: &[u8]) -> Result<Footprint, Refusal> {
    let parsed = parse(wasm);
    let part = parsed.map_err(|error| invalid(&quote(error.message()), Some(error.offset())))?;
    match part {
        Part::Module(footprint) => Ok(footprint),
        Part::Component(body) => {
            let mut walk = Walk::default();
            let root = ComponentClosure {
                body: Rc::new(body),
                outer: None,
            };
            walk.instantiate(&root, HashMap::new(), 0)?;
            Ok(walk.footprint)
        }
    }
}

/// A core module or a component, as its bytes define it.
enum Part<'a> {
    Module(Footprint),
    Component(Vec<Definition<'a>>),
}

/// A definition in a component, as far as it matters here. Definitions stand in the order of their
/// index spaces.
enum Definition<'a> {
    Module(Footprint),
    Component(Rc<Vec<Definition<'a>>>),
    /// Something that the component is given by whoever instantiates it.
    Import(&'a str, Sort),
    /// An instance of the core module at this index.
    CoreInstance(u32),
    /// An instance of the component at this index, with what it is given by name.
    Instance(u32, Vec<Named<'a>>),
    /// An instance that is made of parts which are defined already.
    Bundle(Vec<Named<'a>>),
    /// A part that the instance at this index exports under this name.
    ExportOf(Sort, u32, &'a str),
    /// A part of an enclosing component: its sort, how many levels up, and its index there.
    Outer(Sort, u32, u32),
    /// An export, which gives the same part another index.
    Export(Named<'a>),
}

struct Named<'a> {
    name: &'a str,
    sort: Sort,
    index: u32,
}

/// The index spaces that the walk keeps track of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sort {
    Module,
    Component,
    Instance,
}

impl Sort {
    fn of(kind: ComponentExternalKind) -> Option<Self> {
        match kind {
            ComponentExternalKind::Module => Some(Self::Module),
            ComponentExternalKind::Component => Some(Self::Component),
            ComponentExternalKind::Instance => Some(Self::Instance),
            ComponentExternalKind::Func
            | ComponentExternalKind::Value
            | ComponentExternalKind::Type => None,
        }
    }
}

fn named<'a>(name: &'a str, kind: ComponentExternalKind, index: u32) -> Option<Named<'a>> {
    let sort = Sort::of(kind)?;
    Some(Named { name, sort, index })
}

fn parse(wasm: &[u8]) -> wasmparser::Result<Part<'_>> {
    let mut open: Vec<Part<'_>> = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        let payload = payload?;
        match (&payload, open.last_mut()) {
            (Payload::Version { encoding, .. }, _) => open.push(match encoding {
                // A module that is instantiated is an instance.
                Encoding::Module => Part::Module(Footprint {
                    instances: 1,
                    ..Footprint::default()
                }),
                Encoding::Component => Part::Component(Vec::new()),
            }),
            (Payload::End(_), _) => {
                let ended = open.pop().unwrap_or(Part::Component(Vec::new()));
                let Some(Part::Component(around)) = open.last_mut() else {
                    return Ok(ended);
                };
                around.push(match ended {
                    Part::Module(footprint) => Definition::Module(footprint),
                    Part::Component(body) => Definition::Component(Rc::new(body)),
                });
            }
            (_, Some(Part::Module(footprint))) => read_module(footprint, payload)?,
            (_, Some(Part::Component(body))) => read_component(body, payload)?,
            (_, None) => {}
        }
    }
    Ok(Part::Component(Vec::new()))
}

fn read_module(footprint: &mut Footprint, payload: Payload<'_>) -> wasmparser::Result<()> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "sections that take nothing of a store"
    )]
    match payload {
        Payload::MemorySection(memories) => {
            for memory in memories {
                footprint.memories += 1;
                footprint.pages = footprint.pages.saturating_add(pages(&memory?));
            }
        }
        Payload::TableSection(tables) => footprint.tables += u64::from(tables.count()),
        _ => {}
    }
    Ok(())
}

fn read_component<'a>(
    body: &mut Vec<Definition<'a>>,
    payload: Payload<'a>,
) -> wasmparser::Result<()> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "sections that define no module, component or instance"
    )]
    match payload {
        Payload::ComponentImportSection(imports) => {
            for import in imports {
                let import = import?;
                if let Some(sort) = Sort::of(import.ty.kind()) {
                    body.push(Definition::Import(import.name.name, sort));
                }
            }
        }
        Payload::InstanceSection(instances) => {
            for instance in instances {
                body.push(match instance? {
                    Instance::Instantiate { module_index, .. } => {
                        Definition::CoreInstance(module_index)
                    }
                    // This instance takes an index that nothing here refers to.
                    Instance::FromExports(_) => continue,
                });
            }
        }
        Payload::ComponentInstanceSection(instances) => {
            for instance in instances {
                body.push(match instance? {
                    ComponentInstance::Instantiate {
                        component_index,
                        args,
                    } => {
                        let args = args.iter();
                        let args = args.filter_map(|arg| named(arg.name, arg.kind, arg.index));
                        Definition::Instance(component_index, args.collect())
                    }
                    ComponentInstance::FromExports(exports) => {
                        let parts = exports.iter();
                        let parts =
                            parts.filter_map(|part| named(part.name.name, part.kind, part.index));
                        Definition::Bundle(parts.collect())
                    }
                });
            }
        }
        Payload::ComponentAliasSection(aliases) => {
            for alias in aliases {
                body.extend(aliased(&alias?));
            }
        }
        Payload::ComponentExportSection(exports) => {
            for export in exports {
                let export = export?;
                let part = named(export.name.name, export.kind, export.index);
                body.extend(part.map(Definition::Export));
            }
        }
        _ => {}
    }
    Ok(())
}

fn aliased<'a>(alias: &ComponentAlias<'a>) -> Option<Definition<'a>> {
    match *alias {
        ComponentAlias::InstanceExport {
            kind,
            instance_index,
            name,
        } => Some(Definition::ExportOf(Sort::of(kind)?, instance_index, name)),
        ComponentAlias::Outer { kind, count, index } => {
            let sort = match kind {
                ComponentOuterAliasKind::CoreModule => Sort::Module,
                ComponentOuterAliasKind::Component => Sort::Component,
                ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => return None,
            };
            Some(Definition::Outer(sort, count, index))
        }
        ComponentAlias::CoreInstanceExport { .. } => None,
    }
}

/// Returns a memory's minimum in pages of 64 KiB, whatever the size of its own pages.
fn pages(memory: &wasmparser::MemoryType) -> u64 {
    let bytes = u128::from(memory.initial) << memory.page_size_log2.unwrap_or(16);
    u64::try_from(bytes.div_ceil(u128::from(WASM_PAGE_BYTES))).unwrap_or(u64::MAX)
}

/// An item at an index of one of the index spaces.
#[derive(Clone)]
enum IndexedItem<'a> {
    Module(Footprint),
    Component(ComponentClosure<'a>),
    Instance(Rc<HashMap<&'a str, IndexedItem<'a>>>),
    /// An item given from outside: what the host offers takes nothing of a store.
    Host,
}

/// A component together with the scope in which it was defined, to which its outer aliases lead.
#[derive(Clone)]
struct ComponentClosure<'a> {
    body: Rc<Vec<Definition<'a>>>,
    outer: Option<usize>,
}

/// The index spaces of a component that is being instantiated.
#[derive(Default)]
struct Scope<'a> {
    outer: Option<usize>,
    modules: Vec<IndexedItem<'a>>,
    components: Vec<IndexedItem<'a>>,
    instances: Vec<IndexedItem<'a>>,
}

impl<'a> Scope<'a> {
    fn space(&mut self, sort: Sort) -> &mut Vec<IndexedItem<'a>> {
        match sort {
            Sort::Module => &mut self.modules,
            Sort::Component => &mut self.components,
            Sort::Instance => &mut self.instances,
        }
    }
}

/// Builds the refusal of a component whose instances are nested too deep.
fn too_deep() -> Refusal {
    let message = "the component's instances are nested too deep".to_owned();
    compile_limit("nested instances", message, NESTED_INSTANCES.number)
}

/// The walk through an instantiation: its scopes, and the footprint and steps counted so far.
#[derive(Default)]
struct Walk<'a> {
    /// Scopes stay until the walk is over, because components that were defined in one refer to it.
    scopes: Vec<Scope<'a>>,
    footprint: Footprint,
    steps: u64,
}

impl<'a> Walk<'a> {
    /// Instantiates `component` and returns what the instance exports.
    fn instantiate(
        &mut self,
        component: &ComponentClosure<'a>,
        given: HashMap<&'a str, IndexedItem<'a>>,
        depth: u64,
    ) -> Result<IndexedItem<'a>, Refusal> {
        if depth == NESTED_INSTANCES.number {
            return Err(too_deep());
        }
        let scope = self.scopes.len();
        self.scopes.push(Scope {
            outer: component.outer,
            ..Scope::default()
        });
        let mut exports = HashMap::new();
        for definition in component.body.iter() {
            self.step(1)?;
            let (sort, value) = match definition {
                Definition::Module(footprint) => (Sort::Module, IndexedItem::Module(*footprint)),
                Definition::Component(body) => {
                    let (body, outer) = (Rc::clone(body), Some(scope));
                    let closure = ComponentClosure { body, outer };
                    (Sort::Component, IndexedItem::Component(closure))
                }
                Definition::Import(name, sort) => {
                    (*sort, given.get(name).cloned().unwrap_or(IndexedItem::Host))
                }
                Definition::CoreInstance(index) => {
                    if let IndexedItem::Module(footprint) = self.at(scope, Sort::Module, *index) {
                        self.footprint.add(&footprint);
                    }
                    continue;
                }
                Definition::Instance(index, args) => {
                    let args = self.resolved(scope, args)?;
                    let component = self.at(scope, Sort::Component, *index);
                    (Sort::Instance, self.instance_of(&component, args, depth)?)
                }
                Definition::Bundle(parts) => {
                    let parts = self.resolved(scope, parts)?;
                    (Sort::Instance, IndexedItem::Instance(Rc::new(parts)))
                }
                Definition::ExportOf(sort, index, name) => {
                    let part = match self.at(scope, Sort::Instance, *index) {
                        IndexedItem::Instance(parts) => parts.get(name).cloned(),
                        IndexedItem::Module(_) | IndexedItem::Component(_) | IndexedItem::Host => {
                            None
                        }
                    };
                    (*sort, part.unwrap_or(IndexedItem::Host))
                }
                Definition::Outer(sort, levels, index) => {
                    (*sort, self.outer(scope, *levels, *sort, *index)?)
                }
                Definition::Export(part) => {
                    let value = self.at(scope, part.sort, part.index);
                    exports.insert(part.name, value.clone());
                    (part.sort, value)
                }
            };
            self.scopes[scope].space(sort).push(value);
        }
        Ok(IndexedItem::Instance(Rc::new(exports)))
    }

    /// Instantiates an item, where that is a component. The host's instance is the host's.
    fn instance_of(
        &mut self,
        item: &IndexedItem<'a>,
        args: HashMap<&'a str, IndexedItem<'a>>,
        depth: u64,
    ) -> Result<IndexedItem<'a>, Refusal> {
        match item {
            IndexedItem::Component(inner) => self.instantiate(inner, args, depth + 1),
            IndexedItem::Module(_) | IndexedItem::Instance(_) | IndexedItem::Host => {
                Ok(IndexedItem::Host)
            }
        }
    }

    /// Returns the item at an index. The component is valid, so an index that is not there is the
    /// host's.
    fn at(&mut self, scope: usize, sort: Sort, index: u32) -> IndexedItem<'a> {
        let space = self.scopes[scope].space(sort);
        space
            .get(index as usize)
            .cloned()
            .unwrap_or(IndexedItem::Host)
    }

    fn outer(
        &mut self,
        mut scope: usize,
        levels: u32,
        sort: Sort,
        index: u32,
    ) -> Result<IndexedItem<'a>, Refusal> {
        for _ in 0..levels {
            self.step(1)?;
            match self.scopes[scope].outer {
                Some(outer) => scope = outer,
                None => return Ok(IndexedItem::Host),
            }
        }
        Ok(self.at(scope, sort, index))
    }

    fn resolved(
        &mut self,
        scope: usize,
        parts: &[Named<'a>],
    ) -> Result<HashMap<&'a str, IndexedItem<'a>>, Refusal> {
        self.step(parts.len() as u64)?;
        let part = |part: &Named<'a>| (part.name, self.at(scope, part.sort, part.index));
        Ok(parts.iter().map(part).collect())
    }

    fn step(&mut self, steps: u64) -> Result<(), Refusal> {
        self.steps += steps;
        if self.steps <= INSTANTIATION_STEPS.number {
            return Ok(());
        }
        let message = "instantiating the component takes too many steps".to_owned();
        Err(compile_limit(
            "instantiation steps",
            message,
            INSTANTIATION_STEPS.number,
        ))
    }
}
