//! Grafana's JSON of a dashboard, as far as it says what is asked and shown.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Columns of Grafana's grid.
pub const COLUMNS: u32 = 24;

/// How a panel shows its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lines over time.
    Lines,
    /// The last values, large.
    Stat,
    /// A heading.
    Row,
}

/// What is asked for a panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// PromQL, with Grafana's variables replaced.
    pub expression: String,
    /// Text with `{{label}}` in it.
    pub legend: String,
}

/// One panel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Panel {
    /// Heading.
    pub title: String,
    /// What it shows, for those who wonder.
    pub description: String,
    /// How.
    pub kind: Kind,
    /// Column, row, width, height in units of Grafana's grid.
    pub place: [u32; 4],
    /// Grafana's name of the unit: `s`, `bytes`, `pps`, `short`, …
    pub unit: String,
    /// What is asked.
    pub queries: Vec<Query>,
}

/// A dashboard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dashboard {
    /// Heading.
    pub title: String,
    /// Panels in the order of the file.
    pub panels: Vec<Panel>,
}

impl Dashboard {
    /// Reads Grafana's JSON. `variables`: `$instance` and others by their names, without the dollar.
    pub fn parse(json: &str, variables: &BTreeMap<&str, &str>) -> Result<Self> {
        let whole: Value = serde_json::from_str(json).context("the dashboard is no JSON")?;
        let panels = whole["panels"].as_array().context("a dashboard without panels")?;
        let panels = panels.iter().map(|panel| read_panel(panel, variables)).collect::<Result<_>>()?;
        Ok(Self { title: text(&whole["title"])?, panels })
    }
}

fn text(value: &Value) -> Result<String> {
    value.as_str().map(str::to_owned).with_context(|| format!("not a text: {value}"))
}

fn read_panel(panel: &Value, variables: &BTreeMap<&str, &str>) -> Result<Panel> {
    let title = text(&panel["title"])?;
    let kind = match panel["type"].as_str() {
        Some("timeseries") => Kind::Lines,
        Some("stat") => Kind::Stat,
        Some("row") => Kind::Row,
        other => bail!("panel {title:?}: type {other:?} cannot be drawn"),
    };
    let side = |key: &str| -> Result<u32> {
        let units =
            panel["gridPos"][key].as_u64().with_context(|| format!("panel {title:?}: no gridPos.{key}"))?;
        Ok(u32::try_from(units)?)
    };
    let place = [side("x")?, side("y")?, side("w")?, side("h")?];
    let queries = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
    let queries = queries.iter().map(|query| {
        let mut expression = text(&query["expr"])?;
        for (name, value) in variables {
            expression = expression.replace(&format!("${name}"), value);
        }
        Ok(Query { expression, legend: query["legendFormat"].as_str().unwrap_or_default().to_owned() })
    });
    Ok(Panel {
        kind,
        place,
        description: panel["description"].as_str().unwrap_or_default().to_owned(),
        unit: panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or("short").to_owned(),
        queries: queries.collect::<Result<_>>()?,
        title,
    })
}

impl Query {
    /// The legend of one series: labels in place of their names; all labels where the query has no legend.
    pub fn name_of(&self, labels: &BTreeMap<String, String>) -> String {
        if self.legend.is_empty() {
            let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            return pairs.join(" ");
        }
        let mut name = self.legend.clone();
        for (label, value) in labels {
            name = name.replace(&format!("{{{{{label}}}}}"), value);
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DASHBOARD: &str = r#"{"title": "Firewall", "panels": [{"title": "Drops", "type": "timeseries",
        "gridPos": {"x": 0, "y": 1, "w": 12, "h": 8}, "fieldConfig": {"defaults": {"unit": "pps"}},
        "targets": [{"expr": "rate(x{instance=~\"$instance\"}[$__rate_interval])", "legendFormat": "{{reason}} at {{where}}"}]}]}"#;

    #[test]
    fn variables_and_labels_take_their_places() {
        let variables = BTreeMap::from([("instance", ".*"), ("__rate_interval", "5s")]);
        let dashboard = Dashboard::parse(DASHBOARD, &variables).unwrap();
        let panel = &dashboard.panels[0];
        assert_eq!((panel.kind, panel.place, panel.unit.as_str()), (Kind::Lines, [0, 1, 12, 8], "pps"));
        let query = &panel.queries[0];
        assert_eq!(query.expression, "rate(x{instance=~\".*\"}[5s])");
        let labels = BTreeMap::from([
            ("reason".to_owned(), "policy".to_owned()),
            ("where".to_owned(), "xdp".to_owned()),
        ]);
        assert_eq!(query.name_of(&labels), "policy at xdp");
    }

    #[test]
    fn a_panel_that_cannot_be_drawn_is_named() {
        let error =
            Dashboard::parse(&DASHBOARD.replace("timeseries", "piechart"), &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("\"Drops\"") && error.to_string().contains("piechart"), "{error}");
    }
}
