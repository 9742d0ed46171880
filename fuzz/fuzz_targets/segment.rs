//! Tables of the index: every reference leads somewhere, and a run made of one answers as the table says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::index::run::Run;
use snapkit_core::index::segment::Table;
use snapkit_fuzz::CREDENTIAL;

fuzz_target!(|bytes: &[u8]| {
    let repository = CREDENTIAL.writer.repository;
    let Ok(table) = Table::decode(bytes, repository) else { return };
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let run = Run::write(&dir.path().join("x.run"), &table, &[], true, repository).unwrap();
    for entry in &table.entries {
        assert!(run.has(&entry.id, entry.len).unwrap());
        let homes = run.find(&entry.id).unwrap();
        assert!(homes.iter().any(|home| home.start == entry.start && home.len == entry.len));
    }
    drop(run);
    assert_eq!(Run::open_all(dir.path()).unwrap().len(), 1);
});
