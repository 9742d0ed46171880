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
    use snapkit_core::context::Context;

    use super::*;
    use crate::client::{Access, Client, work};

    /// What cannot be counted is not known, and says why; nothing else is lost by that.
    #[tokio::test]
    async fn rows_that_cannot_be_counted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.db");
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(
            "CREATE TABLE whole (x); INSERT INTO whole VALUES (1); CREATE TABLE torn (x);
             WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 500)
             INSERT INTO torn SELECT randomblob(100) FROM i",
        )
        .unwrap();
        let size: u32 = db.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
        drop(db);
        // A page of the second table becomes one of no kind.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 8], u64::from(6 * size)).unwrap();
        let cx = Context::system();
        let told = async |budget: Option<Duration>| {
            let path = path.clone();
            let gathered = work(&cx, move |job| {
                let live = Client::open(&path, Access::Source, Duration::ZERO, job)?;
                gather(&Arc::new(Pin::take(live, job)?), job, Standing::Pinned, budget)
            });
            let (facts, damage) = gathered.await.unwrap();
            let of = |name: &&String| name.starts_with("rows.") || *name == "pages";
            let facts = facts.0.iter().filter(|(name, _)| of(name));
            let lines =
                facts.map(|(name, fact)| format!("{name}: {:?} {:?}\n", fact.standing, fact.value));
            let damage = damage.map(|e| e.chain().replace(dir.path().to_str().unwrap(), "DIR"));
            lines.collect::<String>() + &format!("{damage:?}\n")
        };
        let all = told(None).await + &told(Some(Duration::ZERO)).await;
        insta::assert_snapshot!(all, @r#"
        pages: Unknown Text("the content was not read to its end")
        rows.torn: Unknown Text("rows cannot be counted: database disk image is malformed")
        rows.whole: Pinned Number(1)
        Some("cannot count rows: the database is damaged (path=DIR/app.db): database disk image is malformed: Error code 11: database disk image is malformed")
        pages: Unknown Text("the content was not read to its end")
        rows.torn: Unknown Text("counting took too long")
        rows.whole: Unknown Text("counting took too long")
        None
        "#);
    }

    #[test]
    fn names_of_facts_are_printable_and_short() {
        assert_eq!(fact_name(b"users"), "rows.users");
        assert_eq!(fact_name("Äpfel \"x\"\n".as_bytes()), "rows.Äpfel \"x\"\\x0a");
        let (a, b) = (fact_name(&[b'a'; 9000]), fact_name(&[b'a'; 9001]));
        assert!(a.len() < 200 && a != b);
        assert!(fact_name(&[0xff; 201]).is_ascii() || fact_name(&[0xff; 201]).len() < 500);
    }
}
