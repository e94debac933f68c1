//! A real Prometheus in a namespace.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{Netns, Process, WorkDir};

/// Seconds between two scrapes.
pub const INTERVAL: u64 = 1;
/// Address it listens on, in its own namespace.
const ADDRESS: &str = "127.0.0.1:9090";
/// For it to answer; it opens its database first.
const PATIENCE: Duration = Duration::from_secs(60);

/// Values of one set of labels over time.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Labels, `__name__` among them where the expression keeps it.
    pub labels: BTreeMap<String, String>,
    /// Seconds since 1970, and the value; in the order of time. Values that are no number are left out.
    pub points: Vec<(f64, f64)>,
}

/// The server; it ends and its files go when this is dropped.
pub struct Prometheus<'a> {
    namespace: &'a Netns,
    _process: Process,
    _files: WorkDir,
}

impl<'a> Prometheus<'a> {
    /// Starts it with a job for each target, and the rules of a file.
    pub fn start(namespace: &'a Netns, targets: &[(&str, SocketAddr)], rules: &str) -> Result<Self> {
        let files = WorkDir::new("prometheus")?;
        let mut config = format!(
            "global: {{scrape_interval: {INTERVAL}s, scrape_timeout: {INTERVAL}s, evaluation_interval: {INTERVAL}s}}\n\
             rule_files: [rules.yaml]\nscrape_configs:\n"
        );
        for (job, address) in targets {
            config
                .push_str(&format!("- {{job_name: {job}, static_configs: [{{targets: ['{address}']}}]}}\n"));
        }
        fs::write(files.path().join("prometheus.yaml"), config)?;
        fs::write(files.path().join("rules.yaml"), rules)?;
        let mut command = namespace.command("prometheus");
        command
            .arg(format!("--config.file={}", files.path().join("prometheus.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", files.path().join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .arg("--storage.tsdb.retention.time=1h");
        let process = Process::spawn(command).context("prometheus, of Debian's package prometheus")?;
        let server = Self { namespace, _process: process, _files: files };
        server.wait_until("it answers", || Ok(server.instant("vector(1)").is_ok()))?;
        Ok(server)
    }

    /// Waits until all targets of a job have been scraped.
    pub fn wait_until_up(&self, job: &str) -> Result<()> {
        let up = format!("min(up{{job=\"{job}\"}}) == 1");
        self.wait_until(&format!("{job} is scraped"), || Ok(!self.instant(&up)?.is_empty()))
    }

    fn wait_until(&self, what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so()? {
            if Instant::now() > deadline {
                bail!(
                    "Prometheus: not within {PATIENCE:?}: {what}; it printed\n{}",
                    self._process.lines().join("\n")
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// What an expression gives now.
    pub fn instant(&self, expression: &str) -> Result<Vec<Series>> {
        self.ask(&["query", "-o", "json", "instant", &format!("http://{ADDRESS}"), expression])
    }

    /// What an expression gave over the last seconds, a value for each scrape.
    pub fn range(&self, expression: &str, seconds: u64) -> Result<Vec<Series>> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let (start, end) = (format!("--start={}", now.saturating_sub(seconds)), format!("--end={now}"));
        let step = format!("--step={INTERVAL}s");
        let server = format!("http://{ADDRESS}");
        self.ask(&["query", "-o", "json", "range", &start, &end, &step, &server, expression])
    }

    /// Alerts that are pending or firing, by name.
    pub fn alerts(&self) -> Result<BTreeMap<String, String>> {
        let label = |series: &Series, name: &str| series.labels.get(name).cloned().unwrap_or_default();
        let alerts = self.instant("ALERTS")?;
        Ok(alerts.iter().map(|series| (label(series, "alertname"), label(series, "alertstate"))).collect())
    }

    fn ask(&self, arguments: &[&str]) -> Result<Vec<Series>> {
        let said = self.namespace.command("promtool").args(arguments).output()?;
        let text = String::from_utf8_lossy(&said.stdout);
        ensure!(said.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&said.stderr));
        let parsed: Value =
            serde_json::from_str(text.trim()).with_context(|| format!("{arguments:?}: {text}"))?;
        let list = parsed.as_array().with_context(|| format!("{arguments:?}: no list: {text}"))?;
        Ok(list.iter().map(series).collect())
    }
}

/// An element of Prometheus's answer, of an instant (`value`) or of a range (`values`).
fn series(value: &Value) -> Series {
    let labels = value["metric"].as_object().into_iter().flatten();
    let labels = labels.map(|(name, text)| (name.clone(), text.as_str().unwrap_or_default().to_owned()));
    let points = value["values"].as_array().map_or_else(|| vec![value["value"].clone()], Clone::clone);
    Series { labels: labels.collect(), points: points.iter().filter_map(point).collect() }
}

fn point(pair: &Value) -> Option<(f64, f64)> {
    let value: f64 = pair[1].as_str()?.parse().ok()?;
    Some((pair[0].as_f64()?, value)).filter(|(_, value)| value.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_of_an_instant_and_of_a_range_are_read_and_what_is_no_number_is_left_out() {
        let labels = BTreeMap::from([("job".to_owned(), "x".to_owned())]);
        let instant = series(&json!({"metric": {"job": "x"}, "value": [5.5, "3"]}));
        assert_eq!(instant, Series { labels: labels.clone(), points: vec![(5.5, 3.0)] });
        let range = series(&json!({"metric": {"job": "x"}, "values": [[1, "2"], [2, "NaN"], [3, "4"]]}));
        assert_eq!(range, Series { labels, points: vec![(1.0, 2.0), (3.0, 4.0)] });
    }
}
