//! Survives reading or writing client memory that is no longer there.
//!
//! A client can shorten a shared memory object while the server has it mapped, and an object without pages may find
//! the file system full; either way the access raises SIGBUS, which would end the server. Here a handler puts zeros in
//! the place of the watched mapping that was hit and marks it as torn; who used the mapping looks at the mark
//! afterwards and refuses. Any other SIGBUS goes the way it went before. Begin with [`Watched::over`].

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// A range of addresses that the handler knows. Never freed, because the handler takes no lock, but used again.
struct Watch {
    start: AtomicUsize,
    /// 0 while the watch is idle.
    len: AtomicUsize,
    torn: AtomicBool,
    next: *const Watch,
}

// SAFETY: `next` is written before the watch is published and never after, and points to a watch that is never freed;
// everything else is atomic.
unsafe impl Sync for Watch {}

/// The watch that was made last; the others hang behind it.
static WATCHES: AtomicPtr<Watch> = AtomicPtr::new(ptr::null_mut());
/// Watches without a mapping.
static IDLE: Mutex<Vec<&'static Watch>> = Mutex::new(Vec::new());
/// What happened at SIGBUS before; set before the handler can run.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A mapping that may lose its memory; it must be dropped before the mapping is.
pub struct Watched(&'static Watch);

impl Watched {
    /// Watches the `len` bytes of whole pages at `start`, which are a mapping of the caller's own.
    pub fn over(start: usize, len: usize) -> Self {
        BEFORE.get_or_init(install);
        let watch = IDLE.lock().pop().unwrap_or_else(publish);
        watch.torn.store(false, Ordering::SeqCst);
        watch.start.store(start, Ordering::SeqCst);
        watch.len.store(len, Ordering::SeqCst);
        Self(watch)
    }

    /// Whether an access found no memory, so that the mapping holds zeros of the server's own.
    pub fn is_torn(&self) -> bool {
        self.0.torn.load(Ordering::SeqCst)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.len.store(0, Ordering::SeqCst);
        IDLE.lock().push(self.0);
    }
}

fn publish() -> &'static Watch {
    let watch = Box::leak(Box::new(Watch {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        torn: AtomicBool::new(false),
        next: ptr::null(),
    }));
    let mut head = WATCHES.load(Ordering::SeqCst);
    loop {
        watch.next = head;
        let new: *mut Watch = watch;
        match WATCHES.compare_exchange(head, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => return watch,
            Err(other) => head = other,
        }
    }
}

/// Sets the handler; gives what was there before.
fn install() -> libc::sigaction {
    // SAFETY: zeros are a valid `sigaction`; both calls get pointers to live ones. The handler does only what a signal
    // handler may do: it reads atomics and calls `mmap` and `sigaction`.
    unsafe {
        let mut before: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        // The stack for signals that the standard library gives each thread.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        before
    }
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel hands a valid description to a handler that was set with SA_SIGINFO.
    let (sent_by_a_process, address) = unsafe { ((*info).si_code <= 0, (*info).si_addr() as usize) };
    if !sent_by_a_process && tear(address) {
        return;
    }
    // Not ours: the access is repeated and meets what would have met it without this handler.
    let default = libc::SIG_DFL;
    // SAFETY: both calls are allowed in a signal handler, and the pointer is to a static or null.
    unsafe {
        match BEFORE.get() {
            Some(before) => libc::sigaction(signal, before, ptr::null_mut()),
            // The very short time in which `install` runs on another thread.
            None => libc::signal(signal, default) as c_int,
        };
        if sent_by_a_process {
            libc::raise(signal);
        }
    }
}

/// Replaces the watched mapping that holds `address` by zeros; `false` if there is none.
fn tear(address: usize) -> bool {
    let mut next: *const Watch = WATCHES.load(Ordering::SeqCst);
    // SAFETY: the head and each `next` are null or point to a watch that is never freed.
    while let Some(watch) = unsafe { next.as_ref() } {
        next = watch.next;
        let len = watch.len.load(Ordering::SeqCst);
        let start = watch.start.load(Ordering::SeqCst);
        // A watch that changes hands right now is not the one whose mapping is being used.
        if len != watch.len.load(Ordering::SeqCst) || !(start..start + len).contains(&address) {
            continue;
        }
        // First the mark, so that nobody takes the zeros for data.
        watch.torn.store(true, Ordering::SeqCst);
        let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the range is a mapping of whole pages that its owner keeps (it is being accessed), and whose content
        // is promised to nobody, so that putting other memory in its place breaks no promise.
        let zeros = unsafe { libc::mmap(start as *mut c_void, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        return zeros != libc::MAP_FAILED;
    }
    false
}
