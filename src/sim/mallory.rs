//! A client that knows the protocol, and uses it to be refused: each of its acts is one that a limit, a code or a close answers.

use super::client::Client;
use super::wire;
use super::world::{SECRET, World};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The client's id.
pub const MALLORY: &str = "mallory";

/// The ways in which a token is none.
const FORGERIES: u64 = 13;
const WRONG_ISSUER: u64 = 11;

fn signed(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A token that is refused, in one of many ways.
fn forged(client: &Client, now_s: u64, way: u64) -> String {
    let mut header = json!({"alg": "HS256", "typ": "JWT", "kid": "k"});
    let mut claims = json!({"sub": client.sub, "sid": "s.*", "iat": now_s, "exp": now_s + 60});
    if let Some(issuer) = client.issuer {
        claims["iss"] = json!(issuer);
    }
    let mut secret = SECRET;
    match way {
        0 => claims["exp"] = json!(now_s.saturating_sub(100)),
        1 => claims["nbf"] = json!(now_s + 1_000),
        2 => secret = b"another secret of 32 bytes or so",
        3 => header["kid"] = json!("another"),
        4 => header["alg"] = json!("ES256"),
        5 => claims["aud"] = json!("somebody else"),
        6 => claims["exp"] = Value::Null,
        7 => claims["sid"] = json!("elsewhere"),
        8 => claims["sub"] = json!("somebody"),
        9 => return "no token".to_owned(),
        10 => return "x".repeat(9_000),
        WRONG_ISSUER => claims["iss"] = json!("https://id.example.evil"),
        _ => return String::new(),
    }
    signed(&header, &claims, secret)
}

impl World {
    fn say_text(&mut self, out: &mut Vec<u8>, text: &Value) {
        wire::message(out, 1, text.to_string().as_bytes(), &mut self.random);
    }

    /// A command or a message, in `s.0` unless it says another session.
    fn put(&mut self, c: usize, out: &mut Vec<u8>, kind: &str, payload: &Value, more: &Value) {
        self.clients[c].counter += 1;
        let mut text =
            json!({"type": kind, "id": format!("x{}", self.clients[c].counter), "session_id": "s.0", "payload": payload});
        more.as_object().into_iter().flatten().for_each(|(key, value)| text[key] = value.clone());
        self.say_text(out, &text);
    }

    pub fn act_mallory(&mut self, c: usize) {
        let next_action = self.now_ns + self.random.below(100_000_000);
        self.link(c).next_action = next_action;
        if self.link(c).sent.is_empty() && self.random.percent(70) {
            return self.hello(c);
        }
        let (mut out, now_s, none) = (Vec::new(), self.now().wall_s(), json!({}));
        match self.random.below(24) {
            0 => {
                let pieces = self.snapshot.settings.limits.max_fragments + 8;
                for piece in 0..pieces {
                    let head = u8::from(piece == 0);
                    out.extend([head, 0x81, 0, 0, 0, 0, b'[']);
                }
            }
            1..=3 => {
                let is_issued = self.features.issuer && self.random.percent(30);
                let way = if is_issued { WRONG_ISSUER } else { self.random.below(FORGERIES) };
                let token = forged(&self.clients[c], now_s, way);
                let kind = if self.random.percent(50) { "rw.hello" } else { "rw.refresh" };
                let id = self.clients[c].id.clone();
                self.put(c, &mut out, kind, &json!({"client_id": id, "auth_token": token}), &none);
            }
            4 => self.put(c, &mut out, "chat", &json!(1), &json!({"to": "intent:nobody"})),
            5 => self.put(c, &mut out, "chat", &json!(1), &json!({"to": "client:nobody"})),
            6 => (0..2).for_each(|time| self.put(c, &mut out, "chat", &json!(self.now_ns + time), &json!({"id": "the same"}))),
            7 => self.put(c, &mut out, "rw.attach", &json!({"create": false}), &json!({"session_id": "s.unknown"})),
            8 => self.put(c, &mut out, "rw.attach", &none, &none),
            9 => self.put(c, &mut out, "rw.presence.set", &json!({"data": "x".repeat(2_000)}), &none),
            // Compressed, and nothing that inflates.
            10 => out.extend([0xC1, 0x84, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF]),
            11 => (0..20).for_each(|_| self.put(c, &mut out, "rw.history", &json!({"limit": 1_000}), &none)),
            12 => {
                (0..500).for_each(|_| self.put(c, &mut out, "rw.members", &none, &none));
                self.link(c).stalled_until = u64::MAX;
            }
            13 => (0..400).for_each(|_| self.put(c, &mut out, "rw.nonsense", &none, &none)),
            14 => (0..6).for_each(|room| self.put(c, &mut out, "rw.join", &json!({"room": format!("of.{room}")}), &none)),
            15 => (0..4).for_each(|room| {
                self.put(c, &mut out, "rw.watch", &json!({"presence": true, "room": format!("of.{room}")}), &none);
            }),
            16 => (0..4).for_each(|session| {
                self.put(c, &mut out, "rw.attach", &none, &json!({"session_id": format!("s.of.{session}")}));
            }),
            17 => {
                let head = self.random.pick(&[&b"\x81\xFE\xFF\xFF"[..], &b"\x01\x81"[..], &b"\x09\xFE"[..]]);
                out.extend(head);
            }
            18 => {
                let text = "x".repeat(70_000);
                self.put(c, &mut out, "chat", &json!(text), &none);
            }
            19 => (0..3).for_each(|channel| {
                self.put(c, &mut out, "chat", &json!(1), &json!({"to": format!("channel:c.of.{channel}")}));
            }),
            20 => (0..10).for_each(|_| self.put(c, &mut out, "chat", &json!("x".repeat(5_000)), &none)),
            21 => (0..40).for_each(|value| self.put(c, &mut out, "rw.presence.set", &json!({"data": value}), &none)),
            22 => (0..40).for_each(|_| {
                ["rw.join", "rw.leave"].iter().for_each(|kind| self.put(c, &mut out, kind, &json!({"room": "of.churn"}), &none));
            }),
            _ => return self.end_link(c, self.random.clone().percent(50)),
        }
        self.link(c).pipe.tx.extend(out);
    }
}
