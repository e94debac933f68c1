use std::fs::OpenOptions;
use std::io::Write as _;

use fw_crds::{FirewallStats, FirewallStatus};
use fw_ids::Figures;
use fw_ids::follower::GRACE;
use fw_ids::gate::{EVENT_WINDOW, MAX_EVENTS};
use fw_intake::Id;
use fw_kube::FirewallReport;
use fw_policy::ObjectKind;

use super::alerts::Desk;
use super::*;
use crate::temporary::TemporaryDirectory;

/// A log, and what is known of it.
struct Scene {
    directory: TemporaryDirectory,
    desk: Desk,
    handle: Handle,
    problems: Problems,
    now: Duration,
}

impl Scene {
    fn new() -> Self {
        let directory = TemporaryDirectory::new("ids");
        let log = directory.path().join("eve.json");
        std::fs::write(&log, alert(0)).unwrap();
        let shared = Shared { known: Mutex::default(), events: watch::Sender::default(), state: None };
        let mut scene = Self {
            desk: Desk::new(log, None),
            directory,
            handle: Handle(Some(Arc::new(shared))),
            problems: Problems::default(),
            now: Duration::ZERO,
        };
        scene.look();
        scene
    }

    fn look(&mut self) {
        self.desk.look(self.handle.0.as_ref().unwrap(), self.now, &self.problems);
    }

    fn write(&mut self, text: &str) {
        let path = self.directory.path().join("eve.json");
        OpenOptions::new().append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
        self.look();
    }

    fn report(&self) -> Report {
        let id =
            Id { kind: ObjectKind::Firewall, namespace: "firewall".to_owned(), name: "firewall".to_owned() };
        let status = FirewallStatus { stats: Some(FirewallStats::default()), ..FirewallStatus::default() };
        let own = FirewallReport { id, uid: "u1".to_owned(), status: Arc::new(status), interval_ms: 1000 };
        let mut report = Report { own: Some(own), ..Report::default() };
        self.handle.add_to_report(&mut report);
        report
    }
}

fn alert(sid: u32) -> String {
    format!("{{\"event_type\":\"alert\",\"src_ip\":\"10.0.0.1\",\"alert\":{{\"signature_id\":{sid}}}}}\n")
}

#[test]
fn every_alert_is_shown_or_suppressed_and_what_is_no_line_is_counted() {
    let mut scene = Scene::new();
    scene.write(&format!("{}{}{}garbage\n{{\"event_type\":\"flow\"}}\n", alert(1), alert(1), alert(2)));
    let value = scene.handle.value();
    assert_eq!(value["alerts"], json!({"shown": 2, "suppressed": 1}), "what was there before is not told");
    assert_eq!(value["events"], 2);
    assert_eq!(value["badLines"]["malformed"], 1);
    scene.write(&"x".repeat(fw_ids::lines::MAX_LINE + 1));
    assert_eq!(scene.handle.value()["badLines"]["tooLong"], 1);
}

#[test]
fn each_rule_that_alerts_is_an_event_on_the_firewall_until_its_time_is_over() {
    let mut scene = Scene::new();
    let watch = scene.handle.watch().0.unwrap();
    scene.write(&(0..1000).map(|number| alert(number % 100)).collect::<String>());
    assert!(watch.has_changed().unwrap());
    let complaints = scene.report().complaints;
    assert_eq!(complaints.len(), MAX_EVENTS);
    let first = complaints.first().unwrap();
    assert_eq!((first.reason.as_str(), first.warning, first.uid.as_str()), ("IntrusionDetected", true, "u1"));
    assert!(first.note.contains("10.0.0.1"), "{}", first.note);
    scene.now += EVENT_WINDOW;
    scene.look();
    assert!(scene.report().complaints.is_empty());
}

#[test]
fn figures_are_in_the_status_as_long_as_suricata_answers() {
    let scene = Scene::new();
    let stats = |scene: &Scene| scene.report().own.unwrap().status.stats.clone().unwrap().ids_stats;
    assert!(stats(&scene).is_empty());
    assert_eq!(scene.handle.value()["answers"], false);
    let figures = Figures { packets: 3, drops: 2, invalid_checksums: 1 };
    let reading = Reading { interfaces: [("vlan179".to_owned(), figures)].into(), left_out: 0 };
    scene.handle.0.as_ref().unwrap().known().figures = Some(reading);
    let shown = IdsStats { packets: 3, drop: 2, invalid_checksums: 1 };
    assert_eq!(stats(&scene), [("vlan179".to_owned(), shown)].into());
    assert_eq!(
        scene.handle.value()["interfaces"]["vlan179"],
        json!({"packets": 3, "drops": 2, "invalidChecksums": 1})
    );
}

#[test]
fn a_log_that_goes_is_a_problem_until_it_comes_again() {
    let mut scene = Scene::new();
    let log = scene.directory.path().join("eve.json");
    std::fs::remove_file(&log).unwrap();
    scene.look();
    assert_eq!(scene.problems.lines(), Vec::<String>::new(), "it may be replaced right now");
    scene.now += GRACE;
    scene.look();
    let lines = scene.problems.lines();
    assert!(lines[0].contains("no alerts are read"), "{lines:?}");
    std::fs::write(&log, alert(1)).unwrap();
    for _ in 0..3 {
        scene.now += GRACE;
        scene.look();
    }
    assert_eq!(scene.problems.lines(), Vec::<String>::new());
    assert_eq!(scene.handle.value()["alerts"]["shown"], 1);
}

#[test]
fn a_firewall_without_intrusion_detection_says_nothing_of_it() {
    let handle = Handle::default();
    assert_eq!(handle.value(), Value::Null);
    let mut report = Report::default();
    handle.add_to_report(&mut report);
    assert_eq!(report, Report::default());
    handle.stop();
}
