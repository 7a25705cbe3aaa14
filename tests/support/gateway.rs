//! The real binary as a child process: configured, started on free ports, asked, signalled and stopped.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const SECRET: &[u8] = b"a secret of forty printable characters..";
pub const KEY_ID: &str = "test";
/// Time after which anything in these tests counts as hung. Generous: builders are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(15);

static SERIAL: AtomicUsize = AtomicUsize::new(0);

/// Settings of every test, unless it says otherwise.
const DEFAULTS: [(&str, &str); 12] = [
    ("server.listen", r#""127.0.0.1:0""#),
    ("server.shards", "1"),
    ("server.pin", "false"),
    ("server.max_connections", "1000"),
    ("admin.listen", r#""127.0.0.1:0""#),
    ("drain.window_ms", "50"),
    ("drain.grace_ms", "3000"),
    ("limits.half_open_per_ip", "0"),
    ("limits.handshakes_per_ip_per_second", "0"),
    ("limits.connections_per_user", "0"),
    ("diagnostics.log_format", r#""json""#),
    ("diagnostics.log_level", r#""debug""#),
];

/// The engine under the gateways of this run, if the run is for one: one of `server.engine`'s names, or `refused`, for a tracer
/// that refuses io_uring to a gateway that may choose.
pub fn engine() -> Option<String> {
    std::env::var("RINGWAY_TEST_ENGINE").ok().filter(|engine| !engine.is_empty())
}

/// The command under which a gateway is started so that the kernel refuses it io_uring with this error. The gateway is the child,
/// the tracer is not.
pub fn refusing(error: &str) -> Vec<String> {
    let refuse = format!("inject=io_uring_setup:error={error}");
    ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", &refuse]
        .map(str::to_owned)
        .into()
}

/// Returns `true` if there is a tracer, and it may trace.
pub fn can_refuse() -> bool {
    let traces = Command::new("strace").args(["-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=none", "true"]).output();
    traces.is_ok_and(|output| output.status.success())
}

/// An empty folder of this test's own.
pub fn folder() -> PathBuf {
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ringway-{}-{serial}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The configuration's text: the defaults of the tests with these over them.
pub fn config(settings: &[(&str, &str)]) -> String {
    let mut sections: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
    let engine = engine().filter(|engine| engine != "refused").map(|engine| format!("{engine:?}"));
    let engine = engine.as_deref().map(|engine| ("server.engine", engine));
    for (name, value) in DEFAULTS.iter().chain(engine.as_ref()).chain(settings) {
        let (section, key) = name.split_once('.').unwrap();
        sections.entry(section).or_default().insert(key, value);
    }
    let mut text = String::new();
    for (section, keys) in sections {
        writeln!(text, "[{section}]").unwrap();
        for (key, value) in keys {
            writeln!(text, "{key} = {value}").unwrap();
        }
    }
    writeln!(text, "[[auth.keys]]\nkid = \"{KEY_ID}\"\nalg = \"HS256\"\nfile = \"secret\"").unwrap();
    text
}

/// A running gateway; dropped, it is killed.
pub struct Gateway {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub folder: PathBuf,
    under: Vec<String>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Gateway {
    pub fn start(settings: &[(&str, &str)]) -> Self {
        let under = if engine().as_deref() == Some("refused") { refusing("EPERM") } else { Vec::new() };
        Self::start_under(&under, settings)
    }

    /// Starts it with these words before its own command.
    pub fn start_under(under: &[String], settings: &[(&str, &str)]) -> Self {
        Self::launch(Self::configured(settings), under.to_vec())
    }

    /// A gateway whose log's directory is in the empty folder `log`, on which a file system of its own is mounted, in memory, of
    /// this many bytes; a file `filler` beside it takes `filler_bytes` of it. Only its process sees it; [`Gateway::inside`] is
    /// the path there. `None` if this host permits no mount.
    pub fn start_on_small_disk(log: &Path, bytes: u64, filler_bytes: u64, settings: &[(&str, &str)]) -> Option<Self> {
        let namespaces = ["--user", "--map-root-user", "--mount"];
        if !Command::new("unshare").args(namespaces).arg("true").status().is_ok_and(|status| status.success()) {
            return None;
        }
        let path = format!("{:?}", log.join("log"));
        let settings: Vec<(&str, &str)> = settings.iter().copied().chain([("log.dir", path.as_str())]).collect();
        let script = r#"mount -t tmpfs -o "size=$1" tmpfs "$3" && head -c "$2" /dev/zero > "$3/filler" && shift 3 && exec "$@""#;
        let (bytes, filler_bytes) = (bytes.to_string(), filler_bytes.to_string());
        let shell = ["sh", "-c", script, "sh", &bytes, &filler_bytes, log.to_str().unwrap()];
        let under: Vec<String> = ["unshare"].iter().chain(&namespaces).chain(&shell).map(|word| (*word).to_owned()).collect();
        Some(Self::start_under(&under, &settings))
    }

    /// A path as its process sees it.
    pub fn inside(&self, path: &Path) -> PathBuf {
        Path::new(&format!("/proc/{}/root", self.pid())).join(path.strip_prefix("/").unwrap())
    }

    fn configured(settings: &[(&str, &str)]) -> PathBuf {
        let folder = folder();
        std::fs::write(folder.join("secret"), SECRET).unwrap();
        std::fs::write(folder.join("ringway.toml"), config(settings)).unwrap();
        folder
    }

    fn launch(folder: PathBuf, under: Vec<String>) -> Self {
        let words: Vec<&str> = under.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_ringway")]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .args(["serve", "--config"])
            .arg(folder.join("ringway.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (stderr, sink) = (child.stderr.take().unwrap(), Arc::clone(&lines));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                sink.lock().unwrap().push(line);
            }
        });
        let unknown: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut gateway = Self { child, address: unknown, admin: unknown, folder, under, lines };
        let line = gateway.logged("that it serves", |line| line["message"] == "serving");
        let address = |key: &str| line[key].as_str().unwrap().parse().unwrap();
        (gateway.address, gateway.admin) = (address("address"), address("admin"));
        gateway
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts an ended gateway again, with the same configuration and on new ports.
    pub fn again(mut self) -> Self {
        Self::launch(std::mem::take(&mut self.folder), std::mem::take(&mut self.under))
    }

    /// The same with another configuration.
    pub fn again_with(mut self, settings: &[(&str, &str)]) -> Self {
        std::fs::write(self.folder.join("ringway.toml"), config(settings)).unwrap();
        Self::launch(std::mem::take(&mut self.folder), std::mem::take(&mut self.under))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All lines of the log so far.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line of the log.
    pub fn logged(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = 0;
        loop {
            {
                let lines = self.lines.lock().unwrap();
                let found = lines[seen..].iter().filter_map(|line| serde_json::from_str(line).ok()).find(&wanted);
                if let Some(found) = found {
                    return found;
                }
                seen = lines.len();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the gateway ended ({ended:?}) before it logged {what}: {:#?}", self.log());
            assert!(Instant::now() < deadline, "the gateway did not log {what}: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Rewrites the configuration and asks for a reload; the caller waits for the log line that it expects.
    pub fn reload(&self, settings: &[(&str, &str)]) {
        self.reload_text(&config(settings));
    }

    pub fn reload_text(&self, text: &str) {
        std::fs::write(self.folder.join("ringway.toml"), text).unwrap();
        self.signal(rustix::process::Signal::HUP);
    }

    /// Waits for the process's end.
    pub fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the gateway does not end: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks the admin listener: the status and the body.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let (status, _, body) = http(self.admin, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        (status, body)
    }

    /// A metric, summed over the shards and whatever other labels it has, of the lines that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> u64 {
        let (status, text) = self.admin("/metrics");
        assert_eq!(status, 200);
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) && line.contains(label))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
            .sum()
    }

    /// Waits until a metric satisfies the condition.
    pub fn until_metric(&self, name: &str, label: &str, wanted: impl Fn(u64) -> bool) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let value = self.metric(name, label);
            if wanted(value) {
                return value;
            }
            assert!(Instant::now() < deadline, "{name} {label} stays at {value}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Memory of the process that is in RAM, in bytes.
    pub fn rss_bytes(&self) -> usize {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// Open files of the process.
    pub fn open_files(&self) -> usize {
        self.list_open_files().len()
    }

    /// The open files of the process.
    pub fn list_open_files(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        files.filter_map(|file| std::fs::read_link(file.unwrap().path()).ok()).collect()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let lines = self.log();
            for line in &lines[lines.len().saturating_sub(40)..] {
                eprintln!("gateway: {line}");
            }
        }
        // The folder was handed on to the next gateway; there is none here.
        if !self.folder.as_os_str().is_empty() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// An HTTP exchange to the connection's end: status, head, body.
pub fn http(address: SocketAddr, request: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"));
    (status, head.to_owned(), body.to_owned())
}

/// Runs the binary to its end: exit code, stdout, stderr.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    run_command(Command::new(env!("CARGO_BIN_EXE_ringway")).args(arguments))
}

/// Runs a command to its end, which must come by itself.
pub fn run_command(command: &mut Command) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let text = |mut from: Box<dyn Read + Send>| {
        std::thread::spawn(move || {
            let mut text = String::new();
            from.read_to_string(&mut text).unwrap();
            text
        })
    };
    let (stdout, stderr) = (text(Box::new(stdout)), text(Box::new(stderr)));
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= deadline {
            child.kill().unwrap();
            panic!("{command:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (status.code().unwrap_or(-1), stdout.join().unwrap(), stderr.join().unwrap())
}
