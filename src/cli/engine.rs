//! Chooses the engine that runs the shards: the one that `server.engine` asks for, or the best that works on this machine.

use super::CliError;
use super::doctor::refusal;
use crate::config::Engine as Wanted;
use crate::io::probe::{Engine, ProbeError, probe};

/// An engine, and the reason for the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub engine: Engine,
    /// The reason, one line.
    pub why: String,
    /// `true` if a better engine was asked for, or preferred, and does not work here.
    pub fallen_back: bool,
}

impl Choice {
    /// Logs which engine runs, and why.
    pub(super) fn log(&self) {
        let (engine, why) = (self.engine, &self.why);
        if self.fallen_back {
            tracing::warn!(%engine, %why, "engine");
        } else {
            tracing::info!(%engine, %why, "engine");
        }
    }
}

/// The engines allowed, best first.
const fn candidates(wanted: Wanted) -> &'static [Engine] {
    match wanted {
        Wanted::Auto => &[Engine::Ring, Engine::MonoioUring, Engine::MonoioEpoll],
        Wanted::Ring => &[Engine::Ring],
        Wanted::Monoio => &[Engine::MonoioUring, Engine::MonoioEpoll],
        Wanted::Epoll => &[Engine::MonoioEpoll],
    }
}

/// The first candidate that works; else the error of each.
fn decide<E: ToString>(wanted: Wanted, try_out: impl Fn(Engine) -> Result<(), E>) -> Result<Choice, Vec<(Engine, E)>> {
    let mut kept = Vec::new();
    for engine in candidates(wanted) {
        match try_out(*engine) {
            Ok(()) => {
                let asked = match wanted {
                    Wanted::Auto if kept.is_empty() => "it is the best engine, and works on this machine".to_owned(),
                    Wanted::Auto => "it is the best engine that works on this machine".to_owned(),
                    wanted => format!("server.engine = \"{}\"", wanted.name()),
                };
                let reasons: Vec<String> =
                    kept.iter().map(|(other, why): &(Engine, E)| format!("not {other}: {}", why.to_string())).collect();
                let why = [vec![asked], reasons].concat().join("; ");
                return Ok(Choice { engine: *engine, why, fallen_back: !kept.is_empty() });
            }
            Err(error) => kept.push((*engine, error)),
        }
    }
    Err(kept)
}

/// Chooses by trying.
///
/// # Errors
/// An error of one line if no allowed engine works here.
pub fn choose(wanted: Wanted) -> Result<Choice, CliError> {
    decide(wanted, probe).map_err(|kept| CliError(impossible(wanted, &kept)))
}

fn impossible(wanted: Wanted, kept: &[(Engine, ProbeError)]) -> String {
    let reasons: Vec<String> = kept
        .iter()
        .map(|(engine, error)| {
            let (what, fix) = refusal(error);
            format!("{engine}: {what}; {fix}")
        })
        .collect();
    let other = if wanted == Wanted::Ring { "; or set server.engine to \"auto\", which needs no io_uring" } else { "" };
    format!("server.engine = \"{}\" is not possible here: {}{other}", wanted.name(), reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(runs: &'static [Engine]) -> impl Fn(Engine) -> Result<(), String> {
        |engine| if runs.contains(&engine) { Ok(()) } else { Err(format!("no {}", engine.driver())) }
    }

    #[test]
    fn the_best_that_runs_is_taken_and_says_why() {
        use Engine::{MonoioEpoll, MonoioUring, Ring};
        let all: &[Engine] = &[Ring, MonoioUring, MonoioEpoll];
        let cases: [(Wanted, &'static [Engine], Engine, bool); 8] = [
            (Wanted::Auto, all, Ring, false),
            (Wanted::Auto, &[MonoioUring, MonoioEpoll], MonoioUring, true),
            (Wanted::Auto, &[MonoioEpoll], MonoioEpoll, true),
            (Wanted::Ring, all, Ring, false),
            (Wanted::Monoio, all, MonoioUring, false),
            (Wanted::Monoio, &[MonoioEpoll], MonoioEpoll, true),
            (Wanted::Epoll, all, MonoioEpoll, false),
            (Wanted::Epoll, &[MonoioEpoll], MonoioEpoll, false),
        ];
        for (wanted, runs, engine, fallen_back) in cases {
            let choice = decide(wanted, with(runs)).unwrap();
            assert_eq!((choice.engine, choice.fallen_back), (engine, fallen_back), "{wanted:?} {runs:?}");
            assert_eq!(choice.why.contains("not "), fallen_back, "{}", choice.why);
        }
        let choice = decide(Wanted::Auto, with(&[MonoioEpoll])).unwrap();
        assert_eq!(
            choice.why,
            "it is the best engine that works on this machine; not ring: no io_uring; not monoio on io_uring: no io_uring"
        );
    }

    #[test]
    fn what_can_not_be_is_one_line_with_the_way_out() {
        assert_eq!(decide(Wanted::Ring, with(&[Engine::MonoioEpoll])).unwrap_err().len(), 1);
        assert_eq!(decide(Wanted::Auto, with(&[])).unwrap_err().len(), 3);
        let refused = || ProbeError::Refused("io_uring", std::io::Error::from_raw_os_error(libc::EPERM));
        let text = impossible(Wanted::Ring, &[(Engine::Ring, refused())]);
        assert!(text.starts_with("server.engine = \"ring\" is not possible here: ring: io_uring is refused: "), "{text}");
        assert!(text.ends_with("server.engine to \"auto\", which needs no io_uring") && !text.contains('\n'), "{text}");
    }
}
