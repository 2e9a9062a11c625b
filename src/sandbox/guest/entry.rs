//! Resolves the entry point of a run: which function it calls, and with which parameters.

use std::borrow::Cow;

use crate::model::outcome::Value;
use crate::model::refusal::{Reason, Refusal, list, quote};
use crate::sandbox::modules::inspection::{ExportLookup, Inspection, Signature, ValueType};

/// The export that a core module's command starts with.
const START: &str = "_start";
/// The export that a reactor needs called before anything else.
const INITIALIZE: &str = "_initialize";
/// The program name of a module that has no name.
const NAMELESS: &str = "main";

/// The entry point of a run, checked against its module.
#[derive(Debug)]
pub struct EntryPoint {
    /// The name of the exported function; empty and unused for a component.
    pub name: Cow<'static, str>,
    /// Whether `_initialize` is called first.
    pub initialize: bool,
    /// The parameters of the call, parsed from the spec's args.
    pub params: Vec<Value>,
    /// The number of results of the function.
    pub results: usize,
}

impl EntryPoint {
    /// Resolves the function `asked`, or else the module's command. `args` are parsed as its
    /// parameters if it has any.
    ///
    /// # Errors
    /// Returns `ENTRY_POINT_NOT_FOUND` where there is no such function, and `ENTRY_POINT_SIGNATURE`
    /// where its type or the arguments do not fit.
    pub fn resolve(
        inspection: &Inspection,
        asked: Option<&str>,
        args: &[String],
    ) -> Result<Self, Refusal> {
        if inspection.description.component {
            return Self::component(inspection, asked);
        }
        let name = asked.map_or(Cow::Borrowed(START), |asked| Cow::Owned(asked.to_owned()));
        let signature = match inspection.export(&name) {
            ExportLookup::Function(signature) => signature,
            ExportLookup::Other => return Err(no_function(inspection, &name, "is not a function")),
            ExportLookup::Missing => {
                let why = "is not exported by the module";
                return Err(no_function(inspection, &name, why));
            }
        };
        check_results(&name, signature)?;
        let initialize = match inspection.export(INITIALIZE) {
            ExportLookup::Function(signature) if name != START && name != INITIALIZE => {
                if !signature.params.is_empty() || !signature.results.is_empty() {
                    return Err(mismatch(INITIALIZE, signature, "takes and returns nothing"));
                }
                true
            }
            ExportLookup::Function(_) | ExportLookup::Other | ExportLookup::Missing => false,
        };
        Ok(Self {
            params: parameters(&name, signature, args)?,
            name,
            initialize,
            results: signature.results.len(),
        })
    }

    fn component(inspection: &Inspection, asked: Option<&str>) -> Result<Self, Refusal> {
        if let Some(asked) = asked {
            return Err(not_found(
                asked,
                "cannot be called: a component is run by its wasi:cli/run only",
            ));
        }
        if !inspection.runs {
            return Err(not_found(
                "wasi:cli/run",
                "is not exported by the component",
            ));
        }
        Ok(Self {
            name: Cow::Borrowed(""),
            initialize: false,
            params: Vec::new(),
            results: 0,
        })
    }

    /// Reports whether the function takes and returns nothing, as a command does.
    pub fn is_plain(&self) -> bool {
        self.params.is_empty() && self.results == 0
    }

    /// Returns the command line that the guest sees: `args`, unless those were the function's
    /// parameters. It always has a program name, since many programs read that without a check:
    /// where there are no arguments, it is the first of `names` that is not empty.
    pub fn command_line<'a>(&self, args: &'a [String], names: [&str; 2]) -> Cow<'a, [String]> {
        if self.params.is_empty() && !args.is_empty() {
            return Cow::Borrowed(args);
        }
        let name = names.into_iter().find(|name| !name.is_empty());
        // A command line cannot contain a NUL, and a guest's own name may be anything.
        let name = name.unwrap_or(NAMELESS).replace('\0', "");
        Cow::Owned(vec![name])
    }
}

fn not_found(name: &str, why: &str) -> Refusal {
    let name = quote(name);
    Refusal::new(
        Reason::EntryPointNotFound,
        format!("entry point \"{name}\" {why}"),
    )
    .at_field("spec.entry_point")
    .with("asked", name)
}

/// Returns the refusal for a name that no exported function has; it lists the names that they have.
fn no_function(inspection: &Inspection, name: &str, why: &str) -> Refusal {
    let exports = inspection.description.exports.iter();
    let functions = exports.filter(|it| it.kind == "func").map(|it| &it.name);
    let functions = list(functions);
    if functions.is_empty() {
        return not_found(name, &format!("{why}, which exports no function"));
    }
    let why = format!("{why}; allowed are: {functions}");
    not_found(name, &why).with("allowed", functions)
}

fn mismatch(name: &str, signature: &Signature, allowed: &str) -> Refusal {
    let (name, signature) = (quote(name), quote(&signature.to_string()));
    Refusal::new(
        Reason::EntryPointSignature,
        format!("entry point \"{name}\" has the type {signature}; allowed is one that {allowed}"),
    )
    .at_field("spec.entry_point")
    .with("signature", signature)
}

fn is_number(ty: &ValueType) -> bool {
    !matches!(ty, ValueType::Other(_))
}

fn check_results(name: &str, signature: &Signature) -> Result<(), Refusal> {
    if signature
        .results
        .iter()
        .chain(&signature.params)
        .all(is_number)
    {
        Ok(())
    } else {
        Err(mismatch(name, signature, "has only i32, i64, f32 and f64"))
    }
}

fn parameters(name: &str, signature: &Signature, args: &[String]) -> Result<Vec<Value>, Refusal> {
    let types = &signature.params;
    if types.is_empty() {
        return Ok(Vec::new());
    }
    if types.len() != args.len() {
        let message = format!(
            "entry point \"{}\" takes {} parameters, {} were given",
            quote(name),
            types.len(),
            args.len()
        );
        return Err(Refusal::new(Reason::EntryPointSignature, message)
            .at_field("spec.args")
            .with("asked", args.len())
            .with("allowed", types.len()));
    }
    types
        .iter()
        .zip(args)
        .enumerate()
        .map(|(i, (ty, arg))| {
            number(ty, arg).ok_or_else(|| {
                // The message does not quote the argument: arguments may be secrets, and refusals
                // are remembered.
                let message = format!("argument {i} is not an {ty}, as text");
                Refusal::new(Reason::EntryPointSignature, message)
                    .at_field(format!("spec.args[{i}]"))
                    .with("allowed", ty)
            })
        })
        .collect()
}

/// Parses a number. Integers may be decimal or 0x hexadecimal, signed or unsigned.
fn number(ty: &ValueType, text: &str) -> Option<Value> {
    match ty {
        ValueType::I32 => integer(text, 32)
            .and_then(|bits| u32::try_from(bits).ok())
            .map(|bits| Value::I32(bits.cast_signed())),
        ValueType::I64 => integer(text, 64).map(|bits| Value::I64(bits.cast_signed())),
        ValueType::F32 => text.parse().ok().map(Value::F32),
        ValueType::F64 => text.parse().ok().map(Value::F64),
        ValueType::Other(_) => None,
    }
}

/// Parses an integer that fits in `bits`, signed or unsigned, and returns its two's complement.
fn integer(text: &str, bits: u32) -> Option<u64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let magnitude = match digits
        .strip_prefix("0x")
        .or_else(|| digits.strip_prefix("0X"))
    {
        // `from_str_radix` would accept another sign.
        Some(hex) if hex.starts_with(['+', '-']) => return None,
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None if digits.starts_with(['+', '-']) => return None,
        None => digits.parse().ok()?,
    };
    let max = if bits == 64 {
        u64::MAX
    } else {
        (1 << bits) - 1
    };
    if negative {
        (magnitude <= 1 << (bits - 1)).then(|| magnitude.wrapping_neg() & max)
    } else {
        (magnitude <= max).then_some(magnitude)
    }
}
