//! Where the kernel refuses io_uring, one clear line and exit code 1.

use crate::gateway::{SECRET, config, folder, run_command};
use std::process::Command;

#[test]
fn a_refused_ring_is_one_line_with_its_fix() {
    // The refusal is injected by a tracer; a machine without one, or one that forbids tracing, can't make the case.
    let traces = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    if !traces.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: strace is not here or may not trace");
        return;
    }
    let folder = folder();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    std::fs::write(folder.join("ringway.toml"), config(&[])).unwrap();
    let file = folder.join("ringway.toml");
    for arguments in [vec!["serve", "--config", file.to_str().unwrap()], vec!["dev", "--listen", "127.0.0.1:0"]] {
        for (error, part) in [("EPERM", "io_uring"), ("ENOSYS", "io_uring")] {
            let mut command = Command::new("strace");
            command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e"]);
            command.arg(format!("inject=io_uring_setup:error={error}")).arg(env!("CARGO_BIN_EXE_ringway")).args(&arguments);
            let (exit, stdout, stderr) = run_command(&mut command);
            assert_eq!((exit, &*stdout, stderr.lines().count()), (1, "", 1), "{arguments:?} {error}: {stderr}");
            assert!(stderr.contains(part), "{stderr}");
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
