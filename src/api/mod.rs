//! The gRPC edge of the daemon: it decodes requests, calls `run`, and encodes the answers. No wire
//! type goes further than this module.

mod archived_line;
mod archived_output;
mod archived_runs;
mod browser_answers;
mod call_counters;
mod client_stream;
mod client_streaming_calls;
mod client_tls;
pub(crate) mod codec;
pub(crate) mod decode;
mod decode_execution;
mod decode_files;
mod decode_runs;
mod decode_stats;
mod dispatch;
pub(crate) mod encode;
mod encode_stats;
mod execution;
pub(crate) mod fuzz;
mod grpc_web;
mod health;
mod interact;
mod layers;
mod listen;
mod methods;
mod modules;
mod origin_guard;
mod reflection;
mod run_event_stream;
mod run_fast_path;
mod run_lookup;
mod runs;
mod sandbox;
mod serve;
mod start;
mod stats;
mod status;
mod trace_parent;
mod web_gate;
mod web_server;

/// The generated API, `ringfence.v1`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("ringfence.v1");

    /// The encoded file descriptors, which reflection serves.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The generated interface of gRPC's health protocol, `grpc.health.v1`.
#[expect(
    missing_docs,
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod health_proto {
    tonic::include_proto!("grpc.health.v1");
}

pub use self::archived_runs::encode_ended;
pub use self::call_counters::CallCounters;
pub use self::client_streaming_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
pub(crate) use self::client_tls::{ClientTls, ClientTlsStream, TrustedAuthorities};
pub use self::dispatch::{CallDispatcher, CallService};
pub use self::execution::ExecutionApi;
pub use self::grpc_web::{GrpcWeb, is_grpc_web};
pub use self::health::HealthApi;
pub use self::layers::auth::Authentication;
pub use self::layers::http_gate::{HttpGate, OfferedCalls};
pub use self::layers::refusal_log::RefusalLog;
pub use self::layers::request_limits::{RequestLimitSettings, RequestLimits};
pub use self::layers::response_data_rate::MinResponseDataRate;
pub use self::layers::response_watchdog::ResponseWatchdog;
pub use self::listen::{
    Address, BindError, BoundListeners, ConnectionCounters, ConnectionTotals, EventLoops,
    ListenSettings, Protocols, ServerTlsError, TlsReloader, TlsSettings, bind, socketpair,
};
pub use self::modules::ModuleApi;
pub use self::origin_guard::{LocalAddress, OriginGuard, OriginGuardSettings};
pub use self::reflection::add_reflection;
pub use self::runs::RunApi;
pub use self::sandbox::{DaemonPhase, SandboxApi};
pub use self::serve::{KeepAlive, Server, ServerSettings};
pub use self::stats::StatsApi;
pub use self::web_gate::WebGate;
pub use self::web_server::{WebServerSettings, serve_web};
