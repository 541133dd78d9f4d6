//! Time travel in SQL: `orders VERSION AS OF 41`, `orders TIMESTAMP AS OF '2026-01-31 12:00'`.
//!
//! PostgreSQL's grammar has none of it, so it is taken out of the tokens before they are parsed: a name of
//! its own stands for the table at that moment, and the table's name becomes its alias. The syntax is
//! Spark's (`VERSION`, `TIMESTAMP`). Pure. Invariant: tokens outside such a phrase stay as they are, in
//! their places, so that errors point at what was written.

use std::fmt;

use alluvium_change::{Error, Result, code};
use arrow::compute::kernels::cast_utils::string_to_datetime;
use chrono::Utc;
use datafusion::sql::sqlparser::keywords::{Keyword, RESERVED_FOR_TABLE_ALIAS};
use datafusion::sql::sqlparser::tokenizer::{Span, Token, TokenWithSpan, Word};

/// When a table is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    /// Of the Delta table.
    Version(u64),
    /// The newest version that was committed by then, in milliseconds since 1970.
    TimeMs(i64),
}

/// A table at a moment, and the name that stands for both in what is parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableAsOf {
    pub(crate) stands_for_it: String,
    pub(crate) table: String,
    pub(crate) moment: Moment,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(version) => write!(f, "VERSION AS OF {version}"),
            Self::TimeMs(ms) => match chrono::DateTime::from_timestamp_millis(*ms) {
                Some(time) => write!(f, "TIMESTAMP AS OF '{}'", time.format("%F %T%.fZ")),
                None => write!(f, "TIMESTAMP AS OF {ms}"),
            },
        }
    }
}

/// Takes the phrases out of `tokens`, white space included in them.
///
/// # Errors
/// `SQL`: what comes after `AS OF` is no version or time, or no table's name comes before it.
pub(crate) fn take_moments(
    tokens: Vec<TokenWithSpan>,
) -> Result<(Vec<TokenWithSpan>, Vec<TableAsOf>)> {
    let (mut parsed, mut taken) = (Vec::with_capacity(tokens.len()), Vec::new());
    let mut rest = tokens.as_slice();
    while let [token, after @ ..] = rest {
        let Some((moment, behind)) = phrase(rest)? else {
            parsed.push(token.clone());
            rest = after;
            continue;
        };
        rest = behind;
        let table = last_name(&mut parsed, moment, token.span)?;
        let stands_for_it = format!("{} {moment}", table.value);
        let quoted = |value: &str| {
            let word = Word {
                value: value.to_owned(),
                quote_style: Some('"'),
                keyword: Keyword::NoKeyword,
            };
            TokenWithSpan::new(Token::Word(word), token.span)
        };
        parsed.push(quoted(&stands_for_it));
        if !is_alias(rest) {
            parsed.push(TokenWithSpan::new(Token::make_keyword("AS"), token.span));
            parsed.push(quoted(&table.value));
        }
        taken.push(TableAsOf {
            stands_for_it,
            table: table.value,
            moment,
        });
    }
    Ok((parsed, taken))
}

/// The name just before the phrase, as PostgreSQL reads it; taken off. What qualifies it stays.
fn last_name(parsed: &mut Vec<TokenWithSpan>, moment: Moment, at: Span) -> Result<Word> {
    while matches!(parsed.last().map(|t| &t.token), Some(Token::Whitespace(_))) {
        parsed.pop();
    }
    let name = parsed.pop_if(|last| {
        matches!(&last.token, Token::Word(word)
            if word.quote_style.is_some() || !RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword))
    });
    match name.map(|name| name.token) {
        Some(Token::Word(mut word)) => {
            if word.quote_style.is_none() {
                word.value = word.value.to_lowercase();
            }
            Ok(word)
        }
        _ => Err(Error::new(&code::SQL, format!("{moment} comes after no table"))
            .with_detail(format!("line {}, column {}", at.start.line, at.start.column))
            .with_hint("write it right after the table's name, before its alias: SELECT * FROM orders VERSION AS OF 41 AS o")),
    }
}

/// The moment of the phrase that `tokens` begin with, and what comes after it.
fn phrase(tokens: &[TokenWithSpan]) -> Result<Option<(Moment, &[TokenWithSpan])>> {
    let (kind, rest) = match keywords(tokens, &["VERSION", "AS", "OF"]) {
        Some(rest) => ("VERSION AS OF", rest),
        None => match keywords(tokens, &["TIMESTAMP", "AS", "OF"]) {
            Some(rest) => ("TIMESTAMP AS OF", rest),
            None => return Ok(None),
        },
    };
    let (value, behind) = significant(rest);
    if ends_clause(value) {
        return Ok(None);
    }
    let wrong = |found: &str, hint: &'static str| {
        Error::new(
            &code::SQL,
            format!("{kind} is not followed by what it needs"),
        )
        .with_detail(format!("found {found}"))
        .with_hint(hint)
    };
    let text = match value.map(|value| &value.token) {
        Some(Token::Number(text, _) | Token::SingleQuotedString(text)) => text.as_str(),
        Some(other) => return Err(wrong(&format!("\"{other}\""), HINT)),
        None => return Ok(None),
    };
    let moment = match kind {
        "VERSION AS OF" => text.parse().ok().map(Moment::Version),
        _ => string_to_datetime(&Utc, text)
            .ok()
            .map(|time| Moment::TimeMs(time.timestamp_millis())),
    };
    let moment = moment.ok_or_else(|| wrong(&format!("\"{text}\""), HINT))?;
    Ok(Some((moment, behind)))
}

const HINT: &str =
    "write VERSION AS OF 41, or TIMESTAMP AS OF '2026-01-31 12:00:00+01:00' (UTC without a zone)";

/// `SELECT version AS of FROM …` is no phrase, but an alias.
fn ends_clause(token: Option<&TokenWithSpan>) -> bool {
    match token.map(|token| &token.token) {
        None | Some(Token::EOF | Token::Comma | Token::RParen | Token::SemiColon) => true,
        Some(Token::Word(word)) => {
            word.quote_style.is_none() && RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword)
        }
        Some(_) => false,
    }
}

/// What comes after these words, if `tokens` begin with them.
fn keywords<'a>(tokens: &'a [TokenWithSpan], words: &[&str]) -> Option<&'a [TokenWithSpan]> {
    let mut rest = tokens;
    for (nth, expected) in words.iter().enumerate() {
        let (found, behind) = match nth {
            0 => rest
                .split_first()
                .map(|(first, rest)| (Some(first), rest))?,
            _ => significant(rest),
        };
        match found.map(|found| &found.token) {
            Some(Token::Word(word))
                if word.quote_style.is_none() && word.value.eq_ignore_ascii_case(expected) =>
            {
                rest = behind;
            }
            _ => return None,
        }
    }
    Some(rest)
}

/// The next token that is no white space, and what comes after it.
fn significant(tokens: &[TokenWithSpan]) -> (Option<&TokenWithSpan>, &[TokenWithSpan]) {
    let mut rest = tokens;
    while let [token, after @ ..] = rest {
        rest = after;
        if !matches!(token.token, Token::Whitespace(_)) {
            return (Some(token), rest);
        }
    }
    (None, rest)
}

/// Whether an alias comes next.
fn is_alias(tokens: &[TokenWithSpan]) -> bool {
    match significant(tokens).0.map(|token| &token.token) {
        Some(Token::Word(word)) => {
            word.keyword == Keyword::AS
                || word.quote_style.is_some()
                || !RESERVED_FOR_TABLE_ALIAS.contains(&word.keyword)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;

    use super::*;

    fn take(sql: &str) -> Result<(String, Vec<(String, Moment)>)> {
        let dialect = PostgreSqlDialect {};
        let tokens = Tokenizer::new(&dialect, sql).tokenize_with_location();
        let (parsed, taken) = take_moments(tokens.unwrap())?;
        let words = parsed.iter().map(|token| token.token.to_string());
        let words: Vec<String> = words.filter(|word| !word.trim().is_empty()).collect();
        let text = words.join(" ");
        let taken = taken.into_iter().map(|taken| (taken.table, taken.moment));
        Ok((text, taken.collect()))
    }

    #[test]
    fn phrases_become_names() {
        let noon = Moment::TimeMs(1_769_857_200_000);
        for (sql, parsed, table, moment) in [
            (
                "select * from orders version as of 41",
                "select * from \"orders VERSION AS OF 41\" AS \"orders\"",
                "orders",
                Moment::Version(41),
            ),
            (
                "SELECT o.id FROM silver.Orders VERSION AS OF '41' o WHERE 1 = 1",
                "SELECT o . id FROM silver . \"orders VERSION AS OF 41\" o WHERE 1 = 1",
                "orders",
                Moment::Version(41),
            ),
            (
                "select 1 from \"Or d\" version as of 9 where true",
                "select 1 from \"Or d VERSION AS OF 9\" AS \"Or d\" where true",
                "Or d",
                Moment::Version(9),
            ),
            (
                "select 1 from t TIMESTAMP AS OF '2026-01-31 12:00:00+01:00' AS x",
                "select 1 from \"t TIMESTAMP AS OF '2026-01-31 11:00:00Z'\" AS x",
                "t",
                noon,
            ),
            (
                "(select 1 from t VERSION AS OF 3)",
                "( select 1 from \"t VERSION AS OF 3\" AS \"t\" )",
                "t",
                Moment::Version(3),
            ),
        ] {
            let (text, taken) = take(sql).unwrap();
            assert_eq!(text, parsed, "{sql}");
            assert_eq!(taken, [(table.to_owned(), moment)], "{sql}");
        }
        let (_, two) =
            take("select 1 from a version as of 1 x join b version as of 2 on true").unwrap();
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn what_is_no_phrase_stays() {
        for sql in [
            "select version as of from t",
            "select timestamp '2026-01-01' as of",
            "select 'orders VERSION AS OF 41'",
            "select version from \"VERSION\" as of",
        ] {
            assert_eq!(
                take(sql).map(|(_, taken)| taken.len()).unwrap_or(1),
                0,
                "{sql}"
            );
        }
    }

    #[test]
    fn mistakes_are_told() {
        for sql in [
            "select * from t version as of now()",
            "select * from t version as of -1",
            "select * from t version as of 1.5",
            "select * from t timestamp as of 'yesterday'",
            "select * from version as of 3",
            "select * from (select 1) version as of 3",
        ] {
            let error = take(sql).unwrap_err();
            assert!(
                error.is(&code::SQL) && error.hint().contains("VERSION AS OF 41"),
                "{sql}: {error}"
            );
        }
    }
}
