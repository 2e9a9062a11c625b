//! What runs may ask for and reach: what the keys of the policy and the defaults must satisfy, for all or for one tenant.

use super::check::{Checker, Known, Problem, millis, minutes};
use super::schema::{Config, Size};
use crate::limits::{MIN_STACK, StackClass, share_of};

/// The most that arguments, or environment, may be allowed to take: each of their entries takes a byte at the least, and
/// a message may have 400,000.
const MAX_LIST: Size = Size(192 << 10);

/// What an answer may have besides output, and more than that.
const ANSWER_REST: u64 = 64 << 10;

/// What is wrong with the policy and the defaults, as a tenant has them.
pub(super) fn limits_and_grants(config: &Config, known: &Known) -> Vec<Problem> {
    let mut c = Checker::default();
    check(&mut c, config, known);
    c.0
}

/// Checks both.
pub(super) fn check(c: &mut Checker, config: &Config, known: &Known) {
    limits(c, config);
    grants(c, config, known);
}

fn limits(c: &mut Checker, config: &Config) {
    let (defaults, policy) = (&config.defaults, &config.policy);
    c.between(
        "policy.max_memory_pages",
        policy.max_memory_pages,
        1,
        65_536,
    );
    c.up_to(
        "defaults.memory_pages",
        defaults.memory_pages,
        1,
        (policy.max_memory_pages, "policy.max_memory_pages"),
    );
    c.between(
        "policy.max_timeout",
        policy.max_timeout,
        millis(1),
        minutes(24 * 60),
    );
    c.up_to(
        "defaults.timeout",
        defaults.timeout,
        millis(1),
        (policy.max_timeout, "policy.max_timeout"),
    );
    let classes = StackClass::ALL.map(|class| Size(u64::from(class.bytes())));
    c.require(
        classes.contains(&policy.max_stack_size),
        "policy.max_stack_size",
        policy.max_stack_size,
        classes.map(|size| size.to_string()).join(", "),
    );
    c.up_to(
        "defaults.stack_size",
        defaults.stack_size,
        Size(u64::from(MIN_STACK)),
        (policy.max_stack_size, "policy.max_stack_size"),
    );
    // What one answer may carry: two streams in a message that a client must hold whole.
    c.between(
        "policy.max_output",
        policy.max_output,
        Size(1),
        Size(1 << 30),
    );
    // Who calls again with a key is given both streams at once, and gets no part of a reservation for it.
    let answers = config.server.inflight_answer_bytes;
    let share = share_of(answers.0, config.tenants.len() > 1);
    let most = Size(share.saturating_sub(ANSWER_REST) / 2);
    c.require(
        policy.max_output <= most,
        "policy.max_output",
        policy.max_output,
        format!("at most {most}, half of what a tenant's answers may hold of server.inflight_answer_bytes ({answers})"),
    );
    c.up_to(
        "defaults.output_limit",
        defaults.output_limit,
        Size(1),
        (policy.max_output, "policy.max_output"),
    );
    // The least has room for as many mounts as a run may have; the most bounds what a table of them takes in memory.
    c.between("policy.max_handles", policy.max_handles, 64, 65_536);
    c.between("policy.max_stdin", policy.max_stdin, Size(0), Size(1 << 29));
    c.between("policy.max_args", policy.max_args, Size(0), MAX_LIST);
    c.between("policy.max_env", policy.max_env, Size(0), MAX_LIST);
    let max_fuel = if policy.max_fuel == 0 {
        u64::MAX
    } else {
        policy.max_fuel
    };
    let max_fuel = (max_fuel, "policy.max_fuel");
    c.up_to("defaults.fuel_limit", defaults.fuel_limit, 1, max_fuel);
}

fn grants(c: &mut Checker, config: &Config, known: &Known) {
    c.known("policy.features", &config.policy.features, known.features);
    c.known(
        "policy.host_functions",
        &config.policy.host_functions,
        known.host_functions,
    );
    for (i, mount) in config.policy.mounts.iter().enumerate() {
        let plain = mount.host.is_absolute()
            && mount.host.components().all(|part| {
                matches!(
                    part,
                    std::path::Component::RootDir | std::path::Component::Normal(_)
                )
            });
        c.require(
            plain && mount.host.is_dir(),
            format!("policy.mounts[{i}].host"),
            mount.host.display(),
            "an absolute path without \".\" or \"..\" to a directory that exists",
        );
    }
}
