//! Another table, with everything that was learned under the one before.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Learner;
use super::selectors::{Difference, Selected};
use super::store::{Kept, NameId};
use crate::change::Change;
use crate::judge::{Ruling, judge};
use crate::layout::SelectorId;
use crate::table::Table;

impl Learner {
    pub(super) fn replace_table(&mut self, table: Arc<Table>) {
        let judges_differently = self.table.own_addresses != table.own_addresses
            || self.table.cluster_prefixes != table.cluster_prefixes
            || self.table.dns.private_prefixes != table.dns.private_prefixes
            || self.table.dns.allowed != table.dns.allowed;
        self.table = table;
        self.memo.clear();
        let difference = self.selectors.replace(&self.table);
        if judges_differently || difference.selects_differently() {
            self.rejudge(&difference, judges_differently);
        }
        self.touch(&difference.changed);
    }

    /// Puts every name that is selected or judged differently through the door again.
    fn rejudge(&mut self, difference: &Difference, judges_differently: bool) {
        let ids: Vec<NameId> = self.store.names().map(|(id, _)| id).collect();
        for id in ids {
            let Some(record) = self.store.get(id) else { continue };
            let stay = record.selectors.iter().filter(|selected| !difference.removed.contains(&selected.id));
            let mut selectors: Vec<Selected> = stay.copied().collect();
            selectors.extend(difference.added.select(&record.name));
            selectors.sort_unstable();
            if selectors == record.selectors && !judges_differently {
                continue;
            }
            self.admit_again(id, selectors);
        }
    }

    fn admit_again(&mut self, id: NameId, selectors: Vec<Selected>) {
        let Some(record) = self.store.remove_name(id) else { return };
        if selectors.is_empty() {
            return;
        }
        let is_exact = selectors.iter().any(|selected| selected.exact);
        let admitted = record.facts.iter().filter_map(|(address, kept)| {
            let exact_only = judge(*address, &self.table).ok()? == Ruling::Exact;
            (is_exact || !exact_only).then(|| (*address, Kept::new(kept.handed, kept.until, exact_only)))
        });
        let admitted: Vec<(IpAddr, Kept)> = admitted.collect();
        if admitted.is_empty() {
            return;
        }
        let id = self.store.add_name(record.name, selectors, record.asked);
        for (address, kept) in admitted {
            self.store.put_fact(id, address, kept, self.now);
        }
        for (family, stale) in [super::Family::V4, super::Family::V6].into_iter().zip(record.stale) {
            if let Some(stale) = stale {
                self.answered(id, family, stale);
            }
        }
    }

    pub(super) fn withdraw_indexes(&mut self, indexes: &BTreeSet<u32>) -> Vec<Change> {
        let changed = self.selectors.withdraw(indexes, &self.table);
        self.memo.clear();
        self.touch(&changed);
        self.store.touched.extend(self.data_path.rewrite_with(indexes));
        self.list_changes(self.now)
    }

    /// What these selectors open has changed.
    fn touch(&mut self, selectors: &BTreeSet<SelectorId>) {
        if selectors.is_empty() {
            return;
        }
        let concerned = self
            .store
            .addresses
            .iter()
            .filter(|(_, record)| record.tops.iter().any(|(id, _)| selectors.contains(id)))
            .map(|(address, _)| *address);
        self.store.touched.extend(concerned);
    }
}
