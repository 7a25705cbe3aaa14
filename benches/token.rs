//! The cost of a hello's token: signature, parse and judgement of the claims, for each algorithm.

use criterion::{Criterion, criterion_group, criterion_main};
use ringway::auth::{KeyAlgorithm, KeySet, TokenPolicy};
use ringway::cli::keys::{SigningKey, TokenRequest};
use ringway::time::Tick;
use std::hint::black_box;

const NOW: Tick = Tick { mono_ns: 0, wall_ms: 1_790_000_000_000 };

fn verify(criterion: &mut Criterion) {
    let request = TokenRequest {
        subject: "ana".into(),
        sessions: vec!["s-42".into(), "team-7.*".into()],
        roles: vec!["agent".into()],
        ttl_s: 900,
        ..TokenRequest::default()
    };
    let mut group = criterion.benchmark_group("token");
    for algorithm in KeyAlgorithm::ALL {
        let key = SigningKey::generate(algorithm, Some("bench")).expect("keys can be made");
        let keys = KeySet::new(&[key.material().expect("a key has its text")]).expect("a key just made is good");
        let token = key.token(&request, NOW.wall_s()).expect("the claims are good");
        let policy = TokenPolicy::default();
        group.bench_function(format!("verify/{}", algorithm.name()), |bencher| {
            bencher.iter(|| keys.verify(black_box(&token), &policy, NOW).expect("the token is good"));
        });
    }
    group.finish();
}

criterion_group!(benches, verify);
criterion_main!(benches);
