//! The pairs of the relay: connections that asked for the same name.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;

const PATH: &str = "/pair/";
const NAME_BYTES_MAX: usize = 128;
const PAIRS_MAX: usize = 1 << 16;

/// A pair, by number; small inside an `Option`.
pub type Pair = NonZeroU32;

#[derive(Default)]
struct Members {
    name: Arc<str>,
    connections: [Option<u32>; 2],
}

/// Pairs with at least one connection; each has one or two.
pub struct Pairs {
    numbers: BTreeMap<Arc<str>, Pair>,
    members: Vec<Members>,
    free: Vec<Pair>,
    pairs_max: usize,
}

/// The reason why a connection gets no pair: the status line of the answer to its upgrade.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NoName,
    Taken,
    TooMany,
}

impl Refused {
    pub fn status(self) -> &'static str {
        match self {
            Self::NoName => "404 Not Found",
            Self::Taken => "409 Conflict",
            Self::TooMany => "503 Service Unavailable",
        }
    }
}

fn at(pair: Pair) -> usize {
    pair.get() as usize - 1
}

impl Pairs {
    pub fn new() -> Self {
        Self { numbers: BTreeMap::new(), members: Vec::new(), free: Vec::new(), pairs_max: PAIRS_MAX }
    }

    /// Puts a connection into the pair that its upgrade request (the HTTP head) names.
    pub fn join(&mut self, head: &str, connection: u32) -> Result<Pair, Refused> {
        let path = head.split(' ').nth(1).and_then(|path| path.strip_prefix(PATH));
        let name = path.filter(|name| !name.is_empty() && name.len() <= NAME_BYTES_MAX).ok_or(Refused::NoName)?;
        if let Some(pair) = self.numbers.get(name) {
            let seat = self.members[at(*pair)].connections.iter_mut().find(|seat| seat.is_none()).ok_or(Refused::Taken)?;
            *seat = Some(connection);
            return Ok(*pair);
        }
        if self.numbers.len() == self.pairs_max {
            return Err(Refused::TooMany);
        }
        let name: Arc<str> = name.into();
        let members = Members { name: Arc::clone(&name), connections: [Some(connection), None] };
        let pair = if let Some(pair) = self.free.pop() {
            self.members[at(pair)] = members;
            pair
        } else {
            self.members.push(members);
            u32::try_from(self.members.len()).ok().and_then(Pair::new).expect("PAIRS_MAX is far below 2^32")
        };
        self.numbers.insert(name, pair);
        Ok(pair)
    }

    /// The other connection of the pair, while it exists.
    pub fn peer(&self, pair: Pair, connection: u32) -> Option<u32> {
        let connections = self.members[at(pair)].connections;
        connections.into_iter().flatten().find(|other| *other != connection)
    }

    /// Frees a connection's place, and the name with the last one.
    pub fn leave(&mut self, pair: Pair, connection: u32) {
        let members = &mut self.members[at(pair)];
        for seat in &mut members.connections {
            if *seat == Some(connection) {
                *seat = None;
            }
        }
        if members.connections == [None, None] {
            self.numbers.remove(&std::mem::take(members).name);
            self.free.push(pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str) -> String {
        format!("GET /pair/{name} HTTP/1.1\r\nHost: x\r\n\r\n")
    }

    #[test]
    fn the_second_is_the_firsts_peer_and_a_third_is_refused() {
        let mut pairs = Pairs::new();
        let first = pairs.join(&ask("a"), 4).unwrap();
        assert_eq!(pairs.peer(first, 4), None);
        let other = pairs.join(&ask("b"), 5).unwrap();
        assert_eq!(pairs.join(&ask("a"), 6), Ok(first));
        assert_eq!((pairs.peer(first, 4), pairs.peer(first, 6), pairs.peer(other, 5)), (Some(6), Some(4), None));
        assert_eq!(pairs.join(&ask("a"), 7), Err(Refused::Taken));
    }

    #[test]
    fn a_place_and_a_name_are_free_again_when_their_connections_go() {
        let mut pairs = Pairs { pairs_max: 1, ..Pairs::new() };
        let pair = pairs.join(&ask("a"), 1).unwrap();
        pairs.join(&ask("a"), 2).unwrap();
        assert_eq!(pairs.join(&ask("b"), 3), Err(Refused::TooMany));
        pairs.leave(pair, 1);
        assert_eq!(pairs.peer(pair, 2), None);
        assert_eq!(pairs.join(&ask("a"), 3), Ok(pair));
        assert_eq!(pairs.peer(pair, 2), Some(3));
        pairs.leave(pair, 2);
        pairs.leave(pair, 3);
        assert!(pairs.numbers.is_empty());
        let reused = pairs.join(&ask("b"), 8).unwrap();
        assert_eq!((reused, pairs.members.len()), (pair, 1));
    }

    #[test]
    fn a_request_without_a_name_is_refused() {
        let mut pairs = Pairs::new();
        let long = "n".repeat(NAME_BYTES_MAX + 1);
        for head in ["GET / HTTP/1.1\r\n\r\n", &ask(""), &ask(&long), "", "GET"] {
            assert_eq!(pairs.join(head, 1), Err(Refused::NoName), "{head:?}");
        }
        assert!(pairs.join(&ask(&long[1..]), 1).is_ok());
    }
}
