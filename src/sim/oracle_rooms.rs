//! The oracle's knowledge of rooms: times in them, as far as a client can know.

use super::{Begin, Leave, Oracle, Stay};

impl Oracle {
    /// A welcome's list of rooms settles what was in doubt.
    pub(super) fn rooms_told(&mut self, begin: &Begin<'_>, head: u64, appended: u64) {
        let rooms = self.stays.entry((begin.client.to_owned(), begin.session.to_owned())).or_default();
        let mut lost = Vec::new();
        // A record that the log does not take now will be behind everything appended until it does (protocol.md section 5).
        let kept_by = if begin.is_kept { appended } else { u64::MAX };
        for (room, stays) in rooms.iter_mut() {
            let listed = begin.rooms.contains(room);
            for stay in stays.iter_mut().filter(|stay| stay.open()) {
                // A join that went out after the attach says nothing of what the attach found.
                if !listed && stay.asked_ns <= begin.asked_ns {
                    if stay.sure() {
                        lost.push(room.clone());
                    }
                    // The leave was handled behind everything appended by then, seen yet or not.
                    stay.may_to = appended;
                    stay.must_to = stay.must_to.min(head);
                    (stay.kept_by, stay.confirmed) = (kept_by, false);
                }
            }
        }
        for room in &begin.rooms {
            let stays = rooms.entry(room.clone()).or_default();
            if stays.iter().any(Stay::sure) {
                continue;
            }
            let doubtful = stays.iter().any(Stay::open);
            let asked = begin.asked.contains(room);
            if !doubtful && !asked {
                lost.push(format!("(never joined) {room}"));
            }
            // A join that was not answered has its place in the order: behind what was appended by then, seen yet or not.
            let must_from = if doubtful { appended + 1 } else { begin.start_seq };
            let since = self.views.len();
            // A leave that went out after the attach comes after what the attach found.
            let leaves = self.leaves.get(&(begin.client.to_owned(), begin.session.to_owned(), room.clone()));
            let leave = leaves.and_then(|leaves| leaves.iter().find(|leave| leave.asked_ns >= begin.asked_ns));
            stays.push(Stay {
                may_from: begin.start_seq,
                must_from,
                must_to: leave.map_or(u64::MAX, |leave| leave.head),
                may_to: u64::MAX,
                leaving: leave.map_or(0, |leave| leave.number),
                asked_ns: begin.asked_ns,
                since,
                until: usize::MAX,
                kept_by: if leave.is_some() { u64::MAX } else { kept_by },
                confirmed: false,
            });
        }
        for room in lost {
            self.wrong(format!("{} in {}: the welcome's rooms are wrong about {room}", begin.client, begin.session));
        }
    }

    /// A member was forgotten: when it comes back it is new, and in no room.
    pub fn forgotten(&mut self, client: &str, session: &str) {
        self.stays.remove(&(client.to_owned(), session.to_owned()));
    }

    /// A join was sent when the session's head was `head`.
    pub fn joining(&mut self, client: &str, session: &str, room: &str, head: u64) {
        let stays = self.stays.entry((client.to_owned(), session.to_owned())).or_default().entry(room.to_owned()).or_default();
        if !stays.iter().any(Stay::sure) {
            stays.push(Stay {
                may_from: head + 1,
                must_from: u64::MAX,
                must_to: u64::MAX,
                may_to: u64::MAX,
                leaving: 0,
                asked_ns: self.now_ns,
                since: 0,
                until: usize::MAX,
                kept_by: u64::MAX,
                confirmed: false,
            });
        }
    }

    /// The join that was sent then has this place in the order. A repeat is given that of the first, which is not this one's: it may be
    /// that of an attach, from whose replay on the room counts.
    pub fn joined(&mut self, client: &str, session: &str, room: &str, asked_ns: u64, (seq, appended): (u64, u64)) {
        let view = self.views.iter().rposition(|view| view.client == client && view.session == session).unwrap_or(0);
        let stays = self.stays.entry((client.to_owned(), session.to_owned())).or_default().entry(room.to_owned()).or_default();
        let asked = |stay: &&mut Stay| stay.open() && stay.must_from == u64::MAX && stay.asked_ns == asked_ns;
        if let Some(stay) = stays.iter_mut().find(asked) {
            if seq + 1 < stay.may_from {
                stay.since = view;
            }
            stay.must_from = stay.may_from.max(seq + 1);
            (stay.may_from, stay.kept_by, stay.confirmed) = (seq + 1, appended, true);
        }
    }

    /// Returns whether a client is certainly in a room now, and whether it may be.
    pub fn is_in_room(&self, client: &str, session: &str, room: &str) -> (bool, bool) {
        let rooms = self.stays.get(&(client.to_owned(), session.to_owned()));
        let stays = rooms.and_then(|rooms| rooms.get(room)).map_or(&[][..], Vec::as_slice);
        (stays.iter().any(Stay::sure), stays.iter().any(Stay::open))
    }

    /// A leave was sent when the session's head was `head`.
    pub fn leaving(&mut self, client: &str, session: &str, room: &str, head: u64, number: u64) {
        let leave = Leave { number, asked_ns: self.now_ns, head };
        self.leaves.entry((client.to_owned(), session.to_owned(), room.to_owned())).or_default().push(leave);
        let stays = self.stays.entry((client.to_owned(), session.to_owned())).or_default().entry(room.to_owned()).or_default();
        for stay in stays.iter_mut().filter(|stay| stay.open()) {
            stay.must_to = stay.must_to.min(head);
            stay.kept_by = u64::MAX;
            stay.confirmed = false;
            if stay.leaving == 0 {
                stay.leaving = number;
            }
        }
    }

    /// The leave was refused: it may be in the room still.
    pub fn stays_after_all(&mut self, client: &str, session: &str, room: &str, number: u64) {
        let rooms = self.stays.get_mut(&(client.to_owned(), session.to_owned()));
        let stays = rooms.and_then(|rooms| rooms.get_mut(room)).into_iter().flatten();
        stays.filter(|stay| stay.leaving == number).for_each(|stay| stay.leaving = 0);
    }

    /// Forgets this many of the oldest stays, as counted by the gateway: none of their messages must be seen any more.
    pub fn forget_stays(&mut self, client: &str, session: &str, room: &str, count: usize) {
        let rooms = self.stays.get_mut(&(client.to_owned(), session.to_owned()));
        if let Some(stays) = rooms.and_then(|rooms| rooms.get_mut(room)) {
            stays.iter_mut().take(count).for_each(|stay| (stay.must_from, stay.must_to) = (u64::MAX, 0));
        }
    }

    /// The client is out of the room, at the latest at `head`.
    pub fn left(&mut self, client: &str, session: &str, room: &str, (head, appended): (u64, u64), number: u64) {
        let stays = self.stays.entry((client.to_owned(), session.to_owned())).or_default().entry(room.to_owned()).or_default();
        for stay in stays.iter_mut().filter(|stay| stay.open() && (1..=number).contains(&stay.leaving)) {
            (stay.may_to, stay.kept_by, stay.confirmed) = (head, appended, true);
            stay.must_to = stay.must_to.min(head);
        }
    }
}
