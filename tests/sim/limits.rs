//! Several models that share resources by the rate limiter.
//!
//! No more is in use at any time than there is, nobody is passed by for ever at its own cost, and at the end everything
//! was given back.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use nereid::infer::Instant;
use nereid::model::{Amount, Device, RateLimit, Resource};
use nereid::scheduler::{Claim, Limiter, Look, Permit, Want};
use nereid::telemetry::metrics::Metrics;

use crate::chance::Chance;
use crate::queues::Queues;
use crate::sequences::Sequenced;
use crate::served::{Rules, Served};
use crate::world::{self, Model};

/// The kinds of resources.
const KINDS: usize = 2;

/// How often an instance that waits for resources looks whether it still has something to do with them, as the limiter's
/// threads do.
const WANTED_EVERY: Duration = Duration::from_millis(50);

/// A world of models with resources in common.
pub fn run(chance: Chance) -> u64 {
    world::run(chance, |world, chance| {
        let books = Rc::new(Books::new(chance));
        let mut models: Vec<Box<dyn Model>> = vec![Box::new(Everything(books.clone()))];
        for _ in 0..chance.between(2, 4) {
            let posts = Posts(Some((books.clone(), books.limit(chance))));
            models.push(match chance.one_in(0.3) {
                true => Box::new(Sequenced::new(world, posts, chance)),
                false => Box::new(Queues::new(world, posts, chance)),
            });
        }
        models
    })
}

/// The limiter, and what the world knows of who uses what.
struct Books {
    limiter: Arc<Limiter>,
    amounts: [u32; KINDS],
    claims: RefCell<Vec<Claimant>>,
}

/// One instance.
struct Claimant {
    needs: [u32; KINDS],
    weight: u32,
    uses: bool,
    waits: bool,
    /// How often each other one was preferred at its cost while it waits.
    passed_by: Vec<u32>,
}

impl Books {
    fn new(chance: &mut Chance) -> Self {
        let amounts = std::array::from_fn(|_| chance.between(3, 5) as u32);
        let amount = |kind: usize| Amount { name: name(kind), count: amounts[kind], device: None };
        let limiter = Arc::new(Limiter::new((0..KINDS).map(amount).collect(), &Metrics::new()));
        Self { limiter, amounts, claims: RefCell::default() }
    }

    /// What the instances of one model need.
    fn limit(&self, chance: &mut Chance) -> RateLimit {
        let needs = (0..KINDS).map(|kind| (kind, chance.below(4) as u32)).collect::<Vec<_>>();
        let needs = needs.into_iter().filter(|(_, count)| *count > 0);
        let resources = needs.map(|(kind, count)| resource(kind, count)).collect();
        RateLimit { resources, priority: chance.between(1, 4) as u32 }
    }

    /// An instance has begun to execute.
    fn begins(&self, own: usize) {
        let mut claims = self.claims.borrow_mut();
        let (needs, weight) = (claims[own].needs, claims[own].weight);
        (claims[own].uses, claims[own].waits) = (true, false);
        let count = claims.len();
        let free = (0..KINDS).map(|kind| {
            let used: u32 = claims.iter().filter(|claim| claim.uses).map(|claim| claim.needs[kind]).sum();
            let total = self.amounts[kind];
            assert!(used <= total, "{used} of {total} {} are in use", name(kind));
            total - used
        });
        let free: Vec<u32> = free.collect();
        for (index, other) in claims.iter_mut().enumerate().filter(|(_, other)| other.waits) {
            if (0..KINDS).all(|kind| needs[kind] == 0 || other.needs[kind] <= free[kind]) {
                continue;
            }
            other.passed_by.resize(count, 0);
            other.passed_by[own] += 1;
            let (times, allowed) = (other.passed_by[own], other.weight / weight + 3);
            assert!(times <= allowed, "instance {index} is passed by {times} times by {own}, {allowed} are its turns");
        }
    }
}

fn name(kind: usize) -> String {
    format!("R{kind}")
}

fn resource(kind: usize, count: u32) -> Resource {
    Resource { name: name(kind), global: kind == 0, count }
}

/// Gives the instances of one model their places with the limiter; none without a limiter.
#[derive(Clone)]
pub struct Posts(Option<(Rc<Books>, RateLimit)>);

impl Posts {
    pub fn none() -> Self {
        Self(None)
    }

    /// Whether executions wait for nothing but an instance.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// What makes the place of an instance.
    pub fn maker(&self) -> Box<dyn Fn() -> Option<Post>> {
        let posts = self.clone();
        Box::new(move || posts.post())
    }

    fn post(&self) -> Option<Post> {
        let (books, limit) = self.0.as_ref()?;
        let claim = books.limiter.claim(Device::Cpu, limit).expect("there is enough")?;
        let mut needs = [0; KINDS];
        for resource in &limit.resources {
            needs[usize::from(!resource.global)] = resource.count;
        }
        let mut claims = books.claims.borrow_mut();
        claims.push(Claimant { needs, weight: limit.priority, uses: false, waits: false, passed_by: Vec::new() });
        Some(Post { claim, books: books.clone(), own: claims.len() - 1, renewed: false })
    }
}

/// An instance's place with the rate limiter.
pub struct Post {
    claim: Claim,
    books: Rc<Books>,
    /// Its number among all instances.
    own: usize,
    /// Whether the claim stands in line already.
    pub renewed: bool,
}

impl Post {
    /// Waits for something to do and for the resources, as an instance thread does.
    ///
    /// # Errors
    /// If the instance is to end.
    pub async fn acquire<R: Rules>(&mut self, served: &Served<R>, index: usize) -> Result<Permit, ()> {
        loop {
            let renewed = std::mem::take(&mut self.renewed);
            if !renewed {
                let look = served.scheduler.look(index, Want::Know, false);
                if !matches!(look, Look::Ready) {
                    if served.idle(look).await {
                        continue;
                    }
                    return Err(());
                }
            }
            if !renewed {
                self.claim.ask();
            }
            self.waits(true);
            loop {
                if let Some(permit) = self.claim.held() {
                    self.waits(false);
                    return Ok(permit);
                }
                served.world.idle(Some(WANTED_EVERY)).await;
                if served.scheduler.waiting() == 0 && self.claim.leave() {
                    self.waits(false);
                    break;
                }
            }
        }
    }

    fn waits(&self, waits: bool) {
        let claim = &mut self.books.claims.borrow_mut()[self.own];
        claim.waits = waits;
        claim.passed_by.clear();
    }

    /// It begins to execute with what it holds.
    pub fn begins(&self) {
        self.books.begins(self.own);
    }

    /// Its execution is at its end.
    pub fn ends(&self) {
        self.books.claims.borrow_mut()[self.own].uses = false;
    }
}

/// Who claims everything at the end, when nobody else wants anything.
struct Everything(Rc<Books>);

impl Model for Everything {
    fn serves(&self) -> bool {
        false
    }

    fn quiet(&self, _ids: Range<u64>) -> Option<Instant> {
        let resources = (0..KINDS).map(|kind| resource(kind, self.0.amounts[kind])).collect();
        let claim = self.0.limiter.claim(Device::Cpu, &RateLimit { resources, priority: 1 });
        let claim = claim.expect("there is enough").expect("it needs something");
        claim.ask();
        assert!(claim.held().is_some(), "resources are held although nobody executes");
        None
    }
}
