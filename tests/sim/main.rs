//! A deterministic simulation of the schedulers and of the lifecycle, under faults.
//!
//! Each seed is a world of its own: a virtual clock, the server's own schedulers and waiters, and puppets in the place of
//! models, which are slow, fail, panic and hang. Requests arrive, wait, are cancelled and expire at random. After every
//! step the world checks what must always hold (see `served`), and at its end that nothing was lost.
//!
//! `make simulate REQUESTS=10000000`; a seed that fails is printed, and `--seed N` replays it. `--world NAME` runs one
//! kind of world only.

mod caller;
mod chance;
mod history;
mod ledger;
mod lifecycle;
mod limits;
mod puppet;
mod queues;
mod sequences;
mod served;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nereid::infer::Instant;

use crate::chance::Chance;

/// What is simulated where nothing is said: enough for every build, as `cargo test` runs it unoptimised.
const REQUESTS: u64 = 100_000;

/// A kind of world, by its name: lives through one world of these choices, and gives the number of its requests. Panics
/// with what does not hold.
type World = (&'static str, fn(Chance) -> u64);

/// The kinds of worlds; the seed decides which one.
const WORLDS: [World; 4] =
    [("queues", queues::run), ("sequences", sequences::run), ("limits", limits::run), ("lifecycle", lifecycle::run)];

struct Arguments {
    requests: u64,
    first_seed: u64,
    /// Replay this one only, and say what happens.
    seed: Option<u64>,
    /// Leave out the other kinds of worlds.
    world: Option<String>,
}

impl Arguments {
    /// Whether the world of this seed is wanted.
    fn wants(&self, seed: u64) -> bool {
        self.world.as_deref().is_none_or(|world| world == kind(seed).0)
    }
}

/// The kind of world that a seed is.
fn kind(seed: u64) -> World {
    WORLDS[(seed % WORLDS.len() as u64) as usize]
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments { requests: REQUESTS, first_seed: 0, seed: None, world: None };
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
            "--world" => {
                let name = words.next().unwrap_or_default();
                if !WORLDS.iter().any(|(known, _)| *known == name) {
                    return Err(format!("there is no world '{name}'"));
                }
                parsed.world = Some(name);
            }
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
                println!("seed {seed}, {}: {requests} requests, every one with one outcome", kind(seed).0);
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
                if !arguments.wants(seed) {
                    continue;
                }
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
    catch_unwind(AssertUnwindSafe(|| (kind(seed).1)(Chance::new(seed)))).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
    })
}

fn failed(seed: u64, error: &str) -> ExitCode {
    eprintln!("seed {seed} ({}) failed: {error}\nreplay it: cargo test --test sim -- --seed {seed}", kind(seed).0);
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
