//! Tables: one content, for a terminal and for a page.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

/// A table whose first column is text and whose others are numbers.
pub(super) struct Grid {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Grid {
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// For a terminal.
    pub(super) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(&self.head);
        for row in &self.rows {
            table.add_row(row);
        }
        for (at, column) in table.column_iter_mut().enumerate() {
            if at != 0 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table.to_string()
    }

    /// For a page.
    pub(super) fn markdown(&self) -> String {
        let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
        let mut text = line(self.head.clone());
        let rule: String =
            (0..self.head.len()).map(|at| if at == 0 { "|---" } else { "|---:" }).collect();
        text.push_str(&rule);
        text.push_str("|\n");
        for row in &self.rows {
            text.push_str(&line(row.iter().map(String::as_str).collect()));
        }
        text
    }
}

/// A number with as many digits as it deserves: three that count, at least.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_it() {
        let mut grid = Grid::new(&["", "a/s", "b"]);
        assert!(grid.is_empty());
        grid.row(vec!["encrypt".into(), number(1234.5), number(0.777)]);
        assert_eq!(grid.markdown(), "|  | a/s | b |\n|---|---:|---:|\n| encrypt | 1234 | 0.78 |\n");
        assert!(grid.text().contains("encrypt"));
    }
}
