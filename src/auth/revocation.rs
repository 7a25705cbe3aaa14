//! Tokens and users that were revoked before their end: an immutable snapshot that shards look into.

use super::{AuthError, Grant};
use crate::limits::REVOCATIONS_MAX;
use std::fmt;

/// One thing to refuse.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revocation {
    /// One token, by its `jti`, until it would have expired anyway.
    Token {
        /// The token's `jti`.
        token_id: Box<str>,
        /// Unix seconds from which the entry may be forgotten: the token's `exp` and the leeway, or later.
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
            Self::Token { until_s, .. } | Self::Subject { until_s, .. } => *until_s,
        }
    }
}

/// A token's id stays out of logs: it names a token that may still be good elsewhere.
impl fmt::Debug for Revocation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { until_s, .. } => write!(formatter, "Token {{ until_s: {until_s}, .. }}"),
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

/// What is revoked. Lookups are binary searches in two sorted lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revocations {
    tokens: Box<[Revocation]>,
    subjects: Box<[Revocation]>,
}

impl Revocations {
    /// Builds a snapshot of the entries still in force at `now_s`. Of several entries for one user the latest wins.
    ///
    /// # Errors
    /// [`RevocationsFull`]: nothing is dropped in silence.
    pub fn new(entries: impl IntoIterator<Item = Revocation>, now_s: u64) -> Result<Self, RevocationsFull> {
        let in_force = entries.into_iter().filter(|entry| entry.until_s() > now_s);
        let (mut tokens, mut subjects): (Vec<_>, Vec<_>) = in_force.partition(|entry| matches!(entry, Revocation::Token { .. }));
        for list in [&mut tokens, &mut subjects] {
            // Latest first within one name, so that dedup keeps it.
            list.sort_unstable_by(|a, b| name(a).cmp(name(b)).then_with(|| b.cmp(a)));
            list.dedup_by(|later, first| name(later) == name(first));
        }
        let count = tokens.len() + subjects.len();
        if count > REVOCATIONS_MAX {
            return Err(RevocationsFull { count });
        }
        Ok(Self { tokens: tokens.into_boxed_slice(), subjects: subjects.into_boxed_slice() })
    }

    /// Whether a grant is still good.
    ///
    /// # Errors
    /// [`AuthError::Revoked`].
    pub fn check(&self, grant: &Grant) -> Result<(), AuthError> {
        if grant.token_id().is_some_and(|id| find(&self.tokens, id).is_some()) {
            return Err(AuthError::Revoked);
        }
        if let Some(Revocation::Subject { not_before_s, .. }) = find(&self.subjects, grant.subject()) {
            // A token that does not say when it was issued cannot show that it is newer.
            if grant.issued_at_s().is_none_or(|issued_at_s| issued_at_s < *not_before_s) {
                return Err(AuthError::Revoked);
            }
        }
        Ok(())
    }

    /// Entries in the snapshot.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.tokens.len() + self.subjects.len()
    }

    /// Whether nothing is revoked.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn name(entry: &Revocation) -> &str {
    match entry {
        Revocation::Token { token_id: text, .. } | Revocation::Subject { subject: text, .. } => text,
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
            assert_eq!(revocations.check(&grant("ana", Some(id), None)), Err(AuthError::Revoked), "{id}");
        }
        assert_eq!(revocations.check(&grant("ana", Some("d"), None)), Ok(()));
        assert_eq!(revocations.check(&grant("ana", None, None)), Ok(()));
        assert_eq!(revocations.check(&grant("a", None, None)), Ok(()), "a user is no token");
    }

    #[test]
    fn a_user_is_refused_up_to_a_time() {
        let revocations = Revocations::new([subject("ana", 200), subject("ana", 300), subject("ana", 250)], 100).unwrap();
        assert_eq!(revocations.len(), 1, "the latest stands for all");
        assert_eq!(revocations.check(&grant("ana", None, Some(299))), Err(AuthError::Revoked));
        assert_eq!(revocations.check(&grant("ana", None, None)), Err(AuthError::Revoked));
        assert_eq!(revocations.check(&grant("ana", None, Some(300))), Ok(()));
        assert_eq!(revocations.check(&grant("bob", None, None)), Ok(()));
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
