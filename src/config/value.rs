//! The types a setting may have: how each is read from TOML or from environment text, checked, and written back.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A value before it has a type.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Bool(bool),
    Integer(i64),
    Text(String),
    List(Vec<String>),
    /// Environment text, which has no type of its own.
    Environment(String),
    /// A type that no setting takes (a float, a date, a table, a list of something else), as written.
    Other(String),
}

impl Raw {
    /// The value as a message shows it: bounded, one line.
    pub(super) fn shown(&self) -> String {
        let text = match self {
            Self::Bool(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Text(text) | Self::Environment(text) => format!("{text:?}"),
            Self::List(items) => format!("{items:?}"),
            Self::Other(text) => text.clone(),
        };
        let mut short: String = text.chars().filter(|character| !character.is_control()).take(80).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        short
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Environment(text) => Some(text),
            _ => None,
        }
    }
}

/// Restrictions on a setting's value beyond its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Any value of the type.
    Any,
    /// A number from the first to the second.
    Range(u64, u64),
    /// 0 for no limit, or a number from the first to the second.
    OffOr(u64, u64),
    /// 0 for a choice the gateway makes, or a number from the first to the second.
    AutoOr(u64, u64),
}

impl Allowed {
    fn takes(self, number: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Range(low, high) => (low..=high).contains(&number),
            Self::OffOr(low, high) | Self::AutoOr(low, high) => number == 0 || (low..=high).contains(&number),
        }
    }

    fn says(self, kind: &str) -> String {
        match self {
            Self::Any => kind.to_owned(),
            Self::Range(low, high) => format!("{kind} from {low} to {high}"),
            Self::OffOr(low, high) => format!("{kind} from {low} to {high}, or 0 for no limit"),
            Self::AutoOr(low, high) => format!("{kind} from {low} to {high}, or 0 to let the gateway choose"),
        }
    }
}

/// A type that a setting may have. The error of [`Value::read`] says what would be right.
pub(super) trait Value: Sized {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String>;
    /// The value as TOML.
    fn write(&self) -> String;
    /// The values that the type accepts, for the reference table.
    fn kind(allowed: Allowed) -> String;
}

/// A TOML basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if control.is_control() => out.push_str(&format!("\\u{:04X}", control as u32)),
            plain => out.push(plain),
        }
    }
    out.push('"');
    out
}

impl Value for bool {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        match raw {
            Raw::Bool(value) => Ok(*value),
            Raw::Environment(text) if text == "true" => Ok(true),
            Raw::Environment(text) if text == "false" => Ok(false),
            _ => Err(Self::kind(allowed)),
        }
    }

    fn write(&self) -> String {
        self.to_string()
    }

    fn kind(_: Allowed) -> String {
        "true or false".to_owned()
    }
}

macro_rules! number {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
                let number = match raw {
                    Raw::Integer(value) => u64::try_from(*value).ok(),
                    Raw::Environment(text) => text.replace('_', "").parse().ok(),
                    _ => None,
                };
                let fits = number.filter(|number| allowed.takes(*number)).and_then(|number| Self::try_from(number).ok());
                fits.ok_or_else(|| Self::kind(allowed))
            }

            fn write(&self) -> String {
                self.to_string()
            }

            fn kind(allowed: Allowed) -> String {
                allowed.says("a whole number")
            }
        }
    )+};
}
number!(u64, u32, usize);

impl Value for SocketAddr {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        raw.text().and_then(|text| text.parse().ok()).ok_or_else(|| Self::kind(allowed))
    }

    fn write(&self) -> String {
        quoted(&self.to_string())
    }

    fn kind(_: Allowed) -> String {
        "an IP address and a port, like \"127.0.0.1:8080\" or \"[::]:8080\"".to_owned()
    }
}

/// A name of 1 to 64 of `[A-Za-z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName(pub String);

impl NodeName {
    /// The rule, which key ids have too.
    pub(super) const KIND: &str = "1 to 64 letters, digits, \"_\", \".\" or \"-\"";

    pub(super) fn fits(text: &str) -> bool {
        (1..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    }
}

impl Value for NodeName {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        raw.text().filter(|text| Self::fits(text)).map(|text| Self(text.to_owned())).ok_or_else(|| Self::kind(allowed))
    }

    fn write(&self) -> String {
        quoted(&self.0)
    }

    fn kind(_: Allowed) -> String {
        Self::KIND.to_owned()
    }
}

/// Free text: an issuer, an audience. Empty is "not set".
impl Value for String {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        let fits = |text: &&str| text.len() <= 1024 && !text.chars().any(char::is_control);
        raw.text().filter(fits).map(str::to_owned).ok_or_else(|| Self::kind(allowed))
    }

    fn write(&self) -> String {
        quoted(self)
    }

    fn kind(_: Allowed) -> String {
        "text of up to 1,024 bytes without control characters".to_owned()
    }
}

/// A path; empty is "not set".
impl Value for Option<PathBuf> {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        let text = raw.text().filter(|text| !text.contains('\0')).ok_or_else(|| Self::kind(allowed))?;
        Ok((!text.is_empty()).then(|| PathBuf::from(text)))
    }

    fn write(&self) -> String {
        quoted(&self.as_ref().map_or_else(String::new, |path| path.display().to_string()))
    }

    fn kind(_: Allowed) -> String {
        "the path of a file".to_owned()
    }
}

/// The name of an HTTP header in lower case (RFC 9110 5.1); empty is "not set".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderName(pub String);

impl Value for HeaderName {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        let fits = |text: &&str| {
            text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
        };
        raw.text().filter(fits).map(|text| Self(text.to_ascii_lowercase())).ok_or_else(|| Self::kind(allowed))
    }

    fn write(&self) -> String {
        quoted(&self.0)
    }

    fn kind(_: Allowed) -> String {
        "the name of an HTTP header, like \"x-forwarded-for\"".to_owned()
    }
}

/// Reads a list, item by item; environment text is split at commas. Each wrong item has its message.
fn read_list<T>(raw: &Raw, kind: &str, item: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items: Vec<&str> = match raw {
        Raw::List(items) => items.iter().map(String::as_str).collect(),
        Raw::Environment(text) => text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect(),
        _ => return Err(kind.to_owned()),
    };
    let mut wrong = String::new();
    let read =
        items.iter().filter_map(|text| item(text).map_err(|why| wrong.push_str(&format!("; {text:?} is not one: {why}"))).ok());
    let read = read.collect();
    if wrong.is_empty() { Ok(read) } else { Err(format!("{kind}{wrong}")) }
}

fn write_list<T>(items: &[T], item: impl Fn(&T) -> String) -> String {
    format!("[{}]", items.iter().map(|value| quoted(&item(value))).collect::<Vec<_>>().join(", "))
}

/// An origin as a browser sends it (RFC 6454 7.1): `scheme://host` or `scheme://host:port` in lower case, or
/// `null`; or `*`, which stands for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(pub String);

impl Origin {
    /// Parses the form in which browsers send an origin (RFC 6454 section 6.2). A form that no browser sends is refused, since it
    /// could never match.
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        if text == "null" || text == "*" {
            return Ok(Self(text));
        }
        let (scheme, authority) = text.split_once("://").ok_or("it has no scheme")?;
        let in_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        if scheme.is_empty() || !scheme.bytes().all(in_scheme) {
            return Err("its scheme is malformed".to_owned());
        }
        if authority.contains(['/', '?', '#', '@']) {
            return Err("it has more than a scheme, a host and a port (a slash at the end counts)".to_owned());
        }
        if authority.contains('*') {
            return Err("wildcards inside an origin are not supported".to_owned());
        }
        if !authority.is_ascii() {
            return Err("its host is not ASCII; browsers send it as xn--…".to_owned());
        }
        if text.len() > 300 {
            return Err("it is longer than 300 bytes".to_owned());
        }
        let port_at = authority.rfind(']').map_or(0, |bracket| bracket + 1);
        let (host, port) = match authority[port_at..].find(':') {
            Some(colon) => (&authority[..port_at + colon], Some(&authority[port_at + colon + 1..])),
            None => (authority, None),
        };
        let host = origin_host(host)?;
        let Some(port) = port else { return Ok(Self(format!("{scheme}://{host}"))) };
        let number = port.parse::<u16>().ok().filter(|_| port.bytes().all(|byte| byte.is_ascii_digit()));
        match (scheme, number) {
            (_, None) => Err(format!("its port {port:?} is no number up to 65535")),
            ("https" | "wss", Some(443)) | ("http" | "ws", Some(80)) => {
                Err(format!("browsers leave the scheme's own port out; write {scheme}://{host}"))
            }
            (_, Some(number)) => Ok(Self(format!("{scheme}://{host}:{number}"))),
        }
    }
}

/// A name, or an IPv6 address in the one way in which browsers write it (RFC 5952).
fn origin_host(host: &str) -> Result<String, String> {
    if let Some(inside) = host.strip_prefix('[') {
        let address = inside.strip_suffix(']').and_then(|text| text.parse::<std::net::Ipv6Addr>().ok());
        return address.map(|address| format!("[{address}]")).ok_or_else(|| "its host is no IPv6 address in brackets".to_owned());
    }
    let named = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if named { Ok(host.to_owned()) } else { Err("its host is malformed".to_owned()) }
}

impl Value for Vec<Origin> {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        read_list(raw, &Self::kind(allowed), Origin::parse)
    }

    fn write(&self) -> String {
        write_list(self, |origin| origin.0.clone())
    }

    fn kind(_: Allowed) -> String {
        "a list of origins like \"https://app.example.com\" (a scheme, a host, a port unless usual; no path), or \"*\"".to_owned()
    }
}

/// A network in CIDR form; a bare address is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = prefix.map_or(Some(bits_max), |prefix| prefix.parse().ok()).filter(|bits| *bits <= bits_max)?;
        Some(Self { address, prefix_bits })
    }

    /// Returns `true` if the network contains the address. An IPv4-mapped IPv6 address counts as its IPv4 one.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let wide = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
            IpAddr::V6(address) => (address.to_bits(), false),
        };
        let ((mine, mine_v4), (theirs, theirs_v4)) = (wide(self.address), wide(address));
        let mask = if self.prefix_bits == 0 { 0 } else { u128::MAX << (128 - u32::from(self.prefix_bits)) };
        mine_v4 == theirs_v4 && (mine ^ theirs) & mask == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.address, self.prefix_bits)
    }
}

impl Value for Vec<Network> {
    fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
        let network = |text: &str| Network::parse(text).ok_or_else(|| "it is no address, or has too many bits".to_owned());
        read_list(raw, &Self::kind(allowed), network)
    }

    fn write(&self) -> String {
        write_list(self, ToString::to_string)
    }

    fn kind(_: Allowed) -> String {
        "a list of addresses or networks like \"10.0.0.0/8\"".to_owned()
    }
}

macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])+ $variant),+ }

        impl $name {
            /// All choices.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in the configuration.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The choice of this name, case ignored.
            #[must_use]
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|choice| choice.name().eq_ignore_ascii_case(name))
            }
        }

        impl Value for $name {
            fn read(raw: &Raw, allowed: Allowed) -> Result<Self, String> {
                raw.text().and_then(Self::from_name).ok_or_else(|| Self::kind(allowed))
            }

            fn write(&self) -> String {
                quoted(self.name())
            }

            fn kind(_: Allowed) -> String {
                let names: Vec<String> = Self::ALL.iter().map(|choice| quoted(choice.name())).collect();
                format!("one of {}", names.join(", "))
            }
        }
    };
}

choice! {
    /// The format of log lines.
    LogFormat {
        /// For people.
        Human = "human",
        /// A JSON object per line.
        Json = "json",
    }
}

choice! {
    /// The least severe level of log lines that are written.
    LogLevel {
        /// Failures that need an operator.
        Error = "error",
        /// Conditions that an operator should look at.
        Warn = "warn",
        /// The life of the process and refusals.
        Info = "info",
        /// Each connection.
        Debug = "debug",
        /// Each turn.
        Trace = "trace",
    }
}

choice! {
    /// The failure that an acknowledged message survives (protocol.md section 5).
    Durability {
        /// None: the message is in memory.
        Memory = "memory",
        /// The death of the process.
        Written = "written",
        /// A power cut.
        Synced = "synced",
    }
}

choice! {
    /// The engine that runs the shards.
    Engine {
        /// The best engine that works on this machine: ring, else monoio on io_uring, else monoio on epoll.
        Auto = "auto",
        /// The native one: io_uring of kernel 6.1 or later.
        Ring = "ring",
        /// The portable one: on io_uring of kernel 5.6 or later, else on epoll.
        Monoio = "monoio",
        /// The portable one on epoll, whatever the kernel has.
        Epoll = "epoll",
    }
}

choice! {
    /// The part of a session that a newcomer may read (protocol.md section 6).
    HistoryView {
        /// All retained messages.
        Full = "full",
        /// The messages after its first join.
        FromJoin = "from_join",
    }
}

choice! {
    /// The signature algorithm of a key (RFC 7518, RFC 8037). A key is used with its own algorithm only (RFC 8725 3.1).
    KeyAlgorithm {
        /// Ed25519.
        EdDsa = "EdDSA",
        /// ECDSA on P-256 with SHA-256.
        Es256 = "ES256",
        /// RSASSA-PKCS1-v1_5 with SHA-256.
        Rs256 = "RS256",
        /// HMAC with SHA-256: whoever verifies can also sign.
        Hs256 = "HS256",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_they_say() {
        let network = Network::parse("10.1.0.0/16").unwrap();
        assert!(network.contains("10.1.2.3".parse().unwrap()));
        assert!(network.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!network.contains("10.2.0.1".parse().unwrap()));
        assert!(!network.contains("::1".parse().unwrap()));
        assert!(Network::parse("0.0.0.0/0").unwrap().contains("8.8.8.8".parse().unwrap()));
        assert!(Network::parse("::1").unwrap().contains("::1".parse().unwrap()));
        for bad in ["10.0.0.0/33", "10.0.0/8", "", "::1/129", "10.0.0.0/-1"] {
            assert!(Network::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn origins_have_no_path_and_no_wildcard_inside() {
        for good in ["https://a.example", "http://localhost:3000", "null", "*", "http://[::1]:1", "app://-", "http://a:443"] {
            assert_eq!(Origin::parse(good), Ok(Origin(good.to_owned())));
        }
        for (given, sent) in [
            ("HTTPS://A.example", "https://a.example"),
            ("https://a:08443", "https://a:8443"),
            ("http://[0:0::1]", "http://[::1]"),
        ] {
            assert_eq!(Origin::parse(given), Ok(Origin(sent.to_owned())));
        }
        for (bad, why) in [
            ("https://a.example/", "a slash at the end"),
            ("https://a@b", "more than a scheme"),
            ("a.example", "no scheme"),
            ("", "no scheme"),
            ("://a", "its scheme"),
            ("h_ttp://a", "its scheme"),
            ("https://*.example", "wildcards"),
            ("https://", "its host"),
            ("https://:1", "its host"),
            ("https://a b", "its host"),
            ("https://[::1", "IPv6"),
            ("https://[::1]x", "IPv6"),
            ("https://münchen.example", "xn--"),
            ("https://a:", "its port \"\""),
            ("https://a:x", "its port \"x\""),
            ("https://a:+1", "its port \"+1\""),
            ("https://a:1:2", "its port \"1:2\""),
            ("https://a:70000", "its port \"70000\""),
            ("https://A:443", "write https://a"),
            ("http://a:80", "write http://a"),
            ("wss://[::1]:0443", "write wss://[::1]"),
        ] {
            let error = Origin::parse(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(Origin::parse(&format!("https://{}", "a".repeat(300))).is_err());
    }

    #[test]
    fn what_is_shown_is_short_and_one_line() {
        let shown = Raw::Text("x\n".repeat(500)).shown();
        assert!(shown.chars().count() <= 81 && !shown.contains('\n'), "{shown}");
    }
}
