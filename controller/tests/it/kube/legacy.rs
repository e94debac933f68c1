//! A cluster that comes from the controller written in Go.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::daemon::eventually;
use crate::rig::{fire, policy};
use crate::traffic::{INTERNET, out};

use super::field::Field;

/// Names, each with the port that its policy opens.
const NAMES: [(&str, u16); 3] = [("early.test", 443), ("over.test", 444), ("late.test", 445)];

/// The ConfigMap as Go writes it, with one address for each name and the time when it is over.
pub(crate) fn fqdn_state(names: &[(&str, &str)]) -> String {
    let address = INTERNET[0];
    let entry = |(name, until): &(&str, &str)| {
        format!(
            "    {name}.:\n      ipv4:\n        ips:\n          {address}: \"{until}\"\n        setName: {name}4\n"
        )
    };
    let entries: String = names.iter().map(entry).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: fqdnstate, namespace: firewall}}\n\
         data:\n  state: |\n{entries}"
    )
}

fn passes(field: &Field, port: u16) -> Result<bool> {
    Ok(fire(&field.lab, &[out(INTERNET[0], port)])?[0])
}

fn questions(field: &Field) -> usize {
    field.faults.calls().iter().filter(|call| call.resource == "configmaps").count()
}

#[test]
fn names_that_the_go_controller_has_learned_are_taken_over_once() -> Result<()> {
    let mut field = Field::new("k-legacy")?;
    for (name, port) in NAMES {
        let spec = format!("{{egress: [{{toFQDNs: [{{matchName: {name}}}], ports: [{{port: {port}}}]}}]}}");
        field.cluster.apply(&policy(name.trim_end_matches(".test"), &spec))?;
    }
    field.cluster.apply(crate::rig::FIREWALL)?;
    field.cluster.apply(&fqdn_state(&[
        ("early.test", "2099-08-17T13:23:27.123456789+02:00"),
        ("over.test", "2020-08-17T13:23:27.123456789+02:00"),
        ("nobody-allows-it.test", "2099-08-17T13:23:27Z"),
    ]))?;
    let [(_, early), (_, over), (_, late)] = NAMES;
    field.start()?;
    eventually("what was learned is open, and nobody has asked", || passes(&field, early))?;
    ensure!(!passes(&field, over)?, "what is over is open");
    ensure!(!passes(&field, late)?, "what nobody has learned is open");
    ensure!(questions(&field) == 1, "asked {} times", questions(&field));

    field.daemon.kill()?;
    field.cluster.apply(&fqdn_state(&[("late.test", "2099-08-17T13:23:27Z")]))?;
    field.start()?;
    eventually("it is still open", || passes(&field, early))?;
    // Longer than the first start took to ask.
    std::thread::sleep(Duration::from_secs(1));
    ensure!(!passes(&field, late)?, "it was read again");
    ensure!(questions(&field) == 1, "asked {} times", questions(&field));
    Ok(())
}
