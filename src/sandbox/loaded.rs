//! A compiled module, mapped into the engine that runs it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::{InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::compile::Artifact;
use super::engine::{Linked, Variant};
use super::habit::Habit;
use super::host::{Clock, State};
use super::inspect::import_not_allowed;
use super::inspection::Inspection;
use super::turn::Epochs;
use crate::refusal::{Reason, Refusal, quote};

/// What a module costs besides its code, in bytes: tables, metadata, linkage.
const OVERHEAD: usize = 64 << 10;

/// A module ready to be instantiated in one variant of the engine.
pub struct Loaded {
    /// What it is.
    pub inspection: Arc<Inspection>,
    /// How long its compilation took; zero where an artefact of it was there already.
    pub compiled_in: Duration,
    /// Of the engine.
    pub(super) variant: Variant,
    linked: Arc<Linked>,
    code: Code,
    /// What it was mapped from, where that is worth holding: another stack class maps it again.
    artifact: Option<Arc<Artifact>>,
    /// How long its runs take.
    pub(super) habit: Habit,
}

enum Code {
    Core {
        module: Module,
        /// By clock.
        linked: [OnceLock<InstancePre<State>>; 2],
    },
    Component {
        component: Component,
        /// By clock.
        linked: [OnceLock<CommandPre<State>>; 2],
    },
}

/// A module with its imports resolved.
pub enum Linkage<'a> {
    /// A core module.
    Core(&'a InstancePre<State>),
    /// A component.
    Component(&'a CommandPre<State>),
}

impl Loaded {
    /// Maps `artifact` into an engine of `variant`.
    ///
    /// # Errors
    /// Where the engine does not take it, or the host has no room for it.
    pub(super) fn map(
        variant: Variant,
        linked: Arc<Linked>,
        artifact: &Arc<Artifact>,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Self> {
        let code = if inspection.description.component {
            Code::Component {
                component: artifact.component(&linked.engine)?,
                linked: Default::default(),
            }
        } else {
            Code::Core {
                module: artifact.module(&linked.engine)?,
                linked: Default::default(),
            }
        };
        Ok(Self {
            inspection: Arc::clone(inspection),
            compiled_in: artifact.took,
            variant,
            linked,
            code,
            artifact: artifact.is_mapped().then(|| Arc::clone(artifact)),
            habit: Habit::default(),
        })
    }

    /// The engine that runs it.
    pub fn engine(&self) -> &wasmtime::Engine {
        &self.linked.engine
    }

    /// That engine's epochs.
    pub(super) fn epochs(&self) -> &Epochs {
        &self.linked.epochs
    }

    /// The module with its imports resolved against those of `clock`.
    ///
    /// # Errors
    /// `IMPORT_NOT_ALLOWED` for an import of another type than what is offered under its name.
    pub fn linkage(&self, clock: Clock) -> Result<Linkage<'_>, Refusal> {
        let mismatch = |error: wasmtime::Error| {
            let text = format!("{error:#}");
            // "incompatible import type for `module::name`"
            let name = text.split('`').nth(1).unwrap_or(&text);
            let names = [quote(&name.replacen("::", ".", 1))];
            import_not_allowed(&names, "offered by this daemon under this type")
        };
        match &self.code {
            Code::Core { module, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(Linkage::Core(pre));
                }
                let linker = self.linked.core(clock);
                let pre = linker.instantiate_pre(module).map_err(mismatch)?;
                Ok(Linkage::Core(slot.get_or_init(|| pre)))
            }
            Code::Component { component, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(Linkage::Component(pre));
                }
                let linker = self.linked.component(clock);
                let pre = linker.instantiate_pre(component).map_err(mismatch)?;
                let pre = CommandPre::new(pre).map_err(|error| {
                    let why = quote(&format!("{error:#}"));
                    let message = format!("the component's wasi:cli/run cannot be called: {why}");
                    Refusal::new(Reason::EntryPointSignature, message).at("module")
                })?;
                Ok(Linkage::Component(slot.get_or_init(|| pre)))
            }
        }
    }

    /// Its code, to be mapped for another stack class.
    pub(super) fn artifact(&self) -> wasmtime::Result<Arc<Artifact>> {
        if let Some(artifact) = &self.artifact {
            return Ok(Arc::clone(artifact));
        }
        let bytes = match &self.code {
            Code::Core { module, .. } => module.serialize(),
            Code::Component { component, .. } => component.serialize(),
        };
        Ok(Arc::new(Artifact::own(bytes?, Duration::ZERO)))
    }

    /// What it takes of the cache's budget, in KiB.
    pub(super) fn weight(&self) -> u32 {
        let image = match &self.code {
            Code::Core { module, .. } => module.image_range(),
            Code::Component { component, .. } => component.image_range(),
        };
        let image = image.end as usize - image.start as usize;
        kib(image
            .saturating_add(self.inspection.weight())
            .saturating_add(OVERHEAD))
    }
}

/// KiB of `bytes`, rounded up: what weighs nothing is never evicted.
pub(super) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}
