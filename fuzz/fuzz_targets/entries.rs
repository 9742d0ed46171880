//! Entries of trees and nodes of chunk lists: refused, or there is one encoding of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapkit_core::entries::{check_list, decode_entry, decode_node, encode_entry};

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let mut again = Vec::new();
    while let Ok((stored, after)) = decode_entry(rest) {
        assert!(after.len() < rest.len(), "nothing was read");
        assert_eq!(check_list(&stored.content), Ok(()));
        assert_eq!(stored.content.size, stored.entry.kind.content_len());
        encode_entry(&stored, &mut Vec::new(), &mut again);
        rest = after;
    }
    assert_eq!(again, bytes[..bytes.len() - rest.len()]);
    if let Ok(refs) = decode_node(bytes) {
        assert_eq!(refs.len() * 36, bytes.len());
    }
});
