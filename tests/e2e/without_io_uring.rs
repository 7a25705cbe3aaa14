//! If the kernel refuses io_uring the gateway serves on epoll, and says so; one that is told to use io_uring says in one line why
//! it can't. With `RINGWAY_TEST_ENGINE=refused` all of these tests run so.

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE, SECRET, can_refuse, config, folder, refusing, run_command};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// The refusal is injected by a tracer; a machine without one, or one that forbids tracing, can't make the case.
fn skipped() -> bool {
    let skipped = !can_refuse();
    if skipped {
        eprintln!("skipped: strace is not here or may not trace");
    }
    skipped
}

fn refused(error: &str) -> Command {
    let words = refusing(error);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_ringway"));
    command
}

#[tokio::test]
async fn a_gateway_that_is_refused_io_uring_serves_on_epoll_and_says_so() {
    if skipped() {
        return;
    }
    for error in ["EPERM", "ENOSYS"] {
        let mut gateway = Gateway::start_under(&refusing(error), &[("server.engine", r#""auto""#), ("server.shards", "2")]);
        let line = gateway.logged("its engine", |line| line["message"] == "engine");
        assert_eq!((&line["engine"], &line["level"]), (&"monoio on epoll".into(), &"WARN".into()), "{line}");
        let why = line["why"].as_str().unwrap();
        assert!(why.contains("not ring: io_uring is refused: "), "{why}");
        assert_eq!(gateway.metric("ringway_engine_info", r#"engine="monoio",driver="epoll""#), 1);
        let mut ana = Client::join(&gateway, "s", "ana").await;
        let mut ben = Client::join(&gateway, "s", "ben").await;
        ana.publish("session", "hello").await;
        assert_eq!(ben.take("chat").await["payload"], "hello");
    }
}

#[test]
fn a_ring_that_was_asked_for_and_is_refused_is_one_line_with_its_fix() {
    if skipped() {
        return;
    }
    let folder = folder();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    std::fs::write(folder.join("ringway.toml"), config(&[("server.engine", r#""ring""#)])).unwrap();
    let file = folder.join("ringway.toml");
    let dev = ["dev", "--engine", "ring", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    for arguments in [&["serve", "--config", file.to_str().unwrap()][..], &dev] {
        for error in ["EPERM", "ENOSYS"] {
            let (exit, stdout, stderr) = run_command(refused(error).args(arguments));
            assert_eq!((exit, &*stdout, stderr.lines().count()), (1, "", 1), "{arguments:?} {error}: {stderr}");
            assert!(stderr.contains(r#"server.engine = "ring" is not possible here: ring: io_uring is refused"#), "{stderr}");
            assert!(stderr.contains(r#"set server.engine to "auto""#), "{stderr}");
        }
    }
    let (exit, told, _) = run_command(refused("EPERM").args(["doctor", "--config", file.to_str().unwrap()]));
    assert!(exit == 1 && told.contains("BLOCKING  server.engine = \"ring\" is not possible here"), "{told}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_doctor_and_dev_say_which_engine_runs() {
    if skipped() {
        return;
    }
    let (_, told, _) = run_command(refused("EPERM").arg("doctor"));
    assert!(told.contains("warning   io_uring is refused: ") && told.contains("the engine is monoio on epoll: "), "{told}");
    let mut child = refused("EPERM")
        .args(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--shards", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sink, lines) = std::sync::mpsc::channel();
    let stdout = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sink.send(line);
        }
    });
    let engine = loop {
        let line = lines.recv_timeout(PATIENCE).expect("the welcome of dev names its engine");
        if line.starts_with("  engine ") {
            break line;
        }
    };
    assert!(engine.starts_with("  engine   monoio on epoll: ") && engine.contains("not ring: io_uring is refused"), "{engine}");
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
}

/// Two files a connection, and a machine that does not have them.
fn few_files(files: u32, under: Vec<String>) -> Vec<String> {
    let script = format!("ulimit -Sn 64; ulimit -Hn {files}; exec \"$@\"");
    ["sh", "-c", &script, "sh"].map(str::to_owned).into_iter().chain(under).collect()
}

#[tokio::test]
async fn an_engine_of_the_gateways_choice_takes_the_connections_that_it_has_files_for() {
    if skipped() {
        return;
    }
    let settings = [("server.engine", r#""auto""#), ("server.max_connections", "1000")];
    let mut gateway = Gateway::start_under(&few_files(900, refusing("EPERM")), &settings);
    // 900 less 256 and 2 * 256 and 8 of the shard, two each.
    let line = gateway.logged("that it takes fewer", |line| line["asked_for"] == 1000);
    assert_eq!((&line["level"], &line["max_connections"]), (&"WARN".into(), &62.into()), "{line}");
    assert!(line["message"].as_str().unwrap().contains("LimitNOFILE=2776"), "{line}");
    let _ana = Client::join(&gateway, "s", "ana").await;
    // The file says what it said: nothing has changed.
    gateway.reload(&settings);
    let line = gateway.logged("the reload", |line| line["message"] == "reloaded settings and keys");
    assert_eq!((&line["live"], &line["restart"]), (&0.into(), &0.into()), "{line}");
    drop(gateway);

    // An engine asked for by name is not silently replaced.
    let folder = folder();
    std::fs::write(folder.join("secret"), SECRET).unwrap();
    for (engine, files) in [("epoll", 900), ("auto", 100)] {
        let engine = format!("{engine:?}");
        let settings = [("server.engine", engine.as_str()), ("server.max_connections", "1000")];
        std::fs::write(folder.join("ringway.toml"), config(&settings)).unwrap();
        let words = few_files(files, refusing("EPERM"));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(env!("CARGO_BIN_EXE_ringway")).args(["serve", "--config"]).arg(folder.join("ringway.toml"));
        let (exit, _, stderr) = run_command(&mut command);
        assert!(exit == 1 && stderr.contains("open files: server.max_connections"), "{engine}: {stderr}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}
