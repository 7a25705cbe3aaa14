//! Settings back to text: the commented defaults, the reference table, and what changed between two of them.

use super::sections::{Key, SECTIONS, Settings};
use std::fmt::Write;

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.name`.
    pub key: String,
    /// The old value as TOML.
    pub from: String,
    /// The new value as TOML.
    pub to: String,
    /// `true` if a reload applies it, `false` if it needs a restart.
    pub live: bool,
}

impl Settings {
    /// The differences from `old`, in the order of the reference. Keys are named by id, never by content.
    #[must_use]
    pub fn diff(&self, old: &Self) -> Vec<Change> {
        let keys = SECTIONS.iter().flat_map(|section| section.keys);
        let mut changes: Vec<Change> = keys
            .zip(old.written().into_iter().zip(self.written()))
            .filter(|(_, (from, to))| from != to)
            .map(|(key, (from, to))| Change { key: key.path(), from, to, live: key.live })
            .collect();
        if self.auth_keys != old.auth_keys {
            changes.push(Change { key: "auth.keys".to_owned(), from: old.key_names(), to: self.key_names(), live: true });
        }
        changes
    }

    /// These settings, but with the old value wherever a reload cannot take the new one: what a reload puts in force.
    #[must_use]
    pub fn reloaded_over(&self, old: &Self) -> Self {
        Self {
            server: super::Server {
                allowed_origins: self.server.allowed_origins.clone(),
                trusted_proxies: self.server.trusted_proxies.clone(),
                client_ip_header: self.server.client_ip_header.clone(),
                health: self.server.health,
                ..old.server.clone()
            },
            tls: old.tls.clone(),
            admin: old.admin.clone(),
            log: super::Log {
                early_delivery: self.log.early_delivery,
                retention_age_s: self.log.retention_age_s,
                retention_messages: self.log.retention_messages,
                retention_bytes: self.log.retention_bytes,
                max_bytes: self.log.max_bytes,
                ..old.log.clone()
            },
            diagnostics: old.diagnostics,
            ..self.clone()
        }
    }

    fn key_names(&self) -> String {
        let names: Vec<String> =
            self.auth_keys.iter().map(|key| format!("{} ({}, {})", key.kid, key.alg.name(), key.file.display())).collect();
        format!("[{}]", names.join(", "))
    }
}

fn remark(key: &Key) -> String {
    let unit = if key.unit.is_empty() { String::new() } else { format!("{}; ", key.unit) };
    format!("{unit}{}; {}", (key.takes)(), if key.live { "live on reload" } else { "needs a restart" })
}

/// The defaults as a configuration file with a comment for each key.
#[must_use]
pub fn defaults_toml() -> String {
    let mut out = String::from(
        "# Ringway's settings with their defaults. A file needs only what differs.\n\
         # Each can be overridden by an environment variable RINGWAY_SECTION__KEY; lists are split at commas.\n",
    );
    for section in SECTIONS {
        let _ = write!(out, "\n#{}\n[{}]\n", section.doc, section.name);
        for key in section.keys {
            let _ = write!(out, "\n#{}\n# ({})\n{} = {}\n", key.doc, remark(key), key.name, (key.default)());
        }
        if section.name == "auth" {
            out.push_str(
                "\n# One for each key that tokens may be signed with (live on reload). `ringway key new` makes one.\n\
                 # [[auth.keys]]\n# kid = \"2026-01\"\n# alg = \"EdDSA\"        # EdDSA, ES256, RS256 or HS256\n\
                 # file = \"2026-01.pem\"  # the public key as PEM; for HS256 the secret\n",
            );
        }
    }
    out
}

/// The reference of all settings as Markdown.
#[must_use]
pub fn docs_markdown() -> String {
    let mut out = String::new();
    for section in SECTIONS {
        let _ = write!(out, "### `[{}]`\n\n{}\n\n", section.name, section.doc.trim());
        out.push_str("| key | default | unit | takes | reload | |\n| --- | --- | --- | --- | --- | --- |\n");
        for key in section.keys {
            let _ = writeln!(
                out,
                "| `{}` | `{}` | {} | {} | {} | {} |",
                key.name,
                (key.default)(),
                key.unit,
                (key.takes)().replace('|', "\\|"),
                if key.live { "live" } else { "restart" },
                key.doc.trim()
            );
        }
        out.push('\n');
        if section.name == "auth" {
            out.push_str(
                "Each `[[auth.keys]]` has `kid` (the key id that a token names), `alg` (`EdDSA`, `ES256`, `RS256` or `HS256`) and \
                 `file` (the public key as PEM; for `HS256` the secret; a relative path begins at the configuration file). Live on reload; in the file only.\n\n",
            );
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_defaults_are_the_defaults() {
        assert_eq!(Settings::parse(&defaults_toml(), []), Ok(Settings::default()));
    }

    #[test]
    fn the_reference_names_every_key() {
        let docs = docs_markdown();
        for key in SECTIONS.iter().flat_map(|section| section.keys) {
            assert!(docs.contains(&format!("| `{}` | `{}` |", key.name, (key.default)())), "{}", key.path());
            assert!(key.doc.trim().ends_with('.'), "{}: {}", key.path(), key.doc);
        }
    }

    #[test]
    fn a_change_says_whether_it_is_live() {
        let old = Settings::default();
        let mut new = old.clone();
        new.limits.messages_per_second = 5;
        new.server.shards = 2;
        assert_eq!(
            new.diff(&old),
            [
                Change { key: "server.shards".into(), from: "0".into(), to: "2".into(), live: false },
                Change { key: "limits.messages_per_second".into(), from: "200".into(), to: "5".into(), live: true },
            ]
        );
        assert!(old.diff(&old).is_empty());
    }

    #[test]
    fn a_changed_key_is_told() {
        let text = "[[auth.keys]]\nkid = \"a\"\nalg = \"ES256\"\nfile = \"f\"\n";
        let new = Settings::parse(text, []).unwrap();
        let changes = new.diff(&Settings::default());
        assert_eq!(changes, [Change { key: "auth.keys".into(), from: "[]".into(), to: "[a (ES256, f)]".into(), live: true }]);
    }

    /// Every key set to something else than its default, so that none can be forgotten.
    fn everything_else() -> Settings {
        let mut text = String::new();
        for section in SECTIONS {
            text.push_str(&format!("[{}]\n", section.name));
            for key in section.keys {
                let default = (key.default)();
                let other = match (key.name, default.as_str()) {
                    ("allowed_origins", _) => "[\"https://a.example\"]".to_owned(),
                    ("trusted_proxies", _) => "[\"10.0.0.0/8\"]".to_owned(),
                    ("listen", _) => format!("\"127.0.0.2:{}\"", section.name.len()),
                    ("engine", _) => "\"monoio\"".to_owned(),
                    ("log_format", _) => "\"json\"".to_owned(),
                    ("log_level", _) => "\"warn\"".to_owned(),
                    ("durability", _) => "\"synced\"".to_owned(),
                    ("max_bytes" | "reserve_bytes" | "retention_bytes", _) => "1000000000".to_owned(),
                    ("history", _) => "\"from_join\"".to_owned(),
                    (_, "true") => "false".to_owned(),
                    (_, "false") => "true".to_owned(),
                    (_, text) if text.starts_with('"') => "\"other\"".to_owned(),
                    ("half_open_percent", _) => "11".to_owned(),
                    (_, number) => {
                        let number: u64 = number.parse().unwrap();
                        if number <= 1 { 2.to_string() } else { (number - 1).to_string() }
                    }
                };
                text.push_str(&format!("{} = {other}\n", key.name));
            }
        }
        Settings::parse(&text, []).unwrap()
    }

    #[test]
    fn a_reload_takes_what_is_live_and_nothing_else() {
        let old = Settings::default();
        let new = everything_else();
        let all = SECTIONS.iter().map(|section| section.keys.len()).sum::<usize>();
        assert_eq!(new.diff(&old).len(), all);
        let merged = new.reloaded_over(&old);
        for change in merged.diff(&old) {
            assert!(change.live, "{} needs a restart, but was taken", change.key);
        }
        for change in new.diff(&merged) {
            assert!(!change.live, "{} is live, but was not taken", change.key);
        }
    }
}
