//! The format of snapshots against a real server, and against bytes that are none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use snapkit_core::Reason;
use snapkit_source_redis::connection::Reply;
use snapkit_source_redis::rdb::{Item, Key, Snapshot, ValueDigest, footer};

use crate::server::{Client, Server};

/// A database and a key.
pub(crate) type Name = (u64, Vec<u8>);

/// A key, the bytes of its value, and what they mean.
pub(crate) type Found = (Key, Vec<u8>, ValueDigest);

/// All that is in a snapshot: functions, and keys with the bytes and the digests of their values.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) functions: Vec<Vec<u8>>,
    pub(crate) keys: BTreeMap<Name, Found>,
    pub(crate) aux: BTreeMap<String, String>,
    pub(crate) checked: bool,
}

pub(crate) fn read(bytes: &[u8]) -> snapkit_core::Result<Read> {
    rest(&mut Snapshot::begin(bytes)?)
}

/// All that is still to come.
pub(crate) fn rest<R: std::io::Read>(snapshot: &mut Snapshot<R>) -> snapkit_core::Result<Read> {
    let mut read = Read::default();
    loop {
        match snapshot.item()? {
            Item::Aux { key, value } => {
                let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
                read.aux.insert(text(key), text(value));
            }
            Item::Function(text) => read.functions.push(text),
            Item::Key(key) => {
                let mut raw = Vec::new();
                let digest = snapshot.value(|piece| {
                    raw.extend_from_slice(piece);
                    Ok(())
                })?;
                read.keys.insert((key.database, key.name.clone()), (key, raw, digest));
            }
            Item::End { checked } => {
                read.checked = checked;
                return Ok(read);
            }
        }
    }
}

/// Something of every kind, in every encoding that this server has.
pub(crate) fn fill(client: &mut Client) {
    for command in [
        "SET text hello",
        "SET number -12345",
        "SET byte 7",
        "SET large 9223372036854775807",
        "RPUSH list a b c 1 2 300000 -9000000000",
        "SADD numbers 1 2 3 -70000 9000000000",
        "SADD words alpha beta gamma 17",
        "ZADD scores 1 one 2.5 two -inf least inf most 0 nothing 1e300 huge",
        "HSET fields a 1 b two c -3",
        "XADD stream 5-1 a 1 b 2",
        "XADD stream 5-2 a 3 b 4",
        "XADD stream 9-0 other fields here too",
        "XADD stream 10-0 a 5 b 6",
        "XDEL stream 5-2",
        "XGROUP CREATE stream workers 0",
        "XGROUP CREATE stream idlers $",
        "XREADGROUP GROUP workers ann COUNT 2 STREAMS stream >",
        "XREADGROUP GROUP workers bob COUNT 1 STREAMS stream >",
        "XACK stream workers 5-1",
        "XADD emptied 1-1 a b",
        "XDEL emptied 1-1",
        "SET expiring soon PX 100000000",
        "PFADD loglog a b c",
        "SELECT 3",
        "SET text another",
        "RPUSH list z",
    ] {
        client.say(command);
    }
    client.say("SELECT 0");
    client.ask(&[b"SET", b"\xff\x00binary\r\n", &[0, 1, 2, 255]]);
    client.ask(&[b"SET", b"compressed", "all work and no play ".repeat(40_000).as_bytes()]);
    client.ask(&[
        b"SET",
        b"long",
        &(0..200_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>(),
    ]);
    for n in 0..1000_u32 {
        let (name, value) = (format!("member:{n}"), "x".repeat(n as usize % 90));
        client.ask(&[b"RPUSH", b"long list", value.as_bytes()]);
        client.ask(&[b"SADD", b"many words", name.as_bytes()]);
        client.ask(&[b"SADD", b"many numbers", (n * 7919).to_string().as_bytes()]);
        client.ask(&[b"ZADD", b"many scores", format!("{}.5", n % 13).as_bytes(), name.as_bytes()]);
        client.ask(&[b"HSET", b"many fields", name.as_bytes(), value.as_bytes()]);
        let id = format!("{}-0", n + 1);
        client.ask(&[b"XADD", b"many messages", id.as_bytes(), b"n", name.as_bytes()]);
    }
    client.ask(&[b"RPUSH", b"plain nodes", "y".repeat(20_000).as_bytes(), b"short"]);
    let function = "#!lua name=mylib\nredis.register_function('answer', function() return 42 end)";
    client.ask(&[b"FUNCTION", b"LOAD", function.as_bytes()]);
}

fn dump(client: &mut Client, key: &Key) -> Vec<u8> {
    client.ask(&[b"SELECT", key.database.to_string().as_bytes()]);
    let Reply::Text(payload) = client.ask(&[b"DUMP", &key.name]) else { panic!("{key:?}") };
    payload
}

/// What is read of a key is what the server gives of it, byte by byte, and can be given to another one.
#[test]
fn keys_are_read_as_the_server_dumps_them() {
    let Some(server) = Server::start(&[]) else { return };
    let mut client = server.client();
    fill(&mut client);
    let first = read(&server.saved()).unwrap();
    assert!(first.checked);
    assert_eq!(first.functions.len(), 1);
    assert_eq!(first.aux["redis-bits"], "64");
    let Reply::Number(keys) = client.say("DBSIZE") else { panic!() };
    assert_eq!(first.keys.len(), usize::try_from(keys).unwrap() + 2);
    let other = Server::start(&[]).unwrap();
    let mut restored = other.client();
    for (key, raw, _) in first.keys.values() {
        let version = u16::try_from(key.version().max(9)).unwrap();
        let mut payload = [&[key.encoding][..], raw].concat();
        payload.extend(footer(&[&[key.encoding], raw], version));
        let dumped = dump(&mut client, key);
        assert_eq!(payload[..payload.len() - 10], dumped[..dumped.len() - 10], "{key:?}");
        restored.ask(&[b"SELECT", key.database.to_string().as_bytes()]);
        let expires = key.expires.unwrap_or(0).to_string();
        let reply = restored.ask(&[b"RESTORE", &key.name, expires.as_bytes(), &payload, b"ABSTTL"]);
        assert_eq!(reply, Reply::Text(b"OK".to_vec()), "{key:?}");
    }
    let second = read(&other.saved()).unwrap();
    assert_eq!(first.keys.len(), second.keys.len());
    for (name, (key, _, digest)) in &first.keys {
        let (other, _, same) = &second.keys[name];
        assert_eq!((digest, key.expires), (same, other.expires), "{key:?}");
    }
}

/// A value means the same however it is encoded.
#[test]
fn digests_do_not_depend_on_encodings() {
    let Some(server) = Server::start(&[]) else { return };
    let apart = Server::start(&[
        "--hash-max-listpack-entries",
        "0",
        "--zset-max-listpack-entries",
        "0",
        "--set-max-intset-entries",
        "0",
        "--list-max-listpack-size",
        "2",
        "--stream-node-max-entries",
        "2",
        "--rdbcompression",
        "no",
        "--rdbchecksum",
        "no",
    ])
    .unwrap();
    let mut all = Vec::new();
    for server in [&server, &apart] {
        let mut client = server.client();
        fill(&mut client);
        // Who was when seen by whom is another moment.
        client.say("XGROUP DESTROY stream workers");
        all.push(read(&server.saved()).unwrap());
    }
    let [first, second] = &all[..] else { panic!() };
    assert!(first.checked && !second.checked);
    let mut others = 0;
    for (name, (key, raw, digest)) in &first.keys {
        let (other, other_raw, same) = &second.keys[name];
        assert_eq!(digest, same, "{key:?} {other:?}");
        others += u32::from(raw != other_raw);
    }
    assert!(others > 8, "{others}");
}

/// What a client can tell apart has another digest.
#[test]
fn digests_see_what_clients_see() {
    let Some(server) = Server::start(&[]) else { return };
    let mut client = server.client();
    fill(&mut client);
    let before = read(&server.saved()).unwrap();
    for (key, command) in [
        ("text", "APPEND text !"),
        ("list", "LSET list 0 b"),
        ("numbers", "SADD numbers 4"),
        ("words", "SREM words beta"),
        ("scores", "ZADD scores 2.5000001 two"),
        ("fields", "HSET fields b 2"),
        ("stream", "XACK stream workers 9-0"),
        ("emptied", "XADD emptied 2-1 a b"),
        ("many scores", "ZINCRBY|many scores|1|member:1"),
        ("many fields", "HDEL|many fields|member:1"),
        ("many messages", "XTRIM|many messages|MAXLEN|999"),
        ("long list", "LPOP|long list"),
    ] {
        let split = if command.contains('|') { '|' } else { ' ' };
        let words: Vec<_> = command.split(split).map(str::as_bytes).collect();
        client.ask(&words);
        let after = read(&server.saved()).unwrap();
        let name = (0, key.as_bytes().to_vec());
        assert_ne!(before.keys[&name].2, after.keys[&name].2, "{command}");
    }
    // The last one delivered, the pending entries and the consumers count.
    let seen = |server: &Server| read(&server.saved()).unwrap().keys[&(0, b"stream".to_vec())].2;
    let mut digests = vec![seen(&server)];
    for command in [
        "XGROUP SETID stream idlers 5-1",
        "XCLAIM stream workers bob 0 10-0 JUSTID",
        "XGROUP DELCONSUMER stream workers bob",
        "XGROUP DESTROY stream idlers",
        "XSETID stream 99-0",
    ] {
        client.say(command);
        digests.push(seen(&server));
    }
    digests.dedup();
    assert_eq!(digests.len(), 6);
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut string = match u8::try_from(bytes.len()) {
        Ok(len) if len < 64 => vec![len],
        _ => [&[0x80][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes()].concat(),
    };
    string.extend_from_slice(bytes);
    string
}

/// A packed list as servers before Redis 7 made them.
fn ziplist(items: &[&str]) -> Vec<u8> {
    let (mut body, mut last) = (Vec::new(), 0);
    for item in items {
        let before = body.len();
        body.push(last);
        match item.parse::<u8>() {
            Ok(number) if number <= 12 => body.push(0xf1 + number),
            _ => {
                body.push(u8::try_from(item.len()).unwrap());
                body.extend_from_slice(item.as_bytes());
            }
        }
        last = u8::try_from(body.len() - before).unwrap();
    }
    let total = u32::try_from(11 + body.len()).unwrap();
    let tail = u32::try_from(10 + body.len() - usize::from(last)).unwrap();
    let count = u16::try_from(items.len()).unwrap();
    let head = [&total.to_le_bytes()[..], &tail.to_le_bytes(), &count.to_le_bytes()].concat();
    [head, body, vec![0xff]].concat()
}

/// A value of each encoding that older servers wrote.
fn old_values() -> Vec<(u8, Vec<u8>)> {
    let strings = |items: &[&[u8]]| items.iter().flat_map(|item| string(item)).collect::<Vec<_>>();
    let ends = [string(b"b"), vec![254], string(b"c"), vec![255]].concat();
    vec![
        (1, [vec![3], strings(&[b"a", b"b"]), b"\xc0\xfb".to_vec()].concat()),
        (2, [vec![2], strings(&[b"a", b"b"])].concat()),
        (3, [vec![3], string(b"a"), b"\x031.5".to_vec(), ends].concat()),
        (4, [vec![2], strings(&[b"f", b"1", b"g", b"2"])].concat()),
        (5, [vec![1], string(b"a"), 2.5_f64.to_le_bytes().to_vec()].concat()),
        (9, string(b"\x02\x03foo\x03\x00bar\x05hello\x05\x00world\xff")),
        (10, string(&ziplist(&["a", "5", "300", "-7"]))),
        (11, string(b"\x02\0\0\0\x02\0\0\0\xff\xff\x05\x00")),
        (12, string(&ziplist(&["one", "1", "two", "2.5"]))),
        (13, string(&ziplist(&["f", "1", "g", "text"]))),
        (14, [vec![2], string(&ziplist(&["a", "b"])), string(&ziplist(&["3"]))].concat()),
    ]
}

fn listpack(items: &[u8]) -> Vec<u8> {
    let total = u32::try_from(7 + items.len()).unwrap().to_le_bytes();
    string(&[&total[..], &[0, 0], items, &[0xff]].concat())
}

/// A snapshot without a checksum.
fn snapshot(version: &str, values: &[(&str, u8, Vec<u8>)]) -> Vec<u8> {
    let mut snapshot = format!("REDIS{version}").into_bytes();
    for (name, encoding, value) in values {
        snapshot.push(*encoding);
        snapshot.extend(string(name.as_bytes()));
        snapshot.extend(value);
    }
    snapshot.push(0xff);
    snapshot.extend([0; 8]);
    snapshot
}

/// Encodings that older servers wrote: they mean what a server takes them for.
#[test]
fn old_encodings_mean_what_they_meant() {
    let Some(server) = Server::start(&[]) else { return };
    let mut client = server.client();
    let mut crafted = Vec::new();
    let names: Vec<_> =
        old_values().iter().map(|(encoding, _)| format!("key:{encoding}")).collect();
    for (name, (encoding, value)) in names.iter().zip(old_values()) {
        let mut payload = [&[encoding][..], &value].concat();
        payload.extend(footer(&[&[encoding], &value], 9));
        let reply = client.ask(&[b"RESTORE", name.as_bytes(), b"0", &payload]);
        assert_eq!(reply, Reply::Text(b"OK".to_vec()), "{encoding}");
        crafted.push((name.as_str(), encoding, value));
    }
    let crafted = read(&snapshot("0009", &crafted)).unwrap();
    let saved = read(&server.saved()).unwrap();
    assert_eq!(crafted.keys.len(), 11);
    for (name, (key, _, digest)) in &crafted.keys {
        let (newer, _, same) = &saved.keys[name];
        assert_eq!((digest, key.kind()), (same, newer.kind()), "{key:?} {newer:?}");
    }
}

/// A value of each encoding of Redis 7.2 and 7.4, written down from their sources.
fn newer_values() -> Vec<(&'static str, u8, Vec<u8>)> {
    let soonest = 1_700_000_000_000_u64.to_le_bytes();
    let fields =
        [vec![1], string(b"f"), string(b"1"), vec![0], string(b"g"), string(b"2")].concat();
    let packed = listpack(
        b"\x81g\x02\x02\x01\x00\x01\x81f\x02\x01\x01\xf4\x00\x68\xe5\xcf\x8b\x01\x00\x00\x09",
    );
    vec![
        ("set", 2, [vec![2], string(b"a"), string(b"7")].concat()),
        ("set of 7.2", 20, listpack(b"\x07\x01\x81a\x02")),
        ("hash", 24, [&soonest[..], &[2], &fields].concat()),
        ("packed hash", 25, [&soonest[..], &packed].concat()),
    ]
}

/// They mean the same as others: no such server is tried here.
#[test]
fn newer_encodings_mean_the_same() {
    let keys = read(&snapshot("0012", &newer_values())).unwrap().keys;
    let digest = |name: &str| keys[&(0, name.as_bytes().to_vec())].2;
    assert_eq!(digest("set"), digest("set of 7.2"));
    assert_eq!(digest("hash"), digest("packed hash"));
}

/// A stream of one message, with a group whose one consumer has not acknowledged it; in the form of 7.2.
fn stream() -> Vec<u8> {
    let id = [[0; 7].as_slice(), &[5], &[0; 7], &[1]].concat();
    let message =
        b"\x01\x01\x00\x01\x01\x01\x81f\x02\x00\x01\x02\x01\x00\x01\x00\x01\x81v\x02\x04\x01";
    let numbers = [1, 5, 1, 5, 1, 0, 0, 1];
    let group =
        [string(b"workers"), vec![5, 1, 1], vec![1], id.clone(), vec![7; 8], vec![1]].concat();
    let consumer = [string(b"ann"), vec![7; 8], vec![7; 8], vec![1], id.clone()].concat();
    let packed = [string(&id), listpack(message)].concat();
    [&[1][..], &packed, &numbers, &[1], &group, &[1], &consumer].concat()
}

/// All that is said of snapshots that are cut and changed, each sentence once and without its figures.
#[test]
fn every_way_to_be_broken_is_said() {
    let mut said = BTreeSet::new();
    let mut samples: Vec<_> = old_values()
        .into_iter()
        .map(|(encoding, value)| snapshot("0009", &[("key", encoding, value)]))
        .collect();
    samples.extend(newer_values().into_iter().map(|value| snapshot("0012", &[value])));
    samples.push(snapshot("0011", &[("stream", 21, stream())]));
    for sample in samples {
        assert_eq!(read(&sample).unwrap().keys.len(), 1);
        let mut hear = |bytes: &[u8]| {
            if let Err(e) = read(bytes) {
                let text: String = format!("{e} ({})", e.reason());
                said.insert(
                    text.split(|c: char| c.is_ascii_digit())
                        .filter(|t| !t.is_empty())
                        .collect::<Vec<_>>()
                        .join("N"),
                );
            }
        };
        for at in 0..sample.len() {
            hear(&sample[..at]);
            for value in [
                0, 1, 2, 3, 9, 0x20, 0x3f, 0x7f, 0x80, 0x81, 0xc0, 0xc3, 0xf1, 0xf4, 0xfd, 0xfe,
                0xff,
            ] {
                let mut changed = sample.clone();
                changed[at] = value;
                hear(&changed);
            }
        }
    }
    assert_snapshot!(said.into_iter().collect::<Vec<_>>().join("\n"), @"
    a compressed string is malformed: it is longer than it says (corrupt)
    a packed value has half a pair (corrupt)
    a packed value is malformed (intset): it ends early (corrupt)
    a packed value is malformed (intset): its length is not what it says (corrupt)
    a packed value is malformed (listpack): a number is none (corrupt)
    a packed value is malformed (listpack): an element is of an unknown form (corrupt)
    a packed value is malformed (listpack): it ends early (corrupt)
    a packed value is malformed (listpack): its length is not what it says (corrupt)
    a packed value is malformed (ziplist): an element is of an unknown form (corrupt)
    a packed value is malformed (ziplist): it ends early (corrupt)
    a packed value is malformed (ziplist): its length is not what it says (corrupt)
    a packed value is malformed (ziplist): something follows its end (corrupt)
    a packed value is malformed (zipmap): it ends early (corrupt)
    a packed value is malformed (zipmap): something follows its end (corrupt)
    a score is no number (corrupt)
    a stream is malformed: a message has no flags (corrupt)
    a stream is malformed: a number of fields is impossible (corrupt)
    a stream is malformed: an identity has another length (corrupt)
    a stream is malformed: it has another number of messages than it says (corrupt)
    a string has N bytes, the limit is N (at=N) (limit-exceeded)
    the checksum of the snapshot is wrong (corrupt)
    the snapshot ends early (at=N) (corrupt)
    the snapshot holds something with the number N, which is not known here; nothing behind it can be read (at=N) (unsupported)
    the snapshot is malformed: a length is of an unknown form (at=N) (corrupt)
    the snapshot is malformed: a part of a module's value is of an unknown kind (at=N) (corrupt)
    the snapshot is malformed: a score is no number (at=N) (corrupt)
    the snapshot is malformed: a string stands where a length has to be (at=N) (corrupt)
    this is no snapshot of Redis: it does not begin like one (invalid-argument)
    ");
}

/// A snapshot that is cut or changed is refused, and never more is read than there is.
#[test]
fn damage_is_found() {
    let Some(server) = Server::start(&[]) else { return };
    let mut client = server.client();
    for command in
        ["SET a 1", "RPUSH b x y", "SADD c 1 2", "XADD d 1-1 a b", "HSET e f g", "ZADD h 1 i"]
    {
        client.say(command);
    }
    let sound = server.saved();
    assert!(read(&sound).unwrap().checked);
    for len in 0..sound.len() {
        let e = read(&sound[..len]).unwrap_err();
        assert!(matches!(e.reason(), Reason::Corrupt | Reason::InvalidArgument), "{len}: {e}");
    }
    for at in 0..sound.len() {
        for flip in [1, 0x10, 0x80, 0xff] {
            let mut changed = sound.clone();
            changed[at] ^= flip;
            // The checksum is found out about at the end, or something impossible before.
            let read = read(&changed);
            // Without its checksum nobody could know.
            let is_unchecked = changed[changed.len() - 8..] == [0; 8];
            assert!(read.is_err() || is_unchecked, "{at} {flip}");
        }
    }
}

#[test]
fn what_is_no_snapshot_is_named() {
    let told = |bytes: &[u8]| match read(bytes) {
        Ok(read) => format!("{read:?}\n"),
        Err(e) => format!("{} ({}, exit {})\n", e.chain(), e.reason(), e.reason().row().exit),
    };
    let rdb = |items: &[&[u8]]| [&b"REDIS0010"[..], &items.concat()].concat();
    let mut all = String::new();
    for bytes in [
        b"".to_vec(),
        b"redis.conf, not a snapshot".to_vec(),
        b"VALKEY080\xff".to_vec(),
        b"REDIS0013\xff".to_vec(),
        b"REDISxxxx\xff".to_vec(),
        rdb(&[b"\xf7\x81\x05\x7d\x7e\x90\x4a\x2c\x30\x01"]),
        rdb(&[b"\xf3\x01"]),
        rdb(&[b"\x06\x01a"]),
        rdb(&[b"\x16\x01a"]),
        rdb(&[b"\x63\x01a"]),
        rdb(&[b"\x00\x81\xff\xff\xff\xff\xff\xff\xff\xff"]),
        rdb(&[b"\x00\x01a\xc3\x02\x81\x00\x00\x00\x00\x00\x00\x00\x01\x20\x00"]),
        rdb(&[b"\x00\x01a\xc3\x02\x04\x20\x00"]),
        rdb(&[b"\x00\x01a\xc3\x03\x02\x02abc"]),
        rdb(&[b"\x02\x01a\xc3"]),
        rdb(&[b"\x0a\x01a\x03abc"]),
        rdb(&[b"\x0b\x01a\x08\x03\x00\x00\x00\x00\x00\x00\x00"]),
        rdb(&[b"\x10\x01a\x07\x07\x00\x00\x00\x00\x00\xf9"]),
        rdb(&[b"\x10\x01a\x09\x09\x00\x00\x00\x01\x00\x01\x01\xff"]),
        rdb(&[b"\x12\x01a\x01\x03\x01x"]),
        rdb(&[b"\x0f\x01a\x01\x04long"]),
        rdb(&[b"\xff\x01\x02\x03\x04\x05\x06\x07\x08"]),
    ] {
        all += &told(&bytes);
    }
    assert_snapshot!(all, @"
    the snapshot ends early (at=0) (corrupt, exit 4)
    this is no snapshot of Redis: it does not begin like one (invalid-argument, exit 2)
    a snapshot of Valkey 9 or newer, whose format is not known here (unsupported, exit 1)
    a snapshot of version 13, and 12 is the newest that is known here (unsupported, exit 1)
    this is no snapshot of Redis: it does not begin like one (invalid-argument, exit 2)
    the module BX1-kEosM has put something into the snapshot, which cannot be read here (unsupported, exit 1)
    the snapshot holds something with the number 243, which is not known here; nothing behind it can be read (at=10) (unsupported, exit 1)
    the snapshot holds a value of a module, in the form before Redis 4, which is not known here; nothing behind it can be read (at=10) (unsupported, exit 1)
    the snapshot holds a hash in the form of a release candidate of Redis 7.4, which is not known here; nothing behind it can be read (at=10) (unsupported, exit 1)
    the snapshot holds something with the number 99, which is not known here; nothing behind it can be read (at=10) (unsupported, exit 1)
    a string has 18446744073709551615 bytes, the limit is 536870912 (at=19) (limit-exceeded, exit 1)
    a compressed string is malformed: it is longer than it says (corrupt, exit 4)
    a compressed string is malformed: it copies what is not there (corrupt, exit 4)
    a compressed string is malformed: it ends early (corrupt, exit 4)
    the snapshot is malformed: a string stands where a length has to be (at=13) (corrupt, exit 4)
    a packed value is malformed (ziplist): it ends early (corrupt, exit 4)
    a packed value is malformed (intset): its length is not what it says (corrupt, exit 4)
    a packed value is malformed (listpack): an element is of an unknown form (corrupt, exit 4)
    a packed value has half a pair (corrupt, exit 4)
    the snapshot is malformed: a part of a list is of an unknown kind (at=16) (corrupt, exit 4)
    the snapshot ends early (at=18) (corrupt, exit 4)
    the checksum of the snapshot is wrong (corrupt, exit 4)
    ");
    // Without a checksum, as `rdbchecksum no` writes it.
    assert!(!read(&rdb(&[b"\xff\0\0\0\0\0\0\0\0"])).unwrap().checked);
}

/// What `redis-check-rdb` says of a snapshot, where it is installed.
#[test]
fn a_snapshot_that_is_read_is_one_for_the_server_too() {
    let Some(server) = Server::start(&[]) else { return };
    fill(&mut server.client());
    server.saved();
    let path: &Path = &server.path("dump.rdb");
    let Ok(checked) = Command::new("redis-check-rdb").arg(path).output() else { return };
    assert!(checked.status.success());
}
