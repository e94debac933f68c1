//! How enforcement begins: beside what the kernel holds at that moment.

use std::sync::Arc;
use std::time::Instant;

use fw_ruleset::{DEFAULT_CELL_LIMIT, compile};
use tracing::info;

use super::held::Held;
use super::{Basis, Judged, Reconciler, State, stored};

impl Reconciler {
    /// Begins, or begins again after nothing was known.
    pub(super) fn begin(&mut self, now: Instant) {
        let waits = self.snapshot.as_ref().map(|snapshot| snapshot.note.clone());
        self.view.waiting_for = waits.unwrap_or_else(|| stored::FIRST_LISTING.to_owned());
        if let Err(error) = self.read() {
            return self.failed(&error, now);
        }
        match &self.held {
            Some(Held::Observed(_)) => self.adopt(now),
            Some(Held::Foreign(_)) => self.begin_beside_foreign(now),
            _ => self.cold_start(now),
        }
    }

    /// Our table stands: it stays as it is until a source has listed.
    fn adopt(&mut self, now: Instant) {
        let base = compile(&fw_policy::PolicySet::default(), DEFAULT_CELL_LIMIT).ruleset;
        let is_base = self.held.as_ref().is_some_and(|held| held.enforces(&base));
        self.from_firewall &= !is_base;
        info!(base = is_base, "adopted the table that was there");
        self.view.state = State::Enforcing(Basis::Adopted);
        let Some(snapshot) = self.snapshot.clone() else { return };
        let judged = self.judge(&snapshot);
        // The stored objects explain what is held only if they give exactly that. A base that a kill left behind is to
        // be followed by them, as at a cold start.
        if is_base || self.held.as_ref().is_some_and(|held| held.enforces(&judged.ruleset)) {
            self.converge(judged, Basis::Snapshot, now);
        }
    }

    /// No table of ours: nothing passes before there is one, unless the stored Firewall asks for a dry run.
    fn cold_start(&mut self, now: Instant) {
        Arc::make_mut(&mut self.view.published).table_lost();
        self.from_firewall = false;
        let stored = self.snapshot.clone().map(|snapshot| self.judge(&snapshot));
        if stored.as_ref().is_none_or(|judged| !judged.set.firewall.dry_run) {
            let base = Arc::new(Judged::base());
            self.converge(base, Basis::Base, now);
        }
        if let Some(judged) = stored
            && self.backoff.is_none()
        {
            self.converge(judged, Basis::Snapshot, now);
        }
    }

    /// Somebody else's table has our name. What it enforces stays until there are objects to replace it by, so that
    /// neither a dry run nor a source that is slow to list opens or closes anything.
    fn begin_beside_foreign(&mut self, now: Instant) {
        Arc::make_mut(&mut self.view.published).table_lost();
        self.from_firewall = false;
        self.view.state = State::Enforcing(Basis::Foreign);
        if let Some(snapshot) = self.snapshot.clone() {
            let judged = self.judge(&snapshot);
            self.converge(judged, Basis::Snapshot, now);
        }
    }
}
