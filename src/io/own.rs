//! Ownership of a log's directory, and of the files in it that are the log's own. No other file is ever removed, and no log is
//! made among other people's files.

use super::directory::{FORMAT_BYTES_MAX, told};
use super::files::{index_path, purge_path, segment_path, staged};
use rustix::process::geteuid;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Bits of a mode that let others than the owner write.
const WRITABLE_BY_OTHERS: u32 = 0o022;
/// First bytes of a segment's header. A segment made ahead, or torn, has zeros.
const SEGMENT_BEGINS: [u8; 5] = *b"RWSEG";
/// Beginning of the first line of every `format` so far.
pub(super) const FORMAT_BEGINS: &str = "# The log of a ringway gateway.";
/// Names of found files that a message lists.
const NAMED_MAX: usize = 3;

/// Refuses a directory that is not this process's own, or that others may write to: they could make the gateway overwrite or lose
/// files.
///
/// # Errors
/// An error of one line: what is wrong, and the command that mends it.
pub fn check_owner(path: &Path) -> Result<(), String> {
    let data = fs::metadata(path).map_err(|error| told(path, &error))?;
    let (owner, own, mode, shown) = (data.uid(), geteuid().as_raw(), data.mode() & 0o7777, path.display());
    if !data.is_dir() {
        return Err(format!("log.dir: {shown} is no directory: name one, or a path at which there is nothing yet"));
    }
    if owner != own {
        return Err(format!(
            "log.dir: {shown} belongs to the user {owner}, and this process is the user {own}: run it as the user {owner}, or \
             `chown -R {own} {shown}`"
        ));
    }
    if mode & WRITABLE_BY_OTHERS != 0 {
        return Err(format!("log.dir: {shown} may be written by other users (mode {mode:04o}): `chmod go-w {shown}`"));
    }
    Ok(())
}

/// Refuses a directory that has no `format` and is not empty.
///
/// # Errors
/// An error of one line: what was found, and the ways on.
pub(super) fn check_empty(root: &Path) -> Result<(), String> {
    let (mut foreign, mut segments) = (Vec::new(), None);
    for path in list(root)? {
        if !is_left_of_a_first_start(&path) {
            segments = segments.or_else(|| first_segment(&path));
            foreign.push(name(&path));
        }
    }
    if let Some(segment) = segments {
        return Err(format!(
            "log.dir: {} has a log ({}) but no file `format`, which holds the key of its names: restore `format`, or move the log away \
             for a new one to begin",
            root.display(),
            segment.display()
        ));
    }
    if foreign.is_empty() {
        return Ok(());
    }
    foreign.sort();
    let count = foreign.len();
    foreign.truncate(NAMED_MAX);
    let (named, more) = (foreign.join(", "), count - foreign.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(format!(
        "log.dir: {} is no log's directory (it has no file `format`) and not empty, it has {named}{more}: name an empty directory, or \
         one that is not there yet, such as {}",
        root.display(),
        root.join("log").display()
    ))
}

/// Removes the generations just before and just after the one in force, which an interrupted change leaves: the log's own files
/// in them, and nothing else.
///
/// # Errors
/// An error of one line: what cannot be removed, or that the generation in force is missing beside another one.
pub(super) fn remove_other_generations(root: &Path, in_force: u32) -> Result<(), String> {
    let here = root.join(in_force.to_string());
    let (is_there, has_log) = (is_directory(&here), first_segment(&here).is_some());
    for path in list(root)? {
        // A number as names have it: digits only.
        let number = name(&path).parse::<u32>().ok().filter(|number| number.to_string() == name(&path));
        let Some(number) = number.filter(|number| *number != in_force) else { continue };
        // The previous generation is deleted when the change is done. The next one was begun beside a log, which is still there.
        let is_left =
            (number.checked_add(1) == Some(in_force) && is_there) || (in_force.checked_add(1) == Some(number) && has_log);
        if let Some(segment) = first_segment(&path).filter(|_| !is_left) {
            return Err(format!(
                "log.dir: {}: `format` names generation {in_force}{}, but there is {}: restore the `format` that belongs to the \
                 log, or move {} away",
                root.display(),
                if has_log { "" } else { ", which has no segments" },
                segment.display(),
                path.display()
            ));
        }
        if is_left && is_directory(&path) && !remove_generation(&path).map_err(|error| told(&path, &error))? {
            tracing::warn!(path = %path.display(), "what is not the log's in a generation that is over was left alone");
        }
    }
    Ok(())
}

/// Removes the log's own files in a generation's directory. Returns `true` if there were no others.
fn remove_generation(generation: &Path) -> io::Result<bool> {
    for shard in entries(generation)?.iter().filter(|path| is_shard(path)) {
        for file in entries(shard)?.iter().filter(|path| is_own_file(path)) {
            fs::remove_file(file)?;
        }
        remove_empty(shard)?;
    }
    remove_empty(generation)
}

/// Removes a directory if it is empty. Returns `true` if it was.
fn remove_empty(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        removed => removed.map(|()| true),
    }
}

fn entries(path: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect()
}

fn list(path: &Path) -> Result<Vec<PathBuf>, String> {
    entries(path).map_err(|error| told(path, &error))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().escape_debug().to_string()
}

/// Returns `true` for a directory itself, not a link to one.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_dir())
}

/// Returns `true` for a file itself, not a link to one.
fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_file())
}

fn is_shard(path: &Path) -> bool {
    let shard = name(path);
    let number = shard.strip_prefix("shard-").and_then(|digits| digits.parse::<u16>().ok());
    number.is_some_and(|number| shard == format!("shard-{number}")) && is_directory(path)
}

/// Returns `true` for a file that the log makes in a shard's directory, by its name and, for a segment, its first bytes.
fn is_own_file(path: &Path) -> bool {
    if !is_file(path) {
        return false;
    }
    let (file, shard) = (name(path), path.parent().unwrap_or(path));
    let number = file.split('.').next().filter(|digits| digits.len() == 16);
    let Some(number) = number.and_then(|digits| u64::from_str_radix(digits, 16).ok()) else {
        return file == super::directory::CLEAN;
    };
    if path == segment_path(shard, number) {
        return begins_as_segment(path);
    }
    let index = index_path(shard, number);
    path == index || path == staged(&index) || path == purge_path(shard, number)
}

/// Returns `true` if a file may be a segment: it begins as all segments do, or was not written whole.
fn begins_as_segment(path: &Path) -> bool {
    let mut first = [0; SEGMENT_BEGINS.len()];
    let Ok(file) = fs::File::open(path) else { return false };
    let mut read = Vec::with_capacity(first.len());
    if file.take(first.len() as u64).read_to_end(&mut read).is_err() {
        return false;
    }
    first[..read.len()].copy_from_slice(&read);
    first.iter().zip(SEGMENT_BEGINS).all(|(byte, right)| *byte == right || *byte == 0)
}

/// A segment of the log in a possible generation's directory.
fn first_segment(generation: &Path) -> Option<PathBuf> {
    let is_generation = is_directory(generation) && name(generation).parse::<u32>().is_ok();
    let shards = entries(generation).ok().filter(|_| is_generation)?;
    let files = shards.iter().filter(|path| is_shard(path)).flat_map(|shard| entries(shard).unwrap_or_default());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "seg")).find(|file| is_own_file(file))
}

/// Returns `true` for files that a first start may leave if it is interrupted before there is a `format`, and for those that a
/// file system has at its root.
fn is_left_of_a_first_start(path: &Path) -> bool {
    match &*name(path) {
        super::directory::LOCK => is_lock(path),
        super::directory::FORMAT_NEW => {
            let text = read_small(path).unwrap_or_else(|| vec![b'?']);
            text.iter().all(|byte| *byte == 0) || text.starts_with(FORMAT_BEGINS.as_bytes())
        }
        "lost+found" => is_directory(path),
        _ => false,
    }
}

/// Returns `true` if a file named `lock` is a log's.
pub(super) fn is_lock(path: &Path) -> bool {
    // After a power cut the content may be zeros.
    read_small(path).is_some_and(|text| text.starts_with(b"pid ") || text.iter().all(|byte| *byte == 0))
}

fn read_small(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let file = fs::File::open(path).ok().filter(|_| is_file(path))?;
    file.take(FORMAT_BYTES_MAX + 1).read_to_end(&mut text).ok()?;
    Some(text).filter(|text| text.len() as u64 <= FORMAT_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::directory::Directory;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Folder(PathBuf);

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Folder {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("ringway-own-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let folder = Self(std::env::temp_dir().join(name));
            fs::create_dir(&folder.0).unwrap();
            fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o700)).unwrap();
            folder
        }

        fn put(&self, name: &str, text: &[u8]) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// All files below the folder, and empty directories.
        fn files(&self) -> Vec<String> {
            fn walk(root: &Path, path: &Path, all: &mut Vec<String>) {
                let inside = entries(path).unwrap();
                for path in &inside {
                    if is_directory(path) { walk(root, path, all) } else { all.push(shown(root, path)) }
                }
                if inside.is_empty() {
                    all.push(shown(root, path));
                }
            }
            fn shown(root: &Path, path: &Path) -> String {
                path.strip_prefix(root).unwrap().display().to_string()
            }
            let mut all = Vec::new();
            walk(&self.0, &self.0, &mut all);
            all.sort();
            all
        }

        fn open(&self) -> Result<u32, String> {
            Directory::open(&self.0, 1, [7; 16]).map(|directory| directory.generation)
        }

        /// Checks that the folder is refused for this reason, and that nothing in it has changed.
        fn refused(&self, why: &[&str]) {
            let before = self.files();
            let error = self.open().unwrap_err();
            assert!(why.iter().all(|part| error.contains(part)), "{error}");
            assert_eq!(self.files(), before, "{error}");
        }

        fn format(&self, generation: u32) {
            let key = "07".repeat(16);
            self.put(
                "format",
                format!("{FORMAT_BEGINS}\nversion = 2\ngeneration = {generation}\nshards = 1\nkey = \"{key}\"\n").as_bytes(),
            );
        }
    }

    const FIRST: &str = "shard-0/0000000000000000.seg";
    const SEGMENT: &[u8] = b"RWSEG\0\0\x01 and so on";

    #[test]
    fn a_directory_that_holds_something_else_is_refused_and_left_as_it_is() {
        let folder = Folder::new();
        for name in ["2019/summer.jpg", "2020/shard-0/winter.jpg", "7/notes", "letter.txt"] {
            folder.put(name, b"dear");
        }
        folder.refused(&["is no log's directory", "and not empty, it has 2019, 2020, 7 and 1 more", "name an empty directory"]);
        let with_format = Folder::new();
        with_format.put("format", b"letter");
        with_format.put("2/letter", b"dear");
        with_format.refused(&["format: version missing"]);
        let with_lock = Folder::new();
        with_lock.put("lock", b"the key is under the mat");
        with_lock.refused(&["it has lock"]);
        with_lock.format(1);
        with_lock.refused(&["lock is no lock of a gateway's"]);
        let file = Folder::new();
        file.put("log", b"");
        let error = Directory::open(&file.0.join("log"), 1, [7; 16]).unwrap_err();
        assert!(error.starts_with("log.dir: "), "{error}");
    }

    #[test]
    fn a_log_that_lost_its_format_is_refused_and_left_as_it_is() {
        let folder = Folder::new();
        folder.put("lock", b"pid 7\n");
        folder.put(&format!("3/{FIRST}"), SEGMENT);
        folder.refused(&["has a log (", "3/shard-0/0000000000000000.seg", "no file `format`", "restore `format`"]);
    }

    #[test]
    fn what_a_first_start_may_leave_is_no_hindrance() {
        let folder = Folder::new();
        folder.put("lock", b"pid 7\n");
        folder.put("format.new", b"\0\0\0");
        fs::create_dir(folder.0.join("lost+found")).unwrap();
        assert_eq!(folder.open(), Ok(1));
        assert_eq!(folder.files(), ["format", "lock", "lost+found"]);
    }

    #[test]
    fn of_a_generation_that_is_over_only_what_is_the_logs_own_goes() {
        let folder = Folder::new();
        folder.format(2);
        for generation in 1..=3 {
            for name in [FIRST, "shard-0/0000000000000000.idx", "shard-0/clean", "shard-1/000000000000000a.purge"] {
                folder.put(&format!("{generation}/{name}"), SEGMENT);
            }
        }
        let own = folder.files();
        assert_eq!(folder.open(), Ok(2));
        let left: Vec<String> = own.iter().filter(|name| name.starts_with("2/") || *name == "format").cloned().collect();
        assert_eq!(folder.files(), [left.clone(), vec!["lock".to_owned()]].concat());
        let foreign = [
            "1/notes",
            "3/shard-0/0000000000000001.seg",
            "3/shard-0/0000000000000002.seg.bak",
            "3/shard-00/0000000000000000.seg",
            "3/shard-1/deep/0000000000000000.seg",
        ];
        for name in foreign {
            folder.put(name, b"dear");
        }
        let elsewhere = Folder::new();
        elsewhere.put(FIRST, SEGMENT);
        symlink(elsewhere.0.join("shard-0"), folder.0.join("3/shard-2")).unwrap();
        folder.put("3/shard-0/0000000000000003.seg", &[0; 64]);
        assert_eq!(folder.open(), Ok(2));
        let mut all = [left, vec!["lock".to_owned(), "3/shard-2".to_owned()], foreign.map(str::to_owned).to_vec()].concat();
        all.sort();
        assert_eq!((folder.files(), elsewhere.files()), (all, vec![FIRST.to_owned()]));
    }

    #[test]
    fn a_log_that_format_does_not_name_is_refused_and_left_as_it_is() {
        let folder = Folder::new();
        folder.put("lock", b"");
        // A `format` from before the log was rewritten, from after, and of another directory.
        for (format, log) in [(1, 2), (2, 1), (1, 7), (7, 1)] {
            folder.format(format);
            folder.put(&format!("{log}/{FIRST}"), SEGMENT);
            let named = format!("`format` names generation {format}, which has no segments, but there is ");
            folder.refused(&[&named, &format!("{log}/{FIRST}"), "restore the `format` that belongs to the log"]);
            fs::remove_dir_all(folder.0.join(log.to_string())).unwrap();
        }
        folder.format(1);
        folder.put(&format!("1/{FIRST}"), SEGMENT);
        folder.put(&format!("3/{FIRST}"), SEGMENT);
        // A refused directory is not upgraded.
        let text = fs::read_to_string(folder.0.join("format")).unwrap().replace("version = 2", "version = 1");
        folder.put("format", text.as_bytes());
        folder.refused(&["names generation 1, but there is ", "/3 away"]);
        // Files that are no log are left alone.
        fs::remove_file(folder.0.join("3").join(FIRST)).unwrap();
        folder.put("2019/summer.jpg", b"dear");
        assert_eq!(folder.open(), Ok(1));
        assert!(folder.files().contains(&"2019/summer.jpg".to_owned()));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_with_what_mends_it() {
        let folder = Folder::new();
        for mode in [0o777, 0o1777, 0o720, 0o702] {
            fs::set_permissions(&folder.0, fs::Permissions::from_mode(mode)).unwrap();
            folder.refused(&[&format!("may be written by other users (mode {mode:04o}): `chmod go-w ")]);
        }
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o755)).unwrap();
        let directory = Directory::open(&folder.0, 1, [7; 16]).unwrap();
        let shard = directory.make_shard(0).unwrap();
        for path in [&shard, &folder.0.join("1")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o770)).unwrap();
            let error = directory.make_shard(0).unwrap_err();
            assert!(error.contains(&format!("`chmod go-w {}`", path.display())), "{error}");
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
        }
    }

    #[test]
    fn a_directory_of_another_user_is_refused_with_what_mends_it() {
        let folder = Folder::new();
        if std::os::unix::fs::chown(&folder.0, Some(12_345), None).is_err() {
            // Only root can give a directory away. Without root, the root directory belongs to another user.
            let error = check_owner(Path::new("/")).unwrap_err();
            return assert!(error.contains("/ belongs to the user 0"), "{error}");
        }
        folder
            .refused(&["belongs to the user 12345, and this process is the user ", ": run it as the user 12345, or `chown -R "]);
    }
}
