//! When the requests of an open loop arrive, whatever the server does. Begin with [`Arrivals`].

use std::time::Duration;

use clap::ValueEnum;

/// How arrivals are spread; the mean rate is the same for all.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum Pattern {
    /// Equal distances
    Constant,
    /// Random distances
    Poisson,
    /// Random distances; twice the rate for the first quarter of each second, two thirds of it for the rest
    Bursty,
    /// Random distances; half the rate for the first half of the time, one and a half times the rate for the second
    Step,
}

/// The times of all arrivals of a run, counted from its beginning.
pub struct Arrivals {
    pattern: Pattern,
    rate: f64,
    duration: Duration,
    random: Random,
    at: Duration,
}

impl Arrivals {
    /// `rate` arrivals each second on average, for `duration`; the same `seed` repeats the same arrivals.
    pub fn new(pattern: Pattern, rate: f64, duration: Duration, seed: u64) -> Self {
        Self { pattern, rate, duration, random: Random::new(seed), at: Duration::ZERO }
    }

    /// The rate now, as a multiple of the mean.
    fn factor(&self) -> f64 {
        match self.pattern {
            Pattern::Constant | Pattern::Poisson => 1.0,
            Pattern::Bursty if self.at.subsec_millis() < 250 => 2.0,
            Pattern::Bursty => 2.0 / 3.0,
            Pattern::Step if self.at < self.duration / 2 => 0.5,
            Pattern::Step => 1.5,
        }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let gap = match self.pattern {
            Pattern::Constant => 1.0,
            Pattern::Poisson | Pattern::Bursty | Pattern::Step => -self.random.next().ln(),
        };
        self.at += Duration::from_secs_f64(gap / (self.rate * self.factor()));
        (self.at < self.duration).then_some(self.at)
    }
}

/// A small generator of numbers in (0, 1]; xorshift, so that a seed repeats the same arrivals.
struct Random(u64);

impl Random {
    /// Spreads the seed over all bits: from a small state the first numbers would be tiny, and the first gaps huge.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1))
    }

    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) as f64 + 1.0) / (1u64 << 53) as f64
    }
}
