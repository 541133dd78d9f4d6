//! Which tables and columns are wanted, as the project file says.

use std::collections::BTreeMap;

use alluvium_change::TableId;

use crate::type_map::OnInvalid;

/// What the project file says of one column.
pub type ColumnChoice = (OnInvalid, Option<String>);

/// What the project file says of one table.
#[derive(Debug, Clone, Default)]
pub struct TableOverride {
    /// The columns that identify a row; empty: the source's own key.
    pub key: Vec<String>,
    /// Only inserts and truncates are followed.
    pub append_only: bool,
    /// Only these columns; empty: all.
    pub columns: Vec<String>,
    pub exclude_columns: Vec<String>,
    /// What happens to values Delta cannot hold, in columns that do not say otherwise.
    pub on_invalid: OnInvalid,
    /// By column: what happens to values Delta cannot hold, and the type to store.
    pub column_options: BTreeMap<String, ColumnChoice>,
}

/// The tables of a source, by pattern, and what is said of single ones.
///
/// A pattern is `schema.table` or `table` (in schema `public`), with `*` for any text and `?` for
/// any character; a backslash makes the next character ordinary. Letter case counts.
#[derive(Debug, Clone, Default)]
pub struct TableSelection {
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    /// By `schema.table`, or `table` in schema `public`.
    pub overrides: BTreeMap<String, TableOverride>,
}

impl TableSelection {
    /// Whether `table` is wanted.
    #[must_use]
    pub fn wants(&self, table: &TableId) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, table));
        any(&self.include) && !any(&self.exclude)
    }

    /// What is said of `table` alone.
    #[must_use]
    pub fn of(&self, table: &TableId) -> Option<&TableOverride> {
        self.overrides.get(&table.to_string()).or_else(|| {
            (table.schema == "public")
                .then(|| self.overrides.get(&table.name))
                .flatten()
        })
    }
}

fn fits(pattern: &str, table: &TableId) -> bool {
    let full_name: Vec<char> = table.to_string().chars().collect();
    let has_schema = parse(pattern).contains(&Piece::Exactly('.'));
    if has_schema {
        glob(&parse(pattern), &full_name)
    } else {
        let name: Vec<char> = table.name.chars().collect();
        table.schema == "public" && glob(&parse(pattern), &name)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    Exactly(char),
    AnyChar,
    AnyText,
}

fn parse(pattern: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        pieces.push(match c {
            '*' => Piece::AnyText,
            '?' => Piece::AnyChar,
            '\\' => Piece::Exactly(chars.next().unwrap_or('\\')),
            other => Piece::Exactly(other),
        });
    }
    pieces
}

/// Linear but for the last `*`, to which it goes back.
fn glob(pattern: &[Piece], text: &[char]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while let Some(&c) = text.get(from) {
        match pattern.get(at) {
            Some(Piece::AnyText) => {
                last_star = Some((at, from));
                at += 1;
                continue;
            }
            Some(Piece::AnyChar) => {}
            Some(&Piece::Exactly(wanted)) if wanted == c => {}
            _ => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    (at, from) = (star + 1, taken + 1);
                    continue;
                }
                None => return false,
            },
        }
        (at, from) = (at + 1, from + 1);
    }
    pattern
        .iter()
        .skip(at)
        .all(|&piece| piece == Piece::AnyText)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits_name(pattern: &str, schema: &str, name: &str) -> bool {
        fits(pattern, &TableId::new(schema, name))
    }

    #[test]
    fn patterns() {
        assert!(fits_name("public.*", "public", "orders"));
        assert!(fits_name("*.*", "sales", "orders"));
        assert!(fits_name("orders", "public", "orders"));
        assert!(!fits_name("orders", "sales", "orders"));
        assert!(!fits_name("order", "public", "orders"));
        assert!(fits_name("order?", "public", "orders"));
        assert!(fits_name("*.*_a*b", "s", "x_aab_ab"));
        assert!(!fits_name("*.*_a*b", "s", "x_aab_ac"));
        assert!(fits_name("sales.a\\*", "sales", "a*"));
        assert!(!fits_name("sales.a\\*", "sales", "ab"));
        assert!(fits_name("Größe.ß?", "Größe", "ßx"));
        assert!(!fits_name("PUBLIC.*", "public", "orders"));
        assert!(fits_name("public.a.b", "public", "a.b"));
        assert!(fits_name("*", "public", "anything"));
        assert!(!fits_name("", "public", "anything"));
    }

    #[test]
    fn exclude_wins_and_overrides_are_found_by_both_names() {
        let mut selection = TableSelection {
            include: vec!["public.*".into()],
            exclude: vec!["*.secret*".into()],
            ..TableSelection::default()
        };
        selection
            .overrides
            .insert("orders".into(), TableOverride::default());
        assert!(selection.wants(&TableId::new("public", "orders")));
        assert!(!selection.wants(&TableId::new("public", "secrets")));
        assert!(selection.of(&TableId::new("public", "orders")).is_some());
        assert!(selection.of(&TableId::new("other", "orders")).is_none());
    }
}
