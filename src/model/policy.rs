//! Decides what a run may reach: WASI, the clock, host functions, addresses, and directories of the
//! host, each by the grants of the operator's policy. It also has the ceilings on what runs use.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::limits::Ceilings;
use super::refusal::{Refusal, quote};
use super::request::{Mount, RunSpec};

/// The operator's policy for the runs of one tenant.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Defaults and ceilings of the limits of a run.
    pub ceilings: Ceilings,
    /// Whether runs that do not say get WASI; false refuses it to all.
    pub wasi: bool,
    /// Whether runs that do not say get the real clock; false refuses it to all.
    pub clock: bool,
    /// The most open files, directories, sockets and streams of files of a run.
    pub max_handles: u32,
    /// The most files in memory that a run begins with.
    pub max_files: u32,
    /// The most bytes of these files together.
    pub max_file_bytes: u64,
    /// The most files that a run returns.
    pub max_collect_files: u32,
    /// The most bytes of the files that a run returns, together.
    pub max_collect_bytes: u64,
    /// The most bytes of standard input in a request.
    pub max_stdin: u64,
    /// The most bytes of the text of a program.
    pub max_code: u64,
    /// The most sessions that it may have at once.
    pub max_sessions: u32,
    /// The most bytes of arguments, terminators included.
    pub max_args: u64,
    /// The most bytes of environment, terminators included.
    pub max_env: u64,
    /// The most bytes of a module, as received.
    pub max_module: u64,
    /// What runs may reach when they ask for it.
    pub grants: Grants,
}

/// Grants of what runs may reach: host functions, directories, addresses, WebAssembly proposals.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    /// Host functions that may be imported, as "module.name".
    pub host_functions: Vec<String>,
    /// Directories that may be mounted, with all below them.
    pub mounts: Vec<MountGrant>,
    /// Addresses that sockets may connect to.
    pub network: Vec<NetworkGrant>,
    /// WebAssembly proposals that modules may need beyond those that are always on.
    pub features: BTreeSet<String>,
    /// Languages in which programs may be executed, by name; `None` means all.
    pub languages: Option<BTreeSet<String>>,
}

impl Grants {
    /// Reports whether programs in the language of this name may be executed.
    pub fn allows_language(&self, name: &str) -> bool {
        self.languages
            .as_ref()
            .is_none_or(|names| names.contains(name))
    }
}

/// A directory that may be mounted.
#[derive(Clone, Debug)]
pub struct MountGrant {
    /// The directory on the host: an absolute path without "." or "..".
    pub host: PathBuf,
    /// Whether it may be mounted writable.
    pub writable: bool,
}

/// Addresses that sockets may connect to.
#[derive(Clone, Debug)]
pub struct NetworkGrant {
    /// A block of IP addresses.
    pub host: IpNet,
    /// Ports that sockets may connect to; an empty list means all.
    pub ports: Vec<u16>,
}

impl NetworkGrant {
    /// Reports whether the grant covers `addr`.
    pub fn covers(&self, addr: SocketAddr) -> bool {
        // An IPv4-mapped IPv6 address is judged as the IPv4 address that it reaches.
        self.host.contains(&addr.ip().to_canonical())
            && (self.ports.is_empty() || self.ports.contains(&addr.port()))
    }
}

impl Policy {
    /// Decides whether a run has WASI, and whether it has the real clock. What the caller does not
    /// say is as the policy says.
    ///
    /// # Errors
    /// `POLICY_DENIED` where the caller asks for what the policy refuses to all.
    pub fn grant_wasi_and_clock(
        &self,
        wasi: Option<bool>,
        clock: Option<bool>,
    ) -> Result<(bool, bool), Refusal> {
        if wasi == Some(true) && !self.wasi {
            let (field, setting) = ("spec.security.enable_wasi", "policy.wasi");
            return Err(Refusal::denied(field, setting, "WASI is not granted"));
        }
        if clock == Some(true) && !self.clock {
            let (field, setting) = ("spec.security.enable_clock", "policy.clock");
            return Err(Refusal::denied(
                field,
                setting,
                "the real clock is not granted",
            ));
        }
        Ok((wasi.unwrap_or(self.wasi), clock.unwrap_or(self.clock)))
    }

    /// Decides whether a run may have what it asks for: each host function, of those that are
    /// `offered` at all, the network, and each mount, by its name.
    ///
    /// # Errors
    /// `POLICY_DENIED`, naming the rule; `SPEC_INVALID` for a host function that is not offered.
    pub fn authorize(&self, spec: &RunSpec, offered: &[&str]) -> Result<(), Refusal> {
        const FIELD: &str = "spec.security.allowed_host_functions";
        let grants = &self.grants;
        for name in &spec.host_functions {
            if !offered.contains(&name.as_str()) {
                let (name, offered) = (quote(name), offered.join(", "));
                let message = format!("\"{name}\" is not offered; there are: {offered}");
                return Err(Refusal::invalid(FIELD, message));
            }
            if !grants.host_functions.contains(name) {
                let message = format!("{name} is not granted");
                return Err(Refusal::denied(FIELD, "policy.host_functions", message));
            }
        }
        if spec.network && grants.network.is_empty() {
            return Err(Refusal::denied(
                "spec.security.enable_network",
                "policy.network",
                "no address is granted",
            ));
        }
        spec.mounts
            .iter()
            .try_for_each(|mount| MountGrant::covering(grants.mounts.iter(), mount).map(|_| ()))
    }
}

impl MountGrant {
    /// Decides whether a mount is granted, by its name only: nothing outside of the grants is ever
    /// looked at. Returns the position of the innermost grant that the mount is under.
    ///
    /// # Errors
    /// `POLICY_DENIED`, the same for everything that no grant covers.
    pub fn covering<'a>(
        grants: impl Iterator<Item = &'a Self>,
        mount: &Mount,
    ) -> Result<usize, Refusal> {
        let under = grants
            .enumerate()
            .filter(|(_, grant)| mount.host.starts_with(&grant.host));
        let innermost =
            under.max_by_key(|(_, grant)| (grant.host.as_os_str().len(), grant.writable));
        match innermost {
            None => Err(Self::not_granted(mount)),
            Some((_, grant)) if !grant.writable && !mount.read_only => {
                Err(Self::only_reading(mount, "only reading is granted here"))
            }
            Some((position, _)) => Ok(position),
        }
    }

    /// Builds the refusal of a mount that no grant covers.
    pub fn not_granted(mount: &Mount) -> Refusal {
        let field = format!("spec.mounts[{}].host_path", mount.index);
        Refusal::denied(field, "policy.mounts", "is not granted")
    }

    /// Builds the refusal of a writable mount where only reading is granted.
    pub fn only_reading(mount: &Mount, message: &str) -> Refusal {
        let field = format!("spec.mounts[{}].read_only", mount.index);
        Refusal::denied(field, "policy.mounts", message)
    }
}
