//! Health of the shards: judges from observations at every tick whether they turn and publish.
//!
//! Pure: counted in ticks of control, so that a process stopped and continued is not taken for stuck shards.

use crate::shard::port::Ready;

/// Ticks (seconds) without a turn after which a shard is stuck (protocol.md section 8).
pub const STUCK_TICKS: u32 = 5;
/// Ticks (seconds) without a returned probe, an internal publish, after which the node is not ready.
pub const READY_TICKS_MAX: u32 = 3;

#[derive(Clone, Debug, Default)]
struct ShardHealth {
    turns: u64,
    silent_ticks: u32,
    /// `true` while a probe is under way; there is only one at a time.
    probing: bool,
    /// Ticks since the last probe came back; `None` before the first.
    unproven_ticks: Option<u32>,
}

/// The health of all shards.
#[derive(Clone, Debug)]
pub struct Health {
    shards: Vec<ShardHealth>,
    draining: bool,
}

impl Health {
    /// For this number of shards, of which nothing is known yet.
    #[must_use]
    pub fn new(shards: usize) -> Self {
        Self { shards: vec![ShardHealth::default(); shards], draining: false }
    }

    /// Notes that a tick has passed and the shard has made `turns` turns in all. Returns `true` if it is to be probed now.
    pub fn tick(&mut self, shard: usize, turns: u64) -> bool {
        let health = &mut self.shards[shard];
        health.silent_ticks = if turns == health.turns { health.silent_ticks.saturating_add(1) } else { 0 };
        health.turns = turns;
        health.unproven_ticks = health.unproven_ticks.map(|ticks| ticks.saturating_add(1));
        !std::mem::replace(&mut health.probing, true)
    }

    /// Notes the end of a probe: it came back, or it was refused or dropped.
    pub fn probed(&mut self, shard: usize, came_back: bool) {
        let health = &mut self.shards[shard];
        health.probing = false;
        if came_back {
            health.unproven_ticks = Some(0);
        }
    }

    /// Marks the node as draining.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Returns `true` while the node drains.
    #[must_use]
    pub const fn draining(&self) -> bool {
        self.draining
    }

    /// The shards that have not turned for [`STUCK_TICKS`].
    #[must_use]
    pub fn stuck(&self) -> Vec<usize> {
        let stuck = |(index, health): (usize, &ShardHealth)| (health.silent_ticks >= STUCK_TICKS).then_some(index);
        self.shards.iter().enumerate().filter_map(stuck).collect()
    }

    /// The node's readiness in a word.
    #[must_use]
    pub fn readiness(&self) -> Ready {
        if self.draining {
            return Ready::Draining;
        }
        let ticks = self.shards.iter().map(|health| health.unproven_ticks);
        if ticks.clone().any(|ticks| ticks.is_none()) {
            Ready::Starting
        } else if ticks.flatten().any(|ticks| ticks > READY_TICKS_MAX) {
            Ready::Late
        } else {
            Ready::Ready
        }
    }

    /// Checks that the node is ready for traffic.
    ///
    /// # Errors
    /// Why not, one line.
    pub fn ready(&self) -> Result<(), String> {
        if self.draining {
            return Err("draining: the process is about to end".to_owned());
        }
        for (index, health) in self.shards.iter().enumerate() {
            match health.unproven_ticks {
                None => return Err(format!("shard {index} has not answered its first internal publish yet")),
                Some(ticks) if ticks > READY_TICKS_MAX => {
                    return Err(format!("an internal publish on shard {index} has not come back for {ticks} s"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_does_not_turn_is_stuck_after_five_ticks_and_recovers() {
        let mut health = Health::new(2);
        for tick in 1..=4 {
            health.tick(0, tick);
            health.tick(1, 0);
        }
        assert!(health.stuck().is_empty());
        health.tick(0, 5);
        health.tick(1, 0);
        assert_eq!(health.stuck(), [1]);
        health.tick(1, 1);
        assert!(health.stuck().is_empty());
    }

    #[test]
    fn one_probe_is_on_its_way_at_a_time() {
        let mut health = Health::new(1);
        assert!(health.tick(0, 1));
        assert!(!health.tick(0, 2));
        health.probed(0, false);
        assert!(health.tick(0, 3));
        assert!(health.ready().is_err());
    }

    #[test]
    fn ready_needs_every_shard_lately() {
        let mut health = Health::new(2);
        health.tick(0, 1);
        health.tick(1, 1);
        health.probed(0, true);
        assert!(health.ready().unwrap_err().starts_with("shard 1 "));
        assert_eq!(health.readiness(), Ready::Starting);
        health.probed(1, true);
        assert_eq!(health.ready(), Ok(()));
        for turn in 0..READY_TICKS_MAX {
            health.tick(0, 2 + u64::from(turn));
        }
        assert_eq!(health.ready(), Ok(()));
        health.tick(0, 9);
        assert!(health.ready().unwrap_err().contains("shard 0"));
        assert_eq!(health.readiness(), Ready::Late);
        health.probed(0, true);
        assert_eq!(health.ready(), Ok(()));
        health.drain();
        assert!(health.ready().unwrap_err().starts_with("draining"));
        assert_eq!(health.readiness(), Ready::Draining);
    }
}
