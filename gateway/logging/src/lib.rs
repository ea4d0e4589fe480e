//! The log of a service: JSON lines on standard output.
//!
//! A log line never blocks and never panics. A thread of its own writes the lines. When it falls behind, because a
//! pipe is not read, or cannot write, because the disk is full, lines are lost and counted. The service goes on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Opts};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// Lines that wait for the writing thread. With lines of 500 bytes that is 16 MB.
const MAX_WAITING_LINES: usize = 32_768;
/// How long the writing thread rests after it has written all that waited. Lines that come meanwhile are written together:
/// a thread that wakes for each line costs a busy gateway a seventh of its CPU time.
const REST: Duration = Duration::from_millis(2);
/// Bytes that are written at once, unless one line is longer: `PIPE_BUF` of Linux. A pipe keeps these together when other
/// processes write to it too.
const BATCH_BYTES: usize = 4096;
/// How long [`flush`] waits for them to be written.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

static LOST: OnceLock<Lost> = OnceLock::new();
static WRITING: Mutex<Option<WorkerGuard>> = Mutex::new(None);

/// Sends the log of this process to standard output from now on. `RUST_LOG` sets the levels, `default_levels` where it is
/// unset or malformed.
///
/// Call it once, before anything is logged, and [`flush`] before the process ends.
pub fn init(default_levels: &str) {
    let levels = EnvFilter::try_from_default_env().unwrap_or_else(|_| default_levels.into());
    let output = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let (writer, lost, guard) = match output {
        Ok(output) => non_blocking(output),
        Err(_) => non_blocking(io::sink()),
    };
    *WRITING.lock().unwrap_or_else(PoisonError::into_inner) = Some(guard);
    let _ = LOST.set(lost);
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(levels)
        .with_writer(writer)
        // It would report a failed write on standard error, and panic when that fails too.
        .log_internal_errors(false)
        .init();
}

/// Writes the lines that wait, for two seconds at most. Nothing that is logged later is written.
pub fn flush() {
    let Some(guard) = WRITING.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
    let (done, flushed) = mpsc::channel();
    // Dropping the guard can block on an output that is not read.
    std::thread::spawn(move || {
        drop(guard);
        let _ = done.send(());
    });
    let _ = flushed.recv_timeout(FLUSH_WITHIN);
}

/// How many lines of this process were lost since it started.
pub fn lost_lines() -> u64 {
    LOST.get().map_or(0, Lost::lines)
}

/// Collects `log_lines_lost_total`.
#[derive(Debug)]
pub struct Metrics {
    description: Vec<Desc>,
}

impl Metrics {
    /// # Errors
    /// Never: the name is well-formed.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self { description: counter()?.desc().into_iter().cloned().collect() })
    }
}

fn counter() -> Result<IntCounter, prometheus::Error> {
    let help = "Log lines that were lost because the output was full, closed or not read.";
    IntCounter::with_opts(Opts::new("log_lines_lost_total", help))
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.description.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(lost) = counter() else { return Vec::new() };
        lost.inc_by(lost_lines());
        lost.collect()
    }
}

/// What was lost on both ways: the queue was full, or the output refused a line.
struct Lost {
    queue: ErrorCounter,
    output: Arc<AtomicU64>,
}

impl Lost {
    fn lines(&self) -> u64 {
        let queue = u64::try_from(self.queue.dropped_lines()).unwrap_or(u64::MAX);
        queue.saturating_add(self.output.load(Ordering::Relaxed))
    }
}

fn non_blocking(output: impl Write + Send + 'static) -> (NonBlocking, Lost, WorkerGuard) {
    let lost = Arc::default();
    let lines = Lines { output, waiting: Vec::new(), lost: Arc::clone(&lost), torn: false };
    let builder = NonBlockingBuilder::default().buffered_lines_limit(MAX_WAITING_LINES).thread_name("log");
    let (writer, guard) = builder.finish(lines);
    let lost = Lost { queue: writer.error_counter(), output: lost };
    (writer, lost, guard)
}

/// Writes whole lines, and counts those that the output refuses.
struct Lines<W> {
    output: W,
    waiting: Vec<u8>,
    lost: Arc<AtomicU64>,
    /// The last line was written in part: the next one begins on a new line.
    torn: bool,
}

impl<W: Write> Lines<W> {
    fn write_waiting(&mut self) {
        if self.torn && !self.waiting.is_empty() && self.output.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let mut rest = self.waiting.as_slice();
        while !rest.is_empty() {
            match self.output.write(rest) {
                Ok(written) if written > 0 => rest = rest.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => {
                    let lines = rest.iter().filter(|byte| **byte == b'\n').count();
                    self.lost.fetch_add(u64::try_from(lines).unwrap_or(u64::MAX), Ordering::Relaxed);
                    let written = self.waiting.len() - rest.len();
                    if let Some(last) = written.checked_sub(1) {
                        self.torn = self.waiting.get(last) != Some(&b'\n');
                    }
                    break;
                }
            }
        }
        self.waiting.clear();
    }
}

impl<W: Write> Write for Lines<W> {
    /// Takes the whole line in any case.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.waiting.len() + line.len() > BATCH_BYTES {
            self.write_waiting();
        }
        self.waiting.extend_from_slice(line);
        Ok(line.len())
    }

    /// The writing thread calls it when no line waits in the queue.
    fn flush(&mut self) -> io::Result<()> {
        self.write_waiting();
        std::thread::sleep(REST);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        room: Arc<Mutex<usize>>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut room = self.room.lock().unwrap();
            let count = bytes.len().min(*room);
            if count == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            *room -= count;
            self.written.lock().unwrap().extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_counts_them() {
        let (room, written) = (Arc::new(Mutex::new(10)), Arc::default());
        let disk = Disk { room: Arc::clone(&room), written: Arc::clone(&written) };
        let mut lines = Lines { output: disk, waiting: Vec::new(), lost: Arc::default(), torn: false };
        for line in ["first\n", "second\n", "third\n"] {
            lines.write_all(line.as_bytes()).unwrap();
        }
        lines.flush().unwrap();
        *room.lock().unwrap() = 100;
        lines.write_all(b"fourth\n").unwrap();
        lines.flush().unwrap();
        assert_eq!(String::from_utf8_lossy(&written.lock().unwrap()), "first\nseco\nfourth\n");
        assert_eq!(lines.lost.load(Ordering::Relaxed), 2);
    }

    /// Keeps what each write carries.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<String>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_together_and_never_in_parts() {
        let writes = Writes::default();
        let mut lines =
            Lines { output: writes.clone(), waiting: Vec::new(), lost: Arc::default(), torn: false };
        let line = |length| format!("{}\n", "x".repeat(length - 1));
        let sizes = [10, 10, BATCH_BYTES - 20, 1, BATCH_BYTES * 2, 5];
        for size in sizes {
            lines.write_all(line(size).as_bytes()).unwrap();
        }
        lines.flush().unwrap();
        lines.flush().unwrap();
        let lengths: Vec<usize> = writes.0.lock().unwrap().iter().map(String::len).collect();
        assert_eq!(lengths, [BATCH_BYTES, 1, BATCH_BYTES * 2, 5]);
    }

    /// A pipe that nobody reads.
    struct Blocked(mpsc::Receiver<()>);

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // Ends with the test, when the sender goes.
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pipe_that_is_not_read_holds_nobody_up() {
        let (unread, pipe) = mpsc::channel::<()>();
        let (mut writer, lost, guard) = non_blocking(Blocked(pipe));
        let line = b"a line\n";
        let batch = BATCH_BYTES / line.len();
        for _ in 0..MAX_WAITING_LINES + batch + 10 {
            writer.write_all(line).unwrap();
        }
        // The thread has taken none, or as many as it writes at once.
        let lost = usize::try_from(lost.lines()).unwrap();
        assert!((9..=batch + 10).contains(&lost), "{lost}");
        drop(unread);
        drop(guard);
    }
}
