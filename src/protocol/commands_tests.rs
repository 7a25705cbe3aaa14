use super::*;
use crate::protocol::Parser;

/// Reads `payload` as a command and passes the result to `check`.
fn read<T>(kind: &str, payload: &str, check: impl FnOnce(Result<Command<'_>, Box<Refusal>>) -> T) -> T {
    let text = format!(r#"{{"type":"{kind}","id":"m-1","session_id":"s-42","payload":{payload}}}"#);
    let mut parser = Parser::default();
    let mut commands = CommandParser::default();
    check(commands.parse(&parser.parse(text.as_bytes()).unwrap()))
}

fn good(kind: &str, payload: &str, expected: &Command<'_>) {
    read(kind, payload, |outcome| assert_eq!(outcome.as_ref(), Ok(expected), "{kind} {payload}"));
}

fn attach<'a>() -> Attach<'a> {
    Attach { resume: None, start: Start::Cursor, rooms: Vec::new(), create: true, echo: false }
}

#[test]
fn the_contracts_hello_is_read() {
    let payload = r#"{"client_id":"ana/tab-7","auth_token":"<JWT>",
        "resume":{"epoch":"9f2c","seq":1041},"rooms":["ops"],"create":true,"echo":false,"acks":true,"features":[]}"#;
    let resume = Some(Resume { epoch: "9f2c", seq: 1041 });
    good(
        "rw.hello",
        payload,
        &Command::Hello(Hello {
            client_id: "ana/tab-7",
            auth_token: "<JWT>",
            attach: Attach { resume, rooms: vec!["ops"], ..attach() },
            acks: true,
            features: vec![],
        }),
    );
    good(
        "rw.hello",
        r#"{"auth_token":"t","client_id":"a","acks":false,"echo":true,"create":false,"resume":null,"new":[1],
            "start":{"last":50},"features":["x","y"],"rooms":["r","q","r"]}"#,
        &Command::Hello(Hello {
            client_id: "a",
            auth_token: "t",
            attach: Attach { start: Start::Last(50), rooms: vec!["r", "q"], create: false, echo: true, ..attach() },
            acks: false,
            features: vec!["x", "y"],
        }),
    );
}

#[test]
fn every_command_is_read() {
    for (start, expected) in
        [("cursor", Start::Cursor), ("head", Start::Head), ("oldest", Start::Oldest), ("h\\u0065ad", Start::Head)]
    {
        good("rw.attach", &format!(r#"{{"start":"{start}"}}"#), &Command::Attach(Attach { start: expected, ..attach() }));
    }
    good("rw.attach", "{}", &Command::Attach(attach()));
    good("rw.detach", "{}", &Command::Detach);
    good("rw.ping", r#"{"anything":1}"#, &Command::Ping);
    good("rw.refresh", r#"{"auth_token":"t"}"#, &Command::Refresh(Refresh { auth_token: "t" }));
    good("rw.join", r#"{"room":"ops"}"#, &Command::Join { room: "ops" });
    good("rw.leave", r#"{"room":"ops"}"#, &Command::Leave { room: "ops" });
    good("rw.leave", r#"{"room":"rw:ops"}"#, &Command::Leave { room: "rw:ops" });
    good("rw.join", r#"{"room":"rw.ops"}"#, &Command::Join { room: "rw.ops" });
    good("rw.members", "{}", &Command::Members(Members { room: None, after: None, limit: MEMBERS_PAGE_DEFAULT }));
    good(
        "rw.members",
        r#"{"room":"ops","after":"ana/1","limit":500}"#,
        &Command::Members(Members { room: Some("ops"), after: Some("ana/1"), limit: 500 }),
    );
    good("rw.watch", r#"{"presence":true}"#, &Command::Watch(Watch { presence: true, room: None }));
    good("rw.watch", r#"{"presence":false,"room":"r"}"#, &Command::Watch(Watch { presence: false, room: Some("r") }));
    let data = format!(r#"{{ "a":"{}"}}"#, "x".repeat(PRESENCE_DATA_BYTES_MAX - 9));
    assert_eq!(data.len(), PRESENCE_DATA_BYTES_MAX);
    good("rw.presence.set", &format!(r#"{{"data": {data} }}"#), &Command::PresenceSet { data: data.as_bytes() });
    good("rw.presence.set", r#"{"data":null}"#, &Command::PresenceSet { data: b"null" });
    let history = |from, limit, room| Command::History(History { from, limit, room });
    good("rw.history", "{}", &history(HistoryFrom::Newest, HISTORY_PAGE_DEFAULT, None));
    good("rw.history", r#"{"before":7,"limit":1000}"#, &history(HistoryFrom::Before(7), 1000, None));
    good("rw.history", r#"{"after":0,"before":null,"limit":1,"room":"r"}"#, &history(HistoryFrom::After(0), 1, Some("r")));
    good("rw.received", r#"{"seq":9007199254740991}"#, &Command::Received { seq: INTEGER_MAX });
}

#[test]
fn refusals_name_the_place() {
    let rooms = |count: usize| format!(r#"{{"rooms":[{}]}}"#, vec![r#""r""#; count].join(","));
    good("rw.attach", &rooms(ROOMS_PER_CLIENT_MAX), &Command::Attach(Attach { rooms: vec!["r"], ..attach() }));
    good("rw.refresh", r#"{"auth_token":"t"}"#, &Command::Refresh(Refresh { auth_token: "t" }));
    for (kind, payload, pointer, code) in [
        ("rw.hello", r#"{"auth_token":"t"}"#, "/payload/client_id", ErrorCode::EnvelopeInvalid),
        ("rw.hello", r#"{"client_id":"a b","auth_token":"t"}"#, "/payload/client_id", ErrorCode::EnvelopeInvalid),
        ("rw.hello", r#"{"client_id":"a"}"#, "/payload/auth_token", ErrorCode::AuthMissing),
        ("rw.hello", r#"{"client_id":"a","auth_token":""}"#, "/payload/auth_token", ErrorCode::AuthMissing),
        ("rw.hello", r#"{"client_id":"a","auth_token":7}"#, "/payload/auth_token", ErrorCode::AuthMalformed),
        ("rw.hello", r#"{"client_id":"a","auth_token":"t","acks":1}"#, "/payload/acks", ErrorCode::EnvelopeInvalid),
        ("rw.hello", r#"{"client_id":"a","auth_token":"t","features":[1]}"#, "/payload/features/0", ErrorCode::EnvelopeInvalid),
        ("rw.refresh", "{}", "/payload/auth_token", ErrorCode::AuthMissing),
        ("rw.attach", &rooms(ROOMS_PER_CLIENT_MAX + 1), "/payload/rooms", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"rooms":["a","b c"]}"#, "/payload/rooms/1", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"rooms":["a","rw:b"]}"#, "/payload/rooms/1", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"rooms":"a"}"#, "/payload/rooms", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":7}"#, "/payload/resume", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":{"epoch":"e"}}"#, "/payload/resume", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":{"epoch":"e","seq":-1}}"#, "/payload/resume/seq", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":{"epoch":"","seq":1}}"#, "/payload/resume/epoch", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":{"seq":1,"epoch":"e","seq":1}}"#, "/payload/resume", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"start":"tail"}"#, "/payload/start", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"start":{"last":0}}"#, "/payload/start", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"start":{"last":1,"last":2}}"#, "/payload/start", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"start":{"first":1}}"#, "/payload/start", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"echo":true,"ech\u006f":true}"#, "/payload/echo", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"create":"yes"}"#, "/payload/create", ErrorCode::EnvelopeInvalid),
        ("rw.join", "{}", "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.join", r#"{"room":"a b"}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.join", r#"{"room":"rw:a"}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.members", r#"{"room":"rw:a"}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.watch", r#"{"room":"rw:a"}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.history", r#"{"room":"rw:a"}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.leave", r#"{"room":null}"#, "/payload/room", ErrorCode::EnvelopeInvalid),
        ("rw.members", r#"{"limit":501}"#, "/payload/limit", ErrorCode::EnvelopeInvalid),
        ("rw.members", r#"{"limit":0}"#, "/payload/limit", ErrorCode::EnvelopeInvalid),
        ("rw.members", r#"{"limit":1.0}"#, "/payload/limit", ErrorCode::EnvelopeInvalid),
        ("rw.members", r#"{"after":""}"#, "/payload/after", ErrorCode::EnvelopeInvalid),
        ("rw.watch", r#"{"presence":"yes"}"#, "/payload/presence", ErrorCode::EnvelopeInvalid),
        ("rw.presence.set", "{}", "/payload/data", ErrorCode::EnvelopeInvalid),
        ("rw.history", r#"{"limit":1001}"#, "/payload/limit", ErrorCode::EnvelopeInvalid),
        ("rw.history", r#"{"before":1,"after":2}"#, "/payload/after", ErrorCode::EnvelopeInvalid),
        ("rw.history", r#"{"before":"1"}"#, "/payload/before", ErrorCode::EnvelopeInvalid),
        ("rw.received", "{}", "/payload/seq", ErrorCode::EnvelopeInvalid),
        ("rw.received", r#"{"seq":9007199254740992}"#, "/payload/seq", ErrorCode::EnvelopeInvalid),
        ("rw.received", r#"{"seq":18446744073709551616}"#, "/payload/seq", ErrorCode::EnvelopeInvalid),
        ("rw.received", r#"{"seq":1e400}"#, "/payload/seq", ErrorCode::EnvelopeInvalid),
        ("rw.received", r#"{"seq":-1e400,"x":1}"#, "/payload/seq", ErrorCode::EnvelopeInvalid),
        ("rw.history", r#"{"limit":1000000000000000000000}"#, "/payload/limit", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"start":{"last":1e999}}"#, "/payload/start", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"resume":{"epoch":"e","seq":1e999}}"#, "/payload/resume/seq", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"rooms":[99999999999999999999]}"#, "/payload/rooms/0", ErrorCode::EnvelopeInvalid),
        ("rw.attach", r#"{"echo":1e999}"#, "/payload/echo", ErrorCode::EnvelopeInvalid),
        ("rw.agent.register", "{}", "/type", ErrorCode::EnvelopeUnknownType),
        ("rw.nothing", "{}", "/type", ErrorCode::EnvelopeUnknownType),
        ("rw.error", "{}", "/type", ErrorCode::EnvelopeUnknownType),
    ] {
        let refusal = read(kind, payload, |outcome| outcome.map(|_| ()).unwrap_err());
        assert_eq!((&*refusal.pointer, refusal.code), (pointer, code), "{kind} {payload}: {}", refusal.message);
        assert_eq!((&*refusal.id, &*refusal.session_id), ("m-1", "s-42"));
    }
    let over = format!(r#"{{"data":"{}"}}"#, "x".repeat(PRESENCE_DATA_BYTES_MAX - 1));
    let refusal = read("rw.presence.set", &over, |outcome| outcome.map(|_| ()).unwrap_err());
    assert_eq!(refusal.pointer, "/payload/data");
}

/// RFC 8259 sets numbers no range: a number under an unread key decides nothing, and does not affect the numbers beside it.
#[test]
fn a_number_of_any_size_under_a_key_that_nobody_reads_is_ignored() {
    for big in ["1e400", "-1e400", "18446744073709551616", "-9223372036854775809", "1E+999", "0.1e99999", &"9".repeat(400)] {
        for inside in [big.to_owned(), format!("[{big}]"), format!(r#"{{"seq":{big}}}"#), format!(r#"[[{{"a":{big}}},7]]"#)] {
            good("rw.received", &format!(r#"{{"x":{inside},"seq":7}}"#), &Command::Received { seq: 7 });
            good("rw.received", &format!(r#"{{"seq":9007199254740991,"x":{inside}}}"#), &Command::Received { seq: INTEGER_MAX });
            good("rw.ping", &format!(r#"{{"x":{inside}}}"#), &Command::Ping);
            let resume = Some(Resume { epoch: "e", seq: 5 });
            let payload = format!(r#"{{"resume":{{"x":{inside},"epoch":"e","seq":5}},"y":{inside}}}"#);
            good("rw.attach", &payload, &Command::Attach(Attach { resume, ..attach() }));
            let payload = format!(r#"{{"client_id":"ana","auth_token":"t","x":{inside},"resume":{{"epoch":"e","seq":5}}}}"#);
            let hello =
                Hello { client_id: "ana", auth_token: "t", attach: Attach { resume, ..attach() }, acks: true, features: vec![] };
            good("rw.hello", &payload, &Command::Hello(hello));
            // A client's data is kept as it was written.
            let data = inside.as_bytes();
            good("rw.presence.set", &format!(r#"{{"data": {inside} ,"x":{big}}}"#), &Command::PresenceSet { data });
        }
    }
}

#[test]
fn types_are_sorted() {
    for (kind, expected) in [
        ("chat.message", Kind::Application),
        ("rw", Kind::Application),
        ("rwx.hello", Kind::Application),
        ("rw.hello", Kind::Known(CommandKind::Hello)),
        ("rw.presence.set", Kind::Known(CommandKind::PresenceSet)),
        ("rw.presence", Kind::Unknown),
        ("rw.hello.x", Kind::Unknown),
        ("rw.", Kind::Unknown),
        ("rw.ack", Kind::Unknown),
        ("rw.stream.open", Kind::Reserved),
        ("rw.run.cancel", Kind::Reserved),
        ("rw.task", Kind::Reserved),
        ("rw.task.ack", Kind::Reserved),
        ("rw.tasks", Kind::Unknown),
        ("rw.context.put", Kind::Reserved),
    ] {
        assert_eq!(command_kind(kind), expected, "{kind}");
    }
}

#[test]
fn debug_never_prints_a_token() {
    for (kind, payload) in [
        ("rw.hello", r#"{"client_id":"ana","auth_token":"SECRET"}"#),
        ("rw.refresh", r#"{"auth_token":"SECRET"}"#),
        ("rw.hello", r#"{"client_id":"ana","auth_token":["SECRET"]}"#),
    ] {
        let printed = read(kind, payload, |outcome| format!("{outcome:?}"));
        assert!(!printed.contains("SECRET"), "{printed}");
    }
}
