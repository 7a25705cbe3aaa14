//! A token, a set of keys and the time, to a grant: who may be what, in which sessions, until when.
//!
//! May import the vocabulary. Pure: keys come as text that somebody else has read, the time as a [`crate::time::Tick`], and
//! nothing is fetched, whatever a token says. `jsonwebtoken` checks signatures and is used in `keys.rs` only; every claim is
//! judged in `claims.rs`.
//!
//! Invariants: a key verifies one algorithm; a token verifies with the one key it names; no error, and no `Debug`, repeats a
//! token, a secret or a key; a grant costs one allocation.

pub mod claims;
mod error;
mod grant;
mod keys;
mod revocation;
#[cfg(test)]
mod vectors;

pub use claims::{TokenPolicy, token_id_allowed};
pub use error::AuthError;
pub(crate) use grant::is_name;
pub use grant::{Grant, GrantParts, client_id_allowed, subject_allowed};
pub(crate) use keys::{Jwk, is_key_id, preamble_key_id, raw_secret};
pub use keys::{KeyAlgorithm, KeyError, KeyMaterial, KeyProblem, KeySet};
pub use revocation::{Revocation, Revocations, RevocationsFull};
