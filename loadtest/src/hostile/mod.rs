//! `hostile`: attacks on a gateway, each by one set of threads beside innocent clients. The innocents' latencies are compared
//! with those under the same attack on a bare sink, in turns, so that the attackers' own work is on both sides; a ratio is
//! printed, never judged. Other results are judged: innocents' refusals, the gateway's memory against its manual's formula, its
//! life.

mod client;
mod doors;
mod history;
mod innocents;
mod memory;
mod rooms;
mod sessions;
pub mod sink;
mod stage;
mod table;

use crate::clock::{now_ns, sleep_ms};
use crate::engine::affinity;
use crate::engine::run::Plan;
use crate::measure;
use crate::options::{Durability, HostileOptions, Options};
use crate::scrape;
use crate::session::Access;
use crate::target::{Target, TemporaryFolder};
use innocents::{Felt, Newcomers};
use memory::Held;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use stage::{Counts, Stage};
use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Time for the attackers to set up.
const SETTING_UP_MS: u64 = 60_000;

type Thread = fn(&Stage) -> Result<(), String>;

/// An attack.
pub struct Attack {
    pub name: &'static str,
    pub what: &'static str,
    threads: &'static [Thread],
    /// Settings besides the gateway's defaults, as `RINGWAY_SECTION__KEY` without the first word.
    settings: &'static [(&'static str, &'static str)],
    /// `true` for a log on disk.
    log: bool,
    tls: bool,
    beside: Beside,
    /// Attackers' places in rooms, for the bound of memory.
    memberships: u64,
}

/// The innocents measured beside the pairs that talk; with TLS, which the pairs do not speak, in their place.
#[derive(Clone, Copy)]
enum Beside {
    Nobody,
    Newcomers(Newcomers),
    Health,
}

const PLAIN: Attack =
    Attack { name: "", what: "", threads: &[], settings: &[], log: false, tls: false, beside: Beside::Nobody, memberships: 0 };

/// All of them, in the order in which they are run.
const ATTACKS: &[Attack] = &[
    Attack {
        name: "a1",
        what: "10 members join and leave one room, 190 commands a second each, with a log",
        threads: &[rooms::storm],
        log: true,
        memberships: 10,
        ..PLAIN
    },
    Attack {
        name: "a2",
        what: "10 connections of a user, in 128 rooms of long names each, set 1 KiB of presence data 190 times a second, with a log",
        threads: &[rooms::flood],
        log: true,
        memberships: 10 * 128,
        ..PLAIN
    },
    Attack {
        name: "a3",
        what: "10 connections of a user post to 1,900 new channels a second (sessions_per_user 500, sessions_per_shard 1500)",
        threads: &[sessions::channels],
        settings: &[("LIMITS__SESSIONS_PER_USER", "500"), ("LIMITS__SESSIONS_PER_SHARD", "1500")],
        beside: Beside::Newcomers(Newcomers { session: None, hesitate_ms: 0 }),
        ..PLAIN
    },
    Attack {
        name: "a4",
        what: "a user comes as 200 new clients a second into one session and leaves (members_per_session 200)",
        threads: &[sessions::members],
        settings: &[("LIMITS__MEMBERS_PER_SESSION", "200")],
        beside: Beside::Newcomers(Newcomers { session: Some(sessions::FILLED), hesitate_ms: 0 }),
        ..PLAIN
    },
    Attack {
        name: "a5",
        what: "250 watchers that take 2 KiB a second, while 10 members set 1 KiB of presence data 190 times a second",
        threads: &[rooms::watchers, rooms::tellers],
        ..PLAIN
    },
    Attack {
        name: "a6",
        what: "190 pages of history a second that nobody waits for, and 4 readers that ask a long session for a room without messages",
        threads: &[history::abandoned, history::searchers],
        settings: &[("LOG__MEMORY_BYTES", "8388608")],
        log: true,
        ..PLAIN
    },
    Attack {
        name: "b7",
        what: "1,500 silent connections a second from one address; newcomers take 1 s to their hello",
        threads: &[doors::flood],
        beside: Beside::Newcomers(Newcomers { session: Some("newcomers"), hesitate_ms: 1000 }),
        ..PLAIN
    },
    Attack {
        name: "b7-tls",
        what: "the same with TLS",
        threads: &[doors::flood],
        tls: true,
        beside: Beside::Newcomers(Newcomers { session: Some("newcomers"), hesitate_ms: 1000 }),
        ..PLAIN
    },
    Attack {
        name: "b8",
        what: "80 silent connections to the admin listener, of which 100 a second are made anew; /healthz is asked 20 times a second",
        threads: &[doors::admin],
        beside: Beside::Health,
        ..PLAIN
    },
    Attack {
        name: "c9",
        what: "200 times a second a page of session B and a token without B in one write; a ping behind them must be answered",
        threads: &[history::refreshers],
        ..PLAIN
    },
];

/// The named attacks; all if none is named.
fn chosen(names: &[String]) -> Result<Vec<&'static Attack>, String> {
    let find = |name: &String| {
        ATTACKS.iter().find(|attack| attack.name == name.to_ascii_lowercase()).ok_or_else(|| {
            let all: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
            format!("there is no attack {name:?}: they are {}", all.join(", "))
        })
    };
    if names.is_empty() { Ok(ATTACKS.iter().collect()) } else { names.iter().map(find).collect() }
}

/// A run, on the gateway or on the sink.
pub struct Outcome {
    /// The measurements, by kind of innocents: `messages`, `newcomers`, `/healthz`.
    felt: Vec<(&'static str, Felt)>,
    empty_bytes: u64,
    rss_bytes: u64,
    held: Held,
    /// The attack's actions per second.
    done_per_s: f64,
    told: Counts,
    owed: Counts,
    /// The reason why the gateway is dead or unhealthy; `None` if it is neither.
    dead: Option<String>,
}

/// Runs the attacks that are asked for. Returns `true` if every bound, times aside, was kept.
pub fn run(options: &HostileOptions) -> Result<bool, String> {
    let attacks = chosen(&options.attacks)?;
    if !(options.seconds > 0.0 && options.seconds < 1e6 && options.rate > 0.0) {
        return Err("--seconds and --rate are to be above 0".into());
    }
    let mut rows = Vec::new();
    for attack in &attacks {
        let (mut on_gateway, mut on_sink) = (Vec::new(), Vec::new());
        for pair in 0..options.pairs.max(1) {
            // Alternate which goes first, so that a drift affects both alike.
            for attacked in [pair % 2 == 0, pair % 2 == 1] {
                if !options.quiet {
                    let on = if attacked { "gateway" } else { "sink" };
                    let _ = writeln!(std::io::stderr(), "{} {}/{} on the {on}", attack.name, pair + 1, options.pairs.max(1));
                }
                let outcome = once(attack, options, attacked).map_err(|why| format!("{}: {why}", attack.name))?;
                if attacked { &mut on_gateway } else { &mut on_sink }.push(outcome);
            }
        }
        rows.extend(table::rows(attack, &on_gateway, &on_sink));
    }
    let shown = if options.markdown { table::markdown(&rows) } else { table::text(&rows, options) };
    std::io::stdout().write_all(shown.as_bytes()).map_err(|error| format!("cannot write to standard output: {error}"))?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&rows).map_err(|error| format!("the result does not fit JSON: {error}"))?;
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(rows.iter().all(|row| row.failures.is_empty()))
}

fn warmup_s(options: &HostileOptions) -> f64 {
    options.warmup_s.unwrap_or_else(|| (options.seconds / 4.0).min(1.0))
}

const CERTIFICATE: &[u8] = include_bytes!("../../../tests/data/tls/localhost.cert.pem");
const CERTIFICATE_KEY: &[u8] = include_bytes!("../../../tests/data/tls/localhost.key.pem");

/// The variables in a gateway's environment.
type Environment = Vec<(String, String)>;

/// A certificate for the gateway below this folder: the settings, and the certificate that a client trusts.
fn tls(folder: &TemporaryFolder) -> Result<(Environment, Arc<ClientConfig>), String> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut settings = Vec::new();
    for (key, name, bytes) in [("CERTIFICATE", "cert.pem", CERTIFICATE), ("KEY", "key.pem", CERTIFICATE_KEY)] {
        let path = folder.path().join(name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
        settings.push((format!("RINGWAY_TLS__{key}"), path.display().to_string()));
    }
    let client = || -> Result<ClientConfig, Box<dyn std::error::Error>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(CERTIFICATE)?)?;
        Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth())
    };
    Ok((settings, Arc::new(client().map_err(|error| format!("the client's TLS: {error}"))?)))
}

fn gateway_options(attack: &Attack, options: &HostileOptions) -> Options {
    let mut environment = vec![
        ("RINGWAY_LIMITS__SHARD_MEMORY_BYTES".to_owned(), memory::SHARD_MEMORY_BYTES.to_string()),
        ("RINGWAY_LOG__MEMORY_BYTES".to_owned(), memory::LOG_MEMORY_BYTES.to_string()),
    ];
    // Of two values of one name the later is in force.
    environment.extend(attack.settings.iter().map(|(key, value)| (format!("RINGWAY_{key}"), (*value).to_owned())));
    Options {
        spawn: Some(options.spawn.clone()),
        engine: options.engine.clone(),
        durability: attack.log.then_some(Durability::Written),
        default_limits: true,
        environment,
        server_core: options.server_core,
        load_core: vec![options.load_core],
        no_pin: options.no_pin,
        ..Options::defaults()
    }
}

fn once(attack: &Attack, options: &HostileOptions, attacked: bool) -> Result<Outcome, String> {
    affinity::raise_open_files();
    let mut gateway_options = gateway_options(attack, options);
    let folder = TemporaryFolder::new("hostile")?;
    let trusted = if attack.tls { Some(tls(&folder)?) } else { None };
    let client_config = trusted.map(|(settings, client)| {
        gateway_options.environment.extend(settings);
        client
    });
    let gateway = Target::of(&gateway_options)?;
    let (Some(pid), Some(admin), Some(minter)) = (gateway.pid, gateway.admin, gateway.minter.clone()) else {
        return Err("the gateway was not started by the harness".into());
    };
    let empty_bytes = measure::rss_exact_bytes(pid).unwrap_or(0);
    let sink = if attacked { None } else { Some(Target::sink(&gateway_options)?) };
    let (clients, admins) = sink.as_ref().map_or((gateway.address, admin), |sink| (sink.address, sink.address));
    let stage = Stage::new(clients, admins, minter, options.seconds);
    let done_watching = AtomicBool::new(false);
    let (felt, held) = std::thread::scope(|scope| {
        let attackers: Vec<_> = attack
            .threads
            .iter()
            .map(|thread| {
                let stage = &stage;
                scope.spawn(move || {
                    // Pinned, they share a core with the measured clients, and give way to them.
                    if !options.no_pin {
                        affinity::run_when_idle().map_err(|error| error.to_string())?;
                    }
                    thread(stage)
                })
            })
            .collect();
        let watching = scope.spawn(|| Held::watch(admin, &done_watching));
        let standing = wait_for_attackers(&stage, attack.threads.len(), || attackers.iter().any(|thread| thread.is_finished()));
        let felt = if standing { feel(attack, options, &gateway, &stage, client_config.as_ref()) } else { Ok(Vec::new()) };
        stage.end();
        let mut failed = None;
        for attacker in attackers {
            let ended = attacker.join().map_err(|_| "an attacker panicked; its message is above".to_owned());
            failed = failed.or_else(|| ended.and_then(|ended| ended).err());
        }
        done_watching.store(true, Ordering::SeqCst);
        let held = watching.join().map_err(|_| "the watch of the metrics panicked".to_owned())?;
        match failed {
            Some(why) => Err(why),
            None if !standing => Err(format!("the attackers did not stand within {} s", SETTING_UP_MS / 1000)),
            None => Ok((felt?, held)),
        }
    })?;
    let rss_bytes = measure::peak_rss_bytes(pid).unwrap_or(0);
    Ok(Outcome {
        felt,
        empty_bytes,
        rss_bytes,
        held,
        done_per_s: stage.done.load(Ordering::Relaxed) as f64 / options.seconds,
        told: stage.told.into_inner().unwrap_or_default(),
        owed: stage.owed.into_inner().unwrap_or_default(),
        dead: gateway.ended().or_else(|| unwell(&gateway)),
    })
}

/// Waits until all attackers are ready. Returns `false` if one has given up.
fn wait_for_attackers(stage: &Stage, count: usize, gave_up: impl Fn() -> bool) -> bool {
    let deadline_ns = now_ns() + SETTING_UP_MS * 1_000_000;
    while usize::try_from(stage.ready()).unwrap_or(0) < count {
        if gave_up() || now_ns() > deadline_ns {
            return false;
        }
        sleep_ms(1);
    }
    true
}

/// The reason why a living gateway is unhealthy; `None` if it is healthy.
fn unwell(gateway: &Target) -> Option<String> {
    let answer = scrape::get(gateway.admin?, "/healthz");
    let status = answer.as_ref().map(|answer| answer.lines().next().unwrap_or_default());
    match status {
        Ok(status) if status.split(' ').nth(1) == Some("200") => None,
        Ok(status) => Some(format!("/healthz says {status:?} after the attack")),
        Err(error) => Some(format!("/healthz does not answer after the attack: {error}")),
    }
}

/// The innocents' part of a run: begins the attack, and measures through it.
fn feel(
    attack: &Attack,
    options: &HostileOptions,
    gateway: &Target,
    stage: &Stage,
    client_config: Option<&Arc<ClientConfig>>,
) -> Result<Vec<(&'static str, Felt)>, String> {
    std::thread::scope(|scope| {
        let address = gateway.address;
        let beside = match (attack.beside, gateway.admin) {
            (Beside::Newcomers(newcomers), _) => {
                Some(("newcomers", scope.spawn(move || innocents::come(stage, address, client_config, newcomers))))
            }
            (Beside::Health, Some(admin)) => Some(("/healthz", scope.spawn(move || innocents::probe(stage, admin)))),
            _ => None,
        };
        let talked = if attack.tls { Ok(pass(stage, options)) } else { talk(attack, options, gateway, stage) };
        if talked.is_err() {
            // No attacker begins any more: those that wait for the beginning must stop.
            stage.end();
        }
        let mut felt = Vec::new();
        if let Some((who, beside)) = beside {
            felt.push((who, beside.join().map_err(|_| "a newcomer panicked; its message is above".to_owned())?));
        }
        if let Some(messages) = talked? {
            felt.push(("messages", messages));
        }
        Ok(felt)
    })
}

fn talk(attack: &Attack, options: &HostileOptions, gateway: &Target, stage: &Stage) -> Result<Option<Felt>, String> {
    let plan = Plan {
        label: attack.name.into(),
        cores: vec![(!options.no_pin).then_some(options.load_core)],
        aside: None,
        warmup_ms: milliseconds(warmup_s(options)),
        duration_ms: milliseconds(options.seconds),
        pid: None,
        admin: None,
        open_files: false,
        progress: !options.quiet && std::io::stderr().is_terminal(),
    };
    innocents::talk(&Access::new(gateway), stage, &plan, options).map(Some)
}

/// Waits for the time of a run without pairs that talk.
fn pass(stage: &Stage, options: &HostileOptions) -> Option<Felt> {
    let start_ns = now_ns() + milliseconds(warmup_s(options)) * 1_000_000;
    let end_ns = start_ns + milliseconds(options.seconds) * 1_000_000;
    stage.begin(start_ns, end_ns);
    while now_ns() < end_ns {
        sleep_ms(5);
    }
    None
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a duration on the command line, bounded here")]
fn milliseconds(seconds: f64) -> u64 {
    (seconds.clamp(0.0, 1e6) * 1e3).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Command};
    use clap::Parser as _;

    fn options(arguments: &[&str]) -> HostileOptions {
        let all = [&["ringway-loadtest", "hostile", "--spawn", "x"], arguments].concat();
        let Some(Command::Hostile(options)) = Cli::parse_from(all).command else { panic!("hostile was asked for") };
        options
    }

    #[test]
    fn attacks_are_chosen_by_name_and_all_without_one() {
        let names = |options: &HostileOptions| -> Vec<&str> {
            chosen(&options.attacks).unwrap().iter().map(|attack| attack.name).collect()
        };
        assert_eq!(names(&options(&["B7-TLS", "a1"])), ["b7-tls", "a1"]);
        assert_eq!(names(&options(&[])), ["a1", "a2", "a3", "a4", "a5", "a6", "b7", "b7-tls", "b8", "c9"]);
        let error = chosen(&options(&["a9"]).attacks).err().unwrap();
        assert!(error.contains("a9") && error.contains("b7-tls"), "{error}");
    }

    #[test]
    fn a_short_run_has_a_short_warm_up() {
        let short = options(&["-d", "1", "--pairs", "1"]);
        assert_eq!((warmup_s(&short), short.pairs, options(&[]).pairs), (0.25, 1, 5));
        assert_eq!((warmup_s(&options(&[])), warmup_s(&options(&["--warmup-s", "3"]))), (1.0, 3.0));
        assert_eq!((options(&["--seconds", "2"]).seconds, milliseconds(0.25)), (2.0, 250));
    }

    #[test]
    fn the_gateway_is_attacked_with_its_default_limits_but_for_what_is_said() {
        let attack = ATTACKS.iter().find(|attack| attack.name == "a6").unwrap();
        let made = gateway_options(attack, &options(&["--no-pin"]));
        assert!(made.default_limits && made.no_pin && made.durability == Some(Durability::Written));
        let memory = made.environment.iter().rfind(|(key, _)| key == "RINGWAY_LOG__MEMORY_BYTES").unwrap();
        assert_eq!(memory.1, "8388608");
        let bound = made.environment.iter().find(|(key, _)| key == "RINGWAY_LIMITS__SHARD_MEMORY_BYTES").unwrap();
        assert_eq!(bound.1, memory::SHARD_MEMORY_BYTES.to_string());
    }
}
