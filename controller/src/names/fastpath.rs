//! Where the eBPF programs go: a pure choice over what was asked and what the machine is.

use std::collections::BTreeMap;

use fw_policy::{Fastpath, FastpathMode, IfName, Inside};
use fw_ruleset::Stamp;

/// An interface as the choice sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: IfName,
    /// The VRF master it is a port of.
    pub vrf: Option<IfName>,
    /// True for a VRF master itself: programs on it see nothing, its ports do.
    pub is_vrf: bool,
    /// True when its driver is that of a real network card.
    pub is_real_nic: bool,
}

/// How programs are attached to an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attach {
    /// XDP in the driver, and the stamp.
    Native,
    /// XDP after the driver, and the stamp.
    Generic,
    /// The stamp, which bounces too.
    Tcx,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Choice {
    /// How each interface gets its programs.
    pub attach: BTreeMap<IfName, Attach>,
    /// One line for each inside interface: what was chosen and why.
    pub reasons: BTreeMap<IfName, String>,
    /// True when some inside interface is to have no programs.
    pub off: bool,
}

/// Chooses. `ebpf`: why eBPF cannot be used here, if so.
pub fn choose(fastpath: &Fastpath, inside: &Inside, ports: &[Port], ebpf: Option<&str>) -> Choice {
    let mut choice = Choice::default();
    for name in &inside.interfaces {
        let carriers: Vec<&Port> = ports
            .iter()
            .filter(|port| port.vrf.as_ref() == Some(name) || (port.name == *name && !port.is_vrf))
            .collect();
        if carriers.is_empty() {
            choice.reasons.insert(name.clone(), "not there".to_owned());
        }
        for port in carriers {
            let asked = fastpath.interfaces.get(&port.name).or_else(|| fastpath.interfaces.get(name));
            let (attach, why) = attach(*asked.unwrap_or(&fastpath.mode), port, ebpf);
            choice.off |= attach.is_none();
            if let Some(attach) = attach {
                choice.attach.insert(port.name.clone(), attach);
            }
            choice.reasons.insert(port.name.clone(), why);
        }
    }
    choice
}

fn attach(asked: FastpathMode, port: &Port, ebpf: Option<&str>) -> (Option<Attach>, String) {
    if asked == FastpathMode::Off {
        return (None, "off: as asked; nftables sets decide".to_owned());
    }
    if let Some(why) = ebpf {
        return (None, format!("off: {why}; nftables sets decide"));
    }
    match asked {
        FastpathMode::Native => (Some(Attach::Native), "native: as asked".to_owned()),
        FastpathMode::Generic => (Some(Attach::Generic), "generic: as asked".to_owned()),
        FastpathMode::Tcx => (Some(Attach::Tcx), "tcx: as asked".to_owned()),
        _ if port.is_real_nic => (Some(Attach::Native), "native: auto, a real network card".to_owned()),
        _ => (
            Some(Attach::Tcx),
            "tcx: auto, a virtual device, where native XDP would cost the peer its offloads".to_owned(),
        ),
    }
}

/// Who stamps: the programs, where every inside interface has one.
pub fn stamp(choice: &Choice) -> Stamp {
    if choice.off { Stamp::Sets } else { Stamp::Program }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, vrf: Option<&str>, is_vrf: bool, is_real_nic: bool) -> Port {
        Port { name: name.parse().unwrap(), vrf: vrf.map(|v| v.parse().unwrap()), is_vrf, is_real_nic }
    }

    fn inside(names: &[&str]) -> Inside {
        Inside { interfaces: names.iter().map(|name| name.parse().unwrap()).collect(), ..Inside::default() }
    }

    #[test]
    fn auto_takes_native_on_real_cards_and_tcx_on_virtual_devices() {
        let ports = [port("lan0", None, false, true), port("vlan104009", None, false, false)];
        let choice = choose(&Fastpath::default(), &inside(&["lan0", "vlan104009"]), &ports, None);
        let chosen: Vec<Attach> = choice.attach.values().copied().collect();
        assert_eq!(chosen, [Attach::Native, Attach::Tcx]);
        assert_eq!(stamp(&choice), Stamp::Program);
    }

    #[test]
    fn the_ports_of_a_vrf_get_the_programs_and_its_master_none() {
        let ports =
            [port("vrf104009", None, true, false), port("vlan104009", Some("vrf104009"), false, false)];
        let choice = choose(&Fastpath::default(), &inside(&["vrf104009", "vlan104009"]), &ports, None);
        let names: Vec<&str> = choice.attach.keys().map(IfName::as_str).collect();
        assert_eq!(names, ["vlan104009"]);
        assert!(!choice.off);
    }

    #[test]
    fn one_interface_without_programs_leaves_the_stamp_to_the_sets() {
        let ports = [port("a0", None, false, false), port("b0", None, false, false)];
        let interfaces = [("b0".parse().unwrap(), FastpathMode::Off)].into();
        let fastpath = Fastpath { interfaces, ..Fastpath::default() };
        let choice = choose(&fastpath, &inside(&["a0", "b0"]), &ports, None);
        assert_eq!(stamp(&choice), Stamp::Sets);
        let choice = choose(&Fastpath::default(), &inside(&["a0"]), &ports, Some("no CAP_BPF"));
        assert_eq!(stamp(&choice), Stamp::Sets);
        assert!(choice.reasons.values().all(|why| why.contains("no CAP_BPF")), "{:?}", choice.reasons);
    }
}
