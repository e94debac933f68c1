//! A data path that does what the changes say and complains where they make no sense.

use std::collections::BTreeMap;
use std::net::IpAddr;

use fw_bpf_common::{Allow, Cell, NO_CLASS};
use fw_names::Change;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sim {
    pub(crate) allows: BTreeMap<IpAddr, Allow>,
    pub(crate) classes: BTreeMap<u32, Vec<Cell>>,
}

impl Sim {
    pub(crate) fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::PutClass { id, cells } => self.put_class(*id, cells),
                Change::Put { address, allow } => self.put(*address, allow),
                Change::Remove(address) => {
                    self.allows.remove(address);
                }
                Change::DropClass(id) => {
                    assert!(!self.is_used(*id), "class {id} is dropped while it is named");
                    self.classes.remove(id);
                }
            }
        }
    }

    fn put_class(&mut self, id: u32, cells: &[Cell]) {
        assert!((2..=16_383).contains(&id), "class {id} is not the learner's");
        assert!(cells.len() <= 128 && !cells.is_empty());
        for pair in cells.windows(2) {
            let [left, right] = pair else { unreachable!("windows of two") };
            assert!(
                (left.protocol, left.last) < (right.protocol, right.first),
                "cells overlap or are not sorted: {left:?} {right:?}"
            );
        }
        let old = self.classes.insert(id, cells.to_vec());
        assert!(old.is_none_or(|old| old == cells), "the content of class {id} changes");
    }

    fn put(&mut self, address: IpAddr, allow: &Allow) {
        let used: Vec<_> = allow.steps.iter().take_while(|step| step.until_ns != 0).collect();
        assert!(!used.is_empty(), "an allow of {address} without a step");
        assert!(used.windows(2).all(|pair| pair[0].until_ns < pair[1].until_ns), "steps are not sorted");
        assert!(allow.steps[used.len()..].iter().all(|step| *step == fw_bpf_common::Step::default()));
        for pair in used.windows(2) {
            let (earlier, later) = (&self.classes[&pair[0].class], &self.classes[&pair[1].class]);
            for cell in later {
                for port in [cell.first, cell.last] {
                    let holds = |cell: &&Cell, protocol| {
                        cell.protocol == protocol && cell.first <= port && port <= cell.last
                    };
                    assert!(
                        earlier.len() == 128 || earlier.iter().any(|it| holds(&it, cell.protocol)),
                        "a later step opens what an earlier one does not"
                    );
                }
            }
        }
        for step in used {
            assert!(self.classes.contains_key(&step.class), "{address} names a class that is not there");
        }
        self.allows.insert(address, *allow);
    }

    fn is_used(&self, id: u32) -> bool {
        self.allows.values().any(|allow| allow.steps.iter().any(|step| step.class == id))
    }

    /// As the programs do it.
    pub(crate) fn index(&self, address: IpAddr, protocol: u8, port: u16, now: u64) -> Option<u32> {
        let allow = self.allows.get(&address)?;
        let class = allow.steps.iter().find(|step| now < step.until_ns)?.class;
        assert_ne!(class, NO_CLASS);
        let cells = &self.classes[&class];
        let holds = |cell: &&Cell| cell.protocol == protocol && cell.first <= port && port <= cell.last;
        cells.iter().find(holds).map(|cell| cell.index)
    }

    /// Whether any packet could carry the index, now or later.
    pub(crate) fn reaches(&self, index: u32) -> bool {
        let classes = self.allows.values().flat_map(|allow| allow.steps).map(|step| step.class);
        classes
            .into_iter()
            .any(|id| self.classes.get(&id).is_some_and(|cells| cells.iter().any(|cell| cell.index == index)))
    }
}
