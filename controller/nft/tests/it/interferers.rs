//! Others' tables that change what belongs to a packet before our rules see it.

use fw_nft::{Kernel, NetlinkKernel};
use fw_testkit::{Netns, nft};

use crate::apply::install;
use crate::sample::sample;

/// Each with the line it gives; `None`: it is in nobody's way.
const TABLES: [(&str, Option<&str>); 11] = [
    (
        "table inet zones { chain raw { type filter hook prerouting priority -300; udp dport 5000 ct zone set 7; }; }",
        Some("chain raw of table zones may put packets into another conntrack zone"),
    ),
    (
        "table ip zones { chain raw { type filter hook prerouting priority raw; ct original zone set 7; }; }",
        Some("chain raw of table zones may put packets into another conntrack zone"),
    ),
    (
        "table ip6 firewall { chain named { ct reply zone set 9; }; \
         chain raw { type filter hook prerouting priority raw; jump named; }; }",
        Some("chain named of table firewall may put packets into another conntrack zone"),
    ),
    (
        "table inet zones { chain raw { type filter hook prerouting priority -300; \
         ct zone set meta iifname map { \"eth9\" : 3 }; }; }",
        Some("chain raw of table zones may put packets into another conntrack zone"),
    ),
    ("table inet zones { chain look { type filter hook forward priority 0; ct zone 7 counter; }; }", None),
    ("table inet sorted { chain sort { type filter hook prerouting priority 0; ct mark set 7; }; }", None),
    (
        "table ip nat { chain in { type nat hook prerouting priority -100; }; }",
        Some("chain in of table nat may translate destinations"),
    ),
    (
        "table ip firewall { chain in { type nat hook prerouting priority -100; }; }",
        Some("chain in of table firewall may translate destinations"),
    ),
    ("table ip nat { chain out { type nat hook postrouting priority 100; }; }", None),
    (
        "table inet help { ct helper ftp { type \"ftp\" protocol tcp; }; }",
        Some("table help has the conntrack helper ftp"),
    ),
    ("table netdev early { chain drops { }; }", None),
];

#[test]
fn whatever_changes_what_a_packet_belongs_to_is_found_and_nothing_else() {
    let ns = Netns::new("fwnft").unwrap();
    ns.run(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        install(&mut kernel, &sample());
        assert_eq!(kernel.interferers().unwrap(), [""; 0], "our own table");
        for (table, line) in TABLES {
            nft::load(&ns, table).unwrap();
            let found = kernel.interferers().unwrap();
            assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), Vec::from_iter(line), "{table}");
            nft::load(&ns, "flush ruleset").unwrap();
        }
        nft::load(&ns, TABLES[0].0).unwrap();
        nft::load(&ns, TABLES[9].0).unwrap();
        assert_eq!(kernel.interferers().unwrap().len(), 2, "all of them");
    })
    .unwrap();
}
