//! The clients of `examples/` in Python, as somebody runs them. They need Python's package `websockets`: where `RINGWAY_TEST_PYTHON`
//! names an interpreter it must have it; else one that has it is looked for, and without one these tests say that they are skipped.

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE};
use crate::token::token;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

/// Does what the file says, and waits half a second where it would wait at random.
const SOON: &str = "import random, runpy, sys; random.uniform = lambda *bounds: 0.5; sys.argv = sys.argv[1:]; \
    runpy.run_path(sys.argv[0], run_name='__main__')";

fn python() -> Option<String> {
    let has = |python: &str| {
        Command::new(python).args(["-c", "import websockets"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if let Some(named) = std::env::var("RINGWAY_TEST_PYTHON").ok().filter(|named| !named.is_empty()) {
        assert!(has(&named), "RINGWAY_TEST_PYTHON={named} runs nothing that has the package websockets");
        return Some(named);
    }
    let found = ["target/power-cut-venv/bin/python", "python3"].into_iter().find(|python| has(python)).map(str::to_owned);
    if found.is_none() {
        eprintln!("skipped: no Python here has the package websockets; RINGWAY_TEST_PYTHON names one that has");
    }
    found
}

/// An example that runs; dropped, it is killed.
struct Example {
    child: Child,
    stdin: ChildStdin,
    printed: Receiver<Value>,
}

impl Example {
    fn start(python: &str, file: &str, address: SocketAddr) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
        let url = format!("ws://{address}/v1/ws");
        let mut child = Command::new(python)
            .args(["-c", SOON])
            .arg(file)
            .args([&*url, &*token("ana"), "ana", "s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, printed) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str(&line).unwrap());
            }
        });
        Self { child, stdin, printed }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    /// The next line of this type that it prints.
    fn prints(&self, kind: &str) -> Value {
        loop {
            let message = self.printed.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {kind} is printed"));
            if message["type"] == kind {
                return message;
            }
        }
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path to the gateway that can be cut.
struct Way {
    address: SocketAddr,
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Way {
    fn to(gateway: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, ends) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&ends);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(gateway) else { return };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                kept.lock().unwrap().extend([near, far]);
            }
        });
        Self { address, ends }
    }

    fn cut(&self) {
        for end in self.ends.lock().unwrap().drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

#[tokio::test]
async fn each_talks_with_another_client() {
    let Some(python) = python() else { return };
    for file in ["hello.py", "client.py"] {
        let gateway = Gateway::start(&[]);
        let mut ben = Client::join(&gateway, "s", "ben").await;
        let mut ana = Example::start(&python, file, gateway.address);
        assert_eq!(ana.prints("rw.welcome")["payload"]["client_id"], "ana", "{file}");
        ana.type_line("hello from ana");
        assert!(ana.prints("rw.ack")["payload"]["seq"].is_u64(), "{file}");
        let heard = ben.take("chat").await;
        assert_eq!((&heard["from"], &heard["payload"]), (&json!("ana"), &json!("hello from ana")), "{file}");
        ben.say("session", "hello from ben").await;
        assert_eq!(ana.prints("chat")["payload"], "hello from ben", "{file}");
        ben.close().await;
    }
}

#[tokio::test]
async fn the_one_with_resume_comes_back_and_misses_nothing() {
    let Some(python) = python() else { return };
    let gateway = Gateway::start(&[]);
    let way = Way::to(gateway.address);
    let mut ben = Client::join(&gateway, "s", "ben").await;
    let mut ana = Example::start(&python, "client.py", way.address);
    assert_eq!(ana.prints("rw.welcome")["payload"]["created"], false);
    ana.prints("rw.caught_up");
    ben.say("session", "before").await;
    assert_eq!(ana.prints("chat")["payload"], "before");
    way.cut();
    gateway.until_metric("ringway_closes_total", "reason=\"ended\"", |ended| ended == 1);
    ben.say("session", "while away").await;
    // Typed while there is no connection: it is sent once there is one.
    ana.type_line("typed while away");
    let welcome = ana.prints("rw.welcome");
    assert_eq!(welcome["payload"]["start_seq"], 2, "{welcome}");
    assert_eq!(ana.prints("chat")["payload"], "while away");
    assert!(ana.prints("rw.ack")["payload"]["duplicate"].is_null());
    assert_eq!(ben.take("chat").await["payload"], "typed while away");
    ben.say("session", "after").await;
    assert_eq!(ana.prints("chat")["payload"], "after", "what came before the cut does not come again");
}
