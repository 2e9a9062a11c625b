//! Checks of the keys in `[policy]` and `[defaults]`, which say what runs may ask for and reach,
//! for all tenants or for one.

use super::problems::{Checker, KnownNames, Problem, millis, minutes};
use super::schema::{Config, Size};
use super::{language_check, mount_check};
use crate::model::limits::{MIN_STACK, StackClass, share_of};

/// Upper bound of `policy.max_args` and of `policy.max_env`: each entry takes at least a byte, and
/// a message may have 400,000 entries.
const MAX_LIST: Size = Size(192 << 10);

/// Bytes set aside for what an answer has besides output, which is more than it can have.
const ANSWER_REST: u64 = 64 << 10;

/// Returns what is wrong with the policy and the defaults of one tenant.
pub(super) fn tenant_problems(config: &Config, known: &KnownNames) -> Vec<Problem> {
    let mut c = Checker::default();
    check(&mut c, config, known);
    c.0
}

/// Checks the limits and the grants.
pub(super) fn check(c: &mut Checker, config: &Config, known: &KnownNames) {
    limits(c, config);
    grants(c, config, known);
}

fn executions(c: &mut Checker, config: &Config) {
    let policy = &config.policy;
    c.between("policy.max_code", policy.max_code, Size(1), Size(8 << 20));
    c.between("policy.max_sessions", policy.max_sessions, 0, 10_000);
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
        format!("one of {}", classes.map(|size| size.to_string()).join(", ")),
    );
    c.up_to(
        "defaults.stack_size",
        defaults.stack_size,
        Size(u64::from(MIN_STACK)),
        (policy.max_stack_size, "policy.max_stack_size"),
    );
    output(c, config);
    executions(c, config);
    // The lower bound has room for as many mounts as a run may have; the upper bound limits the
    // memory of a handle table.
    c.between("policy.max_handles", policy.max_handles, 64, 65_536);
    c.between("policy.max_files", policy.max_files, 0, 100_000);
    let most = Size(1 << 29);
    c.between(
        "policy.max_file_bytes",
        policy.max_file_bytes,
        Size(0),
        most,
    );
    // Each returned file takes some more than its contents and its path in an answer.
    c.between(
        "policy.max_collect_files",
        policy.max_collect_files,
        0,
        10_000,
    );
    c.between("policy.max_stdin", policy.max_stdin, Size(0), most);
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

fn output(c: &mut Checker, config: &Config) {
    let (defaults, policy) = (&config.defaults, &config.policy);
    // The bound is on what one answer may carry: two streams, in a message that a client must hold
    // as a whole.
    c.between(
        "policy.max_output",
        policy.max_output,
        Size(1),
        Size(1 << 30),
    );
    // A caller who repeats an idempotency key is given both streams at once, and a reservation for
    // them is never granted in part.
    let answers = config.server.inflight_answer_bytes;
    let share = share_of(answers.0, config.tenants.len() > 1);
    let most = Size(share.saturating_sub(ANSWER_REST) / 2);
    c.require(
        policy.max_collect_bytes <= most,
        "policy.max_collect_bytes",
        policy.max_collect_bytes,
        format!("at most {most}, half of what a tenant's answers may hold of server.inflight_answer_bytes ({answers})"),
    );
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
}

fn grants(c: &mut Checker, config: &Config, known: &KnownNames) {
    c.all_known("policy.features", &config.policy.features, known.features);
    c.all_known(
        "policy.host_functions",
        &config.policy.host_functions,
        known.host_functions,
    );
    language_check::check_grants(c, config);
    mount_check::check(c, config);
}
