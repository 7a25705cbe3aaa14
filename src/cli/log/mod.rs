//! `ringway log` and `ringway replay`: the log on disk, for operators. Only `log repair` and `log purge` write; `log repair`
//! deletes nothing.

mod directory;
mod export;
mod purge;
mod repair;
mod survey;
#[cfg(test)]
mod tests;

use crate::cli::CliError;
use crate::control::escape;
use clap::{Args, Subcommand};
use directory::{Directory, Halt};
use std::io::{self, BufWriter, ErrorKind, IsTerminal as _, Write};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Show each shard's segments, records and end
    Stat(DirectoryArg),
    /// List the sessions
    Ls(DirectoryArg),
    /// Print a session's records
    Cat(SessionArgs),
    /// Check every record, and that no session has a hole
    Verify(DirectoryArg),
    /// Print all records, one JSON object a line
    Export(ExportArgs),
    /// Take what is damaged out of the log, so that the gateway starts
    Repair(RepairArgs),
    /// Take all messages of a session out of the log's files, for good
    Purge(PurgeArgs),
}

#[derive(Debug, Args)]
pub(crate) struct DirectoryArg {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct SessionArgs {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The session_id, or hash= and 16 hexadecimal digits as `log ls` shows it
    #[arg(allow_hyphen_values = true)]
    session: String,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Print one JSON object a line
    #[arg(long, required = true)]
    jsonl: bool,
    /// Only this session's: its session_id, or hash= and 16 hexadecimal digits
    #[arg(long, allow_hyphen_values = true)]
    session: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Move what is behind the damage to DIR/quarantine; those messages are out of the log then
    #[arg(long, required = true)]
    quarantine: bool,
    /// Say what would be moved, and move nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PurgeArgs {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The session_id; where no gateway runs also hash= and 16 hexadecimal digits as `log ls` shows it
    #[arg(allow_hyphen_values = true)]
    session: String,
    /// The admin listener of the gateway that has the directory, a URL or unix:PATH: it purges while it runs
    #[arg(long, value_name = "URL|PATH")]
    admin: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// The log's directory, `[log] dir`
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// The session_id, or hash= and 16 hexadecimal digits as `log ls` shows it
    #[arg(allow_hyphen_values = true)]
    session: String,
    /// 1 is the pace at which they came, 2 twice that; without it, as fast as they are read
    #[arg(long, value_name = "FACTOR", value_parser = speed)]
    speed: Option<f64>,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed = text.parse().ok().filter(|speed: &f64| speed.is_finite() && *speed > 0.0);
    speed.ok_or_else(|| "must be a number above 0".to_owned())
}

/// `ringway log …`.
///
/// # Errors
/// What does not read, with file, offset and the seqs that may be lost.
pub(super) fn run(command: &LogCommand) -> Result<(), CliError> {
    let mut out = Out::stdout();
    let done = match command {
        LogCommand::Stat(DirectoryArg { dir }) => survey::stat(&Directory::open(dir)?, &mut out),
        LogCommand::Ls(DirectoryArg { dir }) => survey::ls(&Directory::open(dir)?, &mut out),
        LogCommand::Verify(DirectoryArg { dir }) => survey::verify(&Directory::open(dir)?, &mut out),
        LogCommand::Cat(SessionArgs { dir, session }) => export::cat(&Directory::open(dir)?, session, &mut out),
        LogCommand::Export(ExportArgs { dir, session, .. }) => {
            export::export(&Directory::open(dir)?, session.as_deref(), &mut out)
        }
        LogCommand::Repair(RepairArgs { dir, dry_run, .. }) => repair::repair(&Directory::open(dir)?, *dry_run, &mut out),
        LogCommand::Purge(PurgeArgs { dir, session, admin }) => match admin {
            Some(admin) => purge::ask(admin, session, &mut out),
            None => purge::purge(&Directory::open(dir)?, session, &mut out),
        },
    };
    ended(done, &mut out)
}

/// `ringway replay`.
///
/// # Errors
/// As [`run`].
pub(super) fn replay(arguments: &ReplayArgs) -> Result<(), CliError> {
    let mut out = Out::stdout();
    let done = export::replay(&Directory::open(&arguments.dir)?, &arguments.session, arguments.speed, &mut out);
    ended(done, &mut out)
}

fn ended(done: Result<(), Halt>, out: &mut Out<'_>) -> Result<(), CliError> {
    // Records found before an error are shown too.
    let flushed = out.flush();
    match done.and(flushed) {
        Ok(()) | Err(Halt::Enough) => Ok(()),
        Err(Halt::Failed(error)) => Err(error),
    }
}

/// The output. A reader that has seen enough (`| head`) ends the command, without an error.
struct Out<'a> {
    to: Box<dyn Write + 'a>,
    /// The output is a terminal: logged text must not send it control sequences.
    is_terminal: bool,
}

impl Out<'_> {
    fn stdout() -> Self {
        let is_terminal = io::stdout().is_terminal();
        Self { to: Box::new(BufWriter::with_capacity(64 * 1024, io::stdout().lock())), is_terminal }
    }

    /// Lines for people.
    fn line(&mut self, text: &str) -> Result<(), Halt> {
        text.split('\n').try_for_each(|line| self.put(&escape::text(line)))
    }

    /// A line of JSON: unchanged, or, on a terminal, an equal one without control characters.
    fn json(&mut self, text: &str) -> Result<(), Halt> {
        if self.is_terminal { self.put(&escape::json(text)) } else { self.put(text) }
    }

    fn put(&mut self, text: &str) -> Result<(), Halt> {
        let written = self.to.write_all(text.as_bytes()).and_then(|()| self.to.write_all(b"\n"));
        Self::halt(written)
    }

    fn flush(&mut self) -> Result<(), Halt> {
        let flushed = self.to.flush();
        Self::halt(flushed)
    }

    fn halt(result: io::Result<()>) -> Result<(), Halt> {
        result.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Halt::Enough,
            _ => Halt::Failed(CliError(format!("standard output: {error}"))),
        })
    }
}
