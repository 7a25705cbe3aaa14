//! A shard's sessions and members, and the ways to find them.

use super::entitlement::{Entitlements, Target};
use super::member::{Member, MemberKey};
use super::presence::Watcher;
use super::stream::StreamKey;
use crate::few::Few;
use crate::ids::{HashKey, Map};
use crate::limits::EPOCHS_PER_SESSION_MAX;
use crate::log::{Level, Position};
use crate::slots::{Key, Slots};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry as TableEntry;
use std::rc::Rc;
use std::sync::Arc;

/// The maker of a session that recovery found.
pub const NOBODY: u64 = 0;

/// A session's place on its home shard.
pub type SessionKey = Key<Session>;

/// The state of one shard's mirror of a session at home here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MirrorOut {
    pub shard: u16,
    /// The next record to send there.
    pub next_seq: u64,
    /// Batches that may still be sent.
    pub credits: u8,
}

/// A session at home on this shard.
#[derive(Debug)]
pub struct Session {
    /// Keyed hash of the id; the id itself is the stream's.
    pub hash: u64,
    pub stream: StreamKey,
    /// The current epoch's name on the wire, in hexadecimal.
    pub epoch: u64,
    /// The current epoch's number, counted from 0, which the log's records carry.
    pub epoch_number: u32,
    /// Earlier epochs (newest last), each with the last `seq` that survived it.
    pub past_epochs: Vec<(u64, u64)>,
    /// The position of the log's last whole record of the session's state.
    pub kept_at: Position,
    /// The durability at which its messages are acknowledged.
    pub level: Level,
    pub members: Vec<MemberKey>,
    pub watchers: Few<Watcher>,
    pub mirrors: Few<MirrorOut>,
    /// Since when the session has no members, on the monotonic clock; 0 while it has some.
    pub empty_since_ms: u64,
    /// Presence is not kept for channels.
    pub channel: bool,
    /// The user whose limit the session counts to ([`Target::User`]), or [`NOBODY`].
    maker: u64,
}

impl Session {
    /// Begins another epoch, to which all records appended from now on belong; the previous one ends with `last_seq`.
    pub fn begin_epoch(&mut self, name: u64, number: u32, last_seq: u64) {
        self.past_epochs.reserve_exact(1);
        self.past_epochs.push((self.epoch, last_seq));
        let excess = (self.past_epochs.len() + 1).saturating_sub(EPOCHS_PER_SESSION_MAX);
        self.past_epochs.drain(..excess);
        (self.epoch, self.epoch_number) = (name, number);
    }
}

/// Members that an address names: mostly one, of a user.
#[derive(Debug)]
struct Group {
    key: u64,
    members: Members,
}

#[derive(Debug)]
#[expect(clippy::box_collection, reason = "one word instead of three is the point")]
enum Members {
    One(MemberKey),
    Many(Box<Vec<MemberKey>>),
}

impl Members {
    fn as_slice(&self) -> &[MemberKey] {
        match self {
            Self::One(member) => std::slice::from_ref(member),
            Self::Many(members) => members,
        }
    }

    fn add(&mut self, member: MemberKey) {
        match self {
            Self::One(first) => *self = Self::Many(Box::new(vec![*first, member])),
            Self::Many(members) => members.push(member),
        }
    }

    /// Removes a member. Returns `false` if none is left.
    fn remove(&mut self, member: MemberKey) -> bool {
        match self {
            Self::One(only) => *only != member,
            Self::Many(members) => {
                members.retain(|other| *other != member);
                !members.is_empty()
            }
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Sessions {
    key: HashKey,
    pub sessions: Slots<Session>,
    pub members: Slots<Member>,
    by_hash: HashTable<(u64, SessionKey)>,
    by_client: HashTable<(u64, MemberKey)>,
    groups: HashTable<Group>,
    /// The roles given last, by name and by hash: most members have the same, and share them.
    roles: (Rc<[Box<str>]>, Arc<[u64]>),
    /// The number of existing sessions that each user made.
    made: Map<u64, u32>,
}

impl Sessions {
    /// An empty table. `key` hashes the names of members and addresses.
    #[must_use]
    pub fn new(key: HashKey) -> Self {
        Self {
            key,
            sessions: Slots::default(),
            members: Slots::default(),
            by_hash: HashTable::new(),
            by_client: HashTable::new(),
            groups: HashTable::new(),
            roles: (Rc::new([]), Arc::new([])),
            made: Map::with_hasher(key),
        }
    }

    /// Finds a session by the hash of its id. The hash is keyed with a secret, so that nobody can make two ids collide on
    /// purpose; by chance two of a billion sessions collide once in 37 shard lifetimes.
    #[must_use]
    pub fn find(&self, hash: u64) -> Option<SessionKey> {
        self.by_hash.find(hash, |(other, _)| *other == hash).map(|(_, key)| *key)
    }

    /// Adds a session, which counts to the user that made it ([`Target::User`]), or to [`NOBODY`].
    pub fn create(&mut self, hash: u64, stream: StreamKey, epoch: u64, channel: bool, maker: u64) -> SessionKey {
        let (members, watchers, mirrors) = (Vec::with_capacity(1), Few::default(), Few::default());
        let key = self.sessions.insert(Session {
            hash,
            stream,
            epoch,
            epoch_number: 0,
            past_epochs: Vec::new(),
            kept_at: Position::default(),
            level: Level::default(),
            members,
            watchers,
            mirrors,
            empty_since_ms: 0,
            channel,
            maker,
        });
        if maker != NOBODY {
            *self.made.entry(maker).or_default() += 1;
        }
        self.by_hash.insert_unique(hash, (hash, key), |(hash, _)| *hash);
        key
    }

    /// Removes a session that has no members.
    pub fn remove(&mut self, key: SessionKey) -> Option<Session> {
        if self.sessions.get(key)?.members.is_empty() {
            let session = self.sessions.remove(key)?;
            if let Ok(entry) = self.by_hash.find_entry(session.hash, |(other, _)| *other == session.hash) {
                entry.remove();
            }
            if let Some(made) = self.made.get_mut(&session.maker) {
                *made -= 1;
                if *made == 0 {
                    self.made.remove(&session.maker);
                }
            }
            return Some(session);
        }
        None
    }

    /// Frees memory that the tables no longer need, once many entries were added and removed.
    pub fn shrink(&mut self) {
        self.by_hash.shrink_to_fit(|(hash, _)| *hash);
        self.by_client.shrink_to_fit(|(scope, _)| *scope);
        self.groups.shrink_to_fit(|group| group.key);
    }

    /// The number of existing sessions that a user made; those that recovery found have no maker.
    #[must_use]
    pub fn made_by(&self, maker: u64) -> usize {
        self.made.get(&maker).map_or(0, |made| *made as usize)
    }

    /// The hash of an address.
    #[must_use]
    pub fn target(&self, target: Target, name: &str) -> u64 {
        target.hash(&self.key, name)
    }

    /// A member by the hash of its client id ([`Target::Client`]).
    #[must_use]
    pub fn member(&self, session: SessionKey, client: u64) -> Option<MemberKey> {
        let key = scoped(self.sessions.get(session)?.hash, client);
        self.by_client.find(key, |(other, _)| *other == key).map(|(_, member)| *member)
    }

    /// Adds a member, and its entries for the addresses that name it.
    pub fn add_member(&mut self, member: Member) -> MemberKey {
        let (session, client) = (member.session, member.entitlements.client);
        let user = member.entitlements.user;
        let roles = member.entitlements.roles.clone();
        let key = self.members.insert(member);
        if let Some(entry) = self.sessions.get_mut(session) {
            entry.members.push(key);
            let scope = scoped(entry.hash, client);
            self.by_client.insert_unique(scope, (scope, key), |(scope, _)| *scope);
        }
        self.join_group(session, user, key);
        for role in roles.iter() {
            self.join_group(session, *role, key);
        }
        key
    }

    /// Removes a member.
    pub fn remove_member(&mut self, key: MemberKey) -> Option<Member> {
        let member = self.members.remove(key)?;
        let named = &member.entitlements;
        self.leave_group(member.session, named.user, key);
        for role in named.roles.iter() {
            self.leave_group(member.session, *role, key);
        }
        for stay in named.stays.iter().filter(|stay| stay.to == u64::MAX) {
            self.leave_group(member.session, stay.room, key);
        }
        if let Some(session) = self.sessions.get_mut(member.session) {
            session.members.retain(|other| *other != key);
            session.watchers.retain(|watcher| watcher.member != key);
            let scope = scoped(session.hash, named.client);
            if let Ok(entry) = self.by_client.find_entry(scope, |(other, _)| *other == scope) {
                entry.remove();
            }
        }
        Some(member)
    }

    /// Gives a member the roles of a new token. Returns `false` if it has them already.
    pub fn set_roles(&mut self, key: MemberKey, roles: &[Box<str>]) -> bool {
        if self.members.get(key).is_none_or(|member| *member.roles == *roles) {
            return false;
        }
        let (names, hashes) = self.share_roles(roles);
        let Some(member) = self.members.get_mut(key) else { return false };
        let session = member.session;
        member.roles = names;
        let old = std::mem::replace(&mut member.entitlements.roles, Arc::clone(&hashes));
        for role in old.iter() {
            self.leave_group(session, *role, key);
        }
        for role in hashes.iter() {
            self.join_group(session, *role, key);
        }
        true
    }

    /// Roles by name and by hash, in memory that members with the same share.
    pub fn share_roles(&mut self, roles: &[Box<str>]) -> (Rc<[Box<str>]>, Arc<[u64]>) {
        if *self.roles.0 != *roles {
            self.roles = (roles.into(), roles.iter().map(|role| self.target(Target::Role, role)).collect());
        }
        self.roles.clone()
    }

    /// Enters a room for a member, from a place in the order on. Returns `false` if it is in already.
    pub fn enter_room(&mut self, key: MemberKey, name: &str, from_seq: u64) -> bool {
        let room = self.target(Target::Room, name);
        let Some(member) = self.members.get_mut(key) else { return false };
        if !member.entitlements.enter(room, from_seq) {
            return false;
        }
        member.rooms.push(name.into());
        let session = member.session;
        self.join_group(session, room, key);
        true
    }

    /// Leaves a room for a member, at a place in the order. Returns how many of its older stays were forgotten for it; `None` if
    /// it is not in.
    pub fn leave_room(&mut self, key: MemberKey, name: &str, to_seq: u64) -> Option<u64> {
        let room = self.target(Target::Room, name);
        let member = self.members.get_mut(key)?;
        let forgotten = member.entitlements.leave(room, to_seq)?;
        member.rooms.retain(|other| &**other != name);
        let session = member.session;
        self.leave_group(session, room, key);
        Some(forgotten)
    }

    /// The members that a user, role or room address names now.
    #[must_use]
    pub fn group(&self, session: SessionKey, target: u64) -> &[MemberKey] {
        let Some(session) = self.sessions.get(session) else { return &[] };
        let key = scoped(session.hash, target);
        self.groups.find(key, |group| group.key == key).map_or(&[], |group| group.members.as_slice())
    }

    /// A page of members in the order of their client ids, after one, and whether more follow.
    #[must_use]
    pub fn page(&self, session: SessionKey, room: Option<&str>, after: Option<&str>, limit: usize) -> (Vec<MemberKey>, bool) {
        let Some(entry) = self.sessions.get(session) else { return (Vec::new(), false) };
        let all = match room {
            Some(room) => self.group(session, self.target(Target::Room, room)),
            None => &entry.members,
        };
        let name = |key: &MemberKey| self.members.get(*key).map_or("", |member| &*member.client_id);
        let mut page: Vec<MemberKey> = all.iter().copied().filter(|key| after.is_none_or(|after| name(key) > after)).collect();
        let more = page.len() > limit;
        if more {
            page.select_nth_unstable_by(limit, |a, b| name(a).cmp(name(b)));
            page.truncate(limit);
        }
        page.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        (page, more)
    }

    /// The entitlements of a client that is new to a session.
    #[must_use]
    pub fn entitle(&mut self, client_id: &str, subject: &str, roles: &[Box<str>], hidden_to: u64) -> Entitlements {
        Entitlements {
            client: self.target(Target::Client, client_id),
            user: self.target(Target::User, subject),
            roles: self.share_roles(roles).1,
            stays: Few::default(),
            hidden_to,
            echo: false,
        }
    }

    fn join_group(&mut self, session: SessionKey, target: u64, member: MemberKey) {
        let Some(session) = self.sessions.get(session) else { return };
        let key = scoped(session.hash, target);
        match self.groups.entry(key, |group| group.key == key, |group| group.key) {
            TableEntry::Occupied(mut group) => {
                if !group.get().members.as_slice().contains(&member) {
                    group.get_mut().members.add(member);
                }
            }
            TableEntry::Vacant(place) => {
                place.insert(Group { key, members: Members::One(member) });
            }
        }
    }

    fn leave_group(&mut self, session: SessionKey, target: u64, member: MemberKey) {
        let Some(session) = self.sessions.get(session) else { return };
        let key = scoped(session.hash, target);
        if let Ok(mut group) = self.groups.find_entry(key, |group| group.key == key)
            && !group.get_mut().members.remove(member)
        {
            group.remove();
        }
    }
}

/// The hash of an address within a session. Both halves are keyed hashes already.
const fn scoped(session: u64, target: u64) -> u64 {
    session.rotate_left(17) ^ target
}

#[cfg(test)]
#[path = "table_inspect.rs"]
mod inspect;

#[cfg(test)]
mod tests {
    use super::*;

    const MAKER: u64 = 5;

    fn table() -> (Sessions, SessionKey) {
        let mut sessions = Sessions::new(HashKey([1; 16]));
        let session = sessions.create(77, Key::unpack(0), 5, false, MAKER);
        (sessions, session)
    }

    fn join(sessions: &mut Sessions, session: SessionKey, client_id: &str, roles: &[&str]) -> MemberKey {
        let roles: Box<[Box<str>]> = roles.iter().map(|role| (*role).into()).collect();
        let subject = client_id.split('/').next().unwrap();
        let entitlements = sessions.entitle(client_id, subject, &roles, 0);
        sessions.add_member(Member {
            session,
            client_id: client_id.into(),
            subject_bytes: subject.len() as u16,
            roles: roles.into(),
            rooms: Few::default(),
            entitlements,
            place: None,
            received_seq: 0,
            used: None,
            presence: None,
            presence_empty_ns: 0,
            telling: crate::session::Telling::default(),
            since_ms: 0,
            away_since_ms: 0,
            away_before_ms: 0,
            told_lost: false,
            owed: 0,
            underway: None,
            kept_at: Position::default(),
            timers_ms: [u64::MAX; 2],
        })
    }

    #[test]
    fn members_are_found_by_every_name() {
        let (mut sessions, session) = table();
        let one = join(&mut sessions, session, "ana/1", &["agent"]);
        let two = join(&mut sessions, session, "ana/2", &[]);
        assert!(sessions.enter_room(two, "ops", 3) && !sessions.enter_room(two, "ops", 4));
        let hash = |target: Target, name| sessions.target(target, name);
        assert_eq!(sessions.member(session, hash(Target::Client, "ana/2")), Some(two));
        assert_eq!(sessions.member(session, hash(Target::Client, "ana")), None);
        assert_eq!(sessions.group(session, hash(Target::User, "ana")), [one, two]);
        assert_eq!(sessions.group(session, hash(Target::Role, "agent")), [one]);
        assert_eq!(sessions.group(session, hash(Target::Room, "ops")), [two]);
        assert_eq!(sessions.find(77), Some(session));
        assert_eq!(sessions.members.get(one).unwrap().subject(), "ana");
    }

    #[test]
    fn a_member_that_goes_is_found_by_none() {
        let (mut sessions, session) = table();
        let one = join(&mut sessions, session, "ana", &["agent"]);
        sessions.enter_room(one, "ops", 1);
        assert!(sessions.remove(session).is_none(), "a session with members stays");
        sessions.remove_member(one).unwrap();
        for (target, name) in [(Target::User, "ana"), (Target::Role, "agent"), (Target::Room, "ops")] {
            assert!(sessions.group(session, sessions.target(target, name)).is_empty());
        }
        assert!(sessions.member(session, sessions.target(Target::Client, "ana")).is_none());
        assert!(sessions.groups.is_empty() && sessions.by_client.is_empty());
        assert!(sessions.remove(session).is_some() && sessions.find(77).is_none());
    }

    #[test]
    fn a_session_counts_to_who_made_it_while_it_is_there() {
        let (mut sessions, first) = table();
        let second = sessions.create(78, Key::unpack(1), 5, false, MAKER);
        sessions.create(79, Key::unpack(2), 5, false, NOBODY);
        assert_eq!((sessions.made_by(MAKER), sessions.made_by(6), sessions.made_by(NOBODY)), (2, 0, 0));
        let member = join(&mut sessions, first, "ana", &[]);
        assert!(sessions.remove(first).is_none() && sessions.made_by(5) == 2);
        sessions.remove_member(member).unwrap();
        assert!(sessions.remove(first).is_some() && sessions.made_by(5) == 1);
        assert!(sessions.remove(second).is_some() && sessions.made.is_empty());
    }

    #[test]
    fn new_roles_replace_the_old() {
        let (mut sessions, session) = table();
        let one = join(&mut sessions, session, "ana", &["agent"]);
        sessions.set_roles(one, &["human".into()]);
        assert!(sessions.group(session, sessions.target(Target::Role, "agent")).is_empty());
        assert_eq!(sessions.group(session, sessions.target(Target::Role, "human")), [one]);
    }

    #[test]
    fn pages_go_through_all_members_once_and_in_order() {
        let (mut sessions, session) = table();
        for number in (0..25).rev() {
            join(&mut sessions, session, &format!("c{number:02}"), &[]);
        }
        let (mut seen, mut after) = (Vec::new(), None::<String>);
        loop {
            let (page, more) = sessions.page(session, None, after.as_deref(), 10);
            seen.extend(page.iter().map(|key| sessions.members.get(*key).unwrap().client_id.to_string()));
            after = seen.last().cloned();
            if !more {
                break;
            }
        }
        assert_eq!(seen, (0..25).map(|number| format!("c{number:02}")).collect::<Vec<_>>());
    }
}
