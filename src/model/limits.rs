//! The limits of a run: what a caller requests, what the operator allows, and what the run is
//! granted.

use std::time::Duration;

use super::refusal::{Reason, Refusal};

/// The size of one page of linear memory, in bytes.
pub const WASM_PAGE_BYTES: u64 = 65_536;
/// The smallest stack that may be asked for, in bytes.
pub const MIN_STACK: u32 = 64 * 1024;

/// The most bytes at the end of standard output in which a program may report a value.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The name of the setting that is the ceiling of memory.
const MAX_PAGES_KEY: &str = "policy.max_memory_pages";

/// The part of what all tenants share that each leaves to the others, where there are several: one
/// in so many.
pub const OTHERS_DIVISOR: u64 = 8;

/// Returns how many of `all` bytes one tenant may hold: all of them, or less an eighth where there
/// are `several` tenants.
pub const fn share_of(all: u64, several: bool) -> u64 {
    if several {
        all - all / OTHERS_DIVISOR
    } else {
        all
    }
}

/// The limits that a caller asks for. `None` is "not said"; the wire's zero never gets here.
#[derive(Clone, Debug, Default)]
pub struct RequestedLimits {
    /// Pages of linear memory, of 64 KiB each.
    pub memory_pages: Option<u32>,
    /// Fuel that the guest may use.
    pub fuel: Option<u64>,
    /// Bytes of the guest's call stack.
    pub stack: Option<u32>,
    /// Bytes of output, for each stream.
    pub output: Option<u64>,
    /// What happens at the output limit.
    pub output_policy: OutputPolicy,
    /// Wall time that the run may take.
    pub timeout: Option<Duration>,
}

/// What happens when a guest writes more than its output limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputPolicy {
    /// The run ends at the limit.
    #[default]
    Stop,
    /// The rest is dropped and the guest goes on.
    Truncate,
}

/// How output is delivered; the two modes have different defaults and ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputMode {
    /// Captured in memory and answered whole.
    Captured,
    /// Streamed as it is written.
    Streamed,
}

/// The stack sizes that engines exist for. The size is a property of an engine, so a request is
/// rounded up to a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StackClass {
    /// A stack of 256 KiB.
    K256,
    /// A stack of 512 KiB.
    K512,
    /// A stack of 1 MiB.
    M1,
    /// A stack of 4 MiB.
    M4,
    /// A stack of 16 MiB.
    M16,
}

impl StackClass {
    /// Every class, the smallest first.
    pub const ALL: [Self; 5] = [Self::K256, Self::K512, Self::M1, Self::M4, Self::M16];

    /// Returns the bytes of guest call stack.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::K256 => 256 << 10,
            Self::K512 => 512 << 10,
            Self::M1 => 1 << 20,
            Self::M4 => 4 << 20,
            Self::M16 => 16 << 20,
        }
    }

    /// Returns the smallest class of at least `bytes`; `None` where there is none.
    pub fn at_least(bytes: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.bytes() >= bytes)
    }
}

/// The operator's defaults and ceilings for the limits of a run.
#[derive(Clone, Debug)]
pub struct Ceilings {
    /// Pages beyond the module's minimum, where the caller asks for none.
    pub default_memory_pages: u32,
    /// The most pages that a run may have.
    pub max_memory_pages: u32,
    /// Wall time of a run whose caller asks for none.
    pub default_timeout: Duration,
    /// The longest wall time that a run may ask for.
    pub max_timeout: Duration,
    /// Stack of a run whose caller asks for none, in bytes.
    pub default_stack: u32,
    /// The largest stack that a run may ask for, in bytes. It is the size of a class.
    pub max_stack: u32,
    /// Captured output where none is asked for, in bytes, for each stream.
    pub default_output: u64,
    /// The most captured output, in bytes, for each stream.
    pub max_output: u64,
    /// The most streamed output, in bytes, for each stream; also what a run gets that asks for
    /// none. `None`: not limited.
    pub max_stream_output: Option<u64>,
    /// Fuel of a run whose caller asks for none, where `require_fuel` is set.
    pub default_fuel: u64,
    /// The most fuel that a run may ask for. `None`: not limited.
    pub max_fuel: Option<u64>,
    /// Whether every run is metered.
    pub require_fuel: bool,
}

/// The limits that a run is granted, but for memory, which depends on its module too: see
/// [`Limits::memory_pages`].
#[derive(Clone, Debug)]
pub struct Limits {
    asked_pages: Option<u32>,
    default_pages: u32,
    max_pages: u32,
    /// Fuel that the guest may use; `None`: not metered.
    pub fuel: Option<u64>,
    /// The class of the guest's call stack.
    pub stack: StackClass,
    /// The most bytes of each output stream; `None`: not limited.
    pub output: Option<u64>,
    /// What happens at the limit of `output`.
    pub output_policy: OutputPolicy,
    /// Wall time that the run may take.
    pub timeout: Duration,
}

impl Ceilings {
    /// Grants what is asked for, or refuses the first request that is over its ceiling.
    ///
    /// # Errors
    /// `LIMIT_ABOVE_MAXIMUM` with both numbers; `SPEC_INVALID` for a stack under [`MIN_STACK`].
    pub fn grant(&self, asked: &RequestedLimits, delivery: OutputMode) -> Result<Limits, Refusal> {
        if let Some(pages) = asked.memory_pages
            && pages > self.max_memory_pages
        {
            return Err(Refusal::above_ceiling(
                "spec.resources.memory_pages",
                MAX_PAGES_KEY,
                pages,
                self.max_memory_pages,
            ));
        }
        let timeout = asked.timeout.unwrap_or(self.default_timeout);
        if timeout > self.max_timeout {
            return Err(Refusal::above_ceiling(
                "spec.timeout",
                "policy.max_timeout",
                humantime::format_duration(timeout),
                humantime::format_duration(self.max_timeout),
            ));
        }
        Ok(Limits {
            asked_pages: asked.memory_pages,
            default_pages: self.default_memory_pages,
            max_pages: self.max_memory_pages,
            fuel: self.grant_fuel(asked.fuel)?,
            stack: self.grant_stack(asked.stack)?,
            output: self.grant_output(asked.output, delivery)?,
            output_policy: asked.output_policy,
            timeout,
        })
    }

    /// Returns the class of stack for a run that does not ask for one.
    pub fn default_stack_class(&self) -> StackClass {
        // The configuration is checked: the default is at most the ceiling, which is a class.
        StackClass::at_least(self.default_stack).unwrap_or(StackClass::M16)
    }

    fn grant_fuel(&self, asked: Option<u64>) -> Result<Option<u64>, Refusal> {
        match (asked, self.max_fuel) {
            (Some(fuel), Some(max)) if fuel > max => {
                const FIELD: &str = "spec.resources.fuel_limit";
                Err(Refusal::above_ceiling(FIELD, "policy.max_fuel", fuel, max))
            }
            (Some(fuel), _) => Ok(Some(fuel)),
            (None, _) if self.require_fuel => Ok(Some(self.default_fuel)),
            (None, _) => Ok(None),
        }
    }

    fn grant_stack(&self, asked: Option<u32>) -> Result<StackClass, Refusal> {
        const FIELD: &str = "spec.resources.stack_size";
        let bytes = asked.unwrap_or(self.default_stack);
        if bytes < MIN_STACK {
            return Err(Refusal::invalid(
                FIELD,
                format!("{bytes} is under the minimum of {MIN_STACK}"),
            )
            .with("asked", bytes)
            .with("allowed", MIN_STACK));
        }
        match StackClass::at_least(bytes) {
            Some(class) if bytes <= self.max_stack => Ok(class),
            _ => {
                const KEY: &str = "policy.max_stack_size";
                Err(Refusal::above_ceiling(FIELD, KEY, bytes, self.max_stack))
            }
        }
    }

    fn grant_output(
        &self,
        asked: Option<u64>,
        delivery: OutputMode,
    ) -> Result<Option<u64>, Refusal> {
        const FIELD: &str = "spec.resources.output_limit";
        let (default, max, key) = match delivery {
            OutputMode::Captured => (
                Some(self.default_output),
                Some(self.max_output),
                "policy.max_output",
            ),
            OutputMode::Streamed => (
                self.max_stream_output,
                self.max_stream_output,
                "policy.max_stream_output",
            ),
        };
        match (asked, max) {
            (Some(bytes), Some(max)) if bytes > max => {
                Err(Refusal::above_ceiling(FIELD, key, bytes, max))
            }
            (Some(bytes), _) => Ok(Some(bytes)),
            (None, _) => Ok(default),
        }
    }
}

impl Limits {
    /// Returns the pages that the run gets for a module whose memories declare `minimum` pages
    /// together.
    ///
    /// A request is granted as it is. Without one the run gets the default on top of the minimum,
    /// as far as the ceiling goes.
    ///
    /// # Errors
    /// `MEMORY_BELOW_MODULE_MINIMUM` where the request or the ceiling is under the minimum.
    pub fn memory_pages(&self, minimum: u64) -> Result<u32, Refusal> {
        let below = |what: &str, pages: u32| {
            Refusal::new(
                Reason::MemoryBelowModuleMinimum,
                format!("{what} of {pages} pages is under the {minimum} that the module declares"),
            )
            .at_field("spec.resources.memory_pages")
            .with("asked", pages)
            .with("minimum", minimum)
        };
        if let Some(pages) = self.asked_pages {
            return if u64::from(pages) < minimum {
                Err(below("the ask", pages))
            } else {
                Ok(pages)
            };
        }
        match u32::try_from(minimum) {
            Ok(minimum) if minimum <= self.max_pages => Ok(minimum
                .saturating_add(self.default_pages)
                .min(self.max_pages)),
            _ => {
                let ceiling = format!("the ceiling ({MAX_PAGES_KEY})");
                Err(below(&ceiling, self.max_pages).with("limit", MAX_PAGES_KEY))
            }
        }
    }
}
