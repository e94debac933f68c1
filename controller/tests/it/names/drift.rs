//! Others at the nftables maps that stand in for eBPF.

use anyhow::{Context as _, Result, ensure};
use fw_testkit::dns::wire::kind;
use fw_testkit::dns::{Reply, Unique};
use fw_testkit::nft;
use fw_testkit::traffic::craft::Crafted;
use fw_testkit::traffic::range::{Range, Shot};

use super::field::{Mode, Names, PORT, to_names};
use crate::daemon::eventually;
use crate::rig::{at, fresh_port};

const NAME: &str = "host7.scripted.test";

/// What others do, each on its own, and with which the learned address is closed until it is repaired.
const ATTACKS: [&str; 5] = [
    "delete table inet firewall",
    "flush ruleset",
    "flush map inet firewall fqdn_cells",
    "flush map inet firewall fqdn4-0; flush map inet firewall fqdn4-1; flush map inet firewall fqdn4-2; \
     flush map inet firewall fqdn4-3",
    "flush chain inet firewall fqdn_ports",
];

#[test]
fn without_ebpf_a_learned_name_works_again_after_others_were_at_the_table_and_nobody_asks() -> Result<()> {
    let mut names = Names::bare("names-drift", Mode::Off)?;
    let script = names.script()?;
    let unique = Unique { v4: "198.19.0.0/16".parse()?, v6: "2001:db8:f00::/64".parse()?, ttl: 3600 };
    script.otherwise(Reply::Unique(unique));
    names.write("", &[to_names("web", "{matchPattern: '*.scripted.test'}")])?;
    names.daemon.start(&names.lab.firewall, &[("FW_WITHOUT_OWNER", "1")])?;
    names.daemon.wait_until_enforcing()?;
    names.wait_until_armed()?;
    let address = *names.ask_script(NAME, kind::A)?.ips().first().context("an address")?;
    let listed = || names.lab.firewall.output("nft", &["list", "ruleset"]);
    let learned = listed()?;
    for set in ["fqdn_cells", "fqdn4-0"] {
        let (_, rest) = learned.split_once(&format!("map {set} ")).with_context(|| format!("no {set}"))?;
        ensure!(
            rest.split_once('}').is_some_and(|(set, _)| set.contains("elements")),
            "{set} is empty:\n{learned}"
        );
    }
    // What no policy allows stays closed: without any table all would be open.
    let passes = || -> Result<bool> {
        let syn = |port| Crafted::syn(at("10.0.16.2", fresh_port()), (address, port).into());
        let shots = [PORT, PORT + 1].map(|port| Shot { from: 0, packet: syn(port) });
        let fates = Range::new(&names.lab)?.fire(&shots)?;
        Ok(!fates[0].is_empty() && fates[1].is_empty())
    };
    ensure!(passes()?, "{address} is not as its policy says");
    let asked = script.questions();
    for (round, attack) in (1_u64..).zip(ATTACKS) {
        nft::load(&names.lab.firewall, attack)?;
        eventually(&format!("{NAME} is open again after {attack:?}"), &passes)?;
        // That the whole is there again, and not just what was not yet gone.
        eventually("the maps are as they were", || {
            let rules = listed()?;
            let filled = |set: &str| {
                let rest = rules.split_once(&format!("map {set} ")).map(|(_, rest)| rest);
                rest.and_then(|rest| rest.split_once('}')).is_some_and(|(set, _)| set.contains("elements"))
            };
            Ok(filled("fqdn_cells") && filled("fqdn4-0"))
        })?;
        ensure!(passes()?, "{attack}");
        eprintln!("{round}: {attack}");
    }
    // It is learned for an hour: nobody has asked anew for it.
    assert_eq!(script.questions(), asked, "it was not asked again");
    names.wait_until_armed()
}
