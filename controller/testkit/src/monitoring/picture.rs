//! A dashboard with Prometheus's answers, drawn as SVG.

use std::fmt::Write as _;

use super::dashboard::{COLUMNS, Dashboard, Kind, Panel};
use super::prometheus::Series;

/// Pixels of a grid unit.
const UNIT: [f64; 2] = [50.0, 38.0];
const GAP: f64 = 8.0;
const HEADER: f64 = 48.0;
/// Series of a panel that get a line in its legend.
const LEGENDS: usize = 4;
const COLOURS: [&str; 8] =
    ["#56a64b", "#f2cc0c", "#3274d9", "#e02f44", "#a352cc", "#ff780a", "#37872d", "#8ab8ff"];
const STYLE: &str = "text{font-family:Inter,Helvetica,Arial,sans-serif;fill:#d8d9da}\
    .title{font-size:14px;font-weight:600}.head{font-size:20px;font-weight:600}.small{font-size:11px;fill:#9fa7b3}\
    .stat{font-size:30px;font-weight:600}.row{font-size:15px;font-weight:600}";

/// A series with the name it has in the legend.
pub type Named = (String, Series);

/// Draws a dashboard. `data`: for each panel, in order, what its queries gave. `span`: first and last second.
pub fn draw(dashboard: &Dashboard, data: &[Vec<Named>], span: (f64, f64)) -> String {
    let rows = dashboard.panels.iter().map(|panel| panel.place[1] + panel.place[3]).max().unwrap_or(0);
    let (width, height) = (f64::from(COLUMNS) * UNIT[0] + GAP, f64::from(rows) * UNIT[1] + HEADER + GAP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\">\n\
         <style>{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#111217\"/>\n"
    );
    label(&mut svg, [GAP * 2.0, 31.0], "head", "start", &dashboard.title);
    for (panel, series) in dashboard.panels.iter().zip(data) {
        draw_panel(&mut svg, panel, series, span);
    }
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn label(svg: &mut String, at: [f64; 2], class: &str, anchor: &str, text: &str) {
    let [x, y] = at;
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
        escape(text)
    )
    .ok();
}

/// Left, top, width, height in pixels.
type Frame = [f64; 4];

fn draw_panel(svg: &mut String, panel: &Panel, series: &[Named], span: (f64, f64)) {
    let [x, y, w, h] = panel.place.map(f64::from);
    let frame = [x * UNIT[0] + GAP, y * UNIT[1] + HEADER, w * UNIT[0] - GAP, h * UNIT[1] - GAP];
    if panel.kind == Kind::Row {
        return label(svg, [frame[0] + 6.0, frame[1] + frame[3] * 0.7], "row", "start", &panel.title);
    }
    let [left, top, width, height] = frame;
    writeln!(
        svg,
        "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" fill=\"#181b1f\" \
         stroke=\"#25282d\"/>"
    )
    .ok();
    label(svg, [left + 10.0, top + 20.0], "title", "start", &panel.title);
    match panel.kind {
        _ if series.iter().all(|(_, series)| series.points.is_empty()) => {
            label(svg, [left + width / 2.0, top + height / 2.0], "small", "middle", "No data");
        }
        Kind::Stat => draw_stat(svg, frame, panel, series),
        Kind::Lines | Kind::Row => draw_lines(svg, frame, panel, series, span),
    }
}

fn last(series: &Series) -> f64 {
    series.points.last().map_or(0.0, |(_, value)| *value)
}

fn draw_stat(svg: &mut String, frame: Frame, panel: &Panel, series: &[Named]) {
    let [left, top, width, height] = frame;
    let share = width / series.len().max(1) as f64;
    for (number, (name, series)) in series.iter().enumerate() {
        let middle = left + share * (number as f64 + 0.5);
        label(
            svg,
            [middle, top + height * 0.62 + 8.0],
            "stat",
            "middle",
            &quantity(last(series), &panel.unit),
        );
        label(svg, [middle, top + height - 8.0], "small", "middle", name);
    }
}

/// Highest value of the axis: 1, 2 or 5 times a power of ten.
fn ceiling(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(highest.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= highest).unwrap_or(highest)
}

/// Those that rise highest first, for not all have room in the legend.
fn by_height(series: &[Named]) -> Vec<Named> {
    let height = |(_, series): &Named| series.points.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let mut sorted = series.to_vec();
    sorted.sort_by(|one, other| height(other).total_cmp(&height(one)).then_with(|| one.0.cmp(&other.0)));
    sorted
}

fn draw_lines(svg: &mut String, frame: Frame, panel: &Panel, series: &[Named], span: (f64, f64)) {
    let [left, top, width, height] = frame;
    let series = &by_height(series);
    let shown = series.len().min(LEGENDS);
    let plot =
        [left + 58.0, top + 32.0, width - 70.0, height - 32.0 - 26.0 - 15.0 * (shown as f64 / 2.0).ceil()];
    let highest = series.iter().flat_map(|(_, series)| &series.points).map(|(_, value)| *value);
    let highest = ceiling(highest.fold(0.0, f64::max));
    for step in 0..=4 {
        let share = f64::from(step) / 4.0;
        let y = plot[1] + plot[3] * (1.0 - share);
        let (from, to) = (plot[0], plot[0] + plot[2]);
        writeln!(svg, "<path d=\"M{from:.1} {y:.1}H{to:.1}\" stroke=\"#25282d\"/>").ok();
        label(svg, [plot[0] - 6.0, y + 4.0], "small", "end", &quantity(highest * share, &panel.unit));
    }
    for (number, (_, series)) in series.iter().enumerate() {
        let mut path = String::new();
        for (time, value) in &series.points {
            let x = plot[0] + plot[2] * ((time - span.0) / (span.1 - span.0).max(1.0)).clamp(0.0, 1.0);
            let y = plot[1] + plot[3] * (1.0 - (value / highest).clamp(0.0, 1.0));
            write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' }).ok();
        }
        let colour = COLOURS[number % COLOURS.len()];
        writeln!(svg, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"/>").ok();
    }
    let seconds = span.1 - span.0;
    let below = plot[1] + plot[3] + 15.0;
    label(svg, [plot[0], below], "small", "start", &format!("-{seconds:.0} s"));
    label(svg, [plot[0] + plot[2], below], "small", "end", "now");
    draw_legend(svg, panel, series, [plot[0], below + 16.0, plot[2] / 2.0]);
}

/// `at`: left, first base line, width of a column.
fn draw_legend(svg: &mut String, panel: &Panel, series: &[Named], at: [f64; 3]) {
    // Half the panel less its axis and the value, at six pixels a character.
    let room = usize::try_from((panel.place[2] * 25).saturating_sub(105) / 6).unwrap_or(0).max(8);
    for (number, (name, series)) in series.iter().take(LEGENDS).enumerate() {
        let (column, row) = ((number % 2) as f64, (number / 2) as f64);
        let (x, y) = (at[0] + column * at[2], at[1] + row * 15.0);
        let colour = COLOURS[number % COLOURS.len()];
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"3\" fill=\"{colour}\"/>",
            y - 5.0
        )
        .ok();
        let mut short: String = name.chars().take(room).collect();
        if short.len() < name.len() {
            short.push('…');
        }
        label(
            svg,
            [x + 17.0, y],
            "small",
            "start",
            &format!("{short}  {}", quantity(last(series), &panel.unit)),
        );
    }
}

/// A value in one of Grafana's units.
fn quantity(value: f64, unit: &str) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let scaled = |steps: &[(f64, &str)]| {
        let (size, suffix) = steps
            .iter()
            .find(|(size, _)| value.abs() >= *size)
            .or(steps.last())
            .copied()
            .unwrap_or((1.0, ""));
        let number = format!("{:.2}", value / size);
        format!("{}{suffix}", number.trim_end_matches('0').trim_end_matches('.'))
    };
    match unit {
        "s" => scaled(&[(1.0, " s"), (1e-3, " ms"), (1e-6, " µs")]),
        "bytes" => scaled(&[
            (f64::from(1 << 30), " GiB"),
            (f64::from(1 << 20), " MiB"),
            (1024.0, " KiB"),
            (1.0, " B"),
        ]),
        "Bps" => scaled(&[(1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1.0, " B/s")]),
        "percentunit" => format!("{:.1} %", value * 100.0),
        "pps" => scaled(&[(1e6, " Mp/s"), (1e3, " kp/s"), (1.0, " p/s"), (1e-3, " mp/s")]),
        "bool_yes_no" => "yes".to_owned(),
        _ => scaled(&[(1e9, " G"), (1e6, " M"), (1e3, " k"), (1.0, ""), (1e-3, " m")]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn panel(kind: Kind) -> Panel {
        Panel {
            title: "Drops <policy>".to_owned(),
            description: String::new(),
            kind,
            place: [0, 0, 12, 8],
            unit: "pps".to_owned(),
            queries: Vec::new(),
        }
    }

    fn draw_one(kind: Kind, points: &[(f64, f64)]) -> String {
        let dashboard = Dashboard { title: "Firewall".to_owned(), panels: vec![panel(kind)] };
        let series = Series { labels: BTreeMap::new(), points: points.to_vec() };
        draw(&dashboard, &[vec![("a & b".to_owned(), series)]], (0.0, 10.0))
    }

    #[test]
    fn a_line_goes_through_every_value_and_texts_are_escaped() {
        let svg = draw_one(Kind::Lines, &[(0.0, 0.0), (5.0, 1500.0), (10.0, 750.0)]);
        assert!(svg.contains("Drops &lt;policy&gt;") && svg.contains("a &amp; b"), "{svg}");
        assert!(svg.contains("2 kp/s") && svg.contains("750 p/s"), "the axis, and the last value: {svg}");
        let line = svg.lines().find(|line| line.contains("stroke-width")).unwrap();
        assert_eq!(line.matches('L').count(), 2, "{line}");
    }

    #[test]
    fn a_panel_without_values_says_so() {
        assert!(draw_one(Kind::Stat, &[]).contains("No data"));
        assert!(draw_one(Kind::Stat, &[(1.0, 3.0)]).contains(">3 p/s<"));
    }

    #[test]
    fn quantities_read_as_people_write_them() {
        let written = [
            (0.000_25, "s", "250 µs"),
            (1.5, "s", "1.5 s"),
            (1536.0, "bytes", "1.5 KiB"),
            (0.5, "percentunit", "50.0 %"),
            (12_000.0, "short", "12 k"),
            (0.0, "s", "0"),
        ];
        for (value, unit, text) in written {
            assert_eq!(quantity(value, unit), text);
        }
    }
}
