//! The languages of the configuration: their modules are opened when the daemon starts, and
//! compiled while it serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{AppError, failed, settings};
use crate::config::{Config, LanguageConfig, LanguageProtocol, TenantDefaultsConfig};
use crate::language::{
    Catalogue, DEFAULT_PROFILE, ExecutionProfile, Interpreter, Language, Protocol,
};
use crate::model::limits::{Ceilings, OutputPolicy, RequestedLimits, StackClass};
use crate::model::policy::Policy;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::Digest;
use crate::run::{ProvidedModules, Runner};
use crate::sandbox::Variant;
use crate::store::{OCI_SCHEME, ProvidedModule};

/// The name of a program's file where the configuration gives none.
const FILE: &str = "main";
/// How long to wait before a compiler is asked for again, where nobody says.
const RETRY: Duration = Duration::from_secs(1);

/// Opens the modules of all languages, pulls those that are in a registry, and returns the
/// catalogue with them.
///
/// # Errors
/// A module cannot be had, is too large, or is not the one that the configuration names.
pub(super) async fn open(config: &Config) -> Result<(Catalogue, ProvidedModules), AppError> {
    let (puller, spool) = (settings::registries(config), settings::start_spool(config));
    let mut languages = Vec::new();
    let mut modules = Vec::new();
    for (name, language) in &config.languages {
        // The configuration is checked: the digest is one, or is not there.
        let expected = Digest::parse("digest", &language.digest).ok();
        let allowed = config.compile.max_module.0;
        let module = match language.module.to_str() {
            Some(reference) if reference.starts_with(OCI_SCHEME) => {
                ProvidedModule::pull(&puller, &spool, (reference, allowed), expected).await
            }
            Some(_) | None => ProvidedModule::open(&language.module, allowed, expected),
        };
        let module = module
            .map_err(|error| failed("the module of a language")(format!("{name}: {error}")))?;
        languages.push(described(name, language, module.digest()));
        modules.push(module);
    }
    let profiles = config.profiles.iter().map(|(name, profile)| {
        let profile = ExecutionProfile {
            clock: profile.clock,
            network: profile.network,
            host_functions: profile.host_functions,
            limits: limits(&profile.limits),
        };
        (name.clone(), profile)
    });
    let profiles: BTreeMap<_, _> = profiles.collect();
    Ok((
        Catalogue::new(languages, profiles),
        ProvidedModules::new(modules),
    ))
}

/// Translates the configuration of a language whose module has this digest.
fn described(name: &str, language: &LanguageConfig, digest: Digest) -> Language {
    let env = language
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='));
    Language {
        name: name.to_owned(),
        version: language.version.clone(),
        aliases: language.aliases.clone(),
        interpreter: Interpreter::Provided {
            digest,
            protocol: match language.protocol {
                LanguageProtocol::Runner => Protocol::Runner,
                LanguageProtocol::File => Protocol::File,
                LanguageProtocol::Argument => Protocol::Argument,
                LanguageProtocol::Stdin => Protocol::Stdin,
            },
            args: language.args.clone(),
            env: env
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        },
        file: match language.file.as_str() {
            "" => FILE.to_owned(),
            file => file.to_owned(),
        },
        limits: limits(&language.limits),
    }
}

/// Translates limits of which each may be left out.
fn limits(limits: &TenantDefaultsConfig) -> RequestedLimits {
    RequestedLimits {
        memory_pages: limits.memory_pages,
        fuel: limits.fuel_limit,
        // The configuration is checked: a stack is at most 16 MiB.
        stack: limits
            .stack_size
            .map(|size| u32::try_from(size.0).unwrap_or(u32::MAX)),
        output: limits.output_limit.map(|size| size.0),
        output_policy: OutputPolicy::default(),
        timeout: limits.timeout.map(|time| time.0),
    }
}

/// Compiles the interpreters of all languages, one after the other, as programs need them whose
/// callers ask for no limits. It never completes, so that it can go on beside what does.
pub(super) async fn prepare_all(catalogue: &Arc<Catalogue>, runner: &Runner, config: &Config) {
    let ceilings = Policy::from(config).ceilings;
    let standard = config.profiles.get(DEFAULT_PROFILE);
    let standard = standard.map_or_else(RequestedLimits::default, |it| limits(&it.limits));
    for (language, digest) in catalogue.provided() {
        let name = &language.name;
        let asked = Instant::now();
        match prepared(runner, digest, variant(&standard, language, &ceilings)).await {
            Ok(()) => {
                let took = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
                let took = humantime::format_duration(Duration::from_millis(took)).to_string();
                tracing::info!(language = name, took, "language ready");
            }
            // Nothing is wrong with a language that a drain left behind.
            Err(refusal) if refusal.reason() == Reason::ShuttingDown => break,
            Err(refusal) => {
                tracing::error!(language = name, %refusal, "the language cannot be used");
            }
        }
    }
    std::future::pending::<()>().await;
}

/// Compiles an interpreter, and tries again while a compiler is not to be had.
async fn prepared(runner: &Runner, digest: Digest, variant: Variant) -> Result<(), Refusal> {
    loop {
        match runner.prepare_provided(digest, variant).await {
            Err(refusal) if matches!(refusal.reason(), Reason::QueueFull | Reason::WaitExpired) => {
                tokio::time::sleep(refusal.retry().unwrap_or(RETRY)).await;
            }
            done => return done,
        }
    }
}

/// Returns the variant of the engine that programs of a language need by default.
fn variant(standard: &RequestedLimits, language: &Language, ceilings: &Ceilings) -> Variant {
    let stack = standard.stack.or(language.limits.stack);
    let stack = stack.map(|stack| stack.min(ceilings.max_stack));
    let fuel = standard.fuel.or(language.limits.fuel);
    Variant {
        metered: ceilings.require_fuel || fuel.is_some(),
        stack: stack
            .and_then(StackClass::at_least)
            .unwrap_or_else(|| ceilings.default_stack_class()),
    }
}
