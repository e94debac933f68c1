//! `droptailer tail`: drops on the box itself, for whoever is on it.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use crate::client::DEFAULT_SOCKET;

/// Longest line of the socket.
const LONGEST: u64 = 1 << 20;

/// What to show.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Only packets from this address or prefix
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    pub src: Option<IpNet>,
    /// Only packets to this address or prefix
    #[arg(long, value_name = "CIDR", value_parser = prefix)]
    pub dst: Option<IpNet>,
    /// Only packets that this policy decided about, or that a hint names it for
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Only packets to or from this DNS name; `*.example.com` for all below
    #[arg(long, value_name = "NAME")]
    pub fqdn: Option<String>,
    /// Only packets with this source or destination port
    #[arg(long)]
    pub port: Option<u16>,
    /// Only packets that were dropped, or accepted
    #[arg(long, value_enum)]
    pub action: Option<Wanted>,
    /// Stop after so many packets
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub lines: Option<u64>,
    /// What a line looks like
    #[arg(long, short, value_enum, default_value_t = Output::Line)]
    pub output: Output,
    /// Whether lines are coloured; NO_COLOR in the environment means never
    #[arg(long, value_enum, default_value_t = Color::Auto)]
    pub color: Color,
    /// Socket of the client
    #[arg(long, value_name = "SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Wanted {
    /// Dropped.
    Drop,
    /// Accepted.
    Accept,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Compact, for people.
    Line,
    /// All keys, for programs.
    Json,
}

/// Whether lines are coloured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    Auto,
    /// Also in a file.
    Always,
    /// Nowhere.
    Never,
}

/// A line of the client's socket.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
enum Followed {
    Result(()),
    Error(String),
    Record(BTreeMap<String, String>),
    Lost(u64),
}

/// Prints until the client or the reader of the output ends.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let socket = options.socket.display();
    let mut stream = UnixStream::connect(&options.socket)
        .with_context(|| format!("cannot follow {socket}; does `droptailer client` run here?"))?;
    stream.write_all(b"{\"request\":\"follow\"}\n")?;
    let mut stream = BufReader::new(stream);
    let mut out = io::stdout().lock();
    let color = is_coloured(options.color, out.is_terminal(), std::env::var_os("NO_COLOR").is_some());
    let (mut line, mut shown) = (Vec::new(), 0);
    while options.lines.is_none_or(|most| shown < most) {
        line.clear();
        if stream.by_ref().take(LONGEST).read_until(b'\n', &mut line)? == 0 {
            bail!("the client has ended");
        }
        let text = match serde_json::from_slice(&line)? {
            Followed::Result(()) => continue,
            Followed::Error(error) => bail!(error),
            Followed::Lost(count) => format!("… {count} records not shown: this terminal is too slow"),
            Followed::Record(fields) if options.wants(&fields) => {
                shown += 1;
                match options.output {
                    Output::Json => serde_json::to_string(&fields)?,
                    Output::Line => compact(&fields, color),
                }
            }
            Followed::Record(_) => continue,
        };
        let written = writeln!(out, "{text}").and_then(|()| out.flush());
        match written {
            // Whoever read it has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// An address alone is the prefix of all its bits.
fn prefix(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| "neither an address nor a prefix".to_owned())
}

fn is_coloured(color: Color, is_terminal: bool, no_color: bool) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => is_terminal && !no_color,
    }
}

impl Options {
    /// True for what is asked for; losses always are.
    fn wants(&self, fields: &BTreeMap<String, String>) -> bool {
        let of = |key: &str| fields.get(key).map(String::as_str);
        if of("ACTION") == Some("lost") {
            return true;
        }
        let inside = |net: &Option<IpNet>, key| {
            let address = || of(key).and_then(|text| text.parse::<IpAddr>().ok());
            net.is_none_or(|net| address().is_some_and(|address| net.contains(&address)))
        };
        let port = |port: u16| ["SPT", "DPT"].iter().any(|key| of(key) == Some(port.to_string().as_str()));
        let action = match self.action {
            None => true,
            Some(Wanted::Drop) => of("ACTION") == Some("drop"),
            Some(Wanted::Accept) => of("ACTION") == Some("accept"),
        };
        let policy = self.policy.as_deref().is_none_or(|name| {
            of("POLICY") == Some(name) || of("HINT").is_some_and(|hint| names_word(hint, name))
        });
        let fqdn =
            self.fqdn.as_deref().is_none_or(|wanted| of("FQDN").is_some_and(|name| is_named(name, wanted)));
        action
            && policy
            && fqdn
            && inside(&self.src, "SRC")
            && inside(&self.dst, "DST")
            && self.port.is_none_or(port)
    }
}

fn names_word(text: &str, name: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || "-_.".contains(c)))
        .any(|word| word.trim_end_matches('.') == name)
}

fn is_named(name: &str, wanted: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    let (name, wanted) = (plain(name), plain(wanted));
    match wanted.strip_prefix("*.") {
        Some(above) => name.strip_suffix(above).is_some_and(|below| below.ends_with('.')),
        None => name == wanted,
    }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const CYAN: &str = "36";
const FAINT: &str = "2";

/// `13:23:27.000001 drop TCP 10.0.16.2:40000 → 1.2.3.4:443 (www.example.com) vrf104009→vlan179 SYN policy=web hint: …`
fn compact(fields: &BTreeMap<String, String>, color: bool) -> String {
    let paint = |code: &str, text: &str| {
        if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    };
    let of = |key: &str| fields.get(key).map(|value| plain(value));
    let mut parts = vec![paint(FAINT, &clock(fields))];
    let action = of("ACTION").unwrap_or_default();
    if action == "lost" {
        let text =
            format!("Lost {} packets: {}", of("COUNT").unwrap_or_default(), of("CAUSE").unwrap_or_default());
        parts.push(paint(YELLOW, &text));
        return parts.join(" ");
    }
    parts.push(paint(if action == "drop" { RED } else { GREEN }, &action));
    parts.push(of("PROTO").unwrap_or_default());
    let end = |address: &str, port: &str| {
        let address = of(address).unwrap_or_else(|| "?".to_owned());
        let address = address.parse::<IpAddr>().map_or(address, |address| address.to_string());
        match of(port) {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address,
        }
    };
    parts.push(format!("{} → {}", end("SRC", "SPT"), end("DST", "DPT")));
    if let (Some(kind), Some(code)) = (of("TYPE"), of("CODE")) {
        parts.push(format!("type {kind}/{code}"));
    }
    if let Some(name) = of("FQDN") {
        parts.push(paint(CYAN, &format!("({name})")));
    }
    parts.push(paint(FAINT, &format!("{}→{}", of("IN").unwrap_or_default(), of("OUT").unwrap_or_default())));
    let flags = ["SYN", "ACK", "FIN", "RST"].into_iter().filter(|flag| fields.contains_key(*flag));
    let flags: Vec<&str> = flags.collect();
    if !flags.is_empty() {
        parts.push(flags.join(","));
    }
    for (key, label) in [("COUNT", "×"), ("WHERE", "where="), ("POLICY", "policy=")] {
        parts.extend(of(key).map(|value| format!("{label}{value}")));
    }
    if let (None, Some(rule)) = (of("POLICY"), of("RULE")) {
        parts.push(paint(FAINT, &format!("rule={rule}")));
    }
    parts.extend(of("HINT").map(|hint| paint(YELLOW, &format!("hint: {hint}"))));
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

/// What came from elsewhere moves no cursor here.
fn plain(value: &str) -> String {
    value.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Time of day in UTC.
fn clock(fields: &BTreeMap<String, String>) -> String {
    let microseconds: u64 = fields.get("TS_US").and_then(|text| text.parse().ok()).unwrap_or(0);
    let (seconds, rest) = (microseconds / 1_000_000 % 86_400, microseconds % 1_000_000);
    format!("{:02}:{:02}:{:02}.{rest:06}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests;
