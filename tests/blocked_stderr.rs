//! A panic that is contained, in a process whose stderr nobody reads any more, stops no thread.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test process of its own, not the gateway")]

use ringway::config::{LogFormat, LogLevel};
use ringway::control::logging;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const INSIDE: &str = "RINGWAY_TEST_BLOCKED_STDERR";

#[test]
fn a_panic_waits_for_no_reader_of_stderr() {
    if std::env::var_os(INSIDE).is_some() {
        return panic_unread();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture", "a_panic_waits_for_no_reader_of_stderr"])
        .env(INSIDE, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success());
}

fn panic_unread() {
    let log = logging::start(LogFormat::Human, LogLevel::Info).unwrap();
    // More than the pipe takes: the log's thread writes, and waits.
    for _ in 0..200 {
        tracing::info!("{}", "x".repeat(1_000));
    }
    log.flush();
    let began = Instant::now();
    assert!(std::panic::catch_unwind(|| panic!("a decoder's bug")).is_err());
    assert!(began.elapsed() < Duration::from_secs(5));
}
