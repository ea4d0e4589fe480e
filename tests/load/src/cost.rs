//! What processes cost, and the machine that they ran on.

use anyhow::Context as _;

/// CPU time that a process has used, nanoseconds, all its threads together.
pub(crate) fn cpu_ns(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while it is looked at.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        sum += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or_default();
    }
    Ok(sum)
}

/// CPU time that these processes and their children have used, also children that have ended, in microseconds; to
/// a hundredth of a second.
pub(crate) fn cpu_with_children_us(roots: &[u32]) -> anyhow::Result<u64> {
    let mut ticks = 0;
    for process in std::fs::read_dir("/proc")? {
        // A process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(process?.path().join("stat")) else { continue };
        let (Some(id), Some((_, rest))) = (stat.split(' ').next(), stat.rsplit_once(')')) else { continue };
        let fields: Vec<u64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
        let parent = fields.get(1).copied().unwrap_or(0);
        let root = roots.iter().any(|root| root.to_string() == id);
        if root || roots.iter().any(|root| u64::from(*root) == parent) {
            // User and system time; of a root also those of children that it has waited for (proc(5)).
            ticks += fields.iter().skip(11).take(if root { 4 } else { 2 }).sum::<u64>();
        }
    }
    // Linux counts in hundredths of a second for programs, whatever the kernel's own clock.
    Ok(ticks * 10_000)
}

/// Memory of a process that is resident, bytes.
pub(crate) fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024)
}

/// How many cores there are, and of which processor.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        info.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
    format!("{cores} cores, {}", model.unwrap_or("unknown processor"))
}
