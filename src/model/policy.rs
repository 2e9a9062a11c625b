//! The operator's policy: ceilings on what runs use, and grants of what they may reach.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::limits::Ceilings;

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
    /// The most bytes of standard input in a request.
    pub max_stdin: u64,
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
