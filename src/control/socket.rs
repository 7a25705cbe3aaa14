//! The admin listener's Unix socket: only its owner may connect. A socket left by a killed gateway is removed; one in use is not.

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

const BACKLOG: i32 = 128;
/// Attempts to get the lock while another gateway makes its socket in the same folder.
const LOCK_TRIES: u32 = 50;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// A socket's file; removed when dropped, unless another socket has taken its name.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: Identity,
}

/// Identity of a file, whatever its name: device and inode.
type Identity = (u32, u32, u64);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // If the file can't be removed, the next start removes it.
        let _locked = lock(&self.path);
        if identity(&self.path).is_ok_and(|there| there.0 == self.identity) {
            let _ = rustix::fs::unlink(&self.path);
        }
    }
}

/// The identity of the file at a path (a link is not followed), and whether it is a socket.
fn identity(path: &Path) -> io::Result<(Identity, bool)> {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::INO | StatxFlags::TYPE)?;
    let kind = rustix::fs::FileType::from_raw_mode(found.stx_mode.into());
    Ok(((found.stx_dev_major, found.stx_dev_minor, found.stx_ino), kind == rustix::fs::FileType::Socket))
}

/// Locks the folder: between the check that a socket is unused and its removal nobody else may make one.
fn lock(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let folder = rustix::fs::open(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::park_timeout(LOCK_WAIT),
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other("its folder stays locked by another process"))
}

/// Returns `true` if somebody listens on the socket.
fn in_use(address: &SocketAddrUnix) -> io::Result<bool> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&probe, address) {
        // A full queue also belongs to a listener.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Listens at `path`, not blocking, for this process's user alone.
///
/// # Errors
/// The path is too long, is taken by a file that is no socket or by a running gateway, or its folder can't be read or written.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let address = SocketAddrUnix::new(path).map_err(|_| io::Error::other("a socket's path has 1 to 107 bytes"))?;
    let _locked = lock(path)?;
    match identity(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok((_, false)) => return Err(io::Error::other("there is a file of this name that is no socket")),
        Ok((_, true)) if in_use(&address)? => {
            return Err(io::Error::other("another gateway listens there: stop it, or choose another path"));
        }
        Ok((_, true)) => rustix::fs::unlink(path)?,
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode that the socket has when it is bound (unix(7)): there is no moment at which others may connect.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path)?.0 };
    rustix::net::listen(&socket, BACKLOG)?;
    Ok((socket.into(), file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ringway-socket-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn only_its_owner_may_connect_and_it_goes_with_its_listener() {
        let folder = folder("mode");
        let path = folder.join("admin.sock");
        let (listener, file) = listen(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        let error = listen(&path).unwrap_err().to_string();
        assert!(error.starts_with("another gateway listens there"), "{error}");
        drop((listener, file));
        assert!(!path.exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_a_killed_gateway_left_is_removed_and_nothing_else() {
        let folder = folder("stale");
        let path = folder.join("admin.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, file) = listen(&path).unwrap();
        // Another socket has the name by now, and stays.
        std::fs::remove_file(&path).unwrap();
        let successor = UnixListener::bind(&path).unwrap();
        drop(file);
        UnixStream::connect(&path).unwrap();
        drop(successor);
        for made in [std::fs::write, |path: &PathBuf, _: &str| std::os::unix::fs::symlink("/nowhere", path)] {
            std::fs::remove_file(&path).unwrap();
            made(&path, "mine").unwrap();
            assert_eq!(listen(&path).unwrap_err().to_string(), "there is a file of this name that is no socket");
            assert!(path.symlink_metadata().is_ok());
        }
        assert!(listen(&folder.join("a".repeat(200))).unwrap_err().to_string().contains("107 bytes"));
        assert!(listen(&folder.join("none").join("a")).is_err());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
