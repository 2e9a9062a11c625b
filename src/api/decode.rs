//! Decodes requests from the wire, above all a run's [`RunSpec`]. Every field is either taken or
//! refused; none is ignored.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost_types::Duration as ProtoDuration;
use tonic::Request;

use super::layers::call_deadline::CallTiming;
use super::{decode_files, proto};
use crate::library::ModuleMeta;
use crate::model::limits::{OutputMode, OutputPolicy, RequestedLimits};
use crate::model::policy::Policy;
use crate::model::refusal::{Refusal, quote};
use crate::model::request::{
    self, Digest, GuestPath, Labels, MAX_LABEL_BYTES, ModuleRef, Mount, RunId, RunSpec,
    WORKING_DIR_FIELD,
};
use crate::run::{RequestCharge, not_started};
use crate::sandbox::MAX_STDIN_CHUNK;

/// Decodes a run's spec and grants its limits.
///
/// # Errors
/// `SPEC_INVALID`, `LIMIT_ABOVE_MAXIMUM`, `MODULE_TOO_LARGE` or `POLICY_DENIED`, with the field's
/// name.
pub(crate) fn spec(
    spec: Option<proto::RunSpec>,
    policy: &Policy,
    delivery: OutputMode,
) -> Result<RunSpec, Refusal> {
    let spec = spec.ok_or_else(|| Refusal::invalid("spec", "is missing"))?;
    let proto::RunSpec {
        module,
        entry_point,
        args,
        env,
        stdin,
        open_stdin,
        working_dir,
        mounts,
        resources,
        security,
        timeout,
        labels,
        detach,
        idempotency_key,
        files,
        collect,
        keep_output,
    } = spec;
    let GrantedCapabilities {
        wasi,
        host_functions,
        network,
        clock,
    } = grant_capabilities(security.unwrap_or_default(), policy)?;
    consistent(RunSpec {
        module: module_ref(module, policy)?,
        entry_point: match entry_point {
            name if name.is_empty() => None,
            name => Some(request::entry_point("spec.entry_point", name)?),
        },
        args: request::args("spec.args", args, policy.max_args)?,
        env: request::env("spec.env", &env, policy.max_env)?,
        stdin: request::stdin("spec.stdin", stdin, policy.max_stdin)?,
        stdin_preface: 0,
        open_stdin,
        working_dir: match working_dir.as_str() {
            "" => None,
            dir => Some(GuestPath::parse(WORKING_DIR_FIELD, dir)?),
        },
        mounts: mount_list(mounts)?,
        files: decode_files::file_spec(files, &collect, &[], policy)?,
        limits: policy.ceilings.grant(
            &requested(resources.unwrap_or_default(), timeout)?,
            delivery,
        )?,
        wasi,
        host_functions: host_functions.into_iter().collect(),
        network,
        clock,
        labels: Labels::new("spec.labels", labels)?,
        detach,
        idempotency_key: request::idempotency_key("spec.idempotency_key", idempotency_key)?,
        session: None,
        keep_output: keep_output.unwrap_or(true),
    })
}

/// Checks the spec of an interaction, whose input arrives while the run goes on.
///
/// # Errors
/// `SPEC_INVALID` for a run without WASI, or with an idempotency key.
pub(super) fn interactive(spec: &RunSpec) -> Result<(), Refusal> {
    if !spec.wasi {
        return Err(Refusal::invalid(
            "spec.security.enable_wasi",
            "is false, and live input needs WASI",
        ));
    }
    if spec.idempotency_key.is_some() {
        return Err(Refusal::invalid(
            "spec.idempotency_key",
            "cannot go with live input, which only one caller can give",
        ));
    }
    Ok(())
}

/// Input that is sent to a run in a call of its own.
pub(super) struct SentInput {
    /// The run that reads it.
    pub(super) run: RunId,
    /// How many bytes were sent to the run before these.
    pub(super) offset: u64,
    /// The bytes themselves, at most [`MAX_STDIN_CHUNK`].
    pub(super) data: Bytes,
    /// Whether the input ends after them.
    pub(super) eof: bool,
}

/// Decodes input that is sent to a run.
///
/// # Errors
/// `SPEC_INVALID` for an id that is none; `LIMIT_ABOVE_MAXIMUM` for too many bytes.
pub(super) fn sent_input(message: proto::SendInputRequest) -> Result<SentInput, Refusal> {
    let proto::SendInputRequest {
        run_id,
        offset,
        data,
        eof,
    } = message;
    let run = RunId::parse("run_id", &run_id)?;
    if data.len() > MAX_STDIN_CHUNK {
        return Err(Refusal::above("data", data.len(), MAX_STDIN_CHUNK));
    }
    Ok(SentInput {
        run,
        offset,
        data,
        eof,
    })
}

/// The source of a module that is to be stored.
pub(super) enum LoadSource {
    /// The request contains the module.
    Wasm(Bytes),
    /// A registry has the module; this is the reference to it.
    Oci(String),
}

/// Decodes a request to store a module.
///
/// # Errors
/// `SPEC_INVALID` or `MODULE_TOO_LARGE`.
pub(super) fn load(
    message: proto::LoadModuleRequest,
    policy: &Policy,
) -> Result<(LoadSource, ModuleMeta), Refusal> {
    use proto::load_module_request::Source;
    let proto::LoadModuleRequest {
        source,
        name,
        metered,
        labels,
    } = message;
    let from = match source {
        Some(Source::Wasm(wasm)) => {
            LoadSource::Wasm(request::module_bytes("wasm", wasm, policy.max_module)?)
        }
        Some(Source::Oci(reference)) => LoadSource::Oci(reference),
        None => {
            return Err(Refusal::invalid(
                "source",
                "is missing; allowed are: wasm, oci",
            ));
        }
    };
    let about = ModuleMeta {
        name: module_name("name", name)?,
        metered,
        labels: Labels::new("labels", labels)?,
    };
    Ok((from, about))
}

/// Decodes the start of an upload: the module's metadata, and the digest that it must have, if one
/// is given.
///
/// # Errors
/// `SPEC_INVALID` for a bad name, label or digest.
pub(super) fn upload(start: proto::UploadStart) -> Result<(ModuleMeta, Option<Digest>), Refusal> {
    let proto::UploadStart {
        name,
        metered,
        labels,
        digest,
    } = start;
    let expected = match digest.as_str() {
        "" => None,
        digest => Some(Digest::parse("start.digest", digest)?),
    };
    let about = ModuleMeta {
        name: module_name("start.name", name)?,
        metered,
        labels: Labels::new("start.labels", labels)?,
    };
    Ok((about, expected))
}

/// Checks the name of a module, which is the value of `field`.
fn module_name(field: &str, name: String) -> Result<String, Refusal> {
    if name.len() > MAX_LABEL_BYTES {
        let asked = name.len();
        let message = format!("is of {asked} bytes; allowed are {MAX_LABEL_BYTES}");
        return Err(Refusal::invalid(field, message)
            .with("asked", asked)
            .with("allowed", MAX_LABEL_BYTES));
    }
    if name.chars().any(char::is_control) {
        return Err(Refusal::invalid(field, "has a control character"));
    }
    Ok(name)
}

/// A request for one page of the listing of modules.
pub(super) struct ModulePage {
    /// The most modules on the page.
    pub(super) size: usize,
    /// The page begins after this digest; `None` for the first page.
    pub(super) after: Option<Digest>,
    /// Only modules that have all of these labels are listed.
    pub(super) labels: BTreeMap<String, String>,
}

/// Decodes which page of the listing of modules is asked for.
///
/// # Errors
/// `SPEC_INVALID` for a token that no earlier page gave; `LIMIT_ABOVE_MAXIMUM` for the page size.
pub(super) fn page(message: proto::ListModulesRequest) -> Result<ModulePage, Refusal> {
    let proto::ListModulesRequest {
        page_size,
        page_token,
        labels,
    } = message;
    let after = match page_token.as_str() {
        "" => None,
        token => Some(Digest::from_hex(token).ok_or_else(|| {
            let message = format!("\"{}\" is not one that a page before gave", quote(token));
            Refusal::invalid("page_token", message)
        })?),
    };
    Ok(ModulePage {
        size: self::page_size(page_size)?,
        after,
        labels: labels.into_iter().collect(),
    })
}

/// Returns the size of the page that is asked for; 0 asks for the default.
///
/// # Errors
/// `LIMIT_ABOVE_MAXIMUM`.
pub(super) fn page_size(asked: u32) -> Result<usize, Refusal> {
    const DEFAULT: usize = 100;
    const MOST: usize = 1000;
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => Ok(DEFAULT),
        size if size <= MOST => Ok(size),
        _ => Err(Refusal::above("page_size", asked, MOST)),
    }
}

/// Returns by when the answer has to be on its way, so that it reaches the caller before the caller
/// gives up. Returns `None` for a caller that did not say how long it waits.
///
/// # Errors
/// `MALFORMED_REQUEST` if the header is no valid timeout; `NOT_STARTED` if that time has passed
/// already, however fast the rest would be.
pub(super) fn response_deadline<T>(request: &Request<T>) -> Result<Option<Instant>, Refusal> {
    let arrived = request.extensions().get::<CallTiming>();
    arrived.map_or(Ok(None), unexpired_response_deadline)
}

/// Returns when the headers of a request arrived, or now where that was not noted.
pub(super) fn arrival<T>(request: &Request<T>) -> Instant {
    let arrived = request.extensions().get::<CallTiming>();
    arrived.map_or_else(Instant::now, |arrived| arrived.at)
}

/// Returns what [`response_deadline`] does, for a call that arrived as `arrived` says.
///
/// # Errors
/// The errors of [`response_deadline`].
pub(super) fn unexpired_response_deadline(
    arrived: &CallTiming,
) -> Result<Option<Instant>, Refusal> {
    let deadline = arrived.response_deadline()?;
    if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(not_started());
    }
    Ok(deadline)
}

fn module_ref(
    module: Option<proto::run_spec::Module>,
    policy: &Policy,
) -> Result<ModuleRef, Refusal> {
    use proto::run_spec::Module;
    match module {
        Some(Module::Wasm(wasm)) => Ok(ModuleRef::Inline(request::module_bytes(
            "spec.wasm",
            wasm,
            policy.max_module,
        )?)),
        Some(Module::Digest(digest)) => {
            Ok(ModuleRef::Loaded(Digest::parse("spec.digest", &digest)?))
        }
        None => Err(Refusal::invalid(
            "spec.module",
            "is missing; allowed are: wasm, digest",
        )),
    }
}

fn mount_list(mounts: Vec<proto::Mount>) -> Result<Vec<Mount>, Refusal> {
    request::mounts(
        "spec.mounts",
        mounts.into_iter().map(|mount| {
            let proto::Mount {
                host_path,
                guest_path,
                read_only,
            } = mount;
            (host_path, guest_path, read_only)
        }),
    )
}

/// Decodes the limits that are asked for.
///
/// # Errors
/// `SPEC_INVALID` for an unknown output policy or a malformed time.
pub(super) fn requested(
    resources: proto::Resources,
    timeout: Option<ProtoDuration>,
) -> Result<RequestedLimits, Refusal> {
    let proto::Resources {
        memory_pages,
        fuel_limit,
        stack_size,
        output_limit,
        output_policy,
    } = resources;
    // On the wire, zero means the default. Inside the daemon, `None` does.
    Ok(RequestedLimits {
        memory_pages: memory_pages.filter(|n| *n > 0),
        fuel: fuel_limit.filter(|n| *n > 0),
        stack: stack_size.filter(|n| *n > 0),
        output: output_limit.filter(|n| *n > 0),
        output_policy: match proto::OutputPolicy::try_from(output_policy) {
            Ok(proto::OutputPolicy::Unspecified | proto::OutputPolicy::Stop) => OutputPolicy::Stop,
            Ok(proto::OutputPolicy::Truncate) => OutputPolicy::Truncate,
            Err(_) => {
                return Err(Refusal::invalid(
                    "spec.resources.output_policy",
                    format!("{output_policy} is unknown; allowed are: STOP (1), TRUNCATE (2)"),
                ));
            }
        },
        timeout: match timeout {
            Some(timeout) => Some(duration("spec.timeout", timeout)?).filter(|t| !t.is_zero()),
            None => None,
        },
    })
}

/// Decodes a duration, which is the value of `field`.
///
/// # Errors
/// `SPEC_INVALID` for one that is negative or malformed.
pub(super) fn duration(field: &str, duration: ProtoDuration) -> Result<Duration, Refusal> {
    let ProtoDuration { seconds, nanos } = duration;
    let told = format!("{seconds} s and {nanos} ns");
    if seconds < 0 || nanos < 0 {
        return Err(Refusal::invalid(field, format!("{told} is negative")).with("asked", told));
    }
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => {
            let message = format!("{told} is no duration; nanos are from 0 to 999999999");
            Err(Refusal::invalid(field, message).with("asked", told))
        }
    }
}

/// What a run may use besides its own memory, as its caller asked and the policy grants.
struct GrantedCapabilities {
    wasi: bool,
    host_functions: Vec<String>,
    network: bool,
    clock: bool,
}

/// Decodes which capabilities are asked for, and refuses what the policy does not grant.
fn grant_capabilities(
    security: proto::Security,
    policy: &Policy,
) -> Result<GrantedCapabilities, Refusal> {
    let proto::Security {
        enable_wasi,
        allowed_host_functions,
        enable_network,
        enable_clock,
    } = security;
    let (wasi, clock) = policy.grant_wasi_and_clock(enable_wasi, enable_clock)?;
    Ok(GrantedCapabilities {
        wasi,
        host_functions: allowed_host_functions,
        network: enable_network,
        clock,
    })
}

/// Checks what the fields of a spec must be together, and returns the spec.
///
/// # Errors
/// `SPEC_INVALID`, naming a field that another rules out.
pub(super) fn consistent(spec: RunSpec) -> Result<RunSpec, Refusal> {
    needs_wasi(&spec)?;
    request::check_path_conflicts(&spec)?;
    Ok(spec)
}

/// Refuses environment variables, input, open input, mounts, files and a working directory for a
/// run without WASI: nobody could hand them to the guest.
///
/// # Errors
/// `SPEC_INVALID`, naming the first of them.
fn needs_wasi(spec: &RunSpec) -> Result<(), Refusal> {
    if spec.wasi {
        return Ok(());
    }
    let files = spec.files.as_ref();
    let given = [
        ("spec.env", !spec.env.is_empty()),
        ("spec.stdin", !spec.stdin.is_empty()),
        ("spec.open_stdin", spec.open_stdin),
        ("spec.mounts", !spec.mounts.is_empty()),
        (WORKING_DIR_FIELD, spec.working_dir.is_some()),
        (
            "spec.files",
            files.is_some_and(|files| !files.given.is_empty()),
        ),
        ("spec.collect", files.is_some()),
    ];
    match given.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => Err(Refusal::invalid(
            field,
            "needs WASI, which security.enable_wasi turns off",
        )),
        None => Ok(()),
    }
}

/// Ties a request's charge to `bytes`, so that the charge is held for as long as any of them are.
pub(super) fn hold_charge_with(bytes: Bytes, charge: Option<&RequestCharge>) -> Bytes {
    struct ChargedBytes {
        bytes: Bytes,
        _charge: RequestCharge,
    }
    impl AsRef<[u8]> for ChargedBytes {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }
    match charge {
        Some(charge) if !bytes.is_empty() => Bytes::from_owner(ChargedBytes {
            bytes,
            _charge: charge.clone(),
        }),
        _ => bytes,
    }
}
