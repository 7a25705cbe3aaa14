//! The web pages that may open a connection (RFC 6455 section 10.2): a browser sends in `Origin` where its page is from.

use super::refusal::{HttpRefusal, quoted};
use std::net::Ipv4Addr;

/// The allow-list. If it is empty: the host that the request itself names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OriginPolicy {
    allowed: Vec<String>,
    any: bool,
    dev: bool,
}

impl OriginPolicy {
    /// `allowed`: origins as browsers serialize them (RFC 6454 section 6.2), or `*` for every origin. `dev` adds pages from
    /// loopback addresses and `null`, the origin of local files.
    #[must_use]
    pub fn new(allowed: Vec<String>, dev: bool) -> Self {
        Self { any: allowed.iter().any(|entry| entry == "*"), allowed, dev }
    }

    /// Judges the header, which only browsers send: without it there is no page that could be foreign.
    ///
    /// # Errors
    /// 403 naming the setting that would allow it.
    pub fn check(&self, origin: Option<&[u8]>, host: &str) -> Result<(), HttpRefusal> {
        let Some(bytes) = origin else { return Ok(()) };
        let allowed = self.any || std::str::from_utf8(bytes).is_ok_and(|origin| self.allows(origin, host));
        if allowed {
            return Ok(());
        }
        let origin = quoted(bytes);
        Err(HttpRefusal::new(403, format!("the origin {origin} is not allowed; add it to server.allowed_origins to allow it")))
    }

    fn allows(&self, origin: &str, host: &str) -> bool {
        if self.allowed.iter().any(|entry| entry == origin) {
            return true;
        }
        if self.dev && origin == "null" {
            return true;
        }
        let Some(origin_host) = page_host(origin) else { return false };
        if self.dev && is_loopback(origin_host) {
            return true;
        }
        self.allowed.is_empty() && split_authority(host).is_some_and(|(name, _)| name.eq_ignore_ascii_case(origin_host))
    }
}

/// The host of an http or https origin in the form browsers give it: lower case, no path, no user.
fn page_host(origin: &str) -> Option<&str> {
    let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"))?;
    let (host, _) = split_serialized(authority)?;
    (!host.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(host)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host == "[::1]" || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
}

/// `host[:port]` as a browser writes it into an origin (RFC 6454 section 6.2): the port is there only if it is not the default.
fn split_serialized(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = split_authority(authority)?;
    let written = port.map_or(0, |port| 1 + port.to_string().len());
    (host.len() + written == authority.len()).then_some((host, port))
}

/// `host[:port]` (RFC 3986 section 3.2) without user information. An IPv6 host keeps its brackets, and an empty port counts as
/// none.
pub(super) fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let inside = rest.find(']')?;
            rest[..inside].parse::<std::net::Ipv6Addr>().ok()?;
            let (host, after) = authority.split_at(inside + 2);
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let named =
        host.starts_with('[') || host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'));
    if host.is_empty() || !named {
        return None;
    }
    match port {
        None | Some("") => Some((host, None)),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some((host, Some(digits.parse().ok()?))),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(policy: &OriginPolicy, origin: &str, host: &str) -> bool {
        match policy.check(Some(origin.as_bytes()), host) {
            Ok(()) => true,
            Err(refusal) => {
                assert_eq!(refusal.status(), 403);
                assert!(refusal.detail().contains("server.allowed_origins"));
                false
            }
        }
    }

    fn listed(entries: &[&str], dev: bool) -> OriginPolicy {
        OriginPolicy::new(entries.iter().map(ToString::to_string).collect(), dev)
    }

    #[test]
    fn h7_look_alikes_of_a_listed_origin_are_refused() {
        let policy = listed(&["https://app.example"], false);
        assert!(allowed(&policy, "https://app.example", "gateway.example"));
        let foreign = [
            "http://app.example",
            "https://app.example.",
            "https://app.example/",
            "https://app.example:444",
            "https://app.example:443",
            "https://APP.example",
            "HTTPS://app.example",
            "https://app.example.evil.com",
            "https://evil-app.example",
            "https://app.example@evil.com",
            "https://evil.com#https://app.example",
            " https://app.example",
            "https://app.example https://evil.com",
            "https://gateway.example",
            "null",
            "",
            "*",
        ];
        for origin in foreign {
            assert!(!allowed(&policy, origin, "gateway.example"), "{origin}");
        }
        assert!(policy.check(Some(b"https://app.example\xff"), "gateway.example").is_err());
        assert!(policy.check(None, "gateway.example").is_ok(), "no browser");
    }

    #[test]
    fn h7_without_a_list_the_page_must_be_from_the_requests_own_host() {
        let policy = listed(&[], false);
        for (origin, host) in [
            ("https://app.example", "app.example"),
            ("https://app.example", "App.Example:8443"),
            ("https://app.example", "app.example:"),
            ("http://app.example:3000", "app.example:8080"),
            ("http://[::1]:3000", "[::1]:8080"),
            ("http://127.0.0.1:3000", "127.0.0.1:8080"),
        ] {
            assert!(allowed(&policy, origin, host), "{origin} to {host}");
        }
        for (origin, host) in [
            ("https://app.example.evil.com", "app.example"),
            ("https://app.example.", "app.example"),
            ("https://APP.example", "app.example"),
            ("https://x@app.example", "app.example"),
            ("https://app.example:70000", "app.example"),
            ("https://app.example:", "app.example"),
            ("https://app.example:08443", "app.example"),
            ("ftp://app.example", "app.example"),
            ("null", "app.example"),
            ("null", "null"),
            ("http://localhost:3000", "127.0.0.1:8080"),
        ] {
            assert!(!allowed(&policy, origin, host), "{origin} to {host}");
        }
    }

    #[test]
    fn dev_adds_loopback_and_null_only() {
        let policy = listed(&[], true);
        for origin in ["null", "http://localhost:3000", "http://127.0.0.1", "https://127.9.9.9:1", "http://[::1]:5173"] {
            assert!(allowed(&policy, origin, "127.0.0.1:8080"), "{origin}");
        }
        for origin in
            ["http://127.0.0.1.evil.com", "http://localhost.evil.com", "http://evil.com", "http://[::2]", "http://2130706433"]
        {
            assert!(!allowed(&policy, origin, "127.0.0.1:8080"), "{origin}");
        }
    }

    #[test]
    fn a_star_allows_all() {
        assert!(allowed(&listed(&["*"], false), "https://anything.example", "x"));
    }
}
