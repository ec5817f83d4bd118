//! What the server's process and its counters say about the same time.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::Failure;

/// Kernel clock ticks per second, the same on every Linux that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// How long requests that nobody waits for any more may go on.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// Watches the server while requests are sent.
pub struct Server {
    pid: Option<u32>,
    metrics: Option<String>,
    cpu_us_before: u64,
    counters_before: Option<Counters>,
    stop: oneshot::Sender<()>,
    resident: JoinHandle<Vec<u64>>,
}

impl Server {
    /// Begins to watch.
    pub async fn watch(pid: Option<u32>, metrics: Option<String>) -> Result<Self, Failure> {
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            pid,
            cpu_us_before: pid.and_then(cpu_us).unwrap_or(0),
            counters_before: Counters::ask(metrics.as_deref()).await?,
            metrics,
            stop,
            resident: tokio::spawn(sample_resident(pid, stopped)),
        })
    }

    /// Ends to watch, after the last answer. A server that has ended meanwhile has no counters any more.
    pub async fn finish(self) -> Result<Seen, Failure> {
        drop(self.stop);
        let counters = match self.counters_before {
            Some(before) => Counters::settled(self.metrics.as_deref(), &before).await,
            None => None,
        };
        Ok(Seen {
            cpu_us: self.pid.and_then(cpu_us).map(|after| after - self.cpu_us_before),
            resident: self.resident.await?,
            counters,
        })
    }
}

/// What was seen.
pub struct Seen {
    cpu_us: Option<u64>,
    /// Resident bytes, from the first sample to the last.
    pub resident: Vec<u64>,
    /// The server's counters, as far as they grew.
    pub counters: Option<Counters>,
}

impl Seen {
    /// CPU time of the server per request, in microseconds.
    pub fn cpu_us_per(&self, requests: usize) -> Option<f64> {
        self.cpu_us.map(|us| us as f64 / requests.max(1) as f64)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(us) = self.cpu_us {
            writeln!(f, "server   {:.2} s of CPU", us as f64 / 1e6)?;
        }
        if let (Some(first), Some(last), Some(max)) =
            (self.resident.first(), self.resident.last(), self.resident.iter().max())
        {
            let mib = |bytes: &u64| bytes / (1 << 20);
            writeln!(f, "memory   {} MiB at the start, {} at most, {} at the end", mib(first), mib(max), mib(last))?;
        }
        match &self.counters {
            Some(counters) => write!(f, "{counters}"),
            None => Ok(()),
        }
    }
}

/// CPU time of the process so far.
fn cpu_us(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may contain spaces; utime and stime are the 12th and 13th field behind it.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks * 1_000_000 / TICKS_PER_SECOND)
}

async fn sample_resident(pid: Option<u32>, mut stopped: oneshot::Receiver<()>) -> Vec<u64> {
    let mut samples = Vec::new();
    let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
    while let Some(pid) = pid {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => samples.extend(resident(pid)),
        }
    }
    samples.extend(pid.and_then(resident));
    samples
}

fn resident(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Counters of `/metrics`, summed over models and versions: by name, by name and reason, and by name and model.
#[derive(Default)]
pub struct Counters(BTreeMap<String, f64>);

const RECEIVED: &str = "nereid_requests_received_total";
const UNROUTED: &str = "nereid_unrouted_requests_total";
const FAILURES: &str = "nereid_request_failures_total";
const SUCCESS: &str = "nv_inference_request_success";

impl Counters {
    async fn ask(address: Option<&str>) -> Result<Option<Self>, Failure> {
        let Some(address) = address else { return Ok(None) };
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: server\r\nconnection: close\r\n\r\n").await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(Some(Self::parse(&text)))
    }

    /// The growth since `before` once it adds up: what a caller gave up while it ran is counted when it ends, and so
    /// are the steps of ensembles, each a request of its own. If that takes too long, as it is then.
    async fn settled(address: Option<&str>, before: &Self) -> Option<Self> {
        let give_up = Instant::now() + SETTLE_MAX;
        loop {
            let grown = Self::ask(address).await.ok()??.since(before);
            if grown.add_up() || Instant::now() > give_up {
                return Some(grown);
            }
            sleep(SAMPLE_INTERVAL).await;
        }
    }

    fn parse(text: &str) -> Self {
        let mut sums = BTreeMap::new();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let name = series.split('{').next().unwrap_or(series);
            if ![RECEIVED, UNROUTED, FAILURES, SUCCESS].contains(&name) {
                continue;
            }
            let value: f64 = value.parse().unwrap_or(0.0);
            *sums.entry(name.to_owned()).or_default() += value;
            for label in ["reason=\"", "model=\""] {
                if let Some((_, label)) = series.split_once(label) {
                    let label = label.split('"').next().unwrap_or_default();
                    *sums.entry(format!("{name} {label}")).or_default() += value;
                }
            }
        }
        Self(sums)
    }

    fn since(self, before: &Self) -> Self {
        let grown = |(name, value): (String, f64)| {
            let value = value - before.0.get(&name).unwrap_or(&0.0);
            (name, value)
        };
        Self(self.0.into_iter().map(grown).filter(|(_, value)| *value != 0.0).collect())
    }

    fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// Whether every request that arrived ended in exactly one counter.
    pub fn add_up(&self) -> bool {
        self.of(RECEIVED) == self.of(SUCCESS) + self.of(FAILURES) + self.of(UNROUTED)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [received, success, failed, unrouted] = [RECEIVED, SUCCESS, FAILURES, UNROUTED].map(|name| self.of(name));
        let relation = if self.add_up() { "=" } else { "IS NOT" };
        writeln!(
            f,
            "counters received {received} {relation} answered {success} + failed {failed} + unrouted {unrouted}"
        )?;
        for (name, value) in self.0.iter().filter(|(name, _)| name.contains(' ')) {
            writeln!(f, "         {name} {value}")?;
        }
        Ok(())
    }
}
