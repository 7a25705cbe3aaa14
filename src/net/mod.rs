//! net

pub mod tls;
