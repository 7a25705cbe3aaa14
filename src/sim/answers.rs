//! The clients' reading: answers are matched with requests, and the oracle is told.

use super::client::{Phase, Sabotage, What};
use super::oracle::Begin;
use super::world::{REVOKED_WITHIN_S, World};
use crate::config::Limits;
use serde_json::{Value, json};

impl World {
    pub fn on_text(&mut self, c: usize, envelope: &Value, text: &[u8]) {
        if self.clients[c].hostile {
            // Nothing that mallory is told is judged.
            if let Some(code) = envelope["payload"]["code"].as_str() {
                *self.clients[c].answers.entry(code.to_owned()).or_default() += 1;
            }
            return;
        }
        self.tell_read(c, envelope);
        let kind = envelope["type"].as_str().unwrap_or_default().to_owned();
        let session = envelope["session_id"].as_str().unwrap_or_default().to_owned();
        if !kind.starts_with("rw.") {
            return self.on_message(c, &session, envelope, text);
        }
        *self.clients[c].answers.entry(kind.clone()).or_default() += 1;
        let payload = &envelope["payload"];
        match kind.as_str() {
            "rw.caught_up" | "rw.gap" | "rw.presence" | "rw.history_begin" | "rw.history_end" => {
                self.on_event(c, &kind, &session, envelope);
            }
            "rw.auth.expiring" if (self.settling || self.random.percent(80)) && self.link(c).farewell.is_none() => {
                self.refresh(c);
            }
            "rw.auth.expiring" => {}
            "rw.goaway" => {
                self.link(c).told_to_go = true;
                if !self.draining {
                    self.oracle.wrong(format!("{} was told to go", self.clients[c].id));
                }
            }
            "rw.error" if envelope["id"] == "" => self.on_answer(c, &kind, &session, envelope),
            _ if envelope["id"].as_str().is_some_and(|id| id.starts_with("rw-")) => {}
            _ => self.on_answer(c, &kind, &session, envelope),
        }
        if kind == "rw.welcome" {
            let link = self.link(c);
            let socket = link.pipe.socket;
            link.phase = if link.phase == Phase::Closing { Phase::Closing } else { Phase::Open };
            if payload["client_id"] != json!(self.clients[c].id) {
                self.oracle.wrong(format!("a welcome for {}", payload["client_id"]));
            }
            self.net.sockets[socket].welcomed = true;
            let (token, issued_s) = self.link(c).token.clone();
            if self.revoked.get(&token).is_some_and(|revoked_s| *revoked_s + REVOKED_WITHIN_S < issued_s) {
                self.oracle.wrong(format!("{} was welcomed with a revoked token", self.clients[c].id));
            }
            self.send_again(c);
        }
    }

    pub fn begin(
        &mut self,
        c: usize,
        session: &str,
        payload: &Value,
        asked: (Vec<String>, u64, Vec<String>),
        resume: Option<(String, u64)>,
    ) {
        let names = |key: &str| -> Vec<String> {
            payload[key].as_array().into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        };
        let (epoch, start_seq) = (payload["epoch"].as_str().unwrap_or_default(), payload["start_seq"].as_u64().unwrap_or(0));
        let client = &self.clients[c];
        let (id, echo) = (client.id.clone(), client.echo);
        let seq = payload["seq"].as_u64().unwrap_or(0);
        if let Some((of, held)) = resume {
            let (cursor, sure) = self.oracle.resumes(session, &of, held, epoch);
            let told = (start_seq.wrapping_sub(1), payload["rewound_to"].as_u64());
            let known = cursor.is_some_and(|cursor| told == (cursor, (cursor < held).then_some(cursor)));
            // A session that does not know the epoch begins at the beginning.
            let unknown = !sure && told == (0, (held > 0).then_some(0)) && payload["recovered"] == Value::Bool(false);
            let change = match (known, cursor.is_some_and(|cursor| cursor < held)) {
                (true, true) => "rewound",
                (true, false) if of == epoch => "resumed_in_it",
                (true, false) => "resumed_over_a_start",
                (false, _) => "not_known_any_more",
            };
            self.cover.add("epoch", change, 1);
            if !known && !unknown {
                self.oracle
                    .wrong(format!("{id} resumes after {held} of {of}, from {cursor:?} (sure {sure}), and is told {payload}"));
            }
        }
        if payload["recovered"] == Value::Bool(true) {
            *self.clients[c].answers.entry("recovered".to_owned()).or_default() += 1;
        }
        let begin = Begin {
            client: &id,
            session,
            echo,
            start_seq,
            seq,
            epoch,
            rooms: names("rooms"),
            asked: asked.0,
            asked_ns: asked.1,
            roles: asked.2,
            is_kept: !self.seats[self.home(session)].core.owes_member(session, &id),
        };
        let head = self.bounds(session).1;
        let appended = self.appended(session);
        let view = self.oracle.begin(&begin, head, appended);
        self.clients[c].been_in.insert(session.to_owned(), true);
        // A token that went out after the attach.
        let roles = self.clients[c].roles.clone();
        let changed = self.link(c).sent.iter().any(|sent| matches!(sent.what, What::Roles(_)) && sent.sent_ns >= begin.asked_ns);
        if changed {
            self.oracle.roles_asked(view, &roles);
        } else if names("roles") != roles {
            self.oracle.wrong(format!("{id} has the roles {roles:?} and was told {payload}"));
        }
        self.clients[c].epochs.insert(session.to_owned(), epoch.to_owned());
        self.clients[c].held.insert(session.to_owned(), start_seq - 1);
        if self.link(c).views.insert(session.to_owned(), view).is_some() {
            self.oracle.wrong(format!("{id} is attached to {session} twice"));
        }
    }

    pub fn view(&mut self, c: usize, session: &str, what: &str) -> Option<usize> {
        let view = self.link(c).views.get(session).copied();
        if view.is_none() {
            self.oracle.wrong(format!("{}: {what} of {session}, where it is not attached", self.clients[c].id));
        }
        view
    }

    pub fn hold(&mut self, c: usize, session: &str, view: usize) {
        let position = self.oracle.view(view).position;
        self.clients[c].held.insert(session.to_owned(), position);
    }

    pub fn on_message(&mut self, c: usize, session: &str, envelope: &Value, text: &[u8]) {
        let Some(view) = self.view(c, session, "a message") else { return };
        if let Some((count, page)) = self.link(c).pages.get_mut(session) {
            page.push((envelope.clone(), text.to_vec()));
            if page.len() as u64 > *count || !envelope["seq"].is_u64() {
                self.oracle.wrong(format!("{}: something live within a page of history", self.clients[c].id));
            }
            return;
        }
        if !envelope["seq"].is_u64() {
            let head = self.bounds(session).1;
            return self.oracle.passing(view, envelope, head);
        }
        let number = self.oracle.delivered;
        match self.sabotage {
            Some(Sabotage::Drop(at)) if at == number => {
                self.oracle.delivered += 1;
                return;
            }
            Some(Sabotage::Repeat(at)) if at == number => self.oracle.message(view, envelope, text),
            Some(Sabotage::Change(at)) if at == number => {
                self.oracle.message(view, envelope, text);
                let mut text = text.to_vec();
                text.push(b' ');
                self.oracle.message(view, envelope, &text);
            }
            _ => {}
        }
        self.oracle.message(view, envelope, text);
        self.hold(c, session, view);
    }

    pub fn on_event(&mut self, c: usize, kind: &str, session: &str, envelope: &Value) {
        let payload = &envelope["payload"];
        let number = |key: &str| payload[key].as_u64().unwrap_or(u64::MAX);
        let Some(view) = self.view(c, session, kind) else { return };
        match kind {
            "rw.caught_up" => self.oracle.caught_up(view, number("seq")),
            "rw.gap" => {
                let first = self.bounds(session).0;
                self.oracle.gap(view, number("from"), number("to"), first);
            }
            "rw.history_begin" => {
                let before = self.link(c).pages.insert(session.to_owned(), (number("count"), Vec::new()));
                before.into_iter().for_each(|_| self.oracle.wrong("two pages of history at once".to_owned()));
            }
            "rw.history_end" => {
                match self.link(c).pages.remove(session) {
                    Some((count, page)) => {
                        if page.len() as u64 != count {
                            self.oracle.wrong(format!("a page of {count} has {}", page.len()));
                        }
                        let id = envelope["id"].as_str().unwrap_or_default();
                        let asked = self.link(c).sent.iter().find(|sent| sent.id == id && !sent.answered);
                        // An answer to nothing is objected to below.
                        let asked_ns = asked.map_or(0, |sent| sent.sent_ns);
                        self.oracle.history(view, &page, number("oldest_seq"), asked_ns);
                        let seqs = page.iter().filter_map(|(envelope, _)| envelope["seq"].as_u64()).collect();
                        self.clients[c].pages.push((seqs, payload.clone()));
                    }
                    None => self.oracle.wrong("rw.history_end without a begin".to_owned()),
                }
                self.on_answer(c, kind, session, envelope);
            }
            "rw.presence" => self.clients[c].told.push(payload.clone()),
            _ => {}
        }
        self.hold(c, session, view);
    }

    pub fn on_answer(&mut self, c: usize, kind: &str, session: &str, envelope: &Value) {
        let (id, payload) = (envelope["id"].as_str().unwrap_or_default(), &envelope["payload"]);
        let frame = payload["details"]["frame"].as_u64().filter(|_| kind == "rw.error");
        let link = self.clients[c].link.as_mut().expect("an answer comes on a link");
        let by_number = frame.and_then(|frame| usize::try_from(frame).ok()).filter(|frame| *frame > 0);
        let found = match by_number {
            Some(number) => link.sent.get(number - 1).filter(|sent| id.is_empty() || sent.id == id).map(|_| number - 1),
            None => link.sent.iter().position(|sent| sent.id == id && !sent.answered),
        };
        let Some(at) = found.filter(|at| !link.sent[*at].answered) else {
            let complaint = format!("{}: an answer to nothing: {envelope}", self.clients[c].id);
            return self.oracle.wrong(complaint);
        };
        let sent = &mut link.sent[at];
        sent.answered = true;
        let (what, asked_of, sent_ns, roles) = (sent.what.clone(), sent.session.clone(), sent.sent_ns, sent.roles.clone());
        if kind == "rw.error" {
            return self.on_error(c, &what, envelope);
        }
        let me = self.clients[c].id.clone();
        let fits = match &what {
            What::Message { .. } => kind == "rw.ack",
            What::Join(_) => kind == "rw.joined",
            What::Leave(..) => kind == "rw.left",
            What::Ping { .. } => kind == "rw.pong",
            What::Attach { .. } => kind == "rw.attached",
            What::Other(expected) => kind == *expected,
            What::Roles(_) => kind == "rw.refreshed",
            What::Mood(_) => kind == "rw.presence.ok",
            What::Roster(_) => kind == "rw.members",
            What::Ephemeral | What::Silent | What::Bad | What::Reused => false,
        };
        if !fits || session != asked_of {
            return self.oracle.wrong(format!("{me}: {what:?} was answered with {envelope}"));
        }
        let seq = payload["seq"].as_u64().unwrap_or(0);
        match what {
            What::Message { target, to } => {
                let link = self.link(c);
                let acked = link.acked.entry(target.clone()).or_default();
                *acked = (*acked).max(seq);
                link.taken.insert(id.to_owned());
                self.clients[c].unacked.retain(|past| past.id != id);
                self.oracle.ack(&me, &target, id, &to, seq);
            }
            What::Join(room) => {
                let appended = self.appended(session);
                self.oracle.joined(&me, session, &room, sent_ns, (seq, appended));
            }
            What::Leave(room, number) => {
                let heads = (self.bounds(session).1, self.appended(session));
                self.oracle.left(&me, session, &room, heads, number);
            }
            What::Ping { acked_max } => {
                if let Some(view) = self.view(c, session, kind) {
                    self.oracle.pong(view, seq, payload["delivered_seq"].as_u64().unwrap_or(0), acked_max);
                    if self.oracle.view(view).roles_asked_ns.is_some_and(|asked_ns| asked_ns < sent_ns) {
                        let roles = self.clients[c].roles.clone();
                        self.oracle.roles_settled(view, seq, &roles);
                    }
                    self.hold(c, session, view);
                }
            }
            What::Attach { asked, resume } => self.begin(c, session, payload, (asked, sent_ns, roles), resume),
            What::Other("rw.welcome") => {
                let (asked, resume) = (self.link(c).hello_rooms.clone(), self.link(c).hello_resume.clone());
                self.begin(c, session, payload, (asked, sent_ns, roles), resume);
            }
            What::Mood(mood) => {
                let stays = self.mood_stays(c, session, mood);
                let told = self.clients[c].moods.get_mut(session).filter(|(last, _)| *last == mood && stays);
                told.into_iter().for_each(|(_, heard)| *heard = true);
            }
            What::Roster(room) => self.on_roster(c, session, room, payload),
            What::Other("rw.detached") => {
                self.link(c).views.remove(session);
            }
            What::Other("rw.watching") => {
                if let Some(view) = self.view(c, session, kind) {
                    self.oracle.placed(view, seq, kind);
                    self.hold(c, session, view);
                }
            }
            _ => {}
        }
    }

    /// Returns `true` if a small limit of this world may refuse this with this code: it adds a room, a member or a session.
    fn is_bounded(&self, what: &What, code: &str) -> bool {
        let (limits, usual) = (&self.drawn.limits, Limits::default());
        match (code, what) {
            ("limit.rooms", What::Join(_) | What::Attach { .. } | What::Other("rw.watching")) => {
                limits.rooms_per_client < usual.rooms_per_client
            }
            ("limit.members", What::Attach { .. }) => limits.members_per_session < usual.members_per_session,
            ("limit.sessions", What::Attach { .. } | What::Message { .. } | What::Ephemeral | What::Reused) => {
                limits.sessions_per_shard < usual.sessions_per_shard || limits.sessions_per_user < usual.sessions_per_user
            }
            _ => false,
        }
    }

    /// Returns `true` if a client's user may have had as many connections as it may have.
    fn user_is_full(&mut self, c: usize) -> bool {
        let (socket, sub) = (self.link(c).pipe.socket, self.clients[c].sub.clone());
        let per_user = self.caps.per_user;
        per_user > 0 && self.net.others(socket, |other| other.user == sub) >= per_user
    }

    pub fn on_error(&mut self, c: usize, what: &What, envelope: &Value) {
        if let What::Leave(room, number) = what {
            let session = envelope["session_id"].as_str().unwrap_or_default().to_owned();
            let me = self.clients[c].id.clone();
            self.oracle.stays_after_all(&me, &session, room, *number);
        }
        let code = envelope["payload"]["code"].as_str().unwrap_or_default();
        *self.clients[c].answers.entry(code.to_owned()).or_default() += 1;
        self.clients[c].refusals.push(envelope["payload"].clone());
        if let What::Roster(room) = what {
            let session = envelope["session_id"].as_str().unwrap_or_default().to_owned();
            self.rosters.remove(&(c, session, room.clone()));
        }
        if let What::Roles(before) = what {
            // The old token stays in force, also for what was asked behind the new one.
            let sent = &mut self.link(c).sent;
            let refused = sent.iter().rposition(|sent| matches!(sent.what, What::Roles(_))).unwrap_or(sent.len());
            sent[refused..].iter_mut().for_each(|sent| sent.roles.clone_from(before));
            self.change_roles(c, before.clone());
        }
        let revoked = code == "auth.revoked" && matches!(what, What::Other("rw.welcome" | "rw.refreshed") | What::Roles(_));
        if revoked && self.is_revoked(c) {
            self.clients[c].token_number += 1;
            return;
        }
        let fits = code == "limit.rate"
            || self.is_bounded(what, code)
            || match what {
                What::Bad => true,
                What::Reused => matches!(code, "envelope.id_reused" | "limit.backpressure" | "limit.disk"),
                What::Message { .. } | What::Ephemeral => {
                    matches!(
                        code,
                        "limit.backpressure"
                            | "limit.rate"
                            | "limit.disk"
                            | "route.no_such_member"
                            | "session.not_attached"
                            | "limit.sessions"
                    )
                }
                What::Other("rw.history_end") => {
                    matches!(code, "limit.history_busy" | "limit.backpressure" | "session.not_attached")
                }
                What::Join(_) | What::Leave(..) | What::Mood(_) => {
                    matches!(code, "limit.backpressure" | "limit.disk" | "session.not_attached")
                }
                What::Other("rw.welcome") if code == "limit.connections" => self.user_is_full(c),
                What::Other("rw.welcome") => code.starts_with("limit."),
                _ => matches!(
                    code,
                    "limit.disk"
                        | "limit.backpressure"
                        | "limit.rate"
                        | "session.not_attached"
                        | "session.already_attached"
                        | "limit.attached"
                ),
            };
        if !fits {
            let complaint = format!("{}: {what:?} was refused: {envelope}", self.clients[c].id);
            self.oracle.wrong(complaint);
        }
    }
}
