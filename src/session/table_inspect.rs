//! What must hold of the tables after every turn, for the simulator: each number that is kept beside what it counts is that.

use super::{NOBODY, Sessions, scoped};
use crate::session::MemberKey;
use std::collections::BTreeMap;

impl Sessions {
    /// Checks the tables against each other.
    ///
    /// # Errors
    /// What does not hold.
    pub fn inspect(&self) -> Result<(), String> {
        let mut made: BTreeMap<u64, u32> = BTreeMap::new();
        let mut of_sessions = 0;
        for (key, session) in self.sessions.iter() {
            if session.maker != NOBODY {
                *made.entry(session.maker).or_default() += 1;
            }
            of_sessions += session.members.len();
            if self.find(session.hash) != Some(key) {
                return Err(format!("the session {:x} is not found by its hash", session.hash));
            }
            let strange = session.members.iter().find(|member| self.members.get(**member).is_none_or(|of| of.session != key));
            let strange = strange.or_else(|| {
                let mut watchers = session.watchers.iter().map(|watcher| &watcher.member);
                watchers.find(|watcher| !session.members.contains(watcher))
            });
            if let Some(member) = strange {
                return Err(format!("{member:?} is no member of {:x}", session.hash));
            }
        }
        let counted: BTreeMap<u64, u32> = self.made.iter().map(|(maker, count)| (*maker, *count)).collect();
        if made != counted {
            return Err(format!("sessions by their makers: {made:?}, counted {counted:?}"));
        }
        let tables = (self.by_hash.len(), of_sessions, self.by_client.len());
        if tables != (self.sessions.len(), self.members.len(), self.members.len()) {
            let (sessions, members) = (self.sessions.len(), self.members.len());
            return Err(format!("{sessions} sessions and {members} members, in the tables {tables:?}"));
        }
        self.inspect_groups()
    }

    fn inspect_groups(&self) -> Result<(), String> {
        let mut groups: BTreeMap<u64, Vec<MemberKey>> = BTreeMap::new();
        for (key, member) in self.members.iter() {
            let Some(session) = self.sessions.get(member.session) else { return Err("a member of no session".to_owned()) };
            let named = &member.entitlements;
            let rooms = named.stays.iter().filter(|stay| stay.to == u64::MAX).map(|stay| stay.room);
            let mut targets: Vec<u64> = named.roles.iter().copied().chain(rooms).chain([named.user]).collect();
            targets.sort_unstable();
            targets.dedup();
            for target in targets {
                groups.entry(scoped(session.hash, target)).or_default().push(key);
            }
        }
        let mut there = 0;
        for group in &self.groups {
            let members = group.members.as_slice();
            let expected = groups.get(&group.key).map_or(&[][..], Vec::as_slice);
            if members.len() != expected.len() || !members.iter().all(|member| expected.contains(member)) {
                return Err(format!("a group of {} is named by {} members", members.len(), expected.len()));
            }
            there += 1;
        }
        if there != groups.len() {
            return Err(format!("{there} groups, named by members {}", groups.len()));
        }
        Ok(())
    }

    /// The most sessions that a user made which are still there.
    pub fn made_most(&self) -> usize {
        self.made.values().copied().max().unwrap_or(0) as usize
    }
}
