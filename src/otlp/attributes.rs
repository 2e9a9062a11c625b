//! Attributes of what is exported: their names, and their form on the wire. Those that the semantic
//! conventions of OpenTelemetry name have their names; the others begin with "ringfence.".

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// The id of the run.
pub(super) const RUN_ID: &str = "ringfence.run.id";
/// The digest of the run's module.
pub(super) const DIGEST: &str = "ringfence.module.digest";
/// The tenant whose run it is.
pub(super) const TENANT: &str = "ringfence.tenant";
/// The name of the daemon, as the scope and as the service.
const SERVICE: &str = "ringfence";

/// Creates an attribute whose value is text.
pub(super) fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// Creates an attribute whose value is a number.
pub(super) fn number(key: &str, value: u64) -> KeyValue {
    attribute(
        key,
        Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)),
    )
}

/// Creates a value that is text.
pub(super) fn text_value(value: String) -> AnyValue {
    AnyValue {
        value: Some(Value::StringValue(value)),
    }
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// Describes the daemon `instance`, which everything that is exported comes from.
pub(super) fn resource(instance: &str) -> Resource {
    Resource {
        attributes: vec![
            text("service.name", SERVICE),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", instance),
        ],
        ..Resource::default()
    }
}

/// Describes the code that everything that is exported comes from.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: SERVICE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Returns a time in nanoseconds since 1970, as it is on the wire.
pub(super) fn nanoseconds(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
