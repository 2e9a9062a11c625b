//! The command `ringfence token`, which creates a bearer token.

use std::process::ExitCode;

use clap::Args;
use rustix::rand::{GetRandomFlags, getrandom};

use super::{Failure, print, print_to_stderr};
use crate::model::request::Digest;

/// Number of random bytes in a token.
const BYTES: usize = 32;

/// Make a bearer token for a tenant.
#[derive(Debug, Args)]
pub(super) struct TokenCommand {
    /// The tenant for which the token is
    tenant: String,
}

impl TokenCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let mut random = [0; BYTES];
        let filled = getrandom(&mut random[..], GetRandomFlags::empty());
        let filled = filled.map_err(|error| {
            Failure::new(format!("cannot get random bytes from this host: {error}"))
        })?;
        if filled != BYTES {
            return Err(Failure::new(
                "cannot get enough random bytes from this host",
            ));
        }
        let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let token = format!("rf_{digits}");
        let hash = Digest::of(token.as_bytes());
        print_to_stderr(&format!(
            "for the daemon's auth.tokens_file: {} {hash}",
            self.tenant
        ));
        print(format!("{token}\n").as_bytes())
    }
}
