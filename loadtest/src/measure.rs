//! What the kernel knows of a process: time on the CPU, and memory.

use std::fs;

/// Nanoseconds a task's schedstat says it was on a CPU.
fn on_cpu_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

/// On-CPU time of all threads of a process, kernel workers of its ring included, in nanoseconds.
pub fn process_cpu_ns(pid: u32) -> Option<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) {
            sum += on_cpu_ns(&text)?;
        }
    }
    Some(sum)
}

/// On-CPU time of one of our own threads, in nanoseconds.
pub fn thread_cpu_ns(thread: i32) -> Option<u64> {
    on_cpu_ns(&fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?)
}

/// Resident memory of a process, in bytes: cheap, and off by what each core has not yet reported.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

/// Resident memory of a process, in bytes: exact, and walks its page tables, so never in a measured window.
pub fn rss_exact_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// What the figures were taken on.
pub fn host() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| rest.trim_matches([' ', '\t', ':']));
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_time_and_memory() {
        let pid = std::process::id();
        assert!(process_cpu_ns(pid).unwrap() > 0);
        let (cheap, exact) = (rss_bytes(pid).unwrap(), rss_exact_bytes(pid).unwrap());
        assert!(cheap.abs_diff(exact) < 16 << 20 && exact > 100_000, "{cheap} and {exact}");
        assert_eq!(process_cpu_ns(0), None);
        assert_eq!(on_cpu_ns("123 456 7\n"), Some(123));
    }
}
