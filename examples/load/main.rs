//! A load generator: closed loop (N callers, each sends when its last answer came) or open loop (requests arrive at a
//! rate, whatever the server does, and are timed from the moment at which they should have been sent).
//!
//! Begin with [`Options`]. It knows no model: the inputs follow from the model's own metadata. Examples:
//!
//! ```text
//! cargo run --release --example load -- --model identity --concurrency 16 --seconds 10
//! cargo run --release --example load -- --model minilm --size 32 --rate 2000 --deadline-ms 200 --pid $(pidof nereid)
//! ```

mod arrivals;
mod inputs;
mod report;
mod server;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Parser;
use nereid::protocol::v2::wire::ModelInferRequest;
use nereid::protocol::v2::wire::grpc_inference_service_client::GrpcInferenceServiceClient as Client;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::arrivals::{Arrivals, Pattern};
use crate::report::{Outcome, Report};
use crate::server::Server;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Sends inference requests over gRPC and says what became of them.
#[derive(Parser, Clone, Debug)]
pub struct Options {
    /// The server's gRPC address
    #[arg(long, default_value = "127.0.0.1:8001")]
    grpc: String,
    /// The server's metrics address; its counters are compared with what was sent
    #[arg(long)]
    metrics: Option<String>,
    /// The server's process; its CPU time and memory are measured
    #[arg(long)]
    pid: Option<u32>,
    /// The model to ask
    #[arg(long)]
    model: String,
    /// What to put for dimensions of any size
    #[arg(long, default_value_t = 16)]
    size: usize,
    /// Rows of each request to a model that batches
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Closed loop: callers at the same time
    #[arg(long, default_value_t = 1)]
    concurrency: usize,
    /// Open loop: requests per second
    #[arg(long)]
    rate: Option<f64>,
    /// Open loop: how the arrivals are spread
    #[arg(long, value_enum, default_value_t = Pattern::Poisson)]
    arrivals: Pattern,
    /// Open loop: requests that are under way at most; what arrives beyond is counted and not sent
    #[arg(long, default_value_t = 50_000)]
    in_flight_max: usize,
    /// How long to send
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// How long to send before anything is counted
    #[arg(long, default_value_t = 1.0)]
    warmup: f64,
    /// The deadline that each request carries
    #[arg(long)]
    deadline_ms: Option<u64>,
    /// What counts as in time, if the server is not told; otherwise the deadline does
    #[arg(long, conflicts_with = "deadline_ms")]
    budget_ms: Option<u64>,
    /// Connections
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// The seed of the random distances
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What every request needs; shared by all tasks.
struct Load {
    clients: Vec<Client<Channel>>,
    request: ModelInferRequest,
    deadline: Option<Duration>,
}

impl Load {
    /// Sends one request; its latency counts from `since`.
    async fn send(&self, number: usize, since: Instant) -> Outcome {
        let mut request = tonic::Request::new(self.request.clone());
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        let result = self.clients[number % self.clients.len()].clone().model_infer(request).await;
        Outcome::new(result.err().as_ref(), since.elapsed())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("load: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Failure> {
    let connections = options.connections.min(options.rate.map_or(options.concurrency, |_| options.connections)).max(1);
    let mut clients = Vec::with_capacity(connections);
    for _ in 0..connections {
        let channel = Endpoint::from_shared(format!("http://{}", options.grpc))?.tcp_nodelay(true).connect().await?;
        clients.push(Client::new(channel).max_decoding_message_size(usize::MAX));
    }
    let request = inputs::request(&mut clients[0], &options).await?;
    let load = Arc::new(Load { clients, request, deadline: options.deadline_ms.map(Duration::from_millis) });

    closed_loop(&load, options.concurrency, Duration::from_secs_f64(options.warmup)).await;
    let watch = Server::watch(options.pid, options.metrics.clone()).await?;
    let begin = Instant::now();
    let duration = Duration::from_secs_f64(options.seconds);
    let mut report = match options.rate {
        None => closed_loop(&load, options.concurrency, duration).await,
        Some(rate) => open_loop(&load, rate, duration, &options).await,
    };
    report.finish(begin.elapsed(), options.budget_ms.map(Duration::from_millis).or(load.deadline));
    let seen = watch.finish().await?;
    if options.json {
        println!("{}", report.to_json(&seen));
    } else {
        print!("{report}{seen}");
    }
    Ok(())
}

/// `callers` tasks, each with one request under way, until the time is over and the last answers are there.
async fn closed_loop(load: &Arc<Load>, callers: usize, duration: Duration) -> Report {
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for number in 0..callers {
        let load = load.clone();
        tasks.spawn(async move {
            let mut report = Report::default();
            while Instant::now() < end {
                report.add(load.send(number, Instant::now()).await);
            }
            report
        });
    }
    tasks.join_all().await.into_iter().fold(Report::default(), Report::merge)
}

/// Requests at times that do not depend on the answers, until the time is over and the last answers are there.
async fn open_loop(load: &Arc<Load>, rate: f64, duration: Duration, options: &Options) -> Report {
    let begin = Instant::now();
    let room = Arc::new(Semaphore::new(options.in_flight_max));
    let (mut tasks, mut report) = (JoinSet::new(), Report::default());
    for (number, at) in Arrivals::new(options.arrivals, rate, duration, options.seed).enumerate() {
        let due = begin + at;
        // The runtime's clock goes in steps of a millisecond; the main thread, which is this, has nothing else to do.
        thread::sleep(due.saturating_duration_since(Instant::now()));
        while let Some(done) = tasks.try_join_next() {
            report.add_joined(done);
        }
        let Ok(permit) = room.clone().try_acquire_owned() else {
            report.not_sent += 1;
            continue;
        };
        let load = load.clone();
        tasks.spawn(async move {
            let outcome = load.send(number, due).await;
            drop(permit);
            outcome
        });
    }
    while let Some(done) = tasks.join_next().await {
        report.add_joined(done);
    }
    report
}
