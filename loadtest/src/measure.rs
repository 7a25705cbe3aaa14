//! The kernel's figures of a process: time on the CPU, and memory.

use std::fs;

/// The schedstat of a task, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cpu {
    pub on_ns: u64,
    /// Ready to run while others had the core.
    pub waiting_ns: u64,
}

impl Cpu {
    fn read(schedstat: &str) -> Option<Self> {
        let mut fields = schedstat.split_ascii_whitespace().map(str::parse);
        Some(Self { on_ns: fields.next()?.ok()?, waiting_ns: fields.next()?.ok()? })
    }

    /// The increase since then.
    pub fn since(self, before: Self) -> Self {
        Self { on_ns: self.on_ns.saturating_sub(before.on_ns), waiting_ns: self.waiting_ns.saturating_sub(before.waiting_ns) }
    }
}

/// All threads of a process, kernel workers of its ring included.
pub fn process_cpu(pid: u32) -> Option<Cpu> {
    let mut sum = Cpu::default();
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()? {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task.ok()?.path().join("schedstat")) {
            let cpu = Cpu::read(&text)?;
            sum = Cpu { on_ns: sum.on_ns + cpu.on_ns, waiting_ns: sum.waiting_ns + cpu.waiting_ns };
        }
    }
    Some(sum)
}

/// The CPU time of a thread of this process.
pub fn thread_cpu(thread: i32) -> Option<Cpu> {
    Cpu::read(&fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?)
}

/// Resident memory of a process, in bytes: cheap, and off by what each core has not yet reported.
pub fn rss_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

/// Files, sockets and rings that a process has open.
pub fn open_files(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64)
}

/// Resident memory of a process, in bytes: exact, and walks its page tables, so never in a measured window.
pub fn rss_exact_bytes(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The peak of a process's resident memory, in bytes.
pub fn peak_rss_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// The machine on which the figures were taken.
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
        assert!(process_cpu(pid).unwrap().on_ns > 0);
        let (cheap, exact) = (rss_bytes(pid).unwrap(), rss_exact_bytes(pid).unwrap());
        assert!(cheap.abs_diff(exact) < 16 << 20 && exact > 100_000, "{cheap} and {exact}");
        assert!(peak_rss_bytes(pid).unwrap() + (16 << 20) > exact);
        assert_eq!(process_cpu(0), None);
        // Other tests open and close some at the same time.
        assert!((3..10_000).contains(&open_files(pid).unwrap()));
        assert_eq!(Cpu::read("123 456 7\n"), Some(Cpu { on_ns: 123, waiting_ns: 456 }));
    }
}
