//! The program: flags, signals, and a listening socket of its own or of systemd.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use fw_edge::chain;
use fw_exporter::config::{Config, ConfigError, DEFAULT_PATH, LogLevel};
use fw_exporter::server::{self, Exporter};
use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;
use tracing::{error, info, warn};
use tracing_subscriber::{Registry, reload};

/// Exports what nftables counts to Prometheus.
#[derive(Debug, Parser)]
#[command(name = "nftables-exporter", version)]
struct Arguments {
    /// Path of the configuration file
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Give chains and rules their label `handle`, as older exporters do: new series after every reload
    #[arg(long)]
    handles: bool,
}

impl Arguments {
    fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(&self.config)?;
        config.handles |= self.handles;
        Ok(config)
    }
}

/// Go's flags may have one dash, and units in the field write them so.
fn two_dashes(argument: String) -> String {
    let name = argument.split('=').next().unwrap_or_default();
    if matches!(name, "-config" | "-version" | "-help") { format!("-{argument}") } else { argument }
}

#[global_allocator]
static ALLOCATOR: fw_memory::Allocator = fw_memory::Allocator;

fn main() -> ExitCode {
    fw_memory::give_back_at_once();
    let arguments = Arguments::parse_from(std::env::args().map(two_dashes));
    let log = start_log();
    let result = arguments.load().map_err(|error| chain(&error)).and_then(|config| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        runtime.block_on(run(&arguments, config, &log)).map_err(|error| chain(&error))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            error!("{text}");
            ExitCode::FAILURE
        }
    }
}

type Log = reload::Handle<LevelFilter, Registry>;

/// The log goes to standard error; under systemd the journal has its own time stamps.
fn start_log() -> Log {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{Layer as _, fmt};
    let (level, handle) = reload::Layer::new(LevelFilter::WARN);
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    let layer = match std::env::var_os("JOURNAL_STREAM") {
        Some(_) => layer.without_time().boxed(),
        None => layer.boxed(),
    };
    // Nobody else sets one in this process.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(level).with(layer));
    handle
}

fn set_level(log: &Log, level: LogLevel) {
    let level = match level {
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Error => LevelFilter::ERROR,
    };
    let _ = log.modify(|filter| *filter = level);
}

/// The socket systemd listens on for us, when it does.
fn inherited() -> Result<Option<TcpListener>, ConfigError> {
    let wrong = |error: std::io::Error| ConfigError::Value(format!("the socket systemd gave us: {error}"));
    let Some(listener) = ListenFd::from_env().take_tcp_listener(0).map_err(wrong)? else { return Ok(None) };
    listener.set_nonblocking(true).map_err(wrong)?;
    TcpListener::from_std(listener).map(Some).map_err(wrong)
}

async fn run(arguments: &Arguments, config: Config, log: &Log) -> Result<(), ConfigError> {
    apply(&config, log);
    let given = inherited()?;
    let by_systemd = given.is_some();
    let mut listener = match given {
        Some(listener) => listener,
        None => server::listen(&config).await?,
    };
    let exporter = Arc::new(Exporter::new(config));
    let wrong = |error: std::io::Error| ConfigError::Value(format!("signals: {error}"));
    let mut hangup = signal(SignalKind::hangup()).map_err(wrong)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(wrong)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(wrong)?;
    info!("listening on {}", listener.local_addr().map(|it| it.to_string()).unwrap_or_default());
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    loop {
        tokio::select! {
            () = server::serve(&listener, &exporter) => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                match reload(arguments, &exporter, log, by_systemd).await {
                    Ok(Some(other)) => listener = other,
                    Ok(None) => {}
                    Err(error) => warn!("the configuration stays as it was: {}", chain(&error)),
                }
            }
        }
    }
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    Ok(())
}

fn apply(config: &Config, log: &Log) {
    set_level(log, config.log_level);
    for key in config.unused() {
        info!("{key} does nothing: rules are read from the kernel");
    }
}

/// Reads the file again; gives a listener when it names another address. Nothing changes if anything is wrong.
async fn reload(
    arguments: &Arguments,
    exporter: &Exporter,
    log: &Log,
    by_systemd: bool,
) -> Result<Option<TcpListener>, ConfigError> {
    let config = arguments.load()?;
    let moved = !by_systemd && config.bind_to != exporter.config().bind_to;
    let listener = if moved { Some(server::listen(&config).await?) } else { None };
    apply(&config, log);
    info!("read {} again", Path::new(&arguments.config).display());
    exporter.configure(config);
    Ok(listener)
}
