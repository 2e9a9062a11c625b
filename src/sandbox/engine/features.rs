//! WebAssembly proposals: which are on for every module, and which an operator can turn on.
//!
//! Turning a proposal on opens nothing to modules that do without it: each module is executed by an
//! engine that has exactly the proposals that the module needs, and most need none.

use serde::{Deserialize, Serialize};
use wasmtime::WasmFeatures;

/// A WebAssembly proposal that an operator can turn on.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Feature {
    /// The proposal's name, as in `policy.features`.
    pub(in crate::sandbox) name: &'static str,
    /// The features that a module which needs the proposal cannot do without.
    own: WasmFeatures,
    /// The features on which the proposal builds, which are turned on with it.
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

/// The proposals that an operator can turn on. A proposal that builds on another stands before it.
pub(in crate::sandbox) const FEATURES: [Feature; 7] = [
    Feature::new("gc", WasmFeatures::GC)
        .with(WasmFeatures::GC_TYPES.union(WasmFeatures::FUNCTION_REFERENCES)),
    Feature::new("function-references", WasmFeatures::FUNCTION_REFERENCES),
    Feature::new("exceptions", WasmFeatures::EXCEPTIONS).with(WasmFeatures::GC_TYPES),
    Feature::new("threads", WasmFeatures::THREADS),
    Feature::new("memory64", WasmFeatures::MEMORY64),
    Feature::new("custom-page-sizes", WasmFeatures::CUSTOM_PAGE_SIZES),
    Feature::new("wide-arithmetic", WasmFeatures::WIDE_ARITHMETIC),
];

/// The names of the proposals in `FEATURES`, in the same order.
pub const FEATURE_NAMES: [&str; FEATURES.len()] = {
    let mut names = [""; FEATURES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FEATURES[i].name;
        i += 1;
    }
    names
};

/// Returns what is on for every module: the third version of WebAssembly and components, without
/// what untrusted code does not need.
pub(in crate::sandbox) fn defaults() -> WasmFeatures {
    let off = WasmFeatures::GC
        | WasmFeatures::GC_TYPES
        | WasmFeatures::FUNCTION_REFERENCES
        | WasmFeatures::EXCEPTIONS
        | WasmFeatures::LEGACY_EXCEPTIONS
        | WasmFeatures::THREADS
        | WasmFeatures::MEMORY64;
    (WasmFeatures::WASM3 - off) | WasmFeatures::COMPONENT_MODEL
}

/// A set of proposals that an operator can turn on. Bit n is row n of [`FEATURES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProposalSet(u8);

impl ProposalSet {
    /// All proposals that an operator can turn on.
    pub(in crate::sandbox) const ALL: Self = Self((1 << FEATURES.len()) - 1);

    /// Returns the smallest set of proposals that turns on all of `features` that an operator can
    /// turn on, and the features that are left over.
    pub(in crate::sandbox) fn covering(features: WasmFeatures) -> (Self, WasmFeatures) {
        let (mut chosen, mut left) = (Self::default(), features);
        for (bit, feature) in FEATURES.iter().enumerate() {
            if left.intersects(feature.own) {
                chosen.0 |= 1 << bit;
                left -= feature.all();
            }
        }
        // GC types may be needed alone. `gc` turns them on; `exceptions` would bring them along,
        // too.
        if left.contains(WasmFeatures::GC_TYPES) {
            chosen.0 |= 1;
            left -= WasmFeatures::GC_TYPES;
        }
        (chosen, left)
    }

    /// Reports whether the set contains no proposal.
    pub(in crate::sandbox) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn features(self) -> impl Iterator<Item = &'static Feature> {
        let rows = FEATURES.iter().enumerate();
        rows.filter_map(move |(bit, feature)| (self.0 & (1 << bit) != 0).then_some(feature))
    }

    /// Lists the names of the proposals, as in `policy.features`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        self.features().map(|feature| feature.name)
    }

    /// Returns all features that are on in an engine with these proposals.
    pub(in crate::sandbox) fn enabled(self) -> WasmFeatures {
        self.features()
            .fold(defaults(), |all, feature| all | feature.all())
    }
}
