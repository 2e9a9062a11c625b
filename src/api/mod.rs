//! The gRPC edge of the daemon: it decodes requests, calls `run`, and encodes the answers. No wire
//! type goes further than this module.

mod auth;
mod call_deadline;
mod client_stream;
mod client_streaming_calls;
mod client_tls;
pub(crate) mod codec;
pub(crate) mod decode;
mod dispatch;
pub(crate) mod encode;
pub(crate) mod fuzz;
mod health;
mod http_gate;
mod interact;
mod listen;
mod log_rate_limiter;
mod message_cap;
mod metered_body;
mod methods;
mod modules;
mod reflection;
mod refusal_log;
mod request_body;
mod request_limits;
mod response_body;
mod response_budget;
mod response_data_rate;
mod response_watchdog;
mod run_event_stream;
mod run_fast_path;
mod runs;
mod sandbox;
mod serve;
mod start;
mod status;

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

pub use auth::Authentication;
pub use client_streaming_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
pub(crate) use client_tls::{ClientTls, ClientTlsStream, TrustedAuthorities};
pub use dispatch::CallDispatcher;
pub use health::HealthApi;
pub use http_gate::HttpGate;
pub use listen::{
    Address, BindError, BoundListeners, EventLoops, ListenSettings, TlsReloader, TlsSettings, bind,
    socketpair,
};
pub use modules::ModuleApi;
pub use reflection::add_reflection;
pub use refusal_log::RefusalLog;
pub use request_limits::{RequestLimitSettings, RequestLimits};
pub use response_data_rate::MinResponseDataRate;
pub use response_watchdog::ResponseWatchdog;
pub use runs::RunApi;
pub use sandbox::{DaemonPhase, SandboxApi};
pub use serve::{KeepAlive, Server, ServerSettings};
