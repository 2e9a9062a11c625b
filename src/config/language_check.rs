//! Checks of `[languages]`, of `[profiles]` and of the languages that a policy grants.

use std::collections::BTreeSet;

use super::problems::{Checker, millis};
use super::schema::{Config, LanguageConfig, LanguageProtocol, Size, TenantDefaultsConfig};
use crate::model::limits::MIN_STACK;
use crate::model::request::Digest;

/// The name that grants all languages.
pub(super) const ALL_LANGUAGES: &str = "*";
/// The languages that are always there.
const BUILT_IN: [&str; 2] = ["wasm", "wat"];
/// The profile in which nothing may be reached.
const HARDENED: &str = "hardened";
/// The profile of programs whose caller names none.
const STANDARD: &str = "standard";
/// The most bytes of the name of a language, an alias, a version or a profile.
const MAX_NAME: usize = 64;

/// Checks the languages and the profiles.
pub(super) fn check(c: &mut Checker, config: &Config) {
    for (name, language) in &config.languages {
        let own = language.aliases.iter().chain([name]);
        for called in own.filter(|it| BUILT_IN.contains(&it.as_str())) {
            let allowed = "another name, because every daemon has this language";
            c.require(false, format!("languages.{name}"), called, allowed);
        }
        let key = |part: &str| format!("languages.{name}.{part}");
        name_of(c, format!("languages.{name}"), name);
        for alias in &language.aliases {
            name_of(c, key("aliases"), alias);
        }
        self::language(c, language, &key);
        limits(c, config, &language.limits, &key("limits"));
    }
    names_are_unique(c, config);
    c.require(
        config.profiles.contains_key(STANDARD),
        "profiles",
        "the profiles without \"standard\"",
        "\"standard\" and any others, since it is the profile of programs whose caller names none",
    );
    for (name, profile) in &config.profiles {
        name_of(c, format!("profiles.{name}"), name);
        let reached = [
            ("clock", profile.clock),
            ("network", profile.network),
            ("host_functions", profile.host_functions),
        ];
        for (part, reaches) in reached {
            c.require(
                name != HARDENED || !reaches,
                format!("profiles.{HARDENED}.{part}"),
                reaches,
                "false, because nothing may be reached in this profile",
            );
        }
        limits(
            c,
            config,
            &profile.limits,
            &format!("profiles.{name}.limits"),
        );
    }
}

/// Checks that the languages which the policy grants exist.
pub(super) fn check_grants(c: &mut Checker, config: &Config) {
    for name in &config.policy.languages {
        let there = config.languages.keys().map(String::as_str);
        let known = there.chain(BUILT_IN).chain([ALL_LANGUAGES]);
        let known: Vec<&str> = known.collect();
        c.require(
            known.contains(&name.as_str()),
            "policy.languages",
            name,
            format!("of {}", known.join(", ")),
        );
    }
}

/// Checks how a language's interpreter is found and given its program.
fn language(c: &mut Checker, language: &LanguageConfig, key: &impl Fn(&str) -> String) {
    c.require(
        !language.module.as_os_str().is_empty(),
        key("module"),
        "\"\"",
        "the path of a module, or a reference (\"oci://...\")",
    );
    if !language.digest.is_empty() {
        let digest = Digest::parse("digest", &language.digest);
        c.require(
            digest.is_ok(),
            key("digest"),
            &language.digest,
            "\"sha256:\" and 64 hexadecimal digits",
        );
    }
    let takes_code = language.args.iter().any(|arg| arg == "{code}");
    let takes_file = language.args.iter().any(|arg| arg == "{file}");
    let args = format!("{:?}", language.args);
    match language.protocol {
        LanguageProtocol::Runner => c.require(
            language.args.is_empty(),
            key("args"),
            args,
            "empty, because a runner is given its program by its protocol",
        ),
        LanguageProtocol::File => c.require(
            takes_file && !takes_code,
            key("args"),
            args,
            "a command line with \"{file}\" where the path of the program stands, and without \"{code}\"",
        ),
        LanguageProtocol::Argument => c.require(
            takes_code && !takes_file,
            key("args"),
            args,
            "a command line with \"{code}\" where the program stands, and without \"{file}\"",
        ),
        LanguageProtocol::Stdin => c.require(
            !takes_code && !takes_file && !language.args.is_empty(),
            key("args"),
            args,
            "a command line without \"{code}\" and \"{file}\", because the program is the standard input",
        ),
    }
    env(c, &language.env, &key("env"));
    let is_directory = [".", "..", "out", "tmp"].contains(&language.file.as_str());
    let plain = !language.file.contains(['/', '\0'])
        && !language.file.chars().any(char::is_control)
        && !is_directory
        && language.file.len() <= MAX_NAME;
    c.require(
        plain,
        key("file"),
        &language.file,
        format!("a file name of at most {MAX_NAME} bytes, without \"/\""),
    );
    let is_version = |c: char| c.is_ascii_alphanumeric() || "-._+".contains(c);
    c.require(
        language.version.len() <= MAX_NAME && language.version.chars().all(is_version),
        key("version"),
        &language.version,
        format!("at most {MAX_NAME} letters, digits, '-', '.', '_' and '+'"),
    );
}

/// Checks the environment of an interpreter.
fn env(c: &mut Checker, env: &[String], key: &str) {
    let mut names = BTreeSet::new();
    for entry in env {
        let name = entry.split_once('=').map_or("", |(name, _)| name);
        c.require(!name.is_empty(), key, entry, "KEY=value");
        let is_new = names.insert(name);
        c.require(is_new || name.is_empty(), key, entry, "each variable once");
    }
}

/// Checks limits against the ceilings of the policy that all tenants start from.
fn limits(c: &mut Checker, config: &Config, limits: &TenantDefaultsConfig, key: &str) {
    let policy = &config.policy;
    let TenantDefaultsConfig {
        memory_pages,
        timeout,
        stack_size,
        output_limit,
        fuel_limit,
    } = limits;
    if let Some(pages) = memory_pages {
        let most = (policy.max_memory_pages, "policy.max_memory_pages");
        c.up_to(&format!("{key}.memory_pages"), *pages, 1, most);
    }
    if let Some(timeout) = timeout {
        let most = (policy.max_timeout, "policy.max_timeout");
        c.up_to(&format!("{key}.timeout"), *timeout, millis(1), most);
    }
    if let Some(stack) = stack_size {
        let most = (policy.max_stack_size, "policy.max_stack_size");
        let least = Size(u64::from(MIN_STACK));
        c.up_to(&format!("{key}.stack_size"), *stack, least, most);
    }
    if let Some(output) = output_limit {
        let most = (policy.max_output, "policy.max_output");
        let least = Size(1);
        c.up_to(&format!("{key}.output_limit"), *output, least, most);
    }
    if let Some(fuel) = fuel_limit {
        let most = match policy.max_fuel {
            0 => u64::MAX,
            most => most,
        };
        c.up_to(
            &format!("{key}.fuel_limit"),
            *fuel,
            1,
            (most, "policy.max_fuel"),
        );
    }
}

/// Checks that a name can stand in a request and in an error.
fn name_of(c: &mut Checker, key: String, name: &str) {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._+#".contains(c);
    c.require(
        !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain),
        key,
        name,
        format!("at most {MAX_NAME} lower-case letters, digits, '-', '.', '_', '+' and '#'"),
    );
}

/// Checks that no two languages of one version have a name in common.
fn names_are_unique(c: &mut Checker, config: &Config) {
    let mut seen = std::collections::BTreeMap::new();
    for (name, language) in &config.languages {
        for called in language.aliases.iter().chain([name]) {
            let before = seen.insert((called.clone(), language.version.clone()), name.clone());
            let version = &language.version;
            c.require(
                before.as_ref().is_none_or(|before| before == name),
                format!("languages.{name}"),
                format!("the name \"{called}\" with the version \"{version}\""),
                format!(
                    "another name or version than those of languages.{}",
                    before.clone().unwrap_or_default()
                ),
            );
        }
    }
}
