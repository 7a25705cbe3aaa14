//! `ringway doctor`: finds everything on this machine that keeps the gateway from running, or from running well, and says how to
//! fix it.

use super::check::check;
use super::engine::{self, Choice};
use super::serve::{connections_fitting, may_fit, segments_there, shard_count};
use super::{CliError, print};
use crate::config::Settings;
use crate::io::probe::{Engine, ProbeError, probe};
use rustix::process::{Resource, getrlimit};
use std::fmt::Write;
use std::path::Path;

/// The first kernel with all that the native engine asks of io_uring.
const KERNEL_MIN: (u32, u32) = (6, 1);
const MEMLOCK_BYTES_MIN: u64 = 8 * 1024 * 1024;
const ACCEPT_QUEUE_MIN: u64 = 1_024;

/// Observations about the machine, before they are judged.
#[derive(Clone, Debug)]
struct Facts {
    kernel: String,
    /// The sysctl kernel.io_uring_disabled; `None` if the kernel does not have it.
    ring_disabled: Option<u64>,
    /// The errno of a trial ring that was refused.
    ring_refused: Option<i32>,
    /// The engine that would run the shards, or the reason why none would.
    engine: Result<Choice, String>,
    /// Soft limit; `None` means no limit.
    memlock_bytes: Option<u64>,
    files_soft: Option<u64>,
    files_hard: Option<u64>,
    /// Files of an existing log; each stays open.
    segments: u64,
    cores: usize,
    accept_queue: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    Fine,
    Better,
    Blocking,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    weight: Weight,
    what: String,
    /// Empty if there is nothing to do.
    fix: String,
}

fn fine(what: String) -> Finding {
    Finding { weight: Weight::Fine, what, fix: String::new() }
}

fn better(what: String, fix: impl Into<String>) -> Finding {
    Finding { weight: Weight::Better, what, fix: fix.into() }
}

fn blocking(what: String, fix: impl Into<String>) -> Finding {
    Finding { weight: Weight::Blocking, what, fix: fix.into() }
}

fn number_in(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn ring_disabled() -> Option<u64> {
    number_in("/proc/sys/kernel/io_uring_disabled")
}

fn errno(error: &ProbeError) -> i32 {
    match error {
        ProbeError::Refused(_, error) => error.raw_os_error().unwrap_or(0),
        ProbeError::TooOld { .. } => libc::EINVAL,
    }
}

impl Facts {
    fn gather(settings: &Settings) -> Self {
        let files = getrlimit(Resource::Nofile);
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            ring_disabled: ring_disabled(),
            ring_refused: probe(Engine::Ring).err().map(|error| errno(&error)),
            engine: engine::choose(settings.server.engine).map_err(|error| error.0),
            memlock_bytes: getrlimit(Resource::Memlock).current,
            files_soft: files.current,
            files_hard: files.maximum,
            segments: segments_there(settings),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            accept_queue: number_in("/proc/sys/net/core/somaxconn"),
        }
    }
}

/// `major.minor` of a release like `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The meaning of a refused ring, and how to fix it.
fn ring_refusal(code: i32, disabled: Option<u64>) -> (String, &'static str) {
    let refused = rustix::io::Errno::from_raw_os_error(code);
    let what = format!("io_uring is refused: {}", std::io::Error::from_raw_os_error(code));
    let fix = match (refused, disabled) {
        (_, Some(2)) => "sysctl -w kernel.io_uring_disabled=0 (it is 2: forbidden to all)",
        (_, Some(1)) => {
            "sysctl -w kernel.io_uring_disabled=0, or add the user to the group of kernel.io_uring_group (it is 1: for that group only)"
        }
        (rustix::io::Errno::NOSYS, _) => "use a kernel with io_uring (CONFIG_IO_URING), 6.1 or later; a sandbox may also hide it",
        (rustix::io::Errno::INVAL, _) => "use kernel 6.1 or later: this one does not know the flags the gateway needs",
        (rustix::io::Errno::NOMEM, _) => "raise the memory limit of the process, or its memlock limit (ulimit -l)",
        (rustix::io::Errno::PERM | rustix::io::Errno::ACCESS, _) => {
            "a seccomp profile forbids it: in a container allow io_uring_setup, io_uring_enter and io_uring_register (docker: \
             --security-opt seccomp=PROFILE)"
        }
        _ => "run `ringway doctor` and look at the kernel's log",
    };
    (what, fix)
}

/// The meaning of a refused engine, and how to fix it.
pub(super) fn refusal(error: &ProbeError) -> (String, &'static str) {
    match error {
        ProbeError::Refused("io_uring", _) => ring_refusal(errno(error), ring_disabled()),
        ProbeError::Refused(..) => (error.to_string(), "a sandbox forbids what every network server needs: allow it"),
        ProbeError::TooOld { .. } => (error.to_string(), "use a later kernel"),
    }
}

fn findings(facts: &Facts, settings: &Settings, shards: usize) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match version(&facts.kernel) {
        Some(kernel) if kernel >= KERNEL_MIN => fine(format!("kernel {}", facts.kernel)),
        Some(_) => better(
            format!("kernel {} is older than 6.1", facts.kernel),
            "use kernel 6.1 or later (Debian 12 has it): the native engine needs it",
        ),
        None => {
            better(format!("kernel {:?} has no version this command can read", facts.kernel), "make sure that it is 6.1 or later")
        }
    });
    found.push(match facts.ring_refused {
        None => fine("io_uring works".to_owned()),
        Some(code) => {
            let (what, fix) = ring_refusal(code, facts.ring_disabled);
            better(what, fix)
        }
    });
    found.push(match &facts.engine {
        Ok(choice) if choice.fallen_back => better(
            format!("the engine is {}: {}", choice.engine, choice.why),
            "the reason why a better engine does not work is given above; with this one a message costs more (docs/BENCHMARKS.md)",
        ),
        Ok(choice) => fine(format!("the engine is {}: {}", choice.engine, choice.why)),
        Err(why) => blocking(why.clone(), "set server.engine to \"auto\", or apply the fix above"),
    });
    found.push(match facts.memlock_bytes {
        Some(bytes) if bytes < MEMLOCK_BYTES_MIN => better(
            format!("memlock is limited to {bytes} bytes"),
            "systemd: LimitMEMLOCK=infinity; shell: ulimit -l unlimited (the kernel may charge rings and their buffers to it)",
        ),
        Some(bytes) => fine(format!("memlock {bytes} bytes")),
        None => fine("memlock unlimited".to_owned()),
    });
    found.push(files(facts, settings, shards));
    if settings.is_log_too_small(shards) {
        found.push(better(
            format!("log.max_bytes = {} leaves each of {shards} shards fewer than two files", settings.log.max_bytes),
            format!(
                "raise it to {} or more, or lower log.segment_bytes: when the files are full, retention can let none go, and durable \
                 messages are refused",
                settings.log_bytes_advised(shards)
            ),
        ));
    }
    found.push(if shards > facts.cores {
        better(
            format!("{shards} shards on {} cores", facts.cores),
            "set server.shards to 0 or to the number of cores: shards that share one only wait for each other",
        )
    } else {
        fine(format!("{} cores, {shards} shards", facts.cores))
    });
    found.push(match facts.accept_queue {
        Some(length) if length < ACCEPT_QUEUE_MIN => better(
            format!("net.core.somaxconn is {length}"),
            "sysctl -w net.core.somaxconn=4096: a reconnect storm overflows less",
        ),
        Some(length) => fine(format!("net.core.somaxconn {length}")),
        None => better("net.core.somaxconn cannot be read".to_owned(), "make sure that it is 1024 or more"),
    });
    found
}

fn files(facts: &Facts, settings: &Settings, shards: usize) -> Finding {
    let per_connection = facts.engine.as_ref().map_or(1, |choice| choice.engine.files_per_connection());
    let needed = settings.files_needed(shards, per_connection, facts.segments);
    let connections = settings.server.max_connections;
    let fitting = facts.engine.as_ref().ok().filter(|choice| may_fit(settings, choice.engine)).and_then(|choice| {
        connections_fitting(settings, choice.engine.files_per_connection(), facts.segments, facts.files_hard?)
    });
    if let Some((fitting, hard)) = fitting.zip(facts.files_hard) {
        return better(
            format!(
                "nofile is limited to {hard}: {fitting} of server.max_connections = {connections} are taken, since the engine needs two \
                 files for each"
            ),
            format!("systemd: LimitNOFILE={needed}; shell: ulimit -Hn {needed}; or do what lets a better engine run"),
        );
    }
    match (facts.files_soft, facts.files_hard) {
        (_, Some(hard)) if hard < needed => blocking(
            format!(
                "nofile is limited to {hard}; server.max_connections = {connections} and {} files of the log need {needed}",
                facts.segments
            ),
            format!("systemd: LimitNOFILE={needed}; shell: ulimit -Hn {needed}; or lower server.max_connections"),
        ),
        (Some(soft), _) if soft < needed => fine(format!("nofile {soft}, raised to {needed} at start")),
        _ => fine(format!("nofile is enough for server.max_connections = {connections} and {} files of the log", facts.segments)),
    }
}

fn report(found: &[Finding]) -> String {
    let mut out = String::new();
    for finding in found {
        let mark = match finding.weight {
            Weight::Fine => "ok      ",
            Weight::Better => "warning ",
            Weight::Blocking => "BLOCKING",
        };
        let _ = writeln!(out, "{mark}  {}", finding.what);
        if !finding.fix.is_empty() {
            let _ = writeln!(out, "          fix: {}", finding.fix);
        }
    }
    out
}

/// Reports the configuration's own mistakes first. If there are some, the machine is still checked against the valid settings.
pub(super) fn doctor(config: Option<&Path>) -> Result<(), CliError> {
    let (settings, mut found) = match config.map(|file| (file, check(file, None))) {
        None => (Settings::default(), Vec::new()),
        Some((file, Ok(checked))) => (checked.settings, vec![fine(format!("{} has no mistake", file.display()))]),
        Some((_, Err(mistaken))) => {
            (*mistaken.settings, mistaken.lines.into_iter().map(|line| blocking(line, String::new())).collect())
        }
    };
    found.extend(findings(&Facts::gather(&settings), &settings, shard_count(&settings)));
    print(&report(&found))?;
    match found.iter().filter(|finding| finding.weight == Weight::Blocking).count() {
        0 => Ok(()),
        1 => Err(CliError("1 finding keeps the gateway from running".to_owned())),
        count => Err(CliError(format!("{count} findings keep the gateway from running"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kernel: "6.1.0-18-amd64".into(),
            ring_disabled: Some(0),
            ring_refused: None,
            engine: Ok(Choice { engine: Engine::Ring, why: "it is the best".into(), fallen_back: false }),
            memlock_bytes: None,
            files_soft: Some(1_024),
            files_hard: Some(1_048_576),
            segments: 0,
            cores: 4,
            accept_queue: Some(4_096),
        }
    }

    fn worst(facts: &Facts) -> Finding {
        let found = findings(facts, &Settings::default(), 4);
        let worst = |weight| found.iter().find(|finding| finding.weight == weight);
        worst(Weight::Blocking).or_else(|| worst(Weight::Better)).cloned().unwrap_or_else(|| fine(String::new()))
    }

    #[test]
    fn a_good_machine_has_no_finding() {
        assert_eq!(worst(&good()).weight, Weight::Fine);
    }

    #[test]
    fn each_fault_has_its_weight_and_fix() {
        let epoll = Choice { engine: Engine::MonoioEpoll, why: "not ring".into(), fallen_back: true };
        let chosen = Choice { fallen_back: false, ..epoll.clone() };
        let cases: [(Facts, Weight, &str); 13] = [
            (Facts { kernel: "5.15.0-91".into(), ..good() }, Weight::Better, "6.1"),
            (
                Facts { ring_refused: Some(1), ring_disabled: Some(2), ..good() },
                Weight::Better,
                "sysctl -w kernel.io_uring_disabled=0",
            ),
            (Facts { ring_refused: Some(1), ring_disabled: Some(1), ..good() }, Weight::Better, "io_uring_group"),
            (Facts { ring_refused: Some(1), ..good() }, Weight::Better, "seccomp"),
            (Facts { ring_refused: Some(38), ring_disabled: None, ..good() }, Weight::Better, "CONFIG_IO_URING"),
            (Facts { engine: Ok(epoll), ..good() }, Weight::Better, "costs more"),
            (Facts { engine: Err("not possible".into()), ..good() }, Weight::Blocking, "server.engine"),
            (Facts { files_hard: Some(4_096), ..good() }, Weight::Blocking, "LimitNOFILE=10544"),
            // monoio takes two descriptors a connection: with too few files it serves fewer connections, if any fit.
            (Facts { engine: Ok(chosen.clone()), files_hard: Some(16_384), ..good() }, Weight::Better, "LimitNOFILE=20800"),
            (Facts { engine: Ok(chosen), files_hard: Some(100), ..good() }, Weight::Blocking, "LimitNOFILE=20800"),
            (Facts { memlock_bytes: Some(65_536), ..good() }, Weight::Better, "LimitMEMLOCK"),
            (Facts { cores: 2, ..good() }, Weight::Better, "server.shards"),
            (Facts { accept_queue: Some(128), ..good() }, Weight::Better, "somaxconn=4096"),
        ];
        for (facts, weight, fix) in cases {
            let finding = worst(&facts);
            assert!(finding.weight == weight && finding.fix.contains(fix), "{finding:?}");
        }
    }

    #[test]
    fn releases() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("6.18"), Some((6, 18)));
        assert_eq!(version("unknown"), None);
        assert!(version("10.0.1").is_some_and(|version| version >= KERNEL_MIN));
    }

    #[test]
    fn the_report_names_each_fix() {
        let text = report(&findings(&Facts { cores: 1, files_hard: Some(10), ..good() }, &Settings::default(), 4));
        assert!(
            text.contains("BLOCKING  nofile is limited to 10") && text.contains("\n          fix: systemd: LimitNOFILE="),
            "{text}"
        );
        assert!(text.contains("warning   4 shards on 1 cores"), "{text}");
    }

    #[test]
    fn the_log_s_files_count() {
        let needs = |settings: &Settings, segments| {
            let facts = Facts { segments, files_hard: Some(11_000), ..good() };
            findings(&facts, settings, 1).iter().any(|finding| finding.weight == Weight::Blocking)
        };
        let memory = Settings::default();
        let disk = Settings::parse("[log]\ndir = \"d\"", []).unwrap();
        let capped = Settings::parse("[log]\ndir = \"d\"\nmax_bytes = 67108864000", []).unwrap();
        assert_eq!([needs(&memory, 0), needs(&disk, 0), needs(&disk, 400), needs(&capped, 0)], [false, false, true, true]);
    }

    #[test]
    fn a_log_that_can_let_no_file_go_is_told() {
        let settings = Settings::parse("[log]\ndir = \"d\"\nsegment_bytes = 16777216\nmax_bytes = 67108864", []).unwrap();
        let told = |shards| {
            let found = findings(&Facts { cores: 8, ..good() }, &settings, shards);
            found.into_iter().find(|finding| finding.weight == Weight::Better).map(|finding| finding.fix)
        };
        assert_eq!(told(2), None);
        assert!(told(4).is_some_and(|fix| fix.contains("268435456")));
    }

    #[test]
    fn this_machine_can_be_asked() {
        let facts = Facts::gather(&Settings::default());
        assert!(facts.cores >= 1 && version(&facts.kernel).is_some());
    }
}
