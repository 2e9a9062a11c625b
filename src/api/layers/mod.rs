//! What stands between a connection and the methods: the layers that each call passes, in and out.

pub(super) mod auth;
pub(super) mod call_deadline;
pub(super) mod http_gate;
pub(super) mod log_rate_limiter;
pub(super) mod message_cap;
pub(super) mod metered_body;
pub(super) mod refusal_log;
pub(super) mod request_body;
pub(super) mod request_limits;
pub(super) mod response_body;
pub(super) mod response_budget;
pub(super) mod response_data_rate;
pub(super) mod response_watchdog;
mod run_response;
