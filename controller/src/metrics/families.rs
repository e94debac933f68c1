//! Families of figures, as Prometheus wants them.

use std::collections::BTreeMap;

use fw_dns::metrics::Histogram;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as HistogramValue, LabelPair, Metric, MetricFamily, MetricType,
};
use prometheus::{Encoder as _, TextEncoder};
use serde_json::Value;

use crate::reconcile::Durations;

/// Families by name, in order.
#[derive(Default)]
pub(super) struct Families(BTreeMap<&'static str, MetricFamily>);

impl Families {
    fn family(&mut self, name: &'static str, help: &str, kind: MetricType) -> &mut MetricFamily {
        self.0.entry(name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(name.to_owned());
            family.set_help(help.to_owned());
            family.set_field_type(kind);
            family
        })
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut gauge = Gauge::default();
        gauge.set_value(float(value));
        let mut metric = labelled(labels);
        metric.set_gauge(gauge);
        self.family(name, help, MetricType::GAUGE).mut_metric().push(metric);
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = Counter::default();
        counter.set_value(float(value));
        let mut metric = labelled(labels);
        metric.set_counter(counter);
        self.family(name, help, MetricType::COUNTER).mut_metric().push(metric);
    }

    /// A gauge in seconds, from microseconds.
    pub(super) fn gauge_seconds(&mut self, name: &'static str, help: &str, micros: u64) {
        let mut gauge = Gauge::default();
        gauge.set_value(seconds(micros));
        let mut metric = labelled(&[]);
        metric.set_gauge(gauge);
        self.family(name, help, MetricType::GAUGE).mut_metric().push(metric);
    }

    /// A counter in seconds, from microseconds.
    pub(super) fn counter_seconds(&mut self, name: &'static str, help: &str, micros: u64) {
        let mut counter = Counter::default();
        counter.set_value(seconds(micros));
        let mut metric = labelled(&[]);
        metric.set_counter(counter);
        self.family(name, help, MetricType::COUNTER).mut_metric().push(metric);
    }

    /// Names a family that has no series now, perhaps.
    pub(super) fn declare(&mut self, name: &'static str, help: &str, is_counter: bool) {
        self.family(name, help, if is_counter { MetricType::COUNTER } else { MetricType::GAUGE });
    }

    pub(super) fn by_label(&mut self, name: &'static str, help: &str, label: &str, values: &Value) {
        self.family(name, help, MetricType::COUNTER);
        for (key, value) in object(values) {
            self.counter(name, help, &[(label, key)], number(value));
        }
    }

    pub(super) fn histogram(&mut self, name: &'static str, help: &str, value: &Value) {
        let mut so_far = 0;
        let buckets = Histogram::BOUNDS.iter().map(|bound| {
            so_far += number(&value["buckets"][format!("le{bound}us")]);
            (*bound, so_far)
        });
        let (count, sum) = (number(&value["count"]), number(&value["sumMicros"]));
        self.buckets(name, help, &[], buckets, (count, sum));
    }

    /// Durations of the reconciler.
    pub(super) fn durations(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        durations: &Durations,
    ) {
        let totals = (durations.count(), durations.sum_us());
        self.buckets(name, help, labels, durations.cumulative(), totals);
    }

    /// Upper ends in microseconds with cumulative counts; then how many there were and their sum in microseconds.
    fn buckets(
        &mut self,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (u64, u64)>,
        (count, sum): (u64, u64),
    ) {
        let bucket = |(bound, count): (u64, u64)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(seconds(bound));
            bucket.set_cumulative_count(count);
            bucket
        };
        let mut histogram = HistogramValue::default();
        histogram.set_sample_count(count);
        histogram.set_sample_sum(seconds(sum));
        histogram.set_bucket(buckets.map(bucket).collect());
        let mut metric = labelled(labels);
        metric.set_histogram(histogram);
        self.family(name, help, MetricType::HISTOGRAM).mut_metric().push(metric);
    }

    /// The exposition format. Families that have no series now are named all the same.
    pub(super) fn text(self) -> prometheus::Result<String> {
        let (filled, empty): (Vec<_>, Vec<_>) =
            self.0.into_values().partition(|family| !family.get_metric().is_empty());
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&filled, &mut bytes)?;
        let mut text = String::from_utf8_lossy(&bytes).into_owned();
        for family in empty {
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            let (name, help) = (family.name(), family.help());
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        }
        Ok(text)
    }
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    let mut metric = Metric::default();
    metric.set_label(labels.iter().map(pair).collect());
    metric
}

pub(super) fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing but f64; it is exact to 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}

fn seconds(micros: u64) -> f64 {
    float(micros) / 1e6
}
