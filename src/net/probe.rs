//! Probes of balancers and supervisors on the clients' port: `/healthz` and `/readyz`, in HTTP/1.1, or in HTTP/1.0 without a `Host`, as
//! HAProxy and nginx send it.

use super::http::Request;

/// The question of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// `/healthz`: is the process healthy, or must it be restarted?
    Health,
    /// `/readyz`: may traffic be sent here?
    Ready,
}

/// A request for a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub check: Check,
    /// `true` for HEAD: the answer has no body.
    pub head_only: bool,
}

/// The probe that a request makes; `None` if it makes none. A probe is GET or HEAD of exactly these paths, without a body.
/// Anything else is judged as a request for an upgrade.
#[must_use]
pub fn probe(request: &Request<'_>) -> Option<Probe> {
    let head_only = match request.method() {
        "GET" => false,
        "HEAD" => true,
        _ => return None,
    };
    let check = match request.target() {
        "/healthz" => Check::Health,
        "/readyz" => Check::Ready,
        _ => return None,
    };
    let hosts = request.values("Host").count();
    // RFC 9112 section 3.2.
    let named = hosts == 1 || hosts == 0 && request.is_http_1_0();
    (named && request.refuse_body().is_ok()).then_some(Probe { check, head_only })
}

/// Appends the whole answer: 200 or 503, and one word.
pub fn write_answer(probe: Probe, well: bool, word: &str, out: &mut Vec<u8>) {
    let status = if well { "200 OK" } else { "503 Service Unavailable" };
    let body = if probe.head_only { String::new() } else { format!("{word}\n") };
    let length = word.len() + 1;
    out.extend_from_slice(
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\n\r\n{body}"
        )
        .as_bytes(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(head: &str) -> Option<Probe> {
        probe(&Request::parse_any_version(head.as_bytes()).unwrap())
    }

    #[test]
    fn probes_as_they_are_sent() {
        let ready = Some(Probe { check: Check::Ready, head_only: false });
        assert_eq!(judged("GET /readyz HTTP/1.0\r\n\r\n"), ready, "HAProxy 2.6, option httpchk GET /readyz");
        assert_eq!(judged("GET /readyz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"), ready, "HAProxy 2.6, http-check send");
        let health = Some(Probe { check: Check::Health, head_only: false });
        assert_eq!(judged("GET /healthz HTTP/1.0\r\nHost: gw\r\nConnection: close\r\n\r\n"), health, "nginx 1.22, proxy_pass");
        let kubelet = "GET /healthz HTTP/1.1\r\nHost: 10.0.0.5:8080\r\nUser-Agent: kube-probe/1.31\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(judged(kubelet), health);
        assert_eq!(judged("HEAD /healthz HTTP/1.0\r\n\r\n"), Some(Probe { check: Check::Health, head_only: true }));
    }

    #[test]
    fn what_is_no_probe() {
        for head in [
            "OPTIONS / HTTP/1.0\r\n\r\n",
            "POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET /healthz/ HTTP/1.0\r\n\r\n",
            "GET /healthz?x HTTP/1.0\r\n\r\n",
            "GET http://a/healthz HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(judged(head), None, "{head}");
        }
    }

    #[test]
    fn an_answer_is_whole() {
        let answer = |head_only, well| {
            let mut out = Vec::new();
            write_answer(Probe { check: Check::Health, head_only }, well, "stuck", &mut out);
            String::from_utf8(out).unwrap()
        };
        let (told, bare) = (answer(false, false), answer(true, false));
        assert!(told.starts_with("HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n"), "{told}");
        assert!(told.contains("\r\nContent-Length: 6\r\n") && told.ends_with("\r\n\r\nstuck\n"), "{told}");
        assert_eq!(format!("{bare}stuck\n"), told, "RFC 9110 section 9.3.2");
        assert!(answer(false, true).starts_with("HTTP/1.1 200 OK\r\n"));
    }
}
