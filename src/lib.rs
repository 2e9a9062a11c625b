//! Ringfence runs untrusted WebAssembly for other programs, under hard limits, and reports exactly
//! what happened.
//!
//! A run passes through the modules of this crate in the order below and never turns back:
//!
//! 1. [`auth`] decides which tenant calls. [`api`] decodes the request into a
//!    [`RunSpec`](model::request::RunSpec), whose [`limits`](model::limits) the
//!    [`policy`](model::policy) grants.
//! 2. [`run`] compiles the module if it is not ready, and takes a slot or refuses the run.
//! 3. [`sandbox`], the only module that knows wasmtime, creates a fresh store and executes the
//!    guest on its own threads.
//! 4. The output goes into the run's [`event_log`], followed by the
//!    [`outcome`](model::outcome). The caller, and any viewer, reads both there.
//!
//! What keeps a guest from its first instruction is a [`refusal`](model::refusal); what it does
//! from then on is data. `docs/architecture.md` describes this path in full, the invariants, and
//! what is deliberately absent.

pub mod admin;
pub mod api;
pub mod app;
pub mod archive;
pub mod auth;
#[doc(hidden)]
pub mod bench;
pub mod cli;
pub mod config;
pub mod event_log;
#[doc(hidden)]
pub mod fuzz;
pub mod hardening;
mod heap;
pub mod host_limit;
pub mod language;
mod library;
pub mod metrics;
pub mod model;
pub mod otlp;
pub mod process_limits;
pub mod run;
pub mod sandbox;
pub mod signals;
pub mod store;
mod sync;
pub mod telemetry;
pub mod trust_store;
