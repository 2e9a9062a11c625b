//! What fuzzing calls (`tests/fuzz`, and the corpus in `tests/corpus.rs`): each takes bytes from anybody, goes the way
//! that the daemon goes with them, and panics where a promise does not hold. No part of the daemon calls it.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a broken promise is told by a panic"
)]

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::api;
use crate::app;
use crate::auth::{Evidence, Gatekeeper, JwtSettings, Keys, Settings, Tokens};
use crate::config::{self, Config, Overrides};
use crate::policy::Policy;
use crate::refusal::Reason;
use crate::request::Digest;
use crate::store::{ArtifactName, Artifacts, ArtifactsSettings};

/// A set with a key whose other half nobody has.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "1",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
/// Bytes of a module at the most: larger ones find nothing that smaller ones do not.
const MAX_MODULE: usize = 64 << 10;

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("threads"))
}

fn defaults() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let set = [
            ("compile.mode", "in-process"),
            ("policy.max_timeout", "100ms"),
            ("defaults.timeout", "100ms"),
            ("policy.max_memory_pages", "64"),
            ("defaults.memory_pages", "16"),
            ("policy.max_fuel", "1000000"),
            ("defaults.fuel_limit", "1000000"),
            ("policy.require_fuel", "true"),
            ("admission.slots", "4"),
            ("runs.history", "10"),
            ("engine.cache_budget", "16MiB"),
        ];
        let overrides = Overrides {
            set: set
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .to_vec(),
            ..Overrides::default()
        };
        app::load_config(&overrides).expect("it is valid").0
    })
}

/// A message that a client sends.
pub fn message(bytes: &[u8]) {
    static POLICY: OnceLock<Policy> = OnceLock::new();
    api::fuzz::message(bytes, POLICY.get_or_init(|| Policy::from(defaults())));
}

/// A module: inspected, compiled, executed within tiny limits.
pub fn module(bytes: &[u8]) {
    static RUNNER: OnceLock<Arc<crate::run::Runner>> = OnceLock::new();
    if bytes.len() > MAX_MODULE {
        return;
    }
    let runner = RUNNER.get_or_init(|| {
        let program = Path::new("/proc/self/exe");
        runtime()
            .block_on(async { app::runner(defaults(), program) })
            .expect("the engine starts")
    });
    let ended = runtime().block_on(runner.run_own(Bytes::copy_from_slice(bytes)));
    match ended.as_deref() {
        Ok(Ok(ended)) => assert!(ended.memory_used <= 64 << 16, "{ended:?}"),
        Ok(Err(refusal)) => panic!("the daemon failed: {refusal}"),
        // What a compiler does to itself is caught, told, and no worse.
        Err(refusal) if refusal.reason() == Reason::Internal => {}
        Err(refusal) => assert!(!refusal.message().contains('\n'), "{refusal}"),
    }
}

/// A configuration.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Names are looked up: a fuzzer is not to ask anybody.
    if text.contains("listen") {
        return;
    }
    let known = app::known();
    if let Ok(config) = config::read(text, &known) {
        for tenant in config.all_tenants() {
            let _ = Policy::from(&config.of(&tenant));
        }
        let shown = toml::to_string(&config).expect("it can be written");
        config::read(&shown, &known).expect("what is shown is what is in force");
    }
}

/// A file of tokens, then what is shown.
pub fn token(bytes: &[u8]) {
    let tenants: HashSet<String> = ["a".to_owned(), "b".to_owned()].into();
    let at = bytes.iter().position(|byte| *byte == 0);
    let (file, shown) = bytes.split_at(at.unwrap_or(bytes.len()));
    let tokens = Tokens::parse(file, &tenants).value;
    if let Ok(shown) = std::str::from_utf8(shown)
        && let Some(tenant) = tokens.tenant(shown)
    {
        assert!(tenants.contains(&*tenant));
    }
}

/// An authorization header, before tokens and keys of which it knows neither.
pub fn authorization(bytes: &[u8]) {
    static GATE: OnceLock<(Gatekeeper, TempDir)> = OnceLock::new();
    let (gate, _) = GATE.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        let put = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let tokens = put("tokens", &format!("a {}\n", Digest::of(b"of a test")));
        let keys = put("keys", KEYS);
        let settings = Settings {
            tokens_file: Some(tokens),
            jwt: Some(JwtSettings {
                keys: Keys::File(keys),
                issuer: "https://issuer.test".to_owned(),
                audience: "ringfence".to_owned(),
                algorithms: ["ES256", "RS256", "EdDSA"].map(str::to_owned).to_vec(),
                tenant_claim: "sub".to_owned(),
            }),
            tenants: ["a".to_owned()].into(),
            ..Settings::default()
        };
        (Gatekeeper::new(settings).expect("a gatekeeper"), dir)
    });
    let evidence = Evidence {
        authorization: Some(bytes),
        ..Evidence::default()
    };
    match runtime().block_on(gate.tenant(evidence)) {
        Ok(tenant) => panic!("{tenant} was let in by {bytes:?}"),
        Err(refusal) => assert!(matches!(
            refusal.reason(),
            Reason::CredentialsInvalid | Reason::Forbidden
        )),
    }
}

/// Compiled code on disk that this daemon did not write.
pub fn artifact(bytes: &[u8]) {
    static PLACE: OnceLock<(Artifacts, TempDir)> = OnceLock::new();
    let (artifacts, dir) = PLACE.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        let settings = ArtifactsSettings {
            dir: dir.path().join("code"),
            budget: 1 << 30,
            key_file: dir.path().join("key"),
        };
        (Artifacts::open(&settings).expect("it opens"), dir)
    });
    let name = ArtifactName {
        digest: Digest::of(b"module"),
        metered: false,
        compatible: 1,
    };
    let path = dir.path().join("code").join(name.file());
    std::fs::write(path, bytes).expect("a file");
    assert!(artifacts.load(name).is_none(), "foreign code was taken");
    assert!(!artifacts.has(name));
}
