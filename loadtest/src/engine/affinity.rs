//! Pins threads to cores, and reads thread ids.
#![allow(unsafe_code)]

use std::io;

/// Pins the calling thread; children it spawns inherit it.
pub fn pin_this_thread(core: usize) -> io::Result<()> {
    // SAFETY: a cpu_set_t is plain bits, for which zero is the empty set; CPU_SET checks its bounds.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: the set is initialised and its true size is given.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } != 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(
            error.kind(),
            format!("cannot pin a thread to core {core}: {error}; cores are counted from 0"),
        ));
    }
    Ok(())
}

/// Lets the calling thread run only while no other thread of its core wants to; it gives way at once to one that wakes.
pub fn run_when_idle() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are initialised, and 0 names the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } != 0 {
        let error = io::Error::last_os_error();
        return Err(io::Error::new(error.kind(), format!("cannot give a thread the policy SCHED_IDLE: {error}")));
    }
    Ok(())
}

/// The calling thread's id, as /proc names it.
pub fn thread_id() -> i32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::gettid() }
}

/// Raises the soft limit on open files to the hard one. Returns the new limit.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls get a valid rlimit.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 1024;
        }
        limit.rlim_cur = limit.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
    limit.rlim_cur
}

/// Asks a process to end, politely.
pub fn terminate(pid: u32) {
    if let Ok(pid) = i32::try_from(pid) {
        // SAFETY: a signal to a child that this harness started and has not reaped yet.
        unsafe { libc::kill(pid, libc::SIGTERM) };
    }
}
