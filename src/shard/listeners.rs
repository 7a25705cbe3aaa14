//! The listeners of `server.listen`, one a shard, over which the kernel spreads connections (SO_REUSEPORT).
//!
//! The same option would let another gateway of this user listen there too, unnoticed, and half of the pairs of clients would
//! never meet. So a gateway listens only if a listener that shares with nobody could: a second gateway finds the first one's
//! listeners, which exist as long as it runs. Two that start at the same time would find nothing, so the claim on the port lets
//! only one at a time check and bind.

use crate::config::Server;
use crate::io::claim::Claim;
use crate::io::ring::{could_listen_alone, listen};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// Attempts to bind: a process that was killed frees its port late, and its ring later still.
const BIND_TRIES: u32 = 50;
const BIND_WAIT: Duration = Duration::from_millis(100);

/// Binds the listeners of `count` shards. With port 0 all use the first one's port.
///
/// # Errors
/// One line that names the setting and the address.
#[expect(clippy::disallowed_methods, reason = "before any shard runs")]
pub(super) fn bind(server: &Server, count: usize) -> Result<(SocketAddr, Vec<TcpListener>), String> {
    let asked = server.listen;
    // The kernel gives a free port if none is named.
    let shared = server.listen_shared || asked.port() == 0;
    for _ in 0..BIND_TRIES {
        match if shared { bind_shared(asked, count) } else { bind_alone(asked, count) } {
            Ok(bound) => return Ok(bound),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => std::thread::sleep(BIND_WAIT),
            Err(error) => return Err(format!("server.listen {asked}: {error}")),
        }
    }
    Err(format!("server.listen {asked}: the address is in use by another process: stop it, or choose another port"))
}

fn bind_alone(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let Some(_until_all_listen) = Claim::take(&claim_name(address.port()))? else { return Err(io::ErrorKind::AddrInUse.into()) };
    could_listen_alone(address)?;
    bind_shared(address, count)
}

/// The name of the claim. Addresses of one port may overlap (`0.0.0.0`, `[::]`), so they share one claim.
fn claim_name(port: u16) -> String {
    format!("ringway.bind {port}")
}

fn bind_shared(mut address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = listen(address)?;
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok((address, listeners))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free_port() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    }

    fn at(ip: &str, port: u16) -> SocketAddr {
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    /// Returns `true` if the second may bind beside the first.
    fn beside(first: &str, second: &str) -> bool {
        let port = free_port();
        let (_, listeners) = bind_alone(at(first, port), 3).unwrap();
        let beside = bind_alone(at(second, port), 3).map(|_| ()).map_err(|error| error.kind());
        assert!(matches!(beside, Ok(()) | Err(io::ErrorKind::AddrInUse)), "{first} {second}: {beside:?}");
        drop(listeners);
        assert!(bind_alone(at(second, port), 3).is_ok(), "{second}: free again");
        beside.is_ok()
    }

    #[test]
    fn addresses_overlap_as_they_do_for_a_listener_of_its_own() {
        for (first, second, allowed) in [
            ("127.0.0.1", "127.0.0.1", false),
            ("127.0.0.1", "0.0.0.0", false),
            ("0.0.0.0", "127.0.0.1", false),
            ("127.0.0.1", "127.0.0.2", true),
        ] {
            assert_eq!(beside(first, second), allowed, "{first} {second}");
        }
        if could_listen_alone("[::1]:0".parse().unwrap()).is_err() {
            return eprintln!("this machine has no IPv6");
        }
        for (first, second, allowed) in [
            ("::1", "::1", false),
            ("::", "::1", false),
            ("::1", "::", false),
            ("::", "127.0.0.1", false),
            ("127.0.0.1", "::", false),
            ("0.0.0.0", "::", false),
            ("::ffff:127.0.0.1", "127.0.0.1", false),
            ("::1", "127.0.0.1", true),
        ] {
            assert_eq!(beside(first, second), allowed, "{first} {second}");
        }
    }

    #[test]
    fn of_many_that_bind_at_once_one_does() {
        for round in 0..20 {
            let port = free_port();
            let start = std::sync::Barrier::new(4);
            let one = |ip: &'static str| {
                start.wait();
                bind_alone(at(ip, port), 2)
            };
            let bound: Vec<_> = std::thread::scope(|scope| {
                let one = &one;
                let threads: Vec<_> =
                    ["127.0.0.1", "0.0.0.0", "127.0.0.1", "0.0.0.0"].map(|ip| scope.spawn(move || one(ip))).into();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1, "round {round}: {bound:?}");
        }
    }

    #[test]
    fn a_shared_address_is_shared_by_those_that_say_so() {
        let port = free_port();
        let first = bind_shared(at("127.0.0.1", port), 1).unwrap();
        assert!(bind_shared(at("127.0.0.1", port), 1).is_ok());
        let alone = bind_alone(at("127.0.0.1", port), 1).map(|_| ()).map_err(|error| error.kind());
        assert_eq!(alone, Err(io::ErrorKind::AddrInUse), "who does not say so shares with nobody");
        drop(first);
    }
}
