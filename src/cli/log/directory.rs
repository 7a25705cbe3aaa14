//! A log's directory, read only: its shards, and their records one after the other.
//!
//! The gateway may be writing to it: a half-written record looks torn, or damaged if a mark was written behind it while the rest
//! was read; and retention may delete files. So a record that does not read is read again before damage is reported.

use crate::cli::{CliError, read_file};
use crate::ids::HashKey;
use crate::limits::CHUNK_BYTES;
use crate::log::{
    Damage, LastSegment, Position, Record, SEGMENT_HEADER_BYTES, ScanError, Scanned, Scanner, SegmentHeader, segment_number,
};
use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

const FORMAT_BYTES_MAX: u64 = 64 * 1024;
/// The newest version that is read, and all before it.
const FORMAT_VERSION: i64 = 2;
/// Times a shard is read before damage is reported.
const ATTEMPTS: u32 = 3;

/// A directory that holds a log.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    pub(super) key: HashKey,
    /// Ordered by generation and number.
    pub(super) shards: Vec<Shard>,
}

/// The log of one shard in one generation.
#[derive(Clone, Debug)]
pub(super) struct Shard {
    pub(super) generation: u32,
    pub(super) shard: u16,
    pub(super) path: PathBuf,
}

/// Why reading stopped.
#[derive(Debug)]
pub(super) enum Halt {
    /// The reader wants no more records.
    Enough,
    Failed(CliError),
}

impl From<CliError> for Halt {
    fn from(error: CliError) -> Self {
        Self::Failed(error)
    }
}

/// The result of reading a shard.
#[derive(Debug)]
pub(super) enum Outcome {
    Whole(Box<Scanned>),
    /// Damage that would stop a start.
    Broken {
        error: ScanError,
        last: Option<LastSegment>,
    },
}

/// A segment's file.
#[derive(Clone, Debug)]
pub(super) struct SegmentFile {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

pub(super) fn at(path: &Path, error: &dyn std::fmt::Display) -> CliError {
    CliError(format!("{}: {error}", path.display()))
}

fn names(path: &Path) -> Result<Vec<(String, PathBuf)>, CliError> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|error| at(path, &error))? {
        let entry = entry.map_err(|error| at(path, &error))?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    names.sort();
    Ok(names)
}

/// Parses a number as names have it: digits only, without leading zeros.
fn number<N: std::str::FromStr + ToString>(name: &str) -> Option<N> {
    name.parse().ok().filter(|number: &N| number.to_string() == name)
}

/// Precedes a session's hash if its name is unknown. No session id can contain an equals sign (protocol.md section 2).
const HASH_MARK: &str = "hash=";

/// A session whose name the log no longer has, as these commands write and read it.
pub(super) fn unnamed(hash: u64) -> String {
    format!("{HASH_MARK}{hash:016x}")
}

impl Directory {
    /// The directory at `path`.
    ///
    /// # Errors
    /// If the directory holds no log, or one of another version.
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let format = path.join("format");
        if !format.exists() {
            return Err(at(path, &"is no log's directory: it must hold a file `format`"));
        }
        let (key, in_force) = format_of(&read_file(&format, FORMAT_BYTES_MAX)?).map_err(|error| at(&format, &error))?;
        let mut shards = Vec::new();
        for (name, path) in names(path)? {
            // Another generation is left over from an interrupted change.
            let Some(generation) = number::<u32>(&name).filter(|generation| *generation == in_force) else { continue };
            for (name, path) in names(&path)? {
                if let Some(shard) = name.strip_prefix("shard-").and_then(number::<u16>) {
                    shards.push(Shard { generation, shard, path });
                }
            }
        }
        shards.sort_by_key(|shard| (shard.generation, shard.shard));
        Ok(Self { path: path.to_owned(), key, shards })
    }

    /// The hash of a session that is named by its id, or as [`unnamed`] writes it.
    pub(super) fn session(&self, name: &str) -> u64 {
        let hash = name.strip_prefix(HASH_MARK).filter(|digits| digits.len() == 16);
        hash.and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .unwrap_or_else(|| self.key.hash64(&[b"session", name.as_bytes()]))
    }

    /// Reads all shards and shows each record once. Returns the outcome for each shard.
    pub(super) fn read(
        &self,
        mut each: impl FnMut(&Shard, Position, &Record<'_>) -> Result<(), Halt>,
    ) -> Result<Vec<(Shard, Outcome)>, Halt> {
        let mut bar = Progress::new(self)?;
        let mut outcomes = Vec::new();
        for shard in &self.shards {
            let outcome = shard.read(&mut bar, |position, record| each(shard, position, record))?;
            outcomes.push((shard.clone(), outcome));
        }
        Ok(outcomes)
    }
}

/// The key, and the generation in force.
fn format_of(format: &[u8]) -> Result<(HashKey, u32), String> {
    let text = std::str::from_utf8(format).map_err(|_| "not UTF-8".to_owned())?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    match table.get("version").and_then(toml::Value::as_integer) {
        Some(1..=FORMAT_VERSION) => {}
        other => {
            let version = other.map_or_else(|| "none".to_owned(), |version| version.to_string());
            return Err(format!("version = {version}: this command reads versions 1 to {FORMAT_VERSION}"));
        }
    }
    let digits = table.get("key").and_then(toml::Value::as_str).filter(|key| key.len() == 32 && key.is_ascii());
    let key = digits.and_then(|digits| u128::from_str_radix(digits, 16).ok());
    let key = key.ok_or_else(|| "key: must be 32 hexadecimal digits".to_owned())?;
    let generation = table.get("generation").and_then(toml::Value::as_integer).and_then(|number| u32::try_from(number).ok());
    let generation = generation.ok_or_else(|| "generation: must be a number".to_owned())?;
    Ok((HashKey(key.to_be_bytes()), generation))
}

impl Shard {
    /// The segments by number. Files with other names are not part of the log.
    pub(super) fn segments(&self) -> Result<Vec<SegmentFile>, CliError> {
        let mut segments = Vec::new();
        for (name, path) in names(&self.path)? {
            let Some(number) = segment_number(&name) else { continue };
            let bytes = std::fs::metadata(&path).map_or(0, |data| data.len());
            segments.push(SegmentFile { number, path, bytes });
        }
        Ok(segments)
    }

    /// The size of a segment, from the first good header.
    pub(super) fn segment_bytes(&self) -> Result<Option<u64>, CliError> {
        for segment in self.segments()? {
            let mut head = [0; SEGMENT_HEADER_BYTES];
            let read = File::open(&segment.path).and_then(|mut file| fill(&mut file, &mut head));
            if read.is_ok()
                && let Ok(header) = SegmentHeader::decode(&head)
            {
                return Ok(Some(header.segment_bytes));
            }
        }
        Ok(None)
    }

    /// Shows each record once, and returns the outcome.
    pub(super) fn read(
        &self,
        bar: &mut Progress,
        mut each: impl FnMut(Position, &Record<'_>) -> Result<(), Halt>,
    ) -> Result<Outcome, Halt> {
        let (mut shown_to, mut before) = (Position(0), None);
        for attempt in 1.. {
            let read = self.read_once(bar, |position, record| {
                if position < shown_to {
                    return Ok(());
                }
                shown_to = Position(position.0 + record.length as u64);
                each(position, record)
            });
            match read {
                Err(Attempt::Vanished(error)) if attempt >= ATTEMPTS => return Err(Halt::Failed(error)),
                Err(Attempt::Vanished(_)) => {}
                Err(Attempt::Halt(halt)) => return Err(halt),
                Ok(Outcome::Broken { error, last }) => {
                    // The same damage twice is no half-written record.
                    let place = match &error {
                        ScanError::Damaged(damage) => (damage.segment, damage.offset),
                        _ => (u64::MAX, 0),
                    };
                    if before == Some(place) || attempt >= ATTEMPTS {
                        return Ok(Outcome::Broken { error, last });
                    }
                    before = Some(place);
                }
                Ok(whole) => return Ok(whole),
            }
        }
        unreachable!("the attempts are counted above")
    }

    fn read_once(
        &self,
        bar: &mut Progress,
        mut each: impl FnMut(Position, &Record<'_>) -> Result<(), Halt>,
    ) -> Result<Outcome, Attempt> {
        let mut scanner = Scanner::new(self.shard, self.generation);
        let mut buffer = vec![0; CHUNK_BYTES];
        for segment in self.segments().map_err(|error| Attempt::Halt(error.into()))? {
            let mut file = match File::open(&segment.path) {
                Ok(file) => file,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Attempt::Vanished(at(&segment.path, &"was deleted while the log was read")));
                }
                Err(error) => return Err(Attempt::Halt(at(&segment.path, &error).into())),
            };
            if let Err(error) = scanner.segment(segment.number) {
                return Ok(Outcome::Broken { error, last: scanner.last() });
            }
            loop {
                let len = fill(&mut file, &mut buffer).map_err(|error| Attempt::Halt(at(&segment.path, &error).into()))?;
                let mut halt = Ok(());
                let fed = scanner.chunk(&buffer[..len], |position, record| {
                    if halt.is_ok() {
                        halt = each(position, record);
                    }
                });
                halt.map_err(Attempt::Halt)?;
                if let Err(error) = fed {
                    return Ok(Outcome::Broken { error, last: scanner.last() });
                }
                bar.add(len as u64);
                if len < buffer.len() {
                    break;
                }
            }
        }
        let last = scanner.last();
        Ok(match scanner.finish() {
            Ok(scanned) => Outcome::Whole(Box::new(scanned)),
            Err(error) => Outcome::Broken { error, last },
        })
    }
}

enum Attempt {
    /// A file that was listed in the folder, but is gone.
    Vanished(CliError),
    Halt(Halt),
}

/// Fills the buffer, or reads to the file's end.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(len) => filled += len,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A progress bar on standard error, if that is a terminal.
pub(super) struct Progress(indicatif::ProgressBar);

impl Progress {
    pub(super) fn new(directory: &Directory) -> Result<Self, CliError> {
        if !std::io::stderr().is_terminal() {
            return Ok(Self(indicatif::ProgressBar::hidden()));
        }
        let mut bytes = 0;
        for shard in &directory.shards {
            bytes += shard.segments()?.iter().map(|segment| segment.bytes).sum::<u64>();
        }
        let style = indicatif::ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}");
        let bar = indicatif::ProgressBar::new(bytes);
        Ok(Self(bar.with_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()))))
    }

    fn add(&mut self, bytes: u64) {
        self.0.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A shard's damage in words, with the file's path.
pub(super) fn describe(shard: &Shard, error: &ScanError) -> String {
    format!("{}/{error}", shard.path.display())
}

/// A line for each session that a damage may have affected.
pub(super) fn ranges(damage: &Damage, last_good: impl Fn(u64) -> Option<u64>, name: impl Fn(u64) -> String) -> Vec<String> {
    let line = |range: crate::log::SeqRange| {
        let first = range.last_good.map_or(1, |last| last + 1);
        let session = name(range.session);
        match range.next_good {
            Some(next) => format!("session {session}: seq {first} to {} may be lost", next.saturating_sub(1)),
            None => format!("session {session}: all from seq {first} on may be lost"),
        }
    };
    damage.ranges(last_good).into_iter().map(line).collect()
}
