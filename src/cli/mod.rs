//! The command line: arguments in, one of the commands run, an exit code out.
//!
//! May import everything; nothing imports it. Reads the environment, files and clocks, so that the rest need not.
//!
//! Invariants: an error is one clear line on stderr and exit code 1, a wrong usage exit code 2; what was asked for goes to
//! stdout and nothing else does; no secret is printed but where making one was asked for.

mod admin_client;
mod check;
mod conn;
mod dev;
mod doctor;
pub mod engine;
pub mod keys;
mod keys_adaptor;
mod log;
mod revoke;
mod serve;

pub use serve::{Node, Shards, StartShards, run};

use crate::config::{self, KeyAlgorithm};
use crate::control::escape;
use clap::{Args, Parser, Subcommand};
use rustix::fs::{Mode, OFlags};
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time for which the end of the process waits for the reader of stderr.
const STDERR_PATIENCE: Duration = Duration::from_secs(2);
const DEFAULT_ADMIN: &str = "http://127.0.0.1:9090";

/// Why a command failed: one line, or one for each mistake of a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CliError(pub String);

impl From<String> for CliError {
    fn from(line: String) -> Self {
        Self(line)
    }
}

#[derive(Debug, Parser)]
#[command(name = "ringway", version, about = "The real-time gateway for AI agents", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run with no configuration and a key in memory: to try it out, not for the Internet
    Dev(DevArgs),
    /// Run with a configuration file
    Serve(ConfigArg),
    /// Check a configuration, or print what there is to configure
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Make keys that tokens are signed and verified with
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make and verify tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Check whether the gateway can run on this machine, and say how to fix what is missing
    Doctor(DoctorArgs),
    /// Show the connections of a running gateway
    #[command(subcommand)]
    Conn(ConnCommand),
    /// Inspect the log on disk, whether a gateway runs or not
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Print a session's messages in their order, at the pace they came or faster
    Replay(log::ReplayArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Address and port for clients
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Address and port of the admin listener, a loopback address
    #[arg(long, default_value = "127.0.0.1:9090", value_name = "ADDRESS:PORT")]
    pub(crate) admin: SocketAddr,
    /// Shards, one thread each; 0: one per core
    #[arg(long, default_value_t = 0, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(0..=256))]
    pub(crate) shards: u16,
    /// The engine: auto, ring, monoio or epoll
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub(crate) engine: String,
}

#[derive(Debug, Args)]
struct ConfigArg {
    /// The configuration file (TOML); `ringway config defaults` prints one
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Say OK, or every mistake with its line and what would be right
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Print a configuration file with all defaults and a comment for each
    Defaults,
    /// Print the reference of all settings as Markdown
    Docs,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key pair, or a secret for HS256
    New(KeyNewArgs),
}

/// The arguments of `key new`.
#[derive(Clone, Debug, Args)]
pub struct KeyNewArgs {
    /// The signature algorithm: eddsa, es256, rs256 or hs256
    #[arg(long, value_name = "ALGORITHM", value_parser = key_algorithm)]
    pub alg: KeyAlgorithm,
    /// The key id that tokens will name; random if absent
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub kid: Option<String>,
    /// The private file to write, or the folder for both files
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub out: PathBuf,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Sign a token
    New(TokenNewArgs),
    /// Verify a token and print what it grants
    Verify(TokenVerifyArgs),
    /// Revoke a token, a client or a user on a running gateway, and close its connections
    Revoke(RevokeArgs),
    /// List what is revoked on a running gateway
    Revocations {
        /// The admin listener: a URL, or the path of its socket (unix:PATH)
        #[arg(long, default_value = DEFAULT_ADMIN, value_name = "URL|PATH")]
        admin: String,
        /// Show at most this many
        #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The arguments of `token revoke`.
#[derive(Clone, Debug, Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["jti", "client_id", "sub"])))]
struct RevokeArgs {
    /// The id (`jti`) of a single token
    #[arg(long, value_name = "ID", conflicts_with = "issued_before_s", allow_hyphen_values = true)]
    jti: Option<String>,
    /// A client of a user. The user may come back as another client: if a token was stolen, revoke the token or the user
    #[arg(long = "client", value_name = "CLIENT_ID", allow_hyphen_values = true)]
    client_id: Option<String>,
    /// A user with all clients (`sub`)
    #[arg(long, value_name = "USER", allow_hyphen_values = true)]
    sub: Option<String>,
    /// For a client or user: only tokens issued before this time (Unix seconds); default: all issued until now
    #[arg(long = "issued-before", value_name = "SECONDS")]
    issued_before_s: Option<u64>,
    /// How long to remember the revocation: 90s, 15m, 1h, 1d; default: until every such token has expired
    #[arg(long, value_name = "TIME")]
    keep: Option<String>,
    /// Take the revocation back
    #[arg(long, conflicts_with_all = ["issued_before_s", "keep"])]
    lift: bool,
    /// The admin listener: a URL, or the path of its socket (unix:PATH)
    #[arg(long, default_value = DEFAULT_ADMIN, value_name = "URL|PATH")]
    admin: String,
}

/// The arguments of `token new`.
#[derive(Clone, Debug, Args)]
pub struct TokenNewArgs {
    /// The private key or secret, as `key new` wrote it
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The key id, if the file names none
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    pub kid: Option<String>,
    /// The user of the token (`sub`)
    #[arg(long, value_name = "USER", allow_hyphen_values = true)]
    pub sub: String,
    /// A session or channel that the token covers, or a prefix pattern like "team-7.*"; may be repeated (`sid`)
    #[arg(long, value_name = "SESSION", required = true, allow_hyphen_values = true)]
    pub sid: Vec<String>,
    /// A role of the user; may be repeated (`roles`)
    #[arg(long, value_name = "ROLE", allow_hyphen_values = true)]
    pub role: Vec<String>,
    /// The scopes of the token, separated by spaces (`scope`)
    #[arg(long, value_name = "SCOPES", allow_hyphen_values = true)]
    pub scope: Option<String>,
    /// The token's lifetime: 90s, 15m, 1h, 1d
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub ttl: String,
    /// The issuer (`iss`)
    #[arg(long, value_name = "ISSUER", allow_hyphen_values = true)]
    pub issuer: Option<String>,
    /// The audience (`aud`)
    #[arg(long, value_name = "AUDIENCE", allow_hyphen_values = true)]
    pub audience: Option<String>,
}

/// The arguments of `token verify`.
#[derive(Clone, Debug, Args)]
pub struct TokenVerifyArgs {
    /// The key to verify with, public or private
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// The issuer that the token must have
    #[arg(long, value_name = "ISSUER", allow_hyphen_values = true)]
    pub issuer: Option<String>,
    /// The audience that the token must have
    #[arg(long, value_name = "AUDIENCE", allow_hyphen_values = true)]
    pub audience: Option<String>,
    /// The token; default: the first line of standard input, which other users of the machine cannot see
    pub token: Option<String>,
}

fn key_algorithm(name: &str) -> Result<KeyAlgorithm, String> {
    KeyAlgorithm::from_name(name).ok_or_else(|| "must be eddsa, es256, rs256 or hs256".to_owned())
}

#[derive(Debug, Args)]
struct DoctorArgs {
    /// The configuration to check the machine against; default: the default settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum ConnCommand {
    /// List connections, those closed in the last ten minutes too
    Ls {
        /// The admin listener: a URL, or the path of its socket (unix:PATH)
        #[arg(long, default_value = DEFAULT_ADMIN, value_name = "URL|PATH")]
        admin: String,
        /// Show at most this many
        #[arg(long, default_value_t = 1000, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=10_000))]
        limit: u16,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one connection with its sessions
    Show {
        /// The connection_id
        id: String,
        /// The admin listener: a URL, or the path of its socket (unix:PATH)
        #[arg(long, default_value = DEFAULT_ADMIN, value_name = "URL|PATH")]
        admin: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command that the arguments ask for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // If the terminal is gone, the exit code still tells.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match run_command(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Writes to stderr, but does not keep the process from ending if nobody reads it.
fn complain(error: &CliError) {
    let lines: String = error.0.lines().map(|line| format!("ringway: {}\n", escape::text(line))).collect();
    let (done, written) = std::sync::mpsc::sync_channel(1);
    let writer = std::thread::Builder::new().name("stderr".to_owned()).spawn(move || {
        let _ = io::stderr().lock().write_all(lines.as_bytes());
        let _ = done.send(());
    });
    if writer.is_ok() {
        let _ = written.recv_timeout(STDERR_PATIENCE);
    }
}

fn run_command(command: Command) -> Result<(), CliError> {
    match command {
        Command::Dev(arguments) => dev::dev(&arguments),
        Command::Serve(ConfigArg { config }) => serve::serve(&config),
        Command::Config(ConfigCommand::Check { file }) => {
            check::check(&file, None)?;
            print("OK\n")
        }
        Command::Config(ConfigCommand::Defaults) => print(&config::defaults_toml()),
        Command::Config(ConfigCommand::Docs) => print(&config::docs_markdown()),
        Command::Key(KeyCommand::New(arguments)) => keys_adaptor::key_new(&arguments),
        Command::Token(TokenCommand::New(arguments)) => keys_adaptor::token_new(&arguments),
        Command::Token(TokenCommand::Verify(arguments)) => keys_adaptor::token_verify(&arguments),
        Command::Token(TokenCommand::Revoke(arguments)) => revoke::revoke(&arguments),
        Command::Token(TokenCommand::Revocations { admin, limit, json }) => revoke::list(&admin, limit, json),
        Command::Doctor(DoctorArgs { config }) => doctor::doctor(config.as_deref()),
        Command::Conn(ConnCommand::Ls { admin, limit, json }) => conn::list(&admin, limit, json),
        Command::Conn(ConnCommand::Show { id, admin, json }) => conn::show(&admin, &id, json),
        Command::Log(command) => log::run(&command),
        Command::Replay(arguments) => log::replay(&arguments),
    }
}

/// Unix seconds.
#[expect(clippy::disallowed_methods, reason = "the command line reads the clock for the core")]
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Writes to stdout. A reader that has seen enough (`| head`) is no error.
pub(crate) fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    let shown = if stdout.is_terminal() {
        text.split('\n').map(escape::json).collect::<Vec<_>>().join("\n").into()
    } else {
        Cow::Borrowed(text)
    };
    match stdout.write_all(shown.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError(format!("standard output: {error}"))),
        _ => Ok(()),
    }
}

/// The environment as pairs; a name or value that is no UTF-8 is none of ours, or refused by its setting's check.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
}

/// Reads a whole file of at most `bytes_max`. A pipe or a device could block the reader, and is refused.
pub(crate) fn read_file(file: &Path, bytes_max: u64) -> Result<Vec<u8>, CliError> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(file, flags, Mode::empty()).map(std::fs::File::from).map_err(io::Error::from);
    if let Ok(opened) = &opened
        && opened.metadata().is_ok_and(|metadata| !metadata.is_file())
    {
        return Err(CliError(format!("{}: this is no regular file, and what is read here must be one", file.display())));
    }
    read_whole(file, opened, bytes_max)
}

/// Reads a file as [`read_file`] does, but at a start, when nothing else waits: the file may be a pipe.
pub(crate) fn read_file_once(file: &Path, bytes_max: u64) -> Result<Vec<u8>, CliError> {
    read_whole(file, std::fs::File::open(file), bytes_max)
}

fn read_whole(file: &Path, opened: io::Result<std::fs::File>, bytes_max: u64) -> Result<Vec<u8>, CliError> {
    use std::io::Read;
    let wrong = |error: io::Error| CliError(format!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    opened.map_err(wrong)?.take(bytes_max + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > bytes_max {
        return Err(CliError(format!("{}: more than {bytes_max} bytes", file.display())));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split(' '))
    }

    /// Opening a pipe would wait for its writer; reading it, for data.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let folder = std::env::temp_dir().join(format!("ringway-read-file-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let pipe = folder.join("pipe");
        let made = rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        made.unwrap();
        for file in [&*pipe, Path::new("/dev/zero"), &*folder] {
            let expected = format!("{}: this is no regular file, and what is read here must be one", file.display());
            assert_eq!(read_file(file, 10).unwrap_err().0, expected);
            // A reload reads like this; a start accepts pipes too.
            assert_eq!(check::check(file, Some(&config::Settings::default())).unwrap_err().lines, [expected]);
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands_are_understood() {
        for line in [
            "ringway dev",
            "ringway dev --listen [::1]:0 --shards 2",
            "ringway serve --config a.toml",
            "ringway config check a.toml",
            "ringway config defaults",
            "ringway config docs",
            "ringway key new --alg eddsa",
            "ringway key new --alg HS256 --kid a --out k",
            "ringway token new --key k --kid a --sub ana --sid s --sid t --role agent --ttl 15m",
            "ringway token verify --key k abc",
            "ringway token revoke --jti t-1",
            "ringway token revoke --sub ana --issued-before 1790000000 --keep 1d",
            "ringway token revoke --client ana/tab --lift --admin http://127.0.0.1:1",
            "ringway token revocations --limit 5 --json",
            "ringway doctor",
            "ringway doctor --config a.toml",
            "ringway conn ls",
            "ringway conn ls --limit 5 --json",
            "ringway conn show c-1 --admin http://127.0.0.1:1",
            "ringway log stat d",
            "ringway log ls d",
            "ringway log cat d s-1",
            "ringway log verify d",
            "ringway log export d --jsonl --session s-1",
            "ringway log repair d --quarantine --dry-run",
            "ringway replay d s-1 --speed 0.5",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (line, part) in [
            ("ringway", "Usage"),
            ("ringway serv", "serve"),
            ("ringway serve", "--config"),
            ("ringway dev --listen localhost", "--listen"),
            ("ringway dev --shards 257", "257"),
            ("ringway key new --alg none", "eddsa"),
            ("ringway token new --key k --sub ana", "--sid"),
            ("ringway token revoke", "--jti"),
            ("ringway token revoke --jti t --sub ana", "--sub"),
            ("ringway token revoke --jti t --issued-before 5", "--issued-before"),
            ("ringway conn ls --limit 0", "0"),
            ("ringway log export d", "--jsonl"),
            ("ringway log repair d", "--quarantine"),
            ("ringway replay d s-1 --speed 0", "above 0"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(part), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
