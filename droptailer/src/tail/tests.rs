use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: Options,
}

fn options(arguments: &[&str]) -> Options {
    Command::try_parse_from([&["tail"], arguments].concat()).unwrap().options
}

fn packet() -> BTreeMap<String, String> {
    let pairs = [
        ("ACTION", "drop"),
        ("COUNT", "3"),
        ("DPT", "443"),
        ("DST", "1.2.3.4"),
        ("FQDN", "www.Example.com"),
        ("HINT", "egress of policy web: port 443"),
        ("IN", "vrf104009"),
        ("OUT", "vlan179"),
        ("PROTO", "TCP"),
        ("SPT", "40000"),
        ("SRC", "10.0.16.2"),
        ("SYN", ""),
        ("TS_US", "1592400207000001"),
    ];
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[test]
fn filters_take_what_they_name_and_losses_always() {
    let lost = BTreeMap::from([("ACTION".to_owned(), "lost".to_owned())]);
    for (arguments, expected) in [
        (&["--src", "10.0.16.0/22"][..], true),
        (&["--src", "10.0.16.2"], true),
        (&["--src", "2001:db8::/32"], false),
        (&["--dst", "1.2.3.0/24", "--port", "443"], true),
        (&["--dst", "1.2.3.4", "--port", "80"], false),
        (&["--port", "40000"], true),
        (&["--policy", "web"], true),
        (&["--policy", "we"], false),
        (&["--fqdn", "www.example.com."], true),
        (&["--fqdn", "*.example.com"], true),
        (&["--fqdn", "*.ww.example.com"], false),
        (&["--fqdn", "example.com"], false),
        (&["--action", "drop"], true),
        (&["--action", "accept"], false),
    ] {
        let options = options(arguments);
        assert_eq!(options.wants(&packet()), expected, "{arguments:?}");
        assert!(options.wants(&lost));
    }
}

#[test]
fn a_line_says_in_one_glance_what_was_dropped() {
    let expected = "13:23:27.000001 drop TCP 10.0.16.2:40000 → 1.2.3.4:443 (www.Example.com) vrf104009→vlan179 SYN ×3 \
                    hint: egress of policy web: port 443";
    assert_eq!(compact(&packet(), false), expected);
    let mut v6 = packet();
    v6.insert("SRC".to_owned(), "2001:0db8:0010:0016:0000:0000:0000:0002".to_owned());
    v6.insert("HINT".to_owned(), "\x1b[2Jgone".to_owned());
    let line = compact(&v6, false);
    assert!(line.contains("[2001:db8:10:16::2]:40000") && line.contains("hint: \u{fffd}[2Jgone"), "{line}");
    let lost = [("ACTION", "lost"), ("CAUSE", "queue"), ("COUNT", "12")];
    let lost = lost.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    assert_eq!(compact(&lost, false), "00:00:00.000000 Lost 12 packets: queue");
}

#[test]
fn colour_is_for_terminals_unless_one_says_otherwise() {
    assert!(compact(&packet(), true).contains("\x1b[31mdrop\x1b[0m"));
    for (color, is_terminal, no_color, expected) in [
        (Color::Auto, true, false, true),
        (Color::Auto, true, true, false),
        (Color::Auto, false, false, false),
        (Color::Always, false, true, true),
        (Color::Never, true, false, false),
    ] {
        assert_eq!(is_coloured(color, is_terminal, no_color), expected);
    }
}
