//! What the kernel holds, and the plan from there to what it is to hold.

use std::collections::BTreeSet;
use std::sync::Arc;

use fw_nft::{Foreign, Observed, Table, recognise};
use fw_ruleset::ir::{Rule, Ruleset, Statement};
use fw_ruleset::{Live, Op, Plan, plan};

use super::figures::Figures;

/// What there is under our table's name.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// Nothing.
    Absent,
    /// Somebody else's table.
    Foreign(Foreign),
    /// A table of ours that was read, not written, by this process.
    Observed(Observed),
    /// Exactly this.
    Known(Arc<Ruleset>),
}

impl Held {
    /// From a reading. `Err`: the netlink port of the controller that has the table.
    pub(super) fn of(table: Table) -> Result<Self, u32> {
        match table {
            Table::Absent => Ok(Self::Absent),
            Table::Foreign(foreign) => Ok(Self::Foreign(foreign)),
            Table::Ours(observed) => Ok(Self::Observed(observed)),
            Table::Taken { port } => Err(port),
        }
    }

    /// True when a table of ours is in force.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, Self::Observed(_) | Self::Known(_))
    }

    /// The figures that this reading holds by itself.
    pub(super) fn figures(&self) -> Figures {
        match self {
            Self::Absent | Self::Known(_) => Figures::default(),
            Self::Foreign(foreign) => Figures::of_foreign(foreign),
            Self::Observed(observed) => Figures::of_observed(observed),
        }
    }

    /// The plan to `wanted`. `last` are the figures last known, for counters that have to be made again; where the
    /// ruleset is known exactly they are left out, since such a plan seldom needs any ([`remakes`]).
    pub(super) fn plan(&self, wanted: &Ruleset, last: &Figures) -> Plan {
        let counts = || {
            let mut figures = self.figures();
            figures.fill_from(last);
            figures.for_ruleset(wanted)
        };
        match self {
            Self::Absent => plan(None, wanted, &counts()),
            Self::Foreign(_) => {
                let mut replaced = plan(None, wanted, &counts());
                replaced.ops.insert(0, Op::DeleteTable);
                replaced
            }
            Self::Observed(observed) => plan(Some(&in_our_terms(observed, wanted)), wanted, &counts()),
            Self::Known(known) => plan(Some(known), wanted, &last.for_new_chains(known, wanted)),
        }
    }

    /// What packets may reach in it.
    pub(super) fn live(&self) -> Live {
        match self {
            Self::Absent | Self::Foreign(_) => Live::default(),
            Self::Observed(observed) => observed.live(),
            Self::Known(known) => Live::of(known),
        }
    }

    /// True when `wanted` is what is enforced, whatever there is beside it that nothing leads to: a kill between the
    /// transactions of a long plan leaves such objects.
    pub(super) fn enforces(&self, wanted: &Ruleset) -> bool {
        self.is_ours() && {
            let plan = self.plan(wanted, &Figures::default());
            !plan.switches(&self.live(), wanted)
        }
    }

    /// True when `wanted` is what is held.
    pub(super) fn is(&self, wanted: &Ruleset) -> bool {
        match self {
            Self::Absent | Self::Foreign(_) => false,
            Self::Observed(_) => self.plan(wanted, &Figures::default()).is_empty(),
            Self::Known(known) => **known == *wanted,
        }
    }
}

/// What was read as a ruleset to plan from. A chain that is not as wanted comes back as the wanted one with a rule
/// too many: so the planner makes all its rules again, and each finds its own start value under its own position.
fn in_our_terms(observed: &Observed, wanted: &Ruleset) -> Ruleset {
    let mut current = recognise(observed, wanted);
    for (name, chain) in &mut current.chains {
        if let Some(wanted) = wanted.chains.get(name)
            && chain.rules != wanted.rules
        {
            chain.rules.clone_from(&wanted.rules);
            chain.rules.push(Rule { body: Vec::new(), comment: Some("(not as written)".to_owned()) });
        }
    }
    current
}

/// True when a plan makes counters again that exist already, so that it needs their figures. Reading them takes
/// longer than most plans: rules without one do not count.
pub(super) fn remakes(plan: &Plan) -> bool {
    let flushed: BTreeSet<&String> = plan
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::FlushChain(name) => Some(name),
            _ => None,
        })
        .collect();
    plan.ops.iter().any(|op| match op {
        Op::DeleteTable => true,
        Op::AppendRule(chain, rule, _) => flushed.contains(chain) && rule.body.contains(&Statement::Counter),
        _ => false,
    })
}
