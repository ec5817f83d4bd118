//! A deterministic simulation of the scheduler and of the lifecycle, under faults.
//!
//! Each seed is a world of its own: a virtual clock, the server's own queues, plans, waiters and reloads, and puppets in
//! the place of models, which are slow, fail and panic. Requests arrive, wait, are cancelled and expire at random. After
//! every step the world checks what must always hold (see `world`), and at its end that nothing was lost.
//!
//! `cargo test --release --test sim -- --requests 10000000`; a seed that fails is printed, and `--seed N` replays it.

mod chance;
mod ledger;
mod puppet;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nereid::infer::Instant;

/// What is simulated where nothing is said: enough for every build, as `cargo test` runs it unoptimised.
const REQUESTS: u64 = 100_000;

struct Arguments {
    requests: u64,
    first_seed: u64,
    /// Replay this one only, and say what happens.
    seed: Option<u64>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { requests: REQUESTS, first_seed: 0, seed: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || {
            let text = words.next().unwrap_or_default().replace('_', "");
            text.parse::<u64>().map_err(|error| format!("{word}: {error}"))
        };
        match word.as_str() {
            "--requests" => parsed.requests = number()?,
            "--first-seed" => parsed.first_seed = number()?,
            "--seed" => parsed.seed = Some(number()?),
            // What `cargo test` hands to every test binary.
            _ => {}
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    silence_puppets();
    if let Some(seed) = arguments.seed {
        return match run(seed) {
            Ok(requests) => {
                println!("seed {seed}: {requests} requests, every one with one outcome");
                ExitCode::SUCCESS
            }
            Err(error) => failed(seed, &error),
        };
    }
    simulate(&arguments)
}

fn simulate(arguments: &Arguments) -> ExitCode {
    let began = Instant::now();
    let (next, done, stop) = (AtomicU64::new(arguments.first_seed), AtomicU64::new(0), AtomicBool::new(false));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<(u64, String)> = std::thread::scope(|scope| {
        let worker = || {
            while done.load(Ordering::Relaxed) < arguments.requests && !stop.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                match run(seed) {
                    Ok(requests) => done.fetch_add(requests, Ordering::Relaxed),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Some((seed, error));
                    }
                };
            }
            None
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().filter_map(|worker| worker.join().expect("a worker catches panics")).collect()
    });
    if let Some((seed, error)) = failures.first() {
        return failed(*seed, error);
    }
    let (requests, worlds) = (done.into_inner(), next.into_inner() - arguments.first_seed);
    println!(
        "{requests} requests in {worlds} worlds from seed {} on, every one with one outcome; {:.1} s",
        arguments.first_seed,
        began.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

/// Runs one world to its end; gives the number of its requests.
fn run(seed: u64) -> Result<u64, String> {
    catch_unwind(AssertUnwindSafe(|| world::run(seed))).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
    })
}

fn failed(seed: u64, error: &str) -> ExitCode {
    eprintln!("seed {seed} failed: {error}\nreplay it: cargo test --test sim -- --seed {seed}");
    ExitCode::FAILURE
}

/// Puppets panic on purpose, which is nothing to print.
fn silence_puppets() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&puppet::PANIC) {
            usual(info);
        }
    }));
}
