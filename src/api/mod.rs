//! The gRPC edge: decode, call `run`, encode. Wire types stop here.

mod answer;
mod auth;
mod client_tls;
pub(crate) mod codec;
pub(crate) mod decode;
mod delivery;
pub(crate) mod encode;
mod frames;
pub(crate) mod fuzz;
mod inflight;
mod input_calls;
mod intake;
mod interact;
mod line_budget;
mod listen;
mod message_cap;
mod modules;
mod refusal_log;
mod runs;
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

pub use auth::Authentication;
pub(crate) use client_tls::{ClientTls, ClientTlsStream, TrustedAuthorities};
pub use delivery::Deliveries;
pub use input_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
pub use intake::{Intake, IntakeSettings};
pub use listen::{Address, BindError, Bound, ListenSettings, TlsSettings, bind, pair};
pub use modules::ModuleApi;
pub use refusal_log::RefusalLog;
pub use runs::RunApi;
pub use service::{Phase, SandboxApi};
pub use taking::TakingPace;
