//! Registers series: families with the labels of their owner.

use metrics::{Counter, Gauge, Key, Label, Level, Metadata, NoopRecorder, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::histogram::{Histogram, Histograms};
use super::{Family, Settings};

/// Everything that one server counts.
pub(super) struct Registry {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    histograms: Histograms,
}

impl Registry {
    pub(super) fn new(settings: &Settings) -> Self {
        // The library's own distributions are the summaries; it knows no bounds by series.
        let recorder = PrometheusBuilder::new()
            .set_quantiles(&settings.summary_quantiles)
            .expect("settings have at least one quantile")
            .build_recorder();
        Self { handle: recorder.handle(), recorder, histograms: Histograms::default() }
    }

    /// Everything in the Prometheus text format.
    pub(super) fn render(&self) -> String {
        let mut text = self.handle.render();
        self.histograms.render(&mut text);
        text
    }

    /// Moves the samples of summaries to where they take no room.
    pub(super) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// Where to register, and the labels that all series of one owner have.
pub(super) struct Series<'a> {
    /// `None` counts nowhere.
    registry: Option<&'a Registry>,
    labels: Vec<Label>,
}

impl<'a> Series<'a> {
    const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

    pub(super) fn new(registry: Option<&'a Registry>, labels: Vec<Label>) -> Self {
        Self { registry, labels }
    }

    /// The same with one more label.
    pub(super) fn with(&self, name: &'static str, value: &'static str) -> Self {
        let mut labels = self.labels.clone();
        labels.push(Label::from_static_parts(name, value));
        Self { registry: self.registry, labels }
    }

    fn recorder(&self) -> &dyn Recorder {
        self.registry.map_or(&NoopRecorder, |registry| &registry.recorder)
    }

    fn key(&self, family: &Family) -> Key {
        Key::from_parts(family.0, self.labels.clone())
    }

    pub(super) fn counter(&self, family: &Family) -> Counter {
        self.recorder().describe_counter(family.0.into(), None, family.1.into());
        self.recorder().register_counter(&self.key(family), &Self::METADATA)
    }

    pub(super) fn gauge(&self, family: &Family) -> Gauge {
        self.recorder().describe_gauge(family.0.into(), None, family.1.into());
        self.recorder().register_gauge(&self.key(family), &Self::METADATA)
    }

    /// Quantiles of the recent past.
    pub(super) fn summary(&self, family: &Family) -> metrics::Histogram {
        self.recorder().describe_histogram(family.0.into(), None, family.1.into());
        self.recorder().register_histogram(&self.key(family), &Self::METADATA)
    }

    /// Samples by these upper bounds.
    pub(super) fn histogram(&self, family: &Family, bounds: &[f64]) -> Histogram {
        self.registry.map(|registry| registry.histograms.register(family, &self.labels, bounds)).unwrap_or_default()
    }
}
