//! Ringfence runs untrusted WebAssembly for other programs, under hard limits, and reports exactly what happened.
//!
//! A run walks through the modules of this crate in the order below and never turns back:
//!
//! 1. [`auth`] says whose call it is. [`api`] decodes the request into a [`request::RunSpec`] whose [`limits`] are granted by the [`policy`].
//! 2. [`run`] compiles the module where it is not ready, takes a slot or refuses.
//! 3. [`sandbox`], the only one that knows wasmtime, arms a fresh store and executes the guest on its own threads.
//! 4. Output goes into the run's [`log`], and after it the [`outcome`]; the caller, and any viewer, read it there.
//!
//! What keeps a guest from its first instruction is a [`refusal`]; what it does from then on is data.
//! `docs/architecture.md` has the walk in full, the invariants, and what is deliberately absent.

pub mod api;
pub mod app;
pub mod auth;
#[doc(hidden)]
pub mod bench;
pub mod cli;
pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod guest_limits;
pub mod hardening;
mod heap;
pub mod host_limit;
pub mod limits;
pub mod log;
pub mod module;
pub mod outcome;
pub mod policy;
pub mod process_limits;
pub mod refusal;
pub mod request;
pub mod run;
pub mod sandbox;
pub mod signals;
pub mod store;
pub mod telemetry;
