//! Checks of the settings for tenants, authentication, TLS and hardening, and the tenants that
//! follow from them.

use std::collections::HashSet;
use std::path::Path;

use super::policy_check;
use super::problems::{Checker, KnownNames, Problem, millis, minutes};
use super::schema::{Config, HardeningMode, JwtConfig, QuotaConfig, TenantConfig};
use crate::auth::CertificateName;

/// The tenant of all callers where nothing identifies them. Its modules are stored where those of a
/// daemon without tenants are.
pub const DEFAULT_TENANT: &str = "default";
/// Most tenants that may be configured; more would make every admission decision slow.
const MAX_TENANTS: usize = 1000;
/// The signature algorithms of JSON Web Tokens that can be verified with a public key.
const JWT_ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

impl Config {
    /// Returns the configured tenants, or the default tenant where none is configured.
    pub fn all_tenants(&self) -> Vec<TenantConfig> {
        if !self.tenants.is_empty() {
            return self.tenants.clone();
        }
        vec![TenantConfig {
            name: DEFAULT_TENANT.to_owned(),
            weight: 1,
            certificates: Vec::new(),
            uids: Vec::new(),
            policy: Default::default(),
            defaults: Default::default(),
            quota: QuotaConfig::default(),
        }]
    }

    /// Returns this configuration with a tenant's own policy and defaults applied.
    pub fn for_tenant(&self, tenant: &TenantConfig) -> Self {
        Self {
            policy: self.policy.with(&tenant.policy),
            defaults: self.defaults.with(&tenant.defaults),
            ..self.clone()
        }
    }

    /// Reports whether callers are identified, in which case one without credentials belongs to no
    /// tenant.
    pub fn identifies_callers(&self) -> bool {
        !self.auth.tokens_file.as_os_str().is_empty()
            || !self.auth.jwt.jwks.is_empty()
            || self
                .tenants
                .iter()
                .any(|it| !it.uids.is_empty() || !it.certificates.is_empty())
    }

    /// Reports whether nobody can call a TCP listener without a credential.
    fn authenticates_tcp(&self) -> bool {
        self.identifies_callers() || self.requires_certificate()
    }

    /// Reports whether callers over TCP have to present a client certificate.
    pub fn requires_certificate(&self) -> bool {
        self.has_client_ca() && self.tls.client_auth == super::ClientAuth::Require
    }

    fn has_client_ca(&self) -> bool {
        !self.tls.client_ca.as_os_str().is_empty()
    }

    /// Reports whether a TCP listener may accept calls from other hosts.
    pub fn may_listen_publicly(&self) -> bool {
        self.authenticates_tcp() || self.server.insecure_listen
    }
}

/// Checks everything that concerns callers: tenants, TLS, authentication and hardening.
pub(super) fn check(c: &mut Checker, config: &Config, known: &KnownNames) {
    tenants(c, config, known);
    tls(c, config);
    auth(c, config);
    hardening(c, config);
}

fn tenants(c: &mut Checker, config: &Config, known: &KnownNames) {
    let tenants = &config.tenants;
    c.between("tenants", tenants.len(), 0, MAX_TENANTS);
    let (mut names, mut uids, mut certificates) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (i, tenant) in tenants.iter().enumerate() {
        let key = |key: &str| format!("tenants[{i}].{key}");
        let name = &tenant.name;
        c.require(
            is_name(name),
            key("name"),
            name,
            "1 to 63 characters of a-z, 0-9 and \"-\", without a \"-\" at either end",
        );
        let once = names.insert(name.as_str());
        c.require(once, key("name"), name, "a name that no other tenant has");
        c.between(&key("weight"), tenant.weight, 1, 1000);
        for uid in &tenant.uids {
            let once = uids.insert(*uid);
            c.require(once, key("uids"), uid, "a user that no other tenant has");
        }
        for text in &tenant.certificates {
            let key = key("certificates");
            match CertificateName::configured(text) {
                Ok(names) => {
                    let once = !names.iter().any(|name| certificates.contains(name));
                    c.require(once, key, text, "a name that no other tenant has");
                    certificates.extend(names);
                }
                Err(allowed) => c.require(false, key, format!("{text:?}"), allowed),
            }
        }
        quota(c, &tenant.quota, &key("quota"));
        let problems = policy_check::tenant_problems(&config.for_tenant(tenant), known);
        c.0.extend(problems.into_iter().map(|problem| Problem {
            key: key(&problem.key),
            ..problem
        }));
    }
    let only_default = tenants.iter().all(|it| it.name == DEFAULT_TENANT);
    c.require(
        only_default || config.identifies_callers(),
        "tenants",
        tenants.len(),
        "empty, unless auth.tokens_file, auth.jwt.jwks, or the uids or certificates of a tenant tell callers apart",
    );
    if !certificates.is_empty() {
        c.require(
            config.has_client_ca(),
            "tls.client_ca",
            config.tls.client_ca.display(),
            "a file, because tenants have certificates",
        );
    }
}

fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn quota(c: &mut Checker, quota: &QuotaConfig, key: &str) {
    let rates = [
        ("runs_per_second", quota.runs_per_second),
        ("cpu_seconds_per_minute", quota.cpu_seconds_per_minute),
    ];
    for (name, rate) in rates {
        let holds = rate == 0.0 || (0.001..=1e6).contains(&rate);
        let allowed = "0, or from 0.001 to 1000000";
        c.require(holds, format!("{key}.{name}"), rate, allowed);
    }
}

fn tls(c: &mut Checker, config: &Config) {
    let tls = &config.tls;
    let is_set = |path: &Path| !path.as_os_str().is_empty();
    let both = is_set(&tls.cert) == is_set(&tls.key);
    c.require(
        both,
        "tls.key",
        tls.key.display(),
        "set if tls.cert is set, and empty if it is not",
    );
    c.require(
        !config.has_client_ca() || is_set(&tls.cert),
        "tls.client_ca",
        tls.client_ca.display(),
        "empty unless tls.cert and tls.key are set",
    );
    let files = [
        ("tls.cert", &tls.cert),
        ("tls.key", &tls.key),
        ("tls.client_ca", &tls.client_ca),
    ];
    for (key, path) in files {
        is_file(c, key, path, config);
    }
}

fn is_file(c: &mut Checker, key: &str, path: &Path, config: &Config) {
    let holds = path.as_os_str().is_empty() || (path.is_absolute() && path.is_file());
    c.require(
        holds,
        key,
        path.display(),
        "an absolute path to a file that exists, or empty",
    );
    let confined = config.hardening.mode != HardeningMode::Off;
    c.require(
        !confined || !path.parent().is_some_and(is_shared_folder),
        key,
        path.display(),
        "a file in a folder that other programs do not share: a confined daemon ([hardening]) is given the whole folder, so that it can read the file again when it changes",
    );
}

/// Reports whether a folder is shared with other programs, so that it must not be opened to the
/// confined daemon for the sake of one file.
pub(crate) fn is_shared_folder(folder: &Path) -> bool {
    const SHARED: [&str; 14] = [
        "/", "/boot", "/dev", "/etc", "/home", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp",
        "/usr", "/var", "/var/lib",
    ];
    let real = folder.canonicalize();
    let real = real.as_deref().unwrap_or(folder);
    let of = |folder: &Path| SHARED.iter().any(|it| folder == Path::new(it));
    of(folder) || of(real) || real.parent() == Some(Path::new("/home"))
}

fn auth(c: &mut Checker, config: &Config) {
    is_file(c, "auth.tokens_file", &config.auth.tokens_file, config);
    let jwt = &config.auth.jwt;
    if jwt.jwks.is_empty() {
        return;
    }
    freshness(c, jwt);
    match url::Url::parse(&jwt.jwks) {
        Ok(url) => {
            let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
            let holds = url.scheme() == "https" || (url.scheme() == "http" && local);
            c.require(
                holds && url.username().is_empty() && url.password().is_none(),
                "auth.jwt.jwks",
                "(a URL)",
                "an absolute path to a file, or an https:// URL without credentials (http:// for loopback only)",
            );
        }
        Err(_) => is_file(c, "auth.jwt.jwks", Path::new(&jwt.jwks), config),
    }
    let texts = [
        ("auth.jwt.issuer", &jwt.issuer),
        ("auth.jwt.audience", &jwt.audience),
        ("auth.jwt.tenant_claim", &jwt.tenant_claim),
    ];
    for (key, text) in texts {
        c.require(
            !text.is_empty(),
            key,
            "\"\"",
            "set, because auth.jwt.jwks is set",
        );
    }
    c.require(
        !jwt.algorithms.is_empty(),
        "auth.jwt.algorithms",
        "[]",
        format!("a list of one or more of {}", JWT_ALGORITHMS.join(", ")),
    );
    c.all_known("auth.jwt.algorithms", &jwt.algorithms, &JWT_ALGORITHMS);
}

fn freshness(c: &mut Checker, jwt: &JwtConfig) {
    let refresh = (millis(1000), minutes(24 * 60));
    c.between("auth.jwt.refresh", jwt.refresh, refresh.0, refresh.1);
    let (key, most) = ("auth.jwt.max_stale", minutes(7 * 24 * 60));
    let holds = (jwt.refresh..=most).contains(&jwt.max_stale);
    let allowed = format!("from auth.jwt.refresh ({}) to {most}", jwt.refresh);
    c.require(holds, key, jwt.max_stale, allowed);
}

fn hardening(c: &mut Checker, config: &Config) {
    let hardening = &config.hardening;
    let user = &hardening.user;
    c.require(
        user.is_empty() || user_and_group(user).is_some(),
        "hardening.user",
        user,
        "\"uid:gid\", with two numbers that are at least 1, or empty",
    );
    for path in &hardening.read {
        c.require(
            path.is_absolute(),
            "hardening.read",
            path.display(),
            "an absolute path",
        );
    }
    let off = hardening.mode == HardeningMode::Off;
    c.require(
        !off || user.is_empty(),
        "hardening.user",
        user,
        "empty, because hardening.mode is \"off\"",
    );
}

/// Parses "uid:gid" into its two numbers, neither of which may be 0.
pub(crate) fn user_and_group(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    let number = |text: &str| text.parse().ok().filter(|n| (1..u32::MAX).contains(n));
    Some((number(uid)?, number(gid)?))
}
