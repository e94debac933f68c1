//! The command line: every flag of every subcommand, in one place.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// Where the running controller keeps what must survive it.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/firewall-controller";
/// Where the eBPF programs and maps are pinned. The service has a bpffs mounted at the folder above, so that the sandboxed
/// controller need not mount one, here or for its self-test beside it.
pub const DEFAULT_BPF_DIR: &str = "/run/firewall-controller/bpf/pins";
/// Where the droptailer client looks for its certificate.
pub const DEFAULT_DROPTAILER_DIR: &str = "/etc/droptailer-client";
/// Where the running controller is asked.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/firewall-controller/control.sock";
/// Where suricata is asked, as Debian configures it.
pub const DEFAULT_SURICATA_SOCKET: &str = "/run/suricata-command.socket";
/// Where suricata writes its alerts, as Debian configures it.
pub const DEFAULT_SURICATA_LOG: &str = "/var/log/suricata/eve.json";

/// Turns ClusterwideNetworkPolicies, Firewalls and Services into nftables rules.
#[derive(Debug, Parser)]
#[command(
    name = "firewall-controller",
    version,
    about = "Turns ClusterwideNetworkPolicy, Firewall and Service manifests into nftables rules",
    long_about = "Turns ClusterwideNetworkPolicy, Firewall and Service manifests into the rules of one nftables \
                  table, `inet firewall`, and keeps them so. Only the difference is ever sent to the kernel: \
                  counters and connections survive every change.",
    after_help = "Start with `check` on your manifests, look at `render`, ask `explain` about a packet, then `run`."
)]
pub struct Cli {
    /// How much to log on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL")]
    pub log_level: LogLevel,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Only what needs somebody.
    Error,
    /// And what is wrong but handled, findings among it.
    Warn,
    /// And every change of what is enforced.
    Info,
    /// And why it changed.
    Debug,
    /// And every step.
    Trace,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce what a cluster, or a directory of manifests, asks for, and follow its changes
    #[command(
        long_about = "Enforces the objects of a cluster, or of a directory of manifests, and follows their changes.\n\n\
        Without --manifests the API server is asked: ClusterwideNetworkPolicies and Firewalls in namespace firewall, and \
        all Services. While it is away everything stays as it is; after a restart what was known last is enforced \
        until everything has been listed again.\n\n\
        DIR is read with its subdirectories (8 levels; links to directories are not followed): files *.yaml, \
        *.yml and *.json; names that start with '.' or '#' or end in '~' are ignored. A file that does not parse \
        keeps the objects it last had; a removed file removes its objects; a directory that is missing changes \
        nothing. SIGHUP reads everything again. SIGTERM stops the controller and leaves the rules in the kernel; \
        `firewall-controller flush` removes them.",
        after_help = "Examples:\n  \
        firewall-controller run --kubeconfig /etc/firewall-controller/kubeconfig\n  \
        firewall-controller run --manifests /etc/firewall-controller/manifests\n  \
        firewall-controller run --manifests deploy/examples/lab \\\n    --state-dir /tmp/fw --control-socket /tmp/fw.sock"
    )]
    Run(RunArgs),
    /// Say what is wrong with manifests
    #[command(
        long_about = "Says what is wrong with manifests: one finding a line, with the object, the field, the reason and \
        what to do. Exit code 0 = everything written is enforced (there may be warnings), 1 = something is not. Nothing is \
        sent to the kernel.",
        after_help = "Examples:\n  firewall-controller check policy.yaml\n  firewall-controller check deploy/examples/lab"
    )]
    Check(CheckArgs),
    /// Print the ruleset that manifests give, as text for nft
    #[command(
        long_about = "Prints the ruleset that manifests give, as text for nft. Findings go to standard error; what they \
        concern is left out. On a machine where the controller runs, the kernel refuses to have its table checked \
        by others, so check the text in an empty namespace.",
        after_help = "Examples:\n  \
        firewall-controller render deploy/examples/lab\n  \
        firewall-controller render policy.yaml firewall.yaml | unshare -rn nft -c -f -"
    )]
    Render(RenderArgs),
    /// Say what would happen to a packet, and which policy entry decides
    #[command(
        long_about = "Says what would happen to a packet and which policy entry decides, or what would have to be \
        allowed. Without FILE the running controller is asked.\n\n\
        A packet is written as PROTOCOL SOURCE -> DESTINATION in INTERFACE out INTERFACE [state STATE]:\n  \
        tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179\n  \
        udp [2001:db8::5]:5353 -> [2001:db8:1::53]:53 in vrf104009 out vlan179\n  \
        icmp 10.0.1.5 -> 1.2.3.4 in vrf104009 out vlan179          (an echo request)\n  \
        icmp 3/4 1.2.3.4 -> 10.0.1.5 in vlan179 out vrf104009 state related\n  \
        proto 47 10.0.1.5 -> 1.2.3.4 in vrf104009 out vlan179\n\
        Destinations are as the forward hook sees them: after DNAT, before SNAT. The source port may be left out.",
        after_help = "Examples:\n  \
        firewall-controller explain deploy/examples/lab \\\n    --packet 'tcp 10.0.1.5:40000 -> 1.2.3.4:443 in vrf104009 out vlan179'\n  \
        firewall-controller explain --packet 'udp 10.0.1.5 -> 1.1.1.1:53 in vrf104009 out vlan179'\n\n\
        Exit code 0 = accepted, 1 = error, 3 = dropped."
    )]
    Explain(ExplainArgs),
    /// Show what the running controller enforces, counts and complains about
    #[command(
        long_about = "Shows what the running controller enforces, counts and complains about, in the shape that \
        `kubectl describe firewall` has. Counter values never go down while the machine is up.",
        after_help = "Examples:\n  firewall-controller status\n  \
        firewall-controller status -o json | jq '.status.stats.rules.accept'\n\n\
        Exit code 0 = the rules are enforced, 1 = the controller could not be asked, 3 = NOT ENFORCING."
    )]
    Status(StatusArgs),
    /// Show what the running controller has learned from DNS answers
    #[command(
        long_about = "Shows what the running controller has learned from DNS answers: each name with its addresses, until \
        when they are allowed, by which policies, and how often they were used. Without NAME the figures of the proxy \
        and all names.",
        after_help = "Examples:\n  firewall-controller dns\n  firewall-controller dns www.example.com\n\n\
        Exit code 0 = known, 1 = the controller could not be asked, 3 = NAME is not known."
    )]
    Dns(DnsArgs),
    /// List the rules of the running controller with the objects they come from
    #[command(after_help = "Example:\n  firewall-controller legend | grep allow-web")]
    Legend(ClientArgs),
    /// Remove our table from the kernel, on purpose
    #[command(
        long_about = "Removes our table from the kernel, on purpose, with the addresses we put on interfaces and the \
        stored snapshot. The running controller stays up in state FLUSHED, NOT ENFORCING, until `flush --undo` or a \
        restart. When no controller runs, a table it left behind is removed.",
        after_help = "Examples:\n  firewall-controller flush\n  firewall-controller flush --undo"
    )]
    Flush(FlushArgs),
    /// Print the CustomResourceDefinitions
    #[command(after_help = "Example:\n  firewall-controller crds | kubectl apply -f -")]
    Crds,
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  firewall-controller completions bash > /etc/bash_completion.d/firewall-controller"
    )]
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// The command line with the `run` that unit files of today's product do not write: they have flags only.
pub fn with_subcommand(words: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let words: Vec<OsString> = words.collect();
    let command = Cli::command();
    let is_other = |word: &OsString| {
        let own = ["-h", "--help", "-V", "--version", "help"].iter().any(|own| word == own);
        own || command.get_subcommands().any(|sub| word == sub.get_name())
    };
    let flags_only = words.len() > 1 && !words.iter().skip(1).any(is_other);
    let mut words = words.into_iter();
    let program = words.next();
    program.into_iter().chain(flags_only.then(|| OsString::from("run"))).chain(words)
}

/// `:8080`, as Go programs take it, is port 8080 of every address.
fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    full.parse().map_err(|_| "not an address and a port; write 127.0.0.1:8080 or :8080".to_owned())
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Directory of manifests, in place of an API server.
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// Kubeconfig of the API server whose objects are enforced; it may come later, and be replaced at any time. Not given:
    /// the first file of $KUBECONFIG, else the service account of the pod, else ~/.kube/config.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Where the last complete set of objects and the counters are kept across restarts; not below the manifests.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where the eBPF programs and maps are pinned, so that they survive a restart; a bpffs is mounted there unless
    /// it is in one already.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    pub bpf_dir: PathBuf,
    /// Unix socket on which `status`, `dns`, `explain`, `legend` and `flush` are served (mode 0660).
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    pub control_socket: PathBuf,
    /// Name of the Firewall object that is this machine's. Not given: the only one there is, or the one called
    /// `firewall`; the status then shows the host's name.
    #[arg(long, value_name = "NAME")]
    pub firewall_name: Option<String>,
    /// Seconds between two readings of the kernel's counters when nobody asks for them.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub counter_interval: u32,
    /// Address on which Prometheus metrics are served, such as 127.0.0.1:8080; `:8080` is every address. Not given: none.
    #[arg(long, value_name = "ADDRESS", value_parser = listen_address)]
    pub metrics_addr: Option<SocketAddr>,
    /// Show what suricata counts and what it alerts of: in the status, as metrics, in the log and as events.
    #[arg(
        long = "enable-IDS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        hide_short_help = true
    )]
    pub enable_ids: Option<bool>,
    /// Suricata's command socket (`unix-command` in its configuration).
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SURICATA_SOCKET, hide_short_help = true)]
    pub suricata_socket: PathBuf,
    /// Suricata's log of events (`eve-log`, filetype `regular`); only its alerts are read.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SURICATA_LOG, hide_short_help = true)]
    pub suricata_log: PathBuf,
    /// Hosts file in which the address of the droptailer Pod is kept as `droptailer`; other lines stay. Not given: none.
    #[arg(long, value_name = "FILE")]
    pub hosts_file: Option<PathBuf>,
    /// Directory into which the Secret droptailer-client is written, for the droptailer client of this machine.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DROPTAILER_DIR)]
    pub droptailer_dir: PathBuf,
}

/// `check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Manifests, or directories of them; `-` is standard input.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
}

/// `render`
#[derive(Debug, Args)]
pub struct RenderArgs {
    /// Manifests, or directories of them; `-` is standard input.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// What may be asked of this machine.
    #[command(flatten)]
    pub host: HostArgs,
}

/// What `render` and `explain` may ask the machine they run on.
#[derive(Debug, Args)]
pub struct HostArgs {
    /// Use the addresses, routes and SSH ports of this machine, as `run` does; otherwise only the manifests count.
    #[arg(long)]
    pub this_host: bool,
}

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Manifests, or directories of them; `-` is standard input. None: the running controller is asked.
    #[arg(value_name = "FILE|DIR")]
    pub paths: Vec<PathBuf>,
    /// The packet.
    #[arg(long, value_name = "PACKET")]
    pub packet: String,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// What may be asked of this machine.
    #[command(flatten)]
    pub host: HostArgs,
    /// How to reach the running controller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// How to reach the running controller.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// Control socket of the running controller.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    pub control_socket: PathBuf,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For reading.
    Text,
    /// YAML, in the shape of the Firewall object.
    Yaml,
    /// JSON, in the shape of the Firewall object.
    Json,
}

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text, value_name = "FORMAT")]
    pub output: Output,
    /// How to reach the running controller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `dns`
#[derive(Debug, Args)]
pub struct DnsArgs {
    /// One name.
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How to reach the running controller.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `flush`
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// Enforce again.
    #[arg(long)]
    pub undo: bool,
    /// State directory to clear when no controller runs.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Pinned eBPF programs to remove when no controller runs.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPF_DIR)]
    pub bpf_dir: PathBuf,
    /// How to reach the running controller.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn run_args(line: &str) -> RunArgs {
        let words = ["firewall-controller", "run"].into_iter().chain(line.split_whitespace());
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else {
            unreachable!("the line begins with run")
        };
        args
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_existing_unit_files_are_taken() {
        let args = run_args(
            "--manifests /m --log-level debug --metrics-addr :8080 --enable-IDS --hosts-file /etc/hosts --firewall-name fw1",
        );
        assert_eq!(args.enable_ids, Some(true));
        assert_eq!(args.metrics_addr, "[::]:8080".parse().ok());
        assert_eq!(args.firewall_name.as_deref(), Some("fw1"));
        assert_eq!(run_args("--manifests /m --enable-IDS=false").enable_ids, Some(false));
    }

    #[test]
    fn objects_come_from_one_place() {
        let both = ["firewall-controller", "run", "--manifests", "/m", "--kubeconfig", "/k"];
        let error = Cli::try_parse_from(both).unwrap_err().to_string();
        assert!(error.contains("--manifests") && error.contains("--kubeconfig"), "{error}");
        assert_eq!(run_args("--kubeconfig /k").kubeconfig.as_deref(), Some(std::path::Path::new("/k")));
    }

    #[test]
    fn flags_without_a_subcommand_mean_run() {
        let with = |text: &str| -> Vec<String> {
            let words = std::iter::once("firewall-controller").chain(text.split_whitespace());
            with_subcommand(words.map(OsString::from))
                .map(|word| word.into_string().unwrap())
                .skip(1)
                .collect()
        };
        assert_eq!(
            with("--log-level debug --firewall-name fw1"),
            ["run", "--log-level", "debug", "--firewall-name", "fw1"]
        );
        assert_eq!(with("--kubeconfig=/k"), ["run", "--kubeconfig=/k"]);
        for others in [
            "",
            "--help",
            "-h",
            "--version",
            "-V",
            "status",
            "--log-level debug status",
            "run --manifests /m",
        ] {
            assert_eq!(with(others).join(" "), others);
        }
    }

    #[test]
    fn every_subcommand_has_an_example() {
        for command in Cli::command().get_subcommands() {
            if command.get_name() == "help" {
                continue;
            }
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{} --help has no example", command.get_name());
        }
    }
}
