//! The programs of well-known databases, so that nobody has to find out which of their options make a whole dump.

use serde::{Deserialize, Serialize};
use snapkit_core::source::Consistency;
use snapkit_core::{Error, Reason, Result};

use crate::config::CommandConfig;

/// A well-known database.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// One database of PostgreSQL, by `pg_dump` and `pg_restore`.
    Postgresql,
    /// One database of MariaDB, by `mariadb-dump` and `mariadb`.
    Mariadb,
}

/// The longest name of a database: 64 characters in MariaDB, 63 bytes in PostgreSQL.
const MAX_NAME: usize = 64;

/// Of the tables of users: `%s` stands for what is asked of each, and the answers are added up. A row is hashed as the text
/// that it is written as, so that neither its place nor the order of rows counts.
const OF_TABLES: &str = "select coalesce(sum((xpath('/row/x/text()', query_to_xml(format('select %s as x from %%I.%%I t', n.nspname, c.relname), false, true, '')))[1]::text::numeric), 0) from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.relkind = 'r' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'";

/// What decides how values are written, which may be configured otherwise where they are restored.
const SAME_TEXT: &str = "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; set extra_float_digits = 3; set bytea_output = 'hex'";

/// Ends with 1 if there is anything of a user in the database.
const IS_EMPTY: &str = "do $$ begin if exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema' union all select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname !~ '^pg_' and n.nspname <> 'information_schema') then raise 'the database is not empty'; end if; end $$";

impl Preset {
    /// Fill in what was not configured.
    pub(crate) fn apply(self, config: &mut CommandConfig) -> Result<()> {
        let bad = |what: &str| Err(Error::new(Reason::InvalidConfig, what.to_owned()));
        let Some(database) = config.database.clone() else {
            return bad("a `preset` needs the name of its `database`");
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let is_name = (1..=MAX_NAME).contains(&database.len()) && database.chars().all(fits);
        if !is_name || database.starts_with('-') {
            return bad(
                "`database`: only names of letters, digits, `_`, `-` and `.` are known to a `preset`",
            );
        }
        match self {
            Self::Postgresql => postgresql(config, &database),
            Self::Mariadb => mariadb(config, &database),
        }
        Ok(())
    }
}

fn postgresql(config: &mut CommandConfig, database: &str) {
    let psql =
        |sql: &str| words(&["psql", "-X", "-A", "-t", "-q", "-w", "-d", database, "-c", sql]);
    let sum = |each: &str| {
        let of_tables = OF_TABLES.replacen("%s", each, 1).replace("%%", "%");
        psql(&format!("{SAME_TEXT}; {of_tables}"))
    };
    // Not compressed: what has not changed since is known again.
    fill(
        &mut config.capture,
        &["pg_dump", "--format=custom", "--compress=0", "--no-password", "--dbname", database],
    );
    fill(
        &mut config.restore,
        &[
            "pg_restore",
            "--clean",
            "--if-exists",
            "--single-transaction",
            "--exit-on-error",
            "--no-password",
            "--dbname",
            database,
        ],
    );
    fill(&mut config.check, &["pg_restore", "--list"]);
    if config.empty.is_empty() {
        config.empty = psql(IS_EMPTY);
    }
    if config.facts.is_empty() {
        config.facts.insert("rows".to_owned(), sum("count(*)"));
        // Not `t::text`: a column may have that name.
        let hash = "coalesce(sum(hashtextextended((t.*)::text, 0)::numeric), 0)";
        config.facts.insert("content".to_owned(), sum(hash));
        config.proof = vec!["rows".to_owned(), "content".to_owned()];
    }
    config.consistency = Consistency::Point;
}

fn mariadb(config: &mut CommandConfig, database: &str) {
    // In the order of keys and without comments, which have the date, so that the same state gives the same bytes.
    fill(
        &mut config.capture,
        &[
            "mariadb-dump",
            "--single-transaction",
            "--quick",
            "--order-by-primary",
            "--routines",
            "--events",
            "--triggers",
            "--hex-blob",
            "--skip-comments",
            database,
        ],
    );
    if config.restore.is_empty() {
        // The dump names no database. What new tables are like is a property of the one that is there.
        let name = format!("\\`{database}\\`");
        let like = format!(
            "select concat('character set ', default_character_set_name, ' collate ', default_collation_name) from information_schema.schemata where schema_name = '{database}'"
        );
        let script = format!(
            "like=$(mariadb -N -B -e \"{like}\") && mariadb -e \"drop database if exists {name}; create database {name} $like\" && exec mariadb {database}"
        );
        config.restore = words(&["sh", "-c", &script]);
    }
    if config.empty.is_empty() {
        let count = format!(
            "select (select count(*) from information_schema.tables where table_schema = '{database}') + (select count(*) from information_schema.routines where routine_schema = '{database}') + (select count(*) from information_schema.events where event_schema = '{database}')"
        );
        let script =
            format!("found=$(mariadb -N -B -e \"{count}\") || exit 2; test \"$found\" = 0");
        config.empty = words(&["sh", "-c", &script]);
    }
    config.end.get_or_insert_with(|| "SQL_NOTES=@OLD_SQL_NOTES".to_owned());
    config.consistency = Consistency::Point;
    config.repeatable = true;
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn fill(place: &mut Vec<String>, program: &[&str]) {
    if place.is_empty() {
        *place = words(program);
    }
}
