//! Threads that give way: loads compute what those that serve leave over.

use std::time::Duration;

use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

use crate::infer::Instant;

/// How much a thread gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// It has a tenth of a processor that others want, too: for what somebody waits for.
    Some,
    /// It computes only while nobody else wants the processor, and is interrupted as soon as somebody does (`SCHED_IDLE`,
    /// sched(7)); of a processor that is never idle it gets a few thousandths. For what nobody waits for.
    All,
}

/// How nice the threads are that give way to some degree, see nice(2).
const NICENESS: i32 = 10;

/// Lets the calling thread give way from now on, and those that it starts, where the system allows that. There is no way
/// back.
pub fn give_way(way: Way) {
    let result = match way {
        Way::Some => rustix::process::setpriority_process(None, NICENESS).map(drop).map_err(|error| error.to_string()),
        Way::All => {
            let policy = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
            let done = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, policy);
            done.map_err(|error| error.to_string())
        }
    };
    if let Err(error) = result {
        tracing::debug!(error, "loads have the priority of requests");
    }
}

/// Measures the time of the thread that started it, but for what others had the processor meanwhile.
#[derive(Debug)]
pub(super) struct Clock {
    began: Instant,
    stood_back: Duration,
}

impl Clock {
    /// Begins now.
    pub(super) fn start() -> Self {
        Self { began: Instant::now(), stood_back: stood_back() }
    }

    /// The time since the start.
    pub(super) fn took(&self) -> Duration {
        self.began.elapsed().saturating_sub(stood_back().saturating_sub(self.stood_back))
    }
}

/// For how long the calling thread has been ready to compute while others did, since it began; none where the system does
/// not say (`/proc/PID/schedstat`, proc(5)).
fn stood_back() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split_whitespace().nth(1).and_then(|wait| wait.parse().ok()).unwrap_or_default())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The scheduling policy and the niceness of the calling thread: fields 41 and 19 of proc(5).
    pub(in crate::scheduler) fn policy() -> (i32, i32) {
        let text = std::fs::read_to_string("/proc/thread-self/stat").expect("the system has /proc");
        let (_, fields) = text.rsplit_once(") ").expect("the name is in parentheses");
        let field = |number: usize| fields.split(' ').nth(number - 3).and_then(|field| field.parse().ok());
        (field(41).expect("a number"), field(19).expect("a number"))
    }

    #[test]
    fn a_thread_gives_way_with_those_that_it_starts_and_no_others() {
        let given = |way| {
            let both = move || {
                give_way(way);
                (policy(), std::thread::spawn(policy).join().expect("no panic"))
            };
            std::thread::spawn(both).join().expect("no panic")
        };
        let own = policy();
        let nice = (own.0, own.1.max(NICENESS));
        assert_eq!(given(Way::Some), (nice, nice));
        let (idle, started) = given(Way::All);
        assert_eq!((idle.0, started.0), (libc::SCHED_IDLE, libc::SCHED_IDLE));
        assert_eq!(policy(), own);
    }

    #[test]
    fn waits_for_the_processor_are_never_forgotten() {
        let before = stood_back();
        std::thread::yield_now();
        assert!(stood_back() >= before);
    }
}
