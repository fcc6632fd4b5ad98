//! Plain tables: aligned columns, two spaces apart, no lines.

/// Rows of text under headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// Longest cell in the last column, in characters; the rest is replaced by `...`. What is to be copied (ids,
/// names) stands in other columns and is never cut.
const MAX_CELL_CHARS: usize = 80;

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let mut cells = cells.map(|c| clean(&c)).to_vec();
        if let Some(last) = cells.last_mut() {
            *last = one_line(last);
        }
        self.rows.push(cells);
    }

    /// A row of which nothing is cut.
    pub(crate) fn whole_row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|c| clean(&c)).to_vec());
    }

    pub(crate) fn render(&self) -> String {
        self.render_part(&mut Vec::new(), 0)
    }

    /// The rows from `skip` on, in columns at least as wide as `widths`, which grow with the rows: a table
    /// that is written part by part has its headings in the first one.
    pub(crate) fn render_part(&self, widths: &mut Vec<usize>, skip: usize) -> String {
        widths.resize(self.rows.first().map_or(0, Vec::len), 0);
        for row in self.rows.iter().skip(skip) {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in self.rows.iter().skip(skip) {
            let line: String = row.iter().zip(widths.iter()).map(|(c, &w)| format!("{c:<w$}  ")).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text from storage never breaks its row and never controls the terminal.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Text cut to a length that fits on a line.
pub(crate) fn one_line(text: &str) -> String {
    if text.chars().count() <= MAX_CELL_CHARS {
        return clean(text);
    }
    let kept: String = text.chars().take(MAX_CELL_CHARS - 3).collect();
    clean(&kept) + "..."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_stay_on_one_line() {
        let mut table = Table::new(["NAME", "VALUE"]);
        table.row(["é".into(), "a\nb\u{1b}[2J".into()]);
        table.row(["long name".into(), "x".repeat(100)]);
        let expected = format!("NAME       VALUE\né          a b [2J\nlong name  {}...\n", "x".repeat(77));
        assert_eq!(table.render(), expected);
        let mut widths = vec![12];
        assert_eq!(table.render_part(&mut widths, 2), format!("long name     {}...\n", "x".repeat(77)));
        assert_eq!(widths, [12, 80]);
        table.whole_row(["whole".into(), "y".repeat(100)]);
        assert!(table.render().ends_with(&format!("whole      {}\n", "y".repeat(100))));
    }
}
