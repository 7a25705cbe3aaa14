//! Log lines to stderr: one line each, for people or as JSON. Control characters are escaped, and a writer never waits.
//!
//! Lines go through a bounded queue to a thread of their own: a reader of stderr that stops reading must not stop a shard. Lines
//! that find no room are counted (`ringway_log_lines_dropped_total`).

use super::escape::{push_json, push_text};
use crate::config::{LogFormat, LogLevel};
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const LINES_MAX: usize = 4_096;
/// Bytes of a line; the rest is cut.
const LINE_BYTES_MAX: usize = 8 * 1024;
/// Time for which the end of the process waits for the last lines.
const FLUSH: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines thrown away since the start of the process.
#[must_use]
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Item {
    Line(Vec<u8>),
    /// Answers once all lines before this item are written.
    Flush(SyncSender<()>),
}

/// Waits for the last lines when dropped.
#[derive(Debug)]
pub struct LogGuard {
    lines: Lines,
}

impl LogGuard {
    /// Waits, for at most a second, until all lines logged before are written.
    pub fn flush(&self) {
        self.lines.flush();
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.flush();
    }
}

#[derive(Clone)]
struct Lines(SyncSender<Item>, LogFormat);

impl Lines {
    fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Item::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Lines")
    }
}

/// The text of one event, gathered until the event is over, so that two threads' lines never mix.
struct Line<'a> {
    lines: &'a Lines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() && self.lines.0.try_send(Item::Line(one_line(&self.bytes, self.lines.1))).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { lines: self, bytes: Vec::new() }
    }
}

/// The text as a single line: line breaks and control characters are escaped, and a text that is too long is cut. A line of JSON
/// stays valid JSON.
fn one_line(bytes: &[u8], format: LogFormat) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut out = String::with_capacity(text.len() + 1);
    let push = if format == LogFormat::Json { push_json } else { push_text };
    for character in text.chars() {
        if out.len() > LINE_BYTES_MAX {
            out = if format == LogFormat::Json { cut_json(text) } else { out + "…" };
            break;
        }
        push(&mut out, character);
    }
    out.push('\n');
    out.into_bytes()
}

/// A line of JSON that is too long, as the text of another JSON line.
fn cut_json(text: &str) -> String {
    let mut out = String::from("{\"message\":\"a log line was too long and was cut\",\"line\":\"");
    for character in text.chars() {
        if out.len() > LINE_BYTES_MAX {
            break;
        }
        if matches!(character, '"' | '\\') {
            out.push('\\');
        }
        push_json(&mut out, character);
    }
    out + "\"}"
}

fn write_out(lines: &Receiver<Item>, mut to: impl Write) {
    while let Ok(item) = lines.recv() {
        match item {
            // If stderr is gone, there is nobody to tell.
            Item::Line(line) => drop(to.write_all(&line)),
            Item::Flush(done) => drop(done.send(())),
        }
    }
}

/// Starts logging for the whole process. Keep the guard until the end.
///
/// # Errors
/// The thread could not be started, or logging was started before.
pub fn start(format: LogFormat, level: LogLevel) -> Result<LogGuard, String> {
    let (sender, receiver) = sync_channel(LINES_MAX);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || write_out(&receiver, io::stderr()))
        .map_err(|error| format!("the log thread cannot start: {error}"))?;
    let lines = Lines(sender, format);
    let builder = tracing_subscriber::fmt().with_max_level(filter(level)).with_writer(lines.clone()).with_ansi(false);
    let started = match format {
        LogFormat::Human => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| format!("logging cannot start: {error}"))?;
    // The default hook would wait for the reader of stderr. The process may end with this panic, so its line is waited for, but
    // only for a while.
    let last_words = lines.clone();
    std::panic::set_hook(Box::new(move |panic| {
        let (thread, backtrace) = (std::thread::current(), std::backtrace::Backtrace::capture());
        let thread = thread.name().unwrap_or_default();
        tracing::error!(thread, "{panic}");
        if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
            tracing::error!(thread, "{backtrace}");
        }
        last_words.flush();
    }));
    Ok(LogGuard { lines })
}

const fn filter(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use super::super::escape::steers;
    use super::*;

    #[test]
    fn a_line_stays_one_line() {
        let one_line = |bytes: &[u8]| one_line(bytes, LogFormat::Human);
        assert_eq!(one_line(b"a\nb\x1b[31mc\n"), b"a\\x0ab\\x1b[31mc\n");
        assert_eq!(one_line("x\u{202e}y\u{85}z\u{200f}".as_bytes()), b"x\\u{202e}y\\u{85}z\\u{200f}\n");
        assert!(one_line(&vec![b'a'; 100_000]).len() < LINE_BYTES_MAX + 8);
        assert_eq!(one_line(b"\xff\n"), "\u{fffd}\n".as_bytes());
    }

    #[test]
    fn a_line_of_json_stays_one_whatever_is_in_it_and_however_long_it_is() {
        let value = |line: Vec<u8>| serde_json::from_slice::<serde_json::Value>(&line).unwrap();
        let steering: String = (0..0x2070).filter_map(char::from_u32).filter(|character| steers(*character)).collect();
        let line = serde_json::json!({ "who": steering }).to_string() + "\n";
        let told = one_line(line.as_bytes(), LogFormat::Json);
        assert!(told[..told.len() - 1].iter().all(|byte| (0x20..0x7f).contains(byte)), "{}", String::from_utf8_lossy(&told));
        assert_eq!(value(told)["who"], steering);
        let long = serde_json::json!({ "level": "WARN", "who": format!("\"\\\u{202e}é{}", "x\u{1b}".repeat(LINE_BYTES_MAX)) })
            .to_string();
        let told = one_line(long.as_bytes(), LogFormat::Json);
        assert!(told.len() < LINE_BYTES_MAX + 16 && told.iter().filter(|byte| **byte == b'\n').count() == 1);
        assert!(long.starts_with(value(told)["line"].as_str().unwrap()));
    }

    fn logged(json: bool) -> String {
        let (sender, receiver) = sync_channel(LINES_MAX);
        let lines = Lines(sender, if json { LogFormat::Json } else { LogFormat::Human });
        let builder = tracing_subscriber::fmt().with_writer(lines).with_ansi(false);
        let event = || tracing::warn!(connection_id = "c-1", who = %"eve\nforged\u{9b}2J\u{202e}", "refused\r\n");
        if json {
            tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), event);
        } else {
            tracing::subscriber::with_default(builder.with_target(false).finish(), event);
        }
        let mut out = Vec::new();
        write_out(&receiver, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_forged_field_cannot_begin_a_line() {
        for json in [false, true] {
            let text = logged(json);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.ends_with('\n') && text.contains("c-1") && !text.trim_end().contains(steers), "{text}");
        }
        let value: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!((&value["connection_id"], &value["who"]), (&"c-1".into(), &"eve\nforged\u{9b}2J\u{202e}".into()));
        assert_eq!(value["message"], "refused\r\n");
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let (sender, _receiver) = sync_channel(1);
        let lines = Lines(sender, LogFormat::Human);
        let before = lines_dropped();
        for _ in 0..3 {
            lines.make_writer().write_all(b"x\n").unwrap();
        }
        assert!(lines_dropped() >= before + 2);
    }
}
