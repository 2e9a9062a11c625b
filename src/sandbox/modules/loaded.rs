//! A compiled module, mapped into the engine that runs it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::{InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::compile::Artifact;
use super::inspect::import_not_allowed;
use super::inspection::Inspection;
use crate::model::refusal::{Reason, Refusal, quote};
use crate::sandbox::engine::{LinkedEngine, Variant};
use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::preempt::EpochCounter;
use crate::sandbox::guest::stepped_clock::ClockKind;
use crate::sandbox::schedule::short_run_predictor::ShortRunPredictor;

/// Bytes that a module takes besides its code: tables, metadata and linkage.
const OVERHEAD: usize = 64 << 10;

/// A compiled module that is ready to be instantiated in one variant of the engine.
pub struct LoadedModule {
    /// What the inspection found out about the module.
    pub inspection: Arc<Inspection>,
    /// How long the compilation took; zero where an artefact of the module existed already.
    pub compile_time: Duration,
    /// The variant of the engine into which the module is mapped.
    pub(in crate::sandbox) variant: Variant,
    linked_engine: Arc<LinkedEngine>,
    code: LoadedCode,
    /// The artefact from which the module was mapped, where it is a file and so worth holding:
    /// another stack class maps it again.
    artifact: Option<Arc<Artifact>>,
    /// Predicts whether the module's next run is short.
    pub(in crate::sandbox) short_run_predictor: ShortRunPredictor,
}

enum LoadedCode {
    Core {
        module: Module,
        /// The module with its imports resolved, by [`ClockKind`].
        linked: [OnceLock<InstancePre<GuestState>>; 2],
    },
    Component {
        component: Component,
        /// The component with its imports resolved, by [`ClockKind`].
        linked: [OnceLock<CommandPre<GuestState>>; 2],
    },
}

/// A module whose imports are resolved.
pub enum PreInstance<'a> {
    /// A core module, ready to be instantiated.
    Core(&'a InstancePre<GuestState>),
    /// A component, ready to be instantiated.
    Component(&'a CommandPre<GuestState>),
}

impl LoadedModule {
    /// Maps `artifact` into `linked`, an engine of `variant`.
    ///
    /// # Errors
    /// The engine does not accept the artefact, or the host has no room for it.
    pub(in crate::sandbox) fn map(
        variant: Variant,
        linked: Arc<LinkedEngine>,
        artifact: &Arc<Artifact>,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Self> {
        let code = if inspection.description.component {
            LoadedCode::Component {
                component: artifact.component(&linked.engine)?,
                linked: Default::default(),
            }
        } else {
            LoadedCode::Core {
                module: artifact.module(&linked.engine)?,
                linked: Default::default(),
            }
        };
        Ok(Self {
            inspection: Arc::clone(inspection),
            compile_time: artifact.compile_time,
            variant,
            linked_engine: linked,
            code,
            artifact: artifact.is_mapped().then(|| Arc::clone(artifact)),
            short_run_predictor: ShortRunPredictor::default(),
        })
    }

    /// Returns the engine that runs the module.
    pub fn engine(&self) -> &wasmtime::Engine {
        &self.linked_engine.engine
    }

    /// Returns the epoch counter of that engine.
    pub(in crate::sandbox) fn epochs(&self) -> &EpochCounter {
        &self.linked_engine.epochs
    }

    /// Returns the module with its imports resolved against those of `clock`. The result is kept
    /// for later runs.
    ///
    /// # Errors
    /// `IMPORT_NOT_ALLOWED` for an import of another type than what is offered under its name;
    /// `ENTRY_POINT_SIGNATURE` for a component whose `wasi:cli/run` cannot be called.
    pub fn pre_instance(&self, clock: ClockKind) -> Result<PreInstance<'_>, Refusal> {
        let mismatch = |error: wasmtime::Error| {
            let text = format!("{error:#}");
            // The message is "incompatible import type for `module::name`".
            let name = text.split('`').nth(1).unwrap_or(&text);
            let names = [quote(&name.replacen("::", ".", 1))];
            import_not_allowed(&names, "offered by this daemon under this type")
        };
        match &self.code {
            LoadedCode::Core { module, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(PreInstance::Core(pre));
                }
                let linker = self.linked_engine.core(clock);
                let pre = linker.instantiate_pre(module).map_err(mismatch)?;
                Ok(PreInstance::Core(slot.get_or_init(|| pre)))
            }
            LoadedCode::Component { component, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(PreInstance::Component(pre));
                }
                let linker = self.linked_engine.component(clock);
                let pre = linker.instantiate_pre(component).map_err(mismatch)?;
                let pre = CommandPre::new(pre).map_err(|error| {
                    let why = quote(&format!("{error:#}"));
                    let message = format!("the component's wasi:cli/run cannot be called: {why}");
                    Refusal::new(Reason::EntryPointSignature, message).at_field("module")
                })?;
                Ok(PreInstance::Component(slot.get_or_init(|| pre)))
            }
        }
    }

    /// Returns the module's code, to be mapped for another stack class.
    pub(in crate::sandbox) fn artifact(&self) -> wasmtime::Result<Arc<Artifact>> {
        if let Some(artifact) = &self.artifact {
            return Ok(Arc::clone(artifact));
        }
        let bytes = match &self.code {
            LoadedCode::Core { module, .. } => module.serialize(),
            LoadedCode::Component { component, .. } => component.serialize(),
        };
        Ok(Arc::new(Artifact::from_bytes(bytes?, Duration::ZERO)))
    }

    /// Returns what the module takes of the cache's budget, in KiB.
    pub(in crate::sandbox) fn weight(&self) -> u32 {
        let image = match &self.code {
            LoadedCode::Core { module, .. } => module.image_range(),
            LoadedCode::Component { component, .. } => component.image_range(),
        };
        let image = image.end as usize - image.start as usize;
        kib(image
            .saturating_add(self.inspection.weight())
            .saturating_add(OVERHEAD))
    }
}

/// Converts `bytes` to KiB, rounded up, since an entry that weighs nothing is never evicted.
pub(in crate::sandbox) fn kib(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}
