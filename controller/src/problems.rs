//! What parts of the controller other than the reconciler could not do, for the status.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

/// Problems by part; cheap to clone, all clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Problems(Arc<Mutex<BTreeMap<&'static str, Vec<String>>>>);

impl Problems {
    /// Replaces the problems of one part and logs what changed.
    pub fn set(&self, part: &'static str, lines: Vec<String>) {
        // A panic while it was held cannot leave it half changed.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.insert(part, lines).unwrap_or_default();
        let now = all.get(part).map(Vec::as_slice).unwrap_or_default();
        for line in now.iter().filter(|line| !before.contains(line)) {
            warn!("{line}");
        }
        for line in before.iter().filter(|line| !now.contains(line)) {
            info!("resolved: {line}");
        }
    }

    /// That part has no problem.
    pub fn clear(&self, part: &'static str) {
        self.set(part, Vec::new());
    }

    /// How many each part has that ever had one.
    pub fn by_part(&self) -> BTreeMap<&'static str, usize> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(part, lines)| (*part, lines.len())).collect()
    }

    /// All of them.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().flatten().cloned().collect()
    }
}
