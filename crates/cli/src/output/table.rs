//! Tables in Ceph's layout: columns as wide as their widest cell, two blanks between columns, and
//! every cell padded, also the last one.

use marcot::printable::printable;

/// The alignment of a cell's text in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// At the left edge.
    Left,
    /// At the right edge.
    Right,
}

/// Blanks between two columns.
const GAP: &str = "  ";

struct Column {
    header: &'static str,
    header_align: Align,
    cell_align: Align,
}

/// A table with a header line.
#[derive(Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    /// Widths count characters. Otherwise they count bytes, as Ceph's do.
    by_characters: bool,
    /// The header is there without rows, too.
    header_always: bool,
}

impl Table {
    /// A table without columns.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, aligned where cells have characters beyond ASCII too.
    #[must_use]
    pub fn by_characters(self) -> Self {
        Self { by_characters: true, ..self }
    }

    /// The same, whose header is there without rows, too.
    #[must_use]
    pub fn header_always(self) -> Self {
        Self { header_always: true, ..self }
    }

    /// Adds a column whose header is left-aligned.
    #[must_use]
    pub fn column(self, header: &'static str, cell_align: Align) -> Self {
        self.column_aligned(header, Align::Left, cell_align)
    }

    /// Adds a column.
    #[must_use]
    pub fn column_aligned(
        mut self,
        header: &'static str,
        header_align: Align,
        cell_align: Align,
    ) -> Self {
        self.columns.push(Column { header, header_align, cell_align });
        self
    }

    /// Adds a row with one cell for each column. Line breaks in cells are escaped.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells.iter().map(|cell| printable(cell).into_owned()).collect());
    }

    /// The text; empty when there are no rows, except with [`Self::header_always`].
    pub fn render(&self) -> String {
        if self.rows.is_empty() && !self.header_always {
            return String::new();
        }
        let widths = self.widths();
        let mut text = String::new();
        for (i, column) in self.columns.iter().enumerate() {
            self.push_cell(&mut text, (i, column.header), widths[i], column.header_align);
        }
        text.push('\n');
        for row in &self.rows {
            for (i, cell) in row.iter().enumerate() {
                self.push_cell(&mut text, (i, cell), widths[i], self.columns[i].cell_align);
            }
            text.push('\n');
        }
        text
    }

    fn width(&self, cell: &str) -> usize {
        if self.by_characters { cell.chars().count() } else { cell.len() }
    }

    fn widths(&self) -> Vec<usize> {
        let width_of_column = |(i, column): (usize, &Column)| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| self.width(cell));
            cells.max().unwrap_or(0).max(column.header.len())
        };
        self.columns.iter().enumerate().map(width_of_column).collect()
    }

    fn push_cell(
        &self,
        text: &mut String,
        (index, cell): (usize, &str),
        width: usize,
        align: Align,
    ) {
        let blanks = " ".repeat(width.saturating_sub(self.width(cell)));
        if index > 0 {
            text.push_str(GAP);
        }
        match align {
            Align::Left => {
                text.push_str(cell);
                text.push_str(&blanks);
            }
            Align::Right => {
                text.push_str(&blanks);
                text.push_str(cell);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snap_ls_is_laid_out_as_rbd_does() {
        let mut table = Table::new()
            .column("SNAPID", Align::Right)
            .column("NAME", Align::Left)
            .column("SIZE", Align::Right)
            .column("PROTECTED", Align::Left);
        for (id, name, protected) in [("8", "s1", "yes"), ("9", "s2", "")] {
            table.row(vec![id.into(), name.into(), "10 GiB".into(), protected.into()]);
        }
        assert_eq!(
            table.render(),
            "SNAPID  NAME  SIZE    PROTECTED\n     8  s1    10 GiB  yes      \n     9  s2    10 GiB           \n"
        );
    }

    #[test]
    fn a_cell_cannot_leave_its_row() {
        let mut table = Table::new().column("NAME", Align::Left).column("SIZE", Align::Right);
        table.row(vec!["a\nb\u{1b}[2J".into(), "1".into()]);
        table.row(vec!["c".into(), "2".into()]);
        assert_eq!(
            table.render(),
            "NAME           SIZE\na\\nb\\u{1b}[2J     1\nc                 2\n"
        );
    }

    #[test]
    fn cells_beyond_ascii_are_as_wide_as_they_look() {
        let mut table = Table::new().by_characters().column("NAME", Align::Left);
        table.row(vec!["└─ a".into()]);
        table.row(vec!["b".into()]);
        assert_eq!(table.render(), "NAME\n└─ a\nb   \n");
    }

    #[test]
    fn a_table_without_rows_prints_nothing() {
        assert_eq!(Table::new().column("NAME", Align::Left).render(), "");
    }
}
