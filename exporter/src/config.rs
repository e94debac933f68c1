//! The configuration file, as today's exporter has it, with some keys more.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::ruleset::ReadOptions;
use crate::sources::Source;

/// Where the file is looked for.
pub const DEFAULT_PATH: &str = "/etc/nftables_exporter.yaml";
/// Bytes of the file at most.
const MAX_FILE: u64 = 1 << 20;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// The file is no YAML of this shape.
    #[error("{}: {}", .0.display(), .1)]
    Parse(PathBuf, String),
    /// A value makes no sense.
    #[error("{0}")]
    Value(String),
}

/// What the log shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// All of it.
    Debug,
    /// What happens.
    Info,
    /// What is wrong.
    #[serde(alias = "warning")]
    Warn,
    /// What stops us.
    Error,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    nftables_exporter: Option<Config>,
}

/// The keys below `nftables_exporter`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Address and port; an empty address is all of them.
    pub bind_to: String,
    /// Path of the metrics.
    pub url_path: String,
    /// Not used: nothing is executed. Files of today's exporter have it.
    pub nft_location: Option<String>,
    /// Not used: figures come from the kernel only. Files of today's exporter may have it.
    pub fake_nft_json: Option<String>,
    /// What the log shows.
    pub log_level: LogLevel,
    /// Chains and rules get their label `handle`, as today's exporter has it: new series after every reload.
    pub handles: bool,
    /// Series of one family at most.
    pub max_series: usize,
    /// The controller's control socket; empty: its metrics are not asked for.
    pub controller_socket: String,
    /// The droptailer client's socket; empty: its metrics are not asked for.
    pub droptailer_socket: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind_to: ":9630".to_owned(),
            url_path: "/metrics".to_owned(),
            nft_location: None,
            fake_nft_json: None,
            log_level: LogLevel::Warn,
            handles: false,
            max_series: 100_000,
            controller_socket: "/run/firewall-controller/control.sock".to_owned(),
            droptailer_socket: "/run/droptailer/droptailer.sock".to_owned(),
        }
    }
}

impl Config {
    /// Reads the file. Without one at the default place everything has its default.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let failed = |error| ConfigError::Read(path.to_owned(), error);
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path == Path::new(DEFAULT_PATH) => {
                return Ok(Self::default());
            }
            Ok(metadata) if metadata.len() > MAX_FILE => {
                return Err(ConfigError::Parse(path.to_owned(), "it is too long".to_owned()));
            }
            _ => {}
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|error| ConfigError::Parse(path.to_owned(), error.to_string()))
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let file: File = match text.trim() {
            "" => File::default(),
            text => serde_saphyr::from_str(text).map_err(|error| ConfigError::Value(error.to_string()))?,
        };
        let config = file.nftables_exporter.unwrap_or_default();
        if !config.url_path.starts_with('/') {
            return Err(ConfigError::Value(format!("url_path {:?} does not begin with /", config.url_path)));
        }
        if config.max_series == 0 {
            return Err(ConfigError::Value("max_series is 0".to_owned()));
        }
        Ok(config)
    }

    /// Where to listen, in the order to try.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let text = &self.bind_to;
        if let Some(port) = text.strip_prefix(':') {
            // Both families where the kernel has both, else IPv4.
            let addresses = [format!("[::]:{port}"), format!("0.0.0.0:{port}")];
            let parsed: Result<Vec<_>, _> = addresses.iter().map(|address| address.parse()).collect();
            return parsed.map_err(|_| ConfigError::Value(format!("bind_to {text:?} has no port")));
        }
        let wrong = |error| ConfigError::Value(format!("bind_to {text:?}: {error}"));
        Ok(text.to_socket_addrs().map_err(wrong)?.collect())
    }

    /// How to read the kernel.
    pub fn read_options(&self) -> ReadOptions {
        ReadOptions { handles: self.handles, max_series: self.max_series }
    }

    /// Whom to ask for metrics.
    pub fn sources(&self) -> Vec<Source> {
        let all = [
            ("controller", "firewall_", &self.controller_socket),
            ("droptailer", "droptailer_", &self.droptailer_socket),
        ];
        let some = all.into_iter().filter(|(_, _, socket)| !socket.is_empty());
        some.map(|(name, prefix, socket)| Source { name, prefix, socket: socket.into() }).collect()
    }

    /// Keys that are there and do nothing.
    pub fn unused(&self) -> Vec<&'static str> {
        let keys = [("nft_location", &self.nft_location), ("fake_nft_json", &self.fake_nft_json)];
        keys.into_iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_todays_exporter_is_taken_and_what_it_leaves_out_has_the_same_default() {
        let text = "nftables_exporter:\n  bind_to: \"[::1]:9630\"\n  url_path: \"/metrics\"\n  \
            nft_location: /sbin/nft\n  fake_nft_json: /path/to/nft.json\n  log_level: debug\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.addresses().unwrap(), ["[::1]:9630".parse().unwrap()]);
        assert_eq!(
            (config.log_level, config.unused()),
            (LogLevel::Debug, vec!["nft_location", "fake_nft_json"])
        );
        for text in ["", "---\n", "nftables_exporter:\n", "nftables_exporter: {}"] {
            assert_eq!(Config::parse(text).unwrap(), Config::default(), "{text:?}");
        }
        let default = Config::default();
        assert_eq!((default.bind_to.as_str(), default.url_path.as_str()), (":9630", "/metrics"));
        assert_eq!((default.log_level, default.handles), (LogLevel::Warn, false));
        assert_eq!(default.addresses().unwrap().len(), 2);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "nftables_exporter: {url_path: metrics}",
            "nftables_exporter: {max_series: 0}",
            "nftables_exporter: {log_level: loud}",
            "nftables_exporter: [",
        ] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
        let config = Config { bind_to: ":x".to_owned(), ..Config::default() };
        assert!(config.addresses().is_err());
    }

    #[test]
    fn an_empty_socket_is_not_asked() {
        let config = Config { controller_socket: String::new(), ..Config::default() };
        assert_eq!(config.sources().iter().map(|source| source.name).collect::<Vec<_>>(), ["droptailer"]);
    }
}
