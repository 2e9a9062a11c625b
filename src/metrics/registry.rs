//! The sources of a daemon's metrics, and their encoding as text.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::LatencySnapshot;

pub use prometheus_client::registry::Unit;

/// The prefix of the names of all metrics.
const PREFIX: &str = "ringfence";
/// The room that the text of a scrape is given at first, in bytes.
const TEXT_BYTES: usize = 64 << 10;

/// The content types of the two formats.
pub const CONTENT_TYPE: [&str; 2] = [
    "application/openmetrics-text; version=1.0.0; charset=utf-8",
    prometheus_text::CONTENT_TYPE,
];

/// A part of the daemon that has metrics.
pub trait MetricSource: Send + Sync {
    /// Writes the metrics of this part as they are now.
    ///
    /// # Errors
    /// Those of `to`.
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result;
}

/// The metrics of a daemon: its sources, in the order in which they are written.
#[derive(Clone, Default)]
pub struct MetricRegistry {
    sources: Vec<Arc<dyn MetricSource>>,
}

impl MetricRegistry {
    /// Adds a source, which is written after those that are there.
    pub fn add(&mut self, source: Arc<dyn MetricSource>) {
        self.sources.push(source);
    }

    /// Encodes all metrics, in the OpenMetrics format or else in the older text format of
    /// Prometheus. `tenant` is the only tenant whose own series are written; `None` means those of
    /// all.
    ///
    /// # Errors
    /// A source could not write a metric.
    pub fn encode(&self, is_openmetrics: bool, tenant: Option<&str>) -> Result<String, fmt::Error> {
        // Made for each scrape, because what a collector writes depends on who asks.
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Scrape {
            sources: self.sources.clone(),
            tenant: tenant.map(Arc::from),
        }));
        let mut encoded = String::with_capacity(TEXT_BYTES);
        match is_openmetrics {
            true => text::encode(&mut encoded, &registry)?,
            false => prometheus_text::encode(&mut encoded, &registry)?,
        }
        Ok(encoded)
    }
}

/// One request for all metrics.
struct Scrape {
    sources: Vec<Arc<dyn MetricSource>>,
    tenant: Option<Arc<str>>,
}

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sources", self.sources.len())
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = MetricWriter {
            encoder,
            tenant: self.tenant.clone(),
        };
        self.sources
            .iter()
            .try_for_each(|source| source.write_metrics(&mut writer))
    }
}

impl EncodeMetric for LatencySnapshot {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let (sum, count) = (self.sum_seconds(), self.count());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &self.buckets(), None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// Writes metrics, each with its name without the daemon's prefix, its help, its unit and its
/// values.
pub struct MetricWriter<'a> {
    encoder: DescriptorEncoder<'a>,
    /// The only tenant whose series are written; `None` for those of all.
    tenant: Option<Arc<str>>,
}

impl MetricWriter<'_> {
    /// Reports whether the series of a tenant may be written.
    pub fn shows(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|only| only == tenant)
    }

    /// Writes a count that only grows.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.counters(name, help, None, [([], value)])
    }

    /// Writes counts of which each has its own labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn counters<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'static str, &'v str); N], u64)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        let values = values.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(name, help, unit, MetricType::Counter, values)
    }

    /// Writes seconds that only grow, of which each sum has its own labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn seconds<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, &'v str); N], f64)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        let values = values.map(|(labels, value)| (labels, ConstCounter::new(value)));
        self.family(
            name,
            help,
            Some(&Unit::Seconds),
            MetricType::Counter,
            values,
        )
    }

    /// Writes a value that rises and falls.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn gauge(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        value: u64,
    ) -> fmt::Result {
        self.gauges(name, help, unit, [([], value)])
    }

    /// Writes values that rise and fall, of which each has its own labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn gauges<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl IntoIterator<Item = ([(&'static str, &'v str); N], u64)>,
    ) -> fmt::Result {
        let values = values.into_iter();
        let values = values.map(|(labels, value)| (labels, ConstGauge::new(value)));
        self.family(name, help, unit, MetricType::Gauge, values)
    }

    /// Writes histograms of durations, of which each has its own labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn histograms<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = ([(&'static str, &'v str); N], LatencySnapshot)>,
    ) -> fmt::Result {
        let (unit, kind) = (Some(&Unit::Seconds), MetricType::Histogram);
        self.family(name, help, unit, kind, values.into_iter())
    }

    /// Writes facts that do not change, as labels.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn info<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        facts: [(&'static str, &'_ str); N],
    ) -> fmt::Result {
        let info = Info::new(facts.map(|(key, value)| (key, value.to_owned())));
        let encoder = self
            .encoder
            .encode_descriptor(name, help, None, MetricType::Info)?;
        info.encode(encoder)
    }

    fn family<'v, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        mut values: impl Iterator<Item = ([(&'static str, &'v str); N], impl EncodeMetric)>,
    ) -> fmt::Result {
        let mut encoder = self.encoder.encode_descriptor(name, help, unit, kind)?;
        if N == 0 {
            let value = values.next();
            return value.map_or(Ok(()), |(_, value)| value.encode(encoder));
        }
        for (labels, value) in values {
            value.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
