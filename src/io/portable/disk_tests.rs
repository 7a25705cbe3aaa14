//! The engine's disk on a real file system. The drivers do not matter to it: the threads are the same.
#![allow(clippy::disallowed_methods, reason = "clocks that bound the tests")]

use super::tests::{bell, drivers, options, pattern, play};
use super::{Driver, Portable};
use crate::io::disk_suite::{Directory, Player, SEGMENT_BYTES, Told, filled, index_steps, purge_steps, told};
use crate::io::segments::Disk;
use crate::io::{Io, Next, files};
use crate::limits::{CHUNK_BYTES, READ_BACK_BYTES_MAX, READ_BACKS_MAX, SEGMENT_REQUESTS_MAX};
use std::cell::RefCell;
use std::fs::File;
use std::path::Path;
use std::rc::Rc;
use std::thread::JoinHandle;

fn engine_on(driver: Driver, directory: &Path, segment_bytes: u64, segments: Vec<(u64, File)>) -> (Portable, JoinHandle<()>) {
    let knock = bell();
    let (thread, mut handles) = files::start(vec![knock.clone()], 0, files::lengths()).unwrap();
    let disk = Disk { directory: directory.to_owned(), segment_bytes, segments, indexes: Vec::new(), files: handles.remove(0) };
    (Portable::new(options(driver), None, [knock].into(), Some(disk)).unwrap(), thread)
}

fn engine(directory: &Path, segment_bytes: u64, segments: Vec<(u64, File)>) -> (Portable, JoinHandle<()>) {
    engine_on(Driver::Epoll, directory, segment_bytes, segments)
}

/// Calls `first`, then waits for `count` answers.
fn answers(engine: &mut Portable, count: usize, first: impl FnOnce(&mut dyn Io) + 'static) -> Vec<Told> {
    let heard = Rc::new(RefCell::new(Vec::new()));
    let (mut first, told_of) = (Some(first), Rc::clone(&heard));
    play(engine, move |io, event, _| {
        told_of.borrow_mut().extend(event.and_then(told));
        if let Some(first) = first.take() {
            first(io);
        }
        if told_of.borrow().len() == count { Next::Stop } else { Next::Idle }
    });
    heard.take()
}

impl Player for Portable {
    fn answers(&mut self, count: usize, first: impl FnOnce(&mut dyn Io) + 'static) -> Vec<Told> {
        answers(self, count, first)
    }
}

#[test]
fn what_was_written_reads_back() {
    for driver in drivers() {
        let directory = Directory::new("round");
        let (mut engine, thread) = engine_on(driver, &directory.0, SEGMENT_BYTES, Vec::new());
        assert_eq!(answers(&mut engine, 1, |io| io.prepare_segment(3)), [Told::Ready(3, Ok(()))]);
        let path = files::segment_path(&directory.0, 3);
        let made = std::fs::metadata(&path).unwrap();
        assert_eq!(made.len(), SEGMENT_BYTES);
        assert!(std::os::unix::fs::MetadataExt::blocks(&made) * 512 >= SEGMENT_BYTES, "its blocks are its own");
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&made.permissions()) & 0o777, 0o600);

        let bytes = pattern(0, CHUNK_BYTES);
        let chunk = filled(&bytes);
        let lent = Rc::clone(&chunk);
        let heard = answers(&mut engine, 2, move |io| {
            io.write(3, 64, Rc::clone(&lent), 0..1000, 1);
            io.write(3, 1064, lent, 1000..CHUNK_BYTES, 2);
        });
        assert!(heard.contains(&Told::Written(1, Ok(()))) && heard.contains(&Told::Written(2, Ok(()))), "{heard:?}");
        assert_eq!(answers(&mut engine, 1, |io| io.sync(3, 7)), [Told::Synced(7, Ok(()))]);
        assert_eq!(&std::fs::read(&path).unwrap()[64..64 + CHUNK_BYTES], bytes);

        let heard = answers(&mut engine, 1, |io| io.read_back(3, 64, CHUNK_BYTES, 8));
        assert!(heard == [Told::Read(8, Ok(bytes))]);
        let heard = answers(&mut engine, 1, |io| io.read_back(3, SEGMENT_BYTES - 10, 100, 9));
        assert_eq!(heard, [Told::Read(9, Ok(vec![0; 10]))], "fewer at the end of the file, and nothing of the read before");
        let heard = answers(&mut engine, 1, |io| io.read_back(3, SEGMENT_BYTES, 100, 10));
        assert_eq!(heard, [Told::Read(10, Ok(Vec::new()))]);
        drop(engine);
        thread.join().unwrap();
    }
}

#[test]
fn what_is_appended_while_a_write_is_under_way_is_not_written() {
    let directory = Directory::new("append");
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, Vec::new());
    answers(&mut engine, 1, |io| io.prepare_segment(0));
    let chunk = filled(&pattern(0, 500_000));
    answers(&mut engine, 1, move |io| {
        io.write(0, 0, Rc::clone(&chunk), 0..500_000, 1);
        chunk.append(&pattern(9, 1000));
    });
    let file = std::fs::read(files::segment_path(&directory.0, 0)).unwrap();
    assert!(file[..500_000] == pattern(0, 500_000));
    assert!(file[500_000..].iter().all(|byte| *byte == 0));
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn what_can_not_be_done_is_answered_with_its_errno() {
    let directory = Directory::new("errno");
    let sealed = files::segment_path(&directory.0, 1);
    std::fs::write(&sealed, b"sealed").unwrap();
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, vec![(1, File::open(&sealed).unwrap())]);
    let chunk = filled(b"abc");
    let heard = answers(&mut engine, 9, move |io| {
        io.write(5, 0, Rc::clone(&chunk), 0..3, 1);
        io.sync(5, 2);
        io.read_back(5, 0, 10, 3);
        io.delete_segment(5);
        io.prepare_segment(1);
        io.write(1, SEGMENT_BYTES - 2, Rc::clone(&chunk), 0..3, 4);
        io.read_back(1, 0, READ_BACK_BYTES_MAX + 1, 5);
        // Open for reading only.
        io.write(1, 0, Rc::clone(&chunk), 0..3, 6);
        io.read_back(1, 2, 10, 7);
    });
    for expected in [
        Told::Written(1, Err(libc::ENOENT)),
        Told::Synced(2, Err(libc::ENOENT)),
        Told::Read(3, Err(libc::ENOENT)),
        Told::Gone(5, Err(libc::ENOENT)),
        Told::Ready(1, Err(libc::EEXIST)),
        Told::Written(4, Err(libc::EFBIG)),
        Told::Read(5, Err(libc::EINVAL)),
        Told::Written(6, Err(libc::EBADF)),
        Told::Read(7, Ok(b"aled".to_vec())),
    ] {
        assert!(heard.contains(&expected), "{expected:?} is not in {heard:?}");
    }
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn without_a_disk_every_call_is_answered() {
    let mut engine = Portable::new(options(Driver::Epoll), None, [bell()].into(), None).unwrap();
    let heard = answers(&mut engine, 5, |io| {
        io.write(0, 0, filled(b"abc"), 0..3, 1);
        io.sync(0, 2);
        io.read_back(0, 0, 10, 3);
        io.prepare_segment(4);
        io.delete_segment(5);
    });
    let none = Err(libc::ENODEV);
    let expected = [
        Told::Written(1, none),
        Told::Synced(2, none),
        Told::Read(3, Err(libc::ENODEV)),
        Told::Ready(4, none),
        Told::Gone(5, none),
    ];
    assert_eq!(heard, expected);
}

#[test]
fn reads_beyond_the_most_wait_their_turn() {
    const READS: u64 = 10 * READ_BACKS_MAX as u64;
    let directory = Directory::new("reads");
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, Vec::new());
    answers(&mut engine, 1, |io| io.prepare_segment(0));
    answers(&mut engine, 1, move |io| io.write(0, 0, filled(&pattern(0, 100_000)), 0..100_000, 0));
    let heard = answers(&mut engine, usize::try_from(READS).unwrap(), |io| {
        (0..READS).for_each(|tag| io.read_back(0, tag * 100, 300, tag));
    });
    for tag in 0..READS {
        let expected = Told::Read(tag, Ok(pattern(usize::try_from(tag).unwrap() * 100, 300)));
        assert!(heard.contains(&expected), "read {tag}");
    }
    assert_eq!(engine.edge().stats.read_backs_waited, READS - READ_BACKS_MAX as u64);
    assert!(engine.edge().disk.spare_buffers() <= READ_BACKS_MAX);
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn segments_are_deleted_after_what_is_under_way() {
    const SEGMENTS: u64 = 3 * SEGMENT_REQUESTS_MAX as u64;
    let directory = Directory::new("delete");
    let (mut engine, thread) = engine(&directory.0, 4096, Vec::new());
    let all = usize::try_from(SEGMENTS).unwrap();
    let ready = answers(&mut engine, all, |io| (0..SEGMENTS).for_each(|number| io.prepare_segment(number)));
    assert!((0..SEGMENTS).all(|number| ready.contains(&Told::Ready(number, Ok(())))), "{ready:?}");
    answers(&mut engine, 1, move |io| io.write(0, 0, filled(&[7; 4096]), 0..4096, 0));
    let heard = answers(&mut engine, all + 3 + 2 * READ_BACKS_MAX, |io| {
        // More than go at a time: some have not begun when the segment is deleted.
        (0..2 * READ_BACKS_MAX as u64).for_each(|tag| io.read_back(0, 0, 4096, tag));
        (0..SEGMENTS).for_each(|number| io.delete_segment(number));
        io.delete_segment(0);
        io.sync(0, 900);
        io.read_back(0, 0, 1, 901);
    });
    let reads = (0..2 * READ_BACKS_MAX as u64).map(|tag| Told::Read(tag, Ok(vec![7; 4096])));
    let gone = (0..SEGMENTS).map(|number| Told::Gone(number, Ok(())));
    let late = [Told::Gone(0, Err(libc::ENOENT)), Told::Synced(900, Err(libc::ENOENT)), Told::Read(901, Err(libc::ENOENT))];
    for expected in reads.chain(gone).chain(late) {
        assert!(heard.contains(&expected), "{expected:?} is missing");
    }
    let last_read = heard.iter().rposition(|told| matches!(told, Told::Read(_, Ok(_))));
    assert!(heard.iter().position(|told| *told == Told::Gone(0, Ok(()))) > last_read, "deleted before its reads were over");
    assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
    drop(engine);
    thread.join().unwrap();
}

#[test]
fn an_engine_that_ends_waits_for_its_writes() {
    const WRITES: u64 = 200;
    let directory = Directory::new("end");
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, Vec::new());
    answers(&mut engine, 1, |io| io.prepare_segment(0));
    let chunk = filled(&pattern(0, CHUNK_BYTES));
    let mut asked = false;
    let lent = Rc::clone(&chunk);
    play(&mut engine, move |io, event, _| {
        assert!(event.is_none_or(|event| told(event).is_none()), "answered before the turn was over");
        if !std::mem::replace(&mut asked, true) {
            for number in 0..WRITES {
                io.write(0, number % 4 * CHUNK_BYTES as u64, Rc::clone(&lent), 0..CHUNK_BYTES, number);
            }
            (0..2 * READ_BACKS_MAX as u64).for_each(|tag| io.read_back(0, 0, CHUNK_BYTES, tag));
            io.sync(0, 0);
        }
        Next::Stop
    });
    drop(engine);
    let file = std::fs::read(files::segment_path(&directory.0, 0)).unwrap();
    assert!(file.chunks(CHUNK_BYTES).all(|piece| piece == chunk.bytes()), "what was under way was done");
    thread.join().unwrap();
}

/// Runs a test in a process of its own, with `before` in front of its command. Returns `false` in that process.
fn in_a_child(name: &str, before: &[&str]) -> bool {
    const CHILD: &str = "RINGWAY_TEST_THREADS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return false;
    }
    let own = std::env::current_exe().unwrap();
    let words = before.iter().map(std::ffi::OsStr::new).chain([own.as_os_str()]).collect::<Vec<_>>();
    let mut child = std::process::Command::new(words[0]);
    let output = child.args(&words[1..]).args(["--exact", name]).env(CHILD, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
    true
}

/// Runs in a process of its own: the limit is the process's.
#[test]
fn at_the_limit_of_a_file_a_short_write_is_carried_on_to_its_error() {
    if in_a_child("io::portable::disk_tests::at_the_limit_of_a_file_a_short_write_is_carried_on_to_its_error", &[]) {
        return;
    }
    use rustix::process::{Resource, getrlimit, setrlimit};
    let directory = Directory::new("limit");
    let open = File::create_new(files::segment_path(&directory.0, 0)).unwrap();
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, vec![(0, open)]);
    let mut limit = getrlimit(Resource::Fsize);
    limit.current = Some(100_000);
    setrlimit(Resource::Fsize, limit).unwrap();
    let chunk = filled(&pattern(0, 300_000));
    // The signal that comes with it does not end the process.
    assert_eq!(answers(&mut engine, 1, move |io| io.write(0, 0, chunk, 0..300_000, 1)), [Told::Written(1, Err(libc::EFBIG))]);
    assert_eq!(engine.edge().stats.short_writes, 1);
    assert!(std::fs::read(files::segment_path(&directory.0, 0)).unwrap() == pattern(0, 100_000));
    assert_eq!(answers(&mut engine, 1, |io| io.prepare_segment(1)), [Told::Ready(1, Err(libc::EFBIG))]);
    assert!(!files::segment_path(&directory.0, 1).exists(), "a half-made file is removed");
    drop(engine);
    thread.join().unwrap();
}

/// Runs in a process and a file system of its own, as root only. Other users have the test above.
#[test]
fn a_full_disk_is_told_of_and_space_that_comes_back_is_used() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let name = "io::portable::disk_tests::a_full_disk_is_told_of_and_space_that_comes_back_is_used";
    if in_a_child(name, &["unshare", "--mount", "--propagation", "private"]) {
        return;
    }
    let directory = Directory::new("full");
    let mut mount = std::process::Command::new("mount");
    assert!(mount.args(["-t", "tmpfs", "-o", "size=6m", "none"]).arg(&directory.0).status().unwrap().success());
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, Vec::new());
    assert_eq!(answers(&mut engine, 1, |io| io.prepare_segment(0)), [Told::Ready(0, Ok(()))]);
    assert_eq!(answers(&mut engine, 1, |io| io.prepare_segment(1)), [Told::Ready(1, Err(libc::ENOSPC))]);
    assert!(!files::segment_path(&directory.0, 1).exists(), "a half-made file is removed");
    // A prepared segment has its blocks.
    let chunk = filled(&pattern(0, CHUNK_BYTES));
    assert_eq!(answers(&mut engine, 1, move |io| io.write(0, 0, chunk, 0..CHUNK_BYTES, 1)), [Told::Written(1, Ok(()))]);
    assert_eq!(answers(&mut engine, 1, |io| io.delete_segment(0)), [Told::Gone(0, Ok(()))]);
    assert_eq!(answers(&mut engine, 1, |io| io.prepare_segment(1)), [Told::Ready(1, Ok(()))]);
    drop(engine);
    thread.join().unwrap();
    assert!(std::process::Command::new("umount").arg(&directory.0).status().unwrap().success());
}

#[test]
fn a_purge_goes_through_its_steps() {
    for driver in drivers() {
        let directory = Directory::new("purge");
        let (mut engine, thread) = engine_on(driver, &directory.0, SEGMENT_BYTES, Vec::new());
        purge_steps(&mut engine, &directory.0);
        drop(engine);
        thread.join().unwrap();
    }
}

#[test]
fn a_segment_is_indexed_read_by_its_index_and_deleted_with_it() {
    let directory = Directory::new("index");
    let (mut engine, thread) = engine(&directory.0, SEGMENT_BYTES, Vec::new());
    index_steps(&mut engine, &directory.0);
    drop(engine);
    thread.join().unwrap();
}
