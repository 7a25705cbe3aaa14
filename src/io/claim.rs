//! Names that one process of a network namespace holds at a time.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A name that is held until this is dropped or the process ends, however it ends: an abstract Unix socket, which is no file. All
/// processes of the network namespace see it, as they see ports.
#[derive(Debug)]
pub struct Claim {
    _socket: UnixDatagram,
}

impl Claim {
    /// Takes the name; `None` if another process holds it. A name has at most 107 bytes.
    ///
    /// # Errors
    /// The kernel's error, unless it says that the name is taken.
    pub fn take(name: &str) -> io::Result<Option<Self>> {
        match UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?) {
            Ok(socket) => Ok(Some(Self { _socket: socket })),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_held_by_one_and_free_again_behind_it() {
        let name = format!("ringway test {}", std::process::id());
        let held = Claim::take(&name).unwrap();
        assert!(held.is_some() && Claim::take(&name).unwrap().is_none());
        assert!(Claim::take(&format!("{name} other")).unwrap().is_some());
        drop(held);
        assert!(Claim::take(&name).unwrap().is_some());
    }
}
