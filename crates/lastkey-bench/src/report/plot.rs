//! Bar charts as plain SVG: panels side by side on one scale, groups of bars in each.

use std::fmt::Write as _;

/// What a chart shows.
pub(super) struct Chart {
    pub(super) title: String,
    /// What the vertical axis counts.
    pub(super) unit: &'static str,
    pub(super) scale: Scale,
    /// Names of the bars' colours, in their order.
    pub(super) series: Vec<&'static str>,
    pub(super) panels: Vec<Panel>,
}

/// How the vertical axis grows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    Linear,
    Logarithmic,
}

/// Groups that belong together.
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) groups: Vec<Group>,
}

/// Bars that are compared.
pub(super) struct Group {
    pub(super) label: String,
    /// Written above the bars.
    pub(super) note: String,
    /// In the order of the series.
    pub(super) bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, Default)]
pub(super) struct Bar {
    /// Drawn on top of each other, each fainter than the one below.
    pub(super) parts: Vec<f64>,
    /// A whisker from here to there.
    pub(super) whisker: Option<(f64, f64)>,
}

impl Bar {
    /// A bar of one part.
    pub(super) fn plain(value: f64) -> Self {
        Self { parts: vec![value], whisker: None }
    }

    fn total(&self) -> f64 {
        self.parts.iter().sum()
    }

    fn top(&self) -> f64 {
        self.whisker.map_or(0.0, |(_, high)| high).max(self.total())
    }
}

const COLOURS: [&str; 4] = ["#8d99a8", "#2864c7", "#d98a29", "#4b9b6d"];
const OPACITY: [f64; 3] = [1.0, 0.55, 0.25];
const BAR: f64 = 20.0;
const GROUP_GAP: f64 = 22.0;
const PANEL_GAP: f64 = 34.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 66.0;
const PLOT: f64 = 220.0;
const BOTTOM: f64 = 54.0;

impl Chart {
    /// The chart as an SVG document.
    pub(super) fn svg(&self) -> String {
        let width = self.width();
        let height = TOP + PLOT + BOTTOM;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        );
        text(
            &mut out,
            (LEFT, 20.0),
            ("start", "font-size=\"15\" font-weight=\"bold\""),
            &self.title,
        );
        self.legend(&mut out);
        let axis = Axis::of(self.scale, self.bounds());
        axis.draw(&mut out, width, self.unit);
        let mut x = LEFT + PANEL_GAP / 2.0;
        for panel in &self.panels {
            x = self.panel(&mut out, panel, (x, &axis));
        }
        out.push_str("</svg>\n");
        out
    }

    fn group_width(&self) -> f64 {
        BAR * self.series.len() as f64 + GROUP_GAP
    }

    fn width(&self) -> f64 {
        let panels = self.panels.iter().map(|panel| self.panel_width(panel) + PANEL_GAP);
        let names: usize = self.series.iter().map(|name| name.chars().count() * 7 + 30).sum();
        let title = self.title.chars().count() as f64 * 9.0;
        LEFT + RIGHT + panels.sum::<f64>().max(names as f64).max(title)
    }

    /// Room for its groups, and for its title below them.
    fn panel_width(&self, panel: &Panel) -> f64 {
        let groups = panel.groups.len() as f64 * self.group_width();
        groups.max(panel.title.chars().count() as f64 * 7.0)
    }

    /// The smallest and the largest value drawn.
    fn bounds(&self) -> (f64, f64) {
        let bars = || self.panels.iter().flat_map(|panel| &panel.groups).flat_map(|g| &g.bars);
        let largest = bars().map(Bar::top).fold(0.0, f64::max);
        let smallest = bars().map(Bar::total).filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
        (smallest, largest)
    }

    fn legend(&self, out: &mut String) {
        let mut x = LEFT;
        for (at, name) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            let _ = writeln!(
                out,
                "<rect x=\"{x:.0}\" y=\"31\" width=\"11\" height=\"11\" fill=\"{colour}\"/>"
            );
            text(out, (x + 16.0, 41.0), ("start", ""), name);
            x += 30.0 + name.chars().count() as f64 * 7.0;
        }
    }

    /// Draws one panel from `x` on; where the next one begins.
    fn panel(&self, out: &mut String, panel: &Panel, (x, axis): (f64, &Axis)) -> f64 {
        let width = self.panel_width(panel);
        let first = x + (width - panel.groups.len() as f64 * self.group_width()) / 2.0;
        for (at, group) in panel.groups.iter().enumerate() {
            let left = first + at as f64 * self.group_width() + GROUP_GAP / 2.0;
            self.group(out, group, (left, axis));
        }
        let below = TOP + PLOT + 38.0;
        text(out, (x + width / 2.0, below), ("middle", "font-weight=\"bold\""), &panel.title);
        x + width + PANEL_GAP
    }

    fn group(&self, out: &mut String, group: &Group, (left, axis): (f64, &Axis)) {
        let bars = BAR * self.series.len() as f64;
        for (at, bar) in group.bars.iter().enumerate() {
            let x = left + at as f64 * BAR;
            let mut base = axis.floor();
            let mut value = 0.0;
            for (part, opacity) in bar.parts.iter().zip(OPACITY) {
                value += part;
                let (y, colour) = (axis.y(value), COLOURS[at % COLOURS.len()]);
                let height = (base - y).max(0.0);
                let _ = writeln!(
                    out,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{height:.1}\" \
                     fill=\"{colour}\" fill-opacity=\"{opacity}\"/>",
                    BAR - 2.0
                );
                base = y;
            }
            if let Some((low, high)) = bar.whisker {
                whisker(out, x + BAR / 2.0 - 1.0, (axis.y(low), axis.y(high)));
            }
        }
        let middle = left + bars / 2.0 - 1.0;
        let highest = group.bars.iter().map(Bar::top).fold(0.0, f64::max);
        let above = axis.y(highest) - 6.0;
        text(out, (middle, above), ("middle", "font-size=\"11\" fill=\"#333333\""), &group.note);
        text(out, (middle, TOP + PLOT + 18.0), ("middle", ""), &group.label);
    }
}

/// The vertical axis.
struct Axis {
    scale: Scale,
    bottom: f64,
    top: f64,
    ticks: Vec<f64>,
}

impl Axis {
    fn of(scale: Scale, (smallest, largest): (f64, f64)) -> Self {
        let largest = if largest > 0.0 { largest } else { 1.0 };
        match scale {
            Scale::Linear => {
                let step = step(largest);
                let count = (largest * 1.08 / step).ceil().max(1.0);
                let ticks = (0..=count as usize).map(|at| at as f64 * step).collect();
                Self { scale, bottom: 0.0, top: count * step, ticks }
            }
            Scale::Logarithmic => {
                let smallest = if smallest.is_finite() { smallest } else { largest / 10.0 };
                let low = (smallest * 0.8).log10().floor();
                let high = (largest * 1.1).log10().ceil().max(low + 1.0);
                let ticks = (0..=(high - low) as i32).map(|at| 10_f64.powf(low + f64::from(at)));
                Self { scale, bottom: low, top: high, ticks: ticks.collect() }
            }
        }
    }

    fn floor(&self) -> f64 {
        TOP + PLOT
    }

    fn y(&self, value: f64) -> f64 {
        let value = match self.scale {
            Scale::Linear => value,
            Scale::Logarithmic => value.max(f64::MIN_POSITIVE).log10(),
        };
        let share = ((value - self.bottom) / (self.top - self.bottom)).clamp(0.0, 1.0);
        TOP + PLOT * (1.0 - share)
    }

    fn draw(&self, out: &mut String, width: f64, unit: &str) {
        for tick in &self.ticks {
            let y = self.y(*tick);
            let _ = writeln!(
                out,
                "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" stroke=\"#dde1e6\"/>",
                width - RIGHT
            );
            text(out, (LEFT - 6.0, y + 4.0), ("end", "fill=\"#555555\""), &short(*tick));
        }
        text(out, (LEFT - 6.0, TOP - 10.0), ("end", "fill=\"#555555\""), unit);
    }
}

/// A round distance between ticks, for about five of them.
fn step(largest: f64) -> f64 {
    let unit = 10_f64.powf((largest / 5.0).log10().floor());
    let few = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().find(|s| largest / (s * unit) <= 5.5);
    few.unwrap_or(10.0) * unit
}

fn short(value: f64) -> String {
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    match value {
        v if v >= 1e6 => format!("{}M", trim(format!("{:.1}", v / 1e6))),
        v if v >= 1e3 => format!("{}k", trim(format!("{:.1}", v / 1e3))),
        v => trim(format!("{v:.2}")),
    }
}

fn whisker(out: &mut String, x: f64, (low, high): (f64, f64)) {
    let _ = writeln!(
        out,
        "<path d=\"M{x:.1} {low:.1}V{high:.1}M{:.1} {high:.1}h6M{:.1} {low:.1}h6\" \
         stroke=\"#222222\" fill=\"none\"/>",
        x - 3.0,
        x - 3.0
    );
}

/// Text at a place, with its anchor and further attributes.
fn text(out: &mut String, (x, y): (f64, f64), (anchor, more): (&str, &str), content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{content}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(scale: Scale) -> Chart {
        let bar = Bar { parts: vec![10.0, 5.0], whisker: Some((12.0, 40.0)) };
        let group = Group { label: "64".into(), note: "0.8 <".into(), bars: vec![bar] };
        let panel = Panel { title: "encrypt".into(), groups: vec![group] };
        let series = vec!["ours"];
        Chart { title: "t".into(), unit: "µs", scale, series, panels: vec![panel] }
    }

    #[test]
    fn bars_stand_on_the_axis() {
        let svg = chart(Scale::Linear).svg();
        // 0..=50 over 220 points: ten of them are 44 points high.
        assert!(
            svg.contains("height=\"44.0\" fill=\"#2864c7\"") || svg.contains("height=\"44.0\"")
        );
        assert!(svg.contains("0.8 &lt;") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(chart(Scale::Logarithmic).svg().contains(">100<"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(step(38_844.0), 10_000.0);
        assert_eq!(step(5.0), 1.0);
        assert_eq!(short(2500.0), "2.5k");
        assert_eq!(short(0.25), "0.25");
        assert_eq!(short(1_000_000.0), "1M");
        assert_eq!(short(100.0), "100");
    }
}
