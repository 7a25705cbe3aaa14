//! Answers of a gateway's admin listener, and the values of its log in `/metrics`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest time for an answer of the admin listener.
const PATIENCE: Duration = Duration::from_secs(2);
/// Far above the answer of a gateway with many shards.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// The work of a log, from the gateway's start on or between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogWork {
    pub syncs: f64,
    pub written_bytes: f64,
    /// Seconds that syncs were under way, summed.
    pub sync_s: f64,
}

impl LogWork {
    /// Asks a gateway's admin listener.
    pub fn read(admin: SocketAddr) -> Result<Self, String> {
        let text = get(admin, "/metrics").map_err(|error| format!("http://{admin}/metrics does not answer: {error}"))?;
        Self::of(&text).map_err(|why| format!("http://{admin}/metrics {why}"))
    }

    fn of(answer: &str) -> Result<Self, String> {
        let status = answer.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(format!("answers {status:?} where 200 was expected"));
        }
        let sum = |name| sum(answer, name).ok_or_else(|| format!("has no {name}: is this a gateway with a log?"));
        Ok(Self {
            syncs: sum("ringway_log_syncs_total")?,
            written_bytes: sum("ringway_log_written_bytes_total")?,
            sync_s: sum("ringway_log_sync_seconds_sum")?,
        })
    }

    /// The increase since then.
    pub fn since(self, before: &Self) -> Self {
        Self {
            syncs: self.syncs - before.syncs,
            written_bytes: self.written_bytes - before.written_bytes,
            sync_s: self.sync_s - before.sync_s,
        }
    }

    /// Mean bytes that share a sync; `None` if nothing was synced.
    pub fn bytes_a_sync(&self) -> Option<f64> {
        (self.syncs > 0.0).then(|| self.written_bytes / self.syncs)
    }
}

/// The whole answer to `GET PATH`, its head included.
pub fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

/// A metric's values, summed over the shards; `None` if there is none of this name.
pub fn sum(text: &str, name: &str) -> Option<f64> {
    let of = |line: &str| {
        let rest = line.strip_prefix(name)?;
        if !rest.starts_with(['{', ' ']) {
            return None;
        }
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    };
    text.lines().filter_map(of).fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n\
        # HELP ringway_log_syncs_total Syncs of the log's files.\n\
        ringway_log_syncs_total{shard=\"0\"} 5\nringway_log_syncs_total{shard=\"1\"} 7\n\
        ringway_log_written_bytes_total{shard=\"0\"} 6000\n\
        ringway_log_sync_seconds_bucket{shard=\"0\",le=\"+Inf\"} 12\nringway_log_sync_seconds_sum{shard=\"0\"} 0.5\n";

    #[test]
    fn shards_are_summed_and_names_that_only_begin_alike_are_not() {
        let work = LogWork::of(ANSWER).unwrap();
        assert_eq!(work, LogWork { syncs: 12.0, written_bytes: 6000.0, sync_s: 0.5 });
        assert_eq!(work.bytes_a_sync(), Some(500.0));
        let later = LogWork { syncs: 14.0, written_bytes: 8000.0, sync_s: 0.75 };
        assert_eq!(later.since(&work), LogWork { syncs: 2.0, written_bytes: 2000.0, sync_s: 0.25 });
        assert_eq!(work.since(&work).bytes_a_sync(), None);
    }

    #[test]
    fn what_is_no_gateway_is_told_so() {
        assert!(LogWork::of("HTTP/1.1 404 Not Found\r\n\r\n").unwrap_err().contains("404"));
        assert!(LogWork::of("HTTP/1.1 200 OK\r\n\r\nhello").unwrap_err().contains("ringway_log_syncs_total"));
    }

    #[test]
    fn the_listener_is_asked_for_its_metrics() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 12];
            stream.read_exact(&mut asked).unwrap();
            stream.write_all(ANSWER.as_bytes()).unwrap();
            // Until the asking side has read all: a close with bytes unread would be a reset.
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
            asked
        });
        assert_eq!(LogWork::read(address).unwrap().syncs, 12.0);
        assert_eq!(&answering.join().unwrap(), b"GET /metrics");
        assert!(LogWork::read(address).unwrap_err().contains(&address.to_string()));
    }
}
