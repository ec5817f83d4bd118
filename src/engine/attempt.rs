//! One load operation: it waits for its turn, tries, tries again, and is given up when it does not end.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::hanging::Claim;
use super::loader::{Loader, on_thread};
use super::manager::Event;
use super::models::{Job, Loaded};
use super::order::outdated_load;
use super::permits::{Permit, Permits};
use super::serving::Serving;
use crate::error::{Error, Result};
use crate::infer::Instant;
use crate::scheduler::{Way, give_way};

/// How long the first failure is left alone; each further one twice as long.
const RETRY_DELAY: Duration = Duration::from_millis(100);
/// The longest that a failure is left alone.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(10);
/// The longest that a load may wait for memory beside its own time, while others run in its place.
const ASIDE_TIME_MAX: Duration = Duration::from_secs(3600);

/// A load and what it takes.
pub(super) struct Attempt {
    pub(super) loader: Arc<Loader>,
    /// Only so many load at the same time.
    pub(super) permits: Permits,
    pub(super) events: mpsc::WeakSender<Event>,
    pub(super) job: Arc<Job<Serving>>,
}

impl Attempt {
    /// Loads, or finds out why not.
    pub(super) async fn run(self) -> Event {
        let result = self.result().await;
        Event::Loaded { key: self.job.key.clone(), result }
    }

    async fn result(&self) -> Result<Loaded<Serving>> {
        let (key, progress) = (&self.job.key, &self.job.progress);
        let mut failures = 0;
        loop {
            let permit = tokio::select! {
                biased;
                () = progress.overtaken.cancelled() => return Err(outdated_load()),
                permit = self.permits.acquire() => permit?,
            };
            progress.begin();
            tracing::info!(model = %key, "loading model");
            let result = self.once(permit).await;
            match result {
                Err(error) if failures < self.loader.retries && !progress.overtaken.is_cancelled() => {
                    failures += 1;
                    tracing::warn!(model = %key, failures, %error, "load failed, trying again");
                    progress.wait();
                    tokio::select! {
                        () = progress.overtaken.cancelled() => return Err(outdated_load()),
                        () = tokio::time::sleep(retry_delay(failures)) => {}
                    }
                }
                result => return result,
            }
        }
    }

    /// Tries once, on a thread of its own, which is left alone if it takes too long.
    async fn once(&self, permit: Permit) -> Result<Loaded<Serving>> {
        let key = &self.job.key;
        self.loader.hanging.check(key)?;
        let claim = Arc::new(Claim::new(permit));
        let (loader, job, events, own) = (self.loader.clone(), self.job.clone(), self.events.clone(), claim.clone());
        let work = move || {
            // What is served meanwhile is not to notice a reload; for another load somebody waits.
            give_way(if job.is_reload() { Way::All } else { Way::Some });
            let loaded = loader.load(&job, &own, |versions| {
                if let Some(events) = events.upgrade() {
                    let (key, progress) = (job.key.clone(), job.progress.clone());
                    let _ = events.blocking_send(Event::Resolved { key, versions: versions.to_vec(), progress });
                }
            });
            // What was served then is not kept by what hangs.
            drop(job);
            own.wait_for_left();
            loaded
        };
        let mut end = pin!(on_thread("nereid-loader", work));
        if let Some(time_max) = self.loader.time_max {
            let began = Instant::now();
            loop {
                // While it lets others run in its place, it does not hang.
                let aside = claim.permit.as_ref().map(Permit::aside).unwrap_or_default().min(ASIDE_TIME_MAX);
                if began.elapsed() >= time_max + aside {
                    break;
                }
                tokio::select! {
                    biased;
                    end = &mut end => return end.unwrap_or_else(Err),
                    () = tokio::time::sleep_until(began + time_max + aside) => {}
                }
            }
            if self.loader.hanging.give_up(key, &claim) {
                self.loader.memory.give_up(key);
                claim.permit.iter().for_each(Permit::end);
                let seconds = time_max.as_secs_f64();
                return Err(Error::unavailable(format!(
                    "the load of model '{}' has not ended after {seconds} s and is given up",
                    key.name
                )));
            }
        }
        end.await.unwrap_or_else(Err)
    }
}

/// How long to wait after so many failures.
pub(super) fn retry_delay(failures: u32) -> Duration {
    let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
    RETRY_DELAY.saturating_mul(doubled).min(RETRY_DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_is_left_alone_twice_as_long_within_a_limit() {
        let delays: Vec<u128> = [1, 2, 3, 7, 8, 1000].map(|failures| retry_delay(failures).as_millis()).into();
        assert_eq!(delays, [100, 200, 400, 6400, 10_000, 10_000]);
    }
}
