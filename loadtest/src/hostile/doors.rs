//! Attacks by connections that say nothing: on the clients' port (B7), on the admin listener (B8).

use super::client::{Door, is_ended};
use super::stage::Stage;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

const FLOODER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const SILENT_PER_S: u64 = 1500;
/// Silent connections that are held; beyond this the oldest is closed. Two seconds' worth.
const HELD: usize = 3000;
/// Silent connections on the admin listener, which has places for 64.
const ADMIN_HELD: usize = 80;

/// A socket that is connecting; nobody waits for the result.
fn silent(address: SocketAddr) -> Result<socket2::Socket, String> {
    let connect = || {
        let socket = Door::new(address, FLOODER).socket()?;
        socket.set_nonblocking(true)?;
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    };
    connect().map_err(|error| format!("a silent connection: {error}"))
}

/// B7, with TLS or without it: a silent connection is the same.
pub fn flood(stage: &Stage) -> Result<(), String> {
    let mut held = VecDeque::with_capacity(HELD);
    stage.wait_for_beginning();
    stage.beat(10_000, |_| {
        for _ in 0..SILENT_PER_S / 100 {
            match silent(stage.address) {
                Ok(socket) => held.push_back(socket),
                Err(why) => stage.told(&why),
            }
            if held.len() > HELD {
                held.pop_front();
            }
            stage.did(1);
        }
    });
    Ok(())
}

/// B8: keeps 80 connections, of which the oldest is replaced a hundred times a second, whether it was closed or not. So there are
/// silent ones even if the server takes places back from them, and as many come and go on the sink.
pub fn admin(stage: &Stage) -> Result<(), String> {
    let mut held = (0..ADMIN_HELD).map(|_| silent(stage.admin)).collect::<Result<VecDeque<_>, _>>()?;
    stage.wait_for_beginning();
    stage.beat(10_000, |_| {
        if held.pop_front().is_some_and(|oldest| is_ended(&oldest)) {
            stage.told("cut off");
        }
        match silent(stage.admin) {
            Ok(fresh) => held.push_back(fresh),
            Err(why) => stage.told(&why),
        }
        stage.did(1);
    });
    Ok(())
}
