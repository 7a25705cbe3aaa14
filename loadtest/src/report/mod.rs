//! What a run came to, and how it is shown.

pub mod table;

use serde::{Deserialize, Serialize};

/// A figure of one run.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub value: f64,
    /// Taken while the generator was too busy to tell.
    pub void: bool,
    pub better: Better,
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
    Neither,
}

impl Figure {
    pub fn lower(name: String, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value, void: false, better: Better::Lower }
    }

    pub fn higher(name: String, unit: &'static str, value: f64) -> Self {
        Self { name, unit, value, void: false, better: Better::Higher }
    }

    pub fn neutral(name: &str, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, value, void: false, better: Better::Neither }
    }

    #[must_use]
    pub fn void_if(self, void: bool) -> Self {
        Self { void, ..self }
    }
}

/// How a run went, step by step.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timeline {
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub at_s: f64,
    pub rate: f64,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub rss_mib: Option<f64>,
    pub cpu_percent: Option<f64>,
}
