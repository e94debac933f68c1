//! Address algebra: blocks less their exceptions, and disjoint ranges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fw_policy::Block;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::ir::{Family, Key, Value};

/// The prefixes a block leaves, longest pieces where exceptions cut: the unique set of largest prefixes. Each
/// exception adds at most as many prefixes as an address has bits.
pub(super) fn remaining(block: &Block) -> Vec<IpNet> {
    let mut left = Vec::new();
    cut(block.net, &block.except, &mut left);
    left
}

fn cut(net: IpNet, except: &[IpNet], left: &mut Vec<IpNet>) {
    if except.iter().any(|e| e.contains(&net)) {
        return;
    }
    // Only exceptions inside this half can cut it further, so that the work stays linear in exceptions times bits.
    let inside: Vec<IpNet> = except.iter().filter(|e| net.contains(*e)).copied().collect();
    if inside.is_empty() {
        left.push(net);
        return;
    }
    if let Ok(halves) = net.subnets(net.prefix_len() + 1) {
        for half in halves {
            cut(half, &inside, left);
        }
    }
}

/// 0.0.0.0/0 or ::/0.
pub(crate) fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

/// The address as a value of its family.
pub(super) fn value(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(v4) => Value::Ipv4(v4),
        IpAddr::V6(v6) => Value::Ipv6(v6),
    }
}

/// Disjoint, merged ranges of all prefixes of one family, as keys of an interval set.
pub(super) fn ranges<'a>(prefixes: impl Iterator<Item = &'a IpNet>, family: Family) -> Vec<Key> {
    let mut ranges: Vec<(u128, u128)> = prefixes
        .filter(|net| Family::of(net.addr()) == family)
        .map(|net| (number(net.network()), number(net.broadcast())))
        .collect();
    ranges.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = (*end).max(last),
            _ => merged.push((first, last)),
        }
    }
    let back = |n: u128| match family {
        Family::V4 => Value::Ipv4(Ipv4Addr::from(u32::try_from(n).unwrap_or(u32::MAX))),
        Family::V6 => Value::Ipv6(Ipv6Addr::from(n)),
    };
    merged.into_iter().map(|(first, last)| Key::Range(back(first), back(last))).collect()
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn an_exception_leaves_the_largest_prefixes_around_it() {
        let block = Block { index: 0, net: net("10.0.0.0/8"), except: vec![net("10.128.0.0/10")] };
        assert_eq!(remaining(&block), vec![net("10.0.0.0/9"), net("10.192.0.0/10")]);
    }

    #[test]
    fn an_exception_that_covers_its_block_leaves_nothing() {
        let block = Block { index: 0, net: net("1.1.0.0/24"), except: vec![net("1.1.0.0/16")] };
        assert_eq!(remaining(&block), Vec::<IpNet>::new());
    }

    #[test]
    fn neighbouring_prefixes_become_one_range() {
        let nets = [net("10.0.0.0/25"), net("10.0.0.128/25"), net("10.0.0.64/26"), net("10.9.0.0/16")];
        let keys = ranges(nets.iter(), Family::V4);
        assert_eq!(keys.len(), 2);
        assert_eq!(
            keys[0],
            Key::Range(Value::Ipv4([10, 0, 0, 0].into()), Value::Ipv4([10, 0, 0, 255].into()))
        );
    }

    proptest! {
        #[test]
        fn the_reference_and_the_cut_agree_on_every_address_and_its_prefix_length(
            base in any::<u32>(), length in 0u8..=32,
            excepts in proptest::collection::vec((any::<u32>(), 0u8..=32), 0..4),
            probes in proptest::collection::vec(any::<u32>(), 20),
        ) {
            let make = |address: u32, length: u8| {
                IpNet::V4(Ipv4Net::new(Ipv4Addr::from(address), length).expect("<= 32").trunc())
            };
            let block_net = make(base, length);
            // Bring most exceptions and probes into the block.
            let host = if length == 32 { 0 } else { u32::MAX >> length };
            let fold = |n: u32| (base & !host) | (n & host);
            let except = excepts.iter().map(|(n, l)| make(fold(*n), *l)).collect();
            let block = Block { index: 0, net: block_net, except };
            let left = remaining(&block);
            let edges = block.except.iter().flat_map(|e| [e.network(), e.broadcast()]);
            let probes = probes.iter().map(|n| IpAddr::V4(Ipv4Addr::from(fold(*n))));
            for address in probes.chain(edges) {
                let cut = left.iter().find(|net| net.contains(&address)).map(|net| net.prefix_len());
                prop_assert_eq!(cut, block.covering_prefix_len(address), "{}", address);
            }
        }
    }
}
