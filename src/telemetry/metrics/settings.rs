//! What of the times is counted, and how.

/// The settings of `--metrics-config`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Sums of times in microseconds.
    pub counter_latencies: bool,
    /// The histogram of first responses of decoupled models.
    pub histogram_latencies: bool,
    /// Quantiles of times over the recent past.
    pub summary_latencies: bool,
    /// Which quantiles; at least one, each from 0 to 1.
    pub summary_quantiles: Vec<f64>,
}

impl Default for Settings {
    /// Those of the reference server.
    fn default() -> Self {
        Self {
            counter_latencies: true,
            histogram_latencies: false,
            summary_latencies: false,
            summary_quantiles: vec![0.5, 0.9, 0.95, 0.99, 0.999],
        }
    }
}
