//! Families of the intrusion detection; a firewall without it has none of them.

use serde_json::Value;

use super::families::{Families, number, object};

impl Families {
    pub(super) fn ids(&mut self, ids: &Value) {
        if ids.is_null() {
            return;
        }
        self.gauge(
            "firewall_ids_up",
            "1 while suricata answers on its command socket.",
            &[],
            u64::from(ids["answers"] == true),
        );
        let of_interfaces = [
            ("firewall_ids_packets_total", "Packets that suricata has seen.", "packets"),
            ("firewall_ids_missed_packets_total", "Packets that came too fast for suricata.", "drops"),
            (
                "firewall_ids_invalid_checksums_total",
                "Packets whose checksum suricata found wrong.",
                "invalidChecksums",
            ),
        ];
        for (interface, figures) in object(&ids["interfaces"]) {
            for (name, help, key) in of_interfaces {
                self.counter(name, help, &[("interface", interface)], number(&figures[key]));
            }
        }
        self.gauge(
            "firewall_ids_interfaces_left_out",
            "Interfaces of suricata that are not shown.",
            &[],
            number(&ids["interfacesLeftOut"]),
        );
        let by_label = [
            ("firewall_ids_readings_total", "Times suricata was asked.", "outcome", "readings"),
            ("firewall_ids_alerts_total", "Alerts of suricata.", "outcome", "alerts"),
            ("firewall_ids_bad_lines_total", "Lines of its log that are none.", "reason", "badLines"),
            ("firewall_ids_log_bytes_total", "Bytes of its log.", "outcome", "logBytes"),
            ("firewall_ids_log_changes_total", "Times its log began anew.", "what", "logChanges"),
        ];
        for (name, help, label, key) in by_label {
            self.by_label(name, help, label, &ids[key]);
        }
        self.counter("firewall_ids_events_total", "Events made of alerts.", &[], number(&ids["events"]));
    }
}
