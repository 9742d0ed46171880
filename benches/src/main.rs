//! `corpus`: makes the data that measurements are taken on, the same from the same seed, and serves the store
//! that they are taken with.

use std::error::Error;
#[cfg(feature = "s3")]
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use rusqlite::{Connection, params};
use snapkit_testkit::corpus;
use snapkit_testkit::random::Seeded;
#[cfg(feature = "s3")]
use snapkit_testkit::s3::{BUCKET, S3Server};

/// Make data to measure on.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A tree like a developer's machine: source files, model shards, logs. 2.3 GiB at scale 100.
    Tree {
        /// A directory that exists.
        dir: PathBuf,
        /// Per cent of the full size: 47,000 source files (1.2 GiB), six shards of 128 MiB, four logs
        /// of 75 MiB.
        #[arg(long, default_value_t = 100)]
        scale: u64,
    },
    /// Every odd kind of entry.
    Odd {
        /// A directory that exists.
        dir: PathBuf,
    },
    /// A database in WAL mode. 320 MiB at scale 100.
    Database {
        /// A file that does not exist.
        file: PathBuf,
        /// Per cent of 800,000 rows.
        #[arg(long, default_value_t = 100)]
        scale: u64,
    },
    /// Change rows of such a database, spread at random, and let its write-ahead log be.
    Update {
        /// The database.
        file: PathBuf,
        /// How many rows of a thousand.
        #[arg(long, default_value_t = 1.0)]
        per_mille: f64,
        /// Which rows, and to what.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Serve a bucket over S3 until standard input ends; what a client needs is printed for a shell. Its
    /// objects are kept where temporary files are.
    #[cfg(feature = "s3")]
    S3,
}

fn main() -> Result<(), Box<dyn Error>> {
    match Args::parse().command {
        Command::Tree { dir, scale } => {
            let spec = corpus::Spec {
                seed: 1,
                texts: 470 * scale,
                random: 6,
                random_len: scale * (128 << 20) / 100,
                logs: 4,
                log_len: scale * (75 << 20) / 100,
            };
            corpus::tree(&dir, &spec)?;
        }
        Command::Odd { dir } => drop(corpus::odd(&dir)?),
        Command::Database { file, scale } => database(&file, 8000 * scale)?,
        Command::Update { file, per_mille, seed } => update(&file, per_mille, seed)?,
        #[cfg(feature = "s3")]
        Command::S3 => serve()?,
    }
    Ok(())
}

#[cfg(feature = "s3")]
fn serve() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Runtime::new()?;
    let server = runtime.block_on(S3Server::start())?;
    let mut out = std::io::stdout().lock();
    for (name, value) in server.variables() {
        writeln!(out, "export {name}='{value}'")?;
    }
    writeln!(out, "export BUCKET='{BUCKET}'")?;
    out.flush()?;
    std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink())?;
    Ok(())
}

/// A row's payload: half words, half numbers that nobody can guess, as in real ones.
fn payload(random: &mut Seeded) -> String {
    const WORDS: [&str; 16] = [
        "pending",
        "shipped",
        "customer",
        "address",
        "street",
        "currency",
        "amount",
        "discount",
        "voucher",
        "warehouse",
        "returned",
        "invoice",
        "language",
        "newsletter",
        "platform",
        "mobile",
    ];
    let mut text = String::from("{");
    for i in 0..9 {
        let word = WORDS[random.index(WORDS.len())];
        text.push_str(&format!("\"{word}_{i}\":\"{:016x}\",", random.next_u64()));
    }
    text.push_str(&format!(
        "\"note\":\"{} {}\"}}",
        WORDS[random.index(16)],
        WORDS[random.index(16)]
    ));
    text
}

fn database(file: &Path, rows: u64) -> rusqlite::Result<()> {
    let mut db = Connection::open(file)?;
    db.pragma_update(None, "journal_mode", "wal")?;
    db.pragma_update(None, "synchronous", "off")?;
    db.execute_batch(
        "create table orders (id integer primary key, customer text not null, total integer not null, \
         payload text not null); create index orders_customer on orders (customer);",
    )?;
    let mut random = Seeded::new(7);
    let tx = db.transaction()?;
    {
        let mut insert = tx.prepare("insert into orders values (?1, ?2, ?3, ?4)")?;
        for id in 0..rows {
            let customer = format!("customer-{:08}", random.below(rows / 4 + 1));
            insert.execute(params![
                id.cast_signed(),
                customer,
                random.below(100_000).cast_signed(),
                payload(&mut random)
            ])?;
        }
    }
    tx.commit()?;
    db.query_row("pragma wal_checkpoint(truncate)", [], |_| Ok(()))
}

fn update(file: &Path, per_mille: f64, seed: u64) -> rusqlite::Result<()> {
    let mut db = Connection::open(file)?;
    let rows: i64 = db.query_row("select max(id) + 1 from orders", [], |r| r.get(0))?;
    let rows = rows.cast_unsigned();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of some thousand rows"
    )]
    let count = (rows as f64 * per_mille / 1000.0) as u64;
    let mut random = Seeded::new(seed);
    let tx = db.transaction()?;
    for _ in 0..count {
        let (id, total) = (random.below(rows).cast_signed(), random.below(100_000).cast_signed());
        tx.execute(
            "update orders set total = ?2, payload = ?3 where id = ?1",
            params![id, total, payload(&mut random)],
        )?;
    }
    tx.commit()
}
