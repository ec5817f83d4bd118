//! Models that are made of others: who waits for whom, and whom a change of one concerns.

use std::collections::BTreeSet;

use super::{Effect, Loaded, Model, Models};
use crate::engine::Key;
use crate::engine::order::{Because, Unload, What, outdated_load};
use crate::engine::overrides::Overrides;
use crate::error::{Error, Result};

impl<S: Clone, C> Models<S, C> {
    /// Begins the loads of the models that `key` needs and waits for them.
    pub(super) fn wait_for(&mut self, key: Key, needs: Vec<Key>) {
        let running = self.models.get(&key).and_then(|model| model.running.as_ref());
        if running.is_some_and(|running| running.progress.overtaken.is_cancelled()) {
            return self.loaded(key, Err(outdated_load()));
        }
        let mut waits_for = BTreeSet::new();
        for need in &needs {
            if *need == key || self.waits(need, &key) {
                continue;
            }
            let model = self.models.entry(need.clone()).or_default();
            // One that is leaving just now, such as for others' memory, comes back, unless something else is asked of it.
            if model.running.is_none() || model.leaves() && model.waiting.is_none() {
                self.ask(need.clone(), What::Load(Overrides::default()), Vec::new());
            }
            waits_for.insert(need.clone());
        }
        let Some(model) = self.models.get_mut(&key) else { return };
        model.seek(needs);
        let Some(running) = &mut model.running else { return };
        running.needs = waits_for;
        self.go_on(&key);
    }

    /// Whether `one` waits for `other`, perhaps by way of others.
    fn waits(&self, one: &Key, other: &Key) -> bool {
        let running = self.models.get(one).and_then(|model| model.running.as_ref());
        running.is_some_and(|running| running.needs.iter().any(|need| need == other || self.waits(need, other)))
    }

    /// The models that are made of this one have to be loaded again: it may have other inputs and outputs now. Those
    /// with an operation under way are loaded after it; what somebody asked for is never overtaken by this.
    pub(super) fn reload_dependents(&mut self, key: &Key) {
        let outdated = self.servings_with(key);
        if !outdated.is_empty() {
            self.effects.push(Effect::Outdate(outdated));
        }
        let mut idle = Vec::new();
        let dependents = self.models.iter_mut().filter(|(_, model)| model.view.wanted && model.has(key));
        for (dependent, model) in dependents {
            model.stale = true;
            idle.extend(model.running.is_none().then(|| dependent.clone()));
        }
        idle.into_iter().for_each(|dependent| self.next(dependent));
    }

    /// Whether a model that was just loaded has seen its members as they are: its job began after so many loads.
    pub(super) fn compare(&mut self, key: &Key, news: u64) {
        let members = self.models.get(key).map(|model| model.members.iter()).into_iter().flatten();
        let newer = members.filter_map(|member| self.models.get(member)).any(|member| member.news > news);
        if let Some(model) = self.models.get_mut(key).filter(|_| newer) {
            model.stale = true;
        }
    }

    /// What serves the models that are made of this one, perhaps by way of others.
    fn servings_with(&self, key: &Key) -> Vec<S> {
        let mut parts = vec![key];
        let mut seen = 0;
        while let Some(part) = parts.get(seen).copied() {
            seen += 1;
            let made_of = self.models.iter().filter(|(_, model)| model.members.contains(part));
            let new: Vec<&Key> = made_of.map(|(made, _)| made).filter(|made| !parts.contains(made)).collect();
            parts.extend(new);
        }
        let made = parts.iter().skip(1).filter_map(|made| self.models.get(made));
        made.flat_map(|model| model.servings.values().cloned()).collect()
    }

    /// What a load has led to, unless a member was unloaded while the model was fitted to it: then what is served goes on.
    pub(super) fn fitting(&mut self, key: &Key, result: Result<Loaded<S>>) -> Result<Loaded<S>> {
        let Ok(Loaded::New { versions, kept, members, origin }) = result else { return result };
        let is_served = |member: &&Key| self.models.get(*member).is_some_and(|member| !member.servings.is_empty());
        let Some(absent) = members.iter().find(|member| !is_served(member)) else {
            return Ok(Loaded::New { versions, kept, members, origin });
        };
        let error = Error::unavailable(missing(key, absent));
        self.drop_opened(key, versions, &kept);
        if let Some(model) = self.models.get_mut(key) {
            model.seek(members);
        }
        Err(error)
    }

    /// Before a model goes, whatever is made of it does.
    pub(super) fn unload_users(&mut self, key: &Key) {
        for (user, unloads) in self.users(key) {
            let running = self.models.get_mut(key).and_then(|model| model.running.as_mut());
            running.into_iter().for_each(|running| _ = running.needs.insert(user.clone()));
            if unloads {
                let because = (!self.stopping).then(|| Because::Unservable(missing(&user, key)));
                self.ask(user, What::Unload(Unload { dependents: false, because }), Vec::new());
            }
        }
    }

    /// The models that may have requests in flight which need this one, and whether they have to be unloaded for it.
    fn users(&self, key: &Key) -> Vec<(Key, bool)> {
        let users = self.models.iter().filter(|(user, model)| *user != key && model.uses(key));
        let unloads = |model: &Model<S, C>| model.view.wanted && model.members.contains(key) && !model.leaves();
        users.map(|(user, model)| (user.clone(), unloads(model))).collect()
    }

    /// Those who wait for this model go on if no operation on it does; an unload also if this model has finished the
    /// requests that need what is unloaded.
    pub(super) fn release(&mut self, key: &Key) {
        let of = self.models.get(key);
        let busy = of.is_some_and(|model| model.running.is_some());
        let waits = |waiter: &Key, leaves: bool| busy && (!leaves || of.is_some_and(|model| model.uses(waiter)));
        let waiters = self.models.iter().filter(|(waiter, model)| {
            let needs = model.running.as_ref().is_some_and(|running| running.needs.contains(key));
            needs && !waits(waiter, model.leaves())
        });
        for waiter in waiters.map(|(waiter, _)| waiter.clone()).collect::<Vec<_>>() {
            let running = self.models.get_mut(&waiter).and_then(|model| model.running.as_mut());
            running.into_iter().for_each(|running| _ = running.needs.remove(key));
            self.go_on(&waiter);
        }
    }

    /// The members of a model that nobody has asked for and no other wanted model has.
    pub(super) fn orphans(&self, key: &Key) -> Vec<Key> {
        let Some(model) = self.models.get(key) else { return Vec::new() };
        let needed = |member: &Key| {
            let mut others = self.models.iter().filter(|(other, model)| *other != key && model.view.wanted);
            others.any(|(_, other)| other.has(member))
        };
        let asked_for = |member: &Key| self.models.get(member).is_some_and(|member| member.asked_for);
        let members: BTreeSet<&Key> = model.members.iter().chain(&model.sought).collect();
        members.into_iter().filter(|member| !needed(member) && !asked_for(member)).cloned().collect()
    }
}

/// Why a model that is made of others is not served, in the words of the reference server.
fn missing(ensemble: &Key, member: &Key) -> String {
    format!("ensemble '{}' contains models that are not available or ambiguous: {}", ensemble.name, member.name)
}
