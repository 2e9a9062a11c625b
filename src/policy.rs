//! What the operator allows: ceilings on what runs use, grants of what they reach.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::config::{Access, Config};
use crate::limits::Ceilings;

/// The operator's policy.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Defaults and ceilings of limits.
    pub ceilings: Ceilings,
    /// WASI for runs that do not say; false refuses it to all.
    pub wasi: bool,
    /// The real clock for runs that do not say; false refuses it to all.
    pub clock: bool,
    /// The most open files, directories, sockets and streams of files of a run.
    pub max_handles: u32,
    /// The most bytes of standard input.
    pub max_stdin: u64,
    /// The most bytes of arguments, terminators included.
    pub max_args: u64,
    /// The most bytes of environment, terminators included.
    pub max_env: u64,
    /// The most bytes of a module.
    pub max_module: u64,
    /// What runs may reach.
    pub grants: Grants,
}

/// What runs may reach when they ask for it.
#[derive(Clone, Debug, Default)]
pub struct Grants {
    /// Host functions, as "module.name".
    pub host_functions: Vec<String>,
    /// Directories that may be mounted, with all below them.
    pub mounts: Vec<MountGrant>,
    /// Where sockets may connect to.
    pub network: Vec<NetworkGrant>,
    /// WebAssembly proposals that modules may need beyond those that are always on.
    pub features: BTreeSet<String>,
}

/// A directory that may be mounted.
#[derive(Clone, Debug)]
pub struct MountGrant {
    /// Absolute, plain.
    pub host: PathBuf,
    /// Whether it may be mounted writable.
    pub writable: bool,
}

/// Addresses that sockets may connect to.
#[derive(Clone, Debug)]
pub struct NetworkGrant {
    /// A block of addresses.
    pub host: IpNet,
    /// Ports; none means all.
    pub ports: Vec<u16>,
}

impl NetworkGrant {
    /// Whether it covers `addr`.
    pub fn covers(&self, addr: SocketAddr) -> bool {
        // An IPv4 address that came in its IPv6 clothes is judged as the IPv4 address that it reaches.
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
                        writable: mount.access == Access::Write,
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
