//! What became of the requests: counts by status, latencies, goodput.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::Status;

use crate::server::Seen;

/// What became of one request.
pub struct Outcome {
    /// `None` for an answer.
    failure: Option<String>,
    latency: Duration,
}

impl Outcome {
    /// Failures are told apart by who speaks: the server, by a status; this client's clock; or the connection.
    pub fn new(status: Option<&Status>, latency: Duration) -> Self {
        let failure = status.map(|status| match status.source() {
            Some(cause) if status.message().contains("Timeout expired") || cause.to_string().contains("Timeout") => {
                "client stopped waiting".to_owned()
            }
            Some(cause) => format!("connection: {}", innermost(cause)),
            None if status.message() == "Timeout expired" => "client stopped waiting".to_owned(),
            None => format!("{:?}: {}", status.code(), without_numbers(status.message())),
        });
        Self { failure, latency }
    }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(cause) = error.source() {
        error = cause;
    }
    error.to_string()
}

/// The message with each number as `#`, so that equal reasons are counted together.
fn without_numbers(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        match c {
            '0'..='9' if text.ends_with('#') => {}
            '0'..='9' => text.push('#'),
            other => text.push(other),
        }
    }
    text
}

/// All outcomes of a run.
#[derive(Default)]
pub struct Report {
    answered_us: Vec<u32>,
    failed_us: BTreeMap<String, Vec<u32>>,
    /// Arrivals of the open loop beyond `--in-flight-max`.
    pub not_sent: u64,
    took: Duration,
    in_time: usize,
}

impl Report {
    /// Adds one outcome.
    pub fn add(&mut self, outcome: Outcome) {
        let us = u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX);
        match outcome.failure {
            None => self.answered_us.push(us),
            Some(failure) => self.failed_us.entry(failure).or_default().push(us),
        }
    }

    /// Adds the outcome of a task that ended.
    pub fn add_joined(&mut self, joined: Result<Outcome, tokio::task::JoinError>) {
        match joined {
            Ok(outcome) => self.add(outcome),
            Err(error) => self.add(Outcome { failure: Some(error.to_string()), latency: Duration::ZERO }),
        }
    }

    /// Both together.
    pub fn merge(mut self, other: Self) -> Self {
        self.answered_us.extend(other.answered_us);
        for (failure, us) in other.failed_us {
            self.failed_us.entry(failure).or_default().extend(us);
        }
        self.not_sent += other.not_sent;
        self
    }

    /// Ends the run: `took` from the first request to the last answer; what took no longer than `budget` is in time.
    pub fn finish(&mut self, took: Duration, budget: Option<Duration>) {
        self.took = took;
        self.answered_us.sort_unstable();
        self.failed_us.values_mut().for_each(|us| us.sort_unstable());
        let limit = budget.map_or(u128::MAX, |budget| budget.as_micros());
        self.in_time = self.answered_us.partition_point(|us| u128::from(*us) <= limit);
    }

    fn sent(&self) -> usize {
        self.answered_us.len() + self.failed_us.values().map(Vec::len).sum::<usize>()
    }

    fn per_second(&self, count: usize) -> f64 {
        count as f64 / self.took.as_secs_f64()
    }

    /// The run as one JSON object, for scripts.
    pub fn to_json(&self, seen: &Seen) -> serde_json::Value {
        let failed: BTreeMap<_, _> = self.failed_us.iter().map(|(failure, us)| (failure, us.len())).collect();
        let failed_p99: BTreeMap<_, _> =
            self.failed_us.iter().map(|(failure, us)| (failure, percentile(us, 0.99))).collect();
        serde_json::json!({
            "sent": self.sent(),
            "answered": self.answered_us.len(),
            "failed": failed,
            "failed_p99_us": failed_p99,
            "not_sent": self.not_sent,
            "seconds": self.took.as_secs_f64(),
            "per_second": self.per_second(self.answered_us.len()),
            "goodput_per_second": self.per_second(self.in_time),
            "p50_us": percentile(&self.answered_us, 0.5),
            "p99_us": percentile(&self.answered_us, 0.99),
            "max_us": self.answered_us.last(),
            "server_cpu_us_per_request": seen.cpu_us_per(self.sent()),
            "server_resident_bytes": seen.resident,
            "server_counters_add_up": seen.counters.as_ref().map(|counters| counters.add_up()),
        })
    }
}

/// The value below which the part `part` of the sorted values lies; 0 without values.
fn percentile(sorted: &[u32], part: f64) -> u32 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |us: &[u32]| {
            let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|part| percentile(us, part));
            format!("p50 {p50} us, p99 {p99} us, p99.9 {p999} us, max {} us", us.last().unwrap_or(&0))
        };
        writeln!(f, "sent     {} in {:.1} s", self.sent(), self.took.as_secs_f64())?;
        let answered = self.answered_us.len();
        writeln!(f, "answered {answered} ({:.0}/s): {}", self.per_second(answered), line(&self.answered_us))?;
        writeln!(f, "in time  {} ({:.0}/s)", self.in_time, self.per_second(self.in_time))?;
        for (failure, us) in &self.failed_us {
            writeln!(f, "failed   {} {failure}: {}", us.len(), line(us))?;
        }
        if self.not_sent > 0 {
            writeln!(f, "not sent {} (too many under way)", self.not_sent)?;
        }
        Ok(())
    }
}
