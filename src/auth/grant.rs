//! The rights that a verified token gives.

use super::AuthError;
use crate::ids::is_own_session;
use crate::limits::{CLIENT_TAIL_BYTES_MAX, NAME_BYTES_MAX, SUBJECT_BYTES_MAX};
use std::fmt;

/// Divides the names inside [`Grant`]'s text; no name may hold it.
const DIVIDER: char = '\n';

/// The rights that a verified token gives. One heap allocation, because every connection and member holds one: the text of all
/// fields is one string, in the order of the fields below, each ending where the next begins.
#[derive(Clone, PartialEq, Eq)]
pub struct Grant {
    text: Box<str>,
    subject_end: u16,
    sessions_end: u16,
    roles_end: u16,
    scope_end: u16,
    methods_end: u16,
    expires_at_s: u64,
    issued_at_s: Option<u64>,
    auth_time_s: Option<u64>,
}

// The budget of an idle connection is 2 KiB for everything.
const _: () = assert!(size_of::<Grant>() <= 80);

/// The parts of a [`Grant`], as [`Grant::new`] takes them.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrantParts<'a> {
    /// The user, see [`subject_allowed`].
    pub subject: &'a str,
    /// Session ids, or prefixes of them before a `*`.
    pub sessions: &'a [&'a str],
    /// Role names.
    pub roles: &'a [&'a str],
    /// Scope tokens, divided by spaces (RFC 8693 4.2).
    pub scope: &'a str,
    /// How the user proved who they are (RFC 8176).
    pub methods: &'a [&'a str],
    /// The token's id.
    pub token_id: Option<&'a str>,
    /// Unix seconds at which the grant ends.
    pub expires_at_s: u64,
    /// Unix seconds at which the token was issued.
    pub issued_at_s: Option<u64>,
    /// Unix seconds at which the user proved who they are (OpenID Connect Core 2).
    pub auth_time_s: Option<u64>,
}

impl Grant {
    /// Packs the parts.
    ///
    /// # Errors
    /// [`AuthError::Claims`] if a part is out of bounds. [`super::KeySet::verify`] has checked them; a grant made by hand, as for
    /// the anonymous users of a development server, must obey the same rules.
    pub fn new(parts: &GrantParts<'_>) -> Result<Self, AuthError> {
        super::claims::check_parts(parts)?;
        let mut text = String::with_capacity(
            parts.subject.len()
                + parts.sessions.iter().chain(parts.roles).chain(parts.methods).map(|name| name.len() + 1).sum::<usize>()
                + parts.scope.len()
                + parts.token_id.map_or(0, str::len),
        );
        let place = |text: &String| u16::try_from(text.len()).map_err(|_| too_large());
        text.push_str(parts.subject);
        let subject_end = place(&text)?;
        push_names(&mut text, parts.sessions);
        let sessions_end = place(&text)?;
        push_names(&mut text, parts.roles);
        let roles_end = place(&text)?;
        text.push_str(parts.scope);
        let scope_end = place(&text)?;
        push_names(&mut text, parts.methods);
        let methods_end = place(&text)?;
        text.push_str(parts.token_id.unwrap_or_default());
        Ok(Self {
            text: text.into_boxed_str(),
            subject_end,
            sessions_end,
            roles_end,
            scope_end,
            methods_end,
            expires_at_s: parts.expires_at_s,
            issued_at_s: parts.issued_at_s,
            auth_time_s: parts.auth_time_s,
        })
    }

    /// The user.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.part(0, self.subject_end)
    }

    /// The session patterns, as the token has them.
    pub fn sessions(&self) -> impl Iterator<Item = &str> {
        names(self.part(self.subject_end, self.sessions_end))
    }

    /// The roles.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        names(self.part(self.sessions_end, self.roles_end))
    }

    /// The scope tokens.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.part(self.roles_end, self.scope_end).split(' ').filter(|scope| !scope.is_empty())
    }

    /// How the user proved who they are.
    pub fn methods(&self) -> impl Iterator<Item = &str> {
        names(self.part(self.scope_end, self.methods_end))
    }

    /// The token's id, `jti`.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        let id = &self.text[usize::from(self.methods_end)..];
        (!id.is_empty()).then_some(id)
    }

    /// Unix seconds at which the grant ends, `exp` rounded down. The leeway is not in it.
    #[must_use]
    pub const fn expires_at_s(&self) -> u64 {
        self.expires_at_s
    }

    /// Unix seconds at which the token was issued, `iat`.
    #[must_use]
    pub const fn issued_at_s(&self) -> Option<u64> {
        self.issued_at_s
    }

    /// Unix seconds at which the user proved who they are, `auth_time`.
    #[must_use]
    pub const fn auth_time_s(&self) -> Option<u64> {
        self.auth_time_s
    }

    /// Returns `true` if the grant holds the role.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles().any(|held| held == role)
    }

    /// Returns `true` if the grant covers the session: by its exact id, or a pattern `prefix*`. A bare `*` covers all sessions
    /// but the gateway's own, which nothing covers.
    #[must_use]
    pub fn covers(&self, session_id: &str) -> bool {
        if is_own_session(session_id) {
            return false;
        }
        self.sessions().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => session_id.starts_with(prefix),
            None => session_id == pattern,
        })
    }

    /// [`Grant::covers`] as a refusal.
    ///
    /// # Errors
    /// [`AuthError::ForbiddenSession`].
    pub fn require_session(&self, session_id: &str) -> Result<(), AuthError> {
        if self.covers(session_id) { Ok(()) } else { Err(AuthError::ForbiddenSession) }
    }

    /// Bytes on the heap.
    #[must_use]
    pub const fn heap_bytes(&self) -> usize {
        self.text.len()
    }

    fn part(&self, from: u16, to: u16) -> &str {
        &self.text[usize::from(from)..usize::from(to)]
    }
}

/// Names a user, no secret; the token's id stays out, as it names a token that may still be good.
impl fmt::Debug for Grant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Grant")
            .field("subject", &self.subject())
            .field("sessions", &self.sessions().collect::<Vec<_>>())
            .field("roles", &self.roles().collect::<Vec<_>>())
            .field("expires_at_s", &self.expires_at_s)
            .finish_non_exhaustive()
    }
}

fn too_large() -> AuthError {
    AuthError::Claims { claim: "sid", problem: "all names together must stay below 64 KiB" }
}

fn push_names(text: &mut String, names: &[&str]) {
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            text.push(DIVIDER);
        }
        text.push_str(name);
    }
}

fn names(part: &str) -> impl Iterator<Item = &str> {
    part.split(DIVIDER).filter(|name| !name.is_empty())
}

/// Checks a user's name: 1 to 128 printable ASCII characters but space, `"`, `\` and `/`, and not `rw`. The four would need
/// escapes in an envelope's `from`, or hide where a `client_id`'s tail begins; `rw` is the gateway itself.
///
/// # Errors
/// [`AuthError::Claims`] on `sub`.
pub fn subject_allowed(subject: &str) -> Result<(), AuthError> {
    let refused = |problem| Err(AuthError::Claims { claim: "sub", problem });
    if subject == "rw" {
        return refused("`rw` is the gateway's own name");
    }
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'/');
    if subject.is_empty() || subject.len() > SUBJECT_BYTES_MAX || !subject.bytes().all(plain) {
        return refused("it must be 1 to 128 printable ASCII characters without space, quote, backslash and slash");
    }
    Ok(())
}

/// Checks that `client_id` is the user, or the user with a tail (protocol.md section 4).
///
/// # Errors
/// [`AuthError::ClientId`].
pub fn client_id_allowed(client_id: &str, subject: &str) -> Result<(), AuthError> {
    let Some(rest) = client_id.strip_prefix(subject) else { return Err(AuthError::ClientId) };
    if rest.is_empty() && !subject.is_empty() {
        return Ok(());
    }
    let tail = rest.strip_prefix('/').unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if tail.is_empty() || tail.len() > CLIENT_TAIL_BYTES_MAX || !tail.bytes().all(plain) || subject.is_empty() {
        return Err(AuthError::ClientId);
    }
    Ok(())
}

/// Returns `true` for 1 to 128 of `[A-Za-z0-9_.:-]`: names of sessions, rooms and roles (protocol.md section 2).
pub(crate) fn is_name(name: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_name_byte)
}

/// A name, or at most 127 bytes of one before a `*`.
pub(super) fn is_pattern(pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => pattern.len() <= NAME_BYTES_MAX && prefix.bytes().all(is_name_byte),
        None => is_name(pattern),
    }
}

const fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b':' | b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts<'a>() -> GrantParts<'a> {
        GrantParts {
            subject: "ana@example.org",
            sessions: &["s-42", "team-7.*", "channel:news.*"],
            roles: &["agent", "ops"],
            scope: "read write",
            methods: &["pwd", "otp"],
            token_id: Some("t-1"),
            expires_at_s: 900,
            issued_at_s: Some(100),
            auth_time_s: None,
        }
    }

    #[test]
    fn parts_come_back_as_they_went_in() {
        let grant = Grant::new(&parts()).unwrap();
        assert_eq!(grant.subject(), "ana@example.org");
        assert_eq!(grant.sessions().collect::<Vec<_>>(), ["s-42", "team-7.*", "channel:news.*"]);
        assert_eq!(grant.roles().collect::<Vec<_>>(), ["agent", "ops"]);
        assert_eq!(grant.scopes().collect::<Vec<_>>(), ["read", "write"]);
        assert_eq!(grant.methods().collect::<Vec<_>>(), ["pwd", "otp"]);
        assert_eq!(grant.token_id(), Some("t-1"));
        assert_eq!((grant.expires_at_s(), grant.issued_at_s(), grant.auth_time_s()), (900, Some(100), None));
        assert!(grant.has_role("ops") && !grant.has_role("op") && !grant.has_role(""));
        assert_eq!(grant.heap_bytes(), grant.text.len());
    }

    #[test]
    fn absent_parts_are_empty() {
        let grant = Grant::new(&GrantParts { subject: "a", sessions: &["s"], ..GrantParts::default() }).unwrap();
        assert_eq!(grant.roles().count() + grant.scopes().count() + grant.methods().count(), 0);
        assert_eq!(grant.token_id(), None);
    }

    #[test]
    fn patterns_cover_exact_ids_and_prefixes() {
        let grant = Grant::new(&parts()).unwrap();
        for covered in ["s-42", "team-7.", "team-7.x", "channel:news.sport"] {
            assert!(grant.covers(covered), "{covered}");
            assert_eq!(grant.require_session(covered), Ok(()));
        }
        for not in ["s-4", "s-421", "S-42", "team-7", "team-70.x", "channel:news", "", "x\ns-42"] {
            assert!(!grant.covers(not), "{not}");
            assert_eq!(grant.require_session(not), Err(AuthError::ForbiddenSession));
        }
        let all = Grant::new(&GrantParts { sessions: &["*"], ..parts() }).unwrap();
        assert!(all.covers("anything") && all.covers("channel:any"));
    }

    #[test]
    fn nothing_covers_what_is_the_gateways_own() {
        let own = ["rw.", "rw.audit", "channel:rw.audit", "channel:rw."];
        let patterns = ["*", "rw.*", "rw*", "r*", "channel:*", "channel:rw.*", "rw.audit", "channel:rw.audit"];
        let grant = Grant::new(&GrantParts { sessions: &patterns, ..parts() }).unwrap();
        for session_id in own {
            assert_eq!(grant.require_session(session_id), Err(AuthError::ForbiddenSession), "{session_id}");
        }
        for session_id in ["rw", "rwx", "rw:x", "xrw.audit", "RW.audit", "channel:rw", "channel:x.rw.audit"] {
            assert!(grant.covers(session_id), "{session_id}");
        }
    }

    #[test]
    fn patterns_have_their_star_at_the_end_only() {
        let long = "a".repeat(128);
        for good in ["a", "*", "a*", "channel:x.*", long.as_str()] {
            assert!(is_pattern(good), "{good}");
        }
        let too_long = "a".repeat(129);
        let starred = format!("{long}*");
        for bad in ["", "**", "*a", "a*b", "a b", "a\n", "ä", "a/b", too_long.as_str(), starred.as_str()] {
            assert!(!is_pattern(bad), "{bad}");
        }
    }

    #[test]
    fn subjects() {
        let long = "a".repeat(128);
        for good in ["a", "ana@example.org", "auth0|12", "RW", "rw2", "*", long.as_str()] {
            assert_eq!(subject_allowed(good), Ok(()), "{good}");
        }
        let too_long = "a".repeat(129);
        for bad in ["", "rw", "a/b", "a b", "a\"b", "a\\b", "a\nb", "é", "a\u{7f}", too_long.as_str()] {
            assert_eq!(subject_allowed(bad).map_err(|error| error.code()), Err("auth.claims"), "{bad}");
        }
    }

    #[test]
    fn client_ids_are_the_user_or_the_user_with_a_tail() {
        let tail = "x".repeat(64);
        for good in ["ana", "ana/tab-7", "ana/A_1", format!("ana/{tail}").as_str()] {
            assert_eq!(client_id_allowed(good, "ana"), Ok(()), "{good}");
        }
        for bad in
            ["", "an", "anabel", "bob", "ana/", "ana/a/b", "ana/ä", "ana/a b", "ana/x.y", "rw", format!("ana/{tail}x").as_str()]
        {
            assert_eq!(client_id_allowed(bad, "ana"), Err(AuthError::ClientId), "{bad}");
        }
        for id in ["", "/x"] {
            assert_eq!(client_id_allowed(id, ""), Err(AuthError::ClientId));
        }
    }

    #[test]
    fn debug_keeps_the_token_id_to_itself() {
        let text = format!("{:?}", Grant::new(&parts()).unwrap());
        assert!(text.contains("ana@example.org") && !text.contains("t-1"), "{text}");
    }
}
