//! The policy of a tenant, as the configuration grants it.

use super::language_check::ALL_LANGUAGES;
use super::schema::{Config, MountAccess, Size};
use crate::model::limits::Ceilings;
use crate::model::policy::{Grants, MountGrant, NetworkGrant, Policy};

impl From<&Config> for Policy {
    fn from(config: &Config) -> Self {
        let (defaults, policy) = (&config.defaults, &config.policy);
        // The configuration is checked: a stack is at most 16 MiB.
        let stack = |size: Size| u32::try_from(size.0).unwrap_or(u32::MAX);
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
            max_files: policy.max_files,
            max_file_bytes: policy.max_file_bytes.0,
            max_collect_files: policy.max_collect_files,
            max_collect_bytes: policy.max_collect_bytes.0,
            max_stdin: policy.max_stdin.0,
            max_code: policy.max_code.0,
            max_sessions: policy.max_sessions,
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
                languages: match policy.languages.iter().any(|name| name == ALL_LANGUAGES) {
                    true => None,
                    false => Some(policy.languages.iter().cloned().collect()),
                },
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
