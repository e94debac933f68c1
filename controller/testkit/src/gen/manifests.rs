//! Policy sets as the manifests a person would write.

use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use fw_policy::{
    Block, DropLog, Firewall, FqdnSelector, IcmpEcho, InsideBasis, Peers, Policy, PolicySet, Ports, Protocol,
    Rule, Service, ServiceName, Sources,
};

/// Name and text of one file per object. Fails for what no manifest means without a finding (an empty list of
/// blocks) and for settings of the Firewall that the generator never makes.
pub fn manifests(set: &PolicySet) -> Result<Vec<(String, String)>> {
    let mut files = vec![("firewall.yaml".to_owned(), firewall_manifest(&set.firewall)?)];
    for (name, policy) in &set.policies {
        files.push((policy_file_name(name), policy_manifest(name, policy)?));
    }
    for (name, service) in &set.services {
        files.push((
            format!("service-{}-{}.yaml", name.namespace, name.name),
            service_manifest(name, service)?,
        ));
    }
    Ok(files)
}

/// Name of the file of a policy; never longer than a file name may be (255), although a policy's name nearly is.
pub fn policy_file_name(name: &str) -> String {
    let Some(short) = name.get(..200).filter(|_| name.len() > 200) else {
        return format!("policy-{name}.yaml");
    };
    // FNV-1a, for names that begin alike.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("policy-{short}-{hash:016x}.yaml")
}

/// The Firewall.
pub fn firewall_manifest(firewall: &Firewall) -> Result<String> {
    ensure!(
        firewall.rate_limits.is_empty()
            && firewall.snat.is_empty()
            && firewall.masquerade.is_empty()
            && firewall.host.is_none()
            && firewall.inside.basis == InsideBasis::Explicit,
        "only a Firewall with an explicit inside and no networks can be written"
    );
    let mut text = head("metal-stack.io/v1", "Firewall", "firewall", "firewall")?;
    text.push_str("spec:\n");
    list(&mut text, "  insideInterfaces", &firewall.inside.interfaces)?;
    list(&mut text, "  clusterPrefixes", &firewall.inside.prefixes)?;
    list(&mut text, "  internalprefixes", &firewall.internal_prefixes)?;
    let echo = match firewall.icmp_echo {
        IcmpEcho::Deny => "deny",
        IcmpEcho::Egress => "egress",
        IcmpEcho::Both => "both",
    };
    writeln!(text, "  icmpEcho: {echo}")?;
    writeln!(text, "  logAcceptedConnections: {}", firewall.log_accepted)?;
    if firewall.drop_log != DropLog::default() {
        let DropLog { rate, burst, group, .. } = firewall.drop_log;
        ensure!(firewall.drop_log.to == DropLog::default().to, "only a log to NFLOG can be written");
        writeln!(text, "  dropLog: {{rate: {rate}, burst: {burst}}}\n  nflogGroup: {group}")?;
    }
    if firewall.dry_run {
        text.push_str("  dryrun: true\n");
    }
    Ok(text)
}

/// A ClusterwideNetworkPolicy.
pub fn policy_manifest(name: &str, policy: &Policy) -> Result<String> {
    let mut text = head("metal-stack.io/v1", "ClusterwideNetworkPolicy", "firewall", name)?;
    if policy.egress.is_empty() && policy.ingress.is_empty() {
        text.push_str("spec: {}\n");
        return Ok(text);
    }
    text.push_str("spec:\n");
    for (direction, peers, rules) in [("egress", "to", &policy.egress), ("ingress", "from", &policy.ingress)]
    {
        if !rules.is_empty() {
            writeln!(text, "  {direction}:")?;
        }
        for rule in rules {
            write_rule(&mut text, peers, rule)?;
        }
    }
    Ok(text)
}

/// A Service of type LoadBalancer with its addresses assigned.
pub fn service_manifest(name: &ServiceName, service: &Service) -> Result<String> {
    let mut text = head("v1", "Service", &name.namespace, &name.name)?;
    text.push_str("spec:\n  type: LoadBalancer\n  ports:\n");
    for (number, (protocol, port)) in service.ports.iter().enumerate() {
        writeln!(text, "  - {{name: port-{number}, protocol: {}, port: {port}}}", upper(*protocol))?;
    }
    if let Sources::Blocks(blocks) = &service.sources {
        ensure!(!blocks.is_empty(), "a Service without any source cannot be written");
        list(&mut text, "  loadBalancerSourceRanges", blocks)?;
    }
    text.push_str("status:\n  loadBalancer:\n    ingress:\n");
    for address in &service.addresses {
        writeln!(text, "    - ip: \"{address}\"")?;
    }
    Ok(text)
}

fn head(version: &str, kind: &str, namespace: &str, name: &str) -> Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "apiVersion: {version}\nkind: {kind}\nmetadata:\n  namespace: {namespace}\n  name: \"{name}\""
    )?;
    Ok(text)
}

fn list<T: ToString>(text: &mut String, key: &str, items: impl IntoIterator<Item = T>) -> Result<()> {
    let items: Vec<String> = items.into_iter().map(|item| format!("\"{}\"", item.to_string())).collect();
    if !items.is_empty() {
        writeln!(text, "{key}: [{}]", items.join(", "))?;
    }
    Ok(())
}

fn write_rule(text: &mut String, peers: &str, rule: &Rule) -> Result<()> {
    let mut lines = Vec::new();
    match &rule.peers {
        Peers::Any => {}
        Peers::Blocks(blocks) if blocks.is_empty() => bail!("a rule without any peer cannot be written"),
        Peers::Blocks(blocks) => {
            lines.push(format!("{peers}:"));
            lines.extend(blocks.iter().map(block_line));
        }
        Peers::Names(names) => {
            ensure!(!names.is_empty() && peers == "to", "only egress rules with names can be written");
            lines.push("toFQDNs:".to_owned());
            lines.extend(names.iter().map(|selector| match selector {
                FqdnSelector::Name(name) => format!("- matchName: \"{name}\""),
                FqdnSelector::Pattern(pattern) => format!("- matchPattern: \"{pattern}\""),
                // Single quotes keep backslashes as they are.
                FqdnSelector::Regex(regex) => format!("- matchRegex: '{}'", regex.replace('\'', "''")),
            }));
        }
    }
    match &rule.ports {
        Ports::All => {}
        Ports::Ranges(ranges) if ranges.is_empty() => bail!("a rule without any port cannot be written"),
        Ports::Ranges(ranges) => {
            lines.push("ports:".to_owned());
            for range in ranges {
                let end = if range.last == range.first {
                    String::new()
                } else {
                    format!(", endPort: {}", range.last)
                };
                lines.push(format!("- {{protocol: {}, port: {}{end}}}", upper(range.protocol), range.first));
            }
        }
    }
    if lines.is_empty() {
        text.push_str("  - {}\n");
    }
    for (number, line) in lines.iter().enumerate() {
        writeln!(text, "  {} {line}", if number == 0 { '-' } else { ' ' })?;
    }
    Ok(())
}

fn block_line(block: &Block) -> String {
    if block.except.is_empty() {
        return format!("- cidr: \"{}\"", block.net);
    }
    let except: Vec<String> = block.except.iter().map(|net| format!("\"{net}\"")).collect();
    format!("- {{cidr: \"{}\", except: [{}]}}", block.net, except.join(", "))
}

fn upper(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    }
}
