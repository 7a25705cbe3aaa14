//! The rules of the layout (docs/ARCHITECTURE.md), read off the sources: who may import whom, which outside crate lives where, what
//! pure code may not touch, where `unsafe` may stand, and how long a file may be.
#![allow(clippy::unwrap_used, reason = "a test process of its own, not the gateway")]

use ringway::close::CloseReason;
use ringway::shard::counters::{DropReason, LimitReached, METRICS};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const VOCABULARY: [&str; 7] = ["ids", "limits", "time", "close", "slots", "buffers", "few"];
/// The pure stages, and what each may import besides the vocabulary.
const STAGES: [(&str, &[&str]); 6] = [
    ("net", &[]),
    ("ws", &[]),
    ("protocol", &[]),
    // A member's rights refer to the log's entries.
    ("session", &["log"]),
    ("auth", &[]),
    // A chunk is what the log appends to and the engine writes out; nothing else of the engine, see below.
    ("log", &["io"]),
];
/// Folders that are no stages, and what each may import besides the vocabulary.
const OTHERS: [(&str, &[&str]); 5] = [
    ("config", &[]),
    ("io", &[]),
    ("control", &["auth", "config", "shard"]),
    ("shard", &["auth", "config", "io", "log", "net", "protocol", "session", "ws"]),
    ("cli", &["auth", "config", "control", "io", "log", "net", "shard"]),
];
/// Files that exist for tests alone, whatever their name.
const TEST_FILES: [&str; 22] = [
    "auth/vectors.rs",
    "cli/log/tests.rs",
    "control/tests.rs",
    "io/disk_suite.rs",
    "io/portable/descriptor_tests.rs",
    "io/portable/disk_tests.rs",
    "io/portable/tests.rs",
    "io/ring/disk_tests.rs",
    "io/ring/tests.rs",
    "log/index_tests.rs",
    "log/made.rs",
    "log/scan_tests.rs",
    "log/segment_index_tests.rs",
    "net/tls_tests.rs",
    "shard/durability/disk_tests.rs",
    "shard/durability/history_tests.rs",
    "shard/across/mesh_model.rs",
    "shard/durability/read_back_tests.rs",
    "session/table_inspect.rs",
    "protocol/attacks.rs",
    "ws/decoder_tests.rs",
    "shard/recovery/upgrade_tests.rs",
];
/// Every dependency and the files that may name it.
const CRATES: [(&str, &[&str]); 34] = [
    ("arc_swap", &[]),
    ("aws_lc_rs", &["auth/keys.rs", "cli/dev.rs", "cli/keys.rs", "net/upgrade.rs", "shard/start.rs"]),
    ("axum", &["control/http.rs", "control/listener.rs", "control/purges.rs", "control/revocations.rs", "control/run.rs"]),
    ("base64", &["auth/keys.rs", "cli/dev.rs", "cli/keys.rs", "net/upgrade.rs"]),
    ("clap", &["cli/log/mod.rs", "cli/mod.rs"]),
    ("crc32c", &["log/index.rs", "log/record.rs", "log/segment.rs", "log/segment_index.rs"]),
    ("crossbeam", &["shard/counters.rs", "shard/across/mesh.rs", "shard/port.rs"]),
    ("fastwebsockets", &["ws/decoder.rs"]),
    ("flate2", &["ws/deflate.rs"]),
    ("hashbrown", &["ids.rs", "session/dedupe.rs", "session/table.rs", "shard/outbound/flush.rs", "shard/outbound/plan.rs"]),
    ("hdrhistogram", &[]),
    ("httparse", &["cli/admin_client.rs", "net/http.rs"]),
    (
        "io_uring",
        &[
            "io/buffers.rs",
            "io/probe.rs",
            "io/ring/disk.rs",
            "io/ring/listen.rs",
            "io/ring/mod.rs",
            "io/ring/receive.rs",
            "io/ring/send.rs",
            "io/ring/slots.rs",
        ],
    ),
    // The version that monoio has, for the flags of its ring.
    ("io_uring_06", &["io/portable/mod.rs"]),
    ("indicatif", &["cli/log/directory.rs"]),
    ("itoa", &["protocol/splice.rs", "protocol/write.rs"]),
    ("jsonwebtoken", &["auth/keys.rs"]),
    (
        "libc",
        &[
            "cli/doctor.rs",
            "io/portable/disk.rs",
            "io/portable/mod.rs",
            "io/probe.rs",
            "io/ring/disk.rs",
            "io/ring/listen.rs",
            "io/ring/mod.rs",
            "io/ring/receive.rs",
            "io/ring/send.rs",
            "io/segments.rs",
        ],
    ),
    ("loom", &["shard/across/mesh.rs"]),
    ("mimalloc", &["lib.rs", "main.rs"]),
    ("monoio", &["io/portable/mod.rs", "io/portable/tasks.rs"]),
    (
        "rustix",
        &[
            "cli/admin_client.rs",
            "cli/dev.rs",
            "cli/doctor.rs",
            "cli/mod.rs",
            "cli/serve.rs",
            "control/socket.rs",
            "io/directory.rs",
            "io/files.rs",
            "io/own.rs",
            "io/portable/disk.rs",
            "io/portable/edge.rs",
            "io/probe.rs",
            "io/ring/listen.rs",
            "io/ring/slots.rs",
            "shard/start.rs",
        ],
    ),
    ("rustls", &["net/tls.rs"]),
    (
        "serde",
        &[
            "auth/claims.rs",
            "auth/keys.rs",
            "cli/admin_client.rs",
            "cli/conn.rs",
            "control/http.rs",
            "control/purges.rs",
            "control/revocations.rs",
            "net/refusal.rs",
            "protocol/model.rs",
            "shard/port.rs",
        ],
    ),
    (
        "serde_json",
        &[
            "auth/claims.rs",
            "auth/keys.rs",
            "cli/admin_client.rs",
            "cli/conn.rs",
            "cli/dev.rs",
            "cli/keys.rs",
            "cli/revoke.rs",
            "cli/log/export.rs",
            "cli/log/purge.rs",
            "control/http.rs",
            "control/revocations.rs",
            "net/refusal.rs",
            "protocol/model.rs",
        ],
    ),
    ("simd_json", &["protocol/scan.rs"]),
    ("siphasher", &["ids.rs"]),
    ("socket2", &["io/ring/listen.rs"]),
    ("strsim", &["config/validate.rs"]),
    // An error type is wherever there are errors.
    ("thiserror", &["*"]),
    (
        "tokio",
        &[
            "control/http.rs",
            "control/listener.rs",
            "control/mod.rs",
            "control/purges.rs",
            "control/reloading.rs",
            "control/revocations.rs",
            "control/run.rs",
            "shard/port.rs",
        ],
    ),
    ("toml", &["cli/log/directory.rs", "config/parse.rs"]),
    (
        "tracing",
        &[
            "cli/engine.rs",
            "cli/serve.rs",
            "control/http.rs",
            "control/logging.rs",
            "control/reloading.rs",
            "control/revocations.rs",
            "control/run.rs",
            "io/directory.rs",
            "io/own.rs",
            "shard/admin.rs",
            "shard/durability/compaction.rs",
            "shard/core.rs",
            "shard/connections/accept.rs",
            "shard/durability/disk.rs",
            "shard/connections/handshake.rs",
            "shard/inbound/frames.rs",
            "shard/durability/indexing.rs",
            "shard/durability/state_records.rs",
            "shard/outbound/flush.rs",
            "shard/durability/read_back.rs",
            "shard/recovery/purge_files.rs",
            "shard/durability/purge.rs",
            "shard/recovery/reshard.rs",
            "shard/durability/space.rs",
            "shard/start.rs",
            "shard/recovery/open.rs",
            "shard/durability/read_errors.rs",
        ],
    ),
    ("tracing_subscriber", &["control/logging.rs"]),
];
/// Names that pure code may not use: clocks, threads, the environment, hash order, tasks.
const IMPURE: [&str; 14] = [
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "std::thread",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "std::io::",
    "HashMap",
    "HashSet",
    "async ",
    ".await",
    "tokio",
    "monoio",
];
/// In stages, though each looks impure: a name, the file, and why.
const NO_IMPURITY: [(&str, &str, &str); 1] =
    [("std::io::", "net/tls.rs", "rustls reads and writes through std's traits; the bytes are in memory")];
const LINES_MAX: usize = 650;

struct Source {
    /// Under `src/`.
    name: String,
    lines: usize,
    text: String,
    /// Without comments and unit tests.
    code: String,
}

impl Source {
    fn folder(&self) -> &str {
        self.name.split_once('/').map_or("", |(folder, _)| folder)
    }

    fn is_test(&self) -> bool {
        matches!(self.folder(), "sim" | "states") || TEST_FILES.contains(&&*self.name)
    }
}

/// The code without `//` comments and without what is behind `#[cfg(test)]` or the like at the end of a file.
fn code_of(text: &str) -> String {
    let tests = text.match_indices("#[cfg(").find(|(at, _)| {
        let mut lines = text[*at..].lines();
        let condition = lines.next().unwrap_or("");
        condition.contains("test") && lines.next().is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
    });
    let text = tests.map_or(text, |(at, _)| &text[..at]);
    text.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<Source>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, root, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push(Source { name, lines: text.lines().count(), code: code_of(&text), text });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    assert!(found.len() > 50, "the sources are not where they were");
    found
}

/// The words that follow `prefix` in code, grouped imports included.
fn named_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices(prefix) {
        if code[..at].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        let word = |text: &str| text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect::<String>();
        match rest.strip_prefix('{') {
            Some(group) => {
                let (mut depth, mut start) = (0_usize, true);
                for (place, letter) in group.char_indices() {
                    match letter {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        _ if start && !letter.is_whitespace() => {
                            names.insert(word(&group[place..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
            None => {
                names.insert(word(rest));
            }
        }
    }
    names
}

fn check(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

#[test]
fn the_reader_reads() {
    let code = code_of(
        "use crate::ids::Map; // use crate::io\nuse crate::{close, ws::{a, b}};\n#[cfg(test)]\nmod tests {\nuse crate::cli;\n}",
    );
    assert_eq!(named_after(&code, "crate::"), ["close", "ids", "ws"].map(str::to_owned).into());
}

#[test]
fn folders_import_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = STAGES.iter().chain(&OTHERS).copied().collect();
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| !source.is_test() && !source.folder().is_empty()) {
        let folder = source.folder();
        let Some(may) = allowed.get(folder) else {
            problems.push(format!("src/{folder}/ has no rule: say in this test what it may import"));
            continue;
        };
        let mut named = named_after(&source.code, "crate::");
        if source.name.ends_with("/mod.rs") {
            named.extend(named_after(&source.code, "use super::"));
        }
        for name in named {
            if name != folder && !VOCABULARY.contains(&&*name) && !may.contains(&&*name) {
                problems
                    .push(format!("src/{}: imports crate::{name}; {folder} may import the vocabulary and {may:?}", source.name));
            }
        }
        if folder != "shard" && source.code.contains("super::super::") {
            problems.push(format!("src/{}: super::super:: goes round the rule of imports", source.name));
        }
    }
    check(&problems);
}

#[test]
fn the_vocabulary_imports_nothing_but_itself() {
    let mut problems = Vec::new();
    for source in sources() {
        let Some(name) = source.name.strip_suffix(".rs").filter(|name| VOCABULARY.contains(name)) else { continue };
        for import in named_after(&source.code, "crate::") {
            if !VOCABULARY.contains(&&*import) {
                problems.push(format!("src/{name}.rs: imports crate::{import}"));
            }
        }
    }
    check(&problems);
}

#[test]
fn control_sees_shards_through_their_port_and_counters() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.folder() == "control" && !source.is_test()) {
        for name in named_after(&source.code, "crate::shard::") {
            // The histograms are counters too.
            if !["port", "counters", "histogram"].contains(&&*name) {
                problems.push(format!("src/{}: imports crate::shard::{name}", source.name));
            }
        }
    }
    check(&problems);
}

/// Ceilings of the shard's composition. They only go down: a part takes over what it owns, and `Core` keeps the order of a turn.
const CORE_FIELDS_MAX: usize = 13;
const CORE_METHODS_MAX: usize = 304;
const CORE_FILES_MAX: usize = 31;
/// Files of `core.rs`'s own parts that still know the composer they are part of.
const PARTS_THAT_NAME_CORE_MAX: usize = 3;

/// The bodies of `impl Core` in a file.
fn impls_of_core(code: &str) -> Vec<&str> {
    let blocks = code.split("\nimpl").skip(1).filter_map(|block| {
        let (head, body) = block.split_once('{')?;
        head.trim_end().ends_with("Core").then(|| body.split_once("\n}").map_or(body, |(body, _)| body))
    });
    blocks.collect()
}

#[test]
fn the_shard_is_a_composition_of_parts_that_do_not_know_it() {
    let sources: Vec<Source> = sources().into_iter().filter(|source| source.folder() == "shard" && !source.is_test()).collect();
    let sources: Vec<Source> = sources.into_iter().filter(|source| source.name != "shard/inspect.rs").collect();
    let core = sources.iter().find(|source| source.name == "shard/core.rs").unwrap();
    let fields = core.code.split_once("pub struct Core {").unwrap().1.split_once("\n}").unwrap().0;
    // The widest bounds are for tests.
    let fields = fields.lines().filter(|line| line.trim_end().ends_with(',') && !line.contains("widest:")).count();
    let files: Vec<&Source> = sources.iter().filter(|source| !impls_of_core(&source.code).is_empty()).collect();
    let is_method = |line: &&str| line.starts_with("    ") && !line.starts_with("     ") && line.contains("fn ");
    let methods: usize =
        files.iter().flat_map(|source| impls_of_core(&source.code)).map(|body| body.lines().filter(is_method).count()).sum();
    // The modules that core.rs imports, as files.
    let imported = core.code.lines().filter_map(|line| line.strip_prefix("use super::"));
    let parts: BTreeSet<String> = imported
        .filter_map(|line| {
            let path: Vec<&str> = line.split([';', '{']).next()?.split("::").collect();
            let modules: Vec<&str> =
                path.into_iter().filter(|name| name.starts_with(|letter: char| letter.is_lowercase())).collect();
            Some(modules.join("/"))
        })
        .collect();
    let names_core = |part: &&String| {
        let files = [format!("shard/{part}.rs"), format!("shard/{part}/mod.rs")];
        sources.iter().any(|source| files.contains(&source.name) && source.code.contains("core::Core"))
    };
    let knowing: Vec<&String> = parts.iter().filter(names_core).collect();
    let mut problems = Vec::new();
    for (what, now, ceiling) in [
        ("fields of Core", fields, CORE_FIELDS_MAX),
        ("methods of Core", methods, CORE_METHODS_MAX),
        ("files with impl Core", files.len(), CORE_FILES_MAX),
        ("parts that name Core", knowing.len(), PARTS_THAT_NAME_CORE_MAX),
    ] {
        if now > ceiling {
            problems.push(format!("{now} {what}, at most {ceiling}: give what is new to the part that owns its state"));
        }
        if now < ceiling {
            problems.push(format!("{now} {what}, fewer than the ceiling of {ceiling}: lower the ceiling"));
        }
    }
    if !problems.is_empty() {
        problems.push(format!("parts that name Core: {knowing:?}"));
    }
    check(&problems);
}

#[test]
fn the_log_sees_the_chunks_of_the_engine_alone() {
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| source.folder() == "log" && !source.is_test()) {
        for name in named_after(&source.code, "crate::io::") {
            if name != "chunk" {
                problems.push(format!("src/{}: imports crate::io::{name}; the log may import io::chunk", source.name));
            }
        }
        if source.code.contains("crate::{") || source.code.contains("use crate::io;") {
            problems.push(format!("src/{}: imports the crate or io whole, which hides what of io it uses", source.name));
        }
    }
    check(&problems);
}

#[test]
fn outside_crates_live_in_few_named_files() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let mut problems = Vec::new();
    let dependencies = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    for line in dependencies.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let name = line.split(' ').next().unwrap().replace('-', "_");
        if !CRATES.iter().any(|(known, _)| *known == name) {
            problems.push(format!("Cargo.toml: {name} is not in this test's table: say where it may be used"));
        }
    }
    let sources = sources();
    for (name, files) in CRATES {
        for source in sources.iter().filter(|source| !source.is_test()) {
            let used = source.code.match_indices(name).any(|(at, _)| {
                let before = source.code[..at].chars().next_back();
                let after = &source.code[at + name.len()..];
                !before.is_some_and(|letter| letter.is_alphanumeric() || letter == '_' || letter == ':')
                    && (after.starts_with("::") || (source.code[..at].ends_with("use ") && after.starts_with([';', ' '])))
            });
            if used && !files.contains(&"*") && !files.contains(&&*source.name) {
                problems.push(format!("src/{}: uses {name}, which lives in {files:?}", source.name));
            }
        }
    }
    check(&problems);
}

#[test]
fn stages_are_pure() {
    let stages: Vec<&str> = STAGES.iter().map(|(stage, _)| *stage).collect();
    let mut problems = Vec::new();
    for source in sources().iter().filter(|source| stages.contains(&source.folder()) && !source.is_test()) {
        for impure in IMPURE {
            let excused = NO_IMPURITY.iter().any(|(name, file, _)| *name == impure && *file == source.name);
            if source.code.contains(impure) && !excused {
                problems.push(format!("src/{}: names {impure:?}; a stage is pure", source.name));
            }
        }
    }
    // The shard's core as well, but for what starts its thread and what other threads call.
    let impure_files = [
        "shard/start.rs",
        "shard/listeners.rs",
        "shard/recovery/purge_files.rs",
        "shard/recovery/reshard.rs",
        "shard/recovery/open.rs",
        "shard/port.rs",
        "shard/across/mesh.rs",
        "shard/counters.rs",
        "shard/recovery/upgrade_tests.rs",
    ];
    for source in sources().iter().filter(|source| source.folder() == "shard" && !impure_files.contains(&&*source.name)) {
        for impure in
            ["Instant::now", "SystemTime", "std::thread::s", "std::env", "std::fs", "HashSet<", "async ", ".await", "monoio"]
        {
            if source.code.contains(impure) {
                problems.push(format!("src/{}: names {impure:?}; the shard's core is pure", source.name));
            }
        }
    }
    check(&problems);
}

#[test]
fn unsafe_stands_in_io_only() {
    let mut problems = Vec::new();
    for source in sources() {
        if source.folder() != "io" && (!named_after(&source.code, "unsafe ").is_empty() || source.code.contains("unsafe_code")) {
            problems.push(format!("src/{}: unsafe", source.name));
        }
        if source.name.starts_with("io/portable/") && source.code.contains("unsafe ") {
            problems.push(format!("src/{}: unsafe; the portable engine has none", source.name));
        }
        if source.folder() == "io" {
            for (number, line) in source.text.lines().enumerate() {
                let unsafe_block = line.contains("unsafe {") || line.contains("unsafe impl");
                let above: Vec<&str> = source.text.lines().take(number + 1).collect();
                let explained = above.iter().rev().take(8).any(|line| line.contains("// SAFETY:"));
                if unsafe_block && !explained {
                    problems.push(format!("src/{}:{}: no SAFETY comment", source.name, number + 1));
                }
            }
        }
    }
    check(&problems);
}

#[test]
fn the_readme_shows_the_examples_as_they_are() {
    let read = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let readme = read("README.md");
    for (example, lines_max) in [("examples/hello.py", 20), ("examples/page.html", 10)] {
        let text = read(example);
        assert!(readme.contains(text.trim_end()), "README.md shows another {example}");
        assert!(text.lines().count() <= lines_max, "{example} is the least that works: {lines_max} lines at most");
    }
}

/// Everything that `/metrics` and the manual list is counted somewhere.
#[test]
fn no_counter_is_listed_and_never_counted() {
    let sources = sources();
    let others: Vec<&Source> = sources
        .iter()
        .filter(|source| !source.is_test() && source.name != "shard/counters.rs" && source.name != "close.rs")
        .collect();
    // Calls may be broken into lines.
    let others: Vec<String> = others.iter().map(|source| source.code.split_whitespace().collect()).collect();
    let counted = |what: &[String]| others.iter().any(|code| what.iter().any(|what| code.contains(what)));
    let mut problems = Vec::new();
    let mut need = |name: String, what: &[String]| {
        if !counted(what) {
            problems.push(format!("{name} is listed, and nothing counts it"));
        }
    };
    for drop in DropReason::ALL {
        need(format!("{drop:?}"), &[format!("DropReason::{drop:?}")]);
    }
    let by_close: Vec<LimitReached> = CloseReason::ALL.into_iter().filter_map(LimitReached::behind).collect();
    for limit in LimitReached::ALL.iter().filter(|limit| !by_close.contains(limit)) {
        need(format!("{limit:?}"), &[format!("LimitReached::{limit:?}")]);
    }
    for reason in CloseReason::ALL {
        need(format!("{reason:?}"), &[format!("CloseReason::{reason:?}")]);
    }
    for metric in METRICS {
        need(metric.name.to_owned(), &["add(", "increment()", "set("].map(|call| format!("{}.{call}", metric.name)));
    }
    check(&problems);
}

#[test]
fn files_are_short_and_folders_explain_themselves() {
    let mut problems = Vec::new();
    for source in sources() {
        if source.lines > LINES_MAX {
            problems.push(format!("src/{}: {} lines, at most {LINES_MAX}", source.name, source.lines));
        }
        if source.name.ends_with("mod.rs") && !source.text.starts_with("//! ") {
            problems
                .push(format!("src/{}: begins without //!: what the folder is, what it may import, its invariants", source.name));
        }
    }
    check(&problems);
}
