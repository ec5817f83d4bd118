//! The handles that count connections, bytes, and what calls were answered with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use metrics::{Counter, Gauge, Label};
use parking_lot::Mutex;

use super::series::Series;
use super::{CONNECTIONS, CONNECTIONS_TOTAL, Family, Metrics, NETWORK_BYTES};

/// What happens on one port. The default counts nowhere.
#[derive(Clone, Debug)]
pub struct PortMetrics {
    connections: Gauge,
    accepted: Counter,
    received: Counter,
    sent: Counter,
}

impl Default for PortMetrics {
    fn default() -> Self {
        Self::register(&Series::new(None, Vec::new()))
    }
}

impl PortMetrics {
    pub(super) fn register(series: &Series<'_>) -> Self {
        let bytes = |direction| series.with("direction", direction).counter(&NETWORK_BYTES);
        Self {
            connections: series.gauge(&CONNECTIONS),
            accepted: series.counter(&CONNECTIONS_TOTAL),
            received: bytes("in"),
            sent: bytes("out"),
        }
    }

    /// Counts a connection, which is open until the result is dropped.
    pub fn opened(&self) -> OpenConnection {
        self.accepted.increment(1);
        self.connections.increment(1.0);
        OpenConnection(self.connections.clone())
    }

    /// Counts bytes that came.
    pub fn received(&self, bytes: usize) {
        self.received.increment(bytes as u64);
    }

    /// Counts bytes that went.
    pub fn sent(&self, bytes: usize) {
        self.sent.increment(bytes as u64);
    }
}

/// A connection that is open until this is dropped.
#[derive(Debug)]
#[must_use = "the connection counts as closed when this is dropped"]
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// What the calls of one protocol are answered with: by what is called, and by the code of the answer.
///
/// A series is there once it counts, so that there are not hundreds that stay 0. Cloning shares them.
#[derive(Clone)]
pub struct Answers {
    shared: Arc<AnswersOf>,
}

struct AnswersOf {
    metrics: Metrics,
    family: &'static Family,
    /// The names of the labels: of what is called, and of the code.
    labels: (&'static str, &'static str),
    rows: Box<[Row]>,
}

/// One thing that can be called.
struct Row {
    called: &'static str,
    /// The good code, which nearly all answers have and which is counted without a lock.
    good: OnceLock<Counter>,
    /// By other codes, of which a protocol has few.
    others: Mutex<BTreeMap<u16, Counter>>,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers").finish_non_exhaustive()
    }
}

impl Answers {
    pub(super) fn new(
        metrics: Metrics,
        family: &'static Family,
        labels: (&'static str, &'static str),
        called: impl Iterator<Item = &'static str>,
    ) -> Self {
        let row = |called| Row { called, good: OnceLock::new(), others: Mutex::default() };
        let shared = AnswersOf { metrics, family, labels, rows: called.map(row).collect() };
        Self { shared: Arc::new(shared) }
    }

    /// Counts an answer with the code that says that all is well.
    pub fn good(&self, called: usize, name: impl FnOnce() -> String) {
        let row = &self.shared.rows[called];
        row.good.get_or_init(|| self.shared.counter(row, name())).increment(1);
    }

    /// Counts an answer with another code; `name` writes it.
    pub fn other(&self, called: usize, code: u16, name: impl FnOnce() -> String) {
        let row = &self.shared.rows[called];
        row.others.lock().entry(code).or_insert_with(|| self.shared.counter(row, name())).increment(1);
    }
}

impl AnswersOf {
    fn counter(&self, row: &Row, code: String) -> Counter {
        let labels = vec![Label::new(self.labels.0, row.called), Label::new(self.labels.1, code)];
        self.metrics.series(labels).counter(self.family)
    }
}
