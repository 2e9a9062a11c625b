//! The table of methods: what each takes, what it answers, who may call it, and who looks at its
//! deadline.
//!
//! The build script generates `ApiMethod` from the descriptors, so a method without a row here does
//! not compile. Neither does a message without a row of `messages!`, since the codec asks for one.

use super::layers::message_cap::MessageCap;
use super::layers::metered_body::{INPUT_MESSAGE, RequestKind};
use super::layers::response_budget::ResponseKind;
use super::proto;

include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// The most bytes of one chunk of an upload.
pub(super) const MAX_UPLOAD_CHUNK: usize = 1 << 20;
/// The bytes that a message may have besides the module, or the part of one, that it carries.
const LOAD_SLACK: u64 = 64 << 10;
/// The most bytes of a message of an upload, which carries one chunk.
const MAX_UPLOAD_MESSAGE: u64 = MAX_UPLOAD_CHUNK as u64 + LOAD_SLACK;
/// The most bytes of a question about runs, whose selector has at most 32 labels of 256 bytes, or
/// about their figures.
const MAX_QUESTION: u64 = 64 << 10;
/// The most bytes of a call that deletes runs, which may name 1,000 ids of 99 bytes.
const MAX_DELETION: u64 = 128 << 10;
/// The most bytes of the first message of an interaction. A larger module has to be loaded before.
const MAX_INTERACT_START: u64 = 1 << 20;
/// The most bytes of a question about health, which may be open to everybody.
const MAX_HEALTH: u64 = 1 << 10;
/// The most bytes of a message to a service that is not ours, which is reflection.
const MAX_FOREIGN: u64 = 64 << 10;

/// The message caps that the configuration sets.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConfiguredCaps {
    /// The most bytes of a message of most methods, which `server.max_message` sets.
    pub(super) message: u64,
    /// The most bytes of a module, which `compile.max_module` sets.
    pub(super) module: u64,
}

/// The rule that gives the cap on the messages of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CapRule {
    /// The cap that `server.max_message` sets.
    Message,
    /// The cap that `compile.max_module` sets, plus room for the other fields.
    Module,
    /// A cap in bytes that no setting changes, with a hint at what a caller with a larger message
    /// can do.
    Fixed(u64, &'static str),
}

impl CapRule {
    /// Returns the cap under the present configuration.
    pub(super) fn resolve(self, caps: ConfiguredCaps) -> MessageCap {
        match self {
            Self::Message => MessageCap::set(
                caps.message,
                "server.max_message",
                "server.max_message; a larger module is loaded before, and run by its digest",
            ),
            Self::Module => MessageCap::set(
                caps.module.saturating_add(LOAD_SLACK),
                "compile.max_module",
                "compile.max_module and 64 KiB for the rest",
            ),
            Self::Fixed(bytes, hint) => MessageCap::fixed(bytes, hint),
        }
    }
}

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Audience {
    /// A tenant, which sees and changes only what is its own.
    Tenant,
    /// Everybody if `auth.open_health` says so, and the daemon's own user on a unix socket.
    Probe,
}

/// Who handles the deadline of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeadlineRule {
    /// The gate, which answers that the deadline has passed.
    Gate,
    /// The method itself, which has more to do than say so: a run is recorded, and goes on if it is
    /// detached.
    Method,
}

/// Whether a method changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It answers a question.
    Reads,
    /// It starts, ends, stores or deletes something.
    Changes,
}

/// The properties of one method that the layers around it act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Contract {
    /// How the request is framed and charged.
    pub(super) request: RequestKind,
    /// How large a message of the request may be.
    pub(super) cap: CapRule,
    /// How the response is delivered and charged.
    pub(super) response: ResponseKind,
    /// Who handles the call's deadline.
    pub(super) deadline: DeadlineRule,
    /// Who may make the call.
    pub(super) audience: Audience,
    /// Whether the call changes anything.
    pub(super) effect: Effect,
}

impl Contract {
    /// The contract of a method with one request message, one response message, and nothing
    /// special.
    const PLAIN: Self = Self {
        request: RequestKind::Unary,
        cap: CapRule::Message,
        response: ResponseKind::Unary,
        deadline: DeadlineRule::Gate,
        audience: Audience::Tenant,
        effect: Effect::Changes,
    };

    /// The contract of a question about health, whose answer nobody is charged for.
    const HEALTH: Self = Self {
        request: RequestKind::Health,
        cap: CapRule::Fixed(MAX_HEALTH, ""),
        response: ResponseKind::Health,
        audience: Audience::Probe,
        effect: Effect::Reads,
        ..Self::PLAIN
    };

    /// The contract of a question about runs or their figures.
    const QUESTION: Self = Self {
        cap: CapRule::Fixed(MAX_QUESTION, ""),
        effect: Effect::Reads,
        ..Self::PLAIN
    };

    /// The contract of a method of `ModuleService`, which may wait for a store.
    const LIBRARY: Self = Self {
        deadline: DeadlineRule::Method,
        ..Self::PLAIN
    };

    /// The contract of reflection, which answers as often as it is asked.
    const FOREIGN: Self = Self {
        request: RequestKind::Foreign,
        cap: CapRule::Fixed(MAX_FOREIGN, ""),
        response: ResponseKind::Streaming,
        effect: Effect::Reads,
        ..Self::PLAIN
    };

    /// Returns the contract of the method at a path, even if no service has a method there.
    pub(super) fn at(path: &str) -> Self {
        match ApiMethod::at(path) {
            Some(method) => method.contract(),
            None if path.starts_with("/ringfence.v1.") => Self::PLAIN,
            None => Self::FOREIGN,
        }
    }
}

impl ApiMethod {
    /// Returns the contract of the method.
    pub(super) const fn contract(self) -> Contract {
        match self {
            Self::SandboxRun | Self::ExecutionExecute => Contract {
                response: ResponseKind::Run,
                deadline: DeadlineRule::Method,
                ..Contract::PLAIN
            },
            Self::SandboxRunStream | Self::ExecutionExecuteStream => Contract {
                response: ResponseKind::RunStream,
                deadline: DeadlineRule::Method,
                ..Contract::PLAIN
            },
            Self::SandboxLoadModule => Contract {
                cap: CapRule::Module,
                deadline: DeadlineRule::Method,
                ..Contract::PLAIN
            },
            Self::RunInteract => Contract {
                request: RequestKind::Interact,
                cap: CapRule::Fixed(
                    MAX_INTERACT_START,
                    "a larger module is loaded before, and run by its digest",
                ),
                response: ResponseKind::RunStream,
                deadline: DeadlineRule::Method,
                ..Contract::PLAIN
            },
            Self::RunAttachRun | Self::RunWatchRuns | Self::StatsWatchStats => Contract {
                response: ResponseKind::Streaming,
                ..Contract::QUESTION
            },
            Self::RunCancelRun | Self::RunCancelRuns => Contract {
                deadline: DeadlineRule::Method,
                effect: Effect::Changes,
                ..Contract::QUESTION
            },
            Self::RunDeleteRuns => Contract {
                cap: CapRule::Fixed(MAX_DELETION, "a call names 1,000 runs at the most"),
                deadline: DeadlineRule::Method,
                ..Contract::PLAIN
            },
            Self::RunGetRun
            | Self::RunListRuns
            | Self::StatsGetStats
            | Self::ExecutionListLanguages
            | Self::ExecutionListSessions => Contract::QUESTION,
            Self::ExecutionCloseSession => Contract {
                effect: Effect::Changes,
                ..Contract::QUESTION
            },
            Self::RunSendInput => Contract {
                cap: CapRule::Fixed(INPUT_MESSAGE, "a piece of input has 64 KiB"),
                ..Contract::PLAIN
            },
            Self::ModuleUploadModule => Contract {
                request: RequestKind::Upload,
                cap: CapRule::Fixed(MAX_UPLOAD_MESSAGE, "a chunk has 1 MiB"),
                ..Contract::LIBRARY
            },
            Self::ModuleListModules | Self::ModuleGetModule => Contract {
                effect: Effect::Reads,
                ..Contract::LIBRARY
            },
            Self::ModuleDeleteModule => Contract::LIBRARY,
            Self::SandboxHealth | Self::HealthCheck | Self::HealthList | Self::HealthWatch => {
                Contract::HEALTH
            }
        }
    }
}

/// How the fields and entries of a message are counted before it is decoded. Each entry takes far
/// more memory than its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryRule {
    /// They are not counted: the message has no repeated field, or comes from a daemon that its
    /// client trusts.
    Uncounted,
    /// Its own entries are counted and charged, and so are those of the messages that the path
    /// leads to, which has the numbers of the fields to follow at each level.
    Charged(&'static [&'static [u32]]),
    /// Its entries are counted in the same way, but only a few are allowed. They are used up as
    /// they arrive, and not charged.
    Few(&'static [&'static [u32]]),
}

/// A message of the API that the codec can decode.
pub(crate) trait ApiMessage: prost::Message + Default + 'static {
    /// How the message's entries are counted.
    const ENTRIES: EntryRule;
}

macro_rules! messages {
    ($($rule:expr => $($message:ty),+;)+) => {
        $($(impl ApiMessage for $message {
            const ENTRIES: EntryRule = $rule;
        })+)+

        /// Every message with its rule.
        #[cfg(test)]
        const RULES: &[(&str, EntryRule)] = &[$($((stringify!($message), $rule)),+),+];
    };
}

// Field 1 is the spec; field 10 of a spec is its security. An interaction starts with a spec in
// field 1 or with a program in field 6.
messages! {
    EntryRule::Charged(&[&[1], &[10]]) => proto::RunRequest, proto::RunStreamRequest;
    EntryRule::Charged(&[&[1, 6], &[10]]) => proto::InteractRequest;
    // Field 1 is the spec, which has its repeated fields itself.
    EntryRule::Charged(&[&[1]]) => proto::ExecuteRequest, proto::ExecuteStreamRequest;
    EntryRule::Charged(&[]) =>
        proto::LoadModuleRequest, proto::ListModulesRequest, proto::ListRunsRequest,
        proto::WatchRunsRequest, proto::CancelRunsRequest, proto::DeleteRunsRequest;
    EntryRule::Few(&[&[1]]) => proto::UploadModuleRequest;
    // Requests without a repeated field.
    EntryRule::Uncounted =>
        proto::HealthRequest, proto::GetModuleRequest, proto::DeleteModuleRequest,
        proto::GetRunRequest, proto::CancelRunRequest, proto::AttachRunRequest,
        proto::SendInputRequest, proto::ListLanguagesRequest, proto::ListSessionsRequest,
        proto::CloseSessionRequest,
        proto::GetStatsRequest, proto::WatchStatsRequest,
        super::health_proto::HealthCheckRequest, super::health_proto::HealthListRequest;
    // Responses, which a client decodes.
    EntryRule::Uncounted =>
        proto::RunResponse, proto::StreamEvent, proto::LoadModuleResponse, proto::HealthResponse,
        proto::UploadModuleResponse, proto::ListModulesResponse, proto::GetModuleResponse,
        proto::DeleteModuleResponse, proto::ListRunsResponse, proto::WatchRunsResponse,
        proto::GetRunResponse, proto::CancelRunResponse, proto::CancelRunsResponse,
        proto::DeleteRunsResponse,
        proto::SendInputResponse, proto::ExecuteResponse, proto::ListLanguagesResponse,
        proto::ListSessionsResponse, proto::CloseSessionResponse,
        proto::GetStatsResponse, proto::WatchStatsResponse,
        super::health_proto::HealthCheckResponse, super::health_proto::HealthListResponse;
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use prost_types::FileDescriptorSet;
    use prost_types::field_descriptor_proto::Label;

    use super::{
        ApiMethod, Audience, CapRule, Contract, EntryRule, RULES, RequestKind, ResponseKind,
    };

    fn descriptors() -> FileDescriptorSet {
        FileDescriptorSet::decode(crate::api::proto::DESCRIPTORS).unwrap()
    }

    #[test]
    fn every_request_with_a_repeated_field_is_counted() {
        let rule = |name: &str| {
            RULES
                .iter()
                .find(|(it, _)| it.ends_with(&format!("::{name}")))
        };
        let mut counted = 0;
        for file in descriptors().file {
            for method in file.service.iter().flat_map(|service| &service.method) {
                let name = method.input_type().rsplit('.').next().unwrap();
                let message = file.message_type.iter().find(|it| it.name() == name);
                // A request that another file declares has its fields there, and is rare.
                let Some(message) = message else { continue };
                let repeats = message.field.iter().any(|it| it.label() == Label::Repeated);
                let (_, rule) = rule(name).unwrap();
                assert!(!repeats || *rule != EntryRule::Uncounted, "{name}");
                counted += usize::from(repeats);
            }
        }
        assert!(counted >= 3, "{counted}");
    }

    #[test]
    fn the_answers_of_each_method_are_given_as_the_api_declares_them() {
        let mut methods = 0;
        for file in descriptors().file {
            for service in &file.service {
                for method in &service.method {
                    let (package, service) = (file.package(), service.name());
                    let path = format!("/{package}.{service}/{}", method.name());
                    let kind = Contract::at(&path).response;
                    methods += 1;
                    if kind == ResponseKind::Health {
                        continue;
                    }
                    assert_eq!(kind.is_unary(), !method.server_streaming(), "{path}");
                }
            }
        }
        assert_eq!(methods, ApiMethod::ALL.len());
    }

    #[test]
    fn every_method_is_at_its_path() {
        for (method, path) in ApiMethod::ALL {
            assert_eq!(ApiMethod::at(path), Some(method), "{path}");
            assert_eq!(Contract::at(path), method.contract(), "{path}");
            assert_eq!(ApiMethod::at(&format!("{path}x")), None);
        }
    }

    #[test]
    fn what_nobody_is_charged_for_is_small_and_only_health_is_open() {
        for (method, path) in ApiMethod::ALL {
            let contract = method.contract();
            let is_health = contract.audience == Audience::Probe;
            assert_eq!(
                is_health,
                path.ends_with("/Health") || path.contains(".Health/")
            );
            assert_eq!(is_health, contract.request == RequestKind::Health, "{path}");
            assert_eq!(
                is_health,
                contract.response == ResponseKind::Health,
                "{path}"
            );
            if is_health {
                assert_eq!(contract.cap, CapRule::Fixed(1 << 10, ""), "{path}");
            }
        }
    }
}
