//! The view that each client must have had: a model of the contract that shares no code with the gateway.
//!
//! The oracle knows what clients sent and received. A record exists once it was acknowledged or delivered to anybody; its readers
//! follow from its addresses, from roles, and from the times in rooms, which are known as far as a client can know them.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[path = "oracle_rooms.rs"]
mod rooms;

/// A place in a session's order.
#[derive(Debug)]
struct Record {
    from: String,
    id: String,
    to: Vec<String>,
    /// The frame's text, once anybody was given it.
    text: Option<Vec<u8>>,
    acked: bool,
}

/// A session as a start found it.
#[derive(Clone, Copy, Debug)]
pub struct Survived {
    /// The oldest and the newest `seq` that are there.
    pub first: u64,
    pub head: u64,
    /// The process before had ended in good order.
    pub clean: bool,
    /// `true` if acknowledged, or delivered, messages had to survive.
    pub acknowledged: bool,
    pub delivered: bool,
}

/// An epoch that is over.
#[derive(Debug)]
struct Past {
    epoch: String,
    /// The epoch's last `seq` that survived.
    last: u64,
    /// The log remembers it: something that was appended in it is there.
    sure: bool,
}

#[derive(Debug, Default)]
struct Log {
    /// Empty until somebody is told.
    epoch: String,
    /// The newest `seq` when it began.
    epoch_base: u64,
    past: Vec<Past>,
    /// Epochs of the session before it was forgotten. A crash may take the forgetting, and a slow reader hears of one of them late.
    forgotten: Vec<String>,
    /// Somebody attached was given a message of this epoch.
    spoken: bool,
    records: BTreeMap<u64, Record>,
    ids: BTreeMap<(String, String), u64>,
}

/// A stay in a room. The certain range lies within the possible one.
#[derive(Clone, Copy, Debug)]
struct Stay {
    may_from: u64,
    must_from: u64,
    must_to: u64,
    may_to: u64,
    /// The number of the leave that was sent since; 0: none.
    leaving: u64,
    /// When it was asked for.
    asked_ns: u64,
    /// A room named on attaching counts for the replay, not for what earlier attachments saw: the first view it is sure for.
    since: usize,
    /// The first view that it is not sure for: a restart may have lost it.
    until: usize,
    /// The stay is on disk if a message behind this `seq` is; `u64::MAX` while an answer is due.
    kept_by: u64,
    /// The last request about it was answered, as with an ack: it outlives whatever acknowledged messages do.
    confirmed: bool,
}

impl Stay {
    const fn open(&self) -> bool {
        self.may_to == u64::MAX
    }

    const fn sure(&self) -> bool {
        self.open() && self.must_to == u64::MAX && self.must_from != u64::MAX && self.until == usize::MAX
    }
}

/// A leave that was sent.
#[derive(Clone, Copy, Debug)]
struct Leave {
    number: u64,
    asked_ns: u64,
    /// The session's head then.
    head: u64,
}

/// An attachment of a client to a session, from its welcome to its end.
#[derive(Debug)]
pub struct View {
    client: String,
    session: String,
    /// When it was asked for.
    asked_ns: u64,
    echo: bool,
    start: u64,
    /// Everything up to here must have been delivered.
    pub position: u64,
    last: u64,
    delivered: BTreeSet<u64>,
    gaps: Vec<(u64, u64)>,
    pub caught_up: bool,
    welcome_seq: u64,
    roles: BTreeMap<String, Vec<Held>>,
    /// When its roles were last changed, if they are not yet known to be in force: a pong to a later ping shows it.
    pub roles_asked_ns: Option<u64>,
}

/// A role held, in places of the order. The certain range lies within the possible one.
#[derive(Clone, Copy, Debug)]
struct Held {
    may_from: u64,
    must_from: u64,
    must_to: u64,
    may_to: u64,
    /// When the client knew that the role is in force, and that it is not any longer.
    known_ns: u64,
    lost_ns: u64,
}

/// The content of a welcome, or of an answer to an attach.
#[derive(Debug)]
pub struct Begin<'a> {
    pub client: &'a str,
    pub session: &'a str,
    pub echo: bool,
    pub start_seq: u64,
    pub seq: u64,
    pub epoch: &'a str,
    pub rooms: Vec<String>,
    /// The rooms that the client asked for, and when.
    pub asked: Vec<String>,
    pub asked_ns: u64,
    /// The roles of the token it attached with.
    pub roles: Vec<String>,
    /// The log has a record of what it came with.
    pub is_kept: bool,
}

#[derive(Debug)]
struct Person {
    sub: String,
}

#[derive(Debug, Default)]
pub struct Oracle {
    sessions: BTreeMap<String, Log>,
    views: Vec<View>,
    stays: BTreeMap<(String, String), BTreeMap<String, Vec<Stay>>>,
    /// By client, session and room, in the order in which they were sent.
    leaves: BTreeMap<(String, String, String), Vec<Leave>>,
    people: BTreeMap<String, Person>,
    /// By session: purges that were answered, each with the last `seq` that was there when it was asked for, and when that was.
    purged: BTreeMap<String, Vec<(u64, u64)>>,
    /// Places that the disk cannot read: a reader that has only the log may miss them, and is told.
    pub unreadable: BTreeSet<(String, u64)>,
    /// `true` once the process has ended and was started again.
    pub has_restarted: bool,
    pub now_ns: u64,
    pub violations: Vec<String>,
    pub delivered: u64,
    pub acked: u64,
}

/// The addresses an envelope bears.
pub fn addresses(envelope: &Value) -> Vec<String> {
    match &envelope["to"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => many.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => vec!["session".to_owned()],
    }
}

impl Oracle {
    pub fn person(&mut self, client: &str, sub: &str) {
        self.people.insert(client.to_owned(), Person { sub: sub.to_owned() });
    }

    /// A token with these roles went out.
    pub fn roles_asked(&mut self, view: usize, roles: &[String]) {
        let asked_ns = self.now_ns;
        let view = &mut self.views[view];
        view.roles_asked_ns = Some(asked_ns);
        let position = view.position;
        for (role, times) in &mut view.roles {
            if !roles.contains(role) {
                times.iter_mut().for_each(|held| held.must_to = held.must_to.min(position));
            }
        }
        for role in roles {
            let times = view.roles.entry(role.clone()).or_default();
            if !times.iter().any(|held| held.must_to == u64::MAX) {
                times.push(Held {
                    may_from: position + 1,
                    must_from: u64::MAX,
                    must_to: u64::MAX,
                    may_to: u64::MAX,
                    known_ns: u64::MAX,
                    lost_ns: u64::MAX,
                });
            }
        }
    }

    /// These roles were in force at the latest at `seq`.
    pub fn roles_settled(&mut self, view: usize, seq: u64, roles: &[String]) {
        let now_ns = self.now_ns;
        let view = &mut self.views[view];
        view.roles_asked_ns = None;
        for (role, times) in &mut view.roles {
            for held in times.iter_mut().filter(|held| held.may_to == u64::MAX) {
                if held.must_to != u64::MAX || !roles.contains(role) {
                    (held.may_to, held.lost_ns) = (seq, now_ns);
                } else if held.must_from == u64::MAX {
                    (held.must_from, held.known_ns) = (seq + 1, now_ns);
                }
            }
        }
    }

    pub fn wrong(&mut self, what: String) {
        if self.violations.len() < 20 {
            self.violations.push(what);
        }
    }

    pub fn view(&mut self, view: usize) -> &mut View {
        &mut self.views[view]
    }

    pub fn is_caught_up(&self, view: usize) -> bool {
        self.views[view].caught_up
    }

    fn note(&mut self, session: &str, seq: u64, from: &str, id: &str, to: Vec<String>, text: Option<&[u8]>) {
        let log = self.sessions.entry(session.to_owned()).or_default();
        let mut complaint = None;
        if let Some(other) = log.ids.insert((from.to_owned(), id.to_owned()), seq)
            && other != seq
        {
            complaint = Some(format!("{session}: {from}'s {id} stands at {other} and at {seq}"));
        }
        let record =
            log.records.entry(seq).or_insert_with(|| Record { from: from.into(), id: id.into(), to, text: None, acked: false });
        if record.from != from || record.id != id {
            complaint = Some(format!("{session}: seq {seq} is {} of {} and {id} of {from}", record.id, record.from));
        }
        match (&record.text, text) {
            (Some(known), Some(text)) if known != text => {
                complaint = Some(format!("{session}: seq {seq} has different bytes for different receivers"));
            }
            (None, Some(text)) => record.text = Some(text.to_vec()),
            _ => {}
        }
        if let Some(complaint) = complaint {
            self.wrong(complaint);
        }
    }

    /// A message of this client was acknowledged.
    pub fn ack(&mut self, client: &str, session: &str, id: &str, to: &[String], seq: u64) {
        self.acked += 1;
        self.note(session, seq, client, id, to.to_vec(), None);
        let record = self.sessions.get_mut(session).and_then(|log| log.records.get_mut(&seq));
        record.into_iter().for_each(|record| record.acked = true);
    }

    /// A session's purge was answered, which had `last` when it was asked for.
    pub fn purged(&mut self, session: &str, last: u64) {
        let answered_ns = self.now_ns;
        self.purged.entry(session.to_owned()).or_default().push((last, answered_ns));
    }

    /// The texts of messages that are purged, with what each is.
    pub fn purged_texts(&self) -> Vec<(String, &[u8])> {
        let mut texts = Vec::new();
        for (session, purges) in &self.purged {
            let last = purges.iter().map(|(last, _)| *last).max().unwrap_or(0);
            let records = self.sessions.get(session).into_iter().flat_map(|log| log.records.range(..=last));
            texts.extend(records.filter_map(|(seq, record)| Some((format!("{session}: {seq}"), record.text.as_deref()?))));
        }
        texts
    }

    /// The record at a place, as far as it is known.
    pub fn describe(&self, session: &str, seq: u64) -> Option<String> {
        let Record { from, id, to, text, acked } = self.sessions.get(session)?.records.get(&seq)?;
        Some(format!("{id} of {from} to {to:?}, acknowledged {acked}, delivered to somebody {}", text.is_some()))
    }

    /// The sessions that anything is known of.
    pub fn sessions(&self) -> Vec<String> {
        self.sessions.keys().cloned().collect()
    }

    /// The process was started again, and this is what it has of a session.
    pub fn restarted(&mut self, session: &str, survived: Survived) {
        let Survived { first, head, clean, acknowledged, delivered } = survived;
        let Some(log) = self.sessions.get_mut(session) else { return };
        let lost = log.records.split_off(&(head + 1));
        let missed: Vec<u64> = lost
            .iter()
            .filter(|(_, record)| acknowledged && record.acked || delivered && record.text.is_some())
            .map(|(seq, _)| *seq)
            .collect();
        // Ids of what is no longer retained are forgotten with it.
        log.ids.retain(|_, seq| (first..=head).contains(seq));
        log.spoken &= head > 0;
        for past in &mut log.past {
            past.last = past.last.min(head);
        }
        if !clean {
            let (epoch, base) = (std::mem::take(&mut log.epoch), std::mem::replace(&mut log.epoch_base, head));
            if !epoch.is_empty() {
                log.past.push(Past { epoch, last: head, sure: head > base });
            }
        }
        if !missed.is_empty() {
            self.wrong(format!("{session}: the restart lost {missed:?}, behind {head}"));
        }
        for view in self.views.iter_mut().filter(|view| view.session == session) {
            drop(view.delivered.split_off(&(head + 1)));
            (view.position, view.last) = (view.position.min(head), view.last.min(head));
        }
        let views = self.views.len();
        let stays =
            self.stays.iter_mut().filter(|((_, of), _)| of == session).flat_map(|(_, rooms)| rooms.values_mut()).flatten();
        for stay in stays.filter(|stay| stay.kept_by >= head && !(acknowledged && stay.confirmed)) {
            stay.until = stay.until.min(views);
            stay.may_to = u64::MAX;
        }
    }

    /// Where a client must go on that resumes after `seq` of an epoch; `None` where the session may not know the epoch.
    pub fn resumes(&self, session: &str, epoch: &str, seq: u64, told: &str) -> (Option<u64>, bool) {
        if epoch == told {
            return (Some(seq), true);
        }
        let Some(log) = self.sessions.get(session) else { return (None, false) };
        match log.past.iter().rfind(|past| past.epoch == epoch) {
            Some(past) => (Some(seq.min(past.last)), past.sure),
            None => (log.forgotten.iter().any(|name| name == epoch).then_some(0), false),
        }
    }

    /// A client is in a session now.
    pub fn begin(&mut self, begin: &Begin<'_>, head: u64, appended: u64) -> usize {
        // Of what is there when it is first heard of, nothing need be of the epoch that a start began.
        let epoch_base = if self.has_restarted { begin.seq } else { 0 };
        let log = self.sessions.entry(begin.session.to_owned()).or_insert_with(|| Log { epoch_base, ..Log::default() });
        // A session in which nothing was ever said may be forgotten, and begin anew.
        if (!log.spoken || log.epoch.is_empty()) && log.epoch != begin.epoch {
            let forgotten = std::mem::replace(&mut log.epoch, begin.epoch.to_owned());
            if !forgotten.is_empty() {
                log.forgotten.push(forgotten);
            }
        }
        if log.past.iter().any(|past| past.epoch == begin.epoch) {
            let complaint = format!("{}: the epoch {} is over, and goes on", begin.session, begin.epoch);
            self.violations.push(complaint);
        }
        if log.epoch != begin.epoch {
            let complaint = format!("{}: its epoch changed from {} to {}", begin.session, log.epoch, begin.epoch);
            self.wrong(complaint);
        }
        if begin.start_seq > begin.seq + 1 {
            self.wrong(format!("{} in {}: starts at {} of {}", begin.client, begin.session, begin.start_seq, begin.seq));
        }
        self.rooms_told(begin, head, appended);
        self.views.push(View {
            client: begin.client.to_owned(),
            session: begin.session.to_owned(),
            asked_ns: begin.asked_ns,
            echo: begin.echo,
            start: begin.start_seq,
            position: begin.start_seq - 1,
            last: begin.start_seq - 1,
            delivered: BTreeSet::new(),
            gaps: Vec::new(),
            caught_up: false,
            welcome_seq: begin.seq,
            roles: begin
                .roles
                .iter()
                .map(|role| {
                    (
                        role.clone(),
                        vec![Held {
                            may_from: 0,
                            must_from: 0,
                            must_to: u64::MAX,
                            may_to: u64::MAX,
                            known_ns: 0,
                            lost_ns: u64::MAX,
                        }],
                    )
                })
                .collect(),
            roles_asked_ns: None,
        });
        self.views.len() - 1
    }

    /// Returns whether a client must see a record, and whether it may: on a page of history that it asked for at this time, or live.
    fn entitled(&self, view: usize, seq: u64, record: &Record, page_asked_ns: Option<u64>) -> (bool, bool) {
        let View { client, session, echo, .. } = &self.views[view];
        // A page of history holds its own messages as with echo.
        let echo = *echo || page_asked_ns.is_some();
        let Some(person) = self.people.get(client) else { return (false, false) };
        let own = record.from == *client;
        if own && page_asked_ns.is_some() {
            return (true, true);
        }
        let (mut must, mut may) = (false, false);
        for address in &record.to {
            let (kind, name) = address.split_once(':').unwrap_or((address, ""));
            let named = match kind {
                "client" => name == *client,
                _ if own && !echo => false,
                "session" | "channel" => true,
                "user" => name == person.sub,
                _ => false,
            };
            (must, may) = (must || named, may || named);
            if kind == "role" && (!own || echo) {
                for held in self.views[view].roles.get(name).into_iter().flatten() {
                    let (sure, possible) = match page_asked_ns {
                        // A page of history goes by the roles of its moment, between when it is asked for and when it comes.
                        Some(asked_ns) => (held.known_ns <= asked_ns && held.must_to == u64::MAX, asked_ns < held.lost_ns),
                        None => (held.must_from <= seq && seq <= held.must_to, held.may_from <= seq && seq <= held.may_to),
                    };
                    (must, may) = (must || sure, may || possible);
                }
            }
            if kind == "room" && (!own || echo) {
                let stays = self.stays.get(&(client.clone(), session.clone())).and_then(|rooms| rooms.get(name));
                for stay in stays.into_iter().flatten() {
                    must |= (stay.since..stay.until).contains(&view) && stay.must_from <= seq && seq <= stay.must_to;
                    may |= stay.may_from <= seq && seq <= stay.may_to;
                }
            }
        }
        (must, may)
    }

    /// A logged message came live or in the replay.
    pub fn message(&mut self, view: usize, envelope: &Value, text: &[u8]) {
        self.delivered += 1;
        let (client, session, last) = {
            let view = &self.views[view];
            (view.client.clone(), view.session.clone(), view.last)
        };
        let Some(seq) = self.check_text(&session, envelope, text) else { return };
        if seq <= last {
            self.wrong(format!("{client} in {session}: {seq} after {last}"));
        }
        let number = view;
        if let Some(log) = self.sessions.get_mut(&session) {
            log.spoken = true;
        }
        let view = &mut self.views[view];
        view.delivered.insert(seq);
        view.last = view.last.max(seq);
        view.position = view.position.max(seq);
        if !view.caught_up && seq > view.welcome_seq {
            self.wrong(format!("{client} in {session}: {seq} is new, before rw.caught_up"));
        }
        self.check_entitled(number, seq, None);
    }

    fn check_text(&mut self, session: &str, envelope: &Value, text: &[u8]) -> Option<u64> {
        let (seq, from, id) = (envelope["seq"].as_u64(), envelope["from"].as_str(), envelope["id"].as_str());
        let (Some(seq), Some(from), Some(id)) = (seq, from, id) else {
            self.wrong(format!("{session}: a message without seq, from or id: {envelope}"));
            return None;
        };
        if !envelope["ts"].is_u64() || !envelope["traceparent"].is_string() {
            self.wrong(format!("{session}: {seq} has no ts or traceparent"));
        }
        self.note(session, seq, from, id, addresses(envelope), Some(text));
        Some(seq)
    }

    fn check_entitled(&mut self, view: usize, seq: u64, page_asked_ns: Option<u64>) {
        let View { client, session, asked_ns, .. } = &self.views[view];
        let Some(record) = self.sessions.get(session).and_then(|log| log.records.get(&seq)) else { return };
        let is_purged = self
            .purged
            .get(session)
            .is_some_and(|purges| purges.iter().any(|(last, answered_ns)| seq <= *last && asked_ns > answered_ns));
        if is_purged {
            let complaint = format!("{client} in {session}: {seq} came, which was purged before it asked to be attached");
            return self.wrong(complaint);
        }
        let (_, may) = self.entitled(view, seq, record, page_asked_ns);
        if !may {
            let (from, to) = (record.from.clone(), record.to.clone());
            let stays = self.stays.get(&(client.clone(), session.clone())).cloned();
            let (client, session) = (client.clone(), session.clone());
            self.wrong(format!("{client} in {session}: {seq} of {from} to {to:?} was not for it; stays {stays:?}"));
        }
    }

    /// A page of history that was asked for at this time, with its frames.
    pub fn history(&mut self, view: usize, page: &[(Value, Vec<u8>)], oldest: u64, asked_ns: u64) {
        let (client, session) = (self.views[view].client.clone(), self.views[view].session.clone());
        let mut seqs = Vec::new();
        for (envelope, text) in page {
            let Some(seq) = self.check_text(&session, envelope, text) else { continue };
            if seqs.last().is_some_and(|last| *last >= seq) {
                self.wrong(format!("{client} in {session}: history is not in order at {seq}"));
            }
            self.check_entitled(view, seq, Some(asked_ns));
            seqs.push(seq);
        }
        let (Some(first), Some(last)) = (seqs.first().copied(), seqs.last().copied()) else { return };
        let log = &self.sessions[&session];
        // The first messages of the page may have left the retention before its end was sent.
        let missing: Vec<u64> = log
            .records
            .range(first..=last)
            .filter(|(seq, record)| {
                **seq >= oldest && !seqs.contains(seq) && self.entitled(view, **seq, record, Some(asked_ns)).0
            })
            .map(|(seq, _)| *seq)
            .filter(|seq| !self.unreadable.contains(&(session.clone(), *seq)))
            .collect();
        if !missing.is_empty() {
            self.wrong(format!("{client} in {session}: history {seqs:?} lacks {missing:?}"));
        }
    }

    /// An ephemeral message came.
    pub fn passing(&mut self, number: usize, envelope: &Value, head: u64) {
        let view = &self.views[number];
        let record = Record {
            from: envelope["from"].as_str().unwrap_or_default().to_owned(),
            id: String::new(),
            to: addresses(envelope),
            text: None,
            acked: false,
        };
        // The message's place is somewhere up to the head.
        let may = (view.start..=head + 1).any(|seq| self.entitled(number, seq, &record, None).1);
        if !may {
            let complaint = format!("{} in {}: an ephemeral message was not for it: {envelope}", view.client, view.session);
            self.wrong(complaint);
        }
    }

    /// `rw.gap`: retention dropped `from..=to`; the home's oldest is `first`.
    pub fn gap(&mut self, view: usize, from: u64, to: u64, first: u64) {
        let view = &mut self.views[view];
        let told = (view.client.clone(), view.session.clone(), view.last);
        view.gaps.push((from, to));
        view.last = view.last.max(to);
        view.position = view.position.max(to);
        let is_there = (from.max(first)..=to).any(|seq| !self.unreadable.contains(&(told.1.clone(), seq)));
        if from > to || from <= told.2 || is_there {
            self.wrong(format!("{} in {}: a gap {from} to {to} after {}, oldest {first}", told.0, told.1, told.2));
        }
    }

    /// Everything up to `seq` was said to have been delivered.
    pub fn reached(&mut self, view: usize, seq: u64) {
        let view = &mut self.views[view];
        view.position = view.position.max(seq);
    }

    pub fn caught_up(&mut self, view: usize, seq: u64) {
        let view = &mut self.views[view];
        // A gap may reach beyond it.
        let beyond = view.delivered.last().is_some_and(|last| *last > seq);
        let complaint = (view.caught_up || seq != view.welcome_seq || beyond).then(|| {
            format!("{} in {}: caught_up {seq}, welcome {}, last {}", view.client, view.session, view.welcome_seq, view.last)
        });
        view.caught_up = true;
        view.position = view.position.max(seq);
        if let Some(complaint) = complaint {
            self.wrong(complaint);
        }
    }

    pub fn pong(&mut self, view: usize, seq: u64, delivered_seq: u64, acked_max: u64) {
        let view = &mut self.views[view];
        let last = view.delivered.last().copied().unwrap_or(view.start - 1);
        let complaint = (delivered_seq != last || seq < delivered_seq || seq < acked_max).then(|| {
            let who = (&view.client, &view.session);
            format!("{who:?}: pong {seq}, delivered {delivered_seq}; it has {last}, was acked {acked_max}")
        });
        view.position = view.position.max(acked_max).max(delivered_seq);
        if let Some(complaint) = complaint {
            self.wrong(complaint);
        }
    }

    /// A reply in its place in the order: everything up to `seq` came before it, nothing after `seq`.
    pub fn placed(&mut self, view: usize, seq: u64, what: &str) {
        let view = &mut self.views[view];
        let complaint = (view.delivered.last().is_some_and(|last| *last > seq))
            .then(|| format!("{} in {}: {what} at {seq} after {:?}", view.client, view.session, view.delivered.last()));
        view.position = view.position.max(seq);
        complaint.into_iter().for_each(|complaint| self.wrong(complaint));
    }

    /// Judges what is only known at the end: nothing that was to be seen is missing.
    pub fn finish(&mut self) {
        let mut complaints = Vec::new();
        for (number, view) in self.views.iter().enumerate() {
            let Some(log) = self.sessions.get(&view.session) else { continue };
            if view.start > view.position {
                continue;
            }
            for (seq, record) in log.records.range(view.start..=view.position) {
                let excused = view.gaps.iter().any(|(from, to)| from <= seq && seq <= to);
                let (must, _) = self.entitled(number, *seq, record, None);
                if must && !excused && !view.delivered.contains(seq) {
                    let (Record { from, id, to, .. }, View { client, session, delivered, start, position, .. }) = (record, view);
                    let stays = self.stays.get(&(client.clone(), session.clone()));
                    complaints.push(format!(
                        "{client} in {session}: {seq} of {from} ({id}) to {to:?} is missing; it has {delivered:?} from {start} to {position}; stays {stays:?}"
                    ));
                }
            }
        }
        complaints.into_iter().for_each(|complaint| self.wrong(complaint));
    }
}
