//! `allowedNetworks`: the limits of what policies and Services may open (semantics.md section 4).

use std::collections::BTreeSet;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use fw_policy::{Block, Peers};

use crate::address::read_prefixes;
use crate::field::Field;
use crate::finding::Reason;
use crate::report::Report;

/// What a direction may open.
#[derive(Clone, Debug, Default)]
pub(crate) enum Limit {
    /// Everything.
    #[default]
    None,
    /// These prefixes only.
    Within {
        /// As in the Firewall, for messages.
        written: Vec<IpNet>,
        /// Those and the cluster's own, disjoint, joined to the largest prefixes, sorted.
        joined: Vec<IpNet>,
    },
}

/// Both limits of a Firewall.
#[derive(Clone, Debug, Default)]
pub(crate) struct Allowed {
    /// For sources of ingress rules, and for the addresses of Services.
    pub(crate) ingress: Limit,
    /// For destinations of egress rules.
    pub(crate) egress: Limit,
}

impl Allowed {
    /// Reads `allowedNetworks`. A filled list closes the other one; the cluster's own prefixes always pass.
    pub(crate) fn read(field: &Field<'_>, cluster: &[IpNet], report: &mut Report) -> Self {
        if field.is_missing() {
            return Self::default();
        }
        if !field.map(report) {
            let nothing = Limit::within(Vec::new(), cluster);
            return Self { ingress: nothing.clone(), egress: nothing };
        }
        // A mistyped list would otherwise be a missing one, and two missing lists are no limit at all.
        let unknown =
            field.refuse_unknown(&["ingress", "egress"], "what is not allowed here stays closed", report);
        let ingress = read_prefixes(&field.get("ingress"), fw_crds::MAX_PREFIXES, report);
        let egress = read_prefixes(&field.get("egress"), fw_crds::MAX_PREFIXES, report);
        if ingress.empty && egress.empty && !unknown {
            return Self::default();
        }
        Self {
            ingress: Limit::within(ingress.nets.into_iter().collect(), cluster),
            egress: Limit::within(egress.nets.into_iter().collect(), cluster),
        }
    }
}

impl Limit {
    fn within(written: Vec<IpNet>, cluster: &[IpNet]) -> Self {
        let joined = join(written.iter().chain(cluster).copied().collect());
        Self::Within { written, joined }
    }

    /// The prefixes inside which addresses may be opened; `None`: everywhere.
    pub(crate) fn prefixes(&self) -> Option<BTreeSet<IpNet>> {
        match self {
            Self::None => None,
            Self::Within { joined, .. } => Some(joined.iter().copied().collect()),
        }
    }

    /// True when every address of the prefix may be opened.
    pub(crate) fn covers(&self, net: IpNet) -> bool {
        match self {
            Self::None => true,
            Self::Within { joined, .. } => holds(joined, net),
        }
    }

    /// Checks the peers of one rule; each that is not covered is a finding. True when all are.
    pub(crate) fn check(&self, list_path: &str, peers: &Peers, report: &mut Report) -> bool {
        let outside: Vec<(String, IpNet)> = match peers {
            Peers::Any => {
                let outside = everything().into_iter().filter(|net| !self.covers(*net));
                outside.map(|net| (list_path.to_owned(), net)).collect()
            }
            Peers::Blocks(blocks) => {
                let outside = blocks.iter().filter(|block| !self.covers_block(block));
                outside.map(|block| (format!("{list_path}[{}].cidr", block.index), block.net)).collect()
            }
            // Addresses learned from DNS are checked one by one when they are learned.
            Peers::Names(_) => Vec::new(),
        };
        for (path, net) in &outside {
            self.forbid(path, &net.to_string(), report);
        }
        outside.is_empty()
    }

    /// The finding about an address outside; its text is what users' alerts match on (compat.md section 4).
    pub(crate) fn forbid(&self, path: &str, address: &str, report: &mut Report) {
        let Self::Within { written, .. } = self else { return };
        let range: Vec<String> = written.iter().take(SHOWN).map(ToString::to_string).collect();
        let more = if written.len() > SHOWN { ",..." } else { "" };
        let range = range.join(",") + more;
        report.error(
            path,
            Reason::ForbiddenCIDR,
            format_args!(
                "address:\"{address}\" is outside of the allowed network range:\"{range}\", ignoring"
            ),
            "stay inside allowedNetworks of the Firewall, or have them extended",
        );
    }

    /// What the block opens is the block less its exceptions.
    fn covers_block(&self, block: &Block) -> bool {
        let Self::Within { joined, .. } = self else { return true };
        if holds(joined, block.net) {
            return true;
        }
        let inside = joined
            .iter()
            .chain(&block.except)
            .filter(|part| block.net.contains(*part) || part.contains(&block.net));
        !block.except.is_empty() && holds(&join(inside.copied().collect()), block.net)
    }
}

/// Prefixes of the range that a message shows.
const SHOWN: usize = 20;

fn everything() -> [IpNet; 2] {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
}

/// The same addresses as the fewest prefixes, sorted. A prefix inside the union is then inside one of them.
fn join(nets: Vec<IpNet>) -> Vec<IpNet> {
    let mut joined = IpNet::aggregate(&nets);
    joined.sort();
    joined
}

/// True when one of the sorted, disjoint prefixes contains `net`.
fn holds(joined: &[IpNet], net: IpNet) -> bool {
    let after = joined.partition_point(|part| part.network() <= net.network());
    after.checked_sub(1).and_then(|at| joined.get(at)).is_some_and(|part| part.contains(&net))
}
