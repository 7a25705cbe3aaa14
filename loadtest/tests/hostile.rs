//! `hostile` as its users run it, on the gateway of this workspace: one short attack, and the error if there is none to make.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

fn hostile(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ringway-loadtest")).arg("hostile").args(arguments).output().unwrap()
}

/// The gateway, built beside this harness; a package's tests do not know another package's programs.
fn gateway() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_ringway-loadtest")).with_file_name("ringway")
}

#[test]
fn a_short_attack_is_measured_beside_the_sink_and_keeps_the_bounds() {
    let gateway = gateway();
    if !gateway.exists() {
        eprintln!("skipped: {} is not there; the tests of the whole workspace build it", gateway.display());
        return;
    }
    let json = std::env::temp_dir().join(format!("ringway-loadtest-hostile-{}.json", std::process::id()));
    let arguments = ["b8", "--spawn", gateway.to_str().unwrap(), "-d", "1", "--pairs", "1", "--no-pin", "--quiet", "--json"];
    let output = hostile(&[&arguments[..], &[json.to_str().unwrap()]].concat());
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let rows: Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap_or_else(|error| panic!("{error}: {said}"))).unwrap();
    let _ = std::fs::remove_file(&json);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let of = |who: &str| rows.as_array().unwrap().iter().find(|row| row["innocents"] == who).unwrap().clone();
    for who in ["/healthz", "messages"] {
        let row = of(who);
        for p99 in ["attacked_p99_us", "beside_sink_p99_us", "ratio"] {
            assert!(row[p99]["median"].as_f64().unwrap() > 0.0, "{p99} of {row}");
        }
        assert!(row["errors"].as_object().unwrap().is_empty() && row["failures"].as_array().unwrap().is_empty(), "{row}");
        assert!(row["rss_mib"].as_f64().unwrap() > 1.0 && row["rss_bound_mib"].as_f64() > row["rss_mib"].as_f64(), "{row}");
    }
    // The gateway takes places back from silent connections; on the sink they keep them.
    let cut_off = of("messages")["attackers_told"]["cut off"].as_u64().unwrap();
    assert!(cut_off > 0, "{rows}");
    for attack in ["attack_per_s", "sink_attack_per_s"] {
        assert!(of("messages")[attack]["median"].as_f64().unwrap() > 20.0, "{attack}: {rows}");
    }
    assert!(said.contains("b8") && said.contains("ok: every bound"), "{said}");
}

#[test]
fn what_cannot_be_attacked_is_said() {
    for (arguments, wanted) in [
        (&["a9", "--spawn", "/bin/false"][..], "b7-tls"),
        (&["b8", "--spawn", "/bin/false", "--no-pin", "--quiet"], "ended before it listened"),
        (&["b8"], "--spawn"),
    ] {
        let output = hostile(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(wanted), "{arguments:?}: {said}");
    }
}
