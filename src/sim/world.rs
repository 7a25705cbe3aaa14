//! A process of several shards, its clients and the network between them, on one thread and in virtual time.

use super::client::Client;
use super::cover::Cover;
use super::disk::{Disk, DiskFaults};
use super::net::{Engine, Faults, Net, SimIo};
use super::oracle::Oracle;
use super::pipe::{CERTIFICATE, KEY, Pipe, take};
use super::purges::Asked;
use super::random::Random;
use super::rest::Roster;
use super::story::Story;
use super::visitors::Visitor;
use super::wire;
use crate::auth::{KeyAlgorithm, KeyMaterial, KeySet, TokenPolicy};
use crate::config::Settings;
use crate::ids::HashKey;
use crate::io::{Event, Io, Next, Read, Shard};
use crate::net::tls::TlsServer;
use crate::net::upgrade::Policy as UpgradePolicy;
use crate::shard::across::mesh::Mesh;
use crate::shard::connections::admission::Admission;
use crate::shard::core::{Core, CoreOptions};
use crate::shard::counters::{SharedCounters, shared_counters};
use crate::shard::port::{Bell, Port, PortMessage, Snapshot, port};
use crate::shard::start::REFUSED_MAX;
use crate::time::Tick;
use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The issuer of tokens, in worlds that have one.
pub const ISSUER: &str = "https://id.example";
pub const SECRET: &[u8] = b"a secret of thirty-two bytes, ok";
const EPOCH_WALL_MS: u64 = 1_790_000_000_000;
/// How long after a revocation its token may still be taken somewhere.
pub const REVOKED_WITHIN_S: u64 = 1;
/// Turns a shard may ask for at once, without anything new, before that is a livelock.
const AGAIN_MAX: u32 = 3_000;

#[derive(Debug, Default)]
struct PortBell(AtomicBool);

impl Bell for PortBell {
    fn ring(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub struct Seat {
    pub core: Core,
    pub engine: Engine,
    pub counters: SharedCounters,
    next: Next,
    asleep: bool,
    again: u32,
    /// Has no turn until then.
    pub paused_until: u64,
    port: Port,
    port_bell: Arc<PortBell>,
    pub stopped: bool,
}

/// The only peer of a world that lies behind a proxy.
pub const PROXY: &str = "172.16.0.1:5000";

/// Memory of a shard that is enough for all in a world.
const MEMORY_LEAST_BYTES: usize = 1 << 20;

/// Features that a world may have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Connections come through a proxy, which says whose they are.
    pub proxied: bool,
    pub tls: bool,
    /// Addresses that clients share; 0: each connection has its own.
    pub addresses: u64,
    /// Many clients are in one session.
    pub crowd: bool,
    /// Messages are so long that the log drops chunks.
    pub long: bool,
    /// Clients now and then do what is answered otherwise than usual.
    pub odd: bool,
    /// Tokens are an issuer's.
    pub issuer: bool,
    /// An operator asks this and that, and does not always wait for the answer.
    pub asked: bool,
    /// Records on disk are damaged, or not read, once faults end.
    pub rots: bool,
}

/// Caps in force, as clients know them; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caps {
    pub per_ip: usize,
    pub per_user: usize,
}

/// The parameters of a world.
#[derive(Clone, Debug)]
pub struct Plan {
    pub features: Features,
    pub shards: usize,
    pub lane_depth: usize,
    pub faults: Faults,
    /// Faults of the disks, if `settings.log.dir` is set.
    pub disk: DiskFaults,
    pub settings: Settings,
}

pub struct World {
    pub random: Random,
    pub now_ns: u64,
    /// Time goes no further at once, though nothing happens until then.
    pub leaps_to_ns: u64,
    pub wall_shift_ms: u64,
    pub key: HashKey,
    pub seats: Vec<Seat>,
    pub net: Net,
    pub bells: Vec<Option<u64>>,
    pub clients: Vec<Client>,
    pub oracle: Oracle,
    pub faults: Faults,
    pub trace: u64,
    pub snapshot: Arc<Snapshot>,
    /// Clients only finish what they have begun.
    pub settling: bool,
    /// Spoils what a client tells the oracle, to see the oracle object.
    pub sabotage: Option<super::client::Sabotage>,
    pub connections: u64,
    pub steps: u64,
    pub features: Features,
    pub caps: Caps,
    /// Deflated frames that clients were sent.
    pub inflated: u64,
    pub visitors: Vec<Visitor>,
    /// The node goes away.
    pub draining: bool,
    /// The shards are being stopped, whatever is under way.
    pub stopping: bool,
    /// Tokens by their ids, users by theirs, and when each was revoked, in Unix seconds.
    pub revoked: BTreeMap<String, u64>,
    pub revoked_users: BTreeMap<String, u64>,
    /// Members as clients were told of them: by who asked, where, and of which room.
    pub rosters: BTreeMap<(usize, String, Option<String>), Roster>,
    /// Whom the node's tables still count.
    pub admission: Arc<Admission>,
    pub lane_depth: usize,
    /// Purges that are not answered.
    pub purges: Vec<Asked>,
    /// How often the process ended without a word.
    pub kills: u64,
    /// Connections that clients ended and that were answered to the end.
    pub farewells: u64,
    pub power_cuts: u64,
    /// Cuts that took something which was written and not synced.
    pub lossy_cuts: u64,
    /// Limits are so tight that whoever is in no hurry is closed.
    pub hurries: bool,
    /// As drawn, whatever is in force now: what was asked under them may be answered late.
    pub drawn: Settings,
    pub story: Option<Story>,
    pub cover: Cover,
}

impl Seat {
    /// A shard as its process makes it, with nothing in it.
    pub fn new(
        shard: usize,
        key: HashKey,
        (mesh, admission): (&Arc<Mesh>, &Arc<Admission>),
        snapshot: &Arc<Snapshot>,
        seed: u64,
        disk: Disk,
    ) -> Self {
        let (port_bell, counters) = (Arc::new(PortBell::default()), shared_counters());
        let (port, receiver) = port(shard, Arc::clone(&port_bell) as Arc<dyn Bell>, Arc::clone(&counters));
        let core = Core::new(CoreOptions {
            shard,
            key,
            mesh: Arc::clone(mesh),
            admission: Arc::clone(admission),
            counters: Arc::clone(&counters),
            port: receiver,
            snapshot: Arc::clone(snapshot),
            seed,
        });
        let engine = Engine::new(snapshot.settings.server.max_connections + REFUSED_MAX, disk);
        Self {
            core,
            engine,
            counters,
            next: Next::Again,
            asleep: false,
            again: 0,
            paused_until: 0,
            port,
            port_bell,
            stopped: false,
        }
    }
}

impl World {
    pub fn new(seed: u64, plan: &Plan) -> Self {
        let mut random = Random::new(seed);
        let key = HashKey(std::array::from_fn(|at| u8::try_from(at).unwrap() ^ 0x5A));
        let mesh = Mesh::with_depth(plan.shards, plan.lane_depth);
        let admission = Arc::new(Admission::new(key));
        let material = KeyMaterial { key_id: "k".to_owned(), algorithm: KeyAlgorithm::Hs256, bytes: SECRET.to_vec() };
        let snapshot = Arc::new(Snapshot {
            settings: Arc::new(plan.settings.clone()),
            keys: Arc::new(KeySet::new(&[material]).unwrap()),
            upgrade: UpgradePolicy { echo: true, ..UpgradePolicy::default() },
            tokens: TokenPolicy { issuer: plan.features.issuer.then(|| ISSUER.into()), ..TokenPolicy::default() },
            tls: plan.features.tls.then(|| TlsServer::new(CERTIFICATE, KEY).unwrap()),
            ..Snapshot::default()
        });
        let seats = (0..plan.shards)
            .map(|shard| {
                let disk = Disk::new(plan.settings.log.segment_bytes, plan.disk);
                let mut seat = Seat::new(shard, key, (&mesh, &admission), &snapshot, random.next(), disk);
                if plan.settings.log.dir.is_some() {
                    let now = Tick { mono_ns: 1_000_000, wall_ms: EPOCH_WALL_MS };
                    super::crash::recover(&mut seat, key, shard, plan.settings.log.segment_bytes, false, now).unwrap();
                }
                seat
            })
            .collect();
        Self {
            random,
            now_ns: 1_000_000,
            leaps_to_ns: u64::MAX,
            wall_shift_ms: 0,
            key,
            seats,
            net: Net::default(),
            bells: vec![None; plan.shards],
            clients: Vec::new(),
            oracle: Oracle::default(),
            faults: plan.faults,
            trace: 0xCBF2_9CE4_8422_2325,
            snapshot,
            settling: false,
            sabotage: None,
            connections: 0,
            steps: 0,
            features: plan.features,
            caps: Caps { per_ip: plan.settings.limits.connections_per_ip, per_user: plan.settings.limits.connections_per_user },
            inflated: 0,
            visitors: Vec::new(),
            draining: false,
            stopping: false,
            revoked: BTreeMap::new(),
            revoked_users: BTreeMap::new(),
            rosters: BTreeMap::new(),
            admission,
            lane_depth: plan.lane_depth,
            purges: Vec::new(),
            kills: 0,
            farewells: 0,
            power_cuts: 0,
            lossy_cuts: 0,
            hurries: plan.settings.limits.shard_memory_bytes < MEMORY_LEAST_BYTES
                || plan.settings.limits.stall_ms < 1_000
                || plan.settings.limits.unfinished_message_ms < 1_000
                || plan.settings.session.heartbeat_timeout_ms < 1_000,
            drawn: plan.settings.clone(),
            story: None,
            cover: Cover::default(),
        }
    }

    pub const fn now(&self) -> Tick {
        Tick { mono_ns: self.now_ns, wall_ms: EPOCH_WALL_MS + self.wall_shift_ms + self.now_ns / 1_000_000 }
    }

    /// FNV-1a over what happened.
    pub fn trace(&mut self, words: &[u64]) {
        for word in words {
            self.trace = (self.trace ^ word).wrapping_mul(0x0100_0000_01B3);
        }
    }

    /// Nobody has more connections than may be.
    fn check_caps(&mut self) {
        let (mut of_address, mut of_user) = (BTreeMap::new(), BTreeMap::new());
        for socket in self.net.sockets.iter().filter(|socket| !socket.server_closed) {
            *of_address.entry(socket.address).or_insert(0) += usize::from(socket.let_in);
            *of_user.entry(&*socket.user).or_insert(0) += usize::from(socket.welcomed);
        }
        let Caps { per_ip, per_user } = self.caps;
        let address = of_address.iter().find(|(_, count)| per_ip > 0 && **count > per_ip);
        let user = of_user.iter().find(|(_, count)| per_user > 0 && **count > per_user);
        if address.is_some() || user.is_some() {
            let complaint = format!("more connections than may be: {address:?} (cap {per_ip}), {user:?} (cap {per_user})");
            self.oracle.wrong(complaint);
        }
    }

    /// Other settings are in force.
    pub fn configure(&mut self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = (*self.snapshot).clone();
        change(&mut snapshot);
        self.snapshot = Arc::new(snapshot);
        (0..self.seats.len())
            .for_each(|shard| self.tell(shard, PortMessage::Configure { snapshot: Arc::clone(&self.snapshot), reply: None }));
    }

    pub fn tell(&mut self, shard: usize, message: PortMessage) {
        self.seats[shard].port.send(message).unwrap();
    }

    pub fn home(&self, session: &str) -> usize {
        self.key.home_shard(session, self.seats.len())
    }

    /// The oldest and the newest `seq` of a session, as its home has them.
    pub fn bounds(&self, session: &str) -> (u64, u64) {
        self.seats[self.home(session)].core.session_bounds(session).unwrap_or((1, 0))
    }

    /// The newest `seq` that a session's home has appended, whether or not it may be seen yet.
    pub fn appended(&self, session: &str) -> u64 {
        self.seats[self.home(session)].core.appended_head(session)
    }

    /// A client's new connection, to some shard.
    pub fn connect(&mut self, capacity: usize, shard: usize) -> Pipe {
        let (mut pipe, source) = self.connect_bare(capacity, shard);
        if self.features.proxied {
            pipe.put_ahead(&wire::proxy_header(source, &mut self.random));
        }
        pipe
    }

    /// A connection without TLS, whatever the world uses.
    pub fn connect_plain(&mut self, capacity: usize, shard: usize) -> Pipe {
        let pipe = self.connect(capacity, shard);
        pipe.without_tls()
    }

    /// A connection on which nothing has been sent, not even whose it is.
    pub fn connect_bare(&mut self, capacity: usize, shard: usize) -> (Pipe, SocketAddr) {
        self.connections += 1;
        let places = if self.features.addresses == 0 { u64::MAX } else { self.features.addresses };
        let place = self.connections % places;
        let host = u8::try_from(place % 250 + 1).unwrap();
        let source = if self.features.proxied && place.is_multiple_of(3) {
            // Each connection has a network of its own.
            SocketAddr::new(Ipv6Addr::new(0x2001, 0xDB8, 0, u16::try_from(place % 60_000).unwrap(), 0, 0, 0, 1).into(), 4000)
        } else {
            SocketAddr::new([10, 0, u8::try_from(place / 250 % 250).unwrap(), host].into(), 4000)
        };
        let (socket, fd) = self.net.connect(capacity, source.ip());
        let peer = if self.features.proxied { PROXY.parse().unwrap() } else { source };
        self.seats[shard].engine.backlog.push_back((fd, peer));
        (Pipe::new(socket, self.features.tls), source)
    }

    /// The next thing to tell a shard about one of its sockets.
    fn due(&self, shard: usize, index: usize) -> Option<Due> {
        let slot = &self.seats[shard].engine.slots[index];
        slot.fd.as_ref()?;
        let socket = &self.net.sockets[slot.socket];
        // A cancelled read may still bring what had arrived.
        if slot.mode != Read::Off && !socket.to_server.is_empty() {
            return Some(Due::Bytes);
        }
        if slot.mode != Read::Off && !slot.ended_told && (socket.client_fin || socket.client_reset) {
            return Some(Due::End);
        }
        if slot.quiet_ns.is_some_and(|at| at <= self.now_ns) {
            return Some(Due::Quiet);
        }
        let room = socket.to_client.len() * 2 < socket.capacity.max(1) || socket.client_reset;
        if room && slot.writable_ns.is_some_and(|at| at <= self.now_ns) {
            return Some(Due::Writable);
        }
        None
    }

    fn has_work(&self, shard: usize) -> bool {
        let seat = &self.seats[shard];
        let timer = match seat.next {
            Next::Again => true,
            Next::At(at) => at <= self.now_ns,
            Next::Idle | Next::Stop => false,
        };
        timer
            || self.bells[shard].is_some_and(|at| at <= self.now_ns)
            || seat.port_bell.0.load(Ordering::SeqCst)
            || seat.engine.disk.due_ns().is_some_and(|at| at <= self.now_ns)
            || seat.engine.accepting && !seat.engine.backlog.is_empty()
            || (0..seat.engine.slots.len()).any(|index| self.due(shard, index).is_some())
    }

    fn with_io<T>(&mut self, shard: usize, work: impl FnOnce(&mut Core, &mut SimIo<'_>, Tick) -> T) -> T {
        let now = self.now();
        let seat = &mut self.seats[shard];
        let mut wrong = Vec::new();
        let mut io = SimIo {
            engine: &mut seat.engine,
            net: &mut self.net,
            random: &mut self.random,
            bells: &mut self.bells,
            faults: self.faults,
            now,
            wrong: &mut wrong,
        };
        let outcome = work(&mut seat.core, &mut io, now);
        wrong.into_iter().for_each(|what| self.oracle.wrong(format!("shard {shard}: {what}")));
        outcome
    }

    fn tell_due(&mut self, shard: usize, index: usize, due: Due) {
        let conn = self.seats[shard].engine.id(index);
        let word = conn.pack();
        let random = self.random.next();
        let slot = &mut self.seats[shard].engine.slots[index];
        let socket = &mut self.net.sockets[slot.socket];
        match due {
            Due::Bytes => {
                let most = socket.to_server.len().min(8192);
                let count = if random.is_multiple_of(8) { 1 } else { most.min(1 + usize::try_from(random >> 8).unwrap() % most) };
                let count = if random % 8 > 4 { most } else { count };
                let mut bytes = take(&mut socket.to_server, count);
                if slot.mode == Read::Once {
                    slot.mode = Read::Off;
                }
                self.trace(&[1, shard as u64, word, count as u64]);
                self.with_io(shard, |core, io, now| core.event(io, Event::Received { conn, bytes: &mut bytes }, now));
            }
            Due::End => {
                slot.ended_told = true;
                slot.mode = Read::Off;
                let error = socket.client_reset.then(|| std::io::Error::from_raw_os_error(libc::ECONNRESET));
                self.trace(&[2, shard as u64, word]);
                self.with_io(shard, |core, io, now| core.event(io, Event::Ended { conn, error }, now));
            }
            Due::Quiet => {
                slot.quiet_ns = None;
                self.trace(&[3, shard as u64, word]);
                self.with_io(shard, |core, io, now| core.event(io, Event::Quiet { conn }, now));
            }
            Due::Writable => {
                slot.writable_ns = None;
                self.trace(&[4, shard as u64, word]);
                self.with_io(shard, |core, io, now| core.event(io, Event::Writable { conn }, now));
            }
        }
    }

    fn run_shard(&mut self, shard: usize) {
        let mut news = false;
        if self.seats[shard].asleep {
            self.seats[shard].core.after_sleep();
            self.seats[shard].asleep = false;
        }
        while self.seats[shard].engine.accepting && !self.seats[shard].engine.backlog.is_empty() {
            if self.faults.accept_failures > 0 && self.random.percent(self.faults.accept_failures) {
                let error = || std::io::Error::from_raw_os_error(libc::EMFILE);
                self.with_io(shard, |core, io, now| core.event(io, Event::AcceptFailed(error()), now));
                break;
            }
            let Some((fd, peer)) = self.seats[shard].engine.backlog.pop_front() else { break };
            news = true;
            self.with_io(shard, |core, io, now| match io.adopt(fd) {
                Ok(conn) => core.event(io, Event::Accepted { conn, peer }, now),
                Err(_) => core.event(io, Event::AcceptFailed(std::io::Error::from(std::io::ErrorKind::QuotaExceeded)), now),
            });
        }
        let slots = self.seats[shard].engine.slots.len();
        let first = self.random.index(slots.max(1));
        for step in 0..slots {
            let index = (first + step) % slots;
            for _ in 0..self.random.between(1, 3) {
                let Some(due) = self.due(shard, index) else { break };
                news = true;
                self.tell_due(shard, index, due);
            }
        }
        while let Some(answer) = self.seats[shard].engine.disk.next_answer(&mut self.random, self.now_ns) {
            news = true;
            self.trace(&[9, shard as u64]);
            self.tell_story(|| format!("shard {shard}'s disk: {}", answer.about()));
            self.with_io(shard, |core, io, now| core.event(io, answer.event(), now));
        }
        let rung = self.bells[shard].is_some_and(|at| at <= self.now_ns);
        if rung || self.seats[shard].port_bell.0.swap(false, Ordering::SeqCst) {
            news = true;
            if rung {
                self.bells[shard] = None;
            }
            self.with_io(shard, |core, io, now| core.event(io, Event::Bell, now));
        }
        let next = self.with_io(shard, |core, io, now| core.turn(io, now));
        self.tell_looks();
        self.trace(&[5, shard as u64, self.now_ns, matches!(next, Next::Again).into()]);
        let now = self.now();
        let seat = &mut self.seats[shard];
        seat.next = next;
        seat.again = if news || next != Next::Again { 0 } else { seat.again + 1 };
        if seat.again > AGAIN_MAX {
            let what = seat.core.inspect(true, now).err().unwrap_or_default();
            self.oracle.wrong(format!("shard {shard} asks for its turn again and again and has nothing to do; {what}"));
            seat.again = 0;
            return;
        }
        if let Err(what) = seat.core.inspect(next != Next::Again, now) {
            self.oracle.wrong(format!("shard {shard} at {} us: {what}", self.now_ns / 1000));
        }
        match next {
            Next::Again => {}
            Next::Stop => seat.stopped = true,
            Next::At(_) | Next::Idle => {
                if seat.core.before_sleep() {
                    seat.asleep = true;
                } else {
                    seat.core.after_sleep();
                    seat.next = Next::Again;
                }
            }
        }
    }

    /// Makes a step: some shards run, clients act, time goes on. Returns `false` if nothing is left to happen.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        self.oracle.now_ns = self.now_ns;
        let mut ran = false;
        let first = self.random.index(self.seats.len());
        for step in 0..self.seats.len() {
            let shard = (first + step) % self.seats.len();
            if self.seats[shard].stopped || self.seats[shard].paused_until > self.now_ns {
                continue;
            }
            if self.random.percent(self.faults.pauses) {
                self.seats[shard].paused_until = self.now_ns + self.random.below(20_000_000);
                continue;
            }
            if self.has_work(shard) || self.random.percent(self.faults.spurious) {
                ran = true;
                self.run_shard(shard);
            }
        }
        for client in 0..self.clients.len() {
            ran |= self.client_step(client);
        }
        for visitor in 0..self.visitors.len() {
            ran |= self.visitor_step(visitor);
        }
        self.hear_of_purges();
        self.net.now_ns = self.now_ns;
        self.net.notice_dropped();
        if self.steps.is_multiple_of(16) && !self.settling {
            self.check_caps();
        }
        if ran {
            self.now_ns += self.random.between(5_000, 400_000);
            return true;
        }
        let Some(at) = self.next_due() else { return false };
        self.now_ns = at.max(self.now_ns + 1_000).min(self.leaps_to_ns);
        true
    }

    fn next_due(&self) -> Option<u64> {
        let seats = self.seats.iter().filter(|seat| !seat.stopped).filter_map(|seat| match seat.next {
            Next::At(at) => Some(at),
            _ => None,
        });
        let paused = self.seats.iter().map(|seat| seat.paused_until).filter(|at| *at > self.now_ns);
        let slots = self.seats.iter().flat_map(|seat| &seat.engine.slots).filter(|slot| slot.fd.is_some());
        let slots = slots.flat_map(|slot| [slot.quiet_ns, slot.writable_ns.filter(|at| *at > self.now_ns)]).flatten();
        let bells = self.bells.iter().flatten().copied();
        let disks = self.seats.iter().filter(|seat| !seat.stopped).filter_map(|seat| seat.engine.disk.due_ns());
        let clients = self.clients.iter().filter_map(|client| self.client_due(client));
        let visitors = self.visitors.iter().filter_map(|visitor| self.visitor_due(visitor));
        // Work that is due and was not done waits for a shard that stands still.
        seats
            .chain(paused)
            .chain(slots)
            .chain(bells)
            .chain(disks)
            .chain(clients)
            .chain(visitors)
            .filter(|at| *at > self.now_ns)
            .min()
    }

    /// Returns `true` if every replay is over.
    pub fn caught_up(&self) -> bool {
        let views = self.clients.iter().filter_map(|client| client.link.as_ref()).flat_map(|link| link.views.values());
        views.copied().all(|view| self.oracle.is_caught_up(view))
    }

    /// Everybody attached claims to have all up to the head of its session: the oracle judges that.
    pub fn claim_heads(&mut self) {
        let links = self.clients.iter().filter_map(|client| client.link.as_ref());
        let heads: Vec<(usize, u64)> =
            links.flat_map(|link| &link.views).map(|(session, view)| (*view, self.bounds(session).1)).collect();
        heads.into_iter().for_each(|(view, head)| self.oracle.reached(view, head));
    }

    pub fn run_for(&mut self, ms: u64) {
        let until = self.now_ns + ms * 1_000_000;
        while self.now_ns < until && self.oracle.violations.is_empty() {
            if !self.step() {
                self.now_ns = until;
            }
        }
    }

    /// Lets exactly this much time pass, whenever something happens next.
    pub fn pass_us(&mut self, us: u64) {
        let until = self.now_ns + us * 1_000;
        self.leaps_to_ns = until;
        while self.now_ns < until && self.oracle.violations.is_empty() && self.step() {}
        self.leaps_to_ns = u64::MAX;
        self.now_ns = self.now_ns.max(until);
    }

    /// Runs until `done`, at most `ms`. Returns whether it came to that.
    pub fn run_until(&mut self, ms: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let until = self.now_ns + ms * 1_000_000;
        while self.now_ns < until && self.oracle.violations.is_empty() {
            if done(self) {
                return true;
            }
            if !self.step() {
                return done(self);
            }
        }
        done(self)
    }
}

#[derive(Clone, Copy, Debug)]
enum Due {
    Bytes,
    End,
    Quiet,
    Writable,
}
