//! Text tables with aligned columns, and ages as kubectl writes them. `podid status` and `podid sim` print them.

use std::fmt::Write as _;

/// Rows under a head, each column as wide as its longest cell; the last one is not padded.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this head.
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(ToString::to_string).collect()],
        }
    }

    /// Adds a row. What is empty is shown as a dash, what is of several lines as one.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let tidy = |cell: String| match cell.trim() {
            "" => "-".to_owned(),
            text => text.split_whitespace().collect::<Vec<_>>().join(" "),
        };
        self.rows.push(cells.into_iter().map(tidy).collect());
    }

    /// Whether it has only its head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).filter_map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                write!(line, "{cell:<width$}   ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// So many seconds, in at most two units.
pub fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let two = |big: i64, unit: &str, small: i64, rest: &str| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{rest}"),
    };
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => two(seconds / 60, "m", seconds % 60, "s"),
        7200..=172_799 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["NAME", "WHY"]);
        assert!(table.is_empty());
        table.row(["a-long-name".to_owned(), "one\n two".to_owned()]);
        table.row(["é".to_owned(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME          WHY\na-long-name   one two\né             -\n"
        );
    }

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let ages = [0, 119, 120, 3600, 7260, 200_000].map(age);
        assert_eq!(ages, ["0s", "119s", "2m", "60m", "2h1m", "2d"]);
    }
}
