//! Any bytes as a token, as the header of one, and as claims behind a good signature: no panic, and nothing forged is granted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringway::auth::claims::Claims;
use ringway::auth::{KeyAlgorithm, KeyMaterial, KeySet, TokenPolicy};
use ringway::time::Tick;

const NOW: Tick = Tick { mono_ns: 0, wall_ms: 1_790_000_000_000 };

fuzz_target!(|data: &[u8]| {
    let material = KeyMaterial { key_id: "k".into(), algorithm: KeyAlgorithm::Hs256, bytes: vec![0xa5; 32] };
    let keys = KeySet::new(&[material]).expect("32 bytes are a secret");
    if let Ok(token) = std::str::from_utf8(data) {
        assert!(keys.verify(token, &TokenPolicy::default(), NOW).is_err(), "the fuzzer does not know the key");
    }
    if let Ok(claims) = Claims::parse(data)
        && let Ok(grant) = claims.grant(&TokenPolicy::default(), NOW.wall_s())
    {
        assert!(!grant.subject().is_empty() && grant.subject() != "rw" && grant.sessions().count() > 0);
        assert!(grant.expires_at_s() + 30 > NOW.wall_s() && grant.expires_at_s() <= NOW.wall_s() + 24 * 60 * 60 + 30);
    }
    for algorithm in KeyAlgorithm::ALL {
        let _ = KeySet::new(&[KeyMaterial { key_id: "k".into(), algorithm, bytes: data.to_vec() }]);
    }
});
