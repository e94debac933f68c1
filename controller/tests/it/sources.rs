//! What the directory of manifests may go through without harm to what is enforced.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fw_testkit::traffic::server::{Server, Service};
use fw_testkit::traffic::steady::Steady;

use crate::daemon::eventually;
use crate::field::{Field, controller, reach};
use crate::rig::{FIREWALL, at, documents, policy};
use crate::traffic::{INTERNET, out};

/// A controller on two files: the Firewall, and `web.yaml` that opens port 80.
fn start(label: &str) -> Result<Field> {
    let mut field = Field::bare(label)?;
    field.daemon.write("firewall.yaml", FIREWALL)?;
    field.daemon.write("web.yaml", &reach("web", 80))?;
    field.start()?;
    assert_eq!(open(&field)?, [80]);
    Ok(field)
}

/// Those of the ports 80 to 89 that the cluster reaches.
fn open(field: &Field) -> Result<Vec<u16>> {
    let ports = 80..90;
    let fates = field.fire(&ports.clone().map(|port| out("1.2.3.4", port)).collect::<Vec<_>>())?;
    Ok(ports.zip(fates).filter(|(_, passed)| *passed).map(|(port, _)| port).collect())
}

/// Waits until exactly these ports are open.
fn opens(field: &Field, ports: &[u16], when: &str) -> Result<()> {
    eventually(&format!("{when}, {ports:?} are open"), || Ok(open(field)? == ports))
}

/// Waits for a finding with all of these parts.
fn finds(field: &Field, parts: &[&str]) -> Result<()> {
    field
        .daemon
        .wait_until(&format!("a finding has {parts:?}"), |status| {
            let findings = crate::daemon::findings(status);
            findings.iter().any(|line| parts.iter().all(|part| line.contains(part)))
        })
        .map(drop)
}

/// Waits until there is no finding.
fn finds_nothing(field: &Field) -> Result<()> {
    let nothing = |status: &serde_json::Value| crate::daemon::findings(status).is_empty();
    field.daemon.wait_until("there is no finding", nothing).map(drop)
}

#[test]
fn a_file_that_does_not_parse_keeps_its_last_objects_also_over_a_restart() -> Result<()> {
    let mut field = start("unparsable")?;
    field.daemon.write("web.yaml", "kind: [ClusterwideNetworkPolicy\n  metadata: }\n")?;
    finds(&field, &["web.yaml:", "InvalidManifest", "the object it had before stays in force"])?;
    assert_eq!(open(&field)?, [80]);
    field.daemon.write("more.yaml", &reach("more", 81))?;
    opens(&field, &[80, 81], "beside the broken file")?;

    // As after a reboot: only the state directory knows what the file once said.
    field.daemon.stop()?;
    field.flush_ruleset()?;
    field.start()?;
    finds(&field, &["web.yaml:", "InvalidManifest", "the object it had before stays in force"])?;
    assert_eq!(open(&field)?, [80, 81]);

    field.daemon.write("web.yaml", &reach("web", 82))?;
    opens(&field, &[81, 82], "repaired")?;
    finds_nothing(&field)
}

#[test]
fn a_half_written_file_changes_nothing_until_it_is_whole() -> Result<()> {
    let field = start("half")?;
    let path = field.daemon.manifests().join("web.yaml");
    let text = documents(&[&reach("web", 81), &reach("more", 82)]);
    let (half, rest) = text.split_at(text.len() / 2);

    // A writer that takes its time: emptied and written in place.
    let mut file = File::create(&path)?;
    file.write_all(half.as_bytes())?;
    file.flush()?;
    // Longer than a burst of events is waited for.
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(open(&field)?, [80]);
    file.write_all(rest.as_bytes())?;
    drop(file);
    opens(&field, &[81, 82], "when the writer has closed it")?;

    // A writer that died: with every length the file ends somewhere else, often still as YAML.
    for cut in (0..text.len()).step_by(text.len() / 12) {
        fs::write(&path, text.as_bytes().get(..cut).unwrap_or_default())?;
        std::thread::sleep(Duration::from_millis(40));
        let now = open(&field)?;
        ensure!(now.contains(&81), "cut after {cut} bytes of {}, {now:?} are open", text.len());
        ensure!(now.iter().all(|port| [81, 82].contains(port)), "cut after {cut} bytes it opened {now:?}");
    }
    fs::write(&path, &text)?;
    opens(&field, &[81, 82], "written whole")?;
    finds_nothing(&field)
}

#[test]
fn a_directory_that_vanishes_changes_nothing() -> Result<()> {
    let mut field = start("vanishes")?;
    let rules = field.listing()?;
    let (manifests, elsewhere) = (field.daemon.manifests(), field.daemon.beside("elsewhere"));
    fs::rename(&manifests, &elsewhere)?;
    let directory = manifests.to_str().context("a path in UTF-8")?;
    finds(&field, &[directory, "Unreadable", "objects known from before stay in force"])?;
    field.expect_rules(&rules, "without a directory")?;
    assert_eq!(open(&field)?, [80]);

    field.daemon.stop()?;
    field.launch(&[])?;
    finds(&field, &[directory, "Unreadable"])?;
    field.expect_rules(&rules, "started without a directory")?;
    assert_eq!(open(&field)?, [80]);

    fs::write(elsewhere.join("web.yaml"), reach("web", 81))?;
    fs::rename(&elsewhere, &manifests)?;
    opens(&field, &[81], "when it is back")?;
    finds_nothing(&field)?;

    // Something that is no directory is as good as none.
    fs::rename(&manifests, &elsewhere)?;
    fs::write(&manifests, "not a directory")?;
    finds(&field, &[directory, "Unreadable"])?;
    assert_eq!(open(&field)?, [81]);
    Ok(())
}

#[test]
fn a_removed_file_takes_its_objects_with_it() -> Result<()> {
    let mut field = start("removed")?;
    field.daemon.write("more.yaml", &documents(&[&reach("more", 81), &reach("most", 82)]))?;
    opens(&field, &[80, 81, 82], "with a second file")?;
    field.daemon.remove("more.yaml")?;
    opens(&field, &[80], "without it")?;
    finds_nothing(&field)?;

    // Also one that does not parse, and one that goes while nobody looks.
    field.daemon.write("web.yaml", "kind: [")?;
    finds(&field, &["web.yaml:", "InvalidManifest"])?;
    field.daemon.remove("web.yaml")?;
    opens(&field, &[], "without the broken file")?;
    field.daemon.write("web.yaml", &reach("web", 80))?;
    opens(&field, &[80], "with it again")?;
    field.daemon.stop()?;
    field.daemon.remove("web.yaml")?;
    field.start()?;
    assert_eq!(open(&field)?, [0_u16; 0]);
    Ok(())
}

#[test]
fn a_removed_firewall_keeps_its_last_spec() -> Result<()> {
    let mut field = start("nofirewall")?;
    let kept = ["firewall firewall/firewall", "its last spec stays in force"];
    field.daemon.remove("firewall.yaml")?;
    finds(&field, &kept)?;
    assert_eq!(open(&field)?, [80]);
    field.daemon.write("web.yaml", &reach("web", 81))?;
    opens(&field, &[81], "by the spec that was kept")?;

    field.daemon.stop()?;
    field.flush_ruleset()?;
    field.start()?;
    finds(&field, &kept)?;
    assert_eq!(open(&field)?, [81]);

    // Another one takes its place: here with an inside that is not connected.
    let another = "apiVersion: metal-stack.io/v1\nkind: Firewall\nmetadata: {name: firewall, namespace: firewall}\n\
                   spec: {insideInterfaces: [vrf1], clusterPrefixes: [10.0.0.0/8]}\n";
    field.daemon.write("firewall.yaml", another)?;
    opens(&field, &[], "by another Firewall")?;
    field.daemon.write("firewall.yaml", FIREWALL)?;
    opens(&field, &[81], "by the first one again")?;
    finds_nothing(&field)?;

    // A flush gives up what was kept.
    field.daemon.remove("firewall.yaml")?;
    finds(&field, &kept)?;
    field.daemon.ask(&["flush"])?;
    field.daemon.ask(&["flush", "--undo"])?;
    finds(&field, &["there is no Firewall, so nothing is opened"])?;
    assert_eq!(open(&field)?, [0_u16; 0]);
    Ok(())
}

#[test]
fn every_way_in_which_editors_save_is_followed() -> Result<()> {
    let field = start("editors")?;
    let (web, backup) =
        (field.daemon.manifests().join("web.yaml"), field.daemon.manifests().join("web.yaml~"));
    let swap = field.daemon.manifests().join(".web.yaml.swp");

    // Emptied and written in place (nano, `kubectl get > file`).
    fs::write(&web, reach("web", 81))?;
    opens(&field, &[81], "written in place")?;
    // A backup takes the old file's name away, then a new file is written (vim).
    fs::write(&swap, reach("swap", 89))?;
    fs::rename(&web, &backup)?;
    fs::write(&web, reach("web", 82))?;
    fs::remove_file(&backup)?;
    opens(&field, &[82], "written anew beside a backup")?;
    // A temporary file is renamed over it (sed -i, many editors); a lock that leads nowhere lies beside (Emacs).
    let lock = field.daemon.manifests().join(".#web.yaml");
    symlink("user@host.4711:1", &lock)?;
    fs::rename(&web, &backup)?;
    field.daemon.write("web.yaml", &reach("web", 83))?;
    opens(&field, &[83], "renamed over, with a backup that stays")?;
    // A new name, as a link (ln -sf), and a directory below.
    fs::write(field.daemon.beside("target.yaml"), reach("web", 84))?;
    let link = field.daemon.manifests().join("new.yaml");
    symlink(field.daemon.beside("target.yaml"), &link)?;
    fs::rename(&link, &web)?;
    opens(&field, &[84], "replaced by a link")?;
    fs::write(field.daemon.beside("target.yaml"), reach("web", 85))?;
    opens(&field, &[85], "written through a link")?;
    let below = field.daemon.manifests().join("team");
    fs::create_dir(&below)?;
    fs::write(below.join("more.yaml"), reach("more", 86))?;
    opens(&field, &[85, 86], "with a file in a new directory")?;
    fs::remove_dir_all(&below)?;
    opens(&field, &[85], "without that directory")?;
    finds_nothing(&field)
}

#[test]
fn a_config_map_is_swapped_as_a_whole_and_never_missing() -> Result<()> {
    let mut field = Field::bare("configmap")?;
    let root = field.daemon.manifests();
    // As a kubelet writes a volume: a directory for each version, `..data` leads to the current one.
    let publish = |version: u16| -> Result<()> {
        let directory = root.join(format!("..version_{version}"));
        fs::create_dir(&directory)?;
        fs::write(directory.join("all.yaml"), documents(&[FIREWALL, &reach("web", version)]))?;
        symlink(format!("..version_{version}"), root.join("..data_tmp"))?;
        fs::rename(root.join("..data_tmp"), root.join("..data"))?;
        match fs::remove_dir_all(root.join(format!("..version_{}", version - 1))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    publish(80)?;
    symlink("..data/all.yaml", root.join("all.yaml"))?;
    field.start()?;
    assert_eq!(open(&field)?, [80]);
    let commits = |field: &Field| -> Result<u64> {
        let status = field.daemon.status()?;
        controller(&status)["transactions"]["commits"].as_u64().context("the number of commits")
    };
    for version in 81..86 {
        let before = commits(&field)?;
        publish(version)?;
        opens(&field, &[version], "swapped")?;
        assert_eq!(commits(&field)?, before + 1, "one change, never a moment without objects");
    }
    finds_nothing(&field)
}

#[test]
fn edits_of_the_directory_disturb_no_traffic() -> Result<()> {
    let server_policy = policy("server", "{egress: [{to: [{cidr: 203.0.113.2/32}], ports: [{port: 7000}]}]}");
    let field = Field::new("undisturbed", &documents(&[FIREWALL, &server_policy]))?;
    let policies = |count: usize| {
        let has = move |status: &serde_json::Value| {
            controller(status)["policies"].as_object().is_some_and(|policies| policies.len() == count)
        };
        field.daemon.wait_until(&format!("it knows {count} policies"), has).map(drop)
    };
    let server = Server::tcp(&field.lab.internet().ns, &[at(INTERNET[0], 7000)], Service::Echo)?;
    let pace = Duration::from_millis(2);
    let steady = Steady::tcp(&field.lab.cluster().ns, None, server.addresses()[0], 5, pace)?;
    for round in 0..10 {
        field.daemon.write("web.yaml", &reach("web", 8000 + round))?;
        field.daemon.write("broken.yaml", "kind: [")?;
        field.daemon.remove("broken.yaml")?;
        field.daemon.write("other.yaml", &reach("other", 8000 + round))?;
        policies(3)?;
        field.daemon.remove("other.yaml")?;
        policies(2)?;
    }
    let report = steady.stop()?;
    assert_eq!((report.flows, report.breaks.as_slice(), report.retransmits), (5, &[][..], 0));
    ensure!(report.sent > 500, "traffic flowed: {report:?}");
    Ok(())
}
