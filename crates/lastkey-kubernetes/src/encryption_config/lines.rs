//! A configuration as lines that can be moved: one item of a block list is the lines from its dash
//! to where the indentation ends, with the comments above it.

use std::ops::Range;

use zeroize::Zeroizing;

use super::{
    EncryptionConfiguration, Rule,
    edit::{Draft, DraftRule, Item, new_lines},
};

/// A file, taken apart.
pub(super) struct Lines<'t> {
    /// With their ends.
    lines: Vec<&'t str>,
    rules: Vec<RuleLines>,
}

/// Where a rule stands.
struct RuleLines {
    /// All of it, with the comments above.
    all: Range<usize>,
    /// Its column.
    dash: usize,
    /// Each provider, with the comments above it; one follows the other.
    providers: Vec<Range<usize>>,
    /// The column of their dashes.
    provider_dash: usize,
    /// The line of each resource.
    resources: Vec<usize>,
}

impl<'t> Lines<'t> {
    /// Takes a file apart; `None` where it is not written in block style throughout.
    pub(super) fn of(text: &'t str, config: &EncryptionConfiguration) -> Option<Self> {
        if text.trim_start().starts_with('{') || config.rules.is_empty() {
            return None;
        }
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let starts = config.rules.iter().map(|rule| rule.line?.checked_sub(1));
        let starts: Vec<usize> = starts.collect::<Option<_>>()?;
        let items = items(&lines, &starts)?;
        let dash = indent(lines.get(*starts.first()?)?);
        let rules =
            config.rules.iter().zip(items).map(|(rule, all)| rule_lines(&lines, rule, (all, dash)));
        let rules = rules.collect::<Option<_>>()?;
        Some(Self { lines, rules })
    }

    /// The file as the draft has it; `None` where that cannot be done by moving lines.
    pub(super) fn edit(&self, draft: &Draft, fresh: &str) -> Option<Zeroizing<String>> {
        let size: usize = self.lines.iter().map(|line| line.len()).sum();
        let mut out = Zeroizing::new(String::with_capacity(8 * size + 64 * 1024));
        let first = self.rules.first()?;
        self.copy(0..first.all.start, &mut out);
        for rule in &draft.rules {
            match rule.from {
                Some(from) => self.changed(rule, from, (fresh, &mut out))?,
                None => self.new_rule(rule, first.dash, (fresh, &mut out))?,
            }
        }
        let end = self.rules.last()?.all.end;
        self.copy(end..self.lines.len(), &mut out);
        Some(out)
    }

    fn copy(&self, range: Range<usize>, out: &mut Zeroizing<String>) {
        for line in &self.lines[range] {
            out.push_str(line);
            // the last line may lack its end, and not stay the last one
            if !line.ends_with('\n') {
                out.push('\n');
            }
        }
    }

    fn changed(
        &self,
        rule: &DraftRule,
        from: usize,
        (fresh, out): (&str, &mut Zeroizing<String>),
    ) -> Option<()> {
        let own = self.rules.get(from)?;
        let (first, last) = (own.providers.first()?, own.providers.last()?);
        self.copy_resources(own, rule, (own.all.start..first.start, out))?;
        for item in &rule.providers {
            self.item(item, own.provider_dash, (fresh, out))?;
        }
        self.copy_resources(own, rule, (last.end..own.all.end, out))
    }

    /// Copies lines, without those of resources that the rule is not for any more.
    fn copy_resources(
        &self,
        own: &RuleLines,
        rule: &DraftRule,
        (range, out): (Range<usize>, &mut Zeroizing<String>),
    ) -> Option<()> {
        for number in range {
            let line = self.lines.get(number)?;
            if !own.resources.contains(&number) {
                self.copy(number..number + 1, out);
                continue;
            }
            let trimmed = line.trim_start();
            if let Some((before, after)) = line.split_once('[') {
                let (_, after) = after.split_once(']')?;
                let names: Vec<String> = rule
                    .resources
                    .iter()
                    .map(|n| serde_json::Value::from(n.as_str()).to_string())
                    .collect();
                let plain = after.trim_start().is_empty() || after.trim_start().starts_with('#');
                let whole = plain && !before.contains('#');
                out.push_str(&format!("{before}[{}]{after}", whole.then(|| names.join(", "))?));
                continue;
            }
            let named = trimmed.strip_prefix("- ")?.split('#').next()?.trim();
            let named = named.trim_matches(['"', '\'']);
            if rule.resources.iter().any(|name| name == named) {
                self.copy(number..number + 1, out);
            }
        }
        Some(())
    }

    fn new_rule(
        &self,
        rule: &DraftRule,
        dash: usize,
        (fresh, out): (&str, &mut Zeroizing<String>),
    ) -> Option<()> {
        let pad = " ".repeat(dash);
        out.push_str(&format!("{pad}- resources:\n"));
        for name in &rule.resources {
            let name = serde_json::Value::from(name.as_str());
            out.push_str(&format!("{pad}  - {name}\n"));
        }
        out.push_str(&format!("{pad}  providers:\n"));
        for item in &rule.providers {
            self.item(item, dash + 2, (fresh, out))?;
        }
        Some(())
    }

    /// A provider, moved to column `dash`.
    fn item(
        &self,
        item: &Item,
        dash: usize,
        (fresh, out): (&str, &mut Zeroizing<String>),
    ) -> Option<()> {
        let pad = " ".repeat(dash);
        let Item::Kept { rule, provider } = item else {
            for (number, line) in new_lines(item, fresh).lines().enumerate() {
                out.push_str(&pad);
                out.push_str(if number == 0 { "- " } else { "" });
                out.push_str(line);
                out.push('\n');
            }
            return Some(());
        };
        let rule = self.rules.get(*rule)?;
        let range = rule.providers.get(*provider)?.clone();
        if rule.provider_dash == dash {
            self.copy(range, out);
            return Some(());
        }
        for line in &self.lines[range] {
            let body = line.trim_start_matches(' ').trim_end_matches(['\r', '\n']);
            let deeper = indent(line).saturating_sub(rule.provider_dash);
            if !body.is_empty() {
                out.push_str(&pad);
                out.push_str(&" ".repeat(deeper));
                out.push_str(body);
            }
            out.push('\n');
        }
        Some(())
    }
}

fn rule_lines(
    lines: &[&str],
    rule: &Rule,
    (all, dash): (Range<usize>, usize),
) -> Option<RuleLines> {
    let starts = rule.providers.iter().map(|provider| provider.line?.checked_sub(1));
    let starts: Vec<usize> = starts.collect::<Option<_>>()?;
    let provider_dash = indent(lines.get(*starts.first()?)?);
    let providers = items(lines, &starts)?;
    let inside = providers.iter().all(|range| all.start < range.start && range.end <= all.end);
    let resources = rule.resources.iter().map(|named| named.line?.checked_sub(1));
    let resources: Vec<usize> = resources.collect::<Option<_>>()?;
    // a resource on a line of providers would be a file on one line
    let apart = resources.iter().all(|line| !providers.iter().any(|range| range.contains(line)));
    (inside && apart).then_some(RuleLines { all, dash, providers, provider_dash, resources })
}

/// The lines of each item of a block list, which starts on these lines; one follows the other.
fn items(lines: &[&str], starts: &[usize]) -> Option<Vec<Range<usize>>> {
    let dash = indent(lines.get(*starts.first()?)?);
    let mut found: Vec<Range<usize>> = Vec::with_capacity(starts.len());
    for start in starts {
        let line = lines.get(*start)?;
        if indent(line) != dash || !line.trim_start().starts_with("- ") {
            return None;
        }
        let floor = found.last().map_or(0, |before| before.end);
        let lead = (floor..*start).rev().take_while(|number| is_empty(lines[*number])).last();
        let begin = lead.unwrap_or(*start);
        // what lies between two items belongs to the latter
        if found.last().is_some_and(|before| before.end != begin) {
            return None;
        }
        let deeper = |number: &usize| is_empty(lines[*number]) || indent(lines[*number]) > dash;
        let body = (start + 1..lines.len()).take_while(deeper);
        let end = body.filter(|number| !is_empty(lines[*number])).last().unwrap_or(*start) + 1;
        found.push(begin..end);
    }
    Some(found)
}

/// Nothing but white space or a comment.
fn is_empty(line: &str) -> bool {
    let text = line.trim();
    text.is_empty() || text.starts_with('#')
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}
