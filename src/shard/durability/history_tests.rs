//! Pages of history: invariants after every turn, and bounds on what they hold while they wait.

use super::*;
use crate::ids::ConnId;
use crate::log::Run;
use crate::shard::durability::disk_tests::{Held, core};
use crate::slots::Key;

impl Core {
    /// Returns `true` if a page that this client requested is not complete yet.
    pub fn waits_for_history(&self, client_id: &str) -> bool {
        let mut members = self.home.sessions.members.iter().map(|(_, member)| member);
        members.any(|member| {
            *member.client_id == *client_id
                && member.place.is_some_and(|place| self.storage.histories.wanted.contains_key(&place))
        })
    }

    /// Each requested page is in one place, nobody has two under way, and the counts are right.
    pub(in crate::shard) fn inspect_histories(&self, resting: bool) -> Result<(), String> {
        let histories = &self.storage.histories;
        let indexing = self.storage.disk.iter().flat_map(|disk| disk.indexing.waiting_jobs());
        let reading = self.storage.jobs.values().map(|reading| &reading.job).chain(indexing).filter_map(page_of);
        let begun: Vec<&HistoryPage> =
            histories.begun.iter().chain(&histories.thirsty).map(|page| &**page).chain(reading).collect();
        if begun.len() != histories.under_way || begun.len() > UNDER_WAY_MAX {
            return Err(format!("{} pages of history have begun, counted {}", begun.len(), histories.under_way));
        }
        let reads = self.storage.reads_for_histories();
        if histories.reads != reads || reads > READS_MAX {
            return Err(format!("{reads} reads for pages of history, counted {}", histories.reads));
        }
        let waiting = || histories.users.values().flat_map(|user| &user.waiting).map(|page| &**page);
        if let Some(page) = waiting().find(|page| !histories.wanted.contains_key(&page.place) || page.frames.capacity() > 0) {
            return Err(format!("a page waits that nobody wants, or with memory: {page:?}"));
        }
        for (name, user) in &histories.users {
            let under_way = begun.iter().filter(|page| page.user == *name).count();
            let turns = histories.turns.iter().filter(|turn| *turn == name).count();
            if under_way != usize::from(user.is_under_way) || turns != usize::from(user.is_in_turn) || under_way + turns == 0 {
                return Err(format!("a user has {under_way} pages under way and {turns} turns: {user:?}"));
            }
        }
        for (place, wanted) in &histories.wanted {
            let pages = begun.iter().copied().chain(waiting()).filter(|page| page.place == *place).count();
            let is_there = self.home.sessions.members.iter().any(|(_, member)| member.place == Some(*place));
            if pages != 1 || !is_there && wanted.detached.is_none() {
                return Err(format!("{place:?} (there: {is_there}) waits for {pages} pages: {wanted:?}"));
            }
        }
        for (place, known) in &histories.in_vain {
            let is_there = self.home.sessions.members.iter().any(|(_, member)| member.place == Some(*place));
            if !is_there || known.len() > IN_VAIN_PER_PLACE_MAX {
                return Err(format!("{place:?} (there: {is_there}) looked in vain: {known:?}"));
            }
        }
        if resting && reads == 0 && !histories.thirsty.is_empty() {
            return Err(format!("pages of history wait for reads, and none is under way: {histories:?}"));
        }
        if resting && !(histories.begun.is_empty() && (histories.turns.is_empty() || histories.under_way == UNDER_WAY_MAX)) {
            return Err(format!("pages of history wait for a turn: {histories:?}"));
        }
        Ok(())
    }
}

fn page_of(job: &Job) -> Option<&HistoryPage> {
    match job {
        Job::History(page) => Some(page),
        Job::Page { .. } | Job::Copy(_) => None,
    }
}

fn place(index: usize) -> Place {
    let index = u32::try_from(index).unwrap();
    Place { shard: 0, attachment: 0, ticket: 1, conn: ConnId { index, generation: 1 } }
}

fn page(index: usize, user: u64) -> HistoryPage {
    HistoryPage {
        place: place(index),
        member: Key::unpack(1),
        stream: Key::unpack(1),
        user,
        id: "h".into(),
        room: None,
        limit: 10,
        after: 1,
        low: 1,
        high: 9,
        ascending: true,
        at: 5,
        more: false,
        frames: Vec::new(),
        ends: Vec::new(),
        looks: 0,
        read_bytes: 0,
    }
}

const RUN: Run = Run { segment: 0, first_seq: 1, count: 9, entries_at: 0, bytes: 900, last_offset: 800 };

#[test]
fn what_one_user_and_all_together_may_ask_for_is_bounded() {
    let (mut core, mut io) = (core(""), Held::default());
    for index in 0..PAGES_PER_USER_MAX + 3 {
        core.ask_history(page(index, 1));
    }
    assert_eq!(
        (core.storage.histories.wanted.len(), core.cx.counters.limit_count(LimitReached::HistoryBusy)),
        (PAGES_PER_USER_MAX, 3)
    );
    for index in 100..100 + PAGES_MAX {
        core.ask_history(page(index, index as u64));
    }
    let refused = (PAGES_PER_USER_MAX + 3) as u64;
    assert_eq!(
        (core.storage.histories.wanted.len(), core.cx.counters.limit_count(LimitReached::HistoryBusy)),
        (PAGES_MAX, refused)
    );
    // Pages of requesters that are gone no longer wait, and those that had begun are dropped at their turn.
    core.storage.histories.begin();
    assert_eq!((core.storage.histories.under_way, core.storage.histories.begun.len()), (UNDER_WAY_MAX, UNDER_WAY_MAX));
    (0..100 + PAGES_MAX).for_each(|index| core.storage.forget_history(&mut core.cx, place(index)));
    assert!(
        core.storage.histories.wanted.is_empty() && core.storage.histories.users.values().all(|user| user.waiting.is_empty())
    );
    assert!(!core.serve_histories(&mut io));
    assert!(
        core.storage.histories.users.is_empty()
            && core.storage.histories.turns.is_empty()
            && core.storage.histories.under_way == 0
    );
    assert_eq!(core.cx.counters.history_looks.get(), 0);
}

#[test]
fn pages_that_wait_for_a_disk_that_does_not_answer_hold_bounded_memory() {
    let (mut core, mut io) = (core("[log]\ndir = \"unused\"\n"), Held::default());
    (0..PAGES_MAX).for_each(|index| core.ask_history(page(index, index as u64)));
    core.storage.histories.begin();
    while let Some(mut page) = core.storage.histories.begun.pop_front() {
        page.frames = Vec::with_capacity(HISTORY_PAGE_BYTES_MAX);
        assert!(matches!(core.read_history(&mut io, 5, Want::Places(RUN), &Hand::default(), page), Step::Reads));
    }
    core.storage.histories.begin();
    assert_eq!(
        (core.storage.histories.under_way, core.storage.jobs.len(), core.storage.histories.begun.len()),
        (UNDER_WAY_MAX, UNDER_WAY_MAX, 0)
    );
    assert!(core.storage.histories.users.values().flat_map(|user| &user.waiting).all(|page| page.frames.capacity() == 0));
}
