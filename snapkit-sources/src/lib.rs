//! The sources of snapkit, one feature each: `command`, `files`, `nats`, `prometheus`, `qdrant`, `redis`, `sqlite` and `stream`, all on by default.
//!
//! With `files` and `sqlite`, databases among files are captured through SQLite: consistent whoever writes to them,
//! and without a plain open, which would drop the locks that an embedding program holds on them.

use snapkit_core::registry::Registry;
#[cfg(feature = "command")]
pub use snapkit_source_command as command;
#[cfg(feature = "files")]
pub use snapkit_source_files as files;
#[cfg(feature = "nats")]
pub use snapkit_source_nats as nats;
#[cfg(feature = "prometheus")]
pub use snapkit_source_prometheus as prometheus;
#[cfg(feature = "qdrant")]
pub use snapkit_source_qdrant as qdrant;
#[cfg(feature = "redis")]
pub use snapkit_source_redis as redis;
#[cfg(feature = "sqlite")]
pub use snapkit_source_sqlite as sqlite;
#[cfg(feature = "stream")]
pub use snapkit_source_stream as stream;

/// Teach a registry the kinds of all sources that this crate was built with.
#[cfg_attr(
    not(any(
        feature = "command",
        feature = "files",
        feature = "nats",
        feature = "prometheus",
        feature = "qdrant",
        feature = "redis",
        feature = "sqlite",
        feature = "stream"
    )),
    expect(unused_variables, reason = "there is nothing to teach")
)]
pub fn register_all(registry: &mut Registry) {
    #[cfg(feature = "command")]
    command::register(registry);
    #[cfg(all(feature = "files", feature = "sqlite"))]
    files::register(registry, Some(databases::reader()));
    #[cfg(all(feature = "files", not(feature = "sqlite")))]
    files::register(registry, None);
    #[cfg(feature = "nats")]
    nats::register(registry);
    #[cfg(feature = "prometheus")]
    prometheus::register(registry);
    #[cfg(feature = "qdrant")]
    qdrant::register(registry);
    #[cfg(feature = "redis")]
    redis::register(registry);
    #[cfg(feature = "sqlite")]
    sqlite::register(registry);
    #[cfg(feature = "stream")]
    stream::register(registry);
}

/// Whether sources of a kind have settings that are in no snapshot, because they are secret, or programs.
#[must_use]
pub fn holds_back(kind: &str) -> bool {
    (cfg!(feature = "command") && kind == "command")
        || (cfg!(feature = "nats") && kind == "nats")
        || (cfg!(feature = "prometheus") && kind == "prometheus")
        || (cfg!(feature = "qdrant") && kind == "qdrant")
        || (cfg!(feature = "redis") && kind == "redis")
}

/// Add to settings that come from a snapshot what is in none, from those that were declared in a directory.
#[cfg_attr(
    not(feature = "command"),
    allow(unused_variables, reason = "little or nothing is held back")
)]
pub fn add_held_back(
    kind: &str,
    settings: &mut serde_json::Value,
    declared: &serde_json::Value,
    directory: &std::path::Path,
) {
    #[cfg(feature = "command")]
    if kind == "command" {
        command::add_programs(settings, declared, directory);
    }
    #[cfg(feature = "nats")]
    if kind == "nats" {
        nats::add_secrets(settings, declared);
    }
    #[cfg(feature = "prometheus")]
    if kind == "prometheus" {
        prometheus::add_secrets(settings, declared);
    }
    #[cfg(feature = "qdrant")]
    if kind == "qdrant" {
        qdrant::add_secrets(settings, declared);
    }
    #[cfg(feature = "redis")]
    if kind == "redis" {
        redis::add_secrets(settings, declared);
    }
}

/// Where the source of files meets the one that reads databases.
#[cfg(all(feature = "files", feature = "sqlite"))]
mod databases {
    use std::path::Path;
    use std::sync::Arc;

    use async_trait::async_trait;
    use snapkit_core::Result;
    use snapkit_core::context::Context;

    use crate::files::{DatabaseImage, DatabaseReader};
    use crate::sqlite::ImageReader;

    /// Reads the databases among files.
    pub(crate) fn reader() -> Arc<dyn DatabaseReader> {
        Arc::new(Images(ImageReader::default()))
    }

    #[derive(Debug)]
    struct Images(ImageReader);

    #[async_trait]
    impl DatabaseReader for Images {
        async fn read(&self, cx: &Context, path: &Path) -> Result<Option<DatabaseImage>> {
            let image = self.0.image(cx, path).await?;
            Ok(image.map(|image| DatabaseImage { size: image.size, body: image.body }))
        }
    }
}

#[cfg(all(
    test,
    feature = "command",
    feature = "files",
    feature = "nats",
    feature = "prometheus",
    feature = "qdrant",
    feature = "redis",
    feature = "sqlite",
    feature = "stream"
))]
mod tests {
    use futures_util::TryStreamExt as _;
    use rusqlite::Connection;
    use snapkit_core::artifact::{Body, SourceName};
    use snapkit_core::context::Context;
    use snapkit_core::tree::{Content, EntryKind, TreeItem};

    use super::*;

    #[test]
    fn all_kinds_are_known() {
        let mut registry = Registry::new();
        register_all(&mut registry);
        assert_eq!(
            registry.kinds().collect::<Vec<_>>(),
            ["command", "files", "nats", "prometheus", "qdrant", "redis", "sqlite", "stream"]
        );
    }

    /// What is committed but not yet in the database file is captured with the files.
    #[tokio::test(flavor = "multi_thread")]
    async fn databases_among_files_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let host = Connection::open(dir.path().join("data/app.db")).unwrap();
        host.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (x);
             WITH RECURSIVE i(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM i WHERE x < 20000)
             INSERT INTO t SELECT randomblob(100) FROM i",
        )
        .unwrap();
        let (cx, name) = (Context::system(), SourceName::new("all").unwrap());
        let mut registry = Registry::new();
        register_all(&mut registry);
        let settings = serde_json::json!({ "paths": [dir.path().join("data")] });
        let source = registry.build("files", name, settings).unwrap();
        let mut capture = source.capture(&cx, None).await.unwrap();
        capture.freeze(&cx).await.unwrap();
        capture.thaw(&cx).await.unwrap();
        let meta = capture.next(&cx).await.unwrap().unwrap();
        let Body::Tree(mut tree) = capture.open(&cx, &meta.name).await.unwrap() else { panic!() };
        let mut files = Vec::new();
        while let Some(batch) = tree.next_batch(&cx).await.unwrap() {
            for item in batch {
                match item {
                    TreeItem::Entry(e, c) if matches!(e.kind, EntryKind::File { .. }) => {
                        files.push((e, c));
                    }
                    TreeItem::Entry(..) => {}
                    TreeItem::Problem(path, e) => panic!("{path} {e:?}"),
                }
            }
        }
        assert_eq!(files.len(), 1, "the log is no file of its own: {files:?}");
        assert!(matches!(files[0].1, Content::Deferred));
        let pieces: Vec<_> =
            tree.open(&cx, &files[0].0).await.unwrap().body.try_collect().await.unwrap();
        drop(tree);
        capture.finish(&cx).await.unwrap();
        let copy = dir.path().join("copy.db");
        std::fs::write(&copy, pieces.concat()).unwrap();
        let rows: i64 = Connection::open(&copy)
            .unwrap()
            .query_row("SELECT count(*) FROM t", [], |row| row.get(0))
            .unwrap();
        assert_eq!(rows, 20_000);
    }
}
