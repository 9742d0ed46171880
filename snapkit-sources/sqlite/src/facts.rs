//! What can be said of a database: the same, by the same code, for what was captured and for what is
//! found in a target.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::types::ValueRef;
use snapkit_core::facts::{Fact, FactValue, Facts, Standing};
use snapkit_core::tree::escape;
use snapkit_core::{Error, Result};

use crate::client::{Client, Job};
use crate::pin::Pin;

/// How many tables have their rows counted.
const COUNTED_TABLES: usize = 256;

/// How long counting rows may take when a database is captured.
pub(crate) const COUNTING: Duration = Duration::from_secs(5);

/// The longest name of a table that is shown whole, in bytes.
const SHOWN_NAME: usize = 200;

/// Facts of a pinned database, and the damage that was met. Rows are counted within `budget`, or as long as
/// it takes.
pub(crate) fn gather(
    pin: &Arc<Pin>,
    job: &Job,
    standing: Standing,
    budget: Option<Duration>,
) -> Result<(Facts, Option<Error>)> {
    let mut facts = Facts::new();
    let mut put = |name: &str, value: FactValue| {
        facts.0.insert(name.to_owned(), Fact { standing, value });
    };
    let about = pin.about();
    put("page_size", about.page_size.into());
    put("page_count", about.page_count.into());
    put("user_version", about.user_version.into());
    put("application_id", about.application_id.into());
    let tables = pin.ask(job, |client| {
        put("schema", schema(client)?.into());
        tables(client)
    })?;
    put("tables", (tables.len() as u64).into());
    match pin.pages() {
        Some(digest) => put("pages", digest.into()),
        None => facts.unknown("pages", "the content was not read to its end"),
    }
    let damage = pin.ask(job, |client| {
        client.limit(budget);
        let counted = count_rows(client, job, &tables, standing, &mut facts);
        client.limit(None);
        counted
    })?;
    Ok((facts, damage))
}

/// Digest of the schema: every table, index, view and trigger with the text that made it, sorted.
fn schema(client: &Client) -> Result<String> {
    const SQL: &str = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY 1, 2, 3, 4";
    let mut hasher = blake3::Hasher::new_derive_key("snapkit 1-draft sqlite schema");
    let mut digest = || {
        let mut query = client.connection().prepare(SQL)?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..4 {
                let bytes = match row.get_ref(column)? {
                    ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(bytes),
                    _ => None,
                };
                hasher.update(&bytes.map_or(u64::MAX, |b| b.len() as u64).to_le_bytes());
                hasher.update(bytes.unwrap_or_default());
            }
        }
        Ok(())
    };
    digest().map_err(|e| client.fail(e, "cannot read the schema"))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The names of all tables that have rows of their own, sorted.
pub(crate) fn tables(client: &Client) -> Result<Vec<Vec<u8>>> {
    // Virtual tables have no root page; counting them would run whatever implements them.
    const SQL: &str = "SELECT CAST(name AS BLOB) FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 ORDER BY 1";
    let list = || {
        let mut query = client.connection().prepare(SQL)?;
        let names: rusqlite::Result<Vec<_>> = query.query_map([], |row| row.get(0))?.collect();
        names
    };
    list().map_err(|e| client.fail(e, "cannot read the schema"))
}

/// A fact `rows.TABLE` for each table, and the first damage that was met.
fn count_rows(
    client: &Client,
    job: &Job,
    tables: &[Vec<u8>],
    standing: Standing,
    facts: &mut Facts,
) -> Result<Option<Error>> {
    let mut damage = None;
    for (i, table) in tables.iter().enumerate() {
        job.check()?;
        let fact = fact_name(table);
        if i >= COUNTED_TABLES {
            facts.unknown(fact, format!("only {COUNTED_TABLES} tables are counted"));
            continue;
        }
        if client.is_over_limit() {
            facts.unknown(fact, "counting took too long");
            continue;
        }
        match count(client, table) {
            Ok(rows) => {
                facts.0.insert(fact, Fact { standing, value: rows.into() });
            }
            Err(_) if client.is_over_limit() => facts.unknown(fact, "counting took too long"),
            Err(e) => {
                job.check()?;
                facts.unknown(fact, format!("rows cannot be counted: {e}"));
                if crate::error::code(&e) == Some(rusqlite::ErrorCode::DatabaseCorrupt) {
                    damage = damage.or(Some(client.fail(e, "cannot count rows")));
                }
            }
        }
    }
    Ok(damage)
}

fn count(client: &Client, table: &[u8]) -> rusqlite::Result<i64> {
    let name = std::str::from_utf8(table).map_err(|e| rusqlite::Error::Utf8Error(0, e))?;
    let sql = format!("SELECT count(*) FROM main.\"{}\"", name.replace('"', "\"\""));
    client.connection().query_row(&sql, [], |row| row.get(0))
}

/// `rows.` and the table's name; what is not printable is escaped, and what is very long is cut and
/// told apart by a digest.
fn fact_name(table: &[u8]) -> String {
    if table.len() <= SHOWN_NAME {
        return format!("rows.{}", escape(table));
    }
    let digest = blake3::hash(table).to_hex();
    format!("rows.{}…{}", escape(&table[..SHOWN_NAME / 2]), &digest[..16])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_facts_are_printable_and_short() {
        assert_eq!(fact_name(b"users"), "rows.users");
        assert_eq!(fact_name("Äpfel \"x\"\n".as_bytes()), "rows.Äpfel \"x\"\\x0a");
        let (a, b) = (fact_name(&[b'a'; 9000]), fact_name(&[b'a'; 9001]));
        assert!(a.len() < 200 && a != b);
        assert!(fact_name(&[0xff; 201]).is_ascii() || fact_name(&[0xff; 201]).len() < 500);
    }
}
