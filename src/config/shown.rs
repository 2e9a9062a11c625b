//! The settings in force as a caller may see them.

use serde::Serialize;

use super::schema::{Config, DefaultsConfig, PolicyConfig, QuotaConfig};

/// The settings of one tenant among several.
#[derive(Serialize)]
struct TenantSettingsView<'a> {
    tenant: &'a str,
    weight: u32,
    quota: &'a QuotaConfig,
    defaults: DefaultsConfig,
    policy: PolicyConfig,
}

impl Config {
    /// Returns the settings that a caller of `tenant` may see, as TOML: all of them where no tenant
    /// is configured, and else what is in force for its own tenant. The configuration itself holds
    /// no secret: it names the files that do.
    ///
    /// # Errors
    /// A setting cannot be written as TOML.
    pub fn shown_to(&self, tenant: &str) -> Result<String, toml::ser::Error> {
        if self.tenants.is_empty() {
            return toml::to_string(self);
        }
        let Some(own) = self.tenants.iter().find(|it| it.name == tenant) else {
            return Ok(String::new());
        };
        let in_force = self.for_tenant(own);
        toml::to_string(&TenantSettingsView {
            tenant,
            weight: own.weight,
            quota: &own.quota,
            defaults: in_force.defaults,
            policy: in_force.policy,
        })
    }
}
