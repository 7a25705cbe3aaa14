//! A session's records as readers on this shard see them: at home here, or the mirror of a session whose home is another shard.

use crate::ids::ConnId;
use crate::log::Index;
use crate::slots::Key;

/// A stream's place on its shard.
pub type StreamKey = Key<Stream>;

/// A reader: an attachment of a connection on this shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    pub conn: ConnId,
    pub attachment: u16,
}

/// See the module's text.
#[derive(Debug)]
pub struct Stream {
    pub session_id: Box<str>,
    /// Keyed hash of `session_id`.
    pub hash: u64,
    /// The home shard of a mirror; `None` if the session is at home here.
    pub home: Option<u16>,
    pub index: Index,
    /// Records from here on are not yet as durable as the session asks: nobody sees them. `u64::MAX` if nothing is waited for.
    pub hidden_from: u64,
    /// Records up to here wake every reader once they are durable: a member that may see them may have left their room since.
    pub everyone_to: u64,
    pub readers: Vec<Reader>,
    /// The first record since the last turn that is for everyone; 0 if there is none.
    pub broadcast_from: u64,
    /// The first record for which readers are being woken; 0 if they are not.
    pub waking_from: u64,
    /// `true` if it is among the shard's dirty streams.
    pub dirty: bool,
    /// `true` for a mirror whose first record has not arrived.
    pub opening: bool,
    /// Attachments here that a mirror's home has not answered yet.
    pub asked: u32,
}

impl Stream {
    /// A stream without readers whose next record will be `next`.
    #[must_use]
    pub fn new(session_id: &str, hash: u64, home: Option<u16>, next: u64) -> Self {
        Self {
            session_id: session_id.into(),
            hash,
            home,
            index: Index::starting_at(next),
            hidden_from: u64::MAX,
            everyone_to: 0,
            readers: Vec::new(),
            broadcast_from: 0,
            waking_from: 0,
            dirty: false,
            opening: home.is_some(),
            asked: 0,
        }
    }

    /// The number of newest records that nobody sees yet.
    #[must_use]
    pub fn hidden(&self) -> usize {
        usize::try_from(self.index.head().saturating_sub(self.head())).unwrap_or(usize::MAX)
    }

    /// `seq`, or the first record before it for which readers at rest are still to be woken.
    #[must_use]
    pub fn unwoken_from(&self, seq: u64) -> u64 {
        [self.broadcast_from, self.waking_from].into_iter().filter(|first| *first > 0).fold(seq, u64::min)
    }

    /// The newest record that readers may see.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.index.head().min(self.hidden_from - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_are_still_to_be_woken_for_the_first_record_that_nobody_or_not_everybody_was_woken_for() {
        let mut stream = Stream::new("s.1", 1, Some(0), 1);
        assert_eq!(stream.unwoken_from(9), 9);
        stream.broadcast_from = 7;
        assert_eq!((stream.unwoken_from(9), stream.unwoken_from(5)), (7, 5));
        stream.waking_from = 4;
        assert_eq!((stream.unwoken_from(9), stream.unwoken_from(3)), (4, 3));
        stream.broadcast_from = 0;
        assert_eq!(stream.unwoken_from(9), 4);
    }
}
