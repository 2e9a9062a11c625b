//! Validates a module and finds out which proposals it needs beyond those that are always on.

use wasmparser::Validator;
use wasmtime::WasmFeatures;

use crate::model::refusal::{Reason, Refusal, quote};
use crate::sandbox::engine::features::{ProposalSet, defaults};

/// Features on which other proposals build. They are tried last, so that a module is said to need
/// an outer proposal only where it needs that one itself.
const INNER_LAST: WasmFeatures = WasmFeatures::FUNCTION_REFERENCES.union(WasmFeatures::GC_TYPES);

/// What nobody can turn on here, and what a module's author can do about it.
const UNAVAILABLE: [(&str, &str); 5] = [
    (
        "legacy-exceptions",
        "compile it for the exceptions of WebAssembly 3 (clang: -mllvm -wasm-use-legacy-eh=false)",
    ),
    (
        "shared-memory",
        "build it without threads: a thread that waits on one outlives its deadline",
    ),
    ("wasi-0.3", "build it for WASI 0.2"),
    ("component-model-async", "build it for WASI 0.2"),
    ("compact-imports", "link it without compact import sections"),
];

/// What a module needs that is not on for every module.
#[derive(Debug, Default)]
pub(in crate::sandbox) struct Needs {
    /// Proposals that an operator can turn on.
    pub(in crate::sandbox) proposals: ProposalSet,
    /// Names of what nobody can turn on.
    pub(in crate::sandbox) unavailable: Vec<String>,
}

/// Validates a binary module, whatever proposals it needs, and finds out which these are.
///
/// # Errors
/// `MODULE_INVALID` with the offset.
pub(in crate::sandbox) fn validate(wasm: &[u8]) -> Result<Needs, Refusal> {
    let passes = |features| Validator::new_with_features(features).validate_all(wasm);
    if passes(defaults()).is_ok() {
        return Ok(Needs::default());
    }
    if let Err(error) = passes(WasmFeatures::all()) {
        return Err(invalid(&quote(error.message()), Some(error.offset())));
    }
    let beyond = WasmFeatures::all() - defaults();
    let candidates: Vec<WasmFeatures> = (beyond - INNER_LAST)
        .iter()
        .chain((beyond & INNER_LAST).iter())
        .collect();
    let mut needed = WasmFeatures::all();
    let passes = |features| passes(features).is_ok();
    shed(&mut needed, &candidates, &passes);
    let (proposals, left) = ProposalSet::covering(needed & beyond);
    let mut unavailable: Vec<String> = left.iter_names().map(|(name, _)| told(name)).collect();
    if unavailable.is_empty() && !passes(proposals.enabled()) {
        // The module passes with the features that it was found to need, but not with the proposals
        // that turn these on. No such combination is known, and nothing is promised for one.
        unavailable.push("an unknown combination".to_owned());
    }
    Ok(Needs {
        proposals,
        unavailable,
    })
}

/// Removes from `features` those candidates without which the module passes. Where it does not pass
/// without all of them, the candidates are halved: each look validates the whole module, and most
/// modules need one or two of forty.
fn shed(
    features: &mut WasmFeatures,
    candidates: &[WasmFeatures],
    passes: &impl Fn(WasmFeatures) -> bool,
) {
    let without = candidates.iter().fold(*features, |all, one| all - *one);
    if without == *features {
        return;
    }
    if passes(without) {
        *features = without;
        return;
    }
    if candidates.len() > 1 {
        let (first, second) = candidates.split_at(candidates.len() / 2);
        shed(features, first, passes);
        shed(features, second, passes);
    }
}

/// Returns the name of a proposal as people know it.
fn told(name: &str) -> String {
    let name = name.to_ascii_lowercase().replace('_', "-");
    match name.strip_prefix("cm-") {
        Some(part) => format!("component-model-{part}"),
        None => name,
    }
}

/// Builds the refusal for a module that needs proposals which are off and could be on.
pub(in crate::sandbox) fn not_enabled(names: &[String]) -> Refusal {
    let sentence = "the module needs WebAssembly proposals that are off here and that policy.features turns on";
    Refusal::listing(Reason::FeatureNotEnabled, sentence, "feature", names)
        .at_field("module")
        .with("rule", "policy.features")
}

/// Builds the refusal for a module that needs what no setting turns on.
pub(in crate::sandbox) fn unavailable(names: &[String]) -> Refusal {
    let advice = |name: &String| {
        let known = UNAVAILABLE.iter().find(|(known, _)| known == name);
        known.map(|(_, advice)| *advice)
    };
    let sentence = match names.iter().find_map(advice) {
        Some(advice) => format!(
            "the module needs what this daemon does not have, whatever its settings ({advice})"
        ),
        None => "the module needs what this daemon does not have, whatever its settings".to_owned(),
    };
    Refusal::listing(Reason::FeatureNotEnabled, &sentence, "feature", names).at_field("module")
}

/// Builds the refusal for bytes that are not a valid module. `offset` says where, as far as that is
/// known.
pub(in crate::sandbox) fn invalid(message: &str, offset: Option<usize>) -> Refusal {
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
    refusal.at_field("module")
}
