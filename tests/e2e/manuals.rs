//! The links of the manuals, and the names of settings and metrics in the operators' manual.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The manuals, by their paths in the repository.
fn manuals() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let in_docs = ["docs", "docs/decisions"].into_iter().flat_map(|folder| std::fs::read_dir(root.join(folder)).unwrap());
    let paths = in_docs.map(|entry| entry.unwrap().path()).chain([root.join("README.md"), root.join("AGENTS.md")]);
    let manuals = paths.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    manuals.map(|path| (path.clone(), without_blocks(&std::fs::read_to_string(path).unwrap()))).collect()
}

/// A manual without its blocks between fences.
fn without_blocks(text: &str) -> String {
    let mut is_open = false;
    let outside = text.lines().filter(|line| {
        let is_fence = line.starts_with("```");
        is_open ^= is_fence;
        !is_open && !is_fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

/// The name by which a link reaches a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || "-_ ".contains(*letter));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn every_link_of_the_manuals_leads_somewhere() {
    let manuals = manuals();
    let anchors: BTreeMap<&Path, Vec<String>> = manuals
        .iter()
        .map(|(path, text)| {
            let headings = text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
            (&**path, headings.map(anchor).collect())
        })
        .collect();
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, text) in &manuals {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") {
                continue;
            }
            seen += 1;
            let (file, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let Ok(target) = target.canonicalize() else {
                wrong.push(format!("{}: there is no file {link}", path.display()));
                continue;
            };
            let found = anchors.get(&*target).is_some_and(|anchors| anchors.iter().any(|anchor| anchor == wanted));
            if !wanted.is_empty() && !found {
                wrong.push(format!("{}: there is no heading {link}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 60, "{seen} links were found");
}

/// The words in backquotes of a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_setting_and_metric_of_the_operators_manual_exists() {
    let read = |name: &str| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap();
    let (manual, reference, protocol) = (read("docs/OPERATING.md"), read("docs/REFERENCE.md"), read("docs/protocol.md"));
    let rows = || reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(name, _)| name);
    let mut section = "";
    let mut settings = Vec::new();
    for line in reference.split("<!-- end of settings -->").next().unwrap().lines() {
        if let Some(name) = line.strip_prefix("### `[").and_then(|line| line.strip_suffix("]`")) {
            section = name;
        } else if let Some((key, _)) = line.strip_prefix("| `").and_then(|line| line.split_once('`')) {
            settings.push(format!("{section}.{key}"));
        }
    }
    let of_section = |name: &str| settings.iter().any(|setting| setting.split('.').next() == name.split('.').next());
    let text = without_blocks(&manual);
    let wrong: Vec<&str> = quoted(&text)
        .map(|word| word.split(['{', ' ', '=']).next().unwrap())
        .filter(|name| {
            // `log.retention_*` is a family, `auth.revoked` an error's code.
            let is_code = protocol.contains(&format!("| `{name}` |"));
            let is_setting = name.contains('.') && of_section(name) && !name.ends_with('*') && !is_code;
            let is_unknown_setting = is_setting && settings.iter().all(|setting| setting != name);
            is_unknown_setting || name.starts_with("ringway_") && name.len() > 8 && rows().all(|row| row != *name)
        })
        .collect();
    assert!(wrong.is_empty(), "docs/OPERATING.md names what docs/REFERENCE.md has not: {wrong:?}");
    // The table of symptoms leaves the prefix out: its second column has metrics and their labels.
    let symptoms = manual.split("## Symptoms").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let is_label = |word: &str| word.contains('_') && word.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    let looks = symptoms.lines().filter_map(|line| line.split(" | ").nth(1));
    let unknown: Vec<&str> = looks
        .flat_map(quoted)
        .filter(|word| is_label(word) && *word != "ringway_")
        .filter(|word| !rows().any(|row| row == *word || row.strip_prefix("ringway_") == Some(word)))
        .collect();
    assert!(unknown.is_empty(), "the symptoms' table names what docs/REFERENCE.md has not: {unknown:?}");
}
