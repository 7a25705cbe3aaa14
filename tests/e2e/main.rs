//! The gateway's promises to its clients and operators, a file for each promise, against the real binary with an independent
//! client: none of the gateway's code is linked into these tests.
//!
//! A contained panic (a decoder that panics closes its own connection, 1011) can't be provoked from outside: no known bytes do
//! it, which is what the fuzz targets look for. `sim/scenarios.rs` plants one in the shard.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, reason = "a test process of its own, not the gateway")]
#![allow(dead_code, reason = "the support files serve several test binaries")]

#[path = "../support/gateway.rs"]
mod gateway;
#[path = "../support/raw.rs"]
mod raw;
#[path = "../support/token.rs"]
mod token;

mod client;

mod acks_and_idempotency;
mod attach_detach;
mod backpressure_and_rates;
mod channels_across_shards;
mod cli;
mod client_addresses;
mod cold_history;
mod control_thread;
mod deflate;
mod documented;
mod drain_within_grace;
mod engines;
mod ephemeral;
mod examples;
mod health;
mod heartbeat;
mod hello_and_welcome;
mod history;
mod idle_memory;
mod killed_and_restarted;
mod last_words;
mod log_faults;
mod manuals;
mod members_and_watch;
mod members_over_restarts;
mod names;
mod one_address;
mod origins;
mod own_names;
mod presence_grace;
mod purge;
mod receipts;
mod refresh_expiry_replacement;
mod reload;
mod resized;
mod resume_after_reconnect;
mod retention;
mod revocation;
mod rooms;
mod routing;
mod slow_reader_harms_nobody;
mod tls;
mod tls_hostile;
mod upgraded;
mod without_io_uring;
