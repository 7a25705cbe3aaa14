//! Pages of history: requested, put together in steps, answered; and dropped when the requester is gone.
//!
//! Users take turns: each has one page under way at a time, and its others wait behind those of other users. The messages that a
//! page examines are bounded, in one turn and in all: at the bound the page ends where it is, and says where the next one
//! continues. Few disk reads for pages are under way at a time: each completed read is examined whole, at once.

use super::read_back::{Hand, Job, Look, Want};
use crate::ids::{HashKey, Map};
use crate::io::Io;
use crate::limits::HISTORY_PAGE_BYTES_MAX;
use crate::log::{Audience, HEADER_BYTES};
use crate::protocol::{ErrorCode, Failure, Head};
use crate::session::{MemberKey, Place, StreamKey};
use crate::shard::across::mesh::LaneMessage;
use crate::shard::connections::conn::Waiting;
use crate::shard::context::Context;
use crate::shard::core::Core;
use crate::shard::counters::{DropReason, LimitReached};
use crate::shard::durability::Storage;
use crate::shard::inbound::frames::RETRY_AFTER_MS;
use crate::ws::Opcode;
use crate::ws::encoder::OpenFrame;
use std::collections::VecDeque;

/// Pages under way at a time; the others wait. Each holds up to [`HISTORY_PAGE_BYTES_MAX`].
pub(in crate::shard) const UNDER_WAY_MAX: usize = 32;
/// Pages requested and not answered, of all users and of one.
const PAGES_MAX: usize = 4096;
const PAGES_PER_USER_MAX: usize = 16;
/// Numbers that all pages examine in one turn, and that one page examines before it is the next one's turn. Few in tests, whose
/// sessions are short.
const LOOKS_PER_TURN: usize = if cfg!(test) { 96 } else { 512 };
const LOOKS_PER_STEP: usize = if cfg!(test) { 24 } else { 128 };
/// Bytes of a message on a page that cost as much as one examined number.
const BYTES_PER_LOOK: usize = 512;
/// Disk reads for pages under way at a time: all may complete in one turn.
const READS_MAX: usize = 4;
/// Numbers that one page examines, and bytes that it reads from disk; then it ends, with more behind it.
const LOOKS_PER_PAGE_MAX: usize = if cfg!(test) { 120 } else { 10_000 };
const READ_BYTES_PER_PAGE_MAX: usize = 8 * HISTORY_PAGE_BYTES_MAX;
/// Rooms (or none) for which an attachment's fruitlessly examined numbers are remembered.
const IN_VAIN_PER_PLACE_MAX: usize = 4;

/// A page of history under construction.
#[derive(Debug)]
pub(in crate::shard) struct HistoryPage {
    pub(in crate::shard) place: Place,
    pub(in crate::shard) member: MemberKey,
    pub(in crate::shard) stream: StreamKey,
    /// The requesting user ([`crate::session::Target::User`]).
    pub(in crate::shard) user: u64,
    pub(in crate::shard) id: Box<str>,
    pub(in crate::shard) room: Option<u64>,
    pub(in crate::shard) limit: usize,
    /// The place in the order after which the reply is sent.
    pub(in crate::shard) after: u64,
    /// The range of numbers that it covers, in ascending order or from the last one down.
    pub(in crate::shard) low: u64,
    pub(in crate::shard) high: u64,
    pub(in crate::shard) ascending: bool,
    /// The next number to examine.
    pub(in crate::shard) at: u64,
    pub(in crate::shard) more: bool,
    pub(in crate::shard) frames: Vec<u8>,
    /// The end of each frame, in the order they were found.
    pub(in crate::shard) ends: Vec<usize>,
    pub(in crate::shard) looks: usize,
    pub(in crate::shard) read_bytes: usize,
}

/// A requested page, and the end of the attachment behind it, with its place in the order, if that was asked for meanwhile.
#[derive(Debug)]
struct Wanted {
    user: u64,
    detached: Option<(u64, Vec<u8>)>,
}

/// The pages of one user.
#[derive(Debug, Default)]
struct User {
    waiting: VecDeque<Box<HistoryPage>>,
    is_under_way: bool,
    /// `true` if the user is in the list of turns.
    is_in_turn: bool,
}

/// Numbers that an attachment's last pages examined without finding a message. A client that pages by the numbers it was shown
/// asks for them again.
#[derive(Clone, Copy, Debug)]
struct InVain {
    room: Option<u64>,
    low: u64,
    high: u64,
}

/// See the module's text.
#[derive(Debug)]
pub(in crate::shard) struct Histories {
    /// By requester: an attachment has one page at a time.
    wanted: Map<Place, Wanted>,
    users: Map<u64, User>,
    /// Users whose next page is to begin.
    turns: VecDeque<u64>,
    /// Pages that have begun and are not being read from disk.
    begun: VecDeque<Box<HistoryPage>>,
    /// Pages that have begun and whose next read waits for those under way.
    thirsty: VecDeque<Box<HistoryPage>>,
    /// Reads under way for pages.
    reads: usize,
    /// The number of pages that have begun.
    under_way: usize,
    /// Numbers that may still be examined in this turn.
    looks: usize,
    /// By requester: ranges without a message at the end of earlier pages.
    in_vain: Map<Place, Vec<InVain>>,
}

/// The result of a step of a page.
enum Step {
    Complete(Box<HistoryPage>),
    /// The page's turn is over; another one continues.
    Later(Box<HistoryPage>),
    Reads,
    /// The page waits for its next read, behind others.
    Thirsty(Box<HistoryPage>),
    /// The requester is gone; the page is dropped.
    Gone(Box<HistoryPage>),
}

impl Histories {
    pub(in crate::shard) fn new(key: HashKey) -> Self {
        let (wanted, users, in_vain) = (Map::with_hasher(key), Map::with_hasher(key), Map::with_hasher(key));
        Self {
            wanted,
            users,
            turns: VecDeque::new(),
            begun: VecDeque::new(),
            thirsty: VecDeque::new(),
            reads: 0,
            under_way: 0,
            looks: LOOKS_PER_TURN,
            in_vain,
        }
    }

    /// Remembers the numbers that this page, and those before it, examined without finding anything.
    fn found_nothing(&mut self, page: &HistoryPage) {
        let (mut low, mut high) = if page.ascending { (page.low, page.at - 1) } else { (page.at + 1, page.high) };
        if low > high {
            return;
        }
        let known = self.in_vain.entry(page.place).or_default();
        if let Some(known) = known.iter().find(|known| known.room == page.room)
            && known.low <= high + 1
            && low <= known.high + 1
        {
            (low, high) = (low.min(known.low), high.max(known.high));
        }
        known.retain(|known| known.room != page.room);
        known.truncate(IN_VAIN_PER_PLACE_MAX - 1);
        known.insert(0, InVain { room: page.room, low, high });
    }

    /// The remembered numbers that this page need not examine.
    fn in_vain_for(&self, page: &HistoryPage) -> Option<InVain> {
        self.in_vain.get(&page.place)?.iter().find(|known| known.room == page.room).copied()
    }

    /// Returns `true` if a user may request another page.
    fn takes(&self, user: u64, place: Place) -> bool {
        let own = self.users.get(&user).map_or(0, |user| user.waiting.len() + usize::from(user.is_under_way));
        own < PAGES_PER_USER_MAX && self.wanted.len() < PAGES_MAX && !self.wanted.contains_key(&place)
    }

    fn add(&mut self, page: Box<HistoryPage>) {
        self.wanted.insert(page.place, Wanted { user: page.user, detached: None });
        let user = self.users.entry(page.user).or_default();
        if !user.is_under_way && !std::mem::replace(&mut user.is_in_turn, true) {
            self.turns.push_back(page.user);
        }
        user.waiting.push_back(page);
    }

    /// The number of pages, users and remembered ranges.
    #[cfg(test)]
    pub(in crate::shard) fn left(&self) -> usize {
        self.wanted.len()
            + self.users.len()
            + self.turns.len()
            + self.begun.len()
            + self.under_way
            + self.in_vain.len()
            + self.thirsty.len()
            + self.reads
    }

    /// Returns `true` if nothing is to be done for a page in this turn, and nothing was.
    fn is_idle(&self) -> bool {
        self.looks == LOOKS_PER_TURN && self.begun.is_empty() && self.thirsty.is_empty() && self.turns.is_empty()
    }

    /// Begins the pages for which there is room.
    fn begin(&mut self) {
        while self.under_way < UNDER_WAY_MAX
            && let Some(name) = self.turns.pop_front()
        {
            let Some(user) = self.users.get_mut(&name) else { continue };
            user.is_in_turn = false;
            if let Some(page) = user.waiting.pop_front() {
                user.is_under_way = true;
                self.under_way += 1;
                self.begun.push_back(page);
            } else {
                self.users.remove(&name);
            }
        }
    }

    /// Counts a read for a page: it has begun, or has completed.
    pub(in crate::shard) fn note_read(&mut self, begins: bool) {
        self.reads = if begins { self.reads + 1 } else { self.reads.saturating_sub(1) };
    }

    /// Continues the pages whose reads are next.
    fn read_on(&mut self) {
        let room = READS_MAX.saturating_sub(self.reads).min(self.thirsty.len());
        self.begun.extend(self.thirsty.drain(..room));
    }

    /// Ends a page that had begun. Returns its request, if somebody still waits for it, and the end of the attachment.
    fn end(&mut self, page: &HistoryPage) -> Option<Wanted> {
        self.under_way -= 1;
        if let Some(user) = self.users.get_mut(&page.user) {
            user.is_under_way = false;
            if user.waiting.is_empty() {
                self.users.remove(&page.user);
            } else if !std::mem::replace(&mut user.is_in_turn, true) {
                self.turns.push_back(page.user);
            }
        }
        self.wanted.remove(&page.place)
    }

    /// Forgets a requester that is gone. A page that has begun is dropped when it would continue.
    fn forget(&mut self, place: Place) -> Option<Wanted> {
        let wanted = self.wanted.remove(&place)?;
        if let Some(user) = self.users.get_mut(&wanted.user) {
            user.waiting.retain(|page| page.place != place);
        }
        Some(wanted)
    }
}

impl Core {
    /// Takes a requested page, or refuses it if there are too many.
    pub(in crate::shard) fn ask_history(&mut self, page: HistoryPage) {
        if self.storage.histories.takes(page.user, page.place) {
            return self.storage.histories.add(Box::new(page));
        }
        self.refuse_history(&page);
    }

    /// Continues pages, as far as a turn may. Returns `true` if there is more to do.
    pub(in crate::shard) fn serve_histories<I: Io>(&mut self, io: &mut I) -> bool {
        if self.storage.histories.is_idle() {
            return false;
        }
        self.storage.histories.read_on();
        loop {
            self.storage.histories.begin();
            if self.storage.histories.looks == 0 {
                break;
            }
            let Some(page) = self.storage.histories.begun.pop_front() else { break };
            self.serve_history(io, page, &Hand::default());
        }
        self.storage.histories.looks = LOOKS_PER_TURN;
        !self.storage.histories.begun.is_empty()
    }

    pub(in crate::shard) fn serve_history<I: Io>(&mut self, io: &mut I, page: Box<HistoryPage>, hand: &Hand<'_>) {
        match self.history_step(io, page, hand) {
            Step::Reads => {}
            Step::Later(page) => self.storage.histories.begun.push_back(page),
            Step::Thirsty(page) => self.storage.histories.thirsty.push_back(page),
            Step::Gone(page) => drop(self.storage.histories.end(&page)),
            Step::Complete(page) => {
                let wanted = self.storage.histories.end(&page);
                if page.ends.is_empty() && wanted.as_ref().is_some_and(|wanted| wanted.detached.is_none()) {
                    self.storage.histories.found_nothing(&page);
                }
                self.send_history(&page);
                self.detach_after(page.place, wanted);
            }
        }
    }

    fn history_step<I: Io>(&mut self, io: &mut I, mut page: Box<HistoryPage>, hand: &Hand<'_>) -> Step {
        if !self.storage.histories.wanted.contains_key(&page.place) {
            return Step::Gone(page);
        }
        // The bytes read are lent for this call, and examined whole.
        let most = if hand.bytes.is_empty() { LOOKS_PER_STEP.min(self.storage.histories.looks) } else { usize::MAX };
        let (mut looks, mut weight, in_vain) = (0, 0, self.storage.histories.in_vain_for(&page));
        while (page.low..=page.high).contains(&page.at) {
            if let Some(known) = in_vain.filter(|known| (known.low..=known.high).contains(&page.at)) {
                page.at = if page.ascending { known.high + 1 } else { known.low - 1 };
                continue;
            }
            if page.looks >= LOOKS_PER_PAGE_MAX {
                self.cx.counters.limit_reached(LimitReached::HistoryLooks);
                page.more = true;
                break;
            }
            if looks >= most {
                return Step::Later(page);
            }
            let seq = page.at;
            let (Some(member), Some(stream)) = (self.home.sessions.members.get(page.member), self.home.streams.get(page.stream))
            else {
                // Whoever left a channel while its page is read is forgotten before the page ends: nothing more is shown in its name.
                page.more = true;
                break;
            };
            (looks, page.looks) = (looks + 1 + weight, page.looks + 1);
            self.storage.histories.looks = self.storage.histories.looks.saturating_sub(1 + weight);
            weight = 0;
            self.cx.counters.history_looks.increment();
            let mut next = if page.ascending { seq + 1 } else { seq - 1 };
            match self.look(page.stream, stream, seq, hand) {
                Look::Want(want) => {
                    let is_anothers_turn = !hand.bytes.is_empty() && !self.storage.histories.thirsty.is_empty();
                    if self.storage.histories.reads >= READS_MAX || is_anothers_turn {
                        return Step::Thirsty(page);
                    }
                    return self.read_history(io, seq, want, hand, page);
                }
                Look::Damaged(_) => self.cx.counters.dropped(DropReason::LogDamaged, 1),
                Look::Unreadable { first, last } => {
                    let (low, high) = if page.ascending { (seq, last.min(page.high)) } else { (first.max(page.low), seq) };
                    self.cx.counters.dropped(DropReason::LogUnreadable, high + 1 - low);
                    next = if page.ascending { high + 1 } else { low - 1 };
                }
                Look::Nothing { before, next: behind } => next = if page.ascending { behind } else { before },
                Look::Record(entry, record) => {
                    let (addresses, frame) = record.split_at(entry.frame_at as usize);
                    let addresses = &addresses[HEADER_BYTES..];
                    let in_room = match (page.room, entry.audience) {
                        (None, _) => true,
                        (Some(_), Audience::All) => false,
                        (Some(room), Audience::One(target)) => target == room,
                        (Some(room), Audience::Many(_)) => addresses.chunks_exact(8).any(|target| target == room.to_le_bytes()),
                    };
                    if in_room && member.entitlements.shows(&entry, seq, || addresses) {
                        if page.ends.len() >= page.limit || page.frames.len() + frame.len() > HISTORY_PAGE_BYTES_MAX {
                            page.more = true;
                            break;
                        }
                        weight = frame.len() / BYTES_PER_LOOK;
                        page.frames.extend_from_slice(frame);
                        let end = page.frames.len();
                        page.ends.push(end);
                    }
                }
            }
            page.at = next;
        }
        Step::Complete(page)
    }

    fn read_history<I: Io>(&mut self, io: &mut I, seq: u64, want: Want, hand: &Hand<'_>, mut page: Box<HistoryPage>) -> Step {
        if page.read_bytes >= READ_BYTES_PER_PAGE_MAX {
            self.cx.counters.limit_reached(LimitReached::HistoryLooks);
            page.more = true;
            return Step::Complete(page);
        }
        self.read_for(io, (page.stream, seq), want, hand, Job::History(page));
        Step::Reads
    }

    /// Refuses a page that can't be read now.
    pub(in crate::shard) fn give_up_history(&mut self, page: HistoryPage) {
        let wanted = self.storage.histories.end(&page);
        if wanted.is_some() {
            self.refuse_history(&page);
        }
        self.detach_after(page.place, wanted);
    }

    /// Sends the reply that ends an attachment, behind a page of history that is not answered yet.
    pub(in crate::shard) fn detach_behind_history(&mut self, place: Place, after: u64, frame: Vec<u8>) {
        if let Some(wanted) = self.storage.histories.wanted.get_mut(&place) {
            wanted.detached = Some((after, frame));
        } else if place.shard == self.cx.shard_number() {
            self.connections.put_ordered(&mut self.cx, place, after, Waiting::Detached(frame));
        } else {
            self.send_reply(place, LaneMessage::Detached { to: place, after, frame });
        }
    }

    fn detach_after(&mut self, place: Place, wanted: Option<Wanted>) {
        if let Some((after, frame)) = wanted.and_then(|wanted| wanted.detached) {
            self.detach_behind_history(place, after, frame);
        }
    }

    fn send_history(&mut self, page: &HistoryPage) {
        let Some(stream) = self.home.streams.get(page.stream) else { return };
        let (session_id, oldest) = (stream.session_id.clone(), stream.index.first());
        let head = Head { id: &page.id, session_id: &session_id };
        let mut bytes = self.buffer_for(page.place);
        let open = OpenFrame::begin(&mut bytes);
        crate::protocol::history_begin(&mut bytes, head, page.ends.len() as u64);
        open.finish(Opcode::Text, &mut bytes);
        if page.ascending {
            bytes.extend_from_slice(&page.frames);
        } else {
            let mut end = page.frames.len();
            for number in (0..page.ends.len()).rev() {
                let start = number.checked_sub(1).map_or(0, |before| page.ends[before]);
                bytes.extend_from_slice(&page.frames[start..end]);
                end = start;
            }
        }
        // The `after`, or the `before`, with which the next page begins at the first number that this one has not examined.
        let next_seq = page.more.then_some(if page.ascending { page.at - 1 } else { page.at + 1 });
        let open = OpenFrame::begin(&mut bytes);
        crate::protocol::history_end(&mut bytes, head, next_seq, oldest);
        open.finish(Opcode::Text, &mut bytes);
        self.answer_history(page, bytes);
    }

    fn refuse_history(&mut self, page: &HistoryPage) {
        self.cx.counters.limit_reached(LimitReached::HistoryBusy);
        self.cx.counters.refused.increment();
        let session_id = self.home.streams.get(page.stream).map_or_else(Box::default, |stream| stream.session_id.clone());
        let mut bytes = self.buffer_for(page.place);
        let open = OpenFrame::begin(&mut bytes);
        let failure = Failure {
            head: Head { id: &page.id, session_id: &session_id },
            code: ErrorCode::LimitHistoryBusy,
            message: "too many pages of history are under way, for this user or for all: ask again after retry_after_ms",
            retry_after_ms: Some(RETRY_AFTER_MS),
            pointer: None,
            frame: None,
        };
        crate::protocol::error(&mut bytes, &failure);
        open.finish(Opcode::Text, &mut bytes);
        self.answer_history(page, bytes);
    }

    fn answer_history(&mut self, page: &HistoryPage, bytes: Vec<u8>) {
        if page.place.shard == self.cx.shard_number() {
            self.connections.put_ordered(&mut self.cx, page.place, page.after, Waiting::History(bytes));
        } else {
            self.send_reply(page.place, LaneMessage::History { to: page.place, after: page.after, frame: bytes });
        }
    }
}

impl Storage {
    /// Forgets the page of a requester that is gone: its connection, or its attachment.
    pub(in crate::shard) fn forget_history(&mut self, cx: &mut Context, place: Place) {
        self.histories.in_vain.remove(&place);
        if let Some((_, frame)) = self.histories.forget(place).and_then(|wanted| wanted.detached) {
            cx.buffers.give(frame);
        }
    }

    /// Forgets the fruitless ranges of a member whose entitlements have changed: they are examined again.
    pub(in crate::shard) fn look_again(&mut self, place: Place) {
        self.histories.in_vain.remove(&place);
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
