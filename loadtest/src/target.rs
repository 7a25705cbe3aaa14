//! The server under load: a gateway or a floor server that the harness starts, pins and stops, or any server at a URL.

use crate::clock::{now_ns, sleep_ms};
use crate::engine::affinity;
use crate::engine::connection::Endpoint;
use crate::floor;
use crate::options::Options;
use crate::token::Minter;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Longest time for a server to listen, and to end.
const PATIENCE_MS: u64 = 10_000;

/// A server under load.
pub struct Target {
    pub address: SocketAddr,
    host: String,
    /// The path of the URL given, if any.
    path: Option<String>,
    pub pid: Option<u32>,
    /// The admin listener of a started gateway.
    pub admin: Option<SocketAddr>,
    /// Signs for the gateway; `None` for a bare server.
    pub minter: Option<Minter>,
    /// `true` for the bare relay: two clients of the same path are a pair, and messages are acknowledged.
    pub pairs: bool,
    process: Option<Mutex<Process>>,
}

impl Target {
    /// The server that the options name.
    pub fn of(options: &Options) -> Result<Self, String> {
        match (&options.spawn, &options.url) {
            (Some(program), _) => Self::gateway(program, options),
            (None, Some(url)) => Self::at(url, options),
            (None, None) => Err("nothing to load: give --spawn PATH_TO_RINGWAY or --url ws://HOST:PORT/PATH".into()),
        }
    }

    fn at(url: &str, options: &Options) -> Result<Self, String> {
        let rest = url.strip_prefix("ws://").ok_or_else(|| format!("{url:?} is no ws:// URL; TLS is not spoken here"))?;
        let (host, path) = rest.find('/').map_or((rest, None), |at| (&rest[..at], Some(rest[at..].to_owned())));
        let address = host.to_socket_addrs().map_err(|error| format!("{host:?} does not name a HOST:PORT: {error}"))?.next();
        let address = address.ok_or_else(|| format!("{host:?} has no address"))?;
        let minter = match &options.key {
            None => None,
            Some(file) => {
                let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
                Some(Minter::from_jwk(&text, &options.issuer, &options.audience)?)
            }
        };
        Ok(Self { address, host: host.into(), path, pid: options.pid, admin: None, minter, pairs: false, process: None })
    }

    /// A bare server of this harness, in a process of its own.
    pub fn floor(kind: floor::Kind, payload_bytes: usize, options: &Options) -> Result<Self, String> {
        let [address] = free_addresses()?;
        let buffer_bytes = (payload_bytes * options.burst.max(1) + 256).clamp(2048, 64 << 10);
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut command = Command::new(program);
        command.args(["floor", kind.name(), "--serve", &address.to_string(), "--buffer-bytes", &buffer_bytes.to_string()]);
        Self::own(command, address, kind == floor::Kind::Relay, options)
    }

    /// A sink, which accepts everything and does nothing, for attackers, in a process of its own.
    pub fn sink(options: &Options) -> Result<Self, String> {
        let [address] = free_addresses()?;
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut command = Command::new(program);
        command.args(["sink", "--serve", &address.to_string()]);
        Self::own(command, address, false, options)
    }

    /// Starts a server of this harness, and waits until it listens.
    fn own(command: Command, address: SocketAddr, pairs: bool, options: &Options) -> Result<Self, String> {
        let process = Process::start(command, options, None)?;
        process.wait_listening(address)?;
        Ok(Self {
            address,
            host: address.to_string(),
            path: None,
            pid: Some(process.child.id()),
            admin: None,
            minter: None,
            pairs,
            process: Some(Mutex::new(process)),
        })
    }

    fn gateway(program: &Path, options: &Options) -> Result<Self, String> {
        let minter = Minter::random()?;
        let [address, admin] = free_addresses()?;
        let files = TemporaryFiles::new(&minter, address, admin, options)?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&files.config).envs(options.environment.iter().map(|(key, value)| (key, value)));
        let process = Process::start(command, options, Some(files))?;
        process.wait_listening(address)?;
        Ok(Self {
            address,
            host: address.to_string(),
            path: None,
            pid: Some(process.child.id()),
            admin: Some(admin),
            minter: Some(minter),
            pairs: false,
            process: Some(Mutex::new(process)),
        })
    }

    /// Ends a started server as a crash does, and starts it again. Returns how long it was away, in nanoseconds.
    pub fn kill_and_restart(&self) -> Result<u64, String> {
        let process = self.process.as_ref().ok_or("only a server that the harness started can be killed: give --spawn")?;
        let mut process = process.lock().map_err(|_| "the server's process is in an unknown state".to_owned())?;
        let killed_ns = now_ns();
        process.child.kill().and_then(|()| process.child.wait()).map_err(|error| format!("{}: {error}", process.name))?;
        process.start_again()?;
        process.wait_listening(self.address)?;
        Ok(now_ns() - killed_ns)
    }

    /// The process id, also after a restart.
    pub fn pid(&self) -> Option<u32> {
        match &self.process {
            Some(process) => process.lock().ok().map(|process| process.child.id()),
            None => self.pid,
        }
    }

    /// The reason why a started server has ended, with its last output; `None` while it runs.
    pub fn ended(&self) -> Option<String> {
        let mut process = self.process.as_ref()?.lock().ok()?;
        let status = process.child.try_wait().ok()??;
        let said = process.output.lock().map(|lines| lines.join("\n")).unwrap_or_default();
        Some(format!("{} ended with {status}; it said:\n{said}", process.name))
    }

    /// Bytes of the files of a started gateway's log.
    pub fn log_bytes(&self) -> u64 {
        let folder = self.process.as_ref().and_then(|process| {
            let process = process.lock().ok()?;
            process.files.as_ref().map(|files| files.folder.path().join("log"))
        });
        folder.map_or(0, |folder| file_bytes(&folder))
    }

    /// Returns `true` for the gateway: envelopes, sessions, tokens.
    pub fn speaks_envelopes(&self) -> bool {
        self.minter.is_some()
    }

    /// Where bare frames are echoed.
    pub fn echo_endpoint(&self) -> Endpoint {
        let path = self.path.clone().unwrap_or_else(|| if self.minter.is_some() { "/v1/echo" } else { "/" }.into());
        Endpoint { address: self.address, host: self.host.clone(), path, subprotocol: None }
    }

    /// Where sessions are joined; on a bare server, just where to connect.
    pub fn session_endpoint(&self) -> Endpoint {
        if !self.speaks_envelopes() {
            return self.echo_endpoint();
        }
        let path = self.path.clone().unwrap_or_else(|| "/v1/ws".into());
        Endpoint { address: self.address, host: self.host.clone(), path, subprotocol: Some("ringway.v1".into()) }
    }
}

/// Bytes of all files below a folder; unreadable ones count as empty.
fn file_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => file_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(bytes).sum()
}

/// Different addresses on which nobody listens now: the listeners that find them stay open until all are found.
fn free_addresses<const N: usize>() -> Result<[SocketAddr; N], String> {
    let find = || TcpListener::bind("127.0.0.1:0").and_then(|listener| Ok((listener.local_addr()?, listener)));
    let mut found = Vec::with_capacity(N);
    for _ in 0..N {
        found.push(find().map_err(|error| format!("no free port: {error}"))?);
    }
    Ok(std::array::from_fn(|number| found[number].0))
}

/// A folder of this run's own, below the system's temporary folder (`TMPDIR`), deleted with its content.
pub struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    pub fn new(of: &str) -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("ringway-loadtest-{of}-{}-{}", std::process::id(), now_ns()));
        std::fs::create_dir(&path).map_err(|error| format!("cannot make the folder {}: {error}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The gateway's configuration and key, and its log.
struct TemporaryFiles {
    folder: TemporaryFolder,
    config: PathBuf,
}

impl TemporaryFiles {
    fn new(minter: &Minter, listen: SocketAddr, admin: SocketAddr, options: &Options) -> Result<Self, String> {
        let folder = TemporaryFolder::new("gateway")?;
        let files = Self { config: folder.path().join("ringway.toml"), folder };
        let key = files.folder.path().join("load.jwk");
        let write = || -> std::io::Result<()> {
            write_private(&key, &minter.jwk())?;
            let mut config = gateway_config(minter, &key, listen, admin, options);
            if options.keep_all {
                config.push_str("\n[session]\nhistory_messages = 100000000\n");
            }
            if let Some(durability) = options.durability {
                let dir = files.folder.path().join("log");
                let _ = write!(config, "\n[log]\ndir = \"{}\"\ndurability = \"{}\"\n", dir.display(), durability.name());
            }
            std::fs::write(&files.config, config)
        };
        write().map_err(|error| {
            format!("cannot write the gateway's configuration below {}: {error}", files.folder.path().display())
        })?;
        Ok(files)
    }
}

fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}

const NO_LIMITS: &str = "[limits]
messages_per_second = 0
bytes_per_second = 0
sessions_per_shard = 1000000
connections_per_ip = 0
handshakes_per_ip_per_second = 0
handshakes_per_second = 0
half_open_percent = 100
half_open_per_ip = 0
";

/// A configuration with one shard and, unless the default limits are wanted, no limits that a single generating host would meet.
/// A gateway refuses to start if its connections and its own files might not fit the process's limit, so it gets most of that and
/// not all.
fn gateway_config(minter: &Minter, key: &Path, listen: SocketAddr, admin: SocketAddr, options: &Options) -> String {
    let engine = options.engine.as_deref().unwrap_or("auto");
    // monoio takes two files a connection.
    let per_connection = if matches!(engine, "monoio" | "epoll") { 2 } else { 1 };
    let (connections_max, limits) = if options.default_limits { (10_000, "") } else { (100_000, NO_LIMITS) };
    let max_connections = (affinity::raise_open_files() * 17 / 20 / per_connection).clamp(100, connections_max);
    format!(
        r#"[server]
listen = "{listen}"
engine = "{engine}"
shards = 1
pin = true
max_connections = {max_connections}

[admin]
listen = "{admin}"

[auth]
issuer = "{issuer}"
audience = "{audience}"
leeway_s = 5

[[auth.keys]]
kid = "{kid}"
alg = "HS256"
file = "{file}"

{limits}
[diagnostics]
echo = true
log_level = "warn"
"#,
        issuer = minter.issuer,
        audience = minter.audience,
        kid = minter.kid,
        file = key.display(),
    )
}

/// A server process, ended with SIGTERM when dropped.
struct Process {
    child: Child,
    command: Command,
    /// The server's core and the one to return to after its start; a child inherits its parent's.
    cores: Option<(usize, Option<usize>)>,
    name: String,
    /// The last lines it wrote, for when it fails.
    output: Arc<Mutex<Vec<String>>>,
    files: Option<TemporaryFiles>,
}

impl Process {
    fn start(mut command: Command, options: &Options, files: Option<TemporaryFiles>) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let cores = (!options.no_pin).then(|| (options.server_core, options.load_core.first().copied()));
        let output = Arc::default();
        let child = spawn(&mut command, &name, cores, &output)?;
        Ok(Self { child, command, cores, name, output, files })
    }

    /// Starts a server again that has ended.
    fn start_again(&mut self) -> Result<(), String> {
        self.child = spawn(&mut self.command, &self.name, self.cores, &self.output)?;
        Ok(())
    }

    fn wait_listening(&self, address: SocketAddr) -> Result<(), String> {
        let deadline_ns = now_ns() + PATIENCE_MS * 1_000_000;
        while TcpStream::connect(address).is_err() {
            let ended =
                std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).map_or(true, |stat| stat.contains(") Z "));
            if ended || now_ns() > deadline_ns {
                sleep_ms(50);
                let said = self.output.lock().map(|lines| lines.join("\n")).unwrap_or_default();
                let what = if ended { "ended before it listened" } else { "did not listen within 10 s" };
                return Err(format!("{} {what} on {address}; it said:\n{said}", self.name));
            }
            sleep_ms(5);
        }
        Ok(())
    }
}

fn spawn(
    command: &mut Command,
    name: &str,
    cores: Option<(usize, Option<usize>)>,
    output: &Arc<Mutex<Vec<String>>>,
) -> Result<Child, String> {
    if let Some((server, _)) = cores {
        affinity::pin_this_thread(server).map_err(|error| error.to_string())?;
    }
    let child = command.spawn();
    if let Some((_, Some(core))) = cores {
        affinity::pin_this_thread(core).map_err(|error| error.to_string())?;
    }
    let mut child = child.map_err(|error| format!("cannot start {name}: {error}"))?;
    if let Some(stdout) = child.stdout.take() {
        keep_last_lines(stdout, output);
    }
    if let Some(stderr) = child.stderr.take() {
        keep_last_lines(stderr, output);
    }
    Ok(child)
}

fn keep_last_lines(from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<String>>>) {
    let into = Arc::clone(into);
    // A pipe nobody reads would stop the server; the thread ends with the pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if let Ok(mut lines) = into.lock() {
                if lines.len() == 30 {
                    lines.remove(0);
                }
                lines.push(line);
            }
        }
    });
}

impl Drop for Process {
    fn drop(&mut self) {
        affinity::terminate(self.child.id());
        let deadline_ns = now_ns() + PATIENCE_MS * 1_000_000;
        while now_ns() < deadline_ns {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep_ms(5);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser as _;

    #[test]
    fn the_key_file_is_private_and_goes_with_the_run() {
        use std::os::unix::fs::PermissionsExt as _;
        let minter = Minter::random().unwrap();
        let [listen, admin] = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let options = |arguments: &[&str]| {
            let all = [&["ringway-loadtest", "relay", "--spawn", "x"], arguments].concat();
            let Some(Command::Relay(options)) = Cli::parse_from(all).command else { panic!("relay was asked for") };
            options
        };
        let synced = Options { keep_all: true, ..options(&["--durability", "synced"]) };
        let files = TemporaryFiles::new(&minter, listen, admin, &synced).unwrap();
        let key = files.folder.path().join("load.jwk");
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let config = std::fs::read_to_string(&files.config).unwrap();
        assert!(config.contains("listen = \"127.0.0.1:1\"") && config.contains(&key.display().to_string()));
        let log = format!("[log]\ndir = \"{}\"\ndurability = \"synced\"\n", files.folder.path().join("log").display());
        assert!(config.ends_with(&log) && config.contains("[session]\nhistory_messages = 100000000\n"), "{config}");
        drop(files);
        assert!(!key.exists());
        let files = TemporaryFiles::new(&minter, listen, admin, &options(&[])).unwrap();
        let config = std::fs::read_to_string(&files.config).unwrap();
        assert!(!config.contains("[log]") && !config.contains("[session]"), "{config}");
        assert!(config.contains("[limits]\nmessages_per_second = 0\n"), "{config}");
        let files = TemporaryFiles::new(&minter, listen, admin, &Options { default_limits: true, ..options(&[]) }).unwrap();
        let config = std::fs::read_to_string(&files.config).unwrap();
        assert!(!config.contains("[limits]") && config.contains("[diagnostics]\necho = true"), "{config}");
    }
}
