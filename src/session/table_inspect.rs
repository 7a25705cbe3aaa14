//! Invariants of the tables after every turn, for the simulator: each cached number equals what it counts.

use super::{NOBODY, Sessions};
use std::collections::BTreeMap;

impl Sessions {
    /// Checks the tables against each other.
    ///
    /// # Errors
    /// The invariant that does not hold.
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
        let (mut targets, mut named) = (Vec::new(), 0);
        for (key, member) in self.members.iter() {
            let entitled = &member.entitlements;
            let rooms = entitled.stays.iter().filter(|stay| stay.to == u64::MAX).map(|stay| stay.room);
            targets.clear();
            targets.extend(entitled.roles.iter().copied().chain(rooms).chain([entitled.user]));
            targets.sort_unstable();
            targets.dedup();
            if targets.iter().any(|target| !self.group(member.session, *target).contains(&key)) {
                return Err(format!("{} is not in each group that it names", member.client_id));
            }
            named += targets.len();
        }
        let there: usize = self.groups.iter().map(|group| group.members.as_slice().len()).sum();
        if there != named || self.groups.iter().any(|group| group.members.as_slice().is_empty()) {
            return Err(format!("{there} are in {} groups, and {named} are named", self.groups.len()));
        }
        Ok(())
    }

    /// The largest number of existing sessions that one user made.
    pub fn made_most(&self) -> usize {
        self.made.values().copied().max().unwrap_or(0) as usize
    }
}
