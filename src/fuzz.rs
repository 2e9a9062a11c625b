//! Entry points for fuzzing (`tests/fuzz`, and the corpus in `tests/corpus.rs`). Each takes
//! arbitrary bytes, treats them as the daemon does, and panics if a promise does not hold. The
//! daemon itself calls none of this.

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
use crate::auth::{Authenticator, Credentials, JwksLocation, JwtSettings, Settings, StaticTokens};
use crate::config::{self, Config, Overrides};
use crate::model::policy::Policy;
use crate::model::refusal::Reason;
use crate::model::request::Digest;
use crate::store::{ArtifactCache, ArtifactCacheSettings, ArtifactName};

/// A JSON Web Key set with one public key, whose private key nobody has.
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": "1",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
/// The largest module that is tried, in bytes: larger ones find nothing that smaller ones do not.
const MAX_MODULE: usize = 64 << 10;

/// Returns the tokio runtime that all entry points share.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("threads"))
}

/// Returns a configuration with tiny limits, which all entry points share.
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

/// Decodes a message that a client sends.
pub fn message(bytes: &[u8]) {
    static POLICY: OnceLock<Policy> = OnceLock::new();
    api::fuzz::message(bytes, POLICY.get_or_init(|| Policy::from(defaults())));
}

/// Inspects, compiles and executes a module within tiny limits.
pub fn module(bytes: &[u8]) {
    static RUNNER: OnceLock<Arc<crate::run::Runner>> = OnceLock::new();
    if bytes.len() > MAX_MODULE {
        return;
    }
    let runner = RUNNER.get_or_init(|| {
        let program = Path::new("/proc/self/exe");
        runtime()
            .block_on(async { app::runner(defaults(), program, Default::default(), None) })
            .expect("the engine starts")
    });
    let ended = runtime().block_on(runner.run_own(Bytes::copy_from_slice(bytes)));
    match ended.as_deref() {
        Ok(Ok(ended)) => assert!(ended.memory_used <= 64 << 16, "{ended:?}"),
        Ok(Err(refusal)) => panic!("the daemon failed: {refusal}"),
        // A panic of the compiler is caught and reported, and does no more harm.
        Err(refusal) if refusal.reason() == Reason::Internal => {}
        Err(refusal) => assert!(!refusal.message().contains('\n'), "{refusal}"),
    }
}

/// Reads a configuration, and checks that it stays the same when it is written and read again.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // Reading resolves the names of listeners, and a fuzzer must not query anybody.
    if text.contains("listen") {
        return;
    }
    let known = app::known_names();
    if let Ok(config) = config::read(text, &known) {
        for tenant in config.all_tenants() {
            let _ = Policy::from(&config.for_tenant(&tenant));
        }
        let shown = toml::to_string(&config).expect("it can be written");
        config::read(&shown, &known).expect("what is shown is what is in force");
    }
}

/// Reads a file of static tokens, and looks up the token that follows its first zero byte.
pub fn token(bytes: &[u8]) {
    let tenants: HashSet<String> = ["a".to_owned(), "b".to_owned()].into();
    let at = bytes.iter().position(|byte| *byte == 0);
    let (file, shown) = bytes.split_at(at.unwrap_or(bytes.len()));
    let tokens = StaticTokens::parse(file, &tenants).value;
    if let Ok(shown) = std::str::from_utf8(shown)
        && let Some(tenant) = tokens.tenant(shown)
    {
        assert!(tenants.contains(&*tenant));
    }
}

/// Authenticates with an authorization header, whose token the authenticator cannot know.
pub fn authorization(bytes: &[u8]) {
    static GATE: OnceLock<(Authenticator, TempDir)> = OnceLock::new();
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
                keys: JwksLocation::File(keys),
                issuer: "https://issuer.test".to_owned(),
                audience: "ringfence".to_owned(),
                algorithms: ["ES256", "RS256", "EdDSA"].map(str::to_owned).to_vec(),
                tenant_claim: "sub".to_owned(),
            }),
            tenants: ["a".to_owned()].into(),
            ..Settings::default()
        };
        (Authenticator::new(settings).expect("a authenticator"), dir)
    });
    let evidence = Credentials {
        authorization: Some(bytes),
        ..Credentials::default()
    };
    match runtime().block_on(gate.authenticate(evidence)) {
        Ok(tenant) => panic!("{tenant} was let in by {bytes:?}"),
        Err(refusal) => assert!(matches!(
            refusal.reason(),
            Reason::CredentialsInvalid | Reason::Forbidden
        )),
    }
}

/// Loads compiled code from disk that this daemon did not write, and checks that it is rejected.
pub fn artifact(bytes: &[u8]) {
    static PLACE: OnceLock<(ArtifactCache, TempDir)> = OnceLock::new();
    let (artifacts, dir) = PLACE.get_or_init(|| {
        let dir = TempDir::new().expect("a folder");
        let settings = ArtifactCacheSettings {
            dir: dir.path().join("code"),
            budget: 1 << 30,
            key_file: dir.path().join("key"),
        };
        (ArtifactCache::open(&settings).expect("it opens"), dir)
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
