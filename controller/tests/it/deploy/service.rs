//! The systemd unit, as systemd itself reads it.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result, ensure};

use crate::tree;

const UNIT: &str = "deploy/systemd/firewall-controller.service";
const VRF: &str = "deploy/systemd/firewall-controller.service.d/vrf.conf.example";

/// A file system with our unit and everything it starts; removed when this goes.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Root {
    fn new(label: &str, unit: &str) -> Result<Self> {
        let root = Self(std::env::temp_dir().join(format!("fwt-{}-{label}", std::process::id())));
        root.write("etc/systemd/system/firewall-controller.service", unit)?;
        for program in [
            "usr/bin/firewall-controller",
            "usr/bin/sh",
            "usr/bin/mkdir",
            "usr/bin/kill",
            "usr/sbin/ip",
            "usr/sbin/sysctl",
        ] {
            root.write(program, "#!/bin/sh\n")?;
            fs::set_permissions(root.0.join(program), fs::Permissions::from_mode(0o755))?;
        }
        symlink("usr/bin", root.0.join("bin"))?;
        Ok(root)
    }

    fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().context("a file has a directory")?)?;
        Ok(fs::write(path, text)?)
    }

    fn analyze(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new("systemd-analyze");
        command
            .args(arguments)
            .arg(format!("--root={}", self.0.display()))
            .arg("firewall-controller.service");
        command.env("LC_ALL", "C").output().context("cannot start systemd-analyze; install systemd")
    }

    /// systemd has nothing to say about the unit.
    fn verify(&self) -> Result<()> {
        let output = self.analyze(&["verify"])?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && said.trim().is_empty(), "systemd-analyze verify: {said}");
        Ok(())
    }
}

/// The values of a setting, in order.
fn values<'a>(unit: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    unit.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='))
}

#[test]
fn systemd_takes_the_unit_without_a_complaint() -> Result<()> {
    Root::new("unit", &tree::read(UNIT)?)?.verify()?;
    // It would have said something.
    let broken = tree::read(UNIT)?.replace("RestrictRealtime=", "RestrictRealtimes=");
    assert!(Root::new("broken", &broken)?.verify().is_err());
    Ok(())
}

#[test]
fn the_sandbox_is_as_tight_as_the_work_allows() -> Result<()> {
    // In tenths. What is left: root, netlink and internet sockets, the host's network, the capabilities below.
    let output = Root::new("sandbox", &tree::read(UNIT)?)?.analyze(&[
        "security",
        "--offline=true",
        "--no-pager",
        "--threshold=27",
    ])?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let unit = tree::read(UNIT)?;
    let granted: Vec<&str> = values(&unit, "CapabilityBoundingSet").flat_map(str::split_whitespace).collect();
    assert_eq!(granted, ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"]);
    Ok(())
}

#[test]
fn the_service_is_ready_before_the_network_and_forwarding_are() -> Result<()> {
    let unit = tree::read(UNIT)?;
    let before: Vec<&str> = values(&unit, "Before").flat_map(str::split_whitespace).collect();
    for later in ["network-pre.target", "systemd-sysctl.service"] {
        assert!(before.contains(&later), "it is not before {later}");
    }
    let after: Vec<&str> = values(&unit, "After").flat_map(str::split_whitespace).collect();
    assert_eq!(after, ["local-fs.target"], "nothing that needs the network comes first");
    assert_eq!(values(&unit, "Type").collect::<Vec<_>>(), ["notify"]);
    assert_eq!(values(&unit, "Restart").collect::<Vec<_>>(), ["always"]);
    assert!(values(&unit, "WatchdogSec").next().is_some());
    Ok(())
}

#[test]
fn credentials_are_read_where_they_can_be_replaced() -> Result<()> {
    let unit = tree::read(UNIT)?;
    assert_eq!(
        values(&unit, "Environment").collect::<Vec<_>>(),
        ["KUBECONFIG=/etc/firewall-controller/kubeconfig"]
    );
    assert_eq!(
        values(&unit, "EnvironmentFile").collect::<Vec<_>>(),
        ["-/etc/firewall-controller/environment"]
    );
    assert_eq!(values(&unit, "LoadCredential").count(), 0, "it copies once, at the start");
    Ok(())
}

#[test]
fn the_way_by_a_vrf_is_as_its_description_says() -> Result<()> {
    let description = tree::read(VRF)?;
    let edit = description.split('\'').nth(1).context("the description has a sed script")?;
    let edited = Command::new("sed").arg(edit).arg(tree::root().join(Path::new(UNIT))).output()?;
    let edited = String::from_utf8(edited.stdout)?;
    assert!(
        !edited.contains("network-pre.target\n") && edited.contains("After=local-fs.target network.target"),
        "{edited}"
    );
    let root = Root::new("vrf", &edited)?;
    root.write("etc/systemd/system/firewall-controller.service.d/vrf.conf", &description)?;
    root.verify()
}
