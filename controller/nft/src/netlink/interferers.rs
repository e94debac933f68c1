//! What others' tables do to packets between an early drop and our rules.

use fw_netlink::attr::{Attrs, DecodeError};
use fw_netlink::message::{Head, Message, flag, subsystem};
use fw_netlink::nft::steady::RuleOrder;
use fw_netlink::nft::{Chain, Ct, CtHelper, Expr, INET, Rule, RuleView, Table, message};
use fw_netlink::socket::SocketError;
use fw_ruleset::ir::TABLE;

use super::NetlinkKernel;

/// NF_INET_PRE_ROUTING
const PREROUTING: u32 = 0;
/// NFTA_TARGET_NAME
const TARGET_NAME: u16 = 1;

impl NetlinkKernel {
    /// See [`crate::Kernel::interferers`].
    pub(super) fn read_interferers(&mut self) -> Result<Vec<String>, SocketError> {
        self.between_commits(Self::list_interferers)
    }

    fn list_interferers(&mut self) -> Result<Vec<String>, SocketError> {
        let mut found = Vec::new();
        self.dump_of(
            0,
            message::GET_CHAIN,
            |_| {},
            |answer| {
                // Chains of the netdev family hang elsewhere and are no NAT; what cannot be read is none either.
                let Ok(chain) = Chain::decode(answer.attrs()) else { return Ok(()) };
                let translates =
                    chain.base.as_ref().is_some_and(|base| base.kind == "nat" && base.hook == PREROUTING);
                if translates && !is_ours(answer, &chain.table)? {
                    found.push(format!(
                        "chain {} of table {} may translate destinations",
                        chain.name, chain.table
                    ));
                }
                Ok(())
            },
        )?;
        self.dump_of(0, message::GET_OBJECT, CtHelper::select_all, |answer| {
            if let Some(helper) = CtHelper::decode(answer.attrs())? {
                found.push(format!("table {} has the conntrack helper {}", helper.table, helper.name));
            }
            Ok(())
        })?;
        for (family, table) in self.others()? {
            let mut order = RuleOrder::default();
            self.dump_of(
                family,
                message::GET_RULE,
                |w| Rule::select(w, &table),
                |answer| {
                    let view = RuleView::decode(answer.attrs())?;
                    order.follow(view.chain, view.handle, view.position);
                    let rule = Rule::decode(answer.attrs())?;
                    if rule.table == table && rule.exprs.iter().any(may_set_zone) {
                        found.push(format!(
                            "chain {} of table {table} may put packets into another conntrack zone",
                            rule.chain
                        ));
                    }
                    Ok(())
                },
            )?;
            if order.is_broken() {
                return Err(SocketError::Interrupted);
            }
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Tables that are not ours, with their families. Ours is left out of what is read because it is long.
    fn others(&mut self) -> Result<Vec<(u8, String)>, SocketError> {
        let mut others = Vec::new();
        self.dump_of(
            0,
            message::GET_TABLE,
            |_| {},
            |answer| {
                let table = Table::decode(answer.attrs())?;
                if !is_ours(answer, &table.name)? {
                    others.push((answer.nfgen()?.0, table.name));
                }
                Ok(())
            },
        )?;
        Ok(others)
    }

    /// As [`Self::dump`], of another family; 0 are all.
    fn dump_of(
        &mut self,
        family: u8,
        message: u8,
        fill: impl FnOnce(&mut fw_netlink::attr::Writer<'_>),
        take: impl FnMut(&Message<'_>) -> Result<(), DecodeError>,
    ) -> Result<(), SocketError> {
        let head =
            Head { subsystem: subsystem::NFTABLES, message, flags: flag::DUMP, family, ..Head::default() };
        self.socket.request(head, fill, take)
    }
}

/// A table has our name only in its family.
fn is_ours(answer: &Message<'_>, table: &str) -> Result<bool, DecodeError> {
    Ok(table == TABLE && answer.nfgen()?.0 == INET)
}

/// `ct zone set`, of one direction or both, in a form we know or not; and iptables' target CT, which sets zones and
/// helpers (`nft` shows it as `xt target "CT"`).
fn may_set_zone(expr: &Expr) -> bool {
    match expr {
        Expr::Ct(ct) => ct.key == Ct::ZONE && !ct.load,
        Expr::Unknown { name, .. } if name == "ct" => true,
        Expr::Unknown { name, data } if name == "target" => Attrs::new(data).any(|attr| {
            attr.is_ok_and(|attr| attr.kind == TARGET_NAME && attr.text().is_ok_and(|t| t == "CT"))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use fw_netlink::nft::Register;

    use super::*;

    #[test]
    fn what_may_set_a_zone_is_known_also_in_iptables_words() {
        let ct = |key, load| Expr::Ct(Ct { key, direction: None, load, register: Register::default() });
        assert!(may_set_zone(&ct(Ct::ZONE, false)));
        assert!(!may_set_zone(&ct(Ct::ZONE, true)) && !may_set_zone(&ct(Ct::STATE, false)));
        // As iptables-nft writes `-j CT --zone 7`, without the bytes of the target itself.
        let target = |name: &[u8]| {
            let length = u16::try_from(4 + name.len()).unwrap();
            let mut data = [length.to_ne_bytes(), TARGET_NAME.to_ne_bytes()].concat();
            data.extend(name);
            data.resize(data.len().next_multiple_of(4), 0);
            Expr::Unknown { name: "target".to_owned(), data }
        };
        assert!(may_set_zone(&target(b"CT\0")));
        assert!(!may_set_zone(&target(b"NOTRACK\0")) && !may_set_zone(&target(b"CTX\0")));
        assert!(may_set_zone(&Expr::Unknown { name: "ct".to_owned(), data: Vec::new() }));
    }
}
