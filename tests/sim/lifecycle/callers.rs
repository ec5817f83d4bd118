//! Requests to models as the server's own way takes them: found in what is shown, sent, and found anew if that copy has
//! just been closed.

use std::rc::Rc;
use std::time::Duration;

use nereid::engine::Key;
use tokio::time::sleep;

use super::World;
use super::copy::Copy;

/// How many times a request looks for another copy: each time a newer one must have replaced the one that it found.
const LOOKS_MAX: usize = 20;

/// One request from its arrival to its outcome.
pub async fn request(world: Rc<World>, key: Key, patience: Option<Duration>) {
    for _ in 0..LOOKS_MAX {
        let Some(copy) = world.find(&key) else { return world.refused(&key) };
        // Between the look and the queue a copy may be replaced.
        if world.one_in(0.2) {
            sleep(world.ms(0, 3)).await;
        }
        let sent = match copy.identity.members.is_empty() {
            true => copy.ask(world.count_request(), patience).await.is_ok(),
            false => pass(&world, &copy, patience).await,
        };
        if sent || copy.lost.get() {
            return;
        }
    }
    panic!("a request finds only copies of {key} that are closed");
}

/// A request's way through an ensemble; `false` if the ensemble is closed.
async fn pass(world: &Rc<World>, ensemble: &Rc<Copy>, patience: Option<Duration>) -> bool {
    if ensemble.closed.get() {
        return false;
    }
    assert!(!ensemble.dropped.get(), "{} gets a request and is gone", ensemble.name());
    ensemble.in_flight.set(ensemble.in_flight.get() + 1);
    for (member, _) in &ensemble.identity.members {
        sleep(world.ms(0, 2)).await;
        Box::pin(step(world, ensemble, member, patience)).await;
    }
    ensemble.in_flight.set(ensemble.in_flight.get() - 1);
    ensemble.stepped();
    true
}

/// A step of an ensemble: its member is there as long as it needs it, unless its instances are lost.
async fn step(world: &Rc<World>, ensemble: &Rc<Copy>, key: &Key, patience: Option<Duration>) {
    let sent = match world.find_member(key) {
        None => false,
        Some(member) if member.identity.members.is_empty() => member.ask(world.count_request(), patience).await.is_ok(),
        Some(member) => pass(world, &member, patience).await,
    };
    assert!(sent || world.was_lost(key), "{} finds no {key}", ensemble.name());
}
