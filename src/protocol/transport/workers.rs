//! The network's threads, each of which serves the connections given to it alone.
//!
//! A call is so short that moving it to another thread costs more than it gains, and a runtime of several threads wakes
//! a second one for much of what the first finds. So each thread is a runtime of its own, and a connection stays where
//! it was put: with the thread that has the fewest. Knows nothing of connections but their number.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use super::rehearsal::rehearse;
use crate::error::{Error, Result};
use crate::infer::round;

/// How long a start waits for all threads to be ready; usually a millisecond.
const REHEARSAL_MAX: Duration = Duration::from_secs(1);

/// The threads, for all front ends; dropping them ends what still runs on them.
pub struct Workers {
    workers: Vec<Worker>,
}

struct Worker {
    /// `None` if it is the caller's own runtime, which is not ours to end.
    runtime: Option<Runtime>,
    handle: Handle,
    /// Held by each connection as well, so that the count tells how many there are.
    load: Arc<()>,
}

/// A place for one connection; kept as long as it lasts.
pub struct Place {
    /// Where its tasks go.
    pub handle: Handle,
    _load: Arc<()>,
}

impl Workers {
    /// Starts `threads` threads; with 0, connections are served by the runtime of the caller.
    ///
    /// # Errors
    /// [`crate::error::Kind::Internal`] if the system gives no thread.
    pub fn start(threads: usize) -> Result<Self> {
        if threads == 0 {
            let own = Worker { runtime: None, handle: Handle::current(), load: Arc::default() };
            return Ok(Self { workers: vec![own] });
        }
        let workers = (0..threads).map(|index| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(format!("net-{index}")).enable_all();
            let runtime = builder.on_thread_start(round::begin).on_thread_park(round::end).build();
            let runtime =
                runtime.map_err(|error| Error::internal(format!("cannot start a network thread: {error}")))?;
            Ok(Worker { handle: runtime.handle().clone(), runtime: Some(runtime), load: Arc::default() })
        });
        let workers = Self { workers: workers.collect::<Result<_>>()? };
        workers.rehearse();
        Ok(workers)
    }

    /// Has each thread make its first calls; blocks until they are done.
    fn rehearse(&self) {
        let (done, all_done) = mpsc::channel::<()>();
        for worker in &self.workers {
            let done = done.clone();
            worker.handle.spawn(async move {
                rehearse().await;
                drop(done);
            });
        }
        drop(done);
        // It ends when nobody can say anything any more.
        let _ = all_done.recv_timeout(REHEARSAL_MAX);
    }

    /// A place at the thread with the fewest connections.
    pub fn place(&self) -> Place {
        let worker = self.workers.iter().min_by_key(|worker| Arc::strong_count(&worker.load));
        let worker = worker.expect("there is at least one, start() makes it");
        Place { handle: worker.handle.clone(), _load: worker.load.clone() }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Waiting for the threads would block the task that drops them.
        self.workers.drain(..).filter_map(|worker| worker.runtime).for_each(Runtime::shutdown_background);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_go_where_the_fewest_are() {
        let workers = Workers::start(2).expect("two threads");
        let ids = |places: &[Place]| places.iter().map(|place| place.handle.id()).collect::<Vec<_>>();
        let mut places = vec![workers.place(), workers.place()];
        assert_ne!(ids(&places)[0], ids(&places)[1]);
        let freed = ids(&places)[1];
        places.remove(1);
        assert_eq!(workers.place().handle.id(), freed);
    }

    #[tokio::test]
    async fn no_threads_means_the_callers_own() {
        let workers = Workers::start(0).expect("nothing to start");
        assert_eq!(workers.place().handle.id(), Handle::current().id());
    }
}
