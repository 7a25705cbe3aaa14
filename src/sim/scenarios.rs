//! Situations that chance finds seldom, one test each.
