//! Snapshots of Redis: refused, or read to their end.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_source_redis::rdb::{Item, Snapshot};

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut snapshot) = Snapshot::begin(bytes) else { return };
    loop {
        match snapshot.item() {
            Ok(Item::Key(_)) => {
                let mut len = 0;
                let read = snapshot.value(|piece| {
                    len += piece.len();
                    Ok(())
                });
                assert!(len <= bytes.len(), "more than there is");
                if read.is_err() {
                    return;
                }
            }
            Ok(Item::End { .. }) | Err(_) => return,
            Ok(_) => {}
        }
    }
});
