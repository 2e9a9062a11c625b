//! Comparison of two configurations, by the keys that differ.

use std::collections::BTreeMap;

use toml::Value;

use super::Config;

impl Config {
    /// Returns the dotted keys whose values differ in `other`. An array, such as `listen`, counts
    /// as one key.
    pub fn changed_keys(&self, other: &Self) -> Vec<String> {
        let (ours, theirs) = (flattened(self), flattened(other));
        let all = ours
            .keys()
            .chain(theirs.keys().filter(|it| !ours.contains_key(*it)));
        let changed = all.filter(|key| ours.get(*key) != theirs.get(*key));
        changed.cloned().collect()
    }
}

fn flattened(config: &Config) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    // A configuration that was read can be serialized again, as `ringfence config show` does.
    if let Ok(Value::Table(table)) = Value::try_from(config) {
        flatten("", table, &mut keys);
    }
    keys
}

fn flatten(prefix: &str, table: toml::Table, keys: &mut BTreeMap<String, Value>) {
    for (key, value) in table {
        let key = match prefix {
            "" => key,
            prefix => format!("{prefix}.{key}"),
        };
        match value {
            Value::Table(inner) => flatten(&key, inner, keys),
            value @ (Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_)) => {
                keys.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config;
    use crate::config::KnownNames;

    #[test]
    fn the_keys_that_differ_are_named() {
        let known = KnownNames {
            features: &[],
            host_functions: &["ringfence.log", "ringfence.label"],
        };
        let config = |text: &str| config::read(text, &known).unwrap();
        let before = config("");
        assert_eq!(before.changed_keys(&before), Vec::<String>::new());
        let after = config(
            "listen = [\"127.0.0.1:1\"]\n[policy]\nmax_timeout = \"61s\"\n[admission]\nslots = 3\n",
        );
        let changed = before.changed_keys(&after);
        assert_eq!(changed, ["admission.slots", "listen", "policy.max_timeout"]);
    }
}
