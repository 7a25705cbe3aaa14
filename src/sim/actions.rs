//! Actions that clients take on their own with an open connection.

use super::client::{DOUBT_NS, PAST_MAX, Past, ROLES, ROOMS, What};
use super::mallory::MALLORY;
use super::oracle::addresses;
use super::tokens::token;
use super::wire;
use super::world::World;
use serde_json::{Value, json};

/// Returns the text of an envelope; faster than `Value::to_string`.
fn compact(value: &Value) -> String {
    serde_json::to_string(value).unwrap()
}

impl World {
    /// Messages that were not acknowledged before the reconnect are sent again, with the same id.
    pub fn send_again(&mut self, c: usize) {
        for past in std::mem::take(&mut self.clients[c].unacked) {
            if self.random.percent(70) && past.session == self.clients[c].home {
                self.send_past(c, &past);
            }
        }
    }

    pub fn send_past(&mut self, c: usize, past: &Past) {
        let target = match past.to.first().map(|to| to.strip_prefix("channel:")) {
            Some(Some(name)) => format!("channel:{name}"),
            _ => past.session.clone(),
        };
        self.clients[c].unacked.push(past.clone());
        self.send(c, &past.id, &past.session, What::Message { target, to: past.to.clone() }, &past.text);
    }

    /// Brings a new token, now and then with other roles.
    pub fn refresh(&mut self, c: usize) {
        let pending = |what: &What| matches!(what, What::Other("rw.refreshed") | What::Roles(_));
        if self.link(c).sent.iter().any(|sent| !sent.answered && pending(&sent.what)) {
            return;
        }
        let before = self.clients[c].roles.clone();
        let mut what = What::Other("rw.refreshed");
        if !self.settling && self.random.percent(50) {
            let roles: Vec<String> = ROLES.iter().filter(|_| self.random.percent(50)).map(|role| (*role).to_owned()).collect();
            what = What::Roles(before);
            self.change_roles(c, roles);
        }
        let client = &self.clients[c];
        let (home, now_s) = (client.home.clone(), self.now().wall_s());
        let auth_token = token(client, now_s, 600);
        self.command(c, "rw.refresh", &home, json!({"auth_token": auth_token}), what);
        self.ping_all(c);
    }

    /// A client's tokens bear these roles from now on.
    pub fn change_roles(&mut self, c: usize, roles: Vec<String>) {
        let views: Vec<usize> = self.link(c).views.values().copied().collect();
        views.into_iter().for_each(|view| self.oracle.roles_asked(view, &roles));
        self.clients[c].roles = roles;
    }

    fn ping_all(&mut self, c: usize) {
        let link = self.link(c);
        let sessions: Vec<(String, u64)> =
            link.views.keys().map(|session| (session.clone(), link.acked.get(session).copied().unwrap_or(0))).collect();
        for (session, acked_max) in sessions {
            self.command(c, "rw.ping", &session, json!({}), What::Ping { acked_max });
        }
    }

    /// A command, or a message, with a new id.
    pub fn command(&mut self, c: usize, kind: &str, session: &str, payload: Value, what: What) {
        self.clients[c].counter += 1;
        let id = format!("{}.{}", self.clients[c].counter, kind);
        let text = compact(&json!({"type": kind, "id": id, "session_id": session, "payload": payload}));
        self.send(c, &id, session, what, &text);
    }

    pub fn message_to(&mut self, c: usize, session: &str, to: &Value, bytes: usize, ephemeral: bool) {
        self.clients[c].counter += 1;
        let id = format!("m{}", self.clients[c].counter);
        let mut envelope = json!({"type": "chat", "id": id, "session_id": session, "payload": "x".repeat(bytes)});
        if !to.is_null() {
            envelope["to"] = to.clone();
        }
        if ephemeral {
            envelope["ephemeral"] = json!(true);
        }
        let to = addresses(&envelope);
        let past = Past { session: session.to_owned(), id: id.clone(), text: compact(&envelope).into(), to };
        if ephemeral {
            return self.send(c, &id, session, What::Ephemeral, &past.text);
        }
        let client = &mut self.clients[c];
        client.past.push_back(past.clone());
        if client.past.len() > PAST_MAX {
            client.past.pop_front();
        }
        self.send_past(c, &past);
    }

    pub fn random_to(&mut self) -> Value {
        let client = self.random.index(self.clients.len());
        let (id, sub) = (self.clients[client].id.clone(), self.clients[client].sub.clone());
        let (room, role) = (self.random.pick(&ROOMS), self.random.pick(&ROLES));
        match self.random.below(10) {
            0..=3 => Value::Null,
            4 => json!(format!("client:{id}")),
            5 => json!(format!("user:{sub}")),
            6 => json!(format!("room:{room}")),
            7 => json!(format!("role:{role}")),
            8 => json!([format!("room:{room}"), format!("role:{role}"), format!("client:{id}")]),
            _ => json!(["session", format!("room:{room}")]),
        }
    }

    pub fn act(&mut self, c: usize) {
        let pause = self.random.pick(&[1_000_000, 20_000_000, 60_000_000]) * if self.features.crowd { 4 } else { 1 };
        let next_action = self.now_ns + self.random.below(pause);
        self.link(c).next_action = next_action;
        let attached: Vec<String> = self.link(c).views.keys().cloned().collect();
        if attached.is_empty() {
            return;
        }
        let session = if self.features.crowd && self.random.percent(50) { "s.0".to_owned() } else { self.random.pick(&attached) };
        if !attached.contains(&session) {
            return self.attach(c, &session);
        }
        if self.features.odd && self.random.percent(4) {
            return self.act_oddly(c, &session);
        }
        let plain = session.starts_with("s.");
        match self.random.below(100) {
            0..=39 => {
                let burst = self.random.pick(&[1, 1, 1, 8]);
                let bytes =
                    self.random.pick(if self.features.long { &[30, 60_000, 60_000, 60_000] } else { &[3, 30, 300, 3000] });
                let to = if plain { self.random_to() } else { Value::Null };
                for _ in 0..burst {
                    self.message_to(c, &session, &to, bytes, false);
                }
            }
            40..=43 => self.message_to(c, &session, &json!("channel:c.0"), 40, false),
            44..=47 => {
                let to = if plain { self.random_to() } else { Value::Null };
                self.message_to(c, &session, &to, 20, true);
            }
            48..=53 => {
                let count = self.clients[c].past.len();
                if count > 0 {
                    let past = &self.clients[c].past[self.random.index(count)];
                    if attached.contains(&past.session) && past.session.starts_with("s.") {
                        let past = past.clone();
                        self.send_past(c, &past);
                    }
                }
            }
            54..=58 if plain => {
                let room = self.random.pick(&ROOMS);
                self.enter_room(c, &session, room);
            }
            59..=62 if plain => {
                let room = self.random.pick(&ROOMS);
                self.leave_room(c, &session, room);
            }
            63..=68 => {
                let session = self.random.pick(&["s.0", "s.1", "s.2", "channel:c.0"]);
                self.attach(c, session);
            }
            69..=71 if session != self.clients[c].home => {
                self.command(c, "rw.detach", &session, json!({}), What::Other("rw.detached"));
            }
            72..=76 => {
                let limit = self.random.between(1, 50);
                let mut payload = json!({"limit": limit});
                let at = self.random.between(1, self.bounds(&session).1 + 1);
                match self.random.below(3) {
                    0 => payload["before"] = json!(at),
                    1 => payload["after"] = json!(at),
                    _ => {}
                }
                self.command(c, "rw.history", &session, payload, What::Other("rw.history_end"));
            }
            77..=80 => {
                let acked_max = self.link(c).acked.get(&session).copied().unwrap_or(0);
                self.command(c, "rw.ping", &session, json!({}), What::Ping { acked_max });
            }
            81..=83 => {
                let seq = self.clients[c].held.get(&session).copied().unwrap_or(0);
                self.command(c, "rw.received", &session, json!({"seq": seq}), What::Silent);
            }
            84 => self.command(c, "rw.members", &session, json!({"limit": 2}), What::Other("rw.members")),
            85..=86 if plain => {
                self.command(c, "rw.watch", &session, json!({"presence": true}), What::Other("rw.watching"));
            }
            87 => self.set_mood(c, &session),
            88..=89 => self.refresh(c),
            99 => self.command(c, "rw.nonsense", &session, json!({}), What::Bad),
            90 => self.command(c, "chat", "s.nowhere", json!({}), What::Bad),
            91 => self.command(c, "rw.attach", "x.forbidden", json!({}), What::Bad),
            92 => {
                let mut out = Vec::new();
                wire::message(&mut out, 9, b"anybody?", &mut self.random);
                self.link(c).pipe.tx.extend(out);
            }
            93..=94 => {
                self.tell_of(c, || "reads nothing for 400 ms".to_owned());
                self.link(c).stalled_until = self.now_ns + 400_000_000;
            }
            95 | 98 => self.say_the_last(c, &session),
            96 => self.end_link(c, true),
            97 => self.vanish(c),
            _ => {}
        }
    }

    /// Does something odd that the gateway ignores, or refuses and goes on.
    fn act_oddly(&mut self, c: usize, session: &str) {
        if self.random.percent(50) {
            let seq = self.appended(session) + 1_000_000;
            return self.command(c, "rw.received", session, json!({"seq": seq}), What::Silent);
        }
        // Acknowledged on this connection, in a session that it cannot leave: within the window, whatever else happens.
        let (home, acked) = (&self.clients[c].home, &self.clients[c].link.as_ref().expect("a client acts on a link").taken);
        let Some(past) = self.clients[c].past.iter().rev().find(|past| past.session == *home && acked.contains(&past.id)) else {
            return;
        };
        let (id, home) = (past.id.clone(), home.clone());
        let mut envelope: Value = serde_json::from_str(&past.text).unwrap();
        envelope["payload"] = json!("something else");
        self.send(c, &id, &home, What::Reused, &envelope.to_string());
    }

    pub fn enter_room(&mut self, c: usize, session: &str, room: &str) {
        let (me, head) = (self.clients[c].id.clone(), self.bounds(session).1);
        self.oracle.now_ns = self.now_ns;
        self.oracle.joining(&me, session, room, head);
        self.command(c, "rw.join", session, json!({"room": room}), What::Join(room.to_owned()));
    }

    pub fn leave_room(&mut self, c: usize, session: &str, room: &str) {
        let (me, head, number) = (self.clients[c].id.clone(), self.bounds(session).1, self.clients[c].counter + 1);
        self.oracle.now_ns = self.now_ns;
        self.oracle.leaving(&me, session, room, head, number);
        self.command(c, "rw.leave", session, json!({"room": room}), What::Leave(room.to_owned(), number));
    }

    fn set_mood(&mut self, c: usize, session: &str) {
        let mood = self.clients[c].counter;
        self.clients[c].moods.insert(session.to_owned(), (mood, false));
        self.command(c, "rw.presence.set", session, json!({"data": mood}), What::Mood(mood));
    }

    fn vanish(&mut self, c: usize) {
        // Nobody reads, and nobody ends the old connection.
        self.tell_of(c, || "vanishes".to_owned());
        self.leave_in_doubt(c);
        if let Some(gone) = self.clients[c].link.take() {
            self.net.sockets[gone.pipe.socket].to_server.clear();
        }
        self.clients[c].away_until = self.now_ns + DOUBT_NS + self.random.below(100_000_000);
    }

    fn attach(&mut self, c: usize, session: &str) {
        let mut payload = json!({"echo": self.clients[c].echo});
        let (asked, resume) = self.start_keys(c, session, &mut payload);
        self.command(c, "rw.attach", session, payload, What::Attach { asked, resume });
    }

    /// Closes by a close frame, with what was sent before still on its way.
    pub fn leave(&mut self, c: usize) {
        let mut out = Vec::new();
        wire::message(&mut out, 8, &1000_u16.to_be_bytes(), &mut self.random);
        let ends = self.random.percent(50);
        let link = self.link(c);
        link.pipe.tx.extend(out);
        link.pipe.ends = ends;
        self.bid_farewell(c, Some(1000));
    }

    /// Says a few things more, and then its last word: a close frame, the end of its stream, or both.
    fn say_the_last(&mut self, c: usize, session: &str) {
        for _ in 0..self.random.below(4) {
            match self.random.below(4) {
                0 => {
                    let acked_max = self.link(c).acked.get(session).copied().unwrap_or(0);
                    self.command(c, "rw.ping", session, json!({}), What::Ping { acked_max });
                }
                1 => self.message_to(c, session, &json!("channel:c.0"), 40, false),
                2 => self.command(c, "rw.history", session, json!({"limit": 20}), What::Other("rw.history_end")),
                _ => self.message_to(c, session, &Value::Null, 300, false),
            }
        }
        if self.random.percent(60) {
            return self.leave(c);
        }
        self.link(c).pipe.ends = true;
        self.bid_farewell(c, None);
    }

    pub fn act_hostile(&mut self, c: usize) {
        if self.clients[c].id == MALLORY {
            return self.act_mallory(c);
        }
        let next_action = self.now_ns + self.random.below(300_000_000);
        self.link(c).next_action = next_action;
        let mut out = Vec::new();
        match self.random.below(14) {
            0 => out.extend(b"\x81\x05hello"),
            1 => wire::message(&mut out, 1, b"{\"type\":\"\xFF\"}", &mut self.random),
            2 => out.extend([0x81, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4]),
            3 => (0..60).for_each(|_| wire::message(&mut out, 9, b"flood", &mut self.random)),
            4 => wire::message(&mut out, 1, b"{\"type\":", &mut self.random),
            5 => wire::message(&mut out, 1, "[".repeat(3000).as_bytes(), &mut self.random),
            6 => wire::message(&mut out, 2, b"binary", &mut self.random),
            7 => out.extend((0..200).map(|_| self.random.next().to_le_bytes()[0])),
            8 => wire::message(&mut out, 8, &[3], &mut self.random),
            9 => wire::message(
                &mut out,
                1,
                b"{\"type\":\"chat\",\"id\":\"1\",\"session_id\":\"s.0\",\"payload\":1}",
                &mut self.random,
            ),
            10 => out.extend([0x01, 0x80, 0, 0, 0, 0]),
            11 => (0..30).for_each(|_| wire::message(&mut out, 1, b"{}", &mut self.random)),
            12 => return self.end_link(c, true),
            _ => return self.end_link(c, false),
        }
        if self.random.percent(30) && self.link(c).sent.is_empty() {
            self.hello(c);
        }
        self.link(c).pipe.tx.extend(out);
    }
}
