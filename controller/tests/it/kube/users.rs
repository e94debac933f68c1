//! What the user documentation says to type, with packets.

use anyhow::Result;
use fw_testkit::traffic::craft::Crafted;

use crate::daemon::eventually;
use crate::rig::{From, fire, policy};
use crate::traffic::{CLUSTER, INTERNET, into, out};

use super::field::Field;

/// Whether a new connection gets through; each try is a connection of its own.
fn passes(field: &Field, shot: impl Fn() -> (From, Crafted)) -> Result<bool> {
    Ok(fire(&field.lab, &[shot()])?[0])
}

#[test]
fn an_applied_policy_opens_and_a_deleted_one_closes() -> Result<()> {
    let field = Field::running("k-apply")?;
    let web = || out(INTERNET[0], 443);
    assert!(!passes(&field, web)?, "nothing is allowed yet");
    let allow =
        policy("web", "{egress: [{to: [{cidr: 203.0.113.0/24}], ports: [{protocol: TCP, port: 443}]}]}");
    field.cluster.apply(&allow)?;
    eventually("the policy opens", || passes(&field, web))?;
    field.wait_for_state("web", "deployed")?;
    field.cluster.kubectl(&["-n", "firewall", "delete", "cwnp", "web"])?.ok()?;
    eventually("its deletion closes", || Ok(!passes(&field, web)?))
}

#[test]
fn a_service_opens_its_port_when_it_gets_an_address() -> Result<()> {
    let field = Field::running("k-service")?;
    let shot = || into(INTERNET[0], CLUSTER[0], 8080);
    field.cluster.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: shop, namespace: default}\n\
         spec: {type: LoadBalancer, ports: [{name: http, port: 8080, protocol: TCP}]}\n",
    )?;
    assert!(!passes(&field, shot)?, "it has no address yet");
    field.cluster.set_load_balancer("default", "shop", &[CLUSTER[0].parse()?])?;
    eventually("its address opens", || passes(&field, shot))?;
    field.cluster.set_load_balancer("default", "shop", &[])?;
    eventually("without its address it is closed", || Ok(!passes(&field, shot)?))
}

#[test]
fn describe_firewall_shows_the_counters_of_exactly_these_packets() -> Result<()> {
    let field = Field::running("k-describe")?;
    let allow =
        policy("counted", "{egress: [{to: [{cidr: 203.0.113.0/24}], ports: [{protocol: TCP, port: 443}]}]}");
    field.cluster.apply(&allow)?;
    field.wait_for_state("counted", "deployed")?;
    let shots: Vec<_> =
        (0..7).map(|_| out(INTERNET[0], 443)).chain((0..5).map(|_| out(INTERNET[0], 444))).collect();
    let through = fire(&field.lab, &shots)?;
    assert_eq!(through.iter().filter(|passed| **passed).count(), 7);
    field.wait_for("the object has the counters", ("firewalls", "firewall"), |firewall| {
        let rules = &firewall["status"]["stats"]["rules"];
        rules["accept"]["accept traffic for np counted tcp"]["counter"]["packets"] == 7
            && rules["other"]["count and log dropped packets"]["counter"]["packets"] == 5
    })?;
    // What the README shows is copied from here: `-- --nocapture`.
    for command in ["get fw,cwnp -n firewall", "get events -n firewall", "explain cwnp.spec.egress"] {
        let words: Vec<&str> = command.split(' ').collect();
        eprintln!("$ kubectl {command}\n{}", field.cluster.kubectl(&words)?.ok()?);
    }
    let described = field.cluster.kubectl(&["describe", "firewall", "-n", "firewall"])?.ok()?;
    eprintln!("$ kubectl describe firewall -n firewall\n{described}");
    for line in ["accept traffic for np counted tcp", "Last Run", "Devices", "Controller Version"] {
        assert!(described.contains(line), "{line} is missing:\n{described}");
    }
    Ok(())
}
