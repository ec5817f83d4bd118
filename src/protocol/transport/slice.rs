//! Gives a thread short time slices, for which the system runs it soon after it has something to do.
//!
//! Where all processors are busy with executions, a network thread that wakes up waits until one of them has had its
//! time: up to a tick of the system, 4 ms at 250 ticks a second. Linux lets a thread ask for slices of its own since
//! version 6.12 (`sched_setattr(2)`, `sched_runtime` of a thread that is scheduled as usual); it takes a processor at
//! once from one whose slices are longer. Nobody gets less processor time by it, and it needs no privileges.

use std::ffi::{c_long, c_uint};
use std::mem::size_of;
use std::{io, ptr};

use libc::sched_attr;

/// The shortest that Linux takes, in nanoseconds; what a call needs at usual.
const SLICE_NS: u64 = 100_000;
/// The thread that calls.
const CALLING: c_long = 0;
const NO_FLAGS: c_uint = 0;

/// Asks for short slices for the calling thread alone: threads that it starts get the usual ones. A thread that is not
/// scheduled as usual, or has been given a better place already (a nice value below 0), stays as it is. Older systems
/// accept it and change nothing.
///
/// # Errors
/// What the system says where it does not allow that.
pub fn shorten_slices() -> io::Result<()> {
    let mut attributes = read()?;
    if attributes.sched_policy != libc::SCHED_OTHER as u32 || attributes.sched_nice < 0 {
        return Ok(());
    }
    attributes.sched_flags |= libc::SCHED_FLAG_RESET_ON_FORK as u64;
    attributes.sched_runtime = SLICE_NS;
    // SAFETY: the system reads `size` bytes, which is the size of this structure, and keeps no pointer.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, CALLING, ptr::from_ref(&attributes), NO_FLAGS) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How the calling thread is scheduled.
fn read() -> io::Result<sched_attr> {
    let size = size_of::<sched_attr>() as c_uint;
    let mut attributes = sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the system writes at most `size` bytes, the size of this structure, in which any bits are valid.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, CALLING, ptr::from_mut(&mut attributes), size, NO_FLAGS) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// The slices of the calling thread in nanoseconds; 0 before Linux 6.12.
    fn slice() -> u64 {
        read().expect("every system answers").sched_runtime
    }

    #[test]
    fn slices_are_short_for_the_thread_that_asks_and_not_for_those_it_starts() {
        let before = slice();
        thread::scope(|scope| {
            scope.spawn(|| {
                shorten_slices().expect("no privileges are needed");
                assert_eq!(slice(), if before == 0 { 0 } else { SLICE_NS });
                let started = thread::spawn(slice).join().expect("it does not panic");
                assert_eq!(started, before);
                shorten_slices().expect("it may be asked again");
            });
        });
        assert_eq!(slice(), before, "others stay as they are");
    }
}
