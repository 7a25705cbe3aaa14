//! Origins (protocol.md section 1): the pages that may connect.

use crate::client::{tcp, upgrade};
use crate::gateway::Gateway;

#[tokio::test]
async fn pages_of_the_own_host_by_default_and_the_list_where_there_is_one() {
    let own = Gateway::start(&[]);
    let listed = Gateway::start(&[("server.allowed_origins", r#"["https://app.example"]"#)]);
    for (gateway, origin, status) in [
        (&own, "http://localhost", 101),
        (&own, "http://localhost:3000", 101),
        (&own, "https://evil.example", 403),
        (&own, "https://localhost.evil.example", 403),
        (&own, "null", 403),
        (&own, "http://127.0.0.1", 403),
        (&listed, "https://app.example", 101),
        (&listed, "https://app.example.evil.example", 403),
        (&listed, "http://app.example", 403),
        (&listed, "http://localhost", 403),
        (&listed, "null", 403),
    ] {
        let (_, got, head) = upgrade(tcp(gateway.address).await, "/v1/ws", &format!("Origin: {origin}\r\n")).await;
        assert_eq!(got, status, "{origin}: {head}");
    }
    for gateway in [&own, &listed] {
        assert_eq!(upgrade(tcp(gateway.address).await, "/v1/ws", "").await.1, 101, "no browser, no page");
    }
}
