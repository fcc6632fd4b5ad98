//! What processes use: time of the CPUs, and memory.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

/// Clock ticks of a second in `/proc`: `USER_HZ`, the same on all machines that Rust's standard library runs on.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used so far. What the system does not tell is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Of all its threads, those that have ended too, in user and system mode; in steps of 10 ms.
    pub(super) cpu: Option<Duration>,
    /// Largest resident set, since the start of the process or [`forget_peak_memory`].
    pub(super) peak_memory_bytes: Option<u64>,
}

impl Usage {
    /// Of a process by its id. Linux tells all, other Unix systems the CPU time, Windows nothing.
    pub(super) async fn of(process: u32) -> Self {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}")).ok();
        let cpu = match read("stat") {
            Some(stat) => cpu_of_stat(&stat),
            None if cfg!(unix) => cpu_of_ps(&ask_ps(process).await.unwrap_or_default()),
            None => None,
        };
        Self { cpu, peak_memory_bytes: read("status").and_then(|status| peak_of_status(&status)) }
    }

    /// The CPU time since an earlier look; the peak is that of now.
    pub(super) fn since(self, earlier: Self) -> Self {
        let cpu = self.cpu.zip(earlier.cpu).map(|(now, then)| now.saturating_sub(then));
        Self { cpu, ..self }
    }
}

/// Of this process, as [`Usage::peak_memory_bytes`].
pub(super) fn peak_memory_bytes() -> Option<u64> {
    peak_of_status(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Starts looking for the peak from what a process has in memory now. Where the system cannot do that, it
/// stays the peak since the process began.
pub(super) fn forget_peak_memory(process: u32) {
    if let Err(error) = std::fs::write(format!("/proc/{process}/clear_refs"), "5") {
        tracing::debug!(%error, process, "the peak of memory is that of all its time");
    }
}

/// The name of the program, in brackets, may hold anything.
fn cpu_of_stat(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(Duration::from_millis(user.saturating_add(system).saturating_mul(1000 / TICKS_PER_SECOND)))
}

fn peak_of_status(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

async fn ask_ps(process: u32) -> Option<String> {
    let mut command = Command::new("ps");
    command.args(["-o", "time=", "-p", &process.to_string()]).stdin(Stdio::null()).stderr(Stdio::null());
    String::from_utf8(command.output().await.ok()?.stdout).ok()
}

/// `[[DAYS-]HOURS:]MINUTES:SECONDS[.FRACTION]`.
fn cpu_of_ps(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let (minutes, seconds) = rest.rsplit_once(':')?;
    let (hours, minutes) = minutes.split_once(':').unwrap_or(("0", minutes));
    let [days, hours, minutes] = [days, hours, minutes].map(|part| part.trim().parse::<u32>().ok());
    let whole = (f64::from(days?) * 24.0 + f64::from(hours?)) * 60.0 + f64::from(minutes?);
    Duration::try_from_secs_f64(whole * 60.0 + seconds.parse::<f64>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_whatever_the_program_is_called() {
        let stat = "4711 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 1234 66 0 0 20 0 5";
        assert_eq!(cpu_of_stat(stat), Some(Duration::from_secs(13)));
        for bad in ["", "1 (a) S 1", "1 a S 1 2 3 4 5 6 7 8 9 10 11 12"] {
            assert_eq!(cpu_of_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_times_of_ps_are_read_in_all_their_forms() {
        for (text, seconds) in
            [("  0:03.25\n", 3.25), ("01:02:03", 3723.0), ("2-00:00:01", 172_801.0), ("12:30", 750.0)]
        {
            assert_eq!(cpu_of_ps(text), Some(Duration::from_secs_f64(seconds)), "{text}");
        }
        for bad in ["", "-", "12", "a:b", "1-2-3", "0:-5"] {
            assert_eq!(cpu_of_ps(bad), None, "{bad}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn work_and_memory_of_this_process_show() {
        let process = std::process::id();
        forget_peak_memory(process);
        let before = Usage::of(process).await;
        let mut large = vec![1_u8; 64 << 20];
        loop {
            large.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3));
            let used = Usage::of(process).await.since(before);
            if used.cpu.unwrap() >= Duration::from_millis(20) {
                assert!(used.peak_memory_bytes.unwrap() >= 64 << 20, "{used:?}");
                break;
            }
        }
        assert_eq!(Usage::of(u32::MAX).await, Usage::default());
    }
}
