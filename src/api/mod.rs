//! The gRPC edge: decode, call `run`, encode. Wire types stop here.

mod answer;
mod auth;
mod body;
mod call_deadline;
mod calls;
mod client_tls;
pub(crate) mod codec;
pub(crate) mod decode;
mod delivery;
pub(crate) mod encode;
mod frames;
pub(crate) mod fuzz;
mod health;
mod http_gate;
mod inflight;
mod input_calls;
mod intake;
mod interact;
mod line_budget;
mod listen;
mod message_cap;
mod metered_body;
mod modules;
mod reflection;
mod refusal_log;
mod request_body;
mod run_call;
mod runs;
mod serve;
mod service;
mod start;
mod status;
mod stream;
mod taking;

/// The generated API, `ringfence.v1`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod proto {
    tonic::include_proto!("ringfence.v1");

    /// The descriptors that reflection serves.
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
pub use calls::Calls;
pub(crate) use client_tls::{ClientTls, ClientTlsStream, TrustedAuthorities};
pub use delivery::Deliveries;
pub use health::HealthApi;
pub use http_gate::HttpGate;
pub use input_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
pub use intake::{Intake, IntakeSettings};
pub use listen::{
    Address, BindError, Bound, EventLoops, ListenSettings, TlsFiles, TlsSettings, bind, pair,
};
pub use modules::ModuleApi;
pub use reflection::add_reflection;
pub use refusal_log::RefusalLog;
pub use runs::RunApi;
pub use serve::{KeepAlive, Server, ServerSettings};
pub use service::{Phase, SandboxApi};
pub use taking::TakingPace;
