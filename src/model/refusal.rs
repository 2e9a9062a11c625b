//! Why a request was refused: a stable reason, the facts, and a sentence for people.
//!
//! Everything that happens before a guest's first instruction and keeps it from running is a
//! [`Refusal`]. What a guest does after that is data, never a refusal.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most names of a list that a refusal spells out; the rest is a count.
const LISTED: usize = 8;
/// The most bytes of one quoted value, so that an error stays under the 4 KiB that clients accept.
const QUOTED: usize = 120;
/// The most bytes of one quoted name in a list, for the same reason.
const QUOTED_IN_LIST: usize = 56;

/// The reason of a refusal, in terms that programs can rely on. The API documents each;
/// `api::status` maps them to gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// A field is missing, malformed or contradicts another.
    SpecInvalid,
    /// A limit was asked for that is above the operator's ceiling.
    LimitAboveMaximum,
    /// The module has no such export, or it is not a function.
    EntryPointNotFound,
    /// The arguments do not match the entry point's parameters.
    EntryPointSignature,
    /// The request is not the message that the method takes.
    MalformedRequest,
    /// The module is larger than `compile.max_module`.
    ModuleTooLarge,
    /// The bytes are not a WebAssembly module.
    ModuleInvalid,
    /// The module is valid but could not be compiled.
    CompilationFailed,
    /// Compiling the module takes more than `[compile]` allows.
    CompileLimitExceeded,
    /// The module's memories need more than the run may have.
    MemoryBelowModuleMinimum,
    /// The module needs a WebAssembly proposal that the operator has not turned on.
    FeatureNotEnabled,
    /// The module imports something that the run may not have.
    ImportNotAllowed,
    /// The operator's policy does not grant what was asked for.
    PolicyDenied,
    /// There is no such language, or the caller may not use it.
    UnsupportedLanguage,
    /// The bytes are not those of the digest that was expected.
    DigestMismatch,
    /// There is no such module.
    ModuleNotFound,
    /// The run reserves more than could ever be admitted.
    CapacityExceeded,
    /// The caller may not do that.
    Forbidden,
    /// The tenant's quota is used up.
    TenantQuota,
    /// There is no credential, or it is not valid.
    CredentialsInvalid,
    /// Too many requests wait already.
    QueueFull,
    /// No slot came free within `admission.max_wait`.
    WaitExpired,
    /// The message is over the size cap of the method.
    MessageTooLarge,
    /// The module store's budget is used up.
    StoreFull,
    /// The module store cannot be reached, or cannot give back what it took.
    StoreUnavailable,
    /// The archive of ended runs cannot be reached, or refuses this daemon.
    ArchiveUnavailable,
    /// A part of the archive of ended runs is not what was written.
    ArchiveDamaged,
    /// What the daemon needs to judge or serve the request cannot be had now.
    RuntimeUnavailable,
    /// The caller's deadline passed before the run could start.
    NotStarted,
    /// The daemon has no such service.
    ServiceNotFound,
    /// There is no such run, or it is not remembered any more.
    RunNotFound,
    /// The run belongs to another daemon.
    RunElsewhere,
    /// The run was cancelled before its first instruction.
    RunCancelled,
    /// The run has ended, so nothing can be given to it any more.
    RunEnded,
    /// Input was sent for a place beyond what has been sent so far.
    InputGap,
    /// Input was sent for a place where other input was sent before.
    InputConflict,
    /// The run's input is closed, or never was open.
    InputClosed,
    /// The guest has not read enough of its input for more to fit.
    InputFull,
    /// The idempotency key belongs to a run of another spec.
    IdempotencyConflict,
    /// The session executes another program.
    SessionBusy,
    /// There is no such session, or it is gone with its state.
    SessionNotFound,
    /// There are as many sessions as may be, or they hold as much memory.
    SessionLimit,
    /// The daemon is ending.
    ShuttingDown,
    /// The daemon failed; its log says how, under the incident id.
    Internal,
}

impl Reason {
    /// Every reason, in the order in which they are declared.
    pub const ALL: [Self; 44] = [
        Self::SpecInvalid,
        Self::LimitAboveMaximum,
        Self::EntryPointNotFound,
        Self::EntryPointSignature,
        Self::MalformedRequest,
        Self::ModuleTooLarge,
        Self::ModuleInvalid,
        Self::CompilationFailed,
        Self::CompileLimitExceeded,
        Self::MemoryBelowModuleMinimum,
        Self::FeatureNotEnabled,
        Self::ImportNotAllowed,
        Self::PolicyDenied,
        Self::UnsupportedLanguage,
        Self::DigestMismatch,
        Self::ModuleNotFound,
        Self::CapacityExceeded,
        Self::Forbidden,
        Self::TenantQuota,
        Self::CredentialsInvalid,
        Self::QueueFull,
        Self::WaitExpired,
        Self::MessageTooLarge,
        Self::StoreFull,
        Self::StoreUnavailable,
        Self::ArchiveUnavailable,
        Self::ArchiveDamaged,
        Self::RuntimeUnavailable,
        Self::NotStarted,
        Self::ServiceNotFound,
        Self::RunNotFound,
        Self::RunElsewhere,
        Self::RunCancelled,
        Self::RunEnded,
        Self::InputGap,
        Self::InputConflict,
        Self::InputClosed,
        Self::InputFull,
        Self::IdempotencyConflict,
        Self::SessionBusy,
        Self::SessionNotFound,
        Self::SessionLimit,
        Self::ShuttingDown,
        Self::Internal,
    ];

    /// Returns the name of the reason on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SpecInvalid => "SPEC_INVALID",
            Self::LimitAboveMaximum => "LIMIT_ABOVE_MAXIMUM",
            Self::EntryPointNotFound => "ENTRY_POINT_NOT_FOUND",
            Self::EntryPointSignature => "ENTRY_POINT_SIGNATURE",
            Self::MalformedRequest => "MALFORMED_REQUEST",
            Self::ModuleTooLarge => "MODULE_TOO_LARGE",
            Self::ModuleInvalid => "MODULE_INVALID",
            Self::CompilationFailed => "COMPILATION_FAILED",
            Self::CompileLimitExceeded => "COMPILE_LIMIT_EXCEEDED",
            Self::MemoryBelowModuleMinimum => "MEMORY_BELOW_MODULE_MINIMUM",
            Self::FeatureNotEnabled => "FEATURE_NOT_ENABLED",
            Self::ImportNotAllowed => "IMPORT_NOT_ALLOWED",
            Self::PolicyDenied => "POLICY_DENIED",
            Self::UnsupportedLanguage => "UNSUPPORTED_LANGUAGE",
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::ModuleNotFound => "MODULE_NOT_FOUND",
            Self::CapacityExceeded => "CAPACITY_EXCEEDED",
            Self::Forbidden => "FORBIDDEN",
            Self::TenantQuota => "TENANT_QUOTA",
            Self::CredentialsInvalid => "CREDENTIALS_INVALID",
            Self::QueueFull => "QUEUE_FULL",
            Self::WaitExpired => "WAIT_EXPIRED",
            Self::MessageTooLarge => "MESSAGE_TOO_LARGE",
            Self::StoreFull => "STORE_FULL",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::ArchiveUnavailable => "ARCHIVE_UNAVAILABLE",
            Self::ArchiveDamaged => "ARCHIVE_DAMAGED",
            Self::RuntimeUnavailable => "RUNTIME_UNAVAILABLE",
            Self::NotStarted => "NOT_STARTED",
            Self::ServiceNotFound => "SERVICE_NOT_FOUND",
            Self::RunNotFound => "RUN_NOT_FOUND",
            Self::RunElsewhere => "RUN_ELSEWHERE",
            Self::RunCancelled => "RUN_CANCELLED",
            Self::RunEnded => "RUN_ENDED",
            Self::InputGap => "INPUT_GAP",
            Self::InputConflict => "INPUT_CONFLICT",
            Self::InputClosed => "INPUT_CLOSED",
            Self::InputFull => "INPUT_FULL",
            Self::IdempotencyConflict => "IDEMPOTENCY_CONFLICT",
            Self::SessionBusy => "SESSION_BUSY",
            Self::SessionNotFound => "SESSION_NOT_FOUND",
            Self::SessionLimit => "SESSION_LIMIT",
            Self::ShuttingDown => "SHUTTING_DOWN",
            Self::Internal => "INTERNAL",
        }
    }
}

/// A request that was refused, and why. It is serializable, because it can cross to the daemon from
/// a compile child.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal(Box<RefusalDetails>);

#[derive(Clone, Debug, Serialize, Deserialize)]
struct RefusalDetails {
    reason: Reason,
    /// The sentence, without the field where `names_field` is set.
    message: String,
    field: Option<String>,
    /// Whether the sentence begins with the field.
    names_field: bool,
    metadata: Vec<(Cow<'static, str>, String)>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// Creates a refusal for `reason`. `message` tells people what is wrong and what is allowed.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self(Box::new(RefusalDetails {
            reason,
            message: message.into(),
            field: None,
            names_field: false,
            metadata: Vec::new(),
            retry_after: None,
        }))
    }

    /// Creates a refusal for `reason` whose sentence begins with `field`, the field at fault.
    pub fn of_field(reason: Reason, field: impl Into<String>, message: impl Into<String>) -> Self {
        let mut refusal = Self::new(reason, message).at_field(field);
        refusal.0.names_field = true;
        refusal
    }

    /// Refuses a field that is missing, malformed or contradicts another.
    pub fn invalid(field: impl Into<String>, message: impl fmt::Display) -> Self {
        Self::of_field(Reason::SpecInvalid, field, message.to_string())
    }

    /// Refuses a value above `allowed`, a maximum that holds for everybody and that no setting
    /// changes.
    pub fn above(
        field: impl Into<String>,
        asked: impl fmt::Display,
        allowed: impl fmt::Display,
    ) -> Self {
        let message = format!("{asked} is above the maximum of {allowed}");
        Self::of_field(Reason::LimitAboveMaximum, field, message)
            .with("asked", asked)
            .with("allowed", allowed)
    }

    /// Refuses a value above the operator's ceiling, which `setting` sets.
    pub fn above_ceiling(
        field: impl Into<String>,
        setting: &'static str,
        asked: impl fmt::Display,
        allowed: impl fmt::Display,
    ) -> Self {
        let mut refusal = Self::above(field, asked, allowed).with("limit", setting);
        refusal.0.message.push_str(&format!(" ({setting})"));
        refusal
    }

    /// Refuses with `sentence`, followed by the first few of `names`, which are also the fact
    /// `key`.
    pub fn listing(reason: Reason, sentence: &str, key: &'static str, names: &[String]) -> Self {
        let names = list(names);
        Self::new(reason, format!("{sentence}: {names}")).with(key, names)
    }

    /// Refuses what `field` asks for because the operator's policy does not grant it. `rule` is the
    /// policy's key.
    pub fn denied(
        field: impl Into<String>,
        rule: &'static str,
        message: impl fmt::Display,
    ) -> Self {
        let message = format!("{message} (policy rule `{rule}`)");
        Self::of_field(Reason::PolicyDenied, field, message).with("rule", rule)
    }

    /// Reports a failure of the daemon itself. `cause` goes to the log under a fresh incident id;
    /// the caller gets only the id.
    pub fn internal(cause: impl fmt::Display) -> Self {
        let incident = uuid::Uuid::now_v7().simple().to_string();
        tracing::error!(%incident, cause = %printable(&cause.to_string()), "internal failure");
        Self::new(
            Reason::Internal,
            format!("internal failure; the daemon's log has it under incident {incident}"),
        )
        .with("incident", incident)
    }

    /// Sets the field at fault.
    #[must_use]
    pub fn at_field(mut self, field: impl Into<String>) -> Self {
        self.0.field = Some(field.into());
        self
    }

    /// Sets the name that the run's spec has in the message of the caller's method, if the field
    /// at fault is the spec or inside of it.
    #[must_use]
    pub fn with_spec_named(mut self, name: &str) -> Self {
        let field = self.0.field.as_deref();
        if let Some(inside) = field.and_then(|field| field.strip_prefix("spec"))
            && (inside.is_empty() || inside.starts_with('.'))
        {
            self.0.field = Some(format!("{name}{inside}"));
        }
        self
    }

    /// Adds a fact for programs: its key and its value.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        // A list of names is the longest value that a fact may have.
        let most = LISTED * (QUOTED_IN_LIST + 2) + QUOTED;
        let value = shorten(printable(&value.to_string()), most);
        self.0.metadata.push((key.into(), value));
        self
    }

    /// Sets the delay after which a retry may help.
    #[must_use]
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.retry_after = Some(delay);
        self
    }

    /// Returns the stable reason of the refusal.
    pub fn reason(&self) -> Reason {
        self.0.reason
    }

    /// Returns the sentence for people.
    pub fn message(&self) -> Cow<'_, str> {
        match &self.0.field {
            Some(field) if self.0.names_field => format!("{field}: {}", self.0.message).into(),
            Some(_) | None => self.0.message.as_str().into(),
        }
    }

    /// Returns the field at fault; `None` where there is none.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// Returns the facts as keys and values, besides the field.
    pub fn metadata(&self) -> &[(Cow<'static, str>, String)] {
        &self.0.metadata
    }

    /// Returns the delay after which a retry may help; `None` where none is known.
    pub fn retry(&self) -> Option<Duration> {
        self.0.retry_after
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.reason.as_str(), self.message())
    }
}

impl std::error::Error for Refusal {}

/// Lists the first few of `names`, then how many more there are.
pub fn list<I>(names: I) -> String
where
    I: IntoIterator,
    I::Item: fmt::Display,
{
    let mut out = String::new();
    let mut more = 0;
    for (i, name) in names.into_iter().enumerate() {
        if i >= LISTED {
            more += 1;
            continue;
        }
        if i > 0 {
            out.push_str(", ");
        }
        out.push_str(&shorten(printable(&name.to_string()), QUOTED_IN_LIST));
    }
    if more > 0 {
        out.push_str(&format!(" and {more} more"));
    }
    out
}

/// Returns `text` shortened to what one value may take in an error, with control characters
/// escaped.
pub fn quote(text: &str) -> String {
    // Cut before it is escaped: what is quoted may be as long as a message.
    let start = &text[..text.floor_char_boundary(QUOTED + 1)];
    shorten(printable(start), QUOTED)
}

fn shorten(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.push('…');
    }
    text
}

/// Escapes control characters in `text`, so that a guest's names cannot forge a log line or drive a
/// terminal.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        // Besides control characters, these are the bidirectional overrides and line separators
        // that change how a line reads.
        let forges = c.is_control()
            || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        if forges {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
