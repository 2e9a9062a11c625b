//! WebAssembly proposals: which are on for every module, and which an operator can turn on.
//!
//! A proposal that is turned on opens nothing to modules that do without it: each module is executed
//! by an engine that has exactly the proposals that the module needs, and most need none.

use serde::{Deserialize, Serialize};
use wasmtime::WasmFeatures;

/// A proposal that an operator can turn on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature {
    /// As in `policy.features`.
    pub(super) name: &'static str,
    /// What a module that needs it cannot do without.
    own: WasmFeatures,
    /// What it builds on.
    brings: WasmFeatures,
}

impl Feature {
    const fn new(name: &'static str, own: WasmFeatures) -> Self {
        Self {
            name,
            own,
            brings: WasmFeatures::empty(),
        }
    }

    const fn with(self, brings: WasmFeatures) -> Self {
        Self { brings, ..self }
    }

    const fn all(&self) -> WasmFeatures {
        self.own.union(self.brings)
    }
}

/// The proposals that an operator can turn on. One that builds on another stands before it.
pub(super) const FEATURES: [Feature; 7] = [
    Feature::new("gc", WasmFeatures::GC)
        .with(WasmFeatures::GC_TYPES.union(WasmFeatures::FUNCTION_REFERENCES)),
    Feature::new("function-references", WasmFeatures::FUNCTION_REFERENCES),
    Feature::new("exceptions", WasmFeatures::EXCEPTIONS).with(WasmFeatures::GC_TYPES),
    Feature::new("threads", WasmFeatures::THREADS),
    Feature::new("memory64", WasmFeatures::MEMORY64),
    Feature::new("custom-page-sizes", WasmFeatures::CUSTOM_PAGE_SIZES),
    Feature::new("wide-arithmetic", WasmFeatures::WIDE_ARITHMETIC),
];

/// The names in `FEATURES`.
pub const FEATURE_NAMES: [&str; FEATURES.len()] = {
    let mut names = [""; FEATURES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FEATURES[i].name;
        i += 1;
    }
    names
};

/// What is on for every module: the third version of WebAssembly and components, less what untrusted
/// code does not need.
pub(super) fn defaults() -> WasmFeatures {
    let off = WasmFeatures::GC
        | WasmFeatures::GC_TYPES
        | WasmFeatures::FUNCTION_REFERENCES
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::THREADS
        | WasmFeatures::MEMORY64;
    (WasmFeatures::WASM3 - off) | WasmFeatures::COMPONENT_MODEL
}

/// A set of the proposals that an operator can turn on. Bit n is row n of [`FEATURES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposals(u8);

impl Proposals {
    /// Every one of them.
    pub(super) const ALL: Self = Self((1 << FEATURES.len()) - 1);

    /// The fewest that turn on all of `features` that they can turn on, and what is left of `features`.
    pub(super) fn covering(features: WasmFeatures) -> (Self, WasmFeatures) {
        let (mut chosen, mut left) = (Self::default(), features);
        for (bit, feature) in FEATURES.iter().enumerate() {
            if left.intersects(feature.own) {
                chosen.0 |= 1 << bit;
                left -= feature.all();
            }
        }
        // Types of the garbage collector alone, which exceptions would bring along too.
        if left.contains(WasmFeatures::GC_TYPES) {
            chosen.0 |= 1;
            left -= WasmFeatures::GC_TYPES;
        }
        (chosen, left)
    }

    /// Whether no proposal is in it.
    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn features(self) -> impl Iterator<Item = &'static Feature> {
        let rows = FEATURES.iter().enumerate();
        rows.filter_map(move |(bit, feature)| (self.0 & (1 << bit) != 0).then_some(feature))
    }

    /// Their names, as in `policy.features`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.features().map(|feature| feature.name)
    }

    /// All that is on in an engine that has these.
    pub(super) fn enabled(self) -> WasmFeatures {
        self.features()
            .fold(defaults(), |all, feature| all | feature.all())
    }
}
