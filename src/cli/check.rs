//! Checks that a configuration can serve: its text (`config`), and everything outside the text that it names. `serve`, a reload,
//! `config check` and `doctor` all come here, so that they agree; the files read by the check are the ones a start uses.

use super::{CliError, environment, read_file, read_file_once};
use crate::auth::{KeyAlgorithm, KeyMaterial, KeySet};
use crate::config::{AuthKey, Problem, Reading, Settings};
use crate::io::directory;
use crate::io::ring::could_listen_alone;
use crate::net::tls::{TlsConfigError, TlsServer, check_certificates, check_key};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const CONFIG_BYTES_MAX: u64 = 1024 * 1024;
const KEY_FILE_BYTES_MAX: u64 = 64 * 1024;
const TLS_FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A configuration without a mistake, and the contents of its files.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) settings: Settings,
    /// In the order of `[[auth.keys]]`.
    pub(crate) keys: Vec<KeyMaterial>,
    /// `None` if `[tls]` is not set.
    pub(crate) tls: Option<LoadedTls>,
}

/// The contents of the files of `[tls]`.
#[derive(Clone, Debug)]
pub(crate) struct LoadedTls {
    pub(crate) server: TlsServer,
    /// For a reload, to see whether the certificate has changed.
    pub(crate) certificate_pem: Vec<u8>,
}

/// A configuration with mistakes.
#[derive(Debug)]
pub(crate) struct Mistaken {
    /// The settings, as far as they are valid.
    pub(crate) settings: Box<Settings>,
    /// Each mistake as a line, with the file and the line in it.
    pub(crate) lines: Vec<String>,
}

impl From<Mistaken> for CliError {
    fn from(mistaken: Mistaken) -> Self {
        Self(mistaken.lines.join("\n"))
    }
}

/// Checks a configuration file with the environment over it, as the user of this process. With `in_force`, addresses and the
/// log's directory that this process already holds are not checked again.
///
/// # Errors
/// All mistakes.
pub(crate) fn check(file: &Path, in_force: Option<&Settings>) -> Result<Checked, Mistaken> {
    let read = if in_force.is_some() { read_file } else { read_file_once };
    let text =
        read_text(file, read(file, CONFIG_BYTES_MAX)).map_err(|line| Mistaken { settings: Box::default(), lines: vec![line] })?;
    let mut reading = Reading::of(&text, environment()).for_serving();
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    let keys = keys(&mut reading, folder);
    let (tls, mistakes) = load_tls(&reading.settings, folder);
    for (path, message) in mistakes {
        reading.add(path, message);
    }
    let settings = reading.settings.clone();
    for (path, address, own) in [
        ("server.listen", settings.server.listen, in_force.map(|settings| settings.server.listen)),
        ("admin.listen", settings.admin.listen, in_force.map(|settings| settings.admin.listen)),
    ] {
        if own != Some(address)
            && let Some(why) = unfit(address)
        {
            reading.add(path, format!("{path} = \"{address}\": {why}"));
        }
    }
    if let Some(root) = &settings.log.dir
        && in_force.is_none_or(|in_force| in_force.log.dir.as_ref() != Some(root))
        && let Err(message) = directory::look(root)
    {
        reading.add("log.dir", message);
    }
    if reading.problems.is_empty() {
        return Ok(Checked { settings, keys, tls });
    }
    let lines = reading.problems.iter().map(|problem: &Problem| format!("{}: {problem}", file.display())).collect();
    Err(Mistaken { settings: Box::new(settings), lines })
}

fn read_text(file: &Path, read: Result<Vec<u8>, CliError>) -> Result<String, String> {
    let bytes = read.map_err(|error| error.0)?;
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
        format!("{}: line {line}: not UTF-8", file.display())
    })
}

/// Reads the key files, whose names are relative to the configuration file. Each is judged by itself, so that all wrong ones are
/// reported.
fn keys(reading: &mut Reading, folder: &Path) -> Vec<KeyMaterial> {
    let mut keys = Vec::new();
    for AuthKey { kid, alg, file } in reading.settings.auth_keys.clone() {
        let load = || -> Result<KeyMaterial, String> {
            let bytes = read_file(&folder.join(&file), KEY_FILE_BYTES_MAX).map_err(|error| error.0)?;
            let algorithm = KeyAlgorithm::from_name(alg.name())
                .ok_or_else(|| format!("{} is not a supported token algorithm", alg.name()))?;
            let material = KeyMaterial { key_id: kid.clone(), algorithm, bytes };
            KeySet::new(std::slice::from_ref(&material)).map_err(|error| format!("{file:?}: {}", error.problem))?;
            Ok(material)
        };
        match load() {
            Ok(material) => keys.push(material),
            Err(why) => reading.add(&format!("auth.keys.{kid}.file"), format!("auth.keys {kid:?} ({}): {why}", alg.name())),
        }
    }
    keys
}

/// Reads the files of `[tls]`, whose names are relative to the configuration file. Returns all mistakes in them, each with its
/// setting.
pub(crate) fn load_tls(settings: &Settings, folder: &Path) -> (Option<LoadedTls>, Vec<(&'static str, String)>) {
    let Some((certificate, key)) = settings.tls.files() else { return (None, Vec::new()) };
    let mut mistakes = Vec::new();
    let mut read = |path: &'static str, file: &PathBuf, check: fn(&[u8]) -> Result<(), TlsConfigError>| {
        let bytes = read_file(&folder.join(file), TLS_FILE_BYTES_MAX).map_err(|error| error.0);
        let checked = bytes.and_then(|bytes| check(&bytes).map(|()| bytes).map_err(|error| format!("{file:?}: {error}")));
        checked.map_err(|why| mistakes.push((path, format!("{path}: {why}")))).ok()
    };
    let certificate_pem = read("tls.certificate", certificate, check_certificates);
    let key_pem = read("tls.key", key, check_key);
    let (Some(certificate_pem), Some(key_pem)) = (certificate_pem, key_pem) else { return (None, mistakes) };
    match TlsServer::new(&certificate_pem, &key_pem) {
        Ok(server) => (Some(LoadedTls { server, certificate_pem }), mistakes),
        Err(error) => {
            mistakes.push(("tls.key", format!("tls.key: {key:?}: {error}")));
            (None, mistakes)
        }
    }
}

/// The reason why nobody could listen on this address here; `None` if there is none. Another process that listens there now is no
/// mistake of the configuration.
fn unfit(address: SocketAddr) -> Option<String> {
    let error = could_listen_alone(address).err()?;
    match error.kind() {
        ErrorKind::AddrInUse => None,
        ErrorKind::AddrNotAvailable => Some(format!(
            "{} is no address of this machine; `ip address` lists them, and 0.0.0.0 or [::] stands for all",
            address.ip()
        )),
        _ => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of its own with files in it, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str, files: &[(&str, &[u8])]) -> Self {
            let folder = std::env::temp_dir().join(format!("ringway-check-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            for (name, bytes) in files {
                std::fs::write(folder.join(name), bytes).unwrap();
            }
            Self(folder)
        }

        fn check(&self, text: &str) -> Result<Checked, String> {
            let file = self.0.join("ringway.toml");
            std::fs::write(&file, text).unwrap();
            let name = format!("{}: ", file.display());
            check(&file, None).map_err(|mistaken| mistaken.lines.join("\n").replace(&name, ""))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const KEY: &str = "[[auth.keys]]\nkid = \"k\"\nalg = \"HS256\"\nfile = \"k.key\"\n";

    #[test]
    fn keys_are_read_beside_the_configuration_and_never_shown() {
        let secret = b"very secret, and as long as it must be";
        let folder = Folder::new("keys", &[("k.key", secret)]);
        let checked = folder.check(KEY).unwrap();
        assert_eq!(checked.keys, [KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Hs256, bytes: secret.to_vec() }]);
        assert!(!format!("{checked:?}").contains("secret,"));
        let error = folder.check(&KEY.replace("k.key", "none.key")).unwrap_err();
        assert!(error.starts_with("line 4: auth.keys \"k\" (HS256): ") && error.contains("none.key"), "{error}");
    }

    #[test]
    fn what_is_wrong_outside_the_text_is_told_all_at_once_and_beside_what_is_wrong_in_it() {
        let folder = Folder::new("all", &[("short", b"short"), ("file", b""), ("k.key", &[b'k'; 32])]);
        let dir = folder.0.join("file");
        let text = format!(
            "[server]\nlisten = \"192.0.2.1:1\"\nallowed_origins = [\"https://a:443\", \"b\"]\n[tls]\ncertificate = \"none.pem\"\n\
             key = \"file\"\n[log]\ndir = {dir:?}\n[[auth.keys]]\nkid = \"a\"\nalg = \"HS256\"\nfile = \"short\"\n[[auth.keys]]\n\
             kid = \"b\"\nalg = \"ES256\"\nfile = \"k.key\"\n[[auth.keys]]\nkid = \"a b\"\nalg = \"HS256\"\nfile = \"k.key\"\n"
        );
        let error = folder.check(&text).unwrap_err();
        let parts = [
            "line 2: server.listen = \"192.0.2.1:1\": 192.0.2.1 is no address of this machine",
            "line 3: server.allowed_origins",
            "line 5: tls.certificate: ",
            "line 6: tls.key: \"file\": the key file holds no private key",
            "line 8: log.dir: ",
            "line 12: auth.keys \"a\" (HS256): \"short\": the secret has 5 bytes",
            "line 16: auth.keys \"b\" (ES256): \"k.key\": the file is neither",
            "line 18: auth.keys.kid = \"a b\": must be 1 to 64",
        ];
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), parts.len(), "{error}");
        for (line, part) in lines.iter().zip(parts) {
            assert!(line.starts_with(part), "{line}\n{part}");
        }
        assert!(lines[2].contains("none.pem") && lines[4].contains("file is no directory: name one"), "{error}");
        assert!(
            lines[1].contains("\"https://a:443\" is not one: browsers leave") && lines[1].contains("\"b\" is not one"),
            "{error}"
        );
    }

    #[test]
    fn what_a_process_has_already_is_not_looked_for_again() {
        let folder = Folder::new("own", &[("k.key", &[b'k'; 32]), ("file", b"")]);
        let dir = folder.0.join("file");
        let text = format!("{KEY}[server]\nlisten = \"192.0.2.1:1\"\n[log]\ndir = {dir:?}\n");
        assert_eq!(folder.check(&text).unwrap_err().lines().count(), 2);
        let own = Settings::parse(&text, []).unwrap();
        assert!(check(&folder.0.join("ringway.toml"), Some(&own)).is_ok());
    }

    #[test]
    fn a_log_s_directory_is_looked_at_and_not_made() {
        let folder = Folder::new("log", &[("k.key", &[b'k'; 32]), ("file", b"")]);
        let told = |dir: &str| folder.check(&format!("{KEY}[log]\ndir = {:?}\n", folder.0.join(dir))).map(|_| ());
        assert_eq!(told("new/below"), Ok(()));
        assert!(!folder.0.join("new").exists());
        for in_the_way in ["file", "file/below", "file/below/it"] {
            let error = told(in_the_way).unwrap_err();
            assert!(error.starts_with("line 6: log.dir: "), "{error}");
        }
        std::fs::create_dir(folder.0.join("old")).unwrap();
        assert_eq!(told("old"), Ok(()));
        std::fs::write(folder.0.join("old/format"), "version = 9\n").unwrap();
        let error = told("old").unwrap_err();
        assert!(error.contains("version 9; this gateway reads versions 1 to 2"), "{error}");
    }

    #[test]
    fn a_broken_file_is_named_with_its_lines() {
        let file = std::env::temp_dir().join(format!("ringway-cli-test-{}.toml", std::process::id()));
        std::fs::write(&file, format!("[server]\npin = 3\n[nowhere]\n{KEY}")).unwrap();
        let error = CliError::from(check(&file, None).unwrap_err()).0;
        std::fs::write(&file, b"[server]\nnode = \"\xff\"\n").unwrap();
        let not_text = CliError::from(check(&file, None).unwrap_err()).0;
        std::fs::remove_file(&file).unwrap();
        let name = file.display();
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 3, "its key is nowhere too: {error}");
        assert!(lines.contains(&format!("{name}: line 2: server.pin = 3: must be true or false").as_str()), "{error}");
        assert!(lines.iter().any(|line| line.starts_with(&format!("{name}: line 3: nowhere is no section"))), "{error}");
        assert_eq!(not_text, format!("{name}: line 2: not UTF-8"));
        assert!(CliError::from(check(&file, None).unwrap_err()).0.contains("No such file"));
    }
}
