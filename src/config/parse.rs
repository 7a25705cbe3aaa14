//! TOML text and environment pairs to [`Settings`].

use super::sections::{AuthKey, SECTIONS, Settings};
use super::value::{KeyAlgorithm, Raw};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Keys of `[[auth.keys]]`.
const AUTH_KEY_FIELDS: [&str; 3] = ["kid", "alg", "file"];
const AUTH_KEYS_MAX: usize = 64;
/// The configuration file's size.
const TEXT_BYTES_MAX: usize = 1024 * 1024;
const ENVIRONMENT_PREFIX: &str = "RINGWAY_";

/// Where a mistake stands; in this order they are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Environment(String),
    /// The file as a whole, or something that is missing from it.
    Whole,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// What was wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Line(line) => write!(formatter, "line {line}: {}", self.message),
            Place::Environment(name) => write!(formatter, "environment {name}: {}", self.message),
            Place::Whole => formatter.write_str(&self.message),
        }
    }
}

/// All mistakes of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigError(pub Vec<Problem>);

/// What has been read so far.
struct Reader<'t> {
    text: &'t str,
    settings: Settings,
    problems: Vec<Problem>,
    /// Where each set key stands, for the checks of several keys together.
    places: BTreeMap<String, Place>,
}

impl Settings {
    /// Reads the file's text and the environment's pairs, which win; of those, only names that begin with `RINGWAY_` and
    /// hold `__` are looked at.
    ///
    /// # Errors
    /// All mistakes, each with its place.
    pub fn parse(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let mut reader = Reader { text, settings: Self::default(), problems: Vec::new(), places: BTreeMap::new() };
        reader.file();
        let mut pairs: Vec<(String, String)> = environment.into_iter().collect();
        pairs.sort();
        for (name, value) in pairs {
            reader.environment(&name, value);
        }
        if reader.problems.is_empty() {
            reader.together();
        }
        reader.problems.sort_by(|left, right| left.place.cmp(&right.place));
        if reader.problems.is_empty() { Ok(reader.settings) } else { Err(ConfigError(reader.problems)) }
    }

    /// What a gateway for real clients needs beyond a valid configuration: a key to verify tokens with.
    ///
    /// # Errors
    /// What is missing.
    pub fn ready_to_serve(&self) -> Result<(), ConfigError> {
        if self.auth_keys.is_empty() {
            let message =
                "[[auth.keys]] is missing: without a key no token can be verified; make one with `ringway key new` and name \
                           its kid, alg and file"
                    .to_owned();
            return Err(ConfigError(vec![Problem { place: Place::Whole, message }]));
        }
        Ok(())
    }
}

impl Reader<'_> {
    fn problem(&mut self, place: Place, message: String) {
        self.problems.push(Problem { place, message });
    }

    fn line(&self, at: usize) -> Place {
        let before = self.text.as_bytes().iter().take(at);
        Place::Line(1 + before.filter(|byte| **byte == b'\n').count())
    }

    fn file(&mut self) {
        if self.text.len() > TEXT_BYTES_MAX {
            let message = format!("the file has {} bytes; at most {TEXT_BYTES_MAX} are read", self.text.len());
            return self.problem(Place::Whole, message);
        }
        let text = self.text;
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let place = error.span().map_or(Place::Whole, |span| self.line(span.start));
                return self.problem(place, format!("not TOML: {}", error.message().replace('\n', "; ")));
            }
        };
        for (name, value) in table.get_ref() {
            let place = self.line(name.span().start);
            let section: &str = name.get_ref();
            match value.get_ref() {
                DeValue::Table(keys) if is_section(section) => self.section(section, keys),
                _ if is_section(section) => {
                    self.problem(place, format!("{section} = {}: must be a table: [{section}]", shown(value.get_ref())));
                }
                _ => {
                    let message = unknown(section, "section", SECTIONS.iter().map(|section| section.name.to_owned()), "");
                    self.problem(place, message);
                }
            }
        }
    }

    fn section(&mut self, section: &str, keys: &DeTable<'_>) {
        for (name, value) in keys {
            let place = self.line(name.span().start);
            let key: &str = name.get_ref();
            if section == "auth" && key == "keys" {
                self.auth_keys(&place, value);
            } else {
                self.value(place, section, key, &raw(value.get_ref()));
            }
        }
    }

    fn value(&mut self, place: Place, section: &str, key: &str, raw: &Raw) {
        let path = format!("{section}.{key}");
        match self.settings.set(section, key, raw) {
            Some(Ok(())) => {
                self.places.insert(path, place);
            }
            Some(Err(right)) => self.problem(place, format!("{path} = {}: must be {right}", raw.shown())),
            None => {
                let message = unknown(&path, "setting", paths(), section);
                self.problem(place, message);
            }
        }
    }

    fn environment(&mut self, name: &str, value: String) {
        let Some((section, key)) = name.strip_prefix(ENVIRONMENT_PREFIX).and_then(|rest| rest.split_once("__")) else { return };
        let (section, key) = (section.to_ascii_lowercase(), key.to_ascii_lowercase());
        let place = Place::Environment(name.to_owned());
        if section == "auth" && key == "keys" {
            return self.problem(place, "keys are named in the file only, as [[auth.keys]]".to_owned());
        }
        self.value(place, &section, &key, &Raw::Environment(value));
    }

    fn auth_keys(&mut self, place: &Place, value: &Spanned<DeValue<'_>>) {
        let DeValue::Array(entries) = value.get_ref() else {
            return self.problem(place.clone(), "auth.keys: must be written as [[auth.keys]], a table for each key".to_owned());
        };
        if entries.len() > AUTH_KEYS_MAX {
            return self.problem(place.clone(), format!("auth.keys: {} keys; at most {AUTH_KEYS_MAX} are taken", entries.len()));
        }
        for entry in entries {
            let place = self.line(entry.span().start);
            match entry.get_ref() {
                DeValue::Table(fields) => self.auth_key(place, fields),
                other => {
                    let message =
                        format!("auth.keys holds {}: must be written as [[auth.keys]], a table for each key", shown(other));
                    self.problem(place, message);
                }
            }
        }
    }

    fn auth_key(&mut self, place: Place, fields: &DeTable<'_>) {
        let known = self.problems.len();
        let mut found: [Option<String>; 3] = [None, None, None];
        for (name, value) in fields {
            let place = self.line(name.span().start);
            let field: &str = name.get_ref();
            match (AUTH_KEY_FIELDS.iter().position(|known| *known == field), value.get_ref()) {
                (Some(index), DeValue::String(text))
                    if (1..=256).contains(&text.len()) && !text.chars().any(char::is_control) =>
                {
                    found[index] = Some(text.to_string());
                }
                (Some(_), other) => {
                    let message = format!("auth.keys.{field} = {}: must be text of 1 to 256 bytes", shown(other));
                    self.problem(place, message);
                }
                (None, _) => {
                    let names = AUTH_KEY_FIELDS.iter().map(|field| format!("auth.keys.{field}"));
                    let message = unknown(&format!("auth.keys.{field}"), "setting", names, "auth.keys");
                    self.problem(place, message);
                }
            }
        }
        if let Some(alg) = found[1].as_ref().filter(|alg| KeyAlgorithm::from_name(alg).is_none()) {
            let message = format!("auth.keys.alg = {alg:?}: must be one of \"EdDSA\", \"ES256\", \"RS256\", \"HS256\"");
            self.problem(place.clone(), message);
        }
        if self.problems.len() > known {
            return;
        }
        let [Some(kid), Some(alg), Some(file)] = found else {
            let missing: Vec<&str> =
                AUTH_KEY_FIELDS.iter().zip(&found).filter(|(_, value)| value.is_none()).map(|(name, _)| *name).collect();
            return self.problem(place, format!("[[auth.keys]] lacks {}: each key has kid, alg and file", missing.join(" and ")));
        };
        let Some(algorithm) = KeyAlgorithm::from_name(&alg) else { return };
        if self.settings.auth_keys.iter().any(|key| key.kid == kid) {
            return self.problem(place, format!("auth.keys.kid = {kid:?} stands twice: each key needs a kid of its own"));
        }
        self.settings.auth_keys.push(AuthKey { kid, alg: algorithm, file: PathBuf::from(file) });
    }

    /// The checks of several keys together; each names the place of the key that is to change.
    fn together(&mut self) {
        let place = |places: &BTreeMap<String, Place>, path: &str| places.get(path).cloned().unwrap_or(Place::Whole);
        let settings = &self.settings;
        let mut found: Vec<(&str, String)> = Vec::new();
        if !settings.admin.listen.ip().to_canonical().is_loopback() {
            found.push((
                "admin.listen",
                format!(
                    "admin.listen = \"{}\": must be a loopback address (127.0.0.1 or [::1]): whoever reaches this listener sees every \
                     connection without credentials; use a tunnel or a proxy that asks for them",
                    settings.admin.listen
                ),
            ));
        }
        if settings.admin.listen == settings.server.listen && settings.server.listen.port() != 0 {
            found.push((
                "admin.listen",
                format!("admin.listen and server.listen are both \"{}\": they must differ", settings.admin.listen),
            ));
        }
        match (&settings.tls.certificate, &settings.tls.key) {
            (Some(_), None) => {
                found.push(("tls.certificate", "tls.certificate without tls.key: set both, or neither".to_owned()));
            }
            (None, Some(_)) => found.push(("tls.key", "tls.key without tls.certificate: set both, or neither".to_owned())),
            _ => {}
        }
        if settings.server.trusted_proxies.is_empty() {
            if !settings.server.client_ip_header.0.is_empty() {
                let message =
                    "server.client_ip_header without server.trusted_proxies: anybody could claim any address; list the proxies";
                found.push(("server.client_ip_header", message.to_owned()));
            }
            if settings.server.proxy_protocol {
                let message =
                    "server.proxy_protocol without server.trusted_proxies: anybody could claim any address; list the proxies";
                found.push(("server.proxy_protocol", message.to_owned()));
            }
        }
        let found: Vec<Problem> =
            found.into_iter().map(|(path, message)| Problem { place: place(&self.places, path), message }).collect();
        self.problems.extend(found);
    }
}

fn is_section(name: &str) -> bool {
    SECTIONS.iter().any(|section| section.name == name)
}

fn paths() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| section.keys).map(super::Key::path)
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(integer) => {
            i64::from_str_radix(integer.as_str(), integer.radix()).map_or_else(|_| Raw::Other(integer.to_string()), Raw::Integer)
        }
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            texts.map_or_else(|| Raw::Other(shown(value)), Raw::List)
        }
        _ => Raw::Other(shown(value)),
    }
}

/// A value as a message shows it.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Integer(integer) => integer.to_string(),
        DeValue::Float(float) => float.to_string(),
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::String(text) => Raw::Text(text.to_string()).shown(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The message for a name that is none, with the nearest one that is: within the section first, since a name that stands in
/// the wrong section is rarer than a slip of the finger.
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
        assert!(settings.ready_to_serve().is_ok());
        assert!(Settings::default().ready_to_serve().unwrap_err().to_string().contains("ringway key new"));
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
             port unless usual; no path), or \"*\"; \"a.example\" is not one",
        ),
        (
            "[server]\ntrusted_proxies = [\"10.0.0.0/40\"]",
            "line 2: server.trusted_proxies = [\"10.0.0.0/40\"]: must be a list of addresses or networks like \"10.0.0.0/8\"; \
             \"10.0.0.0/40\" is not one",
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
            "line 1: auth.keys.alg = \"none\": must be one of \"EdDSA\", \"ES256\", \"RS256\", \"HS256\"",
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
        assert_eq!(parse(&text, &[]).unwrap_err(), "line 5: auth.keys.kid = \"a\" stands twice: each key needs a kid of its own");
    }

    #[test]
    fn what_is_not_toml_has_its_line() {
        let error = parse("[server]\nnode = \"a\nshards = 1\n", &[]).unwrap_err();
        assert!(error.starts_with("line 2: not TOML: "), "{error}");
        let error = parse("[server]\nnode = \"a\"\nnode = \"b\"\n", &[]).unwrap_err();
        assert!(error.starts_with("line 3: not TOML: duplicate key"), "{error}");
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let error = Settings::parse("[server]\npin = 1\nnode = 2\n[drain]\ngrace = 1\n", []).unwrap_err();
        let places: Vec<Place> = error.0.iter().map(|problem| problem.place.clone()).collect();
        assert_eq!(places, [2, 3, 5].map(Place::Line), "{error}");
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
