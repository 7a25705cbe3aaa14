//! Values with their places to [`Settings`], or to all mistakes: whatever was parsed to get them.
//!
//! Files and this machine's addresses, which lie outside the text, are looked at by the command line, over a [`Reading`].

use super::parse::{self, Given, Item, Value};
use super::problem::{ConfigError, Place, Problem};
use super::sections::{AuthKey, SECTIONS, Settings};
use super::value::{KeyAlgorithm, NodeName, Raw};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Keys of `[[auth.keys]]`.
const AUTH_KEY_FIELDS: [&str; 3] = ["kid", "alg", "file"];
const AUTH_KEYS_MAX: usize = 64;
const AUTH_KEYS: &str = "auth.keys";

/// The result of reading a configuration.
#[derive(Debug, Default)]
pub struct Reading {
    /// Valid if there is no problem; a setting with a problem has its default.
    pub settings: Settings,
    /// All mistakes in the text, in the order of their places.
    pub problems: Vec<Problem>,
    /// The place of each key that is set.
    places: BTreeMap<String, Place>,
    /// The keys that are given and wrong.
    wrong: BTreeSet<String>,
}

impl Settings {
    /// Reads the file's text and the environment's pairs, which win; of those, only names that begin with `RINGWAY_` and
    /// hold `__` are looked at.
    ///
    /// # Errors
    /// All mistakes, each with its place.
    pub fn parse(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let reading = Reading::of(text, environment);
        if reading.problems.is_empty() { Ok(reading.settings) } else { Err(ConfigError(reading.problems)) }
    }
}

impl Reading {
    /// Reads as [`Settings::parse`] does, and gives what is valid beside the mistakes.
    #[must_use]
    pub fn of(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Self {
        let parsed = parse::text(text);
        let mut reading = Self { problems: parsed.problems, ..Self::default() };
        for given in parsed.given.iter().chain(&parse::environment(environment)) {
            reading.top(given);
        }
        if parsed.readable {
            reading.together();
        } else {
            // The missing key may be in the part that could not be read.
            reading.wrong.insert(AUTH_KEYS.to_owned());
        }
        reading.sort();
        reading
    }

    /// Adds the requirement of a gateway for real clients beyond a valid configuration: a key to verify tokens with.
    #[must_use]
    pub fn for_serving(mut self) -> Self {
        if self.settings.auth_keys.is_empty() && !self.wrong.contains(AUTH_KEYS) {
            let message = "[[auth.keys]] is missing: without a key no token can be verified; make one with `ringway key new` and name \
                           its kid, alg and file";
            self.problem(Place::Whole, message.to_owned());
        }
        self
    }

    /// The place of a setting (`section.name`) or of a key's file (`auth.keys.KID.file`).
    #[must_use]
    pub fn place(&self, path: &str) -> Place {
        self.places.get(path).cloned().unwrap_or(Place::Whole)
    }

    /// Adds a mistake that was found elsewhere.
    pub fn add(&mut self, path: &str, message: String) {
        self.problem(self.place(path), message);
        self.sort();
    }

    fn sort(&mut self) {
        self.problems.sort_by(|left, right| left.place.cmp(&right.place));
    }

    fn problem(&mut self, place: Place, message: String) {
        self.problems.push(Problem { place, message });
    }

    fn top(&mut self, Given { name, item: Item { place, value } }: &Given) {
        let is_section = SECTIONS.iter().any(|section| section.name == name);
        match value {
            Value::Table(keys) if is_section => self.section(name, keys),
            // The environment's names are sections by their form; what is none has its message from the setting's look-up.
            Value::Table(keys) if matches!(place, Place::Environment(_)) => self.section(name, keys),
            value if is_section => self.problem(place.clone(), format!("{name} = {}: must be a table: [{name}]", value.shown())),
            _ => {
                let message = unknown(name, "section", SECTIONS.iter().map(|section| section.name.to_owned()), "");
                self.problem(place.clone(), message);
            }
        }
    }

    fn section(&mut self, section: &str, keys: &[Given]) {
        for Given { name, item } in keys {
            match (section, name.as_str(), &item.place) {
                ("auth", "keys", Place::Environment(_)) => {
                    self.problem(item.place.clone(), "keys are named in the file only, as [[auth.keys]]".to_owned());
                }
                ("auth", "keys", _) => self.auth_keys(item),
                _ => self.value(item.place.clone(), section, name, &item.value.raw()),
            }
        }
    }

    fn value(&mut self, place: Place, section: &str, key: &str, raw: &Raw) {
        let path = format!("{section}.{key}");
        match self.settings.set(section, key, raw) {
            Some(Ok(())) => {
                self.places.insert(path, place);
            }
            Some(Err(right)) => {
                self.problem(place, format!("{path} = {}: must be {right}", raw.shown()));
                self.wrong.insert(path);
            }
            None => {
                let message = unknown(&path, "setting", paths(), section);
                self.problem(place, message);
            }
        }
    }

    fn auth_keys(&mut self, item: &Item) {
        let known = self.problems.len();
        match &item.value {
            Value::List(entries) if entries.len() > AUTH_KEYS_MAX => {
                let message = format!("auth.keys: {} keys; at most {AUTH_KEYS_MAX} are taken", entries.len());
                self.problem(item.place.clone(), message);
            }
            Value::List(entries) => {
                for Item { place, value } in entries {
                    match value {
                        Value::Table(fields) => self.auth_key(place, fields),
                        other => {
                            let rule = "must be written as [[auth.keys]], a table for each key";
                            self.problem(place.clone(), format!("auth.keys holds {}: {rule}", other.shown()));
                        }
                    }
                }
            }
            _ => {
                let message = "auth.keys: must be written as [[auth.keys]], a table for each key".to_owned();
                self.problem(item.place.clone(), message);
            }
        }
        if self.problems.len() > known {
            self.wrong.insert(AUTH_KEYS.to_owned());
        }
    }

    fn auth_key(&mut self, place: &Place, fields: &[Given]) {
        let known = self.problems.len();
        let mut found: [Option<(&str, &Place)>; 3] = [None, None, None];
        for Given { name, item } in fields {
            match (AUTH_KEY_FIELDS.iter().position(|known| known == name), &item.value) {
                (Some(index), Value::One(Raw::Text(text)))
                    if (1..=256).contains(&text.len()) && !text.chars().any(char::is_control) =>
                {
                    found[index] = Some((text.as_str(), &item.place));
                }
                (Some(_), other) => {
                    let message = format!("auth.keys.{name} = {}: must be text of 1 to 256 bytes", other.shown());
                    self.problem(item.place.clone(), message);
                }
                (None, _) => {
                    let names = AUTH_KEY_FIELDS.iter().map(|field| format!("auth.keys.{field}"));
                    let message = unknown(&format!("auth.keys.{name}"), "setting", names, AUTH_KEYS);
                    self.problem(item.place.clone(), message);
                }
            }
        }
        let [kid, alg, file] = found;
        if let Some((alg, place)) = alg.filter(|(alg, _)| KeyAlgorithm::from_name(alg).is_none()) {
            let message = format!("auth.keys.alg = {alg:?}: must be one of \"EdDSA\", \"ES256\", \"RS256\", \"HS256\"");
            self.problem(place.clone(), message);
        }
        if let Some((kid, place)) = kid {
            if !NodeName::fits(kid) {
                self.problem(place.clone(), format!("auth.keys.kid = {kid:?}: must be {}", NodeName::KIND));
            } else if self.settings.auth_keys.iter().any(|key| key.kid == kid) {
                let message = format!("auth.keys.kid = {kid:?} stands twice: each key needs a kid of its own");
                self.problem(place.clone(), message);
            }
        }
        if self.problems.len() > known {
            return;
        }
        let (Some((kid, _)), Some((alg, _)), Some((file, file_place))) = (kid, alg, file) else {
            let missing: Vec<&str> =
                AUTH_KEY_FIELDS.iter().zip(&found).filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
            let message = format!("[[auth.keys]] lacks {}: each key has kid, alg and file", missing.join(" and "));
            return self.problem(place.clone(), message);
        };
        let Some(alg) = KeyAlgorithm::from_name(alg) else { return };
        self.places.insert(format!("{AUTH_KEYS}.{kid}.file"), file_place.clone());
        self.settings.auth_keys.push(AuthKey { kid: kid.to_owned(), alg, file: PathBuf::from(file) });
    }

    /// Checks several keys together; each message names the key to change. If one of them is wrong by itself, the check is left
    /// out.
    fn together(&mut self) {
        let settings = &self.settings;
        let (admin, server) = (settings.admin.listen, settings.server.listen);
        let proxies = settings.server.trusted_proxies.is_empty();
        let unguarded =
            |key: &str| format!("{key} without server.trusted_proxies: anybody could claim any address; list the proxies");
        let checks: [(bool, &[&str], String); 6] = [
            (
                !admin.ip().to_canonical().is_loopback(),
                &["admin.listen"],
                format!(
                    "admin.listen = \"{admin}\": must be a loopback address (127.0.0.1 or [::1]): whoever reaches this listener sees every \
                     connection without credentials; use a tunnel or a proxy that asks for them"
                ),
            ),
            (
                overlap(server, admin),
                &["admin.listen", "server.listen"],
                if admin == server {
                    format!("admin.listen and server.listen are both \"{admin}\": they must differ")
                } else {
                    format!("admin.listen = \"{admin}\" lies in server.listen = \"{server}\": their ports must differ")
                },
            ),
            (
                settings.tls.certificate.is_some() && settings.tls.key.is_none(),
                &["tls.certificate", "tls.key"],
                "tls.certificate without tls.key: set both, or neither".to_owned(),
            ),
            (
                settings.tls.key.is_some() && settings.tls.certificate.is_none(),
                &["tls.key", "tls.certificate"],
                "tls.key without tls.certificate: set both, or neither".to_owned(),
            ),
            (
                proxies && !settings.server.client_ip_header.0.is_empty(),
                &["server.client_ip_header", "server.trusted_proxies"],
                unguarded("server.client_ip_header"),
            ),
            (
                proxies && settings.server.proxy_protocol,
                &["server.proxy_protocol", "server.trusted_proxies"],
                unguarded("server.proxy_protocol"),
            ),
        ];
        for (found, keys, message) in checks {
            if found && !keys.iter().any(|key| self.wrong.contains(*key)) {
                // The first of them that was set is the one to change.
                let set = keys.iter().find_map(|key| self.places.get(*key)).cloned();
                self.problem(set.unwrap_or(Place::Whole), message);
            }
        }
    }
}

/// Returns `true` if two listeners would claim the same address and port. `[::]` includes IPv4, as on Linux by default.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (left, right) = (one.ip().to_canonical(), other.ip().to_canonical());
    let covers = |wide: std::net::IpAddr, ip: std::net::IpAddr| wide.is_unspecified() && (wide.is_ipv6() || ip.is_ipv4());
    one.port() == other.port() && one.port() != 0 && (left == right || covers(left, right) || covers(right, left))
}

fn paths() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| section.keys).map(super::Key::path)
}

/// The message for an unknown name, with the nearest known one. Names of the same section come first: a name in the wrong section
/// is rarer than a misspelt one.
fn unknown(name: &str, what: &str, known: impl Iterator<Item = String>, section: &str) -> String {
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    let score = |candidate: &str| {
        let near = strsim::jaro_winkler(&leaf(name), &leaf(candidate));
        let same_section = candidate.strip_suffix(&leaf(candidate)).is_some_and(|front| front.trim_end_matches('.') == section);
        if same_section { near } else { 0.95 * near }
    };
    let nearest = known.map(|candidate| (score(&candidate), candidate)).max_by(|left, right| left.0.total_cmp(&right.0));
    let shown: String = name.chars().filter(|character| !character.is_control()).take(80).collect();
    match nearest {
        Some((similarity, candidate)) if similarity > 0.75 => format!("{shown} is no {what}; did you mean {candidate}?"),
        _ => format!("{shown} is no {what}; `ringway config docs` lists all"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LogFormat;

    fn parse(text: &str, pairs: &[(&str, &str)]) -> Result<Settings, String> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::parse(text, pairs).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(parse("", &[]), Ok(Settings::default()));
        assert_eq!(parse("[limits]\n", &[]), Ok(Settings::default()));
    }

    #[test]
    fn a_whole_file() {
        let text = r#"
            [server]
            listen = "[::]:443"
            allowed_origins = ["https://App.example", "null"]
            trusted_proxies = ["10.0.0.0/8"]
            client_ip_header = "X-Forwarded-For"
            [tls]
            certificate = "a.pem"
            key = "b.pem"
            [limits]
            messages_per_second = 0
            [diagnostics]
            log_format = "json"
            [[auth.keys]]
            kid = "k1"
            alg = "EdDSA"
            file = "k1.pem"
            [[auth.keys]]
            kid = "k2"
            alg = "hs256"
            file = "k2.key"
        "#;
        let settings = parse(text, &[]).unwrap();
        assert_eq!(settings.server.listen, "[::]:443".parse().unwrap());
        assert_eq!(settings.server.allowed_origins[0].0, "https://app.example");
        assert_eq!(settings.server.client_ip_header.0, "x-forwarded-for");
        assert_eq!(settings.tls.files(), Some((&"a.pem".into(), &"b.pem".into())));
        assert_eq!(settings.limits.messages_per_second, 0);
        assert_eq!(settings.diagnostics.log_format, LogFormat::Json);
        assert_eq!(settings.auth_keys.len(), 2);
        assert_eq!(settings.auth_keys[1].alg, KeyAlgorithm::Hs256);
        let lacking = |text| Reading::of(text, []).for_serving().problems;
        assert_eq!(lacking(text), []);
        let missing = lacking("");
        assert!(missing.len() == 1 && missing[0].message.contains("ringway key new"), "{missing:?}");
        // No message if the key's own mistake is reported already, or the text may not have been read to its end.
        for text in ["[[auth.keys]]\nkid = \"a\"", "[auth]\nkeys = 1", "[server\n"] {
            assert_eq!(lacking(text).len(), 1, "{text}");
        }
    }

    /// Each bad input with its whole message.
    const BAD: [(&str, &str); 26] = [
        (
            "[limits]\nmesages_per_second = 1",
            "line 2: limits.mesages_per_second is no setting; did you mean limits.messages_per_second?",
        ),
        (
            "[server]\nmax_message_bytes = 1",
            "line 2: server.max_message_bytes is no setting; did you mean limits.max_message_bytes?",
        ),
        ("[server]\nxyzzy = 1", "line 2: server.xyzzy is no setting; `ringway config docs` lists all"),
        ("\n[limit]\na = 1", "line 2: limit is no section; did you mean limits?"),
        ("[zzz]", "line 1: zzz is no section; `ringway config docs` lists all"),
        ("listen = 1", "line 1: listen is no section; `ringway config docs` lists all"),
        ("server = 5", "line 1: server = 5: must be a table: [server]"),
        (
            "[server]\nlisten = 8080",
            "line 2: server.listen = 8080: must be an IP address and a port, like \"127.0.0.1:8080\" or \"[::]:8080\"",
        ),
        (
            "[server]\nlisten = \"localhost:1\"",
            "line 2: server.listen = \"localhost:1\": must be an IP address and a port, like \"127.0.0.1:8080\" or \"[::]:8080\"",
        ),
        ("[server]\npin = 1", "line 2: server.pin = 1: must be true or false"),
        (
            "[server]\nshards = 257",
            "line 2: server.shards = 257: must be a whole number from 1 to 256, or 0 to let the gateway choose",
        ),
        ("[server]\nnode = \"\"", "line 2: server.node = \"\": must be 1 to 64 letters, digits, \"_\", \".\" or \"-\""),
        (
            "[server]\nallowed_origins = [\"a.example\"]",
            "line 2: server.allowed_origins = [\"a.example\"]: must be a list of origins like \"https://app.example.com\" (a scheme, a host, a \
             port unless usual; no path), or \"*\"; \"a.example\" is not one: it has no scheme",
        ),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/40\"]",
            "line 2: server.trusted_proxies = [\"10.0.0.0/40\"]: must be a list of addresses or networks like \"10.0.0.0/8\"; \
             \"10.0.0.0/40\" is not one: it is no address, or has too many bits",
        ),
        (
            "[server]\nclient_ip_header = \"x-real-ip\"",
            "line 2: server.client_ip_header without server.trusted_proxies: anybody could claim any address; list the proxies",
        ),
        (
            "[limits]\nmessages_per_second = \"many\"",
            "line 2: limits.messages_per_second = \"many\": must be a whole number from 1 to 1000000000, or 0 for no limit",
        ),
        (
            "[limits]\nmessages_per_second = -1",
            "line 2: limits.messages_per_second = -1: must be a whole number from 1 to 1000000000, or 0 for no limit",
        ),
        (
            "[limits]\nmax_message_bytes = 65537",
            "line 2: limits.max_message_bytes = 65537: must be a whole number from 1024 to 65536",
        ),
        ("[limits]\nstall_ms = 1.5", "line 2: limits.stall_ms = 1.5: must be a whole number from 1 to 2592000000"),
        ("[session]\nhistory = \"some\"", "line 2: session.history = \"some\": must be one of \"full\", \"from_join\""),
        ("[tls]\nkey = \"k\"", "line 2: tls.key without tls.certificate: set both, or neither"),
        (
            "[admin]\nlisten = \"0.0.0.0:9090\"",
            "line 2: admin.listen = \"0.0.0.0:9090\": must be a loopback address (127.0.0.1 or [::1]): whoever reaches this listener sees \
             every connection without credentials; use a tunnel or a proxy that asks for them",
        ),
        ("[[auth.keys]]\nkid = \"a\"", "line 1: [[auth.keys]] lacks alg and file: each key has kid, alg and file"),
        (
            "[[auth.keys]]\nkid = \"a\"\nalg = \"none\"\nfile = \"f\"",
            "line 3: auth.keys.alg = \"none\": must be one of \"EdDSA\", \"ES256\", \"RS256\", \"HS256\"",
        ),
        ("[[auth.keys]]\nkid = \"a\"\nfiel = \"f\"", "line 3: auth.keys.fiel is no setting; did you mean auth.keys.file?"),
        ("[auth]\nkeys = \"k\"", "line 2: auth.keys: must be written as [[auth.keys]], a table for each key"),
    ];

    #[test]
    fn bad_input_is_told_what_would_be_right() {
        for (text, message) in BAD {
            assert_eq!(parse(text, &[]).unwrap_err(), message, "{text}");
        }
    }

    #[test]
    fn all_mistakes_of_a_key_are_told_at_once() {
        let error = parse("[[auth.keys]]\nalg = \"none\"\nfiel = \"f\"", &[]).unwrap_err();
        assert!(error.contains("auth.keys.alg = \"none\"") && error.contains("auth.keys.fiel"), "{error}");
    }

    #[test]
    fn two_keys_of_one_id() {
        let text = "[[auth.keys]]\nkid = \"a\"\nalg = \"ES256\"\nfile = \"f\"\n".repeat(2);
        assert_eq!(parse(&text, &[]).unwrap_err(), "line 6: auth.keys.kid = \"a\" stands twice: each key needs a kid of its own");
    }

    #[test]
    fn what_is_not_toml_has_its_line() {
        let error = parse("[server]\nnode = \"a\nshards = 1\n", &[]).unwrap_err();
        assert!(error.starts_with("line 2: not TOML: "), "{error}");
        let error = parse("[server]\nnode = \"a\"\nnode = \"b\"\n", &[]).unwrap_err();
        assert_eq!(error, "line 3: not TOML: duplicate key \"node\": it stands above already");
        // Keys that the mistake does not affect are judged all the same.
        let text = "[server]\nshards = 1\nshards = 2\npin = 1\n\"node\" = \"a\"\n'node' = \"b\"\n[server]\n[log]\ndirr = \"d\"\n";
        let error = parse(text, &[]).unwrap_err();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "line 3: not TOML: duplicate key \"shards\": it stands above already",
                "line 4: server.pin = 1: must be true or false",
                "line 6: not TOML: duplicate key \"node\": it stands above already",
                "line 7: not TOML: duplicate key \"server\": it stands above already",
                "line 9: log.dirr is no setting; did you mean log.dir?",
            ]
        );
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let error = Settings::parse("[server]\npin = 1\nnode = 2\n[drain]\ngrace = 1\n", []).unwrap_err();
        let places: Vec<Place> = error.0.iter().map(|problem| problem.place.clone()).collect();
        assert_eq!(places, [2, 3, 5].map(Place::Line), "{error}");
    }

    /// A mistake does not hide those of several keys together, save where it is one of these.
    #[test]
    fn mistakes_of_keys_together_are_told_beside_others() {
        let text = "[server]\nlisten = \"0.0.0.0:1\"\nnode = 1\nproxy_protocol = true\n[admin]\nlisten = \"127.0.0.1:1\"\n[tls]\nkey = \"k\"\n\
                    certificate = 1\n";
        let error = Settings::parse(text, []).unwrap_err();
        let places: Vec<Place> = error.0.iter().map(|problem| problem.place.clone()).collect();
        assert_eq!(places, [3, 4, 6, 9].map(Place::Line), "{error}");
        assert!(error.to_string().contains("admin.listen = \"127.0.0.1:1\" lies in server.listen = \"0.0.0.0:1\""), "{error}");
    }

    #[test]
    fn listeners_that_would_be_in_each_other_s_way() {
        for (server, admin, way) in [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("127.0.0.2:1", "127.0.0.1:1", false),
            ("0.0.0.0:1", "127.0.0.1:1", true),
            ("0.0.0.0:1", "[::1]:1", false),
            ("[::]:1", "127.0.0.1:1", true),
            ("[::]:1", "[::1]:1", true),
            ("[::1]:1", "127.0.0.1:1", false),
            ("[::ffff:127.0.0.1]:1", "127.0.0.1:1", true),
        ] {
            let (server, admin): (SocketAddr, SocketAddr) = (server.parse().unwrap(), admin.parse().unwrap());
            assert_eq!((overlap(server, admin), overlap(admin, server)), (way, way), "{server} {admin}");
        }
    }

    #[test]
    fn the_environment_wins() {
        let pairs = [
            ("RINGWAY_SERVER__LISTEN", "127.0.0.1:1"),
            ("RINGWAY_LIMITS__MESSAGES_PER_SECOND", "1_000"),
            ("RINGWAY_DIAGNOSTICS__ECHO", "true"),
            ("RINGWAY_SERVER__ALLOWED_ORIGINS", "https://a.example, https://b.example"),
            ("RINGWAY_SEED", "not ours"),
            ("PATH", "/bin"),
        ];
        let settings = parse("[server]\nlisten = \"127.0.0.1:2\"", &pairs).unwrap();
        assert_eq!(settings.server.listen.port(), 1);
        assert_eq!(settings.limits.messages_per_second, 1000);
        assert!(settings.diagnostics.echo);
        assert_eq!(settings.server.allowed_origins.len(), 2);
    }

    #[test]
    fn the_environment_is_checked_alike() {
        for (pair, message) in [
            (("RINGWAY_SERVER__PORT", "1"), "environment RINGWAY_SERVER__PORT: server.port is no setting; "),
            (("RINGWAY_SERVER__PIN", "yes"), "environment RINGWAY_SERVER__PIN: server.pin = \"yes\": must be true or false"),
            (("RINGWAY_AUTH__KEYS", "k"), "environment RINGWAY_AUTH__KEYS: keys are named in the file only, as [[auth.keys]]"),
            (
                ("RINGWAY_ADMIN__LISTEN", "[::]:1"),
                "environment RINGWAY_ADMIN__LISTEN: admin.listen = \"[::]:1\": must be a loopback",
            ),
        ] {
            let error = parse("", &[pair]).unwrap_err();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
