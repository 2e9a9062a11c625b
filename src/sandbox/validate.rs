//! Whether a module is valid under the proposals that are on, and which others it needs.

use wasmparser::Validator;
use wasmtime::WasmFeatures;

use super::engine::{FEATURES, Feature};
use crate::refusal::{Reason, Refusal, quote};

/// The largest module, in bytes, that is looked through for proposals which nobody can turn on.
const THOROUGH: usize = 1 << 20;

/// Validates a binary module under the proposals that are on.
///
/// # Errors
/// `MODULE_INVALID` with the offset, `FEATURE_NOT_ENABLED` with the proposals that it needs.
pub(super) fn validate(wasm: &[u8], features: WasmFeatures) -> Result<(), Refusal> {
    let passes = |features| Validator::new_with_features(features).validate_all(wasm);
    if passes(features).is_ok() {
        return Ok(());
    }
    if let Err(error) = passes(WasmFeatures::all()) {
        return Err(invalid(&quote(error.message()), Some(error.offset())));
    }
    // Valid with everything on: the proposals that it cannot do without are those it needs.
    let missing = |feature: WasmFeatures| !features.contains(feature);
    let needed: Vec<Feature> = FEATURES
        .into_iter()
        .filter(|feature| missing(feature.own))
        .filter(|feature| {
            let without = WasmFeatures::all() - feature.own - feature.implied_by;
            passes(without).is_err()
        })
        .collect();
    // One that another brings along goes without saying.
    let brought = |feature: &Feature| {
        needed
            .iter()
            .any(|other| other.brings.contains(feature.own))
    };
    let mut needs: Vec<String> = needed
        .iter()
        .filter(|feature| !brought(feature))
        .map(|feature| feature.name.to_owned())
        .collect();
    // Each look costs a validation: those that nobody can turn on are looked for in small modules only.
    if needs.is_empty() && wasm.len() <= THOROUGH {
        needs = WasmFeatures::all()
            .iter_names()
            .filter(|(_, feature)| missing(*feature))
            .filter(|(_, feature)| passes(WasmFeatures::all() - *feature).is_err())
            .map(|(name, _)| name.to_ascii_lowercase().replace('_', "-"))
            .collect();
    }
    if needs.is_empty() {
        // The validator's own words name it.
        let error = passes(features).err();
        needs = error
            .iter()
            .map(|error| error.message().to_owned())
            .collect();
    }
    Err(not_enabled(&needs))
}

/// Refuses a module that needs proposals.
pub(super) fn not_enabled(names: &[String]) -> Refusal {
    let sentence = "the module needs a WebAssembly proposal that is not enabled here";
    Refusal::listing(Reason::FeatureNotEnabled, sentence, "feature", names).at("module")
}

/// Refuses what is no module.
pub(super) fn invalid(message: &str, offset: Option<usize>) -> Refusal {
    let refusal = match offset {
        Some(offset) => Refusal::new(
            Reason::ModuleInvalid,
            format!("the module is not valid at offset {offset}: {message}"),
        )
        .with("offset", offset),
        None => Refusal::new(
            Reason::ModuleInvalid,
            format!("the module is not valid: {message}"),
        ),
    };
    refusal.at("module")
}
