//! Floods at the door: what is over a bound of its address takes nothing from others, whatever stands in front of the gateway.

use super::client::Casting;
use super::disk::DiskFaults;
use super::net::Faults;
use super::pipe::Pipe;
use super::world::{Features, PROXY, Plan, World};
use crate::close::CloseReason;
use crate::config::Settings;
use crate::limits::{HALF_OPEN_RESERVE_PERCENT, TURNED_AWAY_MAX};
use crate::shard::counters::LimitReached;
use crate::shard::port::{Alive, Ready};
use std::net::{IpAddr, SocketAddr};

/// Half-open places of the one shard.
const PLACES: usize = 40;
const EVIL: [u8; 4] = [192, 0, 2, 66];

fn door(features: Features, change: impl FnOnce(&mut Settings)) -> World {
    let mut settings = Settings::default();
    settings.log.memory_bytes = 0;
    settings.server.max_connections = PLACES * 10;
    settings.limits.half_open_percent = 10;
    settings.limits.handshake_ms = 5_000;
    if features.proxied {
        settings.server.proxy_protocol = true;
        settings = super::draw::trust(settings, "172.16.0.0/12");
    }
    change(&mut settings);
    let (faults, disk) = (Faults::NONE, DiskFaults::default());
    let mut world = World::new(7, &Plan { features, shards: 1, lane_depth: 8, faults, disk, settings });
    world.settling = true;
    world
}

/// A connection from an address, which has said whose it is where a proxy has to, and nothing more.
fn silent(world: &mut World, address: impl Into<IpAddr>) -> Pipe {
    let source = SocketAddr::new(address.into(), 4000);
    let (socket, fd) = world.net.connect(10_000, source.ip());
    let peer = if world.features.proxied { PROXY.parse().unwrap() } else { source };
    world.seats[0].engine.backlog.push_back((fd, peer));
    let mut pipe = Pipe::new(socket, world.features.tls);
    if world.features.proxied {
        pipe.put_ahead(format!("PROXY TCP4 {} 10.0.0.1 4000 443\r\n", source.ip()).as_bytes());
    }
    pipe
}

fn push(world: &mut World, pipe: &mut Pipe) {
    while pipe.push(&mut world.net, 0) {}
}

fn other(number: u8) -> [u8; 4] {
    [198, 51, 100, number]
}

fn reached(world: &World, limit: LimitReached) -> u64 {
    world.seats[0].counters.limit_count(limit)
}

fn closed(world: &World, pipe: &Pipe) -> bool {
    world.net.sockets[pipe.socket].server_closed
}

fn finish(world: &World) {
    assert_eq!(world.oracle.violations, Vec::<String>::new());
}

/// 1,500 a second from one address for two seconds, silent or with their TLS begun, against twenty that take a second to their hello.
#[test]
fn a_flood_of_one_address_shuts_out_nobody_else() {
    for (tls, proxied) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = door(Features { tls, proxied, ..Features::default() }, |_| {});
        let mut slow: Vec<Pipe> = (0..20).map(|number| silent(&mut world, other(number))).collect();
        slow.iter_mut().filter(|_| proxied).for_each(|pipe| push(&mut world, pipe));
        let mut flood = Vec::new();
        for _ in 0..2_000 {
            let mut pipe = silent(&mut world, EVIL);
            if tls || proxied {
                push(&mut world, &mut pipe);
            }
            flood.push(pipe);
            world.pass_us(660);
        }
        let case = format!("tls {tls}, proxied {proxied}");
        let shut_out = slow.iter().filter(|pipe| closed(&world, pipe)).count();
        assert_eq!(shut_out, 0, "{case}");
        assert_eq!(reached(&world, LimitReached::HandshakesPerShard), 0, "what is refused takes no share of the shard: {case}");
        let refused = reached(&world, LimitReached::HandshakesPerIp) + reached(&world, LimitReached::HalfOpenPerIp);
        assert!(refused > 1_800, "{refused}: {case}");
        let held = flood.iter().filter(|pipe| !closed(&world, pipe)).count();
        let told = if tls { 0 } else { TURNED_AWAY_MAX };
        assert!(held <= 32 + told, "{held}: {case}");
        if tls {
            // Nothing was decrypted, agreed on or said to those that were turned away.
            let answered = flood.iter().filter(|pipe| !world.net.sockets[pipe.socket].to_client.is_empty()).count();
            assert!(answered <= 32 + 50 + 40, "{answered}: {case}");
        }
        // The node has room, and a client of another address gets in.
        world.cast(&Casting {
            sub: "ana",
            tab: "",
            roles: &[],
            home: "s.0",
            echo: false,
            acks: true,
            hostile: false,
            slow: false,
        });
        assert!(world.run_until(3_000, |world| world.clients[0].is_open()), "{case}");
        finish(&world);
    }
}

/// No limit of an address helps here: there is none.
#[test]
fn whoever_has_the_most_half_open_gives_way_to_those_that_have_none() {
    let mut world = door(Features::default(), |settings| {
        settings.limits.half_open_per_ip = 0;
        settings.limits.handshakes_per_ip_per_second = 0;
        settings.limits.handshakes_per_second = 0;
    });
    let slow: Vec<Pipe> = (0..20).map(|number| silent(&mut world, other(number))).collect();
    world.pass_us(10_000);
    let flood: Vec<Pipe> = (0..300).map(|_| silent(&mut world, EVIL)).collect();
    world.pass_us(10_000);
    assert_eq!(slow.iter().filter(|pipe| closed(&world, pipe)).count(), 0);
    let reserve = PLACES * HALF_OPEN_RESERVE_PERCENT / 100;
    let held = flood.iter().filter(|pipe| !closed(&world, pipe)).count();
    assert_eq!(held, PLACES - reserve - 20, "a quarter of the places is for those that have none");
    assert_eq!(reached(&world, LimitReached::HalfOpen), 300 - held as u64);
    // The new connections have the reserved places, and nobody is closed for the first of them.
    let late: Vec<Pipe> = (0..10).map(|number| silent(&mut world, other(100 + number))).collect();
    world.pass_us(10_000);
    assert_eq!(reached(&world, LimitReached::HalfOpen), 300 - held as u64);
    assert_eq!(slow.iter().chain(&late).filter(|pipe| closed(&world, pipe)).count(), 0);
    // When it is used up too the flood gives way to them, and when that is gone the oldest.
    let more: Vec<Pipe> = (0..10).map(|number| silent(&mut world, other(200 + number))).collect();
    world.pass_us(10_000);
    assert_eq!(flood.iter().filter(|pipe| !closed(&world, pipe)).count(), 1);
    assert_eq!(slow.iter().chain(&late).chain(&more).filter(|pipe| closed(&world, pipe)).count(), 1);
    assert!(closed(&world, &slow[0]));
    finish(&world);
}

/// An HTTP answer waits for the client's end, up to `limits.close_ms`: whoever waits so is not half open.
#[test]
fn who_was_answered_holds_no_half_open_place() {
    let mut world = door(Features::default(), |settings| {
        settings.limits.half_open_per_ip = 0;
        settings.limits.handshakes_per_ip_per_second = 0;
        settings.limits.handshakes_per_second = 0;
        settings.limits.close_ms = 60_000;
    });
    let slow: Vec<Pipe> = (0..20).map(|number| silent(&mut world, other(number))).collect();
    for _ in 0..150 {
        let mut pipe = silent(&mut world, EVIL);
        pipe.tx.extend(b"GET /elsewhere HTTP/1.1\r\nHost: a\r\n\r\n");
        push(&mut world, &mut pipe);
        world.pass_us(10_000);
        assert!(!closed(&world, &pipe));
    }
    assert_eq!(slow.iter().filter(|pipe| closed(&world, pipe)).count(), 0);
    assert_eq!((reached(&world, LimitReached::HalfOpen), world.seats[0].counters.connections_half_open.get()), (0, 20));
    finish(&world);
}

/// Without TLS they are told when they have asked; those behind them push out those that ask nothing, and the node counts neither.
#[test]
fn who_is_over_a_limit_is_told_or_makes_room() {
    let mut world = door(Features::default(), |settings| settings.limits.connections_per_ip = 2);
    let pipes: Vec<Pipe> = (0..30).map(|_| silent(&mut world, EVIL)).collect();
    world.pass_us(5_000);
    assert_eq!(reached(&world, LimitReached::ConnectionsPerIp), 28);
    for (number, mut pipe) in pipes.into_iter().enumerate() {
        pipe.tx.extend(super::wire::request("/v1/ws", None).bytes());
        push(&mut world, &mut pipe);
        world.pass_us(5_000);
        let answer = world.net.sockets[pipe.socket].to_client.len();
        pipe.pull(&mut world.net, answer).unwrap();
        let head = String::from_utf8_lossy(&pipe.rx).into_owned();
        assert!(head.starts_with(if number < 2 { "HTTP/1.1 101 " } else { "HTTP/1.1 429 " }), "{number}: {head}");
        assert_eq!(number >= 2, head.contains("limits.connections_per_ip"), "{head}");
    }
    let shed = world.seats[0].counters.closed_count(CloseReason::Shed);
    let flood: Vec<Pipe> = (0..TURNED_AWAY_MAX + 100).map(|_| silent(&mut world, EVIL)).collect();
    world.pass_us(5_000);
    assert_eq!(flood.iter().filter(|pipe| !closed(&world, pipe)).count(), TURNED_AWAY_MAX);
    assert_eq!(reached(&world, LimitReached::TurnedAway), 28 + 100, "those that were told have not left either");
    assert_eq!(world.seats[0].counters.closed_count(CloseReason::Shed) - shed, 100);
    assert_eq!(world.admission.connections(), 2);
    finish(&world);
}

/// They are gone from the list of those that ended, too: an operator looks there for others.
#[test]
fn a_full_node_keeps_no_half_open_places_and_remembers_none_of_those_that_it_sent_away() {
    let mut world = door(Features::default(), |settings| {
        settings.server.max_connections = 20;
        settings.limits.half_open_percent = 100;
        settings.limits.handshakes_per_second = 0;
    });
    let inside: Vec<Pipe> = (0..20).map(|number| silent(&mut world, other(number))).collect();
    world.pass_us(5_000);
    let over: Vec<Pipe> = (0..50).map(|number| silent(&mut world, other(100 + number))).collect();
    world.pass_us(5_000);
    assert_eq!(inside.iter().filter(|pipe| closed(&world, pipe)).count(), 0);
    assert_eq!(reached(&world, LimitReached::Connections), 50);
    assert_eq!(world.seats[0].counters.connections_half_open.get(), 20);
    drop(over);
    world.pass_us(12_000_000);
    assert_eq!(world.seats[0].core.remembered(), 20, "of 70 that said nothing until their time was over");
    finish(&world);
}

fn asks(world: &mut World, address: [u8; 4], path: &str) -> String {
    let mut pipe = silent(world, address);
    pipe.tx.extend(format!("GET {path} HTTP/1.0\r\n\r\n").bytes());
    push(world, &mut pipe);
    world.pass_us(5_000);
    push(world, &mut pipe);
    world.pass_us(5_000);
    let answer = world.net.sockets[pipe.socket].to_client.len();
    pipe.pull(&mut world.net, answer).unwrap();
    String::from_utf8_lossy(&pipe.rx).into_owned()
}

/// A supervisor that is told 503 then restarts a node that does all it can.
#[test]
fn a_full_or_busy_node_is_healthy_and_says_so() {
    for busy in [false, true] {
        let mut world = door(Features::default(), |settings| {
            settings.server.max_connections = if busy { 1_000 } else { 20 };
            settings.limits.half_open_percent = 100;
            settings.limits.handshakes_per_second = u64::from(busy);
        });
        world.snapshot.health.set(Alive::Ok, Ready::Starting);
        let _inside: Vec<Pipe> = (0..20).map(|number| silent(&mut world, other(number))).collect();
        world.pass_us(5_000);
        for (path, told) in [("/healthz", "ok"), ("/readyz", "starting")] {
            let head = asks(&mut world, other(200), path);
            assert!(head.ends_with(&format!("\r\n\r\n{told}\n")), "busy {busy}: {head}");
        }
        assert!(reached(&world, if busy { LimitReached::HandshakesPerShard } else { LimitReached::Connections }) >= 2);
        let head = asks(&mut world, other(201), "/v1/ws");
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert_eq!(world.seats[0].counters.probes.get(), 2);
        finish(&world);
    }
}

/// Probes are as good for a flood as any request.
#[test]
fn probes_are_bounded_as_handshakes_are() {
    let mut world = door(Features::default(), |settings| settings.limits.handshakes_per_ip_burst = 3);
    world.snapshot.health.set(Alive::Degraded, Ready::Ready);
    let told: Vec<String> = (0..6).map(|_| asks(&mut world, EVIL, "/healthz")).collect();
    let well = told.iter().filter(|head| head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\ndegraded\n")).count();
    let refused = told.iter().filter(|head| head.starts_with("HTTP/1.1 429 ")).count();
    assert!(well >= 3 && refused >= 1 && well + refused == 6, "{told:?}");
    world.configure(|snapshot| {
        let mut settings = (*snapshot.settings).clone();
        settings.server.health = false;
        snapshot.settings = settings.into();
    });
    world.pass_us(1_000);
    let head = asks(&mut world, other(1), "/readyz");
    assert!(head.starts_with("HTTP/1.1 400 "), "off, it is no probe: {head}");
    finish(&world);
}
