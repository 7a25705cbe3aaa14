//! The first rule of the words (AGENTS.md), read off the sources: a comment begins with the thing or with what it does.
#![allow(clippy::unwrap_used, reason = "a test process of its own, not the gateway")]

use std::path::{Path, PathBuf};

/// Folders whose Rust files are read.
const FOLDERS: [&str; 4] = ["src", "loadtest", "benches", "tests"];
/// Words that leave the reader to guess the subject.
const HEADLESS: [&str; 7] = ["It", "Its", "What", "Who", "Those", "One", "That"];

/// The marker of a line that is a comment, and its text.
fn comment(line: &str) -> Option<(&'static str, &str)> {
    let line = line.trim_start();
    ["///", "//!", "//"].into_iter().find_map(|marker| Some((marker, line.strip_prefix(marker)?.trim())))
}

/// The comment behind the code of a line. Slashes within a string are none.
fn trailing(line: &str) -> Option<&str> {
    let places = line.match_indices(" // ").map(|(at, _)| at);
    let at = places.into_iter().find(|at| line[..*at].matches('"').count().is_multiple_of(2))?;
    (!line[..at].trim().is_empty()).then(|| line[at + 4..].trim())
}

/// The lines, from 1, at which a comment begins with one of [`HEADLESS`].
fn headless(text: &str) -> Vec<usize> {
    let is_headless = |text: &str| {
        let word: &str = text.split(|letter: char| !letter.is_alphanumeric() && letter != '-').next().unwrap_or("");
        HEADLESS.contains(&word)
    };
    let mut found = Vec::new();
    let mut before = None;
    for (number, line) in (1..).zip(text.lines()) {
        let whole = comment(line);
        let begins = match whole {
            Some((marker, text)) => (before != Some(marker)).then_some(text),
            None => trailing(line),
        };
        if begins.is_some_and(is_headless) {
            found.push(number);
        }
        before = whole.map(|(marker, _)| marker);
    }
    found
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            walk(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_reader_finds_headless_comments_and_nothing_else() {
    let quote = '"';
    let text = [
        "//! What the module is.",
        "//! One more line of it.",
        "/// It's a doc comment.",
        "fn f() { // Those that trail",
        &format!("let url = {quote}ws:// What // One{quote};"),
        "// A comment that goes on in another line.",
        "// It may begin so.",
        "}",
        "/// One-shot, and Italian, are other words.",
    ]
    .join("\n");
    assert_eq!(headless(&text), [1, 3, 4]);
}

#[test]
fn comments_begin_with_the_thing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in FOLDERS {
        walk(&root.join(folder), &mut files);
    }
    assert!(files.len() > 200, "the sources are not where they were");
    files.sort();
    let mut problems = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        problems.extend(headless(&text).into_iter().map(|number| {
            format!("{name}:{number}: {}; begin with the thing or with what it does (AGENTS.md, Words)", {
                text.lines().nth(number - 1).unwrap_or("").trim()
            })
        }));
    }
    assert!(problems.is_empty(), "{} comments begin with one of {HEADLESS:?}:\n{}", problems.len(), problems.join("\n"));
}
