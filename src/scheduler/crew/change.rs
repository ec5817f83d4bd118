//! A change of the instances of a crew: new ones start beside those that serve, and once all are ready it is made.
//! Until then it can be given up, whatever the new ones do.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::oneshot::error::RecvError;

use super::{Begun, Crew, Watch, seats};
use crate::error::{Error, Result};
use crate::model::Instances;

/// A change that is not made yet; one that is dropped was given up.
#[derive(Debug)]
pub struct Change {
    crew: Arc<Crew>,
    /// New instances that have not told yet whether they are ready.
    begun: VecDeque<Begun>,
    /// The numbers of those that are.
    able: Vec<usize>,
    /// The numbers of those that are too much afterwards.
    surplus: Vec<usize>,
    /// Why it cannot be made.
    failed: Option<Error>,
}

impl Crew {
    /// Begins to change the instances to these: starts what is missing.
    pub fn change(self: &Arc<Self>, groups: &[Instances]) -> Change {
        let mut missing = seats(groups);
        let mut surplus = Vec::new();
        {
            let mut state = self.state.lock();
            state.forget_ended();
            for member in state.staff() {
                match missing.iter().position(|seat| *seat == member.seat) {
                    Some(at) => drop(missing.swap_remove(at)),
                    None => surplus.push(member.index),
                }
            }
        }
        let (begun, able) = (VecDeque::new(), Vec::new());
        let mut change = Change { crew: self.clone(), begun, able, surplus, failed: None };
        for seat in missing {
            match self.begin(seat) {
                Ok(begun) => change.begun.push_back(begun),
                Err(error) => change.failed = Some(error),
            }
        }
        change
    }
}

impl Change {
    /// Waits until all new instances are ready, or those that will ever be.
    ///
    /// # Errors
    /// Why one of them could not be started.
    pub async fn ready(&mut self) -> Result<()> {
        while let Some((index, watch, ready)) = self.begun.front_mut() {
            let told = ready.await;
            let (index, watch) = (*index, watch.clone());
            self.begun.pop_front();
            self.heard((index, &watch), told);
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// As [`Change::ready`] and [`Change::check`]. Blocking.
    ///
    /// # Errors
    /// As of these.
    pub(super) fn wait(&mut self) -> Result<()> {
        while let Some((index, watch, ready)) = self.begun.pop_front() {
            self.heard((index, &watch), ready.blocking_recv());
        }
        self.check()
    }

    /// Whether it can be made: the version is served, and all new instances that were ready serve, or others in their
    /// places.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<()> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let state = self.crew.state.lock();
        if let Some(error) = &state.deserted {
            return Err(error.clone());
        }
        let serves = |index: &usize| state.members.iter().any(|member| member.index == *index && member.joined);
        match self.able.iter().all(serves) {
            true => Ok(()),
            false => Err(Error::unavailable("an instance was lost before all were ready")),
        }
    }

    /// One has told whether it is ready, or has ended.
    fn heard(&mut self, (index, watch): (usize, &Arc<Watch>), told: std::result::Result<Result<()>, RecvError>) {
        let ended = |_| Err(Error::internal("the instance ended before it was ready"));
        match told.unwrap_or_else(ended) {
            Ok(()) => self.able.push(index),
            Err(error) => {
                self.failed.get_or_insert(error);
                self.crew.forget(index, watch);
            }
        }
    }

    /// Makes it: the new instances stay, and what is too much ends after the batch that it has. Does not block.
    pub fn make(mut self) {
        let (able, surplus) = (std::mem::take(&mut self.able), std::mem::take(&mut self.surplus));
        let crew = &self.crew;
        // Held all the time, so that nobody tells another number meanwhile.
        let mut state = crew.state.lock();
        for member in state.members.iter_mut().filter(|member| able.contains(&member.index)) {
            member.pending = false;
        }
        // If the new ones are lost by now, who is left goes on: nobody would tell that there is none.
        if state.staff().any(|member| !surplus.contains(&member.index)) {
            surplus.into_iter().for_each(|index| crew.dismiss(&mut state, index));
        }
        crew.settings.scheduler.staffed(state.serving());
    }

    /// Gives it up: no new instance serves any more, and nothing else has changed. These are the threads of those that
    /// were not ready, which end when they find out; nobody else waits for them. Does not block.
    pub fn undo(mut self) -> Vec<JoinHandle<()>> {
        self.take_back()
    }

    fn take_back(&mut self) -> Vec<JoinHandle<()>> {
        let mut threads = Vec::new();
        for (index, watch, mut ready) in std::mem::take(&mut self.begun) {
            match self.crew.give_up(index, &watch) {
                Some(thread) => threads.push(thread),
                None if matches!(ready.try_recv(), Ok(Err(_))) => self.crew.forget(index, &watch),
                // It is ready, or about to be.
                None => self.able.push(index),
            }
        }
        let able = std::mem::take(&mut self.able);
        let mut state = self.crew.state.lock();
        able.into_iter().for_each(|index| self.crew.dismiss(&mut state, index));
        drop(state);
        threads
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.take_back();
    }
}
