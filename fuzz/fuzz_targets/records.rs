//! Chunks of records: refused, or there is one encoding of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::records::{decode_records, encode_record};

fuzz_target!(|bytes: &[u8]| {
    let Some((axes, chunk)) = bytes.split_first() else { return };
    let axes = usize::from(*axes % 4) + 1;
    let Ok(records) = decode_records(&chunk.to_vec().into(), axes) else { return };
    let (mut scratch, mut again) = (Vec::new(), Vec::new());
    for record in &records {
        assert_eq!(record.positions.len(), axes);
        encode_record(record, &mut scratch, &mut again);
    }
    assert_eq!(again, chunk);
});
