//! Plain tables: aligned columns, two spaces apart, no lines.

/// Rows of text under headings.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

/// Longest cell, in characters; the rest is replaced by `...`.
const MAX_CELL_CHARS: usize = 60;

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        Self { rows: vec![headings.map(str::to_owned).to_vec()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|c| one_line(&c)).to_vec());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> =
            (0..columns).map(|i| self.rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let line: String = row.iter().zip(&widths).map(|(c, &w)| format!("{c:<w$}  ")).collect();
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A cell never breaks its row, and text from storage never controls the terminal.
pub(crate) fn one_line(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    if text.chars().count() <= MAX_CELL_CHARS {
        return text.chars().map(clean).collect();
    }
    text.chars().take(MAX_CELL_CHARS - 3).map(clean).chain("...".chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_cells_stay_on_one_line() {
        let mut table = Table::new(["NAME", "VALUE"]);
        table.row(["é".into(), "a\nb\u{1b}[2J".into()]);
        table.row(["long name".into(), "x".repeat(100)]);
        let expected = format!("NAME       VALUE\né          a b [2J\nlong name  {}...\n", "x".repeat(57));
        assert_eq!(table.render(), expected);
    }
}
