//! The log's directory: whose it is, what it holds, and who has it now. Used before any shard runs.
//!
//! ```text
//! lock                        held by the process that uses the directory; its process id
//! format                      version, generation, shards and the key of the names, TOML of `name = value` lines
//! format.v1                   the same, as it was when the directory was of version 1
//! <generation>/shard-<i>/     <number, 16 hexadecimal digits>.seg, and `clean` after an end in good order
//! ```

use super::own::{FORMAT_BEGINS, check_empty, check_owner, is_lock, remove_other_generations};
use rustix::fs::Access;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The version of the directory's layout and of the records appended in it. A directory of an earlier version is upgraded to this
/// one.
const VERSION: u64 = 2;
pub(super) const LOCK: &str = "lock";
const FORMAT: &str = "format";
/// Name of the file `format` until it is complete.
pub(super) const FORMAT_NEW: &str = "format.new";
/// Copy of `format` of version 1, kept when the directory was upgraded.
const FORMAT_1: &str = "format.v1";
pub(super) const CLEAN: &str = "clean";
/// `format` is small; a longer file is something else.
pub(super) const FORMAT_BYTES_MAX: u64 = 4096;
const CLEAN_BYTES_MAX: u64 = 64;

/// A directory in use by this process.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    /// The number of the generation that the logs below belong to.
    pub generation: u32,
    pub shards: usize,
    /// The key under which the logs name sessions and clients.
    pub key: [u8; 16],
    // Held until the process ends. The second so that a deleted directory can be saved with its key, from /proc.
    _lock: File,
    _format: Option<File>,
}

/// A file of a shard's log.
#[derive(Debug)]
pub struct SegmentFile {
    pub number: u64,
    pub path: PathBuf,
    /// Open for reading and writing.
    pub file: File,
}

pub(super) fn told(path: &Path, error: &io::Error) -> String {
    format!("log.dir: {}: {error}", path.display())
}

/// Makes changes in a directory durable.
///
/// # Errors
/// The error of the directory's fsync.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Directory {
    /// Opens a log's directory, or makes it for `shards` shards with `fresh_key`.
    ///
    /// # Errors
    /// An error of one line: what is in the way, and what to do about it.
    pub fn open(root: &Path, shards: usize, fresh_key: [u8; 16]) -> Result<Self, String> {
        // A log that is written again for other shards is written before there is an engine.
        super::ring::ignore_file_size_signal();
        make_root(root).map_err(|error| told(root, &error))?;
        check_there(root)?;
        let path = root.join(FORMAT);
        let lock = lock(root)?;
        let directory = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut made = Self { root: root.to_owned(), generation: 1, shards, key: fresh_key, _lock: lock, _format: None };
                made.write_format()?;
                made
            }
            Err(error) => return Err(told(&path, &error)),
            Ok(_) => {
                let Format { version, generation, shards, key } = read_format(&path)?;
                remove_other_generations(root, generation)?;
                let mut found =
                    Self { root: root.to_owned(), generation, shards, key, _lock: lock, _format: File::open(&path).ok() };
                if version < VERSION {
                    found.upgrade()?;
                }
                found
            }
        };
        Ok(directory)
    }

    /// Upgrades the directory. Older records are read as they are; new ones are written in this version, which the earlier
    /// gateway could not read.
    fn upgrade(&mut self) -> Result<(), String> {
        let (path, kept) = (self.root.join(FORMAT), self.root.join(FORMAT_1));
        let keep = || {
            let text = fs::read(&path)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&kept)?;
            file.write_all(&text)?;
            file.sync_all()?;
            sync_directory(&self.root)
        };
        keep().map_err(|error| told(&kept, &error))?;
        self.write_format()?;
        tracing::info!(path = %self.root.display(), version = VERSION, "the log's directory is of a new version; its old `format` is kept as {FORMAT_1}");
        Ok(())
    }

    fn write_format(&mut self) -> Result<(), String> {
        use std::fmt::Write as _;
        let mut text = format!("{FORMAT_BEGINS} The key names sessions and clients in it: keep it as secret as they are.\n");
        let _ = write!(text, "version = {VERSION}\ngeneration = {}\nshards = {}\nkey = \"", self.generation, self.shards);
        for byte in self.key {
            let _ = write!(text, "{byte:02x}");
        }
        text.push_str("\"\n");
        let (path, fresh) = (self.root.join(FORMAT), self.root.join(FORMAT_NEW));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            sync_directory(&self.root)
        };
        write().map_err(|error| told(&path, &error))?;
        self._format = File::open(&path).ok();
        Ok(())
    }

    /// The directory of a shard's log.
    #[must_use]
    pub fn shard(&self, shard: usize) -> PathBuf {
        self.shard_of(self.generation, shard)
    }

    /// The directory of a shard's log in that generation.
    #[must_use]
    pub fn shard_of(&self, generation: u32, shard: usize) -> PathBuf {
        self.root.join(generation.to_string()).join(format!("shard-{shard}"))
    }

    /// The root of the log's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A shard's directory, made if it is new.
    ///
    /// # Errors
    /// One line.
    pub fn make_shard(&self, shard: usize) -> Result<PathBuf, String> {
        self.make_shard_of(self.generation, shard)
    }

    /// A shard's directory in that generation, made if it is new.
    ///
    /// # Errors
    /// One line.
    pub fn make_shard_of(&self, generation: u32, shard: usize) -> Result<PathBuf, String> {
        let path = self.shard_of(generation, shard);
        let make = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
            if let Some(parent) = path.parent() {
                sync_directory(parent)?;
            }
            sync_directory(&self.root)
        };
        make().map_err(|error| told(&path, &error))?;
        check_owner(&self.root.join(generation.to_string()))?;
        check_owner(&path)?;
        Ok(path)
    }

    /// Switches to the next generation, of `shards` shards. Everything in this one has been written durably to the next one's
    /// logs. The file `format` is replaced as a whole, so that one generation is in force with all of its logs; then the old one
    /// is deleted.
    ///
    /// # Errors
    /// An error of one line. The old generation may still be in force, or only its files may be left: the next start sees which.
    pub fn succeed(&mut self, shards: usize) -> Result<(), String> {
        let (old, count) = (self.generation, self.shards);
        (self.generation, self.shards) = (old + 1, shards);
        if let Err(error) = self.write_format() {
            (self.generation, self.shards) = (old, count);
            return Err(error);
        }
        remove_other_generations(&self.root, self.generation)
    }
}

/// Refuses a directory that is neither a log's nor empty, before anything is made in it.
fn check_there(root: &Path) -> Result<(), String> {
    check_owner(root)?;
    let path = root.join(FORMAT);
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => check_empty(root),
        Err(error) => Err(told(&path, &error)),
        Ok(_) => read_format(&path).map(|_| ()),
    }
}

/// Checks whether [`Directory::open`] could open or make a directory, without changing anything. A lock held by another process
/// is not seen.
///
/// # Errors
/// An error of one line: what is in the way.
pub fn look(root: &Path) -> Result<(), String> {
    let exists = |path: &Path| path.try_exists().map_err(|error| told(path, &error));
    if !exists(root)? {
        let above = root.ancestors().skip(1).map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
        let mut there = above.filter(|path| path.exists());
        return there.next().map_or(Ok(()), may_write);
    }
    may_write(root)?;
    let lock = root.join(LOCK);
    if exists(&lock)? {
        rustix::fs::access(&lock, Access::READ_OK | Access::WRITE_OK).map_err(|error| told(&lock, &error.into()))?;
    }
    check_there(root)
}

fn may_write(directory: &Path) -> Result<(), String> {
    if !directory.is_dir() {
        return Err(format!(
            "log.dir: {} is no directory: name one, or a path at which there is nothing yet",
            directory.display()
        ));
    }
    rustix::fs::access(directory, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| told(directory, &error.into()))
}

/// Makes the directory, and makes its name in its parent durable. Without the latter a power cut takes the whole log.
fn make_root(root: &Path) -> io::Result<()> {
    let parent =
        |path: &Path| path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned();
    let fresh: Vec<&Path> = root.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(root)?;
    for made in &fresh {
        sync_directory(&parent(made))?;
    }
    if fresh.is_empty() {
        // An earlier start may have ended in between. If the parent cannot be read, somebody else has made the directory.
        let _ = sync_directory(&parent(root));
    }
    Ok(())
}

fn lock(root: &Path) -> Result<File, String> {
    let path = root.join(LOCK);
    if fs::symlink_metadata(&path).is_ok() && !is_lock(&path) {
        return Err(format!("log.dir: {} is no lock of a gateway's: move it away, or name another directory", path.display()));
    }
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
    let mut file = open().map_err(|error| told(&path, &error))?;
    if file.try_lock().is_err() {
        let mut holder = String::new();
        let _ = (&file).take(64).read_to_string(&mut holder);
        return Err(format!(
            "log.dir: {} is in use by another process ({}): stop that one, or give this gateway a directory of its own",
            root.display(),
            holder.trim()
        ));
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.write_all(format!("pid {}\n", std::process::id()).as_bytes())
    };
    write(&mut file).map_err(|error| told(&path, &error))?;
    Ok(file)
}

/// The content of the file `format`.
struct Format {
    version: u64,
    generation: u32,
    shards: usize,
    key: [u8; 16],
}

fn read_format(path: &Path) -> Result<Format, String> {
    let mut text = String::new();
    let opened = File::open(path).map_err(|error| told(path, &error))?;
    opened.take(FORMAT_BYTES_MAX).read_to_string(&mut text).map_err(|error| told(path, &error))?;
    let value = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().trim_matches('"'))
    };
    let wrong = |name: &str, right: &str| format!("log.dir: {}: {name} is not {right}; restore the file", path.display());
    let version = value("version").and_then(|text| text.parse::<u64>().ok()).filter(|version| (1..=VERSION).contains(version));
    let Some(version) = version else {
        let found = value("version").unwrap_or("missing");
        return Err(format!("log.dir: {}: version {found}; this gateway reads versions 1 to {VERSION}", path.display()));
    };
    let generation = value("generation").and_then(|text| text.parse().ok()).ok_or_else(|| wrong("generation", "a number"))?;
    let shards = value("shards").and_then(|text| text.parse().ok()).filter(|shards| *shards > 0);
    let shards = shards.ok_or_else(|| wrong("shards", "a number from 1 on"))?;
    let mut key = [0; 16];
    let digits =
        value("key").filter(|text| text.len() == 32 && text.is_ascii()).ok_or_else(|| wrong("key", "32 hexadecimal digits"))?;
    for (byte, at) in key.iter_mut().zip((0..32).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong("key", "32 hexadecimal digits"))?;
    }
    Ok(Format { version, generation, shards, key })
}

/// The segments of a shard's log in the order of their numbers. `number_of` reads a file's name; others are left alone.
///
/// # Errors
/// One line.
pub fn segments(shard: &Path, number_of: impl Fn(&str) -> Option<u64>) -> Result<Vec<SegmentFile>, String> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(shard) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(told(shard, &error)),
    };
    for entry in entries {
        let path = entry.map_err(|error| told(shard, &error))?.path();
        let Some(number) = path.file_name().and_then(|name| name.to_str()).and_then(&number_of) else { continue };
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| told(&path, &error))?;
        found.push(SegmentFile { number, path, file });
    }
    found.sort_by_key(|segment| segment.number);
    Ok(found)
}

/// The number of segments of all logs under a directory. A directory that cannot be listed counts as empty.
#[must_use]
pub fn count_segments(root: &Path) -> u64 {
    let list = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let shards = list(root).flat_map(|generation| list(&generation).collect::<Vec<_>>());
    let files = shards.flat_map(|shard| list(&shard).collect::<Vec<_>>());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "seg")).count() as u64
}

/// Returns `true` if a shard's log was ended in good order. The mark stays.
#[must_use]
pub fn is_clean(shard: &Path) -> bool {
    shard.join(CLEAN).exists()
}

/// Removes the mark that a shard's log was ended in good order; from now on its end is open. Returns the chain value of its last
/// record, `None` without a mark. If the log now ends with another value, files were deleted or cut since.
///
/// # Errors
/// One line.
pub fn take_clean(shard: &Path) -> Result<Option<u32>, String> {
    let path = shard.join(CLEAN);
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(CLEAN_BYTES_MAX).read_to_string(&mut text));
    match read.and_then(|_| fs::remove_file(&path)) {
        Ok(()) => sync_directory(shard).map(|()| text.trim().parse().ok()).map_err(|error| told(shard, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(told(shard, &error)),
    }
}

/// Leaves the mark that a shard's log was ended in good order, with the chain value of its last record.
///
/// # Errors
/// The file system's error; without the mark the next start counts as unclean.
pub fn leave_clean(shard: &Path, chain: u32) -> io::Result<()> {
    let mut file = File::create(shard.join(CLEAN))?;
    file.write_all(format!("{chain}\n").as_bytes())?;
    file.sync_all()?;
    sync_directory(shard)
}

/// Cuts a file to `bytes`, durably.
///
/// # Errors
/// The file system's error.
pub fn cut(file: &File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() == bytes {
        return Ok(());
    }
    file.set_len(bytes)?;
    file.sync_all()
}
