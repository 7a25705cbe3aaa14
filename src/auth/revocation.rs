//! Tokens and users revoked before they expire: an immutable snapshot in which shards look them up.

use super::{AuthError, Grant};
use crate::limits::REVOCATIONS_MAX;
use std::fmt;

/// A revocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revocation {
    /// A single token, by its `jti`, until it would have expired anyway.
    Token {
        /// The token's `jti`.
        token_id: Box<str>,
        /// Unix seconds from which the entry may be forgotten: the token's `exp` and the leeway, or later.
        until_s: u64,
    },
    /// A client of a user, with tokens issued before a time. The user may still come as another client with the same token: if a
    /// token was stolen, revoke the token or the user.
    Client {
        /// The `client_id` of the hello.
        client_id: Box<str>,
        /// Unix seconds: tokens with an earlier `iat`, or none, are refused.
        not_before_s: u64,
        /// As for a user.
        until_s: u64,
    },
    /// All tokens of a user issued before a time.
    Subject {
        /// The token's `sub`.
        subject: Box<str>,
        /// Unix seconds: tokens with an earlier `iat`, or none, are refused.
        not_before_s: u64,
        /// Unix seconds from which the entry may be forgotten: `not_before_s`, the longest life of a token and the leeway.
        until_s: u64,
    },
}

impl Revocation {
    const fn until_s(&self) -> u64 {
        match self {
            Self::Token { until_s, .. } | Self::Client { until_s, .. } | Self::Subject { until_s, .. } => *until_s,
        }
    }

    /// Returns `true` if both are of one kind and name.
    fn same_target(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && name(self) == name(other)
    }

    /// Extends this entry by whatever of another one for the same name goes further.
    fn widen(&mut self, other: &Self) {
        match (self, other) {
            (Self::Token { until_s, .. }, Self::Token { until_s: other, .. }) => *until_s = (*until_s).max(*other),
            (
                Self::Client { not_before_s, until_s, .. },
                Self::Client { not_before_s: other_not_before_s, until_s: other_until_s, .. },
            )
            | (
                Self::Subject { not_before_s, until_s, .. },
                Self::Subject { not_before_s: other_not_before_s, until_s: other_until_s, .. },
            ) => {
                *not_before_s = (*not_before_s).max(*other_not_before_s);
                *until_s = (*until_s).max(*other_until_s);
            }
            _ => {}
        }
    }
}

/// A token's id stays out of logs: it names a token that may still be good elsewhere.
impl fmt::Debug for Revocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { until_s, .. } => write!(formatter, "Token {{ until_s: {until_s}, .. }}"),
            Self::Client { client_id, not_before_s, .. } => {
                write!(formatter, "Client {{ {client_id:?}, not_before_s: {not_before_s} }}")
            }
            Self::Subject { subject, not_before_s, .. } => {
                write!(formatter, "Subject {{ {subject:?}, not_before_s: {not_before_s} }}")
            }
        }
    }
}

/// More entries than [`REVOCATIONS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} revocations, at most {REVOCATIONS_MAX} fit: rotate the signing key instead, which revokes all its tokens")]
pub struct RevocationsFull {
    /// Entries that are still in force.
    pub count: usize,
}

/// The revocations in force. Lookups are binary searches in sorted lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    tokens: Box<[Revocation]>,
    clients: Box<[Revocation]>,
    subjects: Box<[Revocation]>,
}

impl Revocations {
    /// Builds a snapshot of the entries still in force at `now_s`. Several entries for one name become one, which goes as far as
    /// the furthest of them.
    ///
    /// # Errors
    /// [`RevocationsFull`]: nothing is dropped in silence.
    pub fn new(entries: impl IntoIterator<Item = Revocation>, now_s: u64) -> Result<Self, RevocationsFull> {
        let (mut tokens, mut clients, mut subjects) = (Vec::new(), Vec::new(), Vec::new());
        for entry in entries.into_iter().filter(|entry| entry.until_s() > now_s) {
            match entry {
                Revocation::Token { .. } => tokens.push(entry),
                Revocation::Client { .. } => clients.push(entry),
                Revocation::Subject { .. } => subjects.push(entry),
            }
        }
        for list in [&mut tokens, &mut clients, &mut subjects] {
            list.sort_unstable_by(|a, b| name(a).cmp(name(b)));
            list.dedup_by(|removed, kept| {
                let same = removed.same_target(kept);
                if same {
                    kept.widen(removed);
                }
                same
            });
        }
        let count = tokens.len() + clients.len() + subjects.len();
        if count > REVOCATIONS_MAX {
            return Err(RevocationsFull { count });
        }
        Ok(Self { tokens: tokens.into(), clients: clients.into(), subjects: subjects.into() })
    }

    /// With one more entry; what is no longer in force at `now_s` is forgotten.
    ///
    /// # Errors
    /// [`RevocationsFull`]: nothing is dropped in silence.
    pub fn with(&self, entry: Revocation, now_s: u64) -> Result<Self, RevocationsFull> {
        Self::new(self.iter().cloned().chain([entry]), now_s)
    }

    /// Without the entry of the kind and name of `target`; `None` where there is none.
    #[must_use]
    pub fn without(&self, target: &Revocation) -> Option<Self> {
        let keep = |list: &[Revocation]| list.iter().filter(|entry| !entry.same_target(target)).cloned().collect();
        let left = Self { tokens: keep(&self.tokens), clients: keep(&self.clients), subjects: keep(&self.subjects) };
        (left.len() < self.len()).then_some(left)
    }

    /// Checks that a client may come, or stay, with a grant.
    ///
    /// # Errors
    /// [`AuthError::Revoked`].
    pub fn check(&self, grant: &Grant, client_id: &str) -> Result<(), AuthError> {
        if grant.token_id().is_some_and(|id| find(&self.tokens, id).is_some()) {
            return Err(AuthError::Revoked);
        }
        for entry in [find(&self.clients, client_id), find(&self.subjects, grant.subject())].into_iter().flatten() {
            if let Revocation::Client { not_before_s, .. } | Revocation::Subject { not_before_s, .. } = entry
                // A token that does not say when it was issued cannot show that it is newer.
                && grant.issued_at_s().is_none_or(|issued_at_s| issued_at_s < *not_before_s)
            {
                return Err(AuthError::Revoked);
            }
        }
        Ok(())
    }

    /// All entries: tokens, clients, users, each by name.
    pub fn iter(&self) -> impl Iterator<Item = &Revocation> {
        self.tokens.iter().chain(&self.clients).chain(&self.subjects)
    }

    /// Entries in the snapshot.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.tokens.len() + self.clients.len() + self.subjects.len()
    }

    /// Returns `true` if nothing is revoked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn name(entry: &Revocation) -> &str {
    match entry {
        Revocation::Token { token_id: text, .. }
        | Revocation::Client { client_id: text, .. }
        | Revocation::Subject { subject: text, .. } => text,
    }
}

fn find<'a>(list: &'a [Revocation], wanted: &str) -> Option<&'a Revocation> {
    list.binary_search_by(|entry| name(entry).cmp(wanted)).ok().map(|index| &list[index])
}

#[cfg(test)]
mod tests {
    use super::super::GrantParts;
    use super::*;

    fn grant(subject: &str, token_id: Option<&str>, issued_at_s: Option<u64>) -> Grant {
        Grant::new(&GrantParts { subject, sessions: &["s"], token_id, issued_at_s, expires_at_s: 900, ..GrantParts::default() })
            .unwrap()
    }

    fn token(token_id: &str, until_s: u64) -> Revocation {
        Revocation::Token { token_id: token_id.into(), until_s }
    }

    fn subject(subject: &str, not_before_s: u64) -> Revocation {
        Revocation::Subject { subject: subject.into(), not_before_s, until_s: 10_000 }
    }

    #[test]
    fn a_token_is_refused_by_its_id() {
        let revocations = Revocations::new([token("b", 900), token("a", 900), token("c", 900)], 100).unwrap();
        for id in ["a", "b", "c"] {
            assert_eq!(revocations.check(&grant("ana", Some(id), None), "ana"), Err(AuthError::Revoked), "{id}");
        }
        assert_eq!(revocations.check(&grant("ana", Some("d"), None), "ana"), Ok(()));
        assert_eq!(revocations.check(&grant("ana", None, None), "ana"), Ok(()));
        assert_eq!(revocations.check(&grant("a", None, None), "a"), Ok(()), "a user is no token");
    }

    #[test]
    fn a_user_is_refused_up_to_a_time() {
        let revocations = Revocations::new([subject("ana", 200), subject("ana", 300), subject("ana", 250)], 100).unwrap();
        assert_eq!(revocations.len(), 1, "one stands for all");
        assert_eq!(revocations.check(&grant("ana", None, Some(299)), "ana"), Err(AuthError::Revoked));
        assert_eq!(revocations.check(&grant("ana", None, None), "ana"), Err(AuthError::Revoked));
        assert_eq!(revocations.check(&grant("ana", None, Some(300)), "ana"), Ok(()));
        assert_eq!(revocations.check(&grant("bob", None, None), "bob"), Ok(()));
    }

    #[test]
    fn a_client_is_refused_and_the_users_others_are_not() {
        let entry = Revocation::Client { client_id: "ana/tab".into(), not_before_s: 200, until_s: 900 };
        let revocations = Revocations::new([entry], 100).unwrap();
        assert_eq!(revocations.check(&grant("ana", None, Some(199)), "ana/tab"), Err(AuthError::Revoked));
        assert_eq!(revocations.check(&grant("ana", None, Some(200)), "ana/tab"), Ok(()), "with a newer token");
        assert_eq!(revocations.check(&grant("ana", None, Some(199)), "ana/other"), Ok(()));
    }

    #[test]
    fn a_second_entry_never_weakens_the_first() {
        let first = Revocation::Subject { subject: "ana".into(), not_before_s: 300, until_s: 400 };
        let second = Revocation::Subject { subject: "ana".into(), not_before_s: 200, until_s: 10_000 };
        for (one, other) in [(first.clone(), second.clone()), (second, first)] {
            let revocations = Revocations::default().with(one, 100).unwrap().with(other, 100).unwrap();
            let wanted = Revocation::Subject { subject: "ana".into(), not_before_s: 300, until_s: 10_000 };
            assert_eq!(revocations.iter().collect::<Vec<_>>(), [&wanted]);
        }
    }

    #[test]
    fn what_is_lifted_is_gone_and_its_namesakes_stay() {
        let both = Revocations::new([subject("ana", 200), token("ana", 900)], 100).unwrap();
        let left = both.without(&subject("ana", 0)).unwrap();
        assert_eq!(left.iter().collect::<Vec<_>>(), [&token("ana", 900)]);
        assert_eq!(left.without(&subject("ana", 0)), None);
    }

    #[test]
    fn what_has_expired_is_forgotten_and_the_rest_is_bounded() {
        assert!(Revocations::new([token("a", 100)], 100).unwrap().is_empty());
        let many = (0..=REVOCATIONS_MAX).map(|index| token(&index.to_string(), 200));
        assert_eq!(Revocations::new(many.clone(), 100), Err(RevocationsFull { count: REVOCATIONS_MAX + 1 }));
        assert!(Revocations::new(many, 200).unwrap().is_empty());
    }

    #[test]
    fn debug_keeps_token_ids_to_itself() {
        let text = format!("{:?}", Revocations::new([token("canary", 900)], 0).unwrap());
        assert!(!text.contains("canary"), "{text}");
    }
}
