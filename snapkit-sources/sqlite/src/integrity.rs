//! Whether a database is sound, by SQLite's own examination.

use snapkit_core::Result;
use snapkit_core::tree::escape;

use crate::client::{Client, Job, is_lacking};
use crate::error::code;
use crate::facts::tables;

/// How many lines of damage are listed.
const LISTED: usize = 100;

/// After how many lines of any kind SQLite stops looking.
const LOOKED_AT: usize = 100_000;

/// What an examination found.
#[derive(Debug, Default)]
pub(crate) struct Examination {
    /// What is damaged, each in a line. Empty if it is sound.
    pub(crate) damage: Vec<String>,
    /// What is odd but no damage: content that breaks the schema's own rules, or what could not be
    /// examined.
    pub(crate) remarks: Vec<String>,
}

/// Examine a database.
pub(crate) fn examine(client: &Client, job: &Job) -> Result<Examination> {
    let mut found = Examination::default();
    // Each row is looked up in each index: 32 MiB hold the pages that lead there. What cannot be set only costs
    // time.
    drop(client.connection().execute_batch("PRAGMA cache_size = -32768"));
    match ask(client, &format!("PRAGMA integrity_check({LOOKED_AT})"), &mut found) {
        Ok(()) => Ok(found),
        // A collation or function that only the program which made the database has.
        Err(e) if is_lacking(&e) => examine_tables(client, job),
        Err(e) => damaged_or(client, e, job, found),
    }
}

/// Examine each table alone, and remark on those that cannot be.
fn examine_tables(client: &Client, job: &Job) -> Result<Examination> {
    let mut found = Examination::default();
    let mut names = vec![b"sqlite_schema".to_vec()];
    names.extend(tables(client)?);
    for name in names {
        job.check()?;
        let shown = escape(&name);
        let quoted = String::from_utf8_lossy(&name).replace('"', "\"\"");
        match ask(client, &format!("PRAGMA integrity_check(\"{quoted}\")"), &mut found) {
            Ok(()) => {}
            Err(e) if is_lacking(&e) => {
                if found.remarks.len() < LISTED {
                    found.remarks.push(format!("table {shown} could not be examined: {e}"));
                }
            }
            Err(e) => return damaged_or(client, e, job, found),
        }
    }
    Ok(found)
}

/// Damage can also end the examination itself.
fn damaged_or(
    client: &Client,
    error: rusqlite::Error,
    job: &Job,
    mut found: Examination,
) -> Result<Examination> {
    job.check()?;
    match code(&error) {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
            found.damage.push(error.to_string());
            Ok(found)
        }
        _ => Err(client.fail(error, "cannot examine the database")),
    }
}

fn ask(client: &Client, sql: &str, found: &mut Examination) -> rusqlite::Result<()> {
    // Rules that content breaks are the application's business, and their functions may be missing.
    client.connection().execute_batch("PRAGMA ignore_check_constraints = ON")?;
    let mut query = client.connection().prepare(sql)?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        // What is wrong with the tree itself comes as one text, below a heading.
        let text = String::from_utf8_lossy(row.get_ref(0)?.as_bytes()?);
        for line in text.lines().filter(|line| *line != "ok" && !line.starts_with("*** in ")) {
            let list = if breaks_a_rule(line) { &mut found.remarks } else { &mut found.damage };
            if list.len() < LISTED {
                list.push(line.to_owned());
            }
        }
        if found.damage.len() >= LISTED {
            break;
        }
    }
    Ok(())
}

/// Content that the schema forbids, which is nevertheless stored properly.
fn breaks_a_rule(line: &str) -> bool {
    ["NULL value in ", "CHECK constraint failed in ", "NUMERIC value in ", "TEXT value in "]
        .iter()
        .any(|start| line.starts_with(start))
        || (line.starts_with("non-") && line.contains(" value in "))
        || line.contains(" stores an imprecise floating-point value for row ")
}

/// Rows whose parent is missing, each table and parent in a line; the first of them.
pub(crate) fn orphans(client: &Client) -> Result<Vec<String>> {
    let list = || {
        let mut query = client.connection().prepare("PRAGMA foreign_key_check")?;
        let mut rows = query.query([])?;
        let mut lines = Vec::new();
        while let Some(row) = rows.next()? {
            let text = |i| row.get_ref(i).map(|v| v.as_str().unwrap_or("?").to_owned());
            let id = row.get::<_, Option<i64>>(1)?.map_or("?".to_owned(), |id| id.to_string());
            lines.push(format!("row {id} of {} has no parent in {}", text(0)?, text(2)?));
            if lines.len() >= LISTED {
                break;
            }
        }
        Ok::<_, rusqlite::Error>(lines)
    };
    match list() {
        Err(e) if is_lacking(&e) => Ok(Vec::new()),
        listed => listed.map_err(|e| client.fail(e, "cannot examine the foreign keys")),
    }
}

/// Examine a complete file of our own: `len` is what the file has. Damage is in the examination, what is no
/// database included.
pub(crate) fn examine_whole(client: &Client, len: u64, job: &Job) -> Result<Examination> {
    let mut found = Examination::default();
    let size = client
        .page_size()
        .and_then(|size| client.page_count().map(|count| u64::from(size) * u64::from(count)));
    match size {
        Ok(size) if size != len => {
            found
                .damage
                .push(format!("the database says that it has {size} bytes, and {len} are there"));
        }
        Ok(0) => found.damage.push("it is empty".to_owned()),
        Ok(_) => found = examine(client, job)?,
        Err(e) => {
            job.check()?;
            found.damage.push(e.message().to_owned());
        }
    }
    Ok(found)
}
