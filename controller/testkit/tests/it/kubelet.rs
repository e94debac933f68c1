//! The node that reads logs aloud, as kubectl sees it.

use std::process::Command;
use std::time::{Duration, Instant};

use fw_testkit::Process;
use fw_testkit::cluster::{Cluster, Kubelet, Lease, NAMESPACE};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: { namespace: firewall, name: talker }
spec:
  selector: { matchLabels: { app: talker } }
  template:
    metadata: { labels: { app: talker } }
    spec: { containers: [{ name: talker, image: example.com/talker }] }
";

/// Prints to both streams, then at a signal the last line, and ends.
const TALKER: &str = "echo one; sleep 0.2; echo two >&2; sleep 0.2; echo three; trap 'echo four; exit' USR1; while :; do sleep 0.05; done";

struct Stage {
    cluster: Lease,
    kubelet: Kubelet,
    pod: String,
    talker: Process,
}

impl Stage {
    fn new() -> Self {
        let cluster = Cluster::shared().unwrap();
        cluster.apply(DEPLOYMENT).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", TALKER]);
        let talker = Process::spawn(command).unwrap();
        talker.wait_for_line("three", PATIENCE).unwrap();
        let kubelet = Kubelet::start(&cluster, "node").unwrap();
        let pod = kubelet.run(&cluster, NAMESPACE, "talker", &talker).unwrap();
        Self { cluster, kubelet, pod, talker }
    }

    fn logs(&self, arguments: &[&str]) -> Result<Vec<String>, String> {
        let all = ["-n", NAMESPACE, "--request-timeout=20s", "logs"];
        let said = self.cluster.kubectl(&all.iter().chain(arguments).copied().collect::<Vec<_>>()).unwrap();
        if said.success { Ok(said.stdout.lines().map(str::to_owned).collect()) } else { Err(said.stderr) }
    }
}

#[test]
fn kubectl_logs_shows_what_the_process_of_a_pod_printed_and_goes_on_until_it_ends() {
    let mut stage = Stage::new();
    assert_eq!(stage.logs(&["deploy/talker"]).unwrap(), ["one", "two", "three"]);
    assert_eq!(stage.logs(&[&stage.pod, "--tail=2"]).unwrap(), ["two", "three"]);
    assert_eq!(stage.logs(&[&stage.pod, "--since=1h"]).unwrap().len(), 3);
    let stamped = stage.logs(&[&stage.pod, "--timestamps"]).unwrap();
    let (times, texts): (Vec<&str>, Vec<&str>) =
        stamped.iter().map(|line| line.split_once(' ').unwrap()).unzip();
    assert_eq!(texts, ["one", "two", "three"]);
    assert!(times.is_sorted() && times[0].len() == "2020-06-17T13:23:27.000000000Z".len(), "{times:?}");
    let since = format!("--since-time={}", times[2]);
    // Whole seconds are what the API server passes on.
    assert!(stage.logs(&[&stage.pod, &since]).unwrap().ends_with(&["three".to_owned()]));

    let call = format!("GET /containerLogs/firewall/{}/talker?follow=true", stage.pod);
    let followed = std::thread::scope(|scope| {
        let follower = scope.spawn(|| stage.logs(&[&stage.pod, "-f"]));
        let deadline = Instant::now() + PATIENCE;
        while stage.kubelet.asked().last() != Some(&call) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        stage.talker.signal(Signal::SIGUSR1).unwrap();
        follower.join().unwrap()
    });
    assert_eq!(stage.kubelet.asked().last(), Some(&call));
    assert_eq!(followed.unwrap(), ["one", "two", "three", "four"]);
    assert!(stage.talker.wait(PATIENCE).unwrap().success());
}

#[test]
fn what_is_not_on_the_node_or_cannot_be_done_is_refused() {
    let stage = Stage::new();
    let other = "
apiVersion: v1
kind: Pod
metadata: { namespace: firewall, name: stranger }
spec: { nodeName: node, containers: [{ name: talker, image: example.com/talker }] }
";
    stage.cluster.apply(other).unwrap();
    let refusal = stage.logs(&["stranger"]).unwrap_err();
    assert!(refusal.contains("(NotFound)"), "{refusal}");
    assert!(stage.kubelet.asked()[0].starts_with("GET /containerLogs/firewall/stranger/talker"));
    let refusal = stage.logs(&[&stage.pod, "--previous"]).unwrap_err();
    assert!(refusal.contains("previous=true is nothing that this kubelet can do"), "{refusal}");
}
