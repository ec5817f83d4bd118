//! The task that writes traces: it alone touches the file or the collector.
//!
//! It ends when it is told to, once everything that waited then is written. Begin with [`start`].

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::file::TraceFile;
use super::otlp::Exporter;
use super::record::Record;
use super::{Mode, Settings, span};
use crate::error::Result;
use crate::infer::Instant;
use crate::telemetry::metrics::{Metrics, Traced};

/// The most traces that are written to a file at once.
const FILE_BATCH_MAX: usize = 64;

/// The task that writes.
#[must_use = "what it has not written is lost unless it is stopped"]
pub struct Writing {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Writing {
    /// Writes what waits, and ends; traces that end later are dropped. `false` if `deadline` came before everything
    /// was written.
    pub async fn stop(mut self, deadline: Instant) -> bool {
        self.stop.cancel();
        let in_time = tokio::time::timeout_at(deadline, &mut self.task).await.is_ok();
        self.task.abort();
        in_time
    }
}

/// Starts the task, if traces have somewhere to go.
///
/// # Errors
/// [`crate::error::Kind::InvalidArgument`] if the collector's URL cannot be used.
pub fn start(settings: &Settings, metrics: &Metrics) -> Result<Option<(mpsc::Sender<Record>, Writing)>> {
    let (sink, size, gather) = match (settings.mode, &settings.file) {
        (Mode::Triton, None) => return Ok(None),
        (Mode::Triton, Some(path)) => {
            let gather = Gather { most: FILE_BATCH_MAX, delay: Duration::ZERO };
            (Sink::File(TraceFile::new(path.clone())), settings.queue_size_max, gather)
        }
        (Mode::OpenTelemetry, _) => {
            let otlp = &settings.otlp;
            // These bounds are of spans.
            let traces = |spans: usize| (spans / span::SPANS_MAX).max(1);
            let gather = Gather { most: traces(otlp.batch_size_max), delay: otlp.schedule_delay };
            (Sink::Collector(Exporter::new(otlp)?), traces(otlp.queue_size_max), gather)
        }
    };
    let (queue, records) = mpsc::channel(size);
    let stop = CancellationToken::new();
    let writer = Writer { records, sink, metrics: metrics.clone(), stop: stop.clone(), failing: false };
    Ok(Some((queue, Writing { stop, task: tokio::spawn(writer.run(gather)) })))
}

/// How many traces are gathered before they are written, and how long.
struct Gather {
    most: usize,
    delay: Duration,
}

enum Sink {
    File(TraceFile),
    Collector(Exporter),
}

struct Writer {
    records: mpsc::Receiver<Record>,
    sink: Sink,
    metrics: Metrics,
    stop: CancellationToken,
    /// The last attempt failed: that is logged once, not once for each batch.
    failing: bool,
}

impl Writer {
    async fn run(mut self, gather: Gather) {
        let mut batch = Vec::new();
        loop {
            let stop = self.stop.clone();
            tokio::select! {
                more = self.records.recv_many(&mut batch, gather.most) => {
                    if more == 0 {
                        return;
                    }
                    self.fill(&mut batch, &gather, &stop).await;
                    self.write(std::mem::take(&mut batch)).await;
                }
                () = stop.cancelled(), if !self.records.is_closed() => self.records.close(),
            }
        }
    }

    /// Waits for more, until the batch is full, its time is over or the server stops.
    async fn fill(&mut self, batch: &mut Vec<Record>, gather: &Gather, stop: &CancellationToken) {
        let filled = async {
            while batch.len() < gather.most && self.records.recv_many(batch, gather.most - batch.len()).await > 0 {}
        };
        tokio::select! {
            () = filled => {}
            () = tokio::time::sleep(gather.delay), if !gather.delay.is_zero() => {}
            () = std::future::ready(()), if gather.delay.is_zero() => {}
            () = stop.cancelled() => {}
        }
    }

    async fn write(&mut self, batch: Vec<Record>) {
        let count = batch.len() as u64;
        let written = match &mut self.sink {
            Sink::File(file) => file.write(&batch).await.map_err(|error| error.to_string()),
            Sink::Collector(exporter) => exporter.send(batch.iter().flat_map(span::spans).collect()).await,
        };
        let was_failing = std::mem::replace(&mut self.failing, written.is_err());
        match written {
            Ok(()) => self.metrics.traced(Traced::Written, count),
            Err(error) => {
                self.metrics.traced(Traced::Failed, count);
                if !was_failing {
                    tracing::warn!(%error, traces = count, "traces cannot be written and are lost");
                }
            }
        }
    }
}
