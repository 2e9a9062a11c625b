//! The operator's policy: ceilings on what runs use, and grants of what they may reach.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::limits::Ceilings;
use crate::config::{Config, MountAccess};

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

impl From<&Config> for Policy {
    fn from(config: &Config) -> Self {
        let (defaults, policy) = (&config.defaults, &config.policy);
        // The configuration is checked: a stack is at most 16 MiB.
        let stack = |size: crate::config::Size| u32::try_from(size.0).unwrap_or(u32::MAX);
        let unless_zero = |n: u64| (n > 0).then_some(n);
        Self {
            ceilings: Ceilings {
                default_memory_pages: defaults.memory_pages,
                max_memory_pages: policy.max_memory_pages,
                default_timeout: defaults.timeout.0,
                max_timeout: policy.max_timeout.0,
                default_stack: stack(defaults.stack_size),
                max_stack: stack(policy.max_stack_size),
                default_output: defaults.output_limit.0,
                max_output: policy.max_output.0,
                max_stream_output: unless_zero(policy.max_stream_output.0),
                default_fuel: defaults.fuel_limit,
                max_fuel: unless_zero(policy.max_fuel),
                require_fuel: policy.require_fuel,
            },
            wasi: policy.wasi,
            clock: policy.clock,
            max_handles: policy.max_handles,
            max_stdin: policy.max_stdin.0,
            max_args: policy.max_args.0,
            max_env: policy.max_env.0,
            max_module: config.compile.max_module.0,
            grants: Grants {
                host_functions: policy.host_functions.clone(),
                mounts: policy
                    .mounts
                    .iter()
                    .map(|mount| MountGrant {
                        host: mount.host.clone(),
                        writable: mount.access == MountAccess::Write,
                    })
                    .collect(),
                features: config
                    .engine
                    .features
                    .iter()
                    .chain(&policy.features)
                    .cloned()
                    .collect(),
                network: policy
                    .network
                    .iter()
                    .map(|grant| NetworkGrant {
                        host: grant.host,
                        ports: grant.ports.clone(),
                    })
                    .collect(),
            },
        }
    }
}
