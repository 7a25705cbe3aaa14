//! The place where a reader starts (protocol.md sections 4 and 5).

/// The start that a client asks for when it has nothing to resume from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// After its last receipt; for a newcomer the head.
    Cursor,
    Head,
    Oldest,
    /// At so many messages before the head.
    Last(u64),
}

/// The position that a client reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartRequest<'a> {
    /// An epoch and the last sequence number of it that the client holds.
    pub resume: Option<(&'a str, u64)>,
    pub wanted: Wanted,
}

/// The answer: the reader's cursor, and the welcome's fields about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The last sequence number that the client is assumed to have; the replay begins behind it.
    pub cursor: u64,
    /// `true` if everything after its position is still there, or nothing was to be resumed.
    pub recovered: bool,
    /// The client holds messages above this that did not survive, and must discard them.
    pub rewound_to: Option<u64>,
}

/// Finds a reader's start in a session whose records `oldest..=head` are held. `survived` gives the last sequence number that
/// survived of an epoch: the head for the current one, `None` for one the session does not remember.
#[must_use]
pub fn start(
    request: &StartRequest<'_>,
    receipt: Option<u64>,
    oldest: u64,
    head: u64,
    survived: impl FnOnce(&str) -> Option<u64>,
) -> Start {
    let Some((epoch, seq)) = request.resume else {
        let cursor = match request.wanted {
            Wanted::Cursor => receipt.unwrap_or(head).min(head),
            Wanted::Head => head,
            Wanted::Oldest => oldest - 1,
            Wanted::Last(count) => head.saturating_sub(count).max(oldest - 1),
        };
        return Start { cursor, recovered: cursor + 1 >= oldest, rewound_to: None };
    };
    // Of an unknown epoch nothing is known to have survived.
    let last = survived(epoch);
    let cursor = seq.min(last.unwrap_or(0));
    let recovered = last.is_some() && cursor + 1 >= oldest;
    Start { cursor, recovered, rewound_to: (cursor < seq).then_some(cursor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(resume: Option<(&str, u64)>, wanted: Wanted, receipt: Option<u64>) -> Start {
        start(&StartRequest { resume, wanted }, receipt, 11, 50, |epoch| match epoch {
            "now" => Some(50),
            "before" => Some(30),
            _ => None,
        })
    }

    #[test]
    fn without_a_position() {
        assert_eq!(at(None, Wanted::Cursor, None).cursor, 50, "a newcomer starts at the head");
        assert_eq!(at(None, Wanted::Cursor, Some(20)).cursor, 20);
        assert_eq!(at(None, Wanted::Cursor, Some(99)).cursor, 50, "a receipt for what is not there");
        assert_eq!(at(None, Wanted::Head, Some(20)).cursor, 50);
        assert_eq!(at(None, Wanted::Oldest, None).cursor, 10);
        assert_eq!(at(None, Wanted::Last(5), None).cursor, 45);
        assert_eq!(at(None, Wanted::Last(u64::MAX), None).cursor, 10);
        let behind = at(None, Wanted::Cursor, Some(3));
        assert_eq!((behind.cursor, behind.recovered), (3, false), "retention has dropped a part");
    }

    #[test]
    fn with_a_position() {
        let same = at(Some(("now", 41)), Wanted::Head, None);
        assert_eq!(same, Start { cursor: 41, recovered: true, rewound_to: None });
        let dropped = at(Some(("now", 4)), Wanted::Head, None);
        assert_eq!(dropped, Start { cursor: 4, recovered: false, rewound_to: None });
        let future = at(Some(("now", u64::MAX)), Wanted::Head, None);
        assert_eq!(future, Start { cursor: 50, recovered: true, rewound_to: Some(50) });
    }

    #[test]
    fn of_an_older_epoch() {
        assert_eq!(at(Some(("before", 35)), Wanted::Head, None), Start { cursor: 30, recovered: true, rewound_to: Some(30) });
        assert_eq!(at(Some(("before", 25)), Wanted::Head, None), Start { cursor: 25, recovered: true, rewound_to: None });
        assert_eq!(at(Some(("lost", 35)), Wanted::Head, None), Start { cursor: 0, recovered: false, rewound_to: Some(0) });
        let nothing_held = at(Some(("lost", 0)), Wanted::Head, None);
        assert_eq!(nothing_held, Start { cursor: 0, recovered: false, rewound_to: None }, "there is nothing to discard");
    }
}
