//! The vocabulary of the daemon: what every other module may use, and which uses none of them.

pub mod collected;
pub mod guest_limits;
pub mod limits;
pub mod module;
pub mod outcome;
pub mod policy;
pub mod refusal;
pub mod request;
pub mod tenant_id;
pub mod trace_context;
