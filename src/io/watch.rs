//! Watches whether the log's files still have their names. A file that was deleted under the gateway can still be read and
//! written, but is lost when the process ends, so the shard must know.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Older files of a shard checked per pass, besides the two newest; the rest follow in later passes.
const LOOKED_AT_MAX: usize = 64;

/// A file's name and identity.
#[derive(Debug)]
pub(super) struct Known {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Known {
    /// Returns `None` if the file cannot be inspected; it is then not watched.
    pub(super) fn of(path: PathBuf, file: &File) -> Option<Self> {
        let data = file.metadata().ok()?;
        Some(Self { path, device: data.dev(), inode: data.ino() })
    }

    /// Returns `true` if the name is gone, or is another file's. If it cannot be told, `false`.
    fn is_lost(&self) -> bool {
        let is_this = |data: Metadata| (data.dev(), data.ino()) == (self.device, self.inode);
        match std::fs::symlink_metadata(&self.path) {
            Ok(data) => !is_this(data),
            Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}

#[derive(Debug, Default)]
struct Shard {
    files: BTreeMap<u64, Known>,
    /// The number at which the next look begins.
    next: u64,
}

/// The files of all shards.
#[derive(Debug)]
pub(super) struct Watch(Vec<Shard>);

impl Watch {
    pub(super) fn new(shards: usize) -> Self {
        Self((0..shards).map(|_| Shard::default()).collect())
    }

    pub(super) fn add(&mut self, shard: usize, number: u64, path: &Path, file: &File) {
        self.add_all(shard, Known::of(path.to_owned(), file).map(|known| (number, known)));
    }

    pub(super) fn add_all(&mut self, shard: usize, files: impl IntoIterator<Item = (u64, Known)>) {
        self.0[shard].files.extend(files);
    }

    /// Stops watching a file that the gateway itself is about to delete.
    pub(super) fn forget(&mut self, shard: usize, number: u64) {
        self.0[shard].files.remove(&number);
    }

    /// Shards that have lost a file, with its number. Such a shard is not checked again.
    pub(super) fn look(&mut self) -> Vec<(usize, u64)> {
        let mut lost = Vec::new();
        for (number, shard) in self.0.iter_mut().enumerate() {
            if let Some(file) = shard.look() {
                shard.files.clear();
                lost.push((number, file));
            }
        }
        lost
    }
}

impl Shard {
    fn look(&mut self) -> Option<u64> {
        // The file being written and the one made ahead; then the files whose turn it is.
        let newest = self.files.iter().rev().take(2);
        let turn = self.files.range(self.next..).take(LOOKED_AT_MAX);
        let lost = newest.chain(turn.clone()).find(|(_, known)| known.is_lost()).map(|(number, _)| *number);
        self.next = turn.last().map_or(0, |(number, _)| number + 1);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched(directory: &Path, count: u64) -> Watch {
        let mut watch = Watch::new(2);
        for number in 0..count {
            let path = directory.join(number.to_string());
            watch.add(1, number, &path, &File::create_new(&path).unwrap());
        }
        watch
    }

    #[test]
    fn a_file_that_lost_its_name_is_found_within_its_turn_and_told_once() {
        let directory = std::env::temp_dir().join(format!("ringway-watch-{}", std::process::id()));
        let remove = |number: u64| std::fs::remove_file(directory.join(number.to_string())).unwrap();
        let count = 3 * LOOKED_AT_MAX as u64;
        for gone in [0, 100, count - 2, count - 1] {
            std::fs::create_dir_all(&directory).unwrap();
            let mut watch = watched(&directory, count);
            for _ in 0..5 {
                assert_eq!(watch.look(), []);
            }
            // Deleted by the gateway, and so not reported.
            watch.forget(1, 50);
            remove(50);
            remove(gone);
            let told: Vec<(usize, u64)> = (0..5).flat_map(|_| watch.look()).collect();
            assert_eq!(told, [(1, gone)]);
            std::fs::remove_dir_all(&directory).unwrap();
        }
    }

    #[test]
    fn another_file_under_the_name_is_a_loss_and_a_folder_that_is_gone() {
        let directory = std::env::temp_dir().join(format!("ringway-watch-other-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut watch = watched(&directory, 1);
        std::fs::write(directory.join("new"), "another").unwrap();
        std::fs::rename(directory.join("new"), directory.join("0")).unwrap();
        assert_eq!(watch.look(), [(1, 0)]);
        std::fs::remove_file(directory.join("0")).unwrap();
        let mut watch = watched(&directory, 1);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(watch.look(), [(1, 0)]);
    }
}
