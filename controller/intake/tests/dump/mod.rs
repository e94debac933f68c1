//! What an intake means, in lines that are easy to read in a review.

use std::fmt::{Debug, Display, Write};

use fw_intake::Intake;
use fw_policy::{Block, Dns, Firewall, FqdnSelector, Peers, Ports, Rule, Sources, Upstream};

pub(crate) fn dump(intake: &Intake) -> String {
    let mut out = String::new();
    for (id, state) in &intake.states {
        let message = if state.message().is_empty() { "-" } else { state.message() };
        writeln!(out, "state {}/{}: {}: {message}", id.namespace, id.name, state.state()).unwrap();
    }
    for (name, policy) in &intake.set.policies {
        writeln!(out, "policy {name}").unwrap();
        for rule in &policy.ingress {
            writeln!(out, "  ingress[{}] from {} ports {}", rule.index, peers(rule), ports(rule)).unwrap();
        }
        for rule in &policy.egress {
            writeln!(out, "  egress[{}] to {} ports {}", rule.index, peers(rule), ports(rule)).unwrap();
        }
    }
    for (name, service) in &intake.set.services {
        let ports = service.ports.iter().map(|(protocol, port)| format!("{protocol} {port}"));
        let sources = match &service.sources {
            Sources::Any => "anyone".to_owned(),
            Sources::Blocks(blocks) => join(blocks),
        };
        let addresses = join(&service.addresses);
        let ports = ports.collect::<Vec<_>>().join(", ");
        writeln!(out, "service {name} at {addresses} ports {ports} from {sources}").unwrap();
    }
    if !intake.set.load_balancer_addresses.is_empty() {
        writeln!(out, "load balancer addresses {}", join(&intake.set.load_balancer_addresses)).unwrap();
    }
    match &intake.firewall {
        Some(id) => writeln!(out, "{id}: {}", intake.inside).unwrap(),
        None => writeln!(out, "no firewall: {}", intake.inside).unwrap(),
    }
    firewall(&intake.set.firewall, &mut out);
    out
}

fn firewall(firewall: &Firewall, out: &mut String) {
    let Firewall {
        inside,
        internal_prefixes,
        rate_limits,
        snat,
        masquerade,
        icmp_echo,
        drop_log,
        log_accepted,
        dry_run,
        host,
        dns,
        fastpath,
    } = firewall;
    let standard = Firewall::default();
    writeln!(out, "  inside {:?}: {}; {}", inside.basis, join(&inside.interfaces), join(&inside.prefixes))
        .unwrap();
    line(out, "internal prefixes", internal_prefixes.is_empty(), &join(internal_prefixes));
    for (name, limit) in rate_limits {
        let (rate, interfaces) = (limit.bytes_per_second, join(&limit.interfaces));
        writeln!(out, "  rate limit {name}: {rate} bytes/s on {interfaces}").unwrap();
    }
    for (name, snat) in snat {
        let (to, by) = (join(&snat.addresses), join(&snat.interfaces));
        writeln!(out, "  snat {name}: to {to} by {by}, addresses on {}", snat.device).unwrap();
    }
    for (name, masquerade) in masquerade {
        writeln!(out, "  masquerade {name}: by {}", join(&masquerade.interfaces)).unwrap();
    }
    changed(out, "icmp echo", icmp_echo, &standard.icmp_echo);
    changed(out, "drop log", drop_log, &standard.drop_log);
    changed(out, "log accepted", log_accepted, &standard.log_accepted);
    changed(out, "dry run", dry_run, &standard.dry_run);
    if let Some(host) = host {
        let (ssh, underlay) = (join(&host.ssh_ports), join(&host.underlay_prefixes));
        let sessions = host.live_sessions.len();
        writeln!(out, "  host protection: ssh {ssh}; underlay {underlay}; {sessions} live sessions").unwrap();
    }
    dns_lines(out, dns, &standard.dns);
    changed(out, "fastpath mode", &fastpath.mode, &standard.fastpath.mode);
    for (name, mode) in &fastpath.interfaces {
        writeln!(out, "  fastpath mode of {name}: {mode:?}").unwrap();
    }
    let mask = format!("{:#010x}", fastpath.mark_mask);
    line(out, "mark mask", fastpath.mark_mask == standard.fastpath.mark_mask, &mask);
}

fn dns_lines(out: &mut String, dns: &Dns, standard: &Dns) {
    changed(out, "dns intercept", &dns.intercept, &standard.intercept);
    changed(out, "dns port", &dns.port, &standard.port);
    let upstream = |upstream: &Upstream| match &upstream.tls_name {
        Some(name) => format!("{} as {name}", upstream.address),
        None => upstream.address.to_string(),
    };
    line(out, "dns upstreams", dns.upstreams.is_empty(), &join(dns.upstreams.iter().map(upstream)));
    line(out, "dns ca file", dns.ca_file.is_none(), &format!("{:?}", dns.ca_file));
    if let Some(tls) = &dns.tls {
        let files = format!("{} and {}", tls.certificate.display(), tls.key.display());
        let (dot, doh) = (tls.dot_port, tls.doh_port);
        writeln!(out, "  dns by tls at {dot:?}, by https at {doh:?}, with {files}").unwrap();
    }
    changed(out, "dns other names", &dns.other_names, &standard.other_names);
    changed(out, "dns fallback", &dns.fallback, &standard.fallback);
    changed(out, "dns over tls", &dns.dot, &standard.dot);
    changed(out, "dns over https", &dns.doh, &standard.doh);
    line(out, "dns over https endpoints", dns.doh_endpoints.is_empty(), &join(&dns.doh_endpoints));
    line(out, "dns private prefixes", dns.private_prefixes.is_empty(), &join(&dns.private_prefixes));
    if let Some(allowed) = &dns.allowed {
        line(out, "names may open", false, &join(allowed));
    }
    let figures = |dns: &Dns| {
        [
            ("ttl min", dns.ttl_min),
            ("ttl max", dns.ttl_max),
            ("grace", dns.grace),
            ("max names", dns.max_names),
            ("max names per pattern", dns.max_names_per_pattern),
            ("max addresses per name", dns.max_addresses_per_name),
        ]
    };
    for ((what, figure), (_, usual)) in figures(dns).into_iter().zip(figures(standard)) {
        changed(out, &format!("dns {what}"), &figure, &usual);
    }
}

fn changed<T: Debug + PartialEq>(out: &mut String, what: &str, value: &T, standard: &T) {
    line(out, what, value == standard, &format!("{value:?}"));
}

fn line(out: &mut String, what: &str, skip: bool, value: &str) {
    if !skip {
        writeln!(out, "  {what}: {value}").unwrap();
    }
}

fn peers(rule: &Rule) -> String {
    match &rule.peers {
        Peers::Any => "anyone".to_owned(),
        Peers::Blocks(blocks) if blocks.is_empty() => "nobody".to_owned(),
        Peers::Blocks(blocks) => join(blocks.iter().map(block)),
        Peers::Names(names) if names.is_empty() => "no name".to_owned(),
        Peers::Names(names) => join(names.iter().map(|name| match name {
            FqdnSelector::Name(name) => format!("name {name}"),
            FqdnSelector::Pattern(pattern) => format!("pattern {pattern}"),
            FqdnSelector::Regex(regex) => format!("regex {regex}"),
        })),
    }
}

fn block(block: &Block) -> String {
    let Block { index, net, except } = block;
    if except.is_empty() {
        format!("[{index}]{net}")
    } else {
        format!("[{index}]{net} except {}", join(except))
    }
}

fn ports(rule: &Rule) -> String {
    match &rule.ports {
        Ports::All => "all".to_owned(),
        Ports::Ranges(ranges) if ranges.is_empty() => "none".to_owned(),
        Ports::Ranges(ranges) => join(
            ranges
                .iter()
                .map(|range| format!("[{}]{} {}-{}", range.index, range.protocol, range.first, range.last)),
        ),
    }
}

fn join<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "-".to_owned() } else { items.join(", ") }
}
